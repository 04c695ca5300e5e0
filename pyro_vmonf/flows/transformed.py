"""Flows of transforms of torch and Pyro, without a cache between calls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.utils import lazy_property

from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.flows.constant import ConstantDistribution, mapped
from pyro_vmonf.program import Registered
from pyro_vmonf.transforms.base import conditioned


class TransformedFlow(Registered):
    """One component: a flow of transforms of torch or Pyro, as a module.

    Transforms that are no modules hold tensors, such as a permutation. These are buffers of this
    module, and a ``torch.nn.Parameter`` among them is a parameter of it. Each call fills copies of
    the transforms, whose caches are empty.

    Arguments:
        transforms: from base to data; a conditional one gets the context of the rows.
        base: distribution of the base.
        reverse: run each transform from data to base.

    Raises:
        ValueError: if a transform holds a tensor that requires a gradient and is no parameter.
    """

    def __init__(
        self, transforms: Sequence[Transform], base: Distribution, *, reverse: bool = False
    ) -> None:
        super().__init__()
        self.base = ConstantDistribution(base)
        self.reverse = reverse
        # A conditional transform of Pyro is a module, but no torch Transform.
        own = [t for t in (*transforms, *parts_of(*transforms)) if isinstance(t, nn.Module)]
        self.networks = nn.ModuleList({id(t): t for t in own}.values())
        self.places: list[str] = []  # of the tensors, in the order in which they are found
        self.transforms = list(transforms)
        empty_(self.transforms)
        known: dict[int, str] = {}
        self.transforms = mapped(self.transforms, lambda tensor: self._held(tensor, known))

    def _held(self, tensor: Tensor, known: dict[int, str]) -> Tensor:
        """Take a tensor of a transform over, and return what keeps its place."""
        if tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            raise ValueError(
                f"a transform holds a tensor that requires a gradient (shape "
                f"{tuple(tensor.shape)}), which nothing would train; make it a "
                "torch.nn.Parameter, or detach it"
            )
        name = known.setdefault(id(tensor), f"tensor_{len(known)}")
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        elif name not in self._buffers:
            self.register_buffer(name, tensor.clone())
        self.places.append(name)
        return tensor.detach().new_empty(0)

    def _filled(self) -> list[Transform]:
        if not self.places:
            return self.transforms
        tensors = iter([getattr(self, name) for name in self.places])
        return mapped(self.transforms, lambda _: next(tensors))  # type: ignore[no-any-return]

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        transforms = [conditioned(transform, context) for transform in self._filled()]
        base = self.base()
        if context is not None:
            base = base.expand(torch.broadcast_shapes(context.shape[:-1], base.batch_shape))
        return _Fresh(base, [t.inv if self.reverse else t for t in transforms])

    def settings(self) -> dict[str, Any]:
        """Return what the state does not hold: numbers of the transforms that are no tensors."""
        return {"transforms": self.transforms, "reverse": self.reverse}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        missing = [name for name in self.places if f"{prefix}{name}" not in state_dict]
        if missing:
            warnings.warn(
                f"the file is of an earlier version and has no tensors of the transforms below "
                f"{prefix.rstrip('.') or 'it'}; those of the pair that is filled stay, and its "
                "densities are those of the file if they are the same. Save it again",
                stacklevel=2,
            )
            state_dict |= {f"{prefix}{name}": getattr(self, name).detach() for name in missing}
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        empty_(self.transforms)


def empty_(transforms: Sequence[Any]) -> None:
    """Empty the caches of transforms, whose parameters may have changed since."""
    for transform in parts_of(*transforms):
        for name in list(vars(transform)):
            if name == "_cached_x_y":
                transform._cached_x_y = None, None
            elif name.startswith("_cache") and name != "_cache_size":
                setattr(transform, name, None)
            elif isinstance(getattr(type(transform), name, None), lazy_property):
                delattr(transform, name)


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
