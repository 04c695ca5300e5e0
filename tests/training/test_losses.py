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
)
from pyro.optim import SGD
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.nn import MLP
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
}


@pytest.mark.parametrize("name", WRONG)
def test_what_bounds_nothing_is_refused(name: str) -> None:
    loss, guide, random, kind, message = WRONG[name]
    vmonf = pair(SoftmaxGuide(MLP(2, K)) if guide else None, random)
    before = [p.detach().clone() for p in vmonf.parameters()]
    with pytest.raises(kind, match=message):
        vmonf.fit(rows(), loss=loss, epochs=1, batch_size=3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, vmonf.parameters(), strict=True))
