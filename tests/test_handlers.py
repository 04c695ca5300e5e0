"""Pyro's handlers on a pair and on its model, and pairs with observed sites."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import Predictive, infer_discrete
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, RandomBank, RandomWeights, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.weights import GammaDirichlet, Weights

pytestmark = pytest.mark.usefixtures("float64")
N, K = 8, 3
WEIGHTS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def rows() -> Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


def pair(guide: Any = "softmax") -> VMoNF:
    model = FlowMixture(Gaussian(2, K), dist.Dirichlet(2 * torch.ones(K)))
    return VMoNF(model, SoftmaxGuide(MLP(2, K)) if guide == "softmax" else guide)


@pytest.fixture(params=["pair", "model"])
def program(request: pytest.FixtureRequest) -> Any:
    vmonf = pair()
    return vmonf if request.param == "pair" else vmonf.model


def sites(fn: Any, x: Tensor) -> dict[str, Any]:
    trace = poutine.trace(fn).get_trace(x)
    trace.compute_log_prob()
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def test_condition_and_do(program: Any) -> None:
    x, prior = rows(), dist.Dirichlet(2 * torch.ones(K))
    c = torch.arange(N) % K
    found = sites(pyro.condition(program, data={"weights": WEIGHTS, "c": c}), x)
    torch.testing.assert_close(found["weights"]["log_prob"], prior.log_prob(WEIGHTS))
    torch.testing.assert_close(found["c"]["log_prob"], WEIGHTS.log()[c])
    model = program.model if isinstance(program, VMoNF) else program
    components = model.components().log_prob(x.unsqueeze(-2))
    expected = components.gather(-1, c.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found["x"]["log_prob"], expected)
    done = sites(pyro.condition(pyro.do(program, data={"weights": WEIGHTS}), data={"c": c}), x)
    assert not done["weights"]["is_observed"]  # its value does not reach the rows
    torch.testing.assert_close(done["c"]["log_prob"], WEIGHTS.log()[c])


def test_scope_block_and_replay(program: Any) -> None:
    x = rows()
    assert {"a/weights", "a/c", "a/x"} <= set(sites(scope(program, prefix="a"), x))
    assert "c" not in sites(poutine.block(program, hide=["c"]), x)
    trace = poutine.trace(program).get_trace(x)
    again = sites(poutine.replay(program, trace=trace), x)
    for name in ("weights", "c"):
        assert torch.equal(again[name]["value"], trace.nodes[name]["value"])


def test_mask_and_scale(program: Any) -> None:
    x, data = rows(), {"weights": WEIGHTS, "c": torch.zeros(N).long()}
    plain = sites(pyro.condition(program, data=data), x)
    twice = sites(poutine.scale(pyro.condition(program, data=data), scale=2.0), x)
    none = sites(poutine.mask(pyro.condition(program, data=data), mask=torch.tensor(False)), x)
    for name in ("weights", "c", "x"):
        torch.testing.assert_close(twice[name]["log_prob"], 2 * plain[name]["log_prob"])
        assert not none[name]["log_prob"].any()


def test_infer_discrete_predictive_and_render(program: Any) -> None:
    x = rows()
    known = pyro.condition(program, data={"weights": WEIGHTS})
    best = sites(infer_discrete(known, first_available_dim=-2, temperature=0), x)["c"]["value"]
    model = program.model if isinstance(program, VMoNF) else program
    joint = WEIGHTS.log() + model.components().log_prob(x.unsqueeze(-2))
    assert torch.equal(best, joint.argmax(-1))
    drawn = Predictive(program, num_samples=3)(size=5)
    assert drawn["x"].shape == (3, 5, 2)
    pytest.importorskip("graphviz")
    assert "weights" in pyro.render_model(program, (x,)).source


@pytest.mark.parametrize("guide", ["softmax", None, "auto"])
def test_a_conditioned_pair_is_fitted_and_queried(guide: Any, tmp_path: Any) -> None:
    x, vmonf = rows(), pair(None if guide == "auto" else guide)
    if guide == "auto":
        vmonf.guide = AutoNormal(poutine.block(vmonf.model, hide=["c"]))
    known = vmonf.condition({"weights": WEIGHTS})
    before = vmonf.model.bank.loc.detach().clone()
    history = known.fit(x, epochs=2, progress=False, seed=0)
    assert history.terms["weights"][0] == pytest.approx(
        float(dist.Dirichlet(2 * torch.ones(K)).log_prob(WEIGHTS)) / N
    )
    joint = WEIGHTS.log() + known.component_log_prob(x)
    torch.testing.assert_close(known.log_prob(x), joint.logsumexp(-1))
    torch.testing.assert_close(known.predict_proba(x, exact=True), joint.softmax(-1))
    assert known.sample(5, seed=0)[0].shape == (5, 2)
    assert known.model.bank is vmonf.model.bank
    assert not torch.equal(before, vmonf.model.bank.loc)
    vmonf.fit(x, epochs=1, progress=False, seed=0)  # the former pair still has random weights
    assert vmonf.model.weights.in_program
    assert "posterior" in dict(vmonf.model.weights.named_children())
    if guide != "auto":
        known.save(tmp_path / "pair")
        assert torch.equal(VMoNF.load(tmp_path / "pair").log_prob(x), known.log_prob(x))


@pytest.mark.parametrize("first", [True, False], ids=["fitted", "fresh"])
def test_the_bound_of_a_conditioned_autoguide_is_the_evidence(first: bool) -> None:
    """Nothing of the posterior of an observed site is left in the bound, and it stays as it was."""
    x, vmonf = rows(), pair(None)
    vmonf.model.bank.requires_grad_(False)
    guide = AutoNormal(poutine.block(vmonf.model, hide=["c"]))
    vmonf.guide = guide
    if first:
        vmonf.fit(x, epochs=5, lr=0.03, standardize=False, progress=False, seed=0)
    known = vmonf.condition({"weights": WEIGHTS})
    if first:
        before = {name: value.clone() for name, value in guide.state_dict().items()}
    known.model.bank.requires_grad_(True)
    history = known.fit(x, epochs=5, lr=1e-9, standardize=False, progress=False, seed=0)
    assert "weights_unconstrained" not in history.terms
    joint = WEIGHTS.log() + known.component_log_prob(x)
    prior = dist.Dirichlet(2 * torch.ones(K)).log_prob(WEIGHTS)
    evidence = float(joint.logsumexp(-1).sum() + prior) / N
    assert history.elbo[-1] == pytest.approx(evidence, abs=1e-6)
    if first:
        assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())


@pytest.mark.parametrize("kind", [AutoMultivariateNormal, AutoDiagonalNormal])
def test_sites_that_are_drawn_together_are_not_observed_apart(kind: Any) -> None:
    x = rows()
    model = FlowMixture(Gaussian(2, K), RandomWeights(GammaDirichlet(K, shape=2.0, rate=1.0)))
    vmonf = VMoNF(model, kind(poutine.block(model, hide=["c"])))
    vmonf.fit(x, epochs=1, progress=False, seed=0)
    with pytest.raises(ValueError, match=r"draws weights together with .*concentration"):
        vmonf.condition({"weights": WEIGHTS})
    both = {"weights": WEIGHTS, "weights_concentration": torch.tensor(1.0)}
    history = vmonf.condition(both).fit(x, epochs=1, progress=False, seed=0)
    assert not [name for name in history.terms if "latent" in name]


class Scaled(Weights):
    """Weights of one's own, whose scale is a site."""

    def __init__(self, features: int = 0) -> None:
        super().__init__()
        self.num_components = K
        self.features = features

    def forward(self, context: Tensor | None = None) -> Tensor:
        shape = (self.features, K) if self.features else (K,)
        prior = dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
        slope = pyro.sample("slope", prior)
        return (slope if context is None else context @ slope).log_softmax(-1)


@pytest.mark.parametrize("features", [0, 2])
def test_sites_of_weights_of_ones_own_are_observed(features: int) -> None:
    model = FlowMixture(Gaussian(2, K), Scaled(features), context_features=features)
    slope = torch.randn(features, K) if features else torch.randn(K)
    given = torch.randn(N, features) if features else None
    known = model.condition({"slope": slope})
    wanted = (slope if given is None else given @ slope).log_softmax(-1)
    torch.testing.assert_close(known.weights.log_mean(given), wanted)
    with pytest.raises(ValueError, match="observed 'slope' has shape"):
        model.condition({"slope": torch.zeros(7)})


@pytest.mark.parametrize("kind", [AutoNormal, None])
def test_a_bank_with_observed_parameters_is_fitted_by_each_guide(kind: Any) -> None:
    x, loc = rows(), torch.ones(K, 2)
    model = FlowMixture(RandomBank(Gaussian(2, K)), dist.Dirichlet(torch.ones(K)))
    vmonf = VMoNF(model, None if kind is None else kind(poutine.block(model, hide=["c"])))
    vmonf.fit(x, epochs=1, progress=False, seed=0)
    known = vmonf.condition({"bank.loc": loc})
    history = known.fit(x, epochs=2, standardize=False, progress=False, seed=0)
    assert not [name for name in history.terms if name.startswith("bank.loc")]
    assert torch.equal(poutine.trace(known.model).get_trace(x).nodes["bank.loc"]["value"], loc)
    assert known.predict(x).shape == (N,)


def test_parameters_of_a_bank_are_observed() -> None:
    x, loc = rows(), torch.ones(K, 2)
    vmonf = VMoNF(FlowMixture(RandomBank(Gaussian(2, K)), dist.Dirichlet(torch.ones(K))))
    known = vmonf.condition({"bank.loc": loc, "weights": WEIGHTS})
    history = known.fit(x, epochs=2, standardize=False, progress=False, seed=0)
    prior = dist.Normal(0.0, 1.0).log_prob(loc).sum()
    assert "parameters" in history.terms
    inner = known.model.bank.bank.bank
    with torch.no_grad():
        found = known.component_log_prob(x)
        inner.loc.copy_(loc)
        torch.testing.assert_close(found, inner().log_prob(x.unsqueeze(-2)))
        trace = poutine.trace(known.model).get_trace(x)
        trace.compute_log_prob()
    assert trace.nodes["bank.loc"]["is_observed"]
    torch.testing.assert_close(trace.nodes["bank.loc"]["log_prob"], prior)
    assert not trace.nodes["bank.log_scale"]["is_observed"]


def test_other_sites_are_refused_by_name() -> None:
    vmonf = pair()
    for name in ("c", "x", "bank.loc", "nothing"):
        with pytest.raises(ValueError, match=f"data has '{name}'"):
            vmonf.condition({name: torch.zeros(N)})
    with pytest.raises(ValueError, match="3 positive numbers whose sum is 1"):
        vmonf.condition({"weights": torch.ones(K)})
    with pytest.raises(ValueError, match=r"'loc' has shape \(1,\)"):
        VMoNF(FlowMixture(RandomBank(Gaussian(2, K)))).condition({"bank.loc": torch.zeros(1)})
