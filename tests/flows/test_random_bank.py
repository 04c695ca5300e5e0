"""Priors on a bank's parameters: MAP, mean field, Pyro's autoguides and NUTS."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

from pyro_vmonf import (
    Flow,
    FlowMixture,
    MarginalGuide,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.flows import Gaussian
from pyro_vmonf.flows.functional import WithParameters
from pyro_vmonf.nn import MLP

pytestmark = pytest.mark.filterwarnings("ignore:.*requires_grad=False")

N, D = 20, 2


class Means(nn.Module):
    """K unit Gaussians whose means are the parameters: the posterior is known."""

    def __init__(self, components: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(components, D))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.loc)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


def rows() -> Tensor:
    return 3 + torch.randn(N, D, generator=torch.Generator().manual_seed(0))


PRIOR = dist.Normal(0.0, 0.1)  # strong: the data pull the mean no further than 0.5
EXACT = rows().sum(0) / (N + 1 / 0.1**2)
EXACT_SCALE = (N + 1 / 0.1**2) ** -0.5


def by_svi(model: FlowMixture, guide: object, steps: int = 150) -> None:
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(steps):
        svi.step(rows())


def test_the_most_probable_parameters() -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR, scale=None))
    by_svi(model, MarginalGuide(model))
    torch.testing.assert_close(model.bank.bank.loc[0].detach(), EXACT, rtol=1e-2, atol=1e-3)
    plain = FlowMixture(Means())
    by_svi(plain, MarginalGuide(plain), steps=300)
    assert plain.bank.loc.detach().mean() > 2.5  # without the prior


def test_the_prior_shows_in_fit_as_well() -> None:
    vmonf = VMoNF(FlowMixture(RandomBank(Means(), PRIOR, scale=None)))
    vmonf.fit(rows(), epochs=300, lr=0.02, standardize=False, progress=False)
    found = vmonf.model.bank.bank.loc[0].detach()
    torch.testing.assert_close(found, EXACT, rtol=1e-2, atol=1e-2)


def test_the_mean_field_posterior_is_exact_where_it_can_be() -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR, scale=0.02))
    by_svi(model, MarginalGuide(model), steps=250)
    assert (model.bank.bank.loc[0].detach() - EXACT).abs().max() < 0.03
    scale = model.bank.log_scale["loc"].detach().exp()
    assert (scale / EXACT_SCALE - 1).abs().max() < 0.25


def test_the_exact_posterior_has_no_variance() -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR, scale=EXACT_SCALE)).double()
    with torch.no_grad():
        model.bank.bank.loc.copy_(EXACT)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    losses = [elbo.loss(model, MarginalGuide(model), rows().double()) for _ in range(4)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


@pytest.mark.parametrize("auto", [AutoDelta, AutoNormal])
def test_pyros_autoguides_serve(auto: type[AutoDelta | AutoNormal]) -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR))
    guide = auto(poutine.block(model, expose=["bank.loc"]))
    by_svi(model, guide)
    found = guide.median(rows())["bank.loc"][0].detach()
    assert (found - EXACT).abs().max() < 0.03


def test_nuts_finds_the_posterior() -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR)).requires_grad_(False)
    model.bank.bank.requires_grad_(True)
    mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=50, disable_progbar=True)
    mcmc.run(rows())
    drawn = mcmc.get_samples()["bank.loc"].squeeze(1)
    assert (drawn.mean(0) - EXACT).abs().max() < 4 * EXACT_SCALE / 10
    assert (drawn.std(0) / EXACT_SCALE - 1).abs().max() < 0.4


@pytest.mark.parametrize("scale", [None, 0.05])
def test_flows_take_priors_too(scale: float | None) -> None:
    bank = RandomBank(RealNVP(D, 3, blocks=2, hidden=(4,)), scale=scale)
    vmonf = VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(D, 3)))
    history = vmonf.fit(rows(), epochs=2, progress=False, seed=0)
    assert "parameters" in history.terms
    before = vmonf.log_prob(rows())
    assert torch.equal(vmonf.log_prob(rows()), before)  # scores take the centre, and draw nothing
    drawn = Predictive(vmonf.model, guide=vmonf.guide, num_samples=5)
    found = drawn(rows())
    names = [name for name, _ in bank.bank.named_parameters()]
    assert {f"bank.{name}" for name in names} <= set(found)
    spread = found[f"bank.{names[0]}"].std(0).max()
    assert (spread == 0) == (scale is None)
    ahead = Predictive(vmonf.model, num_samples=3)(size=6)
    assert ahead["x"].shape == (3, 6, D)


def test_priors_differ_by_name() -> None:
    def prior(name: str, value: Tensor) -> dist.TorchDistribution:
        return dist.Normal(0.0, 1e-3 if name.endswith("bias") else 1.0)

    model = FlowMixture(RandomBank(RealNVP(D, 3, blocks=1), prior))
    sites = poutine.trace(model).get_trace(rows()).nodes
    assert sites["bank.transforms.0.network.layers.0.bias"]["value"].abs().max() < 0.01
    assert sites["bank.transforms.0.network.layers.0.weight"]["value"].abs().max() > 0.01


def test_a_draw_of_parameters_is_what_the_density_has() -> None:
    bank = RealNVP(D, 3, blocks=2)
    values = {name: torch.randn_like(p) for name, p in bank.named_parameters()}
    found = WithParameters(bank, values)
    x = torch.randn(7, 1, D)
    twin = RealNVP(D, 3, blocks=2)
    twin.load_state_dict({**bank.state_dict(), **values})
    torch.testing.assert_close(found.log_prob(x), twin().log_prob(x))
    torch.manual_seed(1)
    drawn = found.sample((4,))
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, twin().sample((4,)))
    assert found.expand((5, 3)).sample().shape == (5, 3, D)
    torch.testing.assert_close(found.expand((7, 3)).log_prob(x), twin().log_prob(x))


def test_conditioning_on_parameters() -> None:
    model = FlowMixture(RandomBank(Means(), PRIOR))
    fixed = poutine.condition(model, {"bank.loc": torch.full((1, D), 7.0)})
    assert (fixed(size=200).mean(0) - 7).abs().max() < 0.5


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "nothing to draw": (lambda: RandomBank(Flow([], base=Means().requires_grad_(False))), "no par"),
    "scale": (lambda: RandomBank(Means(), scale=-1.0), "scale is -1.0"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    action, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        action()


@pytest.mark.parametrize("scale", [None, 0.01])
def test_restarts(scale: float | None) -> None:
    vmonf = VMoNF(FlowMixture(RandomBank(RealNVP(D, 3, blocks=1), scale=scale)))
    history = vmonf.fit(rows(), epochs=2, n_init=2, progress=False, seed=0)
    assert len(history.restarts) == 2


def test_a_random_bank_among_others_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RandomBank inside .* left out"):
        FlowMixture([RandomBank(Means()), Means()])


def test_a_prior_of_torch_is_one_of_pyro() -> None:
    x, losses = torch.randn(20, 2), []
    for normal in (torch.distributions.Normal, dist.Normal):
        with local_seed(0):
            vmonf = VMoNF(FlowMixture(RandomBank(Gaussian(2, 2), normal(0.0, 3.0))))
            losses.append(vmonf.fit(x, epochs=2, progress=False, seed=0).elbo)
    assert losses[0] == losses[1]


def test_observed_parameters_are_finite() -> None:
    vmonf = VMoNF(FlowMixture(RandomBank(Gaussian(2, 2))))
    known = vmonf.condition({"bank.loc": [[0.0, 1.0], [2.0, 3.0]]})  # type: ignore[dict-item]
    assert known.log_prob(torch.zeros(1, 2)).isfinite().all()
    with pytest.raises(ValueError, match="'loc' has values that are not finite"):
        vmonf.condition({"bank.loc": torch.full((2, 2), torch.nan)})
