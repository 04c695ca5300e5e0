"""Moments, entropy and quantiles of mixtures and flows, by closed forms of Gaussians."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_vmonf import (
    NSF,
    AutoregressiveNSF,
    FlowMixture,
    Gaussian,
    Marginal,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.metrics import kl_divergence
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import AffineCoupling, FlowTransform, Logit

pytestmark = pytest.mark.usefixtures("float64")
K = 3
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def mixture(features: int) -> FlowMixture:
    """A Gaussian mixture in units, whose parameters are all different."""
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(features, K), WEIGHTS)
    with torch.no_grad():
        for parameter in model.bank.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.standardize_(3 + 2 * torch.randn(50, features))
    return model


def test_moments_and_entropies_are_those_of_gaussians() -> None:
    model = mixture(2)
    raw, unit = model.bank(), model.standardizer
    components, whole = model.components(), model.marginal()
    mean = unit.loc + unit.scale * raw.mean
    covariance = raw.covariance_matrix * unit.scale.unsqueeze(-1) * unit.scale
    torch.testing.assert_close(components.mean, mean)
    torch.testing.assert_close(components.variance, covariance.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(components.stddev, components.variance.sqrt())
    expected = dist.MultivariateNormal(mean, covariance).entropy()
    torch.testing.assert_close(components.entropy(), expected)
    torch.testing.assert_close(whole.mean, WEIGHTS @ mean)
    second = WEIGHTS @ (components.variance + mean.square())
    torch.testing.assert_close(whole.variance, second - whole.mean.square())
    assert whole.expand((4,)).mean.shape == (4, 2)


def test_what_has_no_closed_form_names_its_estimate() -> None:
    model = mixture(2)
    flow = FlowMixture(RealNVP(2, K, blocks=2)).marginal()
    for owner, what, name in (
        (model.marginal(), lambda d: d.entropy(), "entropy_estimate"),
        (flow, lambda d: d.mean, "mean_estimate"),
        (flow, lambda d: d.stddev, "mean_estimate"),
        (FlowMixture(NSF(2, K, blocks=2)).components(), lambda d: d.entropy(), "entropy_estimate"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            what(owner)
    with pytest.raises(NotImplementedError, match="one feature"):
        model.marginal().cdf(torch.zeros(2))


def test_estimates_are_within_their_errors_and_leave_the_global_state() -> None:
    model = mixture(2)
    whole, components = model.marginal(), model.components()
    before = torch.get_rng_state()
    mean, error = whole.mean_estimate(draws=4000, seed=0)
    entropy, spread = components.entropy_estimate(draws=4000, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert ((mean - whole.mean).abs() < 4 * error).all()
    assert ((entropy - components.entropy()).abs() < 4 * spread).all()
    assert torch.equal(mean, whole.mean_estimate(draws=4000, seed=0)[0])
    one, two = (dist.MultivariateNormal(components.mean[i], torch.eye(2)) for i in (0, 1))
    kl, gap = kl_divergence(one, two, draws=4000, seed=0)
    exact = torch.distributions.kl_divergence(one, two)
    assert gap < 0.2
    assert (kl - exact).abs() < 4 * gap
    torch.testing.assert_close(
        kl_divergence(whole, whole, draws=10)[0], torch.zeros(()), rtol=0, atol=0
    )


def test_distribution_functions_of_one_feature() -> None:
    model = mixture(1)
    whole, components = model.marginal(), model.components()
    x = torch.linspace(-4.0, 9.0, 40).unsqueeze(-1)
    normals = dist.Normal(components.mean.squeeze(-1), components.stddev.squeeze(-1))
    torch.testing.assert_close(components.cdf(x.unsqueeze(-2)), normals.cdf(x))
    torch.testing.assert_close(whole.cdf(x), normals.cdf(x) @ WEIGHTS)
    share = torch.linspace(0.01, 0.99, 30)
    torch.testing.assert_close(whole.cdf(whole.icdf(share)), share, rtol=0, atol=1e-12)


class Falling(FlowTransform):
    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return -2 * z, torch.full(z.shape[:-1], math.log(2.0))

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x / -2, torch.full(x.shape[:-1], -math.log(2.0))


def test_distribution_functions_of_flows() -> None:
    """The derivative of the distribution function is the density, also where a map falls."""
    torch.manual_seed(0)
    falling = Falling()
    base = dist.Normal(torch.zeros(K, 1), 1.0 + torch.arange(K).unsqueeze(-1)).to_event(1)
    for flow in (
        FlowDistribution(base, [falling]),
        FlowDistribution(base, [falling, Logit()]),
        AutoregressiveNSF(1, K)(),
    ):
        share = torch.linspace(0.05, 0.95, 7)
        x = flow.icdf(share.unsqueeze(-1)).detach().requires_grad_()
        found = flow.cdf(x)
        torch.testing.assert_close(found, share.unsqueeze(-1).expand_as(found))
        [density] = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(density.squeeze(-1), flow.log_prob(x).exp())
    bounded = FlowDistribution(base, [falling, Logit()])
    outside = torch.tensor([[-1.0], [2.0]]).unsqueeze(-2)
    assert bounded.cdf(outside).tolist() == [[0.0] * K, [1.0] * K]


def test_the_posterior_is_a_distribution() -> None:
    x = torch.randn(5, 2)
    vmonf = VMoNF(mixture(2), SoftmaxGuide(MLP(2, K)))
    y = torch.tensor([0, -1, -1, -1, 2])
    for exact in (False, True):
        posterior = vmonf.posterior(x, y, exact=exact)
        proba = vmonf.predict_proba(x, y, exact=exact)
        torch.testing.assert_close(posterior.probs, proba)
        assert posterior.enumerate_support().shape == (K, 5)
        expected = -(proba * proba.clamp_min(1e-300).log()).sum(-1)
        torch.testing.assert_close(posterior.entropy(), expected)
        assert posterior.entropy()[0] == 0


def test_a_marginal_is_a_part_of_pyro() -> None:
    """In AutoNormal, NUTS, ``MixtureSameFamily``, and as the base of another flow."""
    whole = mixture(2).marginal(frozen=True)

    def model() -> None:
        pyro.sample("z", whole)

    guide = AutoNormal(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step()
    assert guide.median()["z"].shape == (2,)
    mcmc = MCMC(NUTS(model), num_samples=3, warmup_steps=3, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["z"].shape == (3, 2)
    family = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), mixture(2).components())
    x = torch.randn(4, 2)
    torch.testing.assert_close(family.log_prob(x), mixture(2).marginal().log_prob(x))
    torch.testing.assert_close(family.mean, mixture(2).marginal().mean)
    outer = FlowDistribution(whole, [AffineCoupling(2)])
    z, log_det = outer.transforms[0].inverse_and_log_det(x)
    torch.testing.assert_close(outer.log_prob(x), whole.log_prob(z) + log_det)
    assert isinstance(whole, Marginal)
