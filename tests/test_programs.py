"""Guides that are Pyro programs: functions, modules, autoguides, lists of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    PyroGuide,
    RandomBank,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
    fit,
    select,
)
from pyro_vmonf.interop.draws import draws_of_guide
from pyro_vmonf.nn import MLP
from pyro_vmonf.training.objective import Objective

pytestmark = pytest.mark.usefixtures("float64")
K, N = 3, 30
Make = Callable[[FlowMixture], Any]


def rows() -> Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(1))


def mixture() -> FlowMixture:
    return FlowMixture(Gaussian(2, K), dist.Dirichlet(2 * torch.ones(K)))


def function_of_weights(x: Tensor) -> None:
    concentration = pyro.param("a", 3 * torch.ones(K), constraint=dist.constraints.positive)
    pyro.sample("weights", dist.Dirichlet(concentration))


class OfComponent(PyroModule):
    """A guide of c by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.arange(2.0 * K).reshape(2, K) / 10)
        self.scale = PyroParam(torch.tensor(2.0), dist.constraints.positive)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.slope)

    def forward(self, x: Tensor, y: Tensor | None = None, **options: Any) -> None:
        size, index = options.get("size") or len(x), options.get("index")
        with pyro.plate("data", size, subsample=index):
            q = dist.Categorical(logits=x @ self.slope / self.scale)
            pyro.sample("c", q, infer={"enumerate": "parallel"})


class WithLogQ(OfComponent):
    def log_q(self, x: Tensor) -> Tensor:
        return (x @ self.slope / self.scale).log_softmax(-1)


def hidden(model: FlowMixture) -> Any:
    return poutine.block(model, hide=["c"])


def listed(model: FlowMixture) -> AutoGuideList:
    several = AutoGuideList(hidden(model))
    several.append(AutoNormal(hidden(model)))
    return several


GUIDES: dict[str, Make] = {
    "function of the weights": lambda model: function_of_weights,
    "module of c": lambda model: OfComponent(),
    "module and function": lambda model: [OfComponent(), function_of_weights],
    "AutoNormal": lambda model: AutoNormal(hidden(model)),
    "AutoDelta": lambda model: AutoDelta(hidden(model)),
    "AutoMultivariateNormal": lambda model: AutoMultivariateNormal(hidden(model)),
    "softmax and AutoNormal": lambda model: [SoftmaxGuide(MLP(2, K)), AutoNormal(hidden(model))],
    "module and AutoNormal": lambda model: [WithLogQ(), AutoNormal(hidden(model))],
    "softmax and function": lambda model: [SoftmaxGuide(MLP(2, K)), function_of_weights],
    "softmax and AutoGuideList": lambda model: [SoftmaxGuide(MLP(2, K)), listed(model)],
}


RUNS = ["module and function", "AutoNormal", "softmax and AutoGuideList"]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guide give few draws after a fit, where no test asks for their mean."""
    monkeypatch.setattr("pyro_vmonf.guides.drawn.DRAWS", 16)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.filterwarnings("ignore:the guide knows clusters")
@pytest.mark.parametrize("name", RUNS)
def test_fit_trains_saves_and_goes_on(name: str, tmp_path: Path) -> None:
    x, y = rows(), torch.full((N,), -1)
    model = mixture()
    vmonf = VMoNF(model, GUIDES[name](model))
    options: dict[str, Any] = {"batch_size": 8, "held_out": 0.2, "progress": False, "seed": 0}
    history = vmonf.fit(x, y, epochs=2, **options, checkpoint=tmp_path / "run")
    assert len(history.held_out) == 2
    assert not pyro.get_param_store().keys()

    model = mixture()
    other = VMoNF(model, GUIDES[name](model))
    other.fit(x, y, epochs=2, **options, resume=tmp_path / "run")
    for one, two in zip(vmonf.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)

    with pytest.warns(UserWarning, match="into=vmonf"):
        vmonf.save(tmp_path / "pair")
    model = mixture()
    loaded = VMoNF.load(tmp_path / "pair", into=VMoNF(model, GUIDES[name](model)))
    torch.testing.assert_close(loaded.predict_proba(x), vmonf.predict_proba(x), rtol=0, atol=0)
    for one, two in zip(vmonf.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    if name == RUNS[0]:  # two starts, one after the other
        assert len(loaded.fit(x, epochs=1, n_init=2, **options).restarts) == 2


@pytest.mark.parametrize("name", GUIDES)
def test_the_objective_is_that_of_svi(name: str) -> None:
    """The loss of a step of ``fit`` is that of plain ``SVI`` on the same two programs."""
    x = rows()
    model = mixture()
    vmonf = VMoNF(model, GUIDES[name](model)).eval()
    arguments: dict[str, Any] = {"x": x, "index": torch.arange(N), "size": 2 * N}
    vmonf.guide.prepare_(arguments)
    objective = Objective(vmonf.model, vmonf.guide)
    objective.prepare_(arguments)
    torch.manual_seed(3)
    value = torch.stack(list(objective(**arguments).values())).sum()
    svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())
    svi.evaluate_loss(**arguments)  # the depth of the plates is found once
    torch.manual_seed(3)
    assert -svi.evaluate_loss(**arguments) == pytest.approx(float(value.detach()), rel=1e-10)
    before = [p.detach().clone() for p in vmonf.guide.parameters()]
    svi.step(**arguments)
    moved = [not torch.equal(a, b) for a, b in zip(before, vmonf.guide.parameters(), strict=True)]
    assert all(moved)


def test_two_instances_in_one_process() -> None:
    """Each has parameters of its own, in ``fit`` and under ``SVI``."""
    for name in ("module and function", "softmax and AutoNormal"):
        ends = []
        for _ in range(2):
            torch.manual_seed(0)
            model = mixture()
            vmonf = VMoNF(model, GUIDES[name](model))
            vmonf.fit(rows(), epochs=2, progress=False, seed=0)
            svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())
            torch.manual_seed(0)
            svi.step(rows())
            ends.append([p.detach().clone() for p in vmonf.parameters()])
        for one, two in zip(*ends, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def lookup(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        logits = pyro.param("table", torch.zeros(len(x), K))
        pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def test_predict_says_which_posterior_it_uses() -> None:
    x, model = rows(), mixture()
    own = VMoNF(model, [OfComponent(), AutoNormal(hidden(model))])
    assert own.guide.predicts_by == "Bayes' rule"
    assert torch.equal(own.predict_proba(x), own.predict_proba(x, exact=True))
    with_q = VMoNF(model, [WithLogQ(), AutoNormal(hidden(model))])
    assert with_q.guide.predicts_by == "the log_q of WithLogQ"
    expected = (x @ torch.arange(2.0 * K).reshape(2, K) / 20).softmax(-1)
    torch.testing.assert_close(with_q.predict_proba(x), expected)
    torch.testing.assert_close(with_q.elbo(x), _elbo(with_q, x, expected))
    assert VMoNF(model).guide.predicts_by == "Bayes' rule"
    softmax = VMoNF(model, [SoftmaxGuide(MLP(2, K)), AutoNormal(hidden(model))])
    assert "predicts by the log_q of SoftmaxGuide" in repr(softmax.guide)
    with pytest.raises(TypeError, match="elbo needs log_q, which OfComponent does not have"):
        VMoNF(model, OfComponent()).elbo(x)
    table = VMoNF(model, [AutoNormal(hidden(model)), lookup])
    table.guide.build_(model, {"x": x})
    with pytest.raises(TypeError, match="log_q, which the function lookup does not have; write"):
        table.elbo(x)


def _elbo(vmonf: VMoNF, x: Tensor, q: Tensor) -> Tensor:
    joint = vmonf.model.weights.mean_log() + vmonf.component_log_prob(x)
    return (q * (joint - q.log())).sum(-1).detach()


def test_scores_take_the_weights_of_the_guide_that_draws_them() -> None:
    """E[pi] of the verbs is the mean of the guide's draws, and AutoDelta's point exactly."""
    x, model = rows(), mixture()
    vmonf = VMoNF(model, AutoDelta(hidden(model)))
    vmonf.fit(x, epochs=9, lr=0.05, progress=False, seed=0)
    [point] = [p for n, p in vmonf.guide.named_parameters() if "weights" in n]
    found = vmonf.model.weights.log_mean().exp()
    expected = vmonf.guide.members[0].median()["weights"]
    assert (expected - 1 / K).abs().max() > 0.02
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert point.requires_grad

    model = mixture()
    normal = VMoNF(model, AutoNormal(hidden(model), init_scale=0.5))
    normal.fit(x, epochs=1, progress=False, seed=0)
    auto = normal.guide.members[0]
    free = auto.locs.weights + auto.scales.weights * torch.randn(100_000, K - 1)
    draws = torch.distributions.biject_to(dist.constraints.simplex)(free.detach())
    error = 4 * draws.std(0) / 256**0.5
    assert ((normal.model.weights.log_mean().exp() - draws.mean(0)).abs() < error).all()


def test_scores_take_the_parameters_of_the_guide_that_draws_them() -> None:
    model = FlowMixture(RandomBank(Gaussian(2, K)), "learned")
    vmonf = VMoNF(model, [SoftmaxGuide(MLP(2, K)), AutoDelta(hidden(model))])
    vmonf.fit(rows(), epochs=3, lr=0.1, progress=False, seed=0)
    points = vmonf.guide.members[1].median()
    assert points
    for name, value in model.bank.bank.named_parameters():
        torch.testing.assert_close(value.detach(), points[f"bank.{name}"])


class Shifted(FlowMixture):
    """Rows with an unknown shift each: one more latent of each row."""

    def forward(self, x: Tensor | None = None, y: Tensor | None = None, **options: Any) -> Tensor:
        log_weights, components = self.draw_parts()
        size = options.get("size") or len(x)  # type: ignore[arg-type]
        with pyro.plate("data", size, subsample=options.get("index"), dim=-1):
            shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = dist.Categorical(logits=log_weights)
            c = pyro.sample("c", logits, infer={"enumerate": "parallel"})
            centred = None if x is None else x - shift
            return pyro.sample("x", select(components, c), obs=centred)


def test_an_autoguide_of_each_row_follows_the_order_of_the_rows() -> None:
    """The most probable shift of x ~ N(shift, 1) is x / 2: a step of Newton each finds it."""
    model = Shifted(dist.Normal(torch.zeros(K, 2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="create_plates=lambda x"):
        VMoNF(model, AutoNormal(hidden(model))).fit(rows(), epochs=1, progress=False)

    def plates(x: Tensor, y: Any = None, *, index: Any = None, size: Any = None, **_: Any) -> Any:
        return pyro.plate("data", size or len(x), subsample=index, dim=-1)

    vmonf = VMoNF(model, AutoDelta(hidden(model), create_plates=plates))
    batch = N // 3
    options: dict[str, Any] = {"batch_size": batch, "standardize": False, "progress": False}
    vmonf.fit(rows(), epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=batch / 2), **options)
    torch.testing.assert_close(vmonf.guide.members[0].shift.detach(), rows() / 2)


def without_plate_size(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(torch.ones(len(x), K)), infer={"enumerate": "parallel"})


def one_too_many(x: Tensor) -> None:
    pyro.sample("weights", dist.Dirichlet(torch.ones(K)))


def twice(model: FlowMixture) -> Any:
    several = AutoGuideList(model)
    several.append(AutoNormal(hidden(model)))
    several.append(AutoDiscreteParallel(poutine.block(model, expose=["c"])))
    return several


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("kind", [AutoStructured, AutoIAFNormal])
def test_other_autoguides_with_everything_random(kind: Any) -> None:
    """Fit, report and posterior draws, where weights and parameters are random."""
    model = FlowMixture(RandomBank(Gaussian(2, K)), StickBreaking.process(K))
    vmonf = VMoNF(model, kind(hidden(model)))
    vmonf.fit(rows(), epochs=1, progress=False, seed=0)
    assert vmonf.report(rows()).usage.shape == (K,)
    found = draws_of_guide(vmonf, 3, seed=0).sites
    expected = {"weights", *(f"bank.{name}" for name, _ in model.bank.random_parameters())}
    assert set(found) == expected
    assert found["weights"].shape == (1, 3, K)
    torch.testing.assert_close(found["weights"].sum(-1), torch.ones(1, 3))


WRONG: dict[str, tuple[Make, str]] = {
    "an autoguide of c": (AutoNormal, r'AutoNormal\(poutine.block\(model, hide=\["c"\]\)\)'),
    "a list of c": (twice, "clashes with that of the mixture"),
    "a batch as the whole": (lambda model: without_plate_size, "'c' counts otherwise"),
    "two of one site": (
        lambda model: [one_too_many, AutoNormal(hidden(model))],
        "two members of the guide, the function one_too_many and AutoNormal, draw 'weights'",
    ),
    "two of c": (lambda model: [SoftmaxGuide(MLP(2, K)), OfComponent()], "both SoftmaxGuide and"),
    "a guide of labels that are ruled out": (
        lambda model: OfComponent(),
        "components that y rules",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_bound_is_refused_and_nothing_changes(name: str) -> None:
    make, message = WRONG[name]
    model, x = mixture(), rows()
    vmonf = VMoNF(model, make(model))
    before = copy.deepcopy(vmonf.model.state_dict())
    with pytest.raises(ValueError, match=message):
        vmonf.fit(x, torch.zeros(N).long(), epochs=1, batch_size=8, progress=False)
    for key, value in vmonf.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_no_program_is_refused() -> None:
    for wrong in (3, SoftmaxGuide, "softmax"):
        with pytest.raises(TypeError, match="expected a Pyro program"):
            VMoNF(mixture(), wrong)
    with pytest.raises(ValueError, match="list of guides is empty"):
        VMoNF(mixture(), [])
    with pytest.raises(ValueError, match="2 members are guides of c"):
        PyroGuide([SoftmaxGuide(MLP(2, K)), SoftmaxGuide(MLP(2, K))])


def test_a_plain_function_keeps_its_parameters_in_the_store() -> None:
    """``fit`` begins where Pyro's store has them, and leaves them there; a pair owns them."""
    pyro.param("a", 9 * torch.ones(K), constraint=dist.constraints.positive)
    model = mixture()
    fit(model, function_of_weights, rows(), epochs=1, lr=1e-3, progress=False, seed=0)
    after = pyro.param("a").detach()
    assert ((after - 9).abs() < 0.1).all()
    assert not torch.equal(after, 9 * torch.ones(K))
    vmonf = VMoNF(model, function_of_weights)
    vmonf.fit(rows(), epochs=1, progress=False, seed=0)
    assert torch.equal(pyro.param("a").detach(), after)
    [own] = vmonf.guide.parameters()
    assert not torch.equal(own.detach().exp(), after)


class Quadrant(SoftmaxGuide):
    """A guide whose log_q is not that of its network: it reads two features of four."""

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        logits: Tensor = self.network(x[..., :1].abs())
        return (torch.cat((logits, -logits), -1) / self.temperature).log_softmax(-1)


def test_an_overridden_log_q_is_checked_and_used() -> None:
    x = rows()
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), Quadrant(nn.Linear(1, 1)))
    vmonf.fit(x, epochs=2, progress=False, seed=0)
    torch.testing.assert_close(vmonf.predict_proba(x), vmonf.guide.log_q(x).exp().detach())
    with pytest.raises(ValueError, match=r"log_q of Quadrant returns \(1, 2\) for one row"):
        VMoNF(FlowMixture(Gaussian(2, K)), Quadrant(nn.Linear(1, 1)))
