"""Rows with missing entries: the density of the entries that are there, and the law of the others.

NaN marks a missing entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    constraints,
)

from pyro_vmonf._utils.repr import ShownDistribution
from pyro_vmonf._utils.shapes import check_event
from pyro_vmonf.contracts import optional
from pyro_vmonf.distributions.ellipses import Ellipses
from pyro_vmonf.distributions.entries import Partial

PROBED = 256  # draws of a component, whose mean and covariance make its proposal
# Covariances of the two Gaussians of a proposal, by that of the component, and the share of the
# second: the tails of a proposal have to be the longer ones.
WIDER, WIDEST, SHARE = 1.2, 6.0, 0.2
RIDGE = 1e-6  # of that covariance, by its mean variance
MOST_NUMBERS = 2**22  # that a chunk of rows may need at once


_watched: ContextVar[list[Tensor] | None] = ContextVar("_watched", default=None)


@contextmanager
def watching() -> Iterator[list[Tensor]]:
    """Collect how many draws count for each row with gaps that is scored in the block.

    Weights of the components are not known here: all count alike.
    """
    found: list[Tensor] = []
    token = _watched.set(found)
    try:
        yield found
    finally:
        _watched.reset(token)


def observe(components: Distribution, x: Tensor, draws: int) -> Partial:
    """Return what K components say of rows with missing entries.

    It is exact where the components have a member ``observe``, and an importance-weighted mean
    elsewhere.

    Arguments:
        components: distribution with ``batch_shape`` ``(*, K)`` and ``event_shape`` ``(D,)``.
        x: rows ``(*, 1, D)`` or ``(*, K, D)``, with NaN for missing entries.
        draws: of each missing entry where importance weights are needed.
    """

    def weighted(rows: Tensor, count: int) -> Partial:
        gaussians = gaussians_of(components)
        if gaussians is not None:
            return gaussians.observe(rows)
        return importance(components, rows, count)

    found: Partial = optional(components, "observe", weighted)(x, draws)
    return found


def gaussians_of(components: Distribution) -> Ellipses | None:
    """Return distributions of torch that are Gaussian as such; ``None`` for others."""
    if getattr(components, "in_raw_units", False):  # a distribution of a user's, wrapped
        components = components.base  # type: ignore[attr-defined]
    if isinstance(components, MultivariateNormal):
        loc, factor = components.loc, components.scale_tril
    elif isinstance(components, Independent) and isinstance(components.base_dist, Normal):
        loc, factor = components.mean, torch.diag_embed(components.base_dist.scale)
    else:
        return None
    loc = loc.unsqueeze(-2)
    return Ellipses(loc.new_zeros(loc.shape[:-1]), loc, factor.unsqueeze(-3))


def importance(
    components: Distribution, x: Tensor, draws: int, proposal: Ellipses | None = None
) -> Partial:
    r"""Return an importance-weighted mean over the missing entries.

    .. math::
        p(x_\text{obs} \mid c) \approx \frac1S \sum_s
        \frac{p(x_\text{obs}, x^s_\text{mis} \mid c)}{q(x^s_\text{mis} \mid x_\text{obs}, c)}

    The mean is unbiased, so its logarithm is a lower bound in expectation. The proposal has no
    gradient.

    Arguments:
        components, x, draws: as for :func:`observe`.
        proposal: Ellipses whose conditionals are q; by default they have the moments of draws of
            the components, and a larger covariance.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, arXiv:1509.00519.
        Mattei, Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete data,
        arXiv:1812.02633.
    """
    with torch.no_grad():
        proposal = _moments(components) if proposal is None else proposal
        q = proposal.observe(x)
        completed = q.draw(draws)
        log_q = proposal.log_prob(completed) - q.log_prob
    log_prob = components.log_prob(completed)
    # Beyond the reach of the proposal nothing is known: such draws count nothing.
    log_weights = torch.where(
        log_q.isnan() | (log_prob == -torch.inf), -torch.inf, log_prob - log_q
    )
    log_prob = log_weights.logsumexp(0) - math.log(draws)
    share = log_weights.detach().softmax(0).nan_to_num(0.0)
    squares = share.square().sum(0)
    lost = squares == 0  # no draw has a density
    relative = ((squares - 1 / draws) * draws / max(draws - 1, 1)).clamp_min(0.0).sqrt()
    unknown = lost if draws > 1 else torch.ones_like(lost)  # one draw has no spread
    effective = torch.where(lost, 0.0, 1 / (draws * squares.clamp_min(1e-30)))

    empty = x.isnan().all(-1)  # such a row has a density of one, whatever the draws say
    log_prob = torch.where(empty, 0.0, log_prob)
    unknown = unknown & ~empty
    relative, effective = torch.where(empty, 0.0, relative), torch.where(empty, 1.0, effective)

    def draw(number: int) -> Tensor:
        logits = torch.where(lost, 0.0, log_weights.detach()).movedim(0, -1)
        chosen = Categorical(logits=logits, validate_args=False).sample(Size((number,)))
        return torch.take_along_dim(completed, chosen.unsqueeze(-1), 0)

    return Partial(
        log_prob,
        torch.where(unknown, torch.inf, relative),
        effective,
        lambda: torch.where(
            lost.unsqueeze(-1), completed.mean(0), (share.unsqueeze(-1) * completed).sum(0)
        ),
        draw,
    )


def _moments(components: Distribution) -> Ellipses:
    """Return two Gaussians around each component, with the moments of its draws and wider."""
    x = components.sample(Size((PROBED,)))
    loc = x.mean(0)
    centred = (x - loc).movedim(0, -2)
    covariance = centred.mT @ centred / PROBED
    level = RIDGE * covariance.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(x.dtype).tiny
    unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    factor = torch.linalg.cholesky(covariance + level[..., None, None] * unit)
    log_weights = x.new_tensor([1 - SHARE, SHARE]).log().expand(*loc.shape[:-1], 2)
    factors = torch.stack((math.sqrt(WIDER) * factor, math.sqrt(WIDEST) * factor), -3)
    return Ellipses(log_weights, loc.unsqueeze(-2), factors)


class Observed(ShownDistribution):
    r"""Components that score rows by the entries that are there, :math:`p(x_\text{obs} \mid c)`.

    The density is exact where the components know theirs. Elsewhere it is an importance-weighted
    mean, whose logarithm is a lower bound in expectation: see :func:`importance`.

    Arguments:
        components: distribution with ``batch_shape`` ``(*, K)``.
        draws: of each missing entry where importance weights are needed.

    Example:
        >>> from pyro_vmonf import Gaussian
        >>> x = torch.tensor([[0.5, torch.nan], [torch.nan, torch.nan]])
        >>> Observed(Gaussian(2, 5)(), draws=8).log_prob(x.unsqueeze(1))[1].exp()
        tensor([1., 1., 1., 1., 1.], grad_fn=<ExpBackward0>)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, components: Distribution, draws: int) -> None:
        self.components = components
        self.draws = draws
        shapes = components.batch_shape, components.event_shape
        super().__init__(*shapes, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.components.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Observed:
        return Observed(self.components.expand(Size(batch_shape)), self.draws)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.components.sample(Size(sample_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if len(self.batch_shape) > 1:  # each row has components of its own
            return self._observed(x)
        rows = x.reshape(-1, *x.shape[-2:])
        gaps = rows.isnan().flatten(1).any(1)
        parts = []  # torch's own distributions do not take zero rows
        if not gaps.all():
            parts.append((~gaps, self.components.log_prob(rows[~gaps])))
        if gaps.any():
            parts.append((gaps, self._of_gaps(rows[gaps])))
        like = parts[0][1] if parts else rows
        result = like.new_empty(len(rows), *self.batch_shape)
        for which, values in parts:
            result = result.index_put((which,), values.to(result))
        return result.reshape(*x.shape[:-2], *self.batch_shape)

    def _of_gaps(self, rows: Tensor) -> Tensor:
        size = len(rows) if torch.is_grad_enabled() else rows_at_once(self.components, self.draws)
        return torch.cat([self._observed(part) for part in rows.split(size)])

    def _observed(self, rows: Tensor) -> Tensor:
        found, watched = observe(self.components, rows, self.draws), _watched.get()
        if watched is not None:
            posterior = found.log_prob.detach().log_softmax(-1)
            counts = found.draws_that_count(posterior, self.draws)
            gaps = rows.isnan().flatten(-2).any(-1).expand(counts.shape)
            watched.append(counts[gaps])
        return found.log_prob


def rows_at_once(components: Distribution, draws: int) -> int:
    """Return how many rows with gaps are scored at once."""
    width = components.event_shape.numel()
    each = components.batch_shape[-1] * width * max(draws, 4 * width)
    return max(1, MOST_NUMBERS // each)
