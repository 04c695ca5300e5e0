"""``fit(loss=…)``: the objectives of Pyro, and the importance-weighted one, by exact oracles."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    JitTraceEnum_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTMC_ELBO,
)
from pyro.optim import SGD
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Confidence
from pyro_vmonf.training.losses import ImportanceWeightedELBO
from pyro_vmonf.training.objective import Objective

pytestmark = pytest.mark.usefixtures("float64")
N, K = 6, 2


def rows() -> Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


def pair(guide: Any = None, random: bool = True) -> VMoNF:
    torch.manual_seed(0)
    prior = dist.Dirichlet(torch.tensor([2.0, 3.0])) if random else "uniform"
    return VMoNF(FlowMixture(Gaussian(2, K), prior), guide)


def log_evidence(vmonf: VMoNF) -> float:
    """log p(x) with the weight integrated out on a grid."""
    share = (torch.arange(20_000) + 0.5) / 20_000
    log_pi = torch.stack((share, 1 - share), -1).log()
    joint = (vmonf.component_log_prob(rows()).unsqueeze(1) + log_pi).logsumexp(-1).sum(0)
    prior = dist.Beta(2.0, 3.0).log_prob(share)
    return float((joint + prior).logsumexp(0)) - math.log(20_000)


def objective(vmonf: VMoNF, loss: Any, **arguments: Any) -> Tensor:
    made = Objective(vmonf.model, vmonf.guide, loss=loss)
    made.prepare_({"x": rows(), **arguments})
    with local_seed(3):
        return torch.stack(list(made(x=rows(), **arguments).values())).sum()


def gradients(vmonf: VMoNF, value: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(value, list(vmonf.parameters()), allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(vmonf.parameters(), found, strict=True)
    ]


def test_importance_weights_are_the_mean_of_single_ones() -> None:
    """Value and gradient are those of the log-mean of single ELBOs with the same draws."""
    vmonf = pair().eval()
    single = TraceEnum_ELBO(max_plate_nesting=1)
    value = objective(vmonf, ImportanceWeightedELBO(5))
    with local_seed(3):
        parts = [-single.differentiable_loss(vmonf.model, vmonf.guide, rows()) for _ in range(5)]
    expected = torch.stack(parts).logsumexp(0) - math.log(5)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for one, two in zip(gradients(vmonf, value), gradients(vmonf, expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_importance_weights_average_to_the_evidence() -> None:
    vmonf = pair().eval()
    loss = ImportanceWeightedELBO(1, max_plate_nesting=1)
    found = [-loss.loss(vmonf.model, vmonf.guide, rows()) for _ in range(60)]
    weights = (torch.tensor(found) - log_evidence(vmonf)).exp()
    assert (weights.mean() - 1).abs() < 4 * weights.std() / len(weights) ** 0.5
    assert weights.std() > 0.01
    exact = pair(random=False)
    found = objective(exact, ImportanceWeightedELBO(3)).detach()
    torch.testing.assert_close(found, exact.log_prob(rows()).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:(?s).*If you want to enumerate sites")
def test_pyros_objectives_are_those_of_svi() -> None:
    """A step of plain SGD by ``fit`` is that of ``SVI`` with the same objective and draws."""
    for loss in (Trace_ELBO(num_particles=2), RenyiELBO(alpha=0.0, num_particles=3)):
        vmonf = pair(SoftmaxGuide(MLP(2, K, hidden=(3,))), random=False)
        value = objective(vmonf, loss)
        mine = gradients(vmonf, value)
        loss.max_plate_nesting = 1
        before = [p.detach().clone() for p in vmonf.parameters()]
        svi = SVI(vmonf.model, vmonf.guide, SGD({"lr": 1.0}), loss)
        with local_seed(3):
            assert -svi.step(rows()) == pytest.approx(float(value.detach()), rel=1e-12)
        for p, old, g in zip(vmonf.parameters(), before, mine, strict=True):
            torch.testing.assert_close(p.detach() - old, g, rtol=1e-10, atol=1e-10)
        assert sum(bool(g.any()) for g in mine) >= 3


def test_fit_takes_them() -> None:
    drawn = pair(SoftmaxGuide(MLP(2, K, hidden=(3,))), random=False)
    for loss in (TraceEnum_ELBO(), TraceEnum_ELBO(num_particles=2), Trace_ELBO(), RenyiELBO(0.5)):
        options: dict[str, Any] = {"epochs": 2, "progress": False, "seed": 0, "held_out": 0.4}
        history = drawn.fit(rows(), loss=loss, **options)
        assert history.road == f"{type(loss).__name__}: asked for by loss="
        assert len(history.held_out) == 2
    plain = drawn.fit(rows(), loss=TraceEnum_ELBO(), epochs=1, progress=False)
    assert "log_likelihood" in plain.terms
    assert list(drawn.fit(rows(), loss=Trace_ELBO(), epochs=1, progress=False).terms) == [
        "objective"
    ]


WRONG: dict[str, tuple[Any, Any, bool, type[Exception], str]] = {
    "no guide of c": (Trace_ELBO(), None, True, ValueError, "Trace_ELBO does not sum over 'c'"),
    "no guide of c, Renyi": (RenyiELBO(), None, False, ValueError, "a guide that draws 'c'"),
    "a class": (TraceEnum_ELBO, None, True, TypeError, "expected an instance of an ELBO"),
    "a compiler": (JitTraceEnum_ELBO(), None, True, TypeError, "none that compiles"),
    "two losses": (ReweightedWakeSleep(), "softmax", False, TypeError, "steps of pyro.infer.SVI"),
    "mean field": (TraceMeanField_ELBO(), "softmax", False, ValueError, "does not take this"),
    "weighted c": (
        ImportanceWeightedELBO(2),
        "softmax",
        False,
        ValueError,
        "leave it to the",
    ),
    "weighted parts": (ImportanceWeightedELBO(2), None, True, ValueError, r"batch_size=len\(x\)"),
    "parts, Renyi": (RenyiELBO(), "softmax", False, ValueError, "'c' counts 2 times"),
    "parts, TMC": (TraceTMC_ELBO(), "softmax", False, ValueError, "'c' counts 2 times"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_bounds_nothing_is_refused(name: str) -> None:
    loss, guide, random, kind, message = WRONG[name]
    vmonf = pair(SoftmaxGuide(MLP(2, K)) if guide else None, random)
    before = [p.detach().clone() for p in vmonf.parameters()]
    with pytest.raises(kind, match=message):
        vmonf.fit(rows(), loss=loss, epochs=1, batch_size=3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, vmonf.parameters(), strict=True))


WHOLE: dict[str, Any] = {"epochs": 1, "progress": False, "seed": 0}


def test_tensor_monte_carlo_is_the_likelihood_and_takes_no_terms() -> None:
    """With c enumerated in the guide its sum is log p(x), whatever the guide is."""
    drawn = pair(SoftmaxGuide(MLP(2, K, hidden=(3,))), random=False)
    found = objective(drawn, TraceTMC_ELBO()).detach()
    torch.testing.assert_close(found, drawn.log_prob(rows()).sum(), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="Confidence would not count"):
        pair(SoftmaxGuide(MLP(2, K), [Confidence()]), False).fit(
            rows(), loss=TraceTMC_ELBO(), **WHOLE
        )
    for loss, options in (
        (TraceTMC_ELBO(), {"y": torch.arange(N) % K}),
        (TraceTMC_ELBO(), {"sample_weight": torch.rand(N)}),
        (RenyiELBO(), {"sample_weight": 2 * torch.ones(N)}),
    ):
        with pytest.raises(ValueError, match="TraceEnum_ELBO"):
            drawn.fit(rows(), loss=loss, **options, **WHOLE)


@pytest.mark.parametrize("held_out", [0.5, 0.7])
@pytest.mark.parametrize("kind", [ImportanceWeightedELBO, TraceTMC_ELBO])
def test_measured_rows_of_a_sum_of_weights_are_data_of_their_own(
    kind: type, held_out: float
) -> None:
    """Without random weights both objectives are log p of the held-out rows, to the last digit."""
    vmonf = pair(None if kind is ImportanceWeightedELBO else SoftmaxGuide(MLP(2, K)), False)
    held = torch.arange(round(held_out * N))
    history = vmonf.fit(rows(), loss=kind(), held_out=held, lr=1e-12, keep="last", **WHOLE)
    exact = float(vmonf.log_prob(rows()[held]).mean())
    assert history.held_out[0] == pytest.approx(exact, rel=1e-9)


def test_importance_weights_choose_between_starts() -> None:
    history = pair().fit(rows(), loss=ImportanceWeightedELBO(2), n_init=2, **WHOLE)
    assert len(history.objective) == 1


@pytest.mark.filterwarnings("ignore:(?s).*If you want to enumerate sites")
@pytest.mark.parametrize("loss", [TraceEnum_ELBO, Trace_ELBO, RenyiELBO, TraceTMC_ELBO])
def test_particles_of_one_pass(loss: type) -> None:
    drawn = pair(SoftmaxGuide(MLP(2, K, hidden=(3,))), random=False)
    many = {"num_particles": 400, "vectorize_particles": True}
    value = float(objective(drawn, loss(**many)).detach())
    exact, bound = (float(v.sum()) for v in (drawn.log_prob(rows()), drawn.elbo(rows())))
    if loss is TraceEnum_ELBO:
        assert value == pytest.approx(bound, rel=1e-12)
    elif loss is Trace_ELBO:
        assert value == pytest.approx(bound, abs=1.0)
    else:  # the logarithm of a mean of weights
        assert bound - 0.5 < value < exact + 0.5
    history = drawn.fit(rows(), loss=loss(num_particles=2, vectorize_particles=True), **WHOLE)
    assert history.road == f"{loss.__name__}: asked for by loss="


def test_particles_of_one_pass_have_no_weights_of_their_own() -> None:
    with pytest.raises(ValueError, match="leave it out"):
        ImportanceWeightedELBO(2, vectorize_particles=True)


@pytest.mark.parametrize("held_out", [0.6, 0.8])
def test_more_rows_may_be_held_out_than_train(held_out: float) -> None:
    """The long road has the objective of the short one, in parts that fit the rows that train."""
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    found = []
    for fast in (True, False):
        torch.manual_seed(0)
        vmonf = VMoNF(FlowMixture(Gaussian(2, K), "learned"))
        vmonf.fit(x, held_out=held_out, fast=fast, **WHOLE)
        found.append(vmonf.history.held_out)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    random = pair()
    random.fit(x, held_out=held_out, **WHOLE)
    rest = random.history.held_out[0]
    assert math.isfinite(rest)
