"""The bank of a base and a chain of transforms, and the base class of the ready-made banks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.distributions.compiled import Compiled
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.flows.gaussian import StandardNormal
from pyro_vmonf.flows.stack import as_bank
from pyro_vmonf.nn.mlp import Activation
from pyro_vmonf.program import Registered
from pyro_vmonf.transforms import FlowTransform
from pyro_vmonf.transforms.base import NetworkOptions, conditioned

End = Literal["data", "base"]
Shape = tuple[int, ...]


class Flow(Registered, ShownModule):
    """A bank of a base and a chain of transforms, from base to data.

    Private transforms ``(K,)`` and shared ones ``()`` mix in any order.

    Arguments:
        transforms: the chain, from base to data.
        base: the bank at the start of the chain, or a distribution, of ``batch_shape`` ``(K,)``.

    Example:
        >>> from pyro_vmonf.transforms import Affine, PReLU
        >>> bank = Flow([PReLU(2), Affine(2, batch_shape=(5,))], base=StandardNormal(2, 5))
        >>> bank().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self, transforms: Sequence[FlowTransform], *, base: nn.Module | Distribution
    ) -> None:
        super().__init__()
        for transform in transforms:
            if not isinstance(transform, nn.Module):
                raise TypeError(
                    f"transforms has a {type(transform).__name__}; expected modules such as those "
                    "of pyro_vmonf.transforms: transforms of torch go into a bank by Replicated, "
                    "or into a FlowTransform of your own"
                )
        self.base = as_bank(base)
        self.transforms = nn.ModuleList(transforms)
        self.compiled = False

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        base, transforms = self.base(context), list(self.transforms)
        if context is not None:  # a dimension of components joins the context
            base = base.expand(torch.broadcast_shapes((*context.shape[:-1], 1), base.batch_shape))
            context = context.unsqueeze(-2)
            transforms = [conditioned(transform, context) for transform in transforms]
        flow = FlowDistribution(base, transforms)  # type: ignore[arg-type]
        return Compiled(flow, self) if self.compiled and context is None else flow

    def start_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Start the transforms that start from data, such as activation normalisations, once.

        Arguments:
            x: rows ``(N, *event_shape)``.
            weight: weight of each row for each component, ``(N, K)``; equal by default.
        """
        if not any(isinstance(t, FlowTransform) and t.waits for t in self.transforms):
            return
        x = x.unsqueeze(-1 - len(self.base().event_shape))
        for transform in reversed(self.transforms):
            if isinstance(transform, FlowTransform):
                x = transform.start_(x, weight)
            else:
                x = transform.inv(x)  # type: ignore[operator]

    def compile(self, *_: object, **__: object) -> None:
        """Compile the log-density and its gradient with ``torch.compile`` from now on."""
        self.compiled = True


def base_bank(
    base: nn.Module | Distribution | None, event_shape: Shape, components: int
) -> nn.Module:
    """Return the bank at the start of a chain, K standard normals by default.

    Raises:
        ValueError: if its rows or its number of components do not fit the chain.
    """
    default = StandardNormal(event_shape[0] if len(event_shape) == 1 else event_shape, components)
    bank = as_bank(default if base is None else base)
    found = bank()
    if found.event_shape != event_shape or found.batch_shape not in ((), (1,), (components,)):
        raise ValueError(
            f"base has batch_shape {tuple(found.batch_shape)} and event_shape "
            f"{tuple(found.event_shape)}; expected ({components},) and {event_shape}"
        )
    return bank


def batch_shapes(blocks: int, shared: int, components: int, shared_at: End = "data") -> list[Shape]:
    """Return the batch shape of each block, from base to data; a shared block has ``()``.

    Raises:
        ValueError: if ``shared`` exceeds the number of blocks, or the end is unknown.

    Example:
        >>> batch_shapes(3, 1, 5)
        [(5,), (5,), ()]
    """
    if not 0 <= shared <= blocks or shared_at not in ("data", "base"):
        raise ValueError(
            f"shared is {shared} of {blocks} blocks and shared_at is {shared_at!r}; expected "
            "at most as many as there are, at 'data' or 'base'"
        )
    common = range(shared) if shared_at == "base" else range(blocks - shared, blocks)
    return [() if i in common else (components,) for i in range(blocks)]


class LayerOptions(NetworkOptions, total=False):
    """The arguments that a bank passes to each of its layers."""

    bound: float


class BankOptions(TypedDict, total=False):
    """The arguments that the ready-made banks share."""

    bound: float
    base: nn.Module | Distribution | None
    context_features: int
    shared: int
    shared_at: End


class LayeredFlow(Flow):
    """A bank of equal blocks; a subclass writes :meth:`layer`, which makes one of them."""

    features: int
    components: int
    blocks: int
    hidden: tuple[int, ...]
    activation: Activation
    bound: float
    context_features: int
    shared: int
    shared_at: End

    def __init__(
        self,
        features: int,
        components: int,
        blocks: int,
        hidden: Sequence[int],
        activation: Activation,
        *,
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int = 0,
        shared: int = 0,
        shared_at: End = "data",
    ) -> None:
        components = check_positive("components", components)
        check_positive("blocks", blocks, minimum=0)
        shapes = batch_shapes(blocks, shared, components, shared_at)
        base = base_bank(base, (features,), components)  # checks the features
        layers = [
            self.layer(
                block,
                features,
                hidden=hidden,
                activation=activation,
                bound=bound,
                context_features=context_features,
                batch_shape=batch_shape,
            )
            for block, batch_shape in enumerate(shapes)
        ]
        super().__init__(layers, base=base)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        """Return a block, given its number; the first is next to the base."""
        raise NotImplementedError
