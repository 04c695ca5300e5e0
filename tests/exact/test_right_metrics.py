"""Data sets, moments, divergences and calibration: right values where wrong ones were found."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import affine_coupling
from torch import Tensor
from torch.distributions import Gamma, Normal, Uniform

from pyro_vmonf import FlowMixture, Gaussian, MarkovMixture, RealNVP, VMoNF, metrics
from pyro_vmonf.datasets import Pinwheel, TwoCircles
from pyro_vmonf.flows import GaussianMixtures, Replicated
from pyro_vmonf.interop.sbc import _rank, simulation_based_calibration
from pyro_vmonf.metrics import kl_divergence, kl_to_truth, match
from tests.samples import clustered_rows

K = 3
D = 2


@pytest.mark.parametrize(("wings", "rate"), [(3, 1.0), (1, 3.0), (2, 8.0)])
def test_pinwheels_of_a_high_rate_have_all_their_roots(wings: int, rate: float) -> None:
    """Against a dense grid, on the rows that are the least likely and on others."""
    truth = Pinwheel(wings, rate)
    x = truth.sample(300)[0].double()
    found = truth.log_prob(x)
    some = torch.cat((found.argsort()[:8], torch.arange(8)))
    torch.testing.assert_close(found[some], by_dense_grid(truth, x[some]), rtol=1e-5, atol=1e-5)
    assert found.median() > 0.5


def by_dense_grid(truth: Pinwheel, x: Tensor) -> Tensor:
    """The density from the sign changes on a grid of 400,000 points, refined by bisection."""
    reach = 6.5 * truth.radial_std
    r = torch.linspace(truth.radius - reach, truth.radius + reach, 400_001, dtype=torch.float64)
    result = []
    for v in 2 * x:
        total = torch.zeros((), dtype=torch.float64)
        for wing in range(truth.wings):
            a = 2 * math.pi * wing / truth.wings + truth.rate * r.exp()
            at = v[0] * a.cos() - v[1] * a.sin() - r
            left = ((at[:-1] <= 0) != (at[1:] <= 0)).nonzero()[:, 0]
            low, high, first = r[left], r[left + 1], at[left] <= 0
            for _ in range(60):
                q = (low + high) / 2
                a = 2 * math.pi * wing / truth.wings + truth.rate * q.exp()
                before = (v[0] * a.cos() - v[1] * a.sin() - q <= 0) == first
                low, high = torch.where(before, q, low), torch.where(before, high, q)
            a = 2 * math.pi * wing / truth.wings + truth.rate * q.exp()
            t = v[0] * a.sin() + v[1] * a.cos()
            log_p = dist.Normal(truth.radius, truth.radial_std).log_prob(q)
            log_p = log_p + dist.Normal(0.0, truth.tangential_std).log_prob(t)
            total += (log_p.exp() / (0.25 * (1 + t * truth.rate * q.exp()).abs())).sum()
        result.append((total / truth.wings).log())
    return torch.stack(result)


def test_integer_posteriors_are_matched_to_soft_ones() -> None:
    soft = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    hard = torch.nn.functional.one_hot(torch.tensor([0, 0, 1]), 2)
    assert metrics.match_components(soft, hard).tolist() == [1, 0]


@pytest.mark.parametrize("shapes", [((5,), (5, 1)), ((5,), (1,)), ((0,), (0,))])
def test_log_densities_that_do_not_belong_together_are_refused(shapes: Any) -> None:
    with pytest.raises(ValueError, match="expected \\(N,\\) twice"):
        metrics.kl_to_truth(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="no log-density"):
        metrics.bits_per_dim(torch.zeros(0), 4)


def test_a_distribution_needs_nothing_but_draws_and_scores_for_a_divergence() -> None:
    class Plain(torch.distributions.Distribution):
        def __init__(self) -> None:
            super().__init__(event_shape=torch.Size((2,)), validate_args=False)

        def sample(self, sample_shape: Any = ()) -> Tensor:
            return torch.randn(*sample_shape, 2)

        def log_prob(self, value: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(value).sum(-1)

    found, _ = kl_divergence(Plain(), FlowMixture(Gaussian(2, 2)).marginal(), draws=10, seed=0)
    assert found.isfinite()


def test_a_divergence_has_the_batch_of_both() -> None:
    q = Normal(torch.tensor([0.0, 1.0, 2.0]), 1.0)
    for draws in (3, 1000):
        found, error = kl_divergence(Normal(0.0, 1.0), q, draws=draws, seed=0)
        assert found.shape == (3,)
        assert ((found - torch.tensor([0.0, 0.5, 2.0])).abs() <= 5 * error + 1e-6).all()


def test_calibration_wants_data_that_the_model_draws() -> None:
    model = FlowMixture(Gaussian(1, 2), dist.Dirichlet(torch.ones(2)))
    with pytest.raises(ValueError, match="'x' is observed"):
        simulation_based_calibration(
            partial(model, torch.zeros(5, 1)), lambda x: {}, replicates=2, progress=False
        )


def test_moments_without_a_closed_form_name_their_estimates() -> None:
    foreign = FlowMixture(Replicated(lambda: [affine_coupling(D)], K, features=D))
    own = FlowMixture(dist.Beta(torch.ones(K, 1), torch.ones(K, 1)).to_event(1))
    chain = MarkovMixture(Gaussian(D, K))
    for found in (foreign.marginal(), foreign.components()):
        for name in ("mean", "variance", "stddev"):
            with pytest.raises(NotImplementedError, match="mean_estimate"):
                getattr(found, name)
        with pytest.raises(NotImplementedError, match="entropy_estimate"):
            found.entropy()
    torch.testing.assert_close(own.components().entropy(), torch.zeros(K))
    with pytest.raises(NotImplementedError, match="mean_estimate"):
        own.marginal().cdf(torch.tensor([[0.3]]))
    with pytest.raises(NotImplementedError, match="entropy_estimate"):
        chain.marginal(steps=4).entropy()
    with pytest.raises(NotImplementedError, match=r"metrics.kl_divergence\(p, q"):
        torch.distributions.kl_divergence(foreign.marginal(), own.marginal())
    with pytest.raises(NotImplementedError, match="use probs, mode or entropy"):
        VMoNF(foreign).posterior(clustered_rows(3)).mean  # noqa: B018


def test_mixtures_of_gaussians_have_moments() -> None:
    torch.manual_seed(0)
    bank = GaussianMixtures(2, 3, 4).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = bank()
    weight, loc = found.log_weights.exp().unsqueeze(-1), found.loc
    covariance = torch.linalg.inv(found.whitening.mT @ found.whitening)
    mean = (weight * loc).sum(1)
    second = (weight * (covariance.diagonal(dim1=-2, dim2=-1) + loc.square())).sum(1)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, second - mean.square(), rtol=1e-10, atol=1e-10)
    with pytest.raises(NotImplementedError, match="mean_estimate"):
        FlowMixture(RealNVP(2, 3, base=GaussianMixtures(2, 3, 4), blocks=2)).marginal().mean  # noqa: B018


def test_the_mean_of_a_condition_is_its_probability() -> None:
    one = VMoNF(FlowMixture(Gaussian(1, 2)))
    found, error = one.marginal().mean_estimate(2000, 0, of=lambda x: x > 0.3)
    right = 1 - one.marginal().cdf(torch.tensor([0.3])).detach()
    assert bool(((found - right).abs() < 4 * error).all())


def test_a_divergence_from_what_lacks_a_part_is_infinite() -> None:
    found = kl_divergence(Uniform(0.0, 2.0), Uniform(0.0, 1.0), seed=0)
    assert [float(v) for v in found] == [torch.inf, 0.0]
    mean, error = kl_divergence(Normal(0.0, 1.0), Gamma(2.0, 1.0), seed=0)
    assert (float(mean), float(error)) == (torch.inf, 0.0)
    assert kl_to_truth(torch.zeros(3), torch.tensor([0.0, -torch.inf, 0.0])) == (torch.inf, 0.0)
    mean, error = kl_divergence(Uniform(0.0, 1.0), Uniform(0.0, 2.0), seed=0)
    assert float(mean) == pytest.approx(math.log(2))


def test_ranks_stay_within_the_draws() -> None:
    torch.manual_seed(0)
    true, values = {"m": torch.ones(1000)}, torch.zeros(10_000, 1000)
    assert int(_rank(true["m"], values).max()) == 10_000
    assert int(_rank(true["m"], values).min()) == 10_000
    ties = _rank(torch.zeros(1000), values)
    assert 0 <= int(ties.min()) < 200
    assert 9_800 < int(ties.max()) <= 10_000


def test_a_divergence_of_categories_is_exact() -> None:
    p, q = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Categorical(torch.tensor([0.9, 0.1]))
    mean, error = kl_divergence(p, q, seed=0)
    assert abs(float(mean) - float(torch.distributions.kl_divergence(p, q))) < 4 * float(error)


@pytest.mark.parametrize("density", [Pinwheel(), Pinwheel(3, -0.4), TwoCircles()])
def test_whole_numbers_are_points(density: Pinwheel | TwoCircles) -> None:
    x = torch.tensor([[0, 1], [1, 0], [-1, 2]])
    assert density.log_prob(x).equal(density.log_prob(x.double()))
    if isinstance(density, Pinwheel):
        posterior = density.posterior(x)
        torch.testing.assert_close(posterior.sum(-1), torch.ones(3).double())
        assert density.posterior(torch.tensor([[torch.nan, 0.0]])).isnan().all()
    found = density.log_prob(torch.tensor([[torch.nan, 0.0], [0.3, 0.5]]))
    assert found.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"expected points \(N, 2\)"):
        density.log_prob(torch.zeros(3, 3))


def test_a_point_without_end_has_no_density() -> None:
    x = torch.tensor([[math.inf, 0.0], [0.3, 0.2], [math.nan, 0.0]])
    found = Pinwheel().log_prob(x)
    assert found[0] == -math.inf
    assert found[1] == Pinwheel().log_prob(x[1:2])[0]
    assert found[2].isnan()


def test_all_clusters_get_a_label() -> None:
    assert sorted(match([0], [3], 2).tolist()) == [0, 1, 2, 3]
