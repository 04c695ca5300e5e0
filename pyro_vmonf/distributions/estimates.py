"""Moments, entropy and quantiles: closed forms where they exist, estimates with their errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    register_kl,
    transform_to,
)

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.repr import ShownDistribution
from pyro_vmonf._utils.validation import check_positive

HALVINGS = 200  # of the interval that holds a quantile; it ends where no number lies between

# What has no closed form, and what stands in for it.
MEAN = ("mean", "mean_estimate(draws=, seed=)")
VARIANCE = ("variance", "mean_estimate(draws=, seed=, of=) with a function of the draws")
ENTROPY = ("entropy", "entropy_estimate(draws=, seed=)")
CDF = ("distribution function", "mean_estimate(draws=, seed=, of=lambda x: 1.0 * (x <= value))")
QUANTILE = ("quantile", "mean_estimate of the distribution function, or quantiles of draws")


class Estimated(ShownDistribution):
    """A distribution whose moments may have no closed form, and then have estimates.

    ``mean``, ``variance``, ``stddev``, ``entropy()``, ``cdf`` and ``icdf`` are exact where there is
    a closed form, and otherwise raise ``NotImplementedError`` that names the estimate.
    """

    @property
    def mean(self) -> Tensor:
        self._refuse(*MEAN)

    @property
    def variance(self) -> Tensor:
        self._refuse(*VARIANCE)

    def entropy(self) -> Tensor:
        self._refuse(*ENTROPY)

    def cdf(self, x: Tensor) -> Tensor:
        self._refuse(*CDF)

    def icdf(self, share: Tensor) -> Tensor:
        self._refuse(*QUANTILE)

    def _if_closed(self, what: str, estimate: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what another distribution says, or refuse in the words of this one."""
        try:
            return compute()
        except NotImplementedError as error:
            if str(error):
                raise
            self._refuse(what, estimate)

    def _refuse(self, what: str, estimate: str) -> NoReturn:
        raise NotImplementedError(
            f"the {what} of this {type(self).__name__} has no closed form; use {estimate}, which "
            "returns an estimate and its standard error"
        )

    @torch.no_grad()
    def mean_estimate(
        self,
        draws: int = 10_000,
        seed: int | None = None,
        of: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> tuple[Tensor, Tensor]:
        r"""Estimate :math:`E[f(x)]` from draws.

        Arguments:
            draws: number of draws, at least 2.
            seed: seed of the draws; the global state is then left alone.
            of: the function *f*, the identity by default.

        Returns:
            The estimate and its standard error, of the shape of one value of *f*.

        Example:
            >>> from pyro_vmonf import Gaussian, Marginal
            >>> mixture = Marginal(torch.zeros(1), Gaussian(2, 1)())
            >>> mean, error = mixture.mean_estimate(draws=1000, seed=0)
            >>> bool(((mean - mixture.mean).abs() < 4 * error).all())
            True
        """
        check_positive("draws", draws, minimum=2)
        with local_seed(seed):
            values = of(self.sample(torch.Size((draws,))))
        if not values.is_floating_point():  # the mean of a condition is its probability
            values = values.to(torch.get_default_dtype())
        return mean_and_error(values)

    def entropy_estimate(
        self, draws: int = 10_000, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Estimate the entropy :math:`-E[\log p(x)]` in nats: see :meth:`mean_estimate`."""
        return self.mean_estimate(draws, seed, lambda x: -self.log_prob(x))


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of draws ``(S, *)`` and its error, 0 where draws are infinite."""
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    return mean, torch.where(mean.isinf(), 0.0, error)


def mean_of_parts(weight: Tensor, means: Tensor, axis: int) -> Tensor:
    """Return the mean of a mixture.

    A part of weight zero does not count, also where its mean is infinite.

    Arguments:
        weight: of the parts, with the dimensions of ``means``.
        means: of the parts.
        axis: the dimension of the parts.
    """
    first = means.narrow(axis, 0, 1)
    first = torch.where(first.isfinite(), first, torch.zeros_like(first))
    # The weights' sum is one to rounding only, which counts far from zero.
    return (first + _counted(weight, means - first).sum(axis, keepdim=True)).squeeze(axis)


def variance_of_parts(
    weight: Tensor, means: Tensor, variances: Tensor, mean: Tensor, axis: int
) -> Tensor:
    """Return the variance of a mixture, from its mean: see :func:`mean_of_parts`."""
    centred = means - mean.unsqueeze(axis)
    within = torch.where(variances.isinf(), variances, variances + centred.square())
    return _counted(weight, within).sum(axis)


def _counted(weight: Tensor, value: Tensor) -> Tensor:
    return weight * torch.where(weight > 0, value, torch.zeros_like(value))


class Asking(Estimated):
    """A distribution that asks another one for closed forms, and refuses in its own words.

    To implement one, write :meth:`_ask`.
    """

    def _ask(self, function: Callable[[Distribution], Any]) -> Any:
        """Return what a function says of the other distribution."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        return self._if_closed(*MEAN, lambda: self._ask(lambda other: other.mean))

    @property
    def variance(self) -> Tensor:
        return self._if_closed(*VARIANCE, lambda: self._ask(lambda other: other.variance))

    def entropy(self) -> Tensor:
        return self._if_closed(*ENTROPY, lambda: self._ask(lambda other: other.entropy()))

    def cdf(self, x: Tensor) -> Tensor:
        r"""Return :math:`P(X \le x)` ``(*)`` of rows ``(*, 1)``."""
        return self._if_closed(*CDF, lambda: self._ask(lambda other: cdf_of(other, x)))

    def icdf(self, share: Tensor) -> Tensor:
        """Return the quantiles ``(*, 1)`` at shares ``(*)``."""
        return self._if_closed(*QUANTILE, lambda: self._ask(lambda other: icdf_of(other, share)))


def _no_divergence(p: Distribution, q: Distribution) -> NoReturn:
    raise NotImplementedError(
        f"the divergence of {type(p).__name__} and {type(q).__name__} has no closed form; use "
        "metrics.kl_divergence(p, q, draws=, seed=), which returns an estimate and its error"
    )


for _kinds in ((Estimated, Distribution), (Distribution, Estimated), (Estimated, Estimated)):
    register_kl(*_kinds)(_no_divergence)


def cdf_of(distribution: Distribution, x: Tensor) -> Tensor:
    """Return the distribution function at values ``(*, 1)`` of one feature, ``(*)``.

    Raises:
        NotImplementedError: if there are more features, or there is no closed form.
    """
    check_single(distribution)
    if isinstance(distribution, Estimated):
        return distribution.cdf(x)
    one = _normal(distribution)
    if isinstance(one, Normal):  # torch's own has no digits in the lower tail
        return torch.special.log_ndtr((x - one.loc) / one.scale).exp().squeeze(-1)
    try:
        support: Any = one.support
        good, some = support.check(x), transform_to(support)(torch.zeros_like(x))
    except NotImplementedError:  # of a support without coordinates
        return one.cdf(x).squeeze(-1)
    # An interval has all of the mass above what lies below it, and none of it below.
    outside = (x > some).to(x)
    return torch.where(good, one.cdf(torch.where(good, x, some)), outside).squeeze(-1)


def check_share(share: Tensor) -> None:
    """Refuse shares that are no probabilities.

    Raises:
        ValueError: if one is below 0, above 1 or NaN.
    """
    good = (share >= 0) & (share <= 1)
    if not good.all():
        raise ValueError(f"a share is {float(share[~good][0]):.6g}; expected 0 to 1")


def icdf_of(distribution: Distribution, share: Tensor) -> Tensor:
    """Return the quantiles ``(*, 1)`` of one feature at shares ``(*)``: see :func:`cdf_of`.

    Raises:
        ValueError: if a share is no probability.
    """
    check_single(distribution)
    check_share(share)
    if isinstance(distribution, Estimated):
        return distribution.icdf(share)
    one, share = _normal(distribution), share.unsqueeze(-1)
    if isinstance(one, Normal):
        return one.loc + one.scale * torch.special.ndtri(share)
    return one.icdf(share)


def _normal(distribution: Distribution) -> Distribution:
    """Return the distribution of the feature itself, with the feature as a batch dimension."""
    if isinstance(distribution, MultivariateNormal):
        return Normal(distribution.loc, distribution.scale_tril[..., 0], validate_args=False)
    if isinstance(distribution, Independent):
        return distribution.base_dist
    raise NotImplementedError(f"{type(distribution).__name__} has no distribution function")


def check_single(distribution: Distribution) -> None:
    """Refuse a distribution of several features.

    Raises:
        NotImplementedError: if rows are not of shape ``(1,)``.
    """
    if tuple(distribution.event_shape) != (1,):
        raise NotImplementedError(
            "cdf and icdf are of rows with one feature, of shape (1,); the rows have shape "
            f"{tuple(distribution.event_shape)}"
        )


def with_gradient(found: Tensor, cdf: Tensor, share: Tensor, density: Tensor) -> Tensor:
    r"""Return quantiles with their gradient, by the theorem of implicit functions.

    .. math::
        dq = \big(d\alpha - dF(q)\big) / p(q)

    Where the density is zero there is no gradient.

    Arguments:
        found: quantiles, without a gradient.
        cdf: the distribution function at them, with its own gradient.
        share: their shares.
        density: at them.
    """
    known = (density > 0) & density.isfinite()
    step = torch.where(known, share - cdf, 0.0) / torch.where(known, density, 1.0).detach()
    return found + (step - step.detach())


def quantile(cdf: Callable[[Tensor], Tensor], value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return where a rising function has given values, by halving intervals that hold them."""
    low, high = torch.broadcast_tensors(low, high)
    for _ in range(HALVINGS):
        middle = low + (high - low) / 2
        below = cdf(middle) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        if bool(((middle == low) & (low + (high - low) / 2 == low)).all()):
            break
    return torch.where(low == high, low, low + (high - low) / 2)  # infinite ends
