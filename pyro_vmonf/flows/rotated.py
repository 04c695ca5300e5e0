"""One flow turned K ways: what the pinwheel's wings have in common, and what not."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.distributions import Distribution

from pyro_vmonf.flows.ready_made import Flow, RealNVP
from pyro_vmonf.nn.mlp import Activation
from pyro_vmonf.transforms import Rotation


class RotatedRealNVP(Flow):
    """The bank of one RealNVP turned by K angles: one wing, K rotations (thesis 6.2).

    Every row trains the one flow, so a K-th of the data is enough for the same density. The centre
    is the origin, in standardised units the mean of the data.

    Arguments:
        components: number of components *K*.
        features: number of features *D*, at least 2; the first two are turned.
        blocks, hidden, activation, bound: of the one RealNVP.
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
    bound: float

    def __init__(
        self,
        components: int,
        *,
        features: int = 2,
        blocks: int = 8,
        hidden: Sequence[int] = (16,),
        activation: Activation = "tanh",
        bound: float = 5.0,
        base: nn.Module | Distribution | None = None,
    ) -> None:
        wing = RealNVP(
            features,
            components,
            blocks=blocks,
            hidden=hidden,
            activation=activation,
            bound=bound,
            base=base,
            shared=blocks,
        )
        turned = Rotation(features, batch_shape=(components,))
        super().__init__([*wing.transforms, turned], base=wing.base)  # type: ignore[list-item]
