"""Flows of transforms of torch and Pyro, without a cache between calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.flows.constant import ConstantDistribution
from pyro_vmonf.program import Registered
from pyro_vmonf.transforms.base import conditioned


class TransformedFlow(Registered):
    """One component: a flow of transforms of torch or Pyro, as a module.

    Each call empties the caches of the transforms, because the parameters may have changed since.

    Arguments:
        transforms: from base to data; a conditional one gets the context of the rows.
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
        # A conditional transform of Pyro is a module, but no torch Transform.
        own = [t for t in (*transforms, *parts_of(*transforms)) if isinstance(t, nn.Module)]
        self.networks = nn.ModuleList({id(t): t for t in own}.values())

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        transforms = [conditioned(transform, context) for transform in self.transforms]
        base = self.base()
        if context is not None:
            base = base.expand(torch.broadcast_shapes(context.shape[:-1], base.batch_shape))
        return _Fresh(base, [t.inv if self.reverse else t for t in transforms])


class _Fresh(FlowDistribution):
    """A flow whose transforms have empty caches after each call."""

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Fresh:
        return _Fresh(self.base.expand(Size(batch_shape)), self.transforms)

    def log_prob(self, x: Tensor) -> Tensor:
        try:
            return super().log_prob(x.view_as(x))  # a new object, so no cache has it
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
    """Return the transforms and all transforms inside of them, each once."""
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
