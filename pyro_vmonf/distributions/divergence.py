"""The divergence of two distributions, from draws."""

from __future__ import annotations

import torch
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.distributions.estimates import Estimated, mean_and_error
from pyro_vmonf.distributions.support import OwnUnits


def kl_divergence(
    p: Distribution, q: Distribution, *, draws: int = 10_000, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Estimate :math:`KL(p \| q) = E_p[\log p(x) - \log q(x)]` from draws, in nats.

    Arguments:
        p, q: distributions of the same event shape.
        draws: number of draws from *p*, at least 2.
        seed: seed of the draws; the global state is then left alone.

    Returns:
        The estimate and its standard error, of the batch shape of both.

    Raises:
        ValueError: if the event shapes differ, one has probabilities and the other a density, or
            there are too few draws.

    Example:
        >>> from torch.distributions import Normal
        >>> kl, error = kl_divergence(Normal(0.0, 1.0), Normal(1.0, 1.0), draws=1000, seed=0)
        >>> bool((kl - 0.5).abs() < 4 * error)
        True
    """
    check_positive("draws", draws, minimum=2)
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p has event shape {tuple(p.event_shape)}, q {tuple(q.event_shape)}; both must agree"
        )
    if _has_points(p) != _has_points(q):
        raise ValueError(
            f"p is a {type(p).__name__} and q a {type(q).__name__}: one has probabilities of "
            "points, the other a density; their divergence is infinite, or has no meaning"
        )
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    with local_seed(seed):
        x = (p if p.batch_shape == shape else p.expand(shape)).sample(torch.Size((draws,)))
    known = isinstance(q, Estimated) or _has_points(q)
    return mean_and_error(p.log_prob(x) - (q if known else OwnUnits(q)).log_prob(x))


def _has_points(distribution: Distribution) -> bool:
    """Return whether a distribution gives probabilities to points, in place of a density."""
    while isinstance(distribution, (Independent, MaskedDistribution)):
        distribution = distribution.base_dist
    if isinstance(distribution, Estimated):
        return False
    try:
        support = distribution.support
    except NotImplementedError:  # it has draws and a score, and nothing else
        return False
    return isinstance(distribution, Delta) or bool(getattr(support, "is_discrete", False))
