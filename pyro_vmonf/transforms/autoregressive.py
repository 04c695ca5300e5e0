"""Masked autoregressive transforms: the features before a feature move it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.columns import Columns, summed
from pyro_vmonf.nn.made import MaskedMLP
from pyro_vmonf.nn.mlp import Activation, start_near_zero
from pyro_vmonf.nn.unrolled import unroll
from pyro_vmonf.transforms.base import Conditional, FlowTransform, NetworkOptions
from pyro_vmonf.transforms.univariate import Univariate


class AutoregressiveOptions(NetworkOptions, total=False):
    """The arguments of an :class:`Autoregressive` layer beside the features and their map."""

    order: Sequence[int] | Tensor | None


class Autoregressive(Conditional):
    r"""A monotone map of each feature, with parameters computed from the data features before it.

    .. math::
        x_i = h(z_i; \theta_i(x_{1:i-1})), \qquad \log|\det| = \sum_i \log h'(z_i)

    Each direction costs one pass through the network. The pass towards data goes feature by
    feature.

    Arguments:
        features: number of features *D*.
        univariate: the map *h*.
        order: permutation of ``range(D)``, the order of the features; ascending by default.
        hidden: widths of the hidden layers; they may be below *D*.
        activation: activation of the network.
        context_features: features *H* of the context of a row; 0 without one.
        batch_shape: one transform for each index of this shape.
    """

    network: MaskedMLP
    order: Tensor

    def __init__(
        self,
        features: int,
        univariate: Univariate,
        *,
        order: Sequence[int] | Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        context_features: int = 0,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(context_features=context_features, batch_shape=batch_shape)
        self.features = check_positive("features", features)
        self.univariate = univariate
        chosen = list(range(features)) if order is None else torch.as_tensor(order).tolist()
        if sorted(chosen) != list(range(features)):
            raise ValueError(f"order is {chosen}; expected a permutation of 0 to {features - 1}")
        self.register_buffer("order", torch.tensor(chosen))
        self.network = MaskedMLP(
            features,
            univariate.parameters,
            hidden=hidden,
            order=chosen,
            activation=activation,
            context_features=context_features,
            batch_shape=batch_shape,
        )
        start_near_zero(self.network.layers[-1])  # type: ignore[arg-type]
        # A subclass with its own inverse has no common layout.
        self.in_columns = type(self).inverse_and_log_det is Autoregressive.inverse_and_log_det

    @property
    def layout(self) -> Hashable | None:  # type: ignore[override]
        """The kind that transforms of one run have in common; ``None`` stands alone."""
        layout = (Autoregressive, self.batch_shape, self.context_features)
        return layout if self.in_columns else None

    def _through(
        self, run: Sequence[FlowTransform], rows: Tensor, *, inverse: bool
    ) -> tuple[Columns, Tensor]:
        columns, context, restore = self.columns_of(rows)
        slopes = []
        for layer in cast("Sequence[Autoregressive]", run):
            columns, log_slope = (layer._back if inverse else layer._ahead)(columns, context)
            slopes.append(summed(log_slope))
        return Columns((columns,), restore), reduce(torch.add, slopes)

    def inverse_of_observed(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.in_columns:  # a subclass with its own inverse
            return None
        there = ~x.isnan()
        columns, context, restore = self.columns_of(x.nan_to_num(0.0))
        z, log_slope = (restore(values) for values in self._back(columns, context))
        known = there
        if self.sees():  # a value is known if the entries up to it, in the order, are there
            before = there[..., self.order].long().cumprod(-1).bool()
            known = before[..., self.order.argsort()]
        return torch.where(known, z, torch.nan), torch.where(known, log_slope, 0.0).sum(-1)

    def _back(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.univariate.inverse(x, self.network.of_columns(x, context))

    def _ahead(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        slopes: list[Tensor] = []

        def emit(features: Tensor, theta: Tensor) -> Tensor:
            value, slope = self.univariate.forward(features, theta)
            slopes.append(slope)
            return value

        x = unroll(self.network, self.order, z, emit, context)
        return x, torch.cat(slopes, 1)
