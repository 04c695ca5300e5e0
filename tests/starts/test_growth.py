"""Mixtures of Student's t that grow with the number of rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.mixture import GaussianMixture
from torch.distributions import StudentT

from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.distributions.radial import StudentLaw
from pyro_vmonf.starts import growth
from pyro_vmonf.starts.gaussians import GaussianFit, fit_gaussians
from pyro_vmonf.starts.growth import RIDGE, _Mixture, _of_sums, _sums_of, grown

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def shorter_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "FEWEST_ROWS", 20_000)


def mixture(count: int = 3, width: int = 2, freedom: float = 4.0) -> _Mixture:
    draws = torch.Generator().manual_seed(0)
    roots = torch.randn(count, width, width, generator=draws).double()
    weights = torch.rand(count, generator=draws).double() + 0.2
    means = 3 * torch.randn(count, width, generator=draws).double()
    scales = roots @ roots.mT + 0.1 * torch.eye(width)
    each = torch.full((count,), freedom).double() + torch.arange(count)
    return _Mixture(weights / weights.sum(), each, means, scales)


def long_table(seed: int, rows: int = 20_000) -> Array:
    """Return rows on a spiral, which no few Gaussians fit."""
    draws = np.random.default_rng(seed)
    angle = draws.uniform(1, 10, rows)
    x = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1)
    x += 0.2 * draws.normal(size=x.shape)
    return (x - x.mean(0)) / x.std(0)


def test_the_joint_density_is_that_of_scipy() -> None:
    own, x = mixture(), torch.randn(50, 2).double()
    parts = [
        multivariate_t(mean, scale, df=nu).logpdf(x.numpy()) + np.log(weight)
        for weight, nu, mean, scale in zip(
            own.weights.numpy(), own.freedom.numpy(), own.means.numpy(), own.scales.numpy(),
            strict=True,
        )
    ]  # fmt: skip
    np.testing.assert_allclose(own.joint(x)[0], np.stack(parts, 1), rtol=1e-11)
    assert own.score(x) == pytest.approx(np.logaddexp.reduce(parts, axis=0).mean(), rel=1e-12)
    found = GaussianFit(*(v.numpy() for v in (own.weights, own.means, own.scales)), 0)
    heavy = replace(found, freedom=own.freedom.numpy())
    np.testing.assert_allclose(heavy.joint(x.numpy()), np.stack(parts, 1), rtol=1e-11)


def test_one_step_of_all_rows_is_a_step_of_em() -> None:
    """Of many degrees of freedom it is that of Gaussians."""
    own, x = mixture(freedom=1e9), torch.randn(400, 2).double() * 2
    known = {
        "weights_init": own.weights.numpy(),
        "means_init": own.means.numpy(),
        "precisions_init": torch.linalg.inv(own.scales).numpy(),
    }
    theirs = GaussianMixture(3, max_iter=1, tol=0, reg_covar=RIDGE, **known)
    with pytest.warns(UserWarning, match="not converge"):
        theirs.fit(x.numpy())
    after = _of_sums(*_sums_of(x, own))
    np.testing.assert_allclose(after.weights, theirs.weights_, atol=1e-5)
    np.testing.assert_allclose(after.means, theirs.means_, atol=1e-4)
    np.testing.assert_allclose(after.scales, theirs.covariances_, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_em_end_where_the_likelihood_has_no_slope(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "RIDGE", 0.0)
    monkeypatch.setattr(growth, "NEGLIGIBLE", -1.0)
    torch.manual_seed(seed)
    x = torch.cat([StudentT(3.0 + c).sample((300, 2)).double() + 8 * c for c in range(2)])
    own = mixture(2)
    own.means = torch.tensor([[0.0, 1.0], [7.0, 8.0]]).double()
    scores = []
    for _ in range(400):
        own = _of_sums(*_sums_of(x, own))
        scores.append(own.score(x))
    assert all(b > a - 1e-9 for a, b in pairwise(scores))
    values = [v.clone().requires_grad_() for v in vars(own).values()]
    weights, freedom, means, scales = values
    factor = torch.linalg.cholesky(scales)
    z = torch.linalg.solve_triangular(factor, (x[:, None] - means)[..., None], upper=False)
    law, log_det = StudentLaw(freedom), factor.diagonal(dim1=1, dim2=2).log().sum(1)
    each = law.constant(2) + law.kernel(z.square().sum((2, 3)), 2) - log_det + weights.log()
    each.logsumexp(1).mean().backward()
    slopes = [v.grad for v in values]
    assert 2.2 < float(own.freedom.min()) < float(own.freedom.max()) < 900
    # Weights sum to one: their slopes are all alike.
    torch.testing.assert_close(slopes[0], torch.ones(2).double(), rtol=1e-5, atol=1e-5)
    for slope in slopes[1:]:
        assert slope is not None
        assert float(slope.abs().max()) < 1e-5


def test_halves_have_the_moments_of_the_whole() -> None:
    one = mixture()
    two = one.split()
    assert len(two.weights) == 2 * len(one.weights)
    for mine, other in zip(one.sums(), two.sums(), strict=True):
        whole = other.unflatten(0, (2, -1)).sum(0)
        torch.testing.assert_close(whole, mine, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(two.scales).min() > 0


def test_sums_of_a_mixture_give_it_back() -> None:
    own = mixture()
    again = _of_sums(*own.sums())
    torch.testing.assert_close(again.freedom, own.freedom, rtol=1e-9, atol=0)
    torch.testing.assert_close(again.means, own.means, rtol=1e-12, atol=1e-12)
    unit = RIDGE * torch.eye(2).double()
    torch.testing.assert_close(again.scales, own.scales + unit, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_many_rows_have_many_gaussians(seed: int) -> None:
    x, fresh = long_table(seed), long_table(seed + 10)
    first = fit_gaussians(x[:2000], 4, seed=seed)
    found = grown(first, x, seconds=60, most=32, seed=seed)
    assert len(first.weights) < len(found.weights) <= 32
    assert found.log_prob(fresh).mean() > first.log_prob(fresh).mean() + 0.3
    assert found.free == 6 * len(found.weights) - 1
    em = GaussianMixture(32, random_state=seed, reg_covar=1e-5).fit(x)
    assert found.log_prob(fresh).mean() > em.score(fresh) - 0.05


@pytest.mark.parametrize("seed", range(2))
def test_long_tails_are_those_of_the_rows(seed: int) -> None:
    """Few t's have the density that eight Gaussians do not reach."""
    draws = np.random.default_rng(seed)
    x, fresh = (
        draws.normal(size=(20_000, 6)) / np.sqrt(draws.chisquare(3, size=(20_000, 1)) / 3)
        for _ in range(2)
    )
    first = fit_gaussians(x[:2000], 4, seed=seed)
    found = grown(first, x, seconds=60, most=8, seed=seed)
    assert found.freedom is not None
    truth = multivariate_t(np.zeros(6), np.eye(6), df=3).logpdf(fresh).mean()
    plain = GaussianMixture(8, random_state=seed, reg_covar=1e-5).fit(x).score(fresh)
    assert found.log_prob(fresh).mean() > plain + 0.005
    assert found.log_prob(fresh).mean() > truth - 0.02


def test_gaussian_rows_keep_few_gaussians() -> None:
    x = np.random.default_rng(0).normal(size=(20_000, 3))
    first = fit_gaussians(x[:2000], 4)
    assert len(grown(first, x, seconds=60).weights) == len(first.weights) == 1


def test_short_tables_keep_theirs() -> None:
    x, _ = pinwheel(wings=3, per_wing=50, seed=0)
    first = fit_gaussians(x.numpy().astype(float), 4)
    assert grown(first, x.numpy().astype(float), seconds=60) is first


def test_no_seconds_keep_the_mixture() -> None:
    x = long_table(0)
    first = fit_gaussians(x[:2000], 4)
    found = grown(first, x, seconds=0)
    np.testing.assert_allclose(found.means, first.means, atol=1e-12)
    np.testing.assert_allclose(found.covariances, first.covariances, atol=1e-12)


def test_nearly_equal_columns_keep_their_digits() -> None:
    """The third column is the first one but for a thousandth: float32 would lose it."""
    x = long_table(0)
    noise = np.random.default_rng(1).normal(size=len(x))
    x = np.column_stack([x, x[:, 0] + 1e-3 * noise])
    first = fit_gaussians(x[:2000], 4)
    found = grown(first, x, seconds=60, most=32)
    x = long_table(10)
    x = np.column_stack([x, x[:, 0] + 1e-3 * np.random.default_rng(2).normal(size=len(x))])
    truth = multivariate_normal(0, 1e-6).logpdf(x[:, 2] - x[:, 0]).mean()
    plane = grown(fit_gaussians(x[:2000, :2], 4), x[:, :2], seconds=60, most=32)
    assert found.log_prob(x).mean() > plane.log_prob(x[:, :2]).mean() + truth - 0.2


def test_a_constant_column_has_a_finite_density() -> None:
    x = np.column_stack([long_table(0), np.zeros(20_000)])
    first = GaussianFit(np.ones(1), np.zeros((1, 3)), np.eye(3)[None], 9)
    found = grown(first, x, seconds=60, most=4)
    assert np.isfinite(found.log_prob(x)).all()
    assert np.linalg.eigvalsh(found.covariances).min() > 1e-12


def test_equal_rows_far_out_keep_positive_variances() -> None:
    """A tenth of the rows are one point, twenty scales from the others."""
    x = long_table(0)
    x[::10] = (20.0, -20.0)
    first = GaussianFit(np.ones(1), np.zeros((1, 2)), 4 * np.eye(2)[None], 5)
    found = grown(first, x, seconds=60, most=16)
    assert np.linalg.eigvalsh(found.covariances).min() > 0
    assert np.isfinite(found.log_prob(x)).all()
    spread = 0.5 * np.linalg.slogdet(np.cov(x.T))[1] + np.log(RIDGE)
    highest = np.log(0.1) - np.log(2 * np.pi) - spread  # at the least variance that there is
    assert highest - 0.5 < found.log_prob(x[:1])[0] < highest + 0.01
