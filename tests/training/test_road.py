"""The objective of a fit: the short road, or TraceEnum_ELBO on the whole program."""

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    MarginalGuide,
    RealNVP,
    SoftmaxGuide,
    TrainingLoss,
    VMoNF,
    select,
)
from pyro_vmonf.nn import MLP
from pyro_vmonf.program import contracted
from pyro_vmonf.terms import Balance, Classification, Confidence
from pyro_vmonf.training import objective
from pyro_vmonf.training.callbacks import Progress
from pyro_vmonf.training.direct import direct_terms, is_plain
from pyro_vmonf.training.objective import (
    EnumeratedELBO,
    Objective,
    OtherProgram,
    max_plate_nesting,
)

K, N = 2, 60
X = torch.cat((torch.randn(N // 2, 2), torch.randn(N // 2, 2) + 4)).double()
T = torch.randn(N).double()
ENUMERATE: dict[str, Any] = {"infer": {"enumerate": "parallel"}}


class Program(FlowMixture):
    """A mixture with more sites in its plate."""

    nesting = 1

    def forward(self, x: Any = None, y: Any = None, *, index: Any = None, **_: Any) -> Any:
        components, log_weights = self.components(), self.weights()
        t = T if index is None else T[index]
        self.outside()
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=log_weights), **ENUMERATE)
            self.inside(c, x, t, components)

    def outside(self) -> None:
        pass

    def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
        raise NotImplementedError


class Outlier(Program):
    def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
        o = pyro.sample("o", dist.Bernoulli(torch.tensor(0.2).to(x)), **ENUMERATE)
        pyro.sample("x", select(components, c), obs=x)
        pyro.sample("t", dist.Normal(6.0 * o, torch.ones_like(t)), obs=t)


class Repeats(Program):
    nesting = 2

    def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
        with pyro.plate("repeats", 3, dim=-2):
            pyro.sample("x", select(components, c), obs=torch.stack((x, x + 1, x.roll(1, 1))))


class Gaps(Program):
    def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
        pyro.sample("x", select(components, c), obs=x)
        with poutine.mask(mask=t > 0):
            pyro.sample("t", dist.Normal(3.0 * c.to(x), torch.ones_like(t)), obs=t)


class Extra(Program):
    """A further observation, which one sum over c still contains."""

    def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
        pyro.sample("x", select(components, c), obs=x)
        pyro.sample("t", dist.Normal(3.0 * c.to(x), torch.ones_like(t)), obs=t)


# For each program, whether the short road is the same with a guide, and without one.
PROGRAMS = {
    Outlier: (False, False),
    Repeats: (True, False),
    Gaps: (True, False),
    Extra: (True, True),
}


def pair(program: type[FlowMixture], guide: Any) -> VMoNF:
    torch.manual_seed(0)
    vmonf = VMoNF(program(Gaussian(2, K), "learned"), guide).double()
    vmonf.model.standardize_(X)
    return vmonf


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_fit_has_the_value_and_the_step_of_pyro(program: type[Program], guided: bool) -> None:
    guide = SoftmaxGuide(MLP(2, K)) if guided else None
    vmonf, written = pair(program, guide), None
    loss = TraceEnum_ELBO(max_plate_nesting=program.nesting)
    written = pair(program, SoftmaxGuide(MLP(2, K)) if guided else None)
    written.load_state_dict(vmonf.state_dict())
    expected = loss.differentiable_loss(written.model, written.guide, X) / N
    expected.backward()
    with torch.no_grad():
        for p in written.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad
    history = vmonf.fit(
        X,
        steps=1,
        batch_size=N,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        temperature=1.0 if guided else None,
        seed=0,
        progress=False,
    )
    assert history.elbo[0] == pytest.approx(-expected.item(), rel=1e-9)
    assert sum(values[0] for values in history.terms.values()) == pytest.approx(history.elbo[0])
    short = PROGRAMS[program][0 if guided else 1]
    assert (history.road == "short") == short, history.road
    for name, value in written.named_parameters():
        torch.testing.assert_close(
            dict(vmonf.named_parameters())[name], value, rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("guide", ["softmax", "exact", "none"])
@pytest.mark.parametrize("weights", ["uniform", "learned", "dirichlet"])
def test_both_roads_have_the_same_terms_and_end_in_the_same_state(guide: str, weights: str) -> None:
    y = torch.tensor([0, 1, -1] * (N // 3))
    found = []
    for fast in (True, False):
        torch.manual_seed(1)
        prior: Any = dist.Dirichlet(torch.ones(K)) if weights == "dirichlet" else weights
        made = {
            "softmax": lambda: SoftmaxGuide(
                MLP(2, K), [Classification(), Balance(weight=0.5), Confidence()]
            ),
            "exact": ExactGuide,
            "none": lambda: None,
        }[guide]()
        vmonf = VMoNF(FlowMixture(RealNVP(2, K, blocks=2, hidden=(4,)), prior), made).double()
        history = vmonf.fit(X, y, epochs=3, batch_size=20, seed=0, fast=fast, progress=False)
        found.append((vmonf.state_dict(), history))
    (state, short), (other, long) = found
    assert short.road == "short"
    assert long.road == "TraceEnum_ELBO: asked for by fast=False"
    assert short.terms.keys() == long.terms.keys()
    for name, values in short.terms.items():
        assert values == pytest.approx(long.terms[name], rel=1e-6, abs=1e-8)
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], rtol=1e-6, atol=1e-8)


def test_parts_of_a_program_are_expected_log_densities() -> None:
    """Against sums written out, for a program with two enumerated latents."""
    vmonf = pair(Outlier, None)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    total, parts = contracted(elbo, vmonf.model, vmonf.guide, {"x": X})
    log_pi = vmonf.model.weights()
    log_x = vmonf.model.components().log_prob(X.unsqueeze(1))
    posterior_c = (log_pi + log_x).softmax(-1)
    o = torch.tensor([0.0, 1.0]).double()
    log_o = torch.tensor([0.8, 0.2]).double().log()
    log_t = dist.Normal(6 * o, torch.ones(2).double()).log_prob(T.unsqueeze(-1))
    posterior_o = (log_o + log_t).softmax(-1)
    expected = {
        "c": (posterior_c * log_pi).sum(),
        "x": (posterior_c * log_x).sum(),
        "o": (posterior_o * log_o).sum(),
        "t": (posterior_o * log_t).sum(),
    }
    for name, _, sign, value in parts:
        assert sign == 1
        torch.testing.assert_close(value.detach(), expected[name].detach(), rtol=1e-6, atol=1e-6)
    exact = (log_pi + log_x).logsumexp(-1).sum() + (log_o + log_t).logsumexp(-1).sum()
    torch.testing.assert_close(total.detach(), exact.detach(), rtol=1e-6, atol=1e-6)


def test_a_latent_without_a_posterior_is_refused() -> None:
    class Loose(Program):
        def outside(self) -> None:
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))

        def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
            pyro.sample("x", select(components, c), obs=x)

    vmonf = pair(Loose, None)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="draws 'scale', which the guide does not draw"):
        vmonf.fit(X, epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())


def test_a_program_that_pyro_refuses_is_refused_and_left_alone() -> None:
    class Switch(Program):
        def outside(self) -> None:
            self.s = pyro.sample("s", dist.Bernoulli(torch.tensor(0.5)), **ENUMERATE)

        def inside(self, c: Tensor, x: Tensor, t: Tensor, components: Any) -> None:
            pyro.sample("x", select(components, c), obs=x)
            pyro.sample("t", dist.Normal(2.0 * self.s, torch.ones_like(t)), obs=t)

    torch.manual_seed(0)
    vmonf = VMoNF(Switch(Gaussian(2, K)), SoftmaxGuide(MLP(2, K))).double()
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="more global than guide enumeration"):
        vmonf.fit(X, epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())


def test_the_reason_for_the_long_road_is_in_the_objective() -> None:
    vmonf = pair(Outlier, None)
    nesting = max_plate_nesting(vmonf.model, vmonf.guide, x=X)
    assert Objective(vmonf.model, vmonf.guide, nesting).road == "short"
    history = vmonf.fit(X, epochs=1, progress=False)
    assert history.road == "TraceEnum_ELBO: 2 sites are enumerated: one is expected"


def test_the_best_of_the_measured_states_stays_and_the_start_is_one_of_them() -> None:
    """With steps that only lead away, the state before training stays."""
    torch.manual_seed(0)
    vmonf = pair(FlowMixture, SoftmaxGuide(MLP(2, K)))
    vmonf.fit(X, epochs=30, lr=1e-2, batch_size=N, temperature=1.0, seed=0, progress=False)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    options: dict[str, Any] = {"lr": 3.0, "temperature": 1.0, "seed": 0, "progress": False}
    history = vmonf.fit(X, epochs=2, keep="best", **options)
    assert history.kept is None
    assert history.final_objective == history.start
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())
    held = vmonf.fit(X, epochs=2, held_out=0.2, **options)
    assert held.kept is None, "the best stays by default where rows are held out"
    held = vmonf.fit(X, epochs=2, held_out=0.2, keep="last", **options)
    assert held.kept == -1
    assert math.isfinite(held.final_objective)


def test_a_last_step_into_nowhere_is_taken_back() -> None:
    vmonf = pair(FlowMixture, SoftmaxGuide(MLP(2, K)))
    before = {name: value.clone() for name, value in vmonf.named_parameters()}
    with pytest.warns(RuntimeWarning, match="objective is not finite; the state before"):
        history = vmonf.fit(
            X,
            steps=1,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e200),
            progress=False,
        )
    assert history.stepped_back
    assert all(torch.equal(value, before[name]) for name, value in vmonf.named_parameters())
    assert vmonf.log_prob(X).isfinite().all()


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_loss_module_has_the_value_of_pyro(program: type[Program], guided: bool) -> None:
    vmonf = pair(program, SoftmaxGuide(MLP(2, K)) if guided else None)
    pyro_s = TraceEnum_ELBO(max_plate_nesting=program.nesting)
    written = copy.deepcopy(vmonf)  # a run moves the weights in closed form
    expected = pyro_s.differentiable_loss(written.model, written.guide, X).item() / N
    assert TrainingLoss(vmonf)(X).item() == pytest.approx(expected, rel=1e-9)


def test_the_direct_sum_refuses_other_programs() -> None:
    vmonf = pair(Outlier, None)
    with pytest.raises(OtherProgram, match="2 sites are enumerated"):
        EnumeratedELBO(max_plate_nesting=1).differentiable_loss(vmonf.model, vmonf.guide, X)


def test_a_short_road_that_goes_astray_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula that is right at the start and wrong later: the fit says so, and takes Pyro's."""
    seen = 0

    def astray(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        nonlocal seen
        seen += 1
        terms = direct_terms(*args, **kwargs)
        return {**terms, "entropy": terms["entropy"] * (1.1 if seen > 4 else 1.0)}

    monkeypatch.setattr(objective, "direct_terms", astray)
    vmonf = pair(FlowMixture, SoftmaxGuide(MLP(2, K)))
    with pytest.warns(RuntimeWarning, match="the short road ends after 6 steps: the value is"):
        history = vmonf.fit(X, epochs=3, batch_size=10, seed=0, progress=False)
    assert history.road.startswith("TraceEnum_ELBO: the value is")


def test_plain_pairs_take_the_direct_road(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnPlate(SoftmaxGuide):
        def infer(self, rows: Any) -> None:
            super().infer(rows)

    guides: dict[Any, bool] = {
        SoftmaxGuide(MLP(2, K)): True,
        SoftmaxGuide(MLP(2, K), top=1): False,
        OwnPlate(MLP(2, K)): False,
        ExactGuide(): True,
        MarginalGuide(): True,
    }
    for guide, plain in guides.items():
        vmonf = VMoNF(FlowMixture(Gaussian(2, K), "learned"), guide).double()
        made = Objective(vmonf.model, vmonf.guide)
        made.prepare_({"x": X, "size": N})
        assert made.direct == plain, guide
        assert made.road == "short"
        assert not is_plain(Extra(Gaussian(2, K)), guide)


def test_the_best_components_of_a_guide_may_change_during_a_run() -> None:
    """A callback that sets ``top`` changes the ELBO of the next step on both roads."""

    def few(progress: Progress) -> None:
        if progress.epoch == 0:
            progress.guide.top = 1  # type: ignore[assignment]

    ends = []
    for fast in (True, False):
        torch.manual_seed(0)
        guide = SoftmaxGuide(MLP(2, 2, hidden=(4,)))
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), guide).double()
        options: dict[str, Any] = {"epochs": 3, "seed": 0, "progress": False, "fast": fast}
        history = vmonf.fit(X, callbacks=few, compile=False, **options)
        ends.append((history.elbo, vmonf.log_prob(X)))
    assert ends[0][0] == pytest.approx(ends[1][0], abs=1e-9)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0, atol=1e-9)
