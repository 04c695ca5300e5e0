"""A shift and a scale that depend on the context of the rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.columns import Columns, summed
from pyro_vmonf.nn.mlp import MLP, Activation, start_near_zero
from pyro_vmonf.transforms.base import Conditional, FlowTransform
from pyro_vmonf.transforms.univariate import ShiftAndScale


class ContextAffine(Conditional):
    r"""The map :math:`x = z \odot e^{s(h)} + t(h)` with a context *h*: a regression.

    A flow with this map at its end is an expert: its mean and spread depend on the context, and
    the flow models the residuals. ``hidden=()`` makes the regression linear.

    Arguments:
        features: number of features *D*.
        context_features: features *H* of the context.
        hidden: widths of the hidden layers of the network that computes *s* and *t*.
        activation: activation of the network.
        bound: the largest log-scale.
        batch_shape: one map for each index of this shape.

    Raises:
        ValueError: if there is no context.

    Example:
        >>> transform = ContextAffine(2, 3, batch_shape=(5,)).condition(torch.randn(7, 1, 3))
        >>> transform(torch.randn(7, 1, 2)).shape
        torch.Size([7, 5, 2])
    """

    network: MLP
    bound: float

    def __init__(
        self,
        features: int,
        context_features: int,
        *,
        hidden: Sequence[int] = (),
        activation: Activation = "relu",
        bound: float = 5.0,
        batch_shape: Sequence[int] = (),
    ) -> None:
        check_positive("context_features", context_features)
        super().__init__(context_features=context_features, batch_shape=batch_shape)
        self.features = check_positive("features", features)
        self.univariate = ShiftAndScale(bound)
        self.network = MLP(
            context_features,
            2 * features,
            hidden=hidden,
            activation=activation,
            batch_shape=self.batch_shape,
        )
        start_near_zero(self.network.layers[-1])  # type: ignore[arg-type]

    def _through(
        self, run: Sequence[FlowTransform], rows: Tensor, *, inverse: bool
    ) -> tuple[Columns, Tensor]:
        columns, context, restore = self.columns_of(rows)
        assert context is not None
        theta = self.network.of_columns(context).unflatten(1, (self.features, 2))
        move = self.univariate.inverse if inverse else self.univariate.forward
        moved, log_slope = move(columns, theta)
        return Columns((moved,), restore), summed(log_slope)
