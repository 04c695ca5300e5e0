"""What objects say of themselves: the arguments they were made with, and their shapes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

LARGEST_LIST = 10  # numbers of a tensor that are shown one by one


def arguments_of(thing: Any, *, always: Sequence[str] = ()) -> str:
    """Return the constructor's arguments as ``name=value``, but for those at their default.

    Modules are left out, since they are shown below the one that holds them.

    Arguments:
        thing: any object that keeps its arguments under their names.
        always: arguments that are shown also where they have their default.

    Example:
        >>> from pyro_vmonf.transforms import PReLU
        >>> arguments_of(PReLU(2, batch_shape=(5,)))
        'features=2, batch_shape=(5,)'
    """
    # Not getattr: a Pyro module would register what it is asked for.
    held = {**vars(thing).get("_buffers", {}), **vars(thing)}
    shown = []
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        value = held.get(name)
        if value is None or isinstance(value, nn.Module):
            continue
        text = _text(value)
        if name in always or text != _text(parameter.default):
            shown.append(f"{name}={text}")
    return ", ".join(shown)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() > LARGEST_LIST:
            return f"tensor of shape {tuple(value.shape)}"
        numbers = value.tolist()
        return repr(_rounded(numbers) if value.is_floating_point() else numbers)
    if isinstance(value, torch.Size):
        return repr(tuple(value))
    name = getattr(value, "__name__", None)
    return name if callable(value) and name else repr(value)


def _rounded(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_rounded(number) for number in numbers]
    return float(f"{numbers:.4g}")


class ShownModule(nn.Module):
    """A module whose ``repr`` has its arguments."""

    def extra_repr(self) -> str:
        return arguments_of(self)


class ShownDistribution(TorchDistribution):
    """A distribution whose ``repr`` has its shapes, and its components where no shape has them."""

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        components = getattr(self, "components", None)
        if components is not None:
            shapes = f"components={components.batch_shape[-1]}, {shapes}"
        return f"{type(self).__name__}({shapes})"
