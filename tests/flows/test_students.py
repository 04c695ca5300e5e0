"""Mixtures of Student's t as components: density, draws, gaps, and the fit to a long table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.distributions.partial import observe
from pyro_vmonf.distributions.radial import NORMAL, StudentLaw
from pyro_vmonf.flows import GaussianMixtures, StudentMixtures
from pyro_vmonf.nn import MLP
from pyro_vmonf.nn.mlp import start_near_zero

K, M, D = 3, 2, 3
FREEDOM = torch.tensor([3.0, 8.0], dtype=torch.float64)


def parts(c: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(c)
    factor = torch.randn(M, D, D, generator=generator).double()
    weights = torch.rand(M, generator=generator).double() + 0.2
    means = torch.randn(M, D, generator=generator).double()
    return weights / weights.sum(), means, factor @ factor.mT + 0.2 * torch.eye(D)


def bank() -> StudentMixtures:
    made = StudentMixtures(D, K, M).double()
    for c in range(K):
        made.set_(c, *parts(c), FREEDOM)
    return made


def exact(x: np.ndarray, c: int, kept: list[int]) -> np.ndarray:
    """Return the log-density of some entries by scipy, whose marginals are t's again."""
    weights, means, scales = (part.numpy() for part in parts(c))
    found = [
        w * stats.multivariate_t(m[kept], s[np.ix_(kept, kept)], df=nu).pdf(x[:, kept])
        for w, m, s, nu in zip(weights, means, scales, FREEDOM.numpy(), strict=True)
    ]
    return np.log(sum(found))


def test_density_is_that_of_scipy() -> None:
    x = 3 * torch.randn(9, D).double()
    made = bank()
    torch.testing.assert_close(made.freedom, FREEDOM.expand(K, M), rtol=1e-9, atol=0)
    found = made().log_prob(x.unsqueeze(1)).detach().numpy()
    for c in range(K):
        np.testing.assert_allclose(found[:, c], exact(x.numpy(), c, [0, 1, 2]), rtol=1e-9)


@pytest.mark.parametrize("far", [1e8, 1e12, 1e20, 1e30])
def test_a_point_whose_squares_overflow_has_a_density(far: float) -> None:
    x = far * torch.tensor([[1.0, -0.3, 0.5], [0.0, 1.0, 0.0]])
    columns = VMoNF(FlowMixture(bank().float()), SoftmaxGuide(MLP(D, K)))
    mixture = bank()()
    rows = x.double().requires_grad_()
    wanted = mixture.log_prob(rows.unsqueeze(1))
    [slope] = torch.autograd.grad(wanted.sum(), rows)
    single = x.clone().requires_grad_()
    found = bank().float()().log_prob(single.unsqueeze(1))
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=0)
    [own] = torch.autograd.grad(found.sum(), single)
    torch.testing.assert_close(own, slope.float(), rtol=1e-4, atol=1e-4 * float(slope.abs().max()))
    by_columns = columns.component_log_prob(x)
    torch.testing.assert_close(by_columns, wanted.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gaps", [[0], [2], [0, 1], [1, 2], [0, 1, 2]])
def test_marginals_are_those_of_scipy(gaps: list[int]) -> None:
    x = 3 * torch.randn(9, D).double()
    x[:, gaps] = torch.nan
    kept = [d for d in range(D) if d not in gaps]
    found = observe(bank()(), x.unsqueeze(1), 1)
    assert not found.error.any()
    for c in range(K):
        expected = exact(x.numpy(), c, kept) if kept else np.zeros(9)
        np.testing.assert_allclose(found.log_prob[:, c].detach(), expected, rtol=1e-9, atol=1e-9)


def test_draws_of_missing_entries_follow_the_conditional_law() -> None:
    """The quotient of joint and marginal density, by its distribution function on a grid."""
    torch.manual_seed(0)
    x = torch.tensor([[1.5, -2.0, torch.nan]], dtype=torch.float64)
    found = observe(bank()(), x.unsqueeze(1), 1)
    draws = found.draw(20_000)[:, 0, :, 2]
    grid = torch.linspace(-400, 400, 400_001, dtype=torch.float64)
    rows = torch.cat((x[:, :2].expand(len(grid), 2), grid.unsqueeze(1)), 1)
    joint = bank()().log_prob(rows.unsqueeze(1)).detach()
    law = (joint - found.log_prob.detach()).exp() * (grid[1] - grid[0])
    mean = (law * grid.unsqueeze(1)).sum(0)
    torch.testing.assert_close(found.mean()[0, :, 2].detach(), mean, rtol=2e-3, atol=2e-3)
    for c in range(K):
        below = np.interp(draws[:, c].detach(), grid, law[:, c].cumsum(0))
        assert stats.kstest(below, "uniform").pvalue > 1e-3


def test_draws_have_the_law_of_the_density() -> None:
    torch.manual_seed(0)
    one = StudentMixtures(2, 1, 1).double()
    one.set_(0, torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], torch.tensor([4.0]))
    x = one().sample((20_000,))[:, 0].detach()
    assert stats.kstest(x[:, 0], stats.t(df=4).cdf).pvalue > 1e-3
    squares = x.square().sum(1) / 2  # of two entries: an F law
    assert stats.kstest(squares, stats.f(2, 4).cdf).pvalue > 1e-3
    torch.testing.assert_close(one().variance, torch.full((1, 2), 2.0).double(), rtol=1e-9, atol=0)


def test_many_degrees_of_freedom_are_a_gaussian() -> None:
    x = torch.randn(9, 1, D).double()
    plain = GaussianMixtures(D, K, M).double()
    made = StudentMixtures(D, K, M).double()
    for c in range(K):
        plain.set_(c, *parts(c))
        made.set_(c, *parts(c))
    torch.testing.assert_close(made().log_prob(x), plain().log_prob(x), rtol=0.02, atol=0.02)
    squares = torch.rand(5).double() * 9
    wide = StudentLaw(torch.tensor(1e9).double())
    torch.testing.assert_close(
        wide.kernel(squares, D) + wide.constant(D),
        NORMAL.kernel(squares, D) + NORMAL.constant(D),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("freedom", torch.tensor([3.0, 0.0])),
        ("freedom", torch.tensor([3.0, float("nan")])),
        ("freedom", torch.tensor([3.0])),
        ("freedom", torch.tensor(3.0)),
        ("freedom", torch.ones(3)),
        ("means", torch.zeros(1, D)),
        ("means", torch.zeros(3, D)),
        ("covariances", torch.eye(D)[None]),
    ],
)
def test_parts_that_do_not_fit_change_nothing(name: str, value: Tensor) -> None:
    made = bank()
    before = {key: v.clone() for key, v in made.state_dict().items()}
    weights, means, covariances = parts(1)
    given = {"means": means, "covariances": covariances, "freedom": FREEDOM, name: value}
    with pytest.raises(ValueError, match=name):
        made.set_(0, weights, **given)
    assert all(torch.equal(v, before[key]) for key, v in made.state_dict().items())


def test_parts_that_are_not_used_have_no_part_in_the_variance() -> None:
    made = StudentMixtures(2, 1, 2).double()
    with torch.no_grad():
        made.tail[0, 1] = -1e9
    made.set_(0, torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None], torch.tensor([4.0]))
    torch.testing.assert_close(made().variance, torch.full((1, 2), 2.0).double(), rtol=1e-9, atol=0)


def test_as_a_base_it_is_the_flow_at_the_identity() -> None:
    """A flow passes columns to its base, and gradients reach the tails."""
    flow = RealNVP(D, K, blocks=2, base=bank()).double()
    for transform in flow.transforms:
        start_near_zero(transform.network.layers[-1], 0.0)
    x = torch.randn(5, 1, D).double()
    made = bank()
    found, expected = flow().log_prob(x), made().log_prob(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(flow.base.tail.grad, made.tail.grad)


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_finds_the_tails(seed: int) -> None:
    """The held-out density of t's is above that of Gaussians, and near that of the truth."""
    torch.manual_seed(seed)
    truth = torch.distributions.StudentT(3.0)
    x, fresh = truth.sample((4000, 2)) + 6, truth.sample((4000, 2)) + 6
    scores = {}
    for make in (GaussianMixtures, StudentMixtures):
        torch.manual_seed(seed)
        vmonf = VMoNF(FlowMixture(make(2, 1, 1)), SoftmaxGuide(MLP(2, 1)))
        vmonf.fit(x, epochs=8, batch_size=400, lr=5e-2, seed=0, progress=False)
        scores[make] = float(vmonf.log_prob(fresh).mean())
    assert scores[StudentMixtures] > scores[GaussianMixtures] + 0.1
    assert float(truth.log_prob(fresh - 6).sum(-1).mean()) - scores[StudentMixtures] < 0.15
