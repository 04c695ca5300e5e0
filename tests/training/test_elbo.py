"""The Pyro program against brute-force sums over c, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.distributions import Dirichlet
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_vmonf import (
    FlowMixture,
    LearnedWeights,
    MarginalGuide,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Batch, Classification, Term
from pyro_vmonf.training.objective import EnumeratedELBO
from pyro_vmonf.weight_priors import DirichletPosterior

K, N, B, D = 3, 11, 7, 2
CONCENTRATION = torch.tensor([0.7, 1.5, 2.0], dtype=torch.float64)

pytestmark = pytest.mark.usefixtures("float64")

WEIGHTS: dict[str, Callable[[], object]] = {
    "fixed": lambda: torch.tensor([0.2, 0.3, 0.5]),
    "learned": lambda: LearnedWeights(K, "gradient"),
    "random": lambda: RandomWeights(CONCENTRATION, DirichletPosterior(CONCENTRATION, "gradient")),
}
EVIDENCE: dict[str, Callable[[], Tensor | None]] = {
    "unlabelled": lambda: None,
    "labelled": lambda: torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    "mixed": lambda: torch.tensor([0, -1, 2, -1, -1, 1, -1]),
    "noisy": lambda: torch.randn(B, K),
    "partial": lambda: torch.randn(B, K).masked_fill(torch.eye(B, K).bool(), -torch.inf),
}


def make(weights: object, temperature: float = 1.0, terms: list[Term] | None = None) -> VMoNF:
    model = FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), weights)
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D, K, hidden=(5,)), terms, temperature=temperature))
    with torch.no_grad():  # away from the symmetric start
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vmonf


def evidence_of(y: Tensor | None) -> Tensor:
    """Log p(y|c) row by row, written out."""
    result = torch.zeros(B, K)
    if y is None:
        return result
    if y.is_floating_point():
        return y
    for row, label in enumerate(y.tolist()):
        for c in range(K):
            if label >= 0 and c != label:
                result[row, c] = -torch.inf
    return result


def log_weights(vmonf: VMoNF, seed: int) -> tuple[Tensor, Tensor]:
    """Log π and what a random π adds to the ELBO: log p(π) − log q(π)."""
    weights = vmonf.model.weights
    if not isinstance(weights, RandomWeights):
        return weights(), torch.zeros(())
    posterior = Dirichlet(weights.posterior.log_concentration.exp())
    with local_seed(seed):
        drawn = posterior.rsample()
    prior = weights.prior()
    return drawn.log(), prior.log_prob(drawn) - posterior.log_prob(drawn)


def brute_force(vmonf: VMoNF, x: Tensor, y: Tensor | None, alpha: float, seed: int = 5) -> Tensor:
    """The negative ELBO of the guide's pair, summed over c one by one."""
    log_pi, from_weights = log_weights(vmonf, seed)
    log_network = (vmonf.guide.network(x) / vmonf.guide.temperature).log_softmax(-1)
    evidence = evidence_of(y)
    log_q = log_network + evidence
    log_q = log_q - log_q.exp().sum(-1, keepdim=True).log()
    log_x = vmonf.model.bank().log_prob(x.unsqueeze(1))
    elbo = torch.zeros(())
    for row, c in itertools.product(range(B), range(K)):
        if evidence[row, c] > -torch.inf:
            joint = log_pi[c] + log_x[row, c] + evidence[row, c]
            elbo = elbo + log_q[row, c].exp() * (joint - log_q[row, c])
    relative = evidence - evidence.amax(-1, keepdim=True)
    labelled = (log_network.exp() * relative.exp()).sum(-1).log()
    return -(N / B) * (elbo + alpha * labelled.sum()) - from_weights


def agree(vmonf: VMoNF, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    parameters = dict(vmonf.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    wanted = torch.autograd.grad(expected, list(parameters.values()), allow_unused=True)
    for name, one, other in zip(parameters, found, wanted, strict=True):
        one = torch.zeros(()) if one is None else one
        other = torch.zeros_like(one) if other is None else other
        assert one.expand_as(other).allclose(other, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_elbo_equals_the_sum_over_c(
    weights: str, evidence: str, temperature: float, alpha: float
) -> None:
    vmonf = make(WEIGHTS[weights](), temperature, [Classification(weight=alpha)] if alpha else [])
    x, y, index = torch.randn(B, D), EVIDENCE[evidence](), torch.randperm(N)[:B]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)
    with local_seed(5):
        loss = elbo(x, y, index=index, size=N)
    agree(vmonf, loss, brute_force(vmonf, x, y, alpha))


@pytest.mark.parametrize("evidence", EVIDENCE)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_without_a_guide_c_is_summed_out(weights: str, evidence: str) -> None:
    vmonf = make(WEIGHTS[weights]())
    guide = MarginalGuide(vmonf.model)
    x, y, index = torch.randn(B, D), EVIDENCE[evidence](), torch.randperm(N)[:B]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, guide)
    with local_seed(5):
        loss = elbo(x, y, index=index, size=N)
    log_pi, from_weights = log_weights(vmonf, 5)
    joint = log_pi + vmonf.model.bank().log_prob(x.unsqueeze(1)) + evidence_of(y)
    agree(vmonf, loss, -(N / B) * joint.exp().sum(-1).log().sum() - from_weights)


def test_row_weights_weigh_rows() -> None:
    vmonf = make(LearnedWeights(K, "gradient"))
    x, y = torch.randn(B, D), EVIDENCE["mixed"]()
    weight = torch.rand(B)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)
    rows = [elbo(x[i : i + 1], y[i : i + 1]) for i in range(B)]
    agree(vmonf, elbo(x, y, sample_weight=weight), sum(w * r for w, r in zip(weight, rows)))  # noqa: B905


def test_mean_of_minibatches_is_the_whole() -> None:
    vmonf = make(LearnedWeights(K, "gradient"))
    x = torch.randn(12, D)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)
    parts = [elbo(x[i], index=i, size=12) for i in torch.arange(12).split(4)]
    agree(vmonf, sum(parts) / 3, elbo(x))


class RowNorm(Term):
    def forward(self, batch: Batch) -> Tensor:
        return batch.log_q.square().sum(-1)


class BatchNorm(Term):
    def forward(self, batch: Batch) -> Tensor:
        return batch.log_q.exp().mean(-2, keepdim=True).square().sum(-1)


@pytest.mark.parametrize("term", [RowNorm, BatchNorm])
def test_terms_count_once_a_row(term: type[Term]) -> None:
    paying = make(LearnedWeights(K, "gradient"), terms=[term(weight=0.7)])
    free = SoftmaxGuide(paying.guide.network, [], model=paying.model)
    x, index = torch.randn(B, D), torch.randperm(N)[:B]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    loss = elbo(paying.model, paying.guide)(x, index=index, size=N)
    batch = Batch(paying.guide, x, paying.guide.log_q(x), None, index)
    penalty = term(weight=1.0)(batch).expand(B).sum()
    agree(paying, loss, elbo(paying.model, free)(x, index=index, size=N) + 0.7 * N / B * penalty)


def test_a_callable_is_a_term() -> None:
    vmonf = make(LearnedWeights(K, "gradient"), terms=[lambda batch: batch.x.square().sum(-1)])  # type: ignore[list-item]
    free = SoftmaxGuide(vmonf.guide.network, [], model=vmonf.model)
    x = torch.randn(B, D)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    gap = elbo(vmonf.model, vmonf.guide)(x) - elbo(vmonf.model, free)(x)
    torch.testing.assert_close(gap, x.square().sum())


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("evidence", ["unlabelled", "mixed", "noisy"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_terms_are_those_of_the_enumerated_elbo(
    weights: str, evidence: str, guided: bool
) -> None:
    """Value and gradient of ``TraceEnum_ELBO``, whose random weights are drawn alike."""
    vmonf = make(WEIGHTS[weights]())
    guide = vmonf.guide if guided else MarginalGuide(vmonf.model)
    x, y, index = torch.randn(B, D), EVIDENCE[evidence](), torch.randperm(N)[:B]
    options = {"y": y, "index": index, "size": N}
    found, wanted = [], []
    for kind, results in ((EnumeratedELBO, found), (TraceEnum_ELBO, wanted)):
        module = kind(max_plate_nesting=1)(vmonf.model, guide)
        with local_seed(3):
            loss = module(x, **options)
        parameters = list(dict.fromkeys(module.parameters()))
        results += [loss, *torch.autograd.grad(loss, parameters, allow_unused=True)]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    terms = EnumeratedELBO(max_plate_nesting=1).terms(vmonf.model, guide, x, **options)
    assert {"log_likelihood", "log_prior", "entropy"} <= terms.keys()


def test_svi_and_the_elbo_module_train_alike() -> None:
    x, y = torch.randn(40, D), torch.randint(-1, K, (40,))
    one, other = make(LearnedWeights(K, "gradient")), make(LearnedWeights(K, "gradient"))
    other.load_state_dict(one.state_dict())
    module = TraceEnum_ELBO(max_plate_nesting=1)(one.model, one.guide)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    svi = SVI(
        other.model, other.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    for _ in range(5):
        optimizer.zero_grad()
        loss = module(x, y)
        loss.backward()
        optimizer.step()
        assert svi.step(x, y) == pytest.approx(loss.item(), rel=1e-12)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_second_instance_trains_under_the_elbo_module(weights: str) -> None:
    x = torch.randn(30, D)
    for _ in range(2):
        vmonf = make(WEIGHTS[weights]())
        before = {name: p.detach().clone() for name, p in vmonf.named_parameters()}
        loss = TraceEnum_ELBO()(vmonf.model, vmonf.guide)
        optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
        for name, parameter in vmonf.named_parameters():
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_second_instance_trains_under_svi(weights: str) -> None:
    x = torch.randn(30, D)
    for _ in range(2):  # the same names, without clearing the param store in between
        vmonf = make(WEIGHTS[weights]())
        before = {name: p.detach().clone() for name, p in vmonf.named_parameters()}
        svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO())
        for _ in range(3):
            svi.step(x)
        for name, parameter in vmonf.named_parameters():
            assert not torch.equal(parameter, before[name]), name
