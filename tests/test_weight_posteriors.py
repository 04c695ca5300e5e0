"""Priors of every kind over the weights: ELBO and gradient against the sum written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    GammaDirichlet,
    GatedWeights,
    Gaussian,
    GroupWeights,
    RandomWeights,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.nn import MLP
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.weight_priors import SticksPosterior

pytestmark = pytest.mark.usefixtures("float64")
N, K = 7, 3
CONCENTRATIONS = torch.tensor([[5.0, 1.0, 1.0], [1.0, 2.0, 4.0]], dtype=torch.float64)


def rows() -> Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


def of_mixture() -> Any:
    weight = dist.Categorical(torch.tensor([0.3, 0.7]))
    return dist.MixtureSameFamily(weight, dist.Dirichlet(CONCENTRATIONS))


def mixture_density(drawn: dict[str, Tensor]) -> Tensor:
    w = drawn["weights"]
    parts = [
        math.log(share) + ((a - 1) * w.log()).sum() + a.sum().lgamma() - a.lgamma().sum()
        for share, a in zip((0.3, 0.7), CONCENTRATIONS, strict=True)
    ]
    return torch.stack(parts).logsumexp(0)


def normal_density(loc: Tensor, covariance: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Of a normal behind the stick-breaking map, by autograd's Jacobian of the inverse."""

    def density(drawn: dict[str, Tensor]) -> Tensor:
        w = drawn["weights"]
        free = td.StickBreakingTransform().inv(w)
        jacobian = td.StickBreakingTransform().log_abs_det_jacobian(free, w)
        return td.MultivariateNormal(loc, covariance).log_prob(free) - jacobian

    return density


def gamma_density(drawn: dict[str, Tensor]) -> Tensor:
    w, a = drawn["weights"], drawn["weights_concentration"]
    prior = 2 * math.log(3) + a.log() - 3 * a  # Gamma(2, 3), whose normaliser is one
    return prior + ((a - 1) * w.log()).sum() + (K * a).lgamma() - K * a.lgamma()


def relaxed_density(drawn: dict[str, Tensor]) -> Tensor:
    w, temperature = drawn["weights"], 0.7
    logits = torch.tensor([0.0, 0.5, 1.0])
    score = logits - (temperature + 1) * w.log()
    power = (logits - temperature * w.log()).logsumexp(-1)
    return math.lgamma(K) + (K - 1) * math.log(temperature) + score.sum() - K * power


STICKS = torch.tensor([[1.5, 2.0], [0.7, 3.0]], dtype=torch.float64)


def sticks_density(drawn: dict[str, Tensor]) -> Tensor:
    """Betas of the breaks, with the Jacobian of the pieces."""
    w = drawn["weights"]
    left = torch.stack([1 - w[:k].sum() for k in range(K - 1)])
    return (td.Beta(*STICKS).log_prob(w[:-1] / left) - left.log()).sum()


def of_sticks() -> RandomWeights:
    prior = StickBreaking(*STICKS)
    return RandomWeights(prior, SticksPosterior(prior, update="gradient"))


COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
ZEROS = torch.zeros(2, dtype=torch.float64)
Density = Callable[[dict[str, Tensor]], Tensor]
PRIORS: dict[str, tuple[Callable[[], Any], Density]] = {
    "mixture of Dirichlets": (of_mixture, mixture_density),
    "transformed": (
        lambda: dist.TransformedDistribution(
            dist.MultivariateNormal(ZEROS, COVARIANCE), [td.StickBreakingTransform()]
        ),
        normal_density(ZEROS, COVARIANCE),
    ),
    "logistic normal": (
        lambda: dist.LogisticNormal(torch.zeros(2), torch.ones(2)),
        normal_density(ZEROS, torch.eye(2, dtype=torch.float64)),
    ),
    "relaxed": (
        lambda: dist.RelaxedOneHotCategorical(
            torch.tensor(0.7), logits=torch.tensor([0.0, 0.5, 1.0])
        ),
        relaxed_density,
    ),
    "sticks": (of_sticks, sticks_density),
    "gamma": (lambda: RandomWeights(GammaDirichlet(K, 2.0, 3.0)), gamma_density),
}
GUIDES: dict[str, Callable[[FlowMixture], Any]] = {
    "softmax": lambda model: SoftmaxGuide(MLP(2, K, hidden=(4,))),
    "none": lambda model: None,
    "AutoNormal": lambda model: AutoNormal(poutine.block(model, hide=["c"])),
}


def brute_force(vmonf: VMoNF, density: Density, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The ELBO of the draws of the guide, with the sum over c written out."""
    with local_seed(3):
        nodes = poutine.trace(vmonf.guide).get_trace(**arguments).nodes
    drawn = {n: s["value"] for n, s in nodes.items() if s["type"] == "sample" and n != "data"}
    log_q = 0.0
    for name, site in nodes.items():
        if site["type"] == "sample" and name not in ("c", "data"):
            log_q = log_q + site["fn"].log_prob(site["value"]).sum()
    joint = drawn["weights"].log() + vmonf.model.components().log_prob(x.unsqueeze(-2))
    if "c" in nodes:
        q = vmonf.guide.log_q(x).exp()
        each = sum(q[:, c] * (joint[:, c] - q[:, c].log()) for c in range(K))
    else:
        each = joint.exp().sum(-1).log()
    return each.sum() + density(drawn) - log_q


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_elbo_and_gradient_are_those_of_the_sum(prior: str, guide: str) -> None:
    make, density = PRIORS[prior]
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(2, K), make())
    vmonf = VMoNF(model, GUIDES[guide](model))
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = rows()
    arguments = {"x": x}
    vmonf.guide.build_(model, arguments)
    objective = Objective(vmonf.model, vmonf.guide)
    objective.prepare_(arguments)
    with local_seed(3):
        value = torch.stack(list(objective(**arguments).values())).sum()
    expected = brute_force(vmonf, density, x, arguments)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    parameters = list(vmonf.parameters())
    mine = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    moved = 0
    for one, two in zip(mine, theirs, strict=True):
        assert (one is None or not one.any()) == (two is None or not two.any())
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
            moved += bool(one.any())
    assert moved >= 4


BY_CONTEXT: dict[str, Callable[[], Any]] = {
    "group": lambda: GroupWeights(2, K, "gradient"),
    "gated": lambda: GatedWeights(torch.nn.Linear(1, K), K),
}
WITH_CONTEXT: dict[str, Callable[[], Any]] = {
    "softmax": lambda: SoftmaxGuide(MLP(3, K, hidden=(4,))),
    "exact": ExactGuide,
    "none": lambda: None,
}


@pytest.mark.parametrize("guide", WITH_CONTEXT)
@pytest.mark.parametrize("weights", BY_CONTEXT)
def test_weights_of_each_row_have_the_sum_written_out(weights: str, guide: str) -> None:
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(2, K), BY_CONTEXT[weights](), context_features=1)
    vmonf = VMoNF(model, WITH_CONTEXT[guide]())
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, given = rows(), (torch.arange(N) % 2.0).unsqueeze(-1).double()
    arguments = {"x": x, "given": given}
    objective = Objective(model, vmonf.guide)
    objective.prepare_(arguments)
    value = torch.stack(list(objective(**arguments).values())).sum()
    normals = td.MultivariateNormal(model.bank.loc, scale_tril=model.bank.scale_tril())  # type: ignore[operator, union-attr]
    of_weights = model.weights
    logits = of_weights.logits[given[:, 0].long()] if weights == "group" else None
    logits = of_weights.network(given) if logits is None else logits  # type: ignore[operator]
    joint = logits - logits.logsumexp(-1, keepdim=True) + normals.log_prob(x.unsqueeze(-2))
    expected = joint.exp().sum(-1).log().sum()
    if guide == "softmax":
        scores = vmonf.guide.network(torch.cat((x, given), -1))  # type: ignore[operator, union-attr]
        q = scores.exp() / scores.exp().sum(-1, keepdim=True)
        expected = (q * (joint - q.log())).sum()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    parameters = list(vmonf.parameters())
    mine = torch.autograd.grad(value, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for one, two in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
        assert one.any()


@pytest.mark.parametrize("prior", ["mixture of Dirichlets", "gamma", "logistic normal"])
def test_pairs_with_them_are_fitted_and_saved(prior: str, tmp_path: Path) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, K), PRIORS[prior][0]()), SoftmaxGuide(MLP(2, K)))
    twin = copy.deepcopy(vmonf)
    vmonf.fit(rows(), epochs=2, n_init=2, progress=False, seed=0, start=lambda *_: None)
    if prior in ("mixture of Dirichlets", "gamma"):
        vmonf.save(tmp_path / "pair")
        loaded = VMoNF.load(tmp_path / "pair")
    else:
        with pytest.warns(UserWarning, match="into=vmonf"):
            vmonf.save(tmp_path / "pair")
        loaded = VMoNF.load(tmp_path / "pair", into=twin)
    assert torch.equal(loaded.log_prob(rows()), vmonf.log_prob(rows()))
    assert float(vmonf.model.weights.log_mean().exp().sum().detach()) == pytest.approx(1.0)


def test_priors_without_a_density_on_the_simplex_are_refused() -> None:
    softmax = dist.TransformedDistribution(
        dist.Normal(torch.zeros(K), 1.0).to_event(1), [td.SoftmaxTransform()]
    )
    with pytest.raises(ValueError, match="take StickBreakingTransform, of K - 1 numbers"):
        FlowMixture(Gaussian(2, K), softmax)
    for wrong in (dist.OneHotCategorical(torch.ones(K)), dist.Normal(torch.zeros(K), 1.0)):
        with pytest.raises(ValueError, match="expected a distribution on the simplex"):
            FlowMixture(Gaussian(2, K), wrong)


@pytest.mark.parametrize("options", [{}, {"compile": True}, {"fast": False}, {"n_init": 2}])
def test_weights_of_groups_end_at_the_frequencies_of_their_rows(options: dict[str, Any]) -> None:
    """At the defaults, however far the frequencies are from equal ones; a group may have no row."""
    draw = torch.Generator().manual_seed(0)
    probs = torch.tensor([[0.9, 0.09, 0.01], [0.1, 0.2, 0.7], [1.0, 1.0, 1.0]])
    group = torch.randint(2, (1200, 1), generator=draw)
    c = torch.multinomial(probs[group[:, 0]], 1, generator=draw)[:, 0]
    x = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])[c]
    x = x + torch.randn(x.shape, generator=draw)
    model = FlowMixture(Gaussian(2, K), GroupWeights(3, K), context_features=1)
    vmonf = VMoNF(model)
    size = 1200 if options.get("compile") else 256
    vmonf.fit(
        x, c, given=group.float(), epochs=4, batch_size=size, progress=False, seed=0, **options
    )
    found = model.weights(torch.arange(3.0).unsqueeze(-1)).exp().detach()
    rows = torch.stack([torch.bincount(c[group[:, 0] == g], minlength=K) for g in range(2)])
    exact = rows / rows.sum(-1, keepdim=True)
    torch.testing.assert_close(found[:2], exact, rtol=0, atol=0.02)
    torch.testing.assert_close(found[2], torch.full((K,), 1 / K))


def test_a_step_of_em_for_weights_of_groups_is_exact() -> None:
    weights = GroupWeights(2, K, pseudo_count=0.5).double()
    q = torch.rand(7, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = q / q.sum(-1, keepdim=True)
    weight = torch.arange(1.0, 8.0, dtype=torch.float64)
    group = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    weights.update_given_(group.unsqueeze(-1).double(), q.log, weight, 1.0)
    for g in range(2):
        total = (weight.unsqueeze(-1) * q)[group == g].sum(0) + 0.5
        found = weights(torch.tensor([[float(g)]], dtype=torch.float64)).exp()[0]
        torch.testing.assert_close(found.detach(), total / total.sum(), rtol=1e-12, atol=0)


def test_groups_share_components_and_have_weights_of_their_own() -> None:
    """With fixed components each group ends at the mixture weights of its own rows, as EM does."""
    loc = torch.tensor([[-4.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    counts = torch.tensor([[6, 3, 1], [1, 1, 8]])
    c = torch.cat([torch.arange(K).repeat_interleave(n) for n in counts])
    group = torch.arange(2.0).repeat_interleave(counts.sum(1)).unsqueeze(-1)
    x = loc[c] + 0.01 * torch.randn(len(c), 2, generator=torch.Generator().manual_seed(0))
    components = dist.Normal(loc, 0.5).to_event(1)
    model = FlowMixture(components, GroupWeights(2, K), context_features=1)
    vmonf = VMoNF(model)
    options: dict[str, Any] = {"standardize": False, "progress": False, "lr": 0.2, "seed": 0}
    vmonf.fit(x, given=group, epochs=150, **options)
    expected = counts / counts.sum(1, keepdim=True)
    torch.testing.assert_close(
        model.weights(torch.tensor([[0.0], [1.0]])).exp().detach(),
        expected.double(),
        rtol=0,
        atol=2e-3,
    )
    joint = model.weights(group) + components.log_prob(x.unsqueeze(1))
    torch.testing.assert_close(vmonf.log_prob(x, given=group), joint.logsumexp(-1).detach())
    for wrong in (torch.full((20, 1), 2.0), torch.full((20, 1), 0.5)):
        with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
            vmonf.log_prob(x, given=wrong)
    with pytest.raises(ValueError, match="pass given="):
        model.weights()
