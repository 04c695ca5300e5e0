"""The number of free parameters of a module."""

from __future__ import annotations

from torch import nn


def free_numbers(module: nn.Module) -> int:
    """Return how many numbers of a module are free: those that require a gradient.

    A part with a ``num_free()`` of its own says it, such as one that reads a triangle of a matrix.

    Example:
        >>> free_numbers(nn.Linear(2, 3))
        9
    """
    counted: set[int] = set()

    def count(part: nn.Module) -> int:
        if id(part) in counted:
            return 0
        counted.add(id(part))
        say = getattr(part, "num_free", None)
        if callable(say):
            tied = [p for p in part.parameters() if p.requires_grad and id(p) in counted]
            try:
                for parameter in tied:
                    parameter.requires_grad_(False)
                free = int(say())
            finally:
                for parameter in tied:
                    parameter.requires_grad_()
            counted.update(id(p) for p in part.parameters() if p.requires_grad)
            return free
        own = {id(p): p.numel() for p in part.parameters(recurse=False) if p.requires_grad}
        fresh = sum(size for key, size in own.items() if key not in counted)
        counted.update(own)
        return fresh + sum(count(child) for child in part.children())

    return count(module)
