"""The mixture with its component summed out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf.distributions.estimates import (
    Estimated,
    cdf_of,
    check_single,
    icdf_of,
    mean_of_parts,
    quantile,
    variance_of_parts,
    with_gradient,
)
from pyro_vmonf.distributions.selection import grouped_draw
from pyro_vmonf.distributions.support import in_units, of_any, of_far_rows
from pyro_vmonf.program import posterior_of_joint


class Marginal(Estimated):
    r"""The mixture with the component summed out, :math:`p(x) = \sum_c \pi_c\, p(x \mid c)`.

    Its support is that of the components, so autoguides and NUTS accept it; it draws the component
    first and then only what that component needs.

    Arguments:
        log_weights: tensor ``(*, K)`` of :math:`\log\pi`.
        components: distribution with ``batch_shape`` ``(*, K)``.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> components = Independent(Normal(torch.zeros(5, 2), 1.0), 1)
        >>> mixture = Marginal(torch.full((5,), 0.2).log(), components)
        >>> mixture.log_prob(torch.zeros(3, 2)).shape, mixture.sample((4,)).shape
        (torch.Size([3]), torch.Size([4, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        log_weights: Tensor,
        components: Distribution,
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.log_weights = log_weights
        self.components = components
        if batch_shape is None:
            batch_shape = broadcast(log_weights.shape[:-1], components.batch_shape[:-1])
        super().__init__(Size(batch_shape), components.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return of_any(self.components.support, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Marginal:
        return Marginal(self.log_weights, self.components, batch_shape)

    def in_units(self, put: Callable[[Distribution], Distribution]) -> Distribution:
        """Put the components behind the units of the rows."""
        return Marginal(self.log_weights, in_units(self.components, put), self.batch_shape)

    def table(self, x: Tensor) -> Tensor:
        """Return log p(x|c) ``(*, K)``."""
        check_event(x, self.event_shape)
        rows = x.unsqueeze(-1 - self.event_dim)
        return of_far_rows(self.components.log_prob(rows), rows, self.event_dim)

    def joint_log_prob(self, x: Tensor) -> Tensor:
        r"""Return :math:`\log\pi_c + \log p(x \mid c)` of shape ``(*, K)``."""
        return self.log_weights + self.table(x)

    def scores(
        self, table: Tensor, x: Tensor, y: Tensor | None, *, posterior: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return log p(x) ``(*)`` and, if asked for, p(c|x, y) ``(*, K)``.

        Arguments:
            table: log p(x|c) of the rows: see :meth:`table`.
            x: the rows.
            y: their labels or evidence.
            posterior: compute the posterior.
        """
        joint = self.log_weights + table
        found = posterior_of_joint(joint, self.log_weights, y).exp() if posterior else None
        return joint.logsumexp(-1), found

    def log_prob(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.log_weights.dtype)
        log_prob = self.joint_log_prob(x).logsumexp(-1)
        return log_prob.expand(broadcast(log_prob.shape, self.batch_shape))

    @property
    def _axis(self) -> int:
        return -1 - len(self.event_shape)

    def _weights(self) -> Tensor:
        """Return the weights with the dimensions of rows ``(*, K, *event_shape)``."""
        return self.log_weights.exp().reshape(
            *self.log_weights.shape, *(1,) * len(self.event_shape)
        )

    @property
    def mean(self) -> Tensor:
        mean = mean_of_parts(self._weights(), self.components.mean, self._axis)
        return mean.expand(*self.batch_shape, *self.event_shape)

    @property
    def variance(self) -> Tensor:
        parts = self.components.mean, self.components.variance
        variance = variance_of_parts(self._weights(), *parts, self.mean, self._axis)
        return variance.expand(*self.batch_shape, *self.event_shape)

    def cdf(self, x: Tensor) -> Tensor:
        r"""Return :math:`P(X \le x)` ``(*)`` of rows ``(*, 1)``."""
        check_single(self)
        check_event(x, self.event_shape)
        share = (self.log_weights.exp() * cdf_of(self.components, x.unsqueeze(-2))).sum(-1)
        return share.expand(broadcast(share.shape, self.batch_shape))

    def icdf(self, share: Tensor) -> Tensor:
        """Return the quantiles ``(*, 1)`` at shares ``(*)``, between those of the components."""
        check_single(self)
        share = share.expand(broadcast(share.shape, self.batch_shape))
        each = icdf_of(self.components, share.unsqueeze(-1))
        low, high, share = each.amin(-2), each.amax(-2), share.unsqueeze(-1)
        with torch.no_grad():
            found = quantile(lambda x: self.cdf(x).unsqueeze(-1), share, low, high)
        if torch.is_grad_enabled():
            density = self.log_prob(found).detach().exp().unsqueeze(-1)
            found = with_gradient(found, self.cdf(found).unsqueeze(-1), share, density)
        return torch.where(share == 0, low, torch.where(share == 1, high, found))  # infinite

    def sample_with_component(
        self, sample_shape: Sequence[int] = (), component: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points ``(*, *event_shape)`` and the component ``(*)`` that each came from.

        Arguments:
            sample_shape: their number.
            component: draw from this one only.
        """
        with torch.no_grad():
            count = self.log_weights.shape[-1]
            log_weights = self.log_weights.expand(*self.batch_shape, count)
            shape = Size(sample_shape)
            if 0 in shape:  # torch draws no number of none
                c = torch.zeros((*shape, *self.batch_shape), dtype=torch.long)
                c = c.to(log_weights.device)
            elif component is None:
                c = torch.distributions.Categorical(logits=log_weights).sample(shape)
            else:
                c = torch.full((*shape, *self.batch_shape), component, device=log_weights.device)
            return grouped_draw(self.components, c), c

    def replicate(self, x: Tensor) -> Tensor:
        """Draw as many rows as ``x`` has."""
        return self.sample((len(x),))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample_with_component(sample_shape)[0]
