"""Densities, supports and distribution functions: right values where wrong ones were found."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Exponential,
    Independent,
    LogNormal,
    Normal,
    Pareto,
    SigmoidTransform,
    StudentT,
    Uniform,
)

from pyro_vmonf import (
    MAF,
    AutoregressiveNSF,
    Flow,
    FlowMixture,
    Gaussian,
    MAFMoG,
    Marginal,
    RealNVP,
    VMoNF,
    select,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.flows import GaussianMixtures, StandardNormal
from pyro_vmonf.metrics import kl_divergence
from pyro_vmonf.transforms import AffineCoupling, Logit
from pyro_vmonf.transforms.mixture_of_gaussians import MixtureOfGaussians
from tests.samples import normal_rows, one_feature, sixty_rows

K = 3


def test_parts_of_different_support_each_have_their_own() -> None:
    def uniform(low: float, high: float) -> Any:
        return dist.Uniform(torch.tensor([low]), torch.tensor([high])).to_event(1)

    vmonf = VMoNF(FlowMixture([uniform(0.0, 1.0), uniform(2.0, 3.0)]))
    x = torch.tensor([[0.5], [2.5]])
    assert vmonf.predict(x).tolist() == [0, 1]
    torch.testing.assert_close(vmonf.predict_proba(x), torch.eye(2))
    with pytest.warns(RuntimeWarning, match="rows 0 lie outside"):
        assert vmonf.predict(torch.tensor([[1.5]])).tolist() == [-1]


def test_quantiles_run_in_inference_mode() -> None:
    marginal = FlowMixture(Gaussian(1, 2)).marginal()
    x = torch.randn(5, 1)
    with torch.inference_mode():
        assert marginal.cdf(x).shape == (5,)


@pytest.mark.parametrize("scale", [30.0, -30.0])
def test_a_map_rises_where_its_slope_does(scale: float) -> None:
    base = Independent(Normal(torch.zeros(1), 1.0), 1)
    far = FlowDistribution(base, [AffineTransform(1.7e9, scale)])
    assert far.cdf(torch.tensor([1.7e9 - 2560])) == 0
    assert far.cdf(torch.tensor([1.7e9 + 2560])) == 1
    near = FlowDistribution(base, [AffineTransform(2.0, scale)])
    x = torch.linspace(-50, 50, 5).unsqueeze(-1)
    exact = Normal(2.0, 30.0).cdf(x.squeeze(-1))
    torch.testing.assert_close(near.cdf(x), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(near.icdf(exact), x, atol=1e-4, rtol=1e-4)


def test_quantiles_at_the_ends_are_those_of_the_support() -> None:
    marginal = VMoNF(FlowMixture(Gaussian(1, 2))).marginal()
    found = marginal.icdf(torch.tensor([0.0, 0.5, 1.0])).squeeze(-1)
    assert found[0] == -torch.inf
    assert found[2] == torch.inf
    assert found[1].isfinite()


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_an_end_of_the_interval_is_outside_of_it(alpha: float) -> None:
    layers = [AffineCoupling(2, batch_shape=(2,)), Logit(alpha=alpha)]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(2, 2))))
    margin = alpha / (1 - 2 * alpha)
    x = torch.tensor([[-margin, 0.5], [1 + margin, 0.5], [0.3, 0.2]])
    with pytest.warns(RuntimeWarning, match="rows 0, 1 lie outside"):
        log_prob = vmonf.log_prob(x)
    assert log_prob[:2].tolist() == [-torch.inf] * 2
    assert log_prob[2].isfinite()
    with pytest.warns(RuntimeWarning, match="rows 0, 1 lie outside"):
        assert vmonf.predict(x)[:2].tolist() == [-1, -1]


def test_a_distribution_function_draws_nothing() -> None:
    marginal = FlowMixture(AutoregressiveNSF(1, 2)).marginal()
    before = torch.get_rng_state()
    marginal.icdf(marginal.cdf(torch.zeros(3, 1)).detach())
    assert torch.equal(torch.get_rng_state(), before)


def test_gaussians_side_by_side_have_a_distribution_function() -> None:
    parts = [Gaussian(1, 1).double(), Gaussian(1, 2).double()]
    marginal, x = FlowMixture(parts).marginal(), torch.linspace(-2, 2, 7, dtype=torch.float64)
    means = torch.cat([part.loc for part in parts])
    exact = torch.distributions.Normal(means.squeeze(-1), 1.0).cdf(x[:, None]).mean(1)
    torch.testing.assert_close(marginal.cdf(x[:, None]), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(marginal.icdf(exact).squeeze(-1), x, rtol=0, atol=1e-9)


def uniform(low: Any, high: Any) -> Any:
    return dist.Uniform(torch.tensor(low), torch.tensor(high)).to_event(1)


def test_bounded_components_of_a_list_are_fitted() -> None:
    vmonf = VMoNF(FlowMixture([uniform([0.0], [1.0]), uniform([0.5], [2.0])], "learned"))
    x = 2 * torch.rand(200, 1)
    vmonf.fit(x, epochs=100, lr=0.05, progress=False, seed=0)
    log_prob = vmonf.log_prob(x)
    assert log_prob.isfinite().all()
    assert float(log_prob.mean()) > float(VMoNF(FlowMixture(vmonf.model.bank)).log_prob(x).mean())


def test_the_support_of_a_mixture_is_that_of_any_component() -> None:
    alike = FlowMixture(uniform([[0.0], [0.0]], [[1.0], [1.0]])).marginal()
    apart = FlowMixture(uniform([[0.0], [2.0]], [[1.0], [3.0]])).marginal()
    x = torch.tensor([[0.5], [1.5], [2.5]])
    assert alike.support.check(x).tolist() == [True, False, False]  # type: ignore[union-attr]
    assert apart.support.check(x).tolist() == [True, False, True]  # type: ignore[union-attr]
    inner = torch.distributions.biject_to(apart.support)(torch.tensor([[-9.0], [9.0]]))
    assert ((inner > 0) & (inner < 3)).all()


def test_a_latent_of_a_bounded_mixture_has_its_shape_under_nuts() -> None:
    marginal = FlowMixture(uniform([[0.0] * 2] * K, [[1.0] * 2] * K)).marginal(frozen=True)

    def program() -> None:
        pyro.sample("z", marginal)

    mcmc = pyro.infer.MCMC(
        pyro.infer.NUTS(program), num_samples=5, warmup_steps=5, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (5, 2)
    assert ((draws > 0) & (draws < 1)).all()


def test_the_distribution_function_takes_rows_alone(float64: None) -> None:
    flow = FlowMixture(AutoregressiveNSF(1, 2)).components()
    for mixture in (one_feature().marginal(), flow):
        for x in (torch.tensor([0.0, 5.0]), torch.zeros(3, 2)):
            with pytest.raises(ValueError, match="one point has shape"):
                mixture.cdf(x)
    x = torch.tensor([[0.0], [5.0]])
    wanted = 0.5 * (torch.special.ndtr(x) + torch.special.ndtr(x - 5)).squeeze(-1)
    torch.testing.assert_close(one_feature().marginal().cdf(x), wanted, rtol=0, atol=1e-12)


def test_functions_of_an_expanded_mixture_have_its_shape(float64: None) -> None:
    mixture = one_feature().marginal()
    wide = mixture.expand((3,))
    assert wide.cdf(torch.zeros(1)).shape == (3,)
    assert wide.icdf(torch.tensor(0.3)).shape == (3, 1)
    assert torch.equal(wide.icdf(torch.tensor(0.3))[1], mixture.icdf(torch.tensor(0.3)))


def test_quantiles_of_small_shares_are_finite() -> None:
    mixture = one_feature().requires_grad_(False).marginal()
    for share in (1e-30, 1e-10, 0.5):
        found = mixture.icdf(torch.tensor(share))
        torch.testing.assert_close(float(mixture.cdf(found)), share, rtol=1e-3, atol=0)
    assert mixture.icdf(torch.tensor(0.0)) == -math.inf
    assert mixture.icdf(torch.tensor(1.0)) == math.inf


def test_far_away_is_minus_infinity_for_mixtures_of_gaussians() -> None:
    with local_seed(0), torch.no_grad():
        bank = MAFMoG(2, 2, blocks=1)
        for parameter in bank.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for far in (1e10, 1e19, 1e22, 1e30):
        x = torch.tensor([[far, 0.0], [0.0, -far], [far, far]])
        found = FlowMixture(bank).marginal().log_prob(x).double()
        exact = FlowMixture(bank).double().marginal().log_prob(x.double())
        bank.float()
        assert not found.isnan().any()
        finite = found.isfinite()
        torch.testing.assert_close(found[finite], exact[finite], rtol=1e-4, atol=0)
        assert bool((exact[~finite] < -1e30).all())


@pytest.mark.parametrize("way", ["inverse", "forward"])
def test_mixtures_of_gaussians_have_second_derivatives(way: str) -> None:
    draw = torch.Generator().manual_seed(0)
    function = getattr(MixtureOfGaussians(2, 3.0), way)
    x = torch.randn(2, 2, generator=draw).double().requires_grad_()
    theta = (0.5 * torch.randn(2, 6, 2, generator=draw).double()).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, theta))
    assert torch.autograd.gradgradcheck(function, (x, theta))


def test_a_density_of_mixtures_of_gaussians_has_a_hessian() -> None:
    torch.manual_seed(0)
    bank = MAFMoG(2, 1, base=Gaussian(2, 1), blocks=1).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    density, x = FlowMixture(bank).marginal().log_prob, torch.tensor([0.3, -0.7]).double()
    found = torch.autograd.functional.hessian(density, x)
    steps = 1e-5 * torch.eye(2).double()
    slopes = [
        torch.autograd.functional.jacobian(density, x + e)  # type: ignore[no-untyped-call]
        - torch.autograd.functional.jacobian(density, x - e)  # type: ignore[no-untyped-call]
        for e in steps
    ]
    torch.testing.assert_close(found, torch.stack(slopes) / 2e-5, rtol=1e-7, atol=1e-8)


def test_distribution_functions_end_at_the_ends_of_supports() -> None:
    both = [Independent(Uniform(torch.tensor([low]), low + 1), 1) for low in (0.0, 2.0)]
    marginal = FlowMixture(both).marginal()
    x = torch.tensor([[-1.0], [0.5], [1.5], [2.5], [9.0]])
    assert marginal.cdf(x).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(
        marginal.icdf(torch.tensor([0.25, 0.75])), torch.tensor([[0.5], [2.5]])
    )
    parts = [
        Exponential(torch.ones(1)),
        Normal(torch.zeros(1), 1.0),
        LogNormal(torch.zeros(1), 1.0),
    ]
    marginal = FlowMixture([Independent(part, 1) for part in parts]).marginal()
    below = Normal(0.0, 1.0).cdf(torch.tensor(-1.0)) / 3
    torch.testing.assert_close(marginal.cdf(torch.tensor([[-1.0]]))[0], below)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_logit_stays_in_its_interval(alpha: float, dtype: torch.dtype) -> None:
    logit = Logit(alpha=alpha)
    x = logit(torch.tensor([[-1e4, -40.0, 0.0, 40.0, 1e4]], dtype=dtype))
    assert logit.codomain.check(x).all()
    vmonf = VMoNF(FlowMixture(Flow([logit.to(dtype)], base=Gaussian(2, 1)))).to(dtype)
    with torch.no_grad():
        vmonf.model.bank.base.loc.fill_(20.0)  # type: ignore[operator, union-attr]
    marginal = vmonf.marginal()
    assert marginal.log_prob(marginal.sample((1000,))).isfinite().all()
    assert kl_divergence(marginal, marginal, draws=100, seed=0) == (0.0, 0.0)


@pytest.mark.parametrize("bank", [MAF, MAFMoG, RealNVP])
def test_the_largest_numbers_have_no_density(bank: Any) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(bank(2, 2)))
    vmonf.fit(sixty_rows(), epochs=2, progress=False)
    far = torch.tensor([[s, -s] for s in (1e30, 1e35, 1e37, 3e38)])
    assert (vmonf.log_prob(far) == -torch.inf).all()
    assert (vmonf.component_log_prob(far) == -torch.inf).all()
    weights = vmonf.model.weights.log_mean().exp()
    torch.testing.assert_close(vmonf.predict_proba(far), weights.expand(4, 2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [RealNVP, MAF])
def test_mixtures_of_gaussians_are_a_base_of_flows_with_a_context(kind: Any) -> None:
    torch.manual_seed(0)
    bank = kind(2, 3, base=GaussianMixtures(2, 3, 2), context_features=1)
    vmonf = VMoNF(FlowMixture(bank, context_features=1))
    x, given = normal_rows(5, 2).double(), normal_rows(5, 1, seed=1).double()
    found = vmonf.log_prob(x, given=given)
    each = [vmonf.log_prob(x[i : i + 1], given=given[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(found, torch.cat(each), rtol=1e-12, atol=1e-12)
    line = torch.linspace(-12, 12, 401).double()
    grid = torch.cartesian_prod(line, line)
    mass = vmonf.log_prob(grid, given=given[:1].expand(len(grid), 1)).exp().sum()
    assert float(mass) * (24 / 400) ** 2 == pytest.approx(1.0, abs=1e-3)
    drawn, _ = vmonf.sample(5, given=given)
    assert drawn.shape == (5, 2)
    wide = GaussianMixtures(2, 3, 2)().expand((5, 3))
    assert wide.sample((4,)).shape == (4, 5, 3, 2)
    assert wide.mean.shape == wide.variance.shape == (5, 3, 2)
    assert wide.log_prob(x.unsqueeze(1)).shape == (5, 3)
    with pytest.raises(ValueError, match="the components last"):
        wide.expand((3, 5))


@pytest.mark.parametrize("loc", [0.0, 20.0, 500.0])
@pytest.mark.parametrize("scale", [1.0, 20.0, -20.0])
def test_a_saturated_map_keeps_its_direction(loc: float, scale: float, float64: None) -> None:
    base = Independent(Normal(torch.tensor([[loc]]), 1.0), 1)
    maps = [AffineTransform(0.0, scale), SigmoidTransform(), AffineTransform(1.0, 3.0)]
    flow = FlowDistribution(base, maps)
    x = torch.tensor([[1.0003], [2.5], [3.9]])
    z = ((x - 1) / 3).logit() / scale
    rises = Normal(loc, 1.0).cdf(z)
    exact = (rises if scale > 0 else 1 - rises).squeeze(-1)
    torch.testing.assert_close(flow.cdf(x.unsqueeze(1)).squeeze(-1), exact, atol=1e-12, rtol=1e-9)
    assert flow.cdf(torch.tensor([[0.5], [9.0]]).unsqueeze(1)).flatten().tolist() == [0, 1]
    quantiles = flow.icdf(torch.tensor([[0.1], [0.9]])).flatten()
    sides = torch.tensor([0.1, 0.9]) if scale > 0 else torch.tensor([0.9, 0.1])
    expected = 1 + 3 * (scale * Normal(loc, 1.0).icdf(sides)).sigmoid()
    torch.testing.assert_close(quantiles, expected)


@pytest.mark.parametrize("of", ["loc", "share", "weights"])
def test_a_quantile_of_a_mixture_has_its_gradient(of: str, float64: None) -> None:
    values = {
        "loc": torch.tensor([[0.0], [3.0]]),
        "share": torch.tensor([0.3, 0.8]),
        "weights": torch.tensor([0.2, -0.5]),
    }

    def quantiles(value: Tensor) -> Tensor:
        got = {**values, of: value}
        parts = Independent(Normal(got["loc"], torch.tensor([[1.0], [0.5]])), 1)
        return Marginal(got["weights"].log_softmax(-1), parts).icdf(got["share"]).sum()

    value = values[of].clone().requires_grad_()
    assert torch.autograd.gradcheck(quantiles, (value,), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_shares_that_are_no_probabilities_are_refused(share: float) -> None:
    parts = Independent(Uniform(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]])), 1)
    flow = FlowDistribution(Independent(Normal(torch.zeros(1), 1.0), 1), [SigmoidTransform()])
    for found in (Marginal(torch.tensor([0.5, 0.5]).log(), parts), flow):
        with pytest.raises(ValueError, match=r"a share is .*; expected 0 to 1"):
            found.icdf(torch.tensor(share))


def test_moments_of_a_mixture_may_be_infinite() -> None:
    halves = torch.tensor([0.5, 0.5]).log()
    pareto = Marginal(
        halves, Independent(Pareto(torch.ones(2, 1), torch.tensor([[0.5], [3.0]])), 1)
    )
    assert pareto.mean.tolist() == [math.inf]
    assert pareto.variance.tolist() == [math.inf]
    both = Independent(StudentT(torch.tensor([[5.0], [1.5]])), 1)
    assert Marginal(halves, both).variance.tolist() == [math.inf]
    first = Marginal(torch.tensor([1.0, 0.0]).log(), both)
    torch.testing.assert_close(first.variance, torch.tensor([5.0 / 3.0]))
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).log()
    chain = HiddenChain(rows, both, 3)
    torch.testing.assert_close(chain.variance, torch.full((3, 1), 5.0 / 3.0))
    assert chain.mean.tolist() == [[0.0]] * 3


@pytest.mark.parametrize("shape", [(), (4,), (3, 1)])
def test_a_selected_component_has_its_moments(shape: tuple[int, ...]) -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    parts = Independent(Normal(scale + 10, scale), 1)
    c = torch.arange(math.prod(shape)).reshape(shape) % K
    found = select(parts, c)
    torch.testing.assert_close(found.mean, scale[c] + 10)
    torch.testing.assert_close(found.variance, scale[c].square())
    own = select(parts.expand((4, K)), torch.tensor([2, 0, 1, 1]))  # each row has its own
    torch.testing.assert_close(own.mean, scale[[2, 0, 1, 1]] + 10)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_no_draws_are_an_empty_tensor(shape: tuple[int, ...]) -> None:
    for mixture in (one_feature().marginal(), FlowMixture(AutoregressiveNSF(1, 2)).marginal()):
        assert mixture.sample(shape).shape == (*shape, 1)
