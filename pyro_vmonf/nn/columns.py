"""Points as columns: what transforms and bases hand on to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


def _one(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Columns:
    """Points with their features along the columns, and the rows last in memory.

    Arguments:
        parts: the features ``(groups, D_i, rows)``, in one part or several.
        restore: the function from ``(groups, out, rows)`` to ``(*, out)``: see
            :func:`~pyro_vmonf.nn.to_columns`.
        join: the function from the parts to all features ``(groups, D, rows)``, in their order.
    """

    parts: tuple[Tensor, ...]
    restore: Callable[[Tensor], Tensor]
    join: Callable[[tuple[Tensor, ...]], Tensor] = _one

    def joined(self) -> Tensor:
        """Return all features ``(groups, D, rows)``."""
        return self.join(self.parts)

    def rows(self) -> Tensor:
        """Return the points ``(*, D)``."""
        return self.restore(self.joined())

    def squares(self) -> Tensor:
        """Return the sum of the squares of each point, ``(groups, 1, rows)``."""
        squares = [part * part for part in self.parts]
        if all(part.shape == squares[0].shape for part in squares):  # one sum is enough
            return summed(reduce(torch.add, squares))
        return reduce(torch.add, [summed(part) for part in squares])


def summed(columns: Tensor) -> Tensor:
    """Return the sum over the features of columns, ``(groups, 1, rows)``."""
    return columns if columns.shape[1] == 1 else columns.sum(1, keepdim=True)
