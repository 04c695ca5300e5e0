"""Fixed distributions as modules, which move with the rest of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform

from pyro_vmonf.distributions.support import OwnUnits


class ConstantDistribution(nn.Module):
    """A module whose call returns a fixed distribution.

    The module holds a copy, and moves its tensors to another dtype or device with itself.

    Arguments:
        distribution: any distribution of torch or Pyro.

    Raises:
        ValueError: if it holds tensors that require a gradient.

    Example:
        >>> ConstantDistribution(torch.distributions.Normal(0.0, 1.0)).double()().loc.dtype
        torch.float64
    """

    raw: Tensor

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.distribution = mapped(distribution, _copied)
        self.register_buffer("raw", torch.tensor(True))
        self.is_raw = True  # the same, which the meta device can read

    def forward(self, context: Tensor | None = None) -> Distribution:
        return self.distribution

    def as_component(self, context: Tensor | None = None) -> Distribution:
        """Return the distribution as a component: in raw units, and zero outside its support."""
        return OwnUnits(self.distribution) if self.is_raw else self.distribution

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Files of earlier versions have fixed components in the units of the fit.
        state_dict.setdefault(f"{prefix}raw", torch.tensor(False))
        self.is_raw = bool(state_dict[f"{prefix}raw"])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return repr(self.distribution)

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.distribution = mapped(self.distribution, function)
        return super()._apply(function, recurse)  # type: ignore[no-any-return, no-untyped-call]


def _copied(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        raise ValueError(
            f"the distribution holds tensors that require a gradient (one of shape "
            f"{tuple(tensor.shape)}), which nothing would train; pass a module whose call returns "
            "the distribution, or detach them"
        )
    return tensor.clone()


def mapped(
    value: Any, function: Callable[[Tensor], Tensor], seen: dict[int, Any] | None = None
) -> Any:
    """Return a copy of a distribution, or of a part, after a function of all its tensors."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if not any(isinstance(item, (Tensor, Distribution, Transform)) for item in value):
            return value
        return type(value)([mapped(item, function, seen) for item in value])
    if isinstance(value, (Distribution, Transform)) and not isinstance(value, nn.Module):
        result = seen[id(value)] = copy.copy(value)
        for name, part in vars(value).items():
            if name == "_inv" and not isinstance(value, _InverseTransform):
                part = None  # the inverse of a copy is made anew
            result.__dict__[name] = mapped(part, function, seen)
        return result
    return value
