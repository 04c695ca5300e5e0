"""Mixtures of Gaussians that grow with the number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.starts import growth
from pyro_vmonf.starts.gaussians import GaussianFit, fit_gaussians
from pyro_vmonf.starts.growth import RIDGE, _Mixture, _of_sums, _sums_of, grown

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def shorter_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "FEWEST_ROWS", 20_000)


def mixture(count: int = 3, width: int = 2) -> _Mixture:
    draws = torch.Generator().manual_seed(0)
    roots = torch.randn(count, width, width, generator=draws).double()
    weights = torch.rand(count, generator=draws).double() + 0.2
    means = 3 * torch.randn(count, width, generator=draws).double()
    return _Mixture(weights / weights.sum(), means, roots @ roots.mT + 0.1 * torch.eye(width))


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
        multivariate_normal(mean, covariance).logpdf(x.numpy()) + np.log(weight)
        for weight, mean, covariance in zip(
            own.weights.numpy(), own.means.numpy(), own.covariances.numpy(), strict=True
        )
    ]
    np.testing.assert_allclose(own.joint(x), np.stack(parts, 1), rtol=1e-11)
    assert own.score(x) == pytest.approx(np.logaddexp.reduce(parts, axis=0).mean(), rel=1e-12)


def test_one_step_of_all_rows_is_a_step_of_em() -> None:
    own, x = mixture(), torch.randn(400, 2).double() * 2
    known = {
        "weights_init": own.weights.numpy(),
        "means_init": own.means.numpy(),
        "precisions_init": torch.linalg.inv(own.covariances).numpy(),
    }
    theirs = GaussianMixture(3, max_iter=1, tol=0, reg_covar=RIDGE, **known)
    with pytest.warns(UserWarning, match="not converge"):
        theirs.fit(x.numpy())
    after = _of_sums(*_sums_of(x, own))
    np.testing.assert_allclose(after.weights, theirs.weights_, atol=1e-5)
    np.testing.assert_allclose(after.means, theirs.means_, atol=1e-4)
    np.testing.assert_allclose(after.covariances, theirs.covariances_, atol=1e-3)


def test_halves_have_the_moments_of_the_whole() -> None:
    one = mixture()
    two = one.split()
    assert len(two.weights) == 2 * len(one.weights)
    for mine, other in zip(one.sums(), two.sums(), strict=True):
        whole = other.unflatten(0, (2, -1)).sum(0)
        torch.testing.assert_close(whole, mine, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(two.covariances).min() > 0


def test_sums_of_a_mixture_give_it_back() -> None:
    own = mixture()
    again = _of_sums(*own.sums())
    torch.testing.assert_close(again.means, own.means, rtol=1e-12, atol=1e-12)
    unit = RIDGE * torch.eye(2).double()
    torch.testing.assert_close(again.covariances, own.covariances + unit, rtol=1e-12, atol=1e-12)


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
