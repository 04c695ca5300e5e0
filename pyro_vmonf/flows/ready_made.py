"""Ready-made banks: K flows in one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from pyro_vmonf.flows.base import BankOptions, Flow, LayeredFlow, LayerOptions
from pyro_vmonf.flows.gaussian import Gaussian, StandardNormal
from pyro_vmonf.nn.mlp import Activation
from pyro_vmonf.transforms import (
    AffineAutoregressive,
    AffineCoupling,
    FlowTransform,
    MixtureAutoregressive,
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
    "MAFMoG",
    "RealNVP",
    "StandardNormal",
    "alternating_order",
]


class RealNVP(LayeredFlow):
    """The bank of K RealNVPs: affine couplings whose masks alternate (thesis 3.4.4).

    Arguments:
        features: number of features *D*, at least 2.
        components: number of components *K*.
        blocks: number of couplings.
        hidden: widths of the hidden layers of the networks of each coupling.
        activation: activation of the networks.
        networks: 2 for the log-scale and the shift of separate networks, or 1 for both of one.
        bound: the largest log-scale of a coupling.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of the context of a row; 0 without one.
        shared, shared_at: number of blocks that all components share (thesis 6.2), and their end of
            the chain, ``"data"`` or ``"base"``.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> RealNVP(features=2, components=5)().sample((7,)).shape
        torch.Size([7, 5, 2])
    """

    networks: int

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 8,
        hidden: Sequence[int] = (16,),
        activation: Activation = "tanh",
        networks: int = 2,
        **options: Unpack[BankOptions],
    ) -> None:
        self.networks = networks
        super().__init__(features, components, blocks, hidden, activation, **options)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        mask = alternating_mask(features, flip=block % 2 == 1)
        return AffineCoupling(features, mask=mask, networks=self.networks, **options)


def alternating_order(features: int, block: int) -> list[int]:
    """Return the order of features in a block of a MAF: ascending, descending, and so on.

    Example:
        >>> alternating_order(3, 1)
        [2, 1, 0]
    """
    return list(range(features))[:: -1 if block % 2 else 1]


class MAF(LayeredFlow):
    """The bank of K masked autoregressive flows, whose orders alternate (thesis 3.4.5).

    Arguments:
        features: number of features *D*.
        components: number of components *K*.
        blocks: number of autoregressive layers.
        hidden: widths of the hidden layers of each MADE.
        activation: activation of the networks.
        bound: the largest log-scale of a layer.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of the context of a row; 0 without one.
        shared, shared_at: number of blocks that all components share (thesis 6.2), and their end of
            the chain, ``"data"`` or ``"base"``.

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
        **options: Unpack[BankOptions],
    ) -> None:
        super().__init__(features, components, blocks, hidden, activation, **options)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        order = alternating_order(features, block)
        return AffineAutoregressive(features, order=order, **options)


class NSF(LayeredFlow):
    """The bank of K neural spline flows: rational-quadratic couplings.

    The splines are the identity outside ``[-bound, bound]``. Inside a
    :class:`~pyro_vmonf.FlowMixture` the unit is one standard deviation.

    Arguments:
        features: number of features *D*, at least 2 (:class:`AutoregressiveNSF` takes one).
        components: number of components *K*.
        blocks: number of couplings.
        hidden: widths of the hidden layers.
        bins: number of pieces of each spline.
        activation: activation of the networks.
        bound: the splines are the identity outside ``[-bound, bound]``.
        base: bank or distribution at the start of the chain; K standard normals by default.
        context_features: features *H* of the context of a row; 0 without one.
        shared, shared_at: number of blocks that all components share (thesis 6.2), and their end of
            the chain, ``"data"`` or ``"base"``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> NSF(features=2, components=5)().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    bins: int

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 4,
        hidden: Sequence[int] = (32,),
        bins: int = 8,
        activation: Activation = "relu",
        **options: Unpack[BankOptions],
    ) -> None:
        self.bins = bins
        super().__init__(features, components, blocks, hidden, activation, **options)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        mask = alternating_mask(features, flip=block % 2 == 1)
        return SplineCoupling(features, mask=mask, bins=self.bins, **options)


class AutoregressiveNSF(LayeredFlow):
    """The bank of K neural spline flows with autoregressive layers, for any number of features.

    Arguments:
        features: number of features *D*, at least 1.
        components, blocks, hidden, bins, activation, bound: as for :class:`NSF`.
        base, context_features, shared, shared_at: as for :class:`NSF`.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> AutoregressiveNSF(features=1, components=5)().log_prob(torch.zeros(7, 1, 1)).shape
        torch.Size([7, 5])
    """

    bins: int

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 2,
        hidden: Sequence[int] = (32,),
        bins: int = 8,
        activation: Activation = "relu",
        **options: Unpack[BankOptions],
    ) -> None:
        self.bins = bins
        super().__init__(features, components, blocks, hidden, activation, **options)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        order = alternating_order(features, block)
        return SplineAutoregressive(features, order=order, bins=self.bins, **options)


class MAFMoG(LayeredFlow):
    """The bank of K MAFs whose conditionals are mixtures of Gaussians.

    The layer next to the base is a :class:`~pyro_vmonf.transforms.MixtureAutoregressive`; the other
    layers are those of a :class:`MAF`. One block makes a MADE with mixtures of Gaussians.

    Arguments:
        features, components, blocks, hidden, activation, bound: as for :class:`MAF`.
        base, context_features, shared, shared_at: as for :class:`MAF`.
        mixtures: number of Gaussians of each conditional.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked Autoregressive Flow for Density Estimation,
        arXiv:1705.07057.

    Example:
        >>> MAFMoG(features=3, components=5)().log_prob(torch.zeros(7, 1, 3)).shape
        torch.Size([7, 5])
    """

    mixtures: int

    def __init__(
        self,
        features: int,
        components: int,
        *,
        blocks: int = 5,
        hidden: Sequence[int] = (64,),
        mixtures: int = 10,
        activation: Activation = "relu",
        **options: Unpack[BankOptions],
    ) -> None:
        self.mixtures = mixtures
        super().__init__(features, components, blocks, hidden, activation, **options)

    def layer(self, block: int, features: int, **options: Unpack[LayerOptions]) -> FlowTransform:
        order = alternating_order(features, block)
        if block:
            return AffineAutoregressive(features, order=order, **options)
        return MixtureAutoregressive(features, order=order, mixtures=self.mixtures, **options)
