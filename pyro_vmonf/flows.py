"""Ready-made banks: K flows in one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf.banks import as_bank
from pyro_vmonf.checks import check_positive
from pyro_vmonf.compiled import Compiled
from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.gaussians import Gaussian, StandardNormal
from pyro_vmonf.nn import Activation
from pyro_vmonf.shown import ShownModule
from pyro_vmonf.transforms import (
    AffineAutoregressive,
    AffineCoupling,
    FlowTransform,
    SplineAutoregressive,
    SplineCoupling,
    alternating_mask,
)

__all__ = [
    "MAF",
    "NSF",
    "AutoregressiveNSF",
    "Flow",
    "Gaussian",
    "RealNVP",
    "StandardNormal",
    "alternating_order",
]

End = Literal["data", "base"]


class Flow(ShownModule):
    """A bank made of a base and a chain of transforms of one's own, from base to data.

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
        self.base = as_bank(base)
        self.transforms = nn.ModuleList(transforms)
        self.compiled = False

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        base, transforms = self.base(context), list(self.transforms)
        if context is not None:  # the rows' context lies over the components
            base = base.expand(torch.broadcast_shapes((*context.shape[:-1], 1), base.batch_shape))
            context = context.unsqueeze(-2)
            transforms = [
                t.condition(context) if hasattr(t, "condition") else t  # type: ignore[operator]
                for t in transforms
            ]
        flow = FlowDistribution(base, transforms)  # type: ignore[arg-type]
        return Compiled(flow, self) if self.compiled and context is None else flow

    def compile(self, *_: object, **__: object) -> None:
        """Let ``torch.compile`` take the log-density, forwards and backwards, from now on."""
        self.compiled = True


class _LayeredFlow(Flow):
    """What the ready-made banks share: so many blocks, each made by a function of its number."""

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int,
        hidden: Sequence[int],
        activation: Activation,
        bound: float,
        base: nn.Module | Distribution | None,
        context_features: int,
        shared: int,
        shared_at: End,
        make: Callable[[int, tuple[int, ...]], FlowTransform],
    ) -> None:
        components = check_positive("components", components)
        check_positive("blocks", blocks, minimum=0)
        if not 0 <= shared <= blocks or shared_at not in ("data", "base"):
            raise ValueError(
                f"shared is {shared} of {blocks} blocks and shared_at is {shared_at!r}; expected "
                "at most as many as there are, at 'data' or 'base'"
            )
        base = as_bank(StandardNormal(features, components) if base is None else base)
        found = base()
        if found.event_shape != (features,) or found.batch_shape not in ((), (1,), (components,)):
            raise ValueError(
                f"base has batch_shape {tuple(found.batch_shape)} and event_shape "
                f"{tuple(found.event_shape)}; expected ({components},) and ({features},)"
            )
        common = range(shared) if shared_at == "base" else range(blocks - shared, blocks)
        shapes = [() if i in common else (components,) for i in range(blocks)]
        super().__init__([make(i, shape) for i, shape in enumerate(shapes)], base=base)
        self.features = features
        self.components = components
        self.blocks = blocks
        self.hidden = tuple(hidden)
        self.activation = activation
        self.bound = bound
        self.context_features = context_features
        self.shared = shared
        self.shared_at = shared_at


class RealNVP(_LayeredFlow):
    """The bank of K RealNVPs: affine couplings whose masks alternate (thesis 3.4.4).

    Arguments:
        features: number of features *D*, at least 2.
        components: number of components *K*.
        blocks: number of couplings.
        hidden: widths of the hidden layers of both networks of each coupling.
        activation: their activation.
        bound: the largest log-scale of a coupling.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of a context that every density depends on.
        shared, shared_at: how many of the blocks all components have in common (thesis 6.2), and
            at which end, ``"data"`` or ``"base"``.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> RealNVP(features=2, components=5)().sample((7,)).shape
        torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 8,
        hidden: Sequence[int] = (16,),
        activation: Activation = "tanh",
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int = 0,
        shared: int = 0,
        shared_at: End = "data",
    ) -> None:
        super().__init__(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            bound=bound,
            base=base,
            context_features=context_features,
            shared=shared,
            shared_at=shared_at,
            make=lambda i, batch_shape: AffineCoupling(
                features,
                mask=alternating_mask(features, flip=i % 2 == 1),
                hidden=hidden,
                activation=activation,
                bound=bound,
                context_features=context_features,
                batch_shape=batch_shape,
            ),
        )


def alternating_order(features: int, block: int) -> list[int]:
    """Return the order of features in a block of a MAF: ascending, descending, and so on.

    Example:
        >>> alternating_order(3, 1)
        [2, 1, 0]
    """
    return list(range(features))[:: -1 if block % 2 else 1]


class MAF(_LayeredFlow):
    """The bank of K masked autoregressive flows, whose orders alternate (thesis 3.4.5).

    Arguments:
        features: number of features *D*.
        components: number of components *K*.
        blocks: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        activation: their activation.
        bound: the largest log-scale of a layer.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of a context that every density depends on.
        shared, shared_at: how many of the blocks all components have in common (thesis 6.2), and
            at which end, ``"data"`` or ``"base"``.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked Autoregressive Flow for Density Estimation,
        arXiv:1705.07057.

    Example:
        >>> MAF(features=3, components=5)().log_prob(torch.zeros(7, 1, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 5,
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int = 0,
        shared: int = 0,
        shared_at: End = "data",
    ) -> None:
        super().__init__(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            bound=bound,
            base=base,
            context_features=context_features,
            shared=shared,
            shared_at=shared_at,
            make=lambda i, batch_shape: AffineAutoregressive(
                features,
                order=alternating_order(features, i),
                hidden=hidden,
                activation=activation,
                bound=bound,
                context_features=context_features,
                batch_shape=batch_shape,
            ),
        )


class NSF(_LayeredFlow):
    """The bank of K neural spline flows: rational-quadratic couplings.

    Splines are the identity outside ``[-bound, bound]``, in standardised units when the bank is
    behind :class:`~pyro_vmonf.FlowMixture`.

    Arguments:
        features: number of features *D*, at least 2 (:class:`AutoregressiveNSF` takes one).
        components: number of components *K*.
        blocks: number of couplings.
        hidden: widths of the hidden layers.
        bins: pieces of each spline.
        activation: activation of the networks.
        bound: half the width of the box.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of a context that every density depends on.
        shared, shared_at: how many of the blocks all components have in common (thesis 6.2), and
            at which end, ``"data"`` or ``"base"``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> NSF(features=2, components=5)().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 4,
        hidden: Sequence[int] = (32,),
        bins: int = 8,
        activation: Activation = "relu",
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int = 0,
        shared: int = 0,
        shared_at: End = "data",
    ) -> None:
        super().__init__(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            bound=bound,
            base=base,
            context_features=context_features,
            shared=shared,
            shared_at=shared_at,
            make=lambda i, batch_shape: SplineCoupling(
                features,
                mask=alternating_mask(features, flip=i % 2 == 1),
                hidden=hidden,
                activation=activation,
                bins=bins,
                bound=bound,
                context_features=context_features,
                batch_shape=batch_shape,
            ),
        )
        self.bins = bins


class AutoregressiveNSF(_LayeredFlow):
    """The bank of K neural spline flows with autoregressive layers, for any number of features.

    Arguments:
        features, components, blocks, hidden, bins, activation, bound: as for :class:`NSF`, but for
            the number of features, which may be one.
        base, context_features, shared, shared_at: as there.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> AutoregressiveNSF(features=1, components=5)().log_prob(torch.zeros(7, 1, 1)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 2,
        hidden: Sequence[int] = (32,),
        bins: int = 8,
        activation: Activation = "relu",
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
        context_features: int = 0,
        shared: int = 0,
        shared_at: End = "data",
    ) -> None:
        super().__init__(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            bound=bound,
            base=base,
            context_features=context_features,
            shared=shared,
            shared_at=shared_at,
            make=lambda i, batch_shape: SplineAutoregressive(
                features,
                order=alternating_order(features, i),
                hidden=hidden,
                activation=activation,
                bins=bins,
                bound=bound,
                context_features=context_features,
                batch_shape=batch_shape,
            ),
        )
        self.bins = bins
