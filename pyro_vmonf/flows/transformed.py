"""Flows made of the transforms of torch and Pyro, which keep no values from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.flows.constant import ConstantDistribution


class TransformedFlow(nn.Module):
    """A flow of torch's or Pyro's transforms as a module: one component.

    Values that the transforms keep from one call to the next are thrown away after each; they are
    those of parameters that have moved on since.

    Arguments:
        transforms: from base to data; those that are conditional are given the rows' context.
        base: distribution of the base.
        reverse: run each transform from data to base.
    """

    def __init__(
        self, transforms: Sequence[Transform], base: Distribution, *, reverse: bool = False
    ) -> None:
        super().__init__()
        self.base = ConstantDistribution(base)
        self.transforms = list(transforms)
        self.reverse = reverse
        # Conditional transforms are modules and no transforms.
        own = [t for t in (*transforms, *parts_of(*transforms)) if isinstance(t, nn.Module)]
        self.networks = nn.ModuleList({id(t): t for t in own}.values())

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        transforms = [
            t.condition(context) if context is not None and hasattr(t, "condition") else t
            for t in self.transforms
        ]
        base = self.base()
        if context is not None:
            base = base.expand(torch.broadcast_shapes(context.shape[:-1], base.batch_shape))
        return _Fresh(base, [t.inv if self.reverse else t for t in transforms])


class _Fresh(FlowDistribution):
    """A flow whose transforms keep no values."""

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Fresh:
        return _Fresh(self.base.expand(Size(batch_shape)), self.transforms)

    def log_prob(self, x: Tensor) -> Tensor:
        try:
            return super().log_prob(x.view_as(x))  # a new object, which no cache knows
        finally:
            self._forget()

    def _push(self, z: Tensor) -> Tensor:
        try:
            return super()._push(z)
        except (KeyError, NotImplementedError) as error:
            raise NotImplementedError(
                "these transforms run from data to base (reverse=True), and have no way back: they "
                f"score data and cannot draw any ({error})"
            ) from error
        finally:
            self._forget()

    def _forget(self) -> None:
        for transform in parts_of(*self.transforms):
            for name in list(vars(transform)):
                if name == "_cached_x_y":
                    transform._cached_x_y = None, None
                elif name.startswith("_cache") and name != "_cache_size":
                    setattr(transform, name, None)


def parts_of(*transforms: Any) -> list[Any]:
    """Return transforms and those they are made of, each once."""
    found: dict[int, Any] = {}
    waiting = list(transforms)
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, (Transform, nn.Module)) and id(value) not in found:
            found[id(value)] = value
            waiting += [*vars(value).values(), *vars(value).get("_modules", {}).values()]
    return [part for part in found.values() if isinstance(part, Transform)]
