"""Coupling transforms: one half of the features moves the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.columns import Columns, summed
from pyro_vmonf.nn.mlp import MLP, Activation, start_near_zero
from pyro_vmonf.transforms.base import Conditional, FlowTransform, NetworkOptions
from pyro_vmonf.transforms.univariate import Univariate

Halves = tuple[Tensor, Tensor]


def alternating_mask(features: int, flip: bool = False) -> Tensor:
    """Return the mask of every second feature.

    Example:
        >>> alternating_mask(5)
        tensor([ True, False,  True, False,  True])
    """
    return (torch.arange(features) % 2 == 0) ^ flip


def checkerboard_mask(height: int, width: int, flip: bool = False) -> Tensor:
    """Return the checkerboard of a flattened image, ``(height·width,)``.

    Example:
        >>> checkerboard_mask(2, 2)
        tensor([ True, False, False,  True])
    """
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    return (((rows + columns) % 2 == 0) ^ flip).flatten()


class CouplingOptions(NetworkOptions, total=False):
    """The arguments of a :class:`Coupling` beside the features, their map and its networks."""

    mask: Tensor | Sequence[bool] | None


class Coupling(Conditional):
    r"""A monotone map of some features, with parameters computed from the others.

    .. math::
        x_2 = z_2, \qquad x_1 = h(z_1; \theta(z_2)), \qquad
        \log|\det| = \sum_i \log h'(z_{1,i})

    Arguments:
        features: number of features *D*, at least 2.
        univariate: the map *h*.
        mask: booleans ``(D,)``, true for the features that stay; every second by default.
        hidden: widths of the hidden layers of the networks that compute θ.
        activation: activation of the networks.
        networks: number of separate networks, each of which computes an equal part of θ; by default
            that of the map. At 1 a shift and a scale come from one network.
        context_features: features *H* of the context of a row; 0 without one.
        batch_shape: one transform for each index of this shape.

    Raises:
        ValueError: if there are fewer than two features, the mask has a wrong shape or equal
            entries, or the networks do not divide θ.
    """

    network: MLP
    mask: Tensor
    passive: Tensor
    active: Tensor
    order: Tensor
    first_passes: bool
    alternates: bool
    halves: tuple[bool, ...]  # of each feature: whether it passes as the first one does

    def __init__(
        self,
        features: int,
        univariate: Univariate,
        *,
        mask: Tensor | Sequence[bool] | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        networks: int | None = None,
        context_features: int = 0,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(context_features=context_features, batch_shape=batch_shape)
        if check_positive("features", features) == 1:
            raise ValueError(
                "features is 1; it must be an integer of at least 2, since a feature moves by "
                "another: take an autoregressive flow, such as MAF(1, K) or AutoregressiveNSF(1, K)"
            )
        self.features = features
        self.univariate = univariate
        count = univariate.networks if networks is None else check_positive("networks", networks)
        if univariate.parameters % count:
            raise ValueError(
                f"networks is {count}; expected a divisor of {univariate.parameters}, the "
                f"parameters of each feature in {univariate}"
            )
        mask = alternating_mask(features) if mask is None else torch.as_tensor(mask).bool()
        if mask.shape != (features,) or mask.all() or not mask.any():
            raise ValueError(
                f"mask is {mask.tolist()}; expected {features} booleans, some true and some false"
            )
        passive, active = mask.nonzero().squeeze(-1), (~mask).nonzero().squeeze(-1)
        self.register_buffer("mask", mask)
        self.register_buffer("passive", passive)
        self.register_buffer("active", active)
        self.register_buffer("order", torch.cat((passive, active)).argsort())
        _see_mask(self)
        self.register_load_state_dict_post_hook(_see_mask)
        # One more batch dimension holds the separate networks (s and t).
        self.network = MLP(
            len(passive) + context_features,
            len(active) * univariate.parameters // count,
            hidden=hidden,
            activation=activation,
            batch_shape=(*self.batch_shape, count),
        )
        start_near_zero(self.network.layers[-1])  # type: ignore[arg-type]

    @property
    def layout(self) -> Hashable | None:  # type: ignore[override]
        """The kind that transforms of one run have in common; ``None`` stands alone."""
        layout = (Coupling, self.batch_shape, self.context_features, self.halves)
        return layout if self.in_columns else None

    def _through(
        self, run: Sequence[FlowTransform], rows: Tensor, *, inverse: bool
    ) -> tuple[Columns, Tensor]:
        """Send rows through couplings of the same halves."""
        columns, context, restore = self.columns_of(rows)
        halves = self.split(columns)
        slopes = []
        for coupling in cast("Sequence[Coupling]", run):
            halves, log_slope = coupling.moved(halves, context, inverse=inverse)
            slopes.append(summed(log_slope))
        return Columns(halves, restore, self.join), reduce(torch.add, slopes)

    def moved(
        self, halves: Halves, context: Tensor | None, *, inverse: bool
    ) -> tuple[Halves, Tensor]:
        """Move one half, and return both with the log-slopes ``(groups, active, rows)``."""
        passive, active = halves if self.first_passes else halves[::-1]
        move = self.univariate.inverse if inverse else self.univariate.forward
        active, log_slope = move(active, self._parameters_from(passive, context))
        return ((passive, active) if self.first_passes else (active, passive)), log_slope

    def split(self, columns: Tensor) -> Halves:
        """Return two halves of the columns; the first one holds the first feature."""
        if self.alternates:  # the gradient of one view is one tensor; two slices add two
            even, odd = columns.unflatten(1, (-1, 2)).unbind(2)
            return even, odd
        passive, active = (columns.index_select(1, i) for i in (self.passive, self.active))
        return (passive, active) if self.first_passes else (active, passive)

    def join(self, halves: tuple[Tensor, ...]) -> Tensor:
        """Return the columns of two halves."""
        if self.alternates:
            return torch.stack(halves, 2).flatten(1, 2)
        passive, active = halves if self.first_passes else halves[::-1]
        return torch.cat((passive, active), 1).index_select(1, self.order)

    def inverse_of_observed(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if not self.in_columns:  # a subclass with its own inverse
            return None
        there = ~x.isnan()
        columns, context, restore = self.columns_of(x.nan_to_num(0.0))
        halves, log_slope = self.moved(self.split(columns), context, inverse=True)
        z = Columns(halves, restore, self.join).rows()
        known = there
        if self.sees():  # what moves is known if all that moves it is there
            known = there & (self.mask | there[..., self.passive].all(-1, keepdim=True))
        slopes = torch.where(known[..., self.active], restore(log_slope), 0.0)
        return torch.where(known, z, torch.nan), slopes.sum(-1)

    def _parameters_from(self, passive: Tensor, context: Tensor | None) -> Tensor:
        """Compute θ of shape ``(groups, active, P, rows)``."""
        seen = passive if context is None else torch.cat((passive, context), 1)
        out = self.network.of_columns(seen)
        groups, parameters = len(passive), self.univariate.parameters
        networks = self.network.batch_shape[-1]
        each, active = parameters // networks, self.features - passive.shape[1]
        if networks == 1 or active == 1:  # the parameters of a feature are side by side
            return out.view(groups, active, parameters, -1)
        if each == 1:  # the outputs of each network are one parameter of all features
            return out.view(groups, networks, active, -1).transpose(1, 2)
        out = out.reshape(groups, networks, active, each, -1)
        return out.transpose(1, 2).flatten(2, 3)


def _see_mask(coupling: Coupling, _: object = None) -> None:
    mask = coupling.mask.tolist()
    coupling.first_passes = mask[0]
    halves = tuple(passes == mask[0] for passes in mask)
    coupling.alternates = len(mask) % 2 == 0 and halves == (True, False) * (len(mask) // 2)
    # A subclass with its own inverse has no common layout.
    coupling.in_columns = type(coupling).inverse_and_log_det is Coupling.inverse_and_log_det
    coupling.halves = halves
