"""One flow under K rotations, such as the wings of a pinwheel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.distributions import Distribution

from pyro_vmonf.flows.ready_made import Flow, RealNVP
from pyro_vmonf.nn.mlp import Activation
from pyro_vmonf.transforms import Rotation


class RotatedRealNVP(Flow):
    """The bank of one RealNVP under K rotations (thesis 6.2).

    Every row trains the same flow, so the same density needs a K-th of the data. The centre of
    rotation is the origin: the mean of the data, in standardised units.

    Arguments:
        components: number of components *K*.
        features: number of features *D*, at least 2; the rotation turns the first two.
        blocks, hidden, activation, networks, bound: as for :class:`~pyro_vmonf.RealNVP`.
        base: bank or distribution at the start of the chain; K standard normals by default.

    Example:
        >>> bank = RotatedRealNVP(5)
        >>> bank().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    components: int
    features: int
    blocks: int
    hidden: tuple[int, ...]
    activation: Activation
    networks: int
    bound: float

    def __init__(
        self,
        components: int,
        *,
        features: int = 2,
        blocks: int = 8,
        hidden: Sequence[int] = (16,),
        activation: Activation = "tanh",
        networks: int = 2,
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
    ) -> None:
        wing = RealNVP(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            networks=networks,
            bound=bound,
            base=base,
            shared=blocks,
        )
        turned = Rotation(features, batch_shape=(components,))
        super().__init__([*wing.transforms, turned], base=wing.base)  # type: ignore[list-item]
