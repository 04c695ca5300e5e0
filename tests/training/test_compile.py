"""Compiled densities and networks against the same without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from torch.distributions import Dirichlet

from pyro_vmonf import MAF, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.graphs import compiled
from pyro_vmonf.nn import MLP
from pyro_vmonf.nn.made import MaskedMLP
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.terms import Balance, Batch, Classification, Confidence, CustomTerm, Term
from pyro_vmonf.training import adam_graph, compiling, graphs
from pyro_vmonf.training.fit import Progress
from pyro_vmonf.training.flat_adam import FlatAdam


@pytest.fixture(scope="module")
def flows() -> VMoNF:
    torch.manual_seed(0)
    bank = RealNVP(2, 3, blocks=1, hidden=(4,))
    return VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(2, 3, hidden=(4,)))).double()


@pytest.fixture(scope="module")
def pair() -> VMoNF:
    """Gaussians, for what is said of the graph and not of what is in it: few operations."""
    torch.manual_seed(0)
    return VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3, hidden=(4,)))).double()


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """The compiler's own processes take longer to start than these programs to compile."""
    with inductor.patch(compile_threads=1):
        yield


@pytest.fixture
def no_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` captures graphs and gradients, and runs them as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


@pytest.mark.usefixtures("no_machine_code")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager(flows: VMoNF) -> None:
    compiled = copy.deepcopy(flows)
    compiled.compile()
    x = torch.randn(50, 2, dtype=torch.float64)
    losses = []
    for one in (flows, compiled):
        rows = x.unsqueeze(-2)
        loss = one.model.components().log_prob(rows).sum() + one.guide.log_q(x).square().sum()
        one.zero_grad()
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)
    for one, other in zip(compiled.parameters(), flows.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("no_machine_code")
@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_a_compiled_pair_has_its_own_parameters(flows: VMoNF) -> None:
    compiled = copy.deepcopy(flows)
    compiled.compile()
    changed = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(2)
    plain = copy.deepcopy(flows)
    plain.load_state_dict(changed.state_dict())
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(changed.log_prob(x), plain.log_prob(x))
    assert not torch.allclose(changed.log_prob(x), compiled.log_prob(x))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[compiling.Compiled]:
    """The lanes that got a graph."""
    own, found = compiling.Compiled.build_, []

    def build_(self: compiling.Compiled, *arguments: Any) -> Any:
        found.append(self)
        return own(self, *arguments)

    monkeypatch.setattr(compiling.Compiled, "build_", build_)
    return found


def rows_of(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 2, generator=generator, dtype=dtype)
    y = torch.randint(-1, 3, (70,), generator=generator)
    return x, y, torch.rand(70, generator=generator, dtype=dtype)


WHOLE: dict[str, Any] = {
    "epochs": 6, "batch_size": 16, "held_out": 0.1, "clip_norm": 0.5, "seed": 0, "progress": False
}  # fmt: skip
# Batches of one length alone: the graph of an open length takes five times as long to capture.
EVEN: dict[str, Any] = {**WHOLE, "epochs": 4, "held_out": torch.arange(6)}


@pytest.mark.parametrize(
    ("weights", "dtype", "atol", "held_out"),
    [
        ("uniform", torch.float32, 1e-5, torch.arange(6)),
        ("learned", torch.float64, 1e-10, 0.1),  # with a short last batch
    ],
)
@pytest.mark.usefixtures("captured_once")
def test_the_captured_step_is_the_step(
    weights: str, dtype: torch.dtype, atol: float, held_out: Any, built: list[compiling.Compiled]
) -> None:
    """Labels, row weights, schedules of term and temperature, counts and a short last batch."""
    x, y, weight = rows_of(dtype)
    options = {**WHOLE, "epochs": 3, "held_out": held_out}
    ends = []
    for compile in (False, True):
        torch.manual_seed(0)
        terms = [Classification(), Balance(weight=lambda step: 1 / (1 + step))]
        bank = RealNVP(2, 3, blocks=1, hidden=(4,))
        one = VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(2, 3, hidden=(4,)), terms))
        history = one.to(dtype).fit(x, y, sample_weight=weight, compile=compile, **options)
        ends.append((history, one))
    (plain, first), (history, second) = ends
    assert history.road.startswith("short, compiled"), history.road
    assert built[0].count == 0  # steps from Python
    for name, value in plain.terms.items():
        assert value == pytest.approx(history.terms[name], abs=atol)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def watched(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    made = torch.optim.Adam(parameters, lr=0.01)
    made.register_step_post_hook(lambda *_: CALLS.append(1))
    return made


CALLS: list[int] = []
OPTIMISERS: dict[str, dict[str, Any]] = {
    "decay": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW": {"optimizer": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, eps=1e-3)},
    "in a loop": {"optimizer": lambda p: torch.optim.Adam(p, betas=(0.5, 0.7), foreach=False)},
    "rate and betas of each step": {
        "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=40)
    },
    "warm state": {"labels": torch.arange(70) % 3, "pretrain_epochs": 1},
    "largest square": {"optimizer": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True)},
    "two groups": {"optimizer": lambda p: torch.optim.Adam([{"params": p[:2]}, {"params": p[2:]}])},
    "momentum": {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)},
    "watched": {"optimizer": watched},
}


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_moves_as_it_does_from_python(
    pair: VMoNF, name: str, built: list[compiling.Compiled]
) -> None:
    """The graph of the step has Adam's own, and others move by its gradients."""
    x, _, _ = rows_of(torch.float64)
    ends = []
    for compile in (False, True):
        one, options = copy.deepcopy(pair), dict(OPTIMISERS[name])
        CALLS.clear()
        history = one.fit(x, options.pop("labels", None), compile=compile, **EVEN, **options)
        ends.append((one, list(CALLS)))
    assert history.road.startswith("short, compiled"), history.road
    others = {"largest square", "two groups", "momentum", "watched"}
    assert isinstance(built[0].graph, adam_graph.AdamGraph) == (name not in others)
    assert ends[0][1] == ends[1][1]
    for a, b in zip(*(end.state_dict().values() for end, _ in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_a_large_mixture_moves_in_place(
    built: list[compiling.Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph has the gradient alone, with the masked products of a MAF in blocks."""
    monkeypatch.setattr(adam_graph, "MOST_NUMBERS", 1000)
    x = torch.randn(64, 60, dtype=torch.float64)
    ends = []
    for compile in (False, True):
        torch.manual_seed(0)
        bank = MAF(60, 2, blocks=2, hidden=(100,))
        one = VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(60, 2, hidden=(4,)))).double()
        [network, _] = (part for part in bank.modules() if isinstance(part, MaskedMLP))
        assert len(network.blocks[0].outputs) == 2
        history = one.fit(x, epochs=3, batch_size=32, seed=0, progress=False, compile=compile)
        ends.append(one)
    assert history.road.startswith("short, compiled"), history.road
    assert not isinstance(built[0].graph, adam_graph.AdamGraph)
    for a, b in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


class OfWholeBatches(Term):
    """A term whose parameter a short last batch does not use."""

    def __init__(self, length: Callable[[torch.Tensor], int]) -> None:
        super().__init__()
        self.length = length
        self.level = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, batch: Batch) -> torch.Tensor:
        flat = batch.log_q.square().sum(-1)
        return flat * self.level.square() if self.length(batch.x) == 16 else flat


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("length", [len, lambda x: x.shape[0]])
def test_a_parameter_that_a_short_batch_leaves_out_keeps_its_own_steps(
    pair: VMoNF, length: Callable[[torch.Tensor], int], built: list[compiling.Compiled]
) -> None:
    """Adam counts the steps of each parameter; the graph has one number for all."""
    x, _, _ = rows_of(torch.float64)
    ends = []
    for compile in (False, True):
        torch.manual_seed(0)
        guide = SoftmaxGuide(MLP(2, 3, hidden=(4,)).double(), [OfWholeBatches(length)])
        one = VMoNF(copy.deepcopy(pair.model), guide)
        history = one.fit(x, compile=compile, lr=0.05, **WHOLE)
        ends.append(one)
    assert built[0].count > 0
    assert history.road == "short, compiled until a part of the pair was changed"
    for a, b in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_a_graph_of_one_length_leaves_short_batches_to_python(
    pair: VMoNF, monkeypatch: pytest.MonkeyPatch, built: list[compiling.Compiled]
) -> None:
    """Operations of others may know no open length."""
    own = graphs.StepGraph._captured

    def closed(self: Any, inputs: Any, open: bool) -> Any:
        if open:
            raise RuntimeError("expected to contain only concrete integers")
        return own(self, inputs, open)

    monkeypatch.setattr(graphs.StepGraph, "_captured", closed)
    x, _, _ = rows_of(torch.float64)
    ends = []
    for compile in (False, True):
        one = copy.deepcopy(pair)
        history = one.fit(x, compile=compile, **WHOLE)
        ends.append(one)
    assert history.road.startswith("short, compiled in"), history.road
    assert built[0].count == 6
    assert built[0].graph is not None
    assert built[0].graph.lengths == {16}
    for a, b in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_an_optimiser_with_another_state_ends_the_graph(pair: VMoNF) -> None:
    x, _, _ = rows_of(torch.float64)
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=0.01))
        return made[-1]

    def forget(progress: Progress) -> None:
        if progress.epoch == 1:
            made[-1].state.clear()

    ends = []
    for compile in (False, True):
        one = copy.deepcopy(pair)
        options: dict[str, Any] = {**EVEN, "optimizer": optimizer, "callbacks": forget}
        history = one.fit(x, compile=compile, **options)
        ends.append(one)
    assert history.road == "short, compiled until a part of the pair was changed"
    for a, b in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_a_rejected_step_of_a_graph_leaves_no_trace() -> None:
    x, _, _ = rows_of(torch.float64)
    ends = []
    for compile in (False, True):
        torch.manual_seed(0)
        terms = [CustomTerm(lambda batch: 1 / (batch.index - 7.0).abs().double())]
        guide = SoftmaxGuide(MLP(2, 3, hidden=(4,)), terms)
        one = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), guide).double()
        with pytest.warns(RuntimeWarning, match="2 of 4 steps"):
            one.fit(x, epochs=2, batch_size=35, seed=2, progress=False, compile=compile)
        ends.append(one)
    for one, other in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def noisy(batch: Batch) -> torch.Tensor:
    """Draw something in each step; two steps of an epoch are not finite."""
    noise = torch.randn_like(batch.log_q)
    return ((batch.log_q + noise).square().sum(-1) / (batch.index % 32 - 7.0).abs()).clamp(min=-9.0)


def fitted(at_once: int, patch: pytest.MonkeyPatch) -> tuple[Any, VMoNF, Any]:
    """Return history, pair and optimiser of a run whose graph takes so many steps at once."""
    x, _, _ = rows_of(torch.float64)
    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=0.02))
        return made[-1]

    patch.setattr(compiling, "MOST_AT_ONCE", at_once)
    torch.manual_seed(0)
    terms = [Balance(weight=linear_decay(20, initial=2.0)), CustomTerm(noisy)]
    one = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(nn.Linear(2, 3), terms))
    options: dict[str, Any] = {**EVEN, "epochs": 3, "batch_size": 8, "optimizer": optimizer}
    with pytest.warns(RuntimeWarning, match="of 24 steps"):
        history = one.double().fit(x, compile=True, **options)
    assert history.road.startswith("short, compiled"), history.road
    return history, one, made[-1]


@pytest.mark.usefixtures("captured_once")
def test_steps_of_one_graph_are_steps_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: schedules, draws, counts, moments, steps that are not finite, and the record."""
    plain, one, adam = fitted(1, monkeypatch)
    for at_once in (3, 16):
        history, several, others = fitted(at_once, monkeypatch)
        assert 0 < plain.rejected == history.rejected
        for name, values in plain.terms.items():
            assert history.terms[name] == pytest.approx(values, rel=1e-13)
        for a, b in zip(one.state_dict().values(), several.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        for own, theirs in zip(adam.state.values(), others.state.values(), strict=True):
            assert all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.usefixtures("captured_once")
def test_an_interrupt_while_steps_are_taken_over_loses_none(
    pair: VMoNF, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, _ = rows_of(torch.float64)
    own, calls = FlatAdam.accept_, [0]

    def accept_(self: FlatAdam, new: torch.Tensor, *others: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] == stop:
            with torch.no_grad():
                self.parameters[0].zero_()
            raise KeyboardInterrupt
        own(self, new, *others)

    def stopped(progress: Progress) -> bool:
        return progress.epoch == 2

    monkeypatch.setattr(FlatAdam, "accept_", accept_)
    ends = []
    for stop, callbacks in ((0, stopped), (3, ())):
        one, calls[0] = copy.deepcopy(pair), 0
        options: dict[str, Any] = {**WHOLE, "batch_size": 35, "callbacks": callbacks}
        options["held_out"] = 0.0  # the last state stays
        if stop:
            with pytest.raises(KeyboardInterrupt) as found:
                one.fit(x, compile=True, **options)
            history = found.value.history  # type: ignore[attr-defined]
        else:
            history = one.fit(x, compile=True, **options)
        ends.append((history, one))
    (plain, first), (history, second) = ends
    assert history.elbo == plain.elbo[:2]  # the third epoch is not closed
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("captured_once")
def test_a_resumed_run_takes_the_compiled_road_again(pair: VMoNF, tmp_path: Path) -> None:
    x, _, _ = rows_of(torch.float64)
    whole, part = copy.deepcopy(pair), copy.deepcopy(pair)
    whole.fit(x, compile=True, **EVEN)
    path = tmp_path / "run.pt"

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.fit(x, compile=True, checkpoint=path, callbacks=stop, **EVEN)
    history = part.fit(x, resume=path, **EVEN)  # by "auto", which would not compile
    assert history.road.startswith("short, compiled")
    for one, other in zip(part.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("captured_once")
def test_auto_compiles_where_the_steps_to_come_are_worth_it(
    pair: VMoNF, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(graphs.StepGraph, "pays", lambda self, batch: pays)
    x = rows_of(torch.float64)[0][:64]
    monkeypatch.setattr(compiling, "MEASURED_STEPS", 5)
    options: dict[str, Any] = {"epochs": 4, "batch_size": 16, "seed": 0, "progress": False}
    pays = True
    assert copy.deepcopy(pair).fit(x, **options).road == "short"  # 16 short steps
    for name in ("FROM_CACHE", "COLD", "COLD_PER_NODE", "CAPTURES"):
        monkeypatch.setattr(compiling, name, 0.0)
    assert copy.deepcopy(pair).fit(x, **options).road.startswith("short, compiled")
    pays = False
    assert copy.deepcopy(pair).fit(x, **options).road.endswith("the graph is the slower one")
    monkeypatch.setattr(compiling, "COLD", 1e9)
    pays = True  # this machine knows the graph
    assert copy.deepcopy(pair).fit(x, **options).road.startswith("short, compiled")
    shorter = {**options, "batch_size": 12}
    with monkeypatch.context() as patch:
        patch.delattr(graphs, "captured")  # nothing is captured for a pair that it does not know
        assert copy.deepcopy(pair).fit(x[:48], **shorter).road == "short"
    monkeypatch.setattr(compiling, "COLD", 0.0)
    monkeypatch.setattr(compiling, "CAPTURES", 1e9)
    road = copy.deepcopy(pair).fit(x[:48], **shorter).road
    assert road.endswith("it would take longer than the steps to come")
    monkeypatch.setattr(compiling, "MOST_NUMBERS", 1)  # parameters: products would be the step
    assert copy.deepcopy(pair).fit(x, **options).road == "short"


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("branch", "RuntimeError: Python asks for the value of a tensor"),
        ("generator", "pair.guide.terms.0.penalty.numbers is a generator of its own"),
        ("sites", "the sum over c goes through the sites of the program"),
    ],
)
def test_what_a_graph_cannot_follow_is_not_compiled(pair: VMoNF, kind: str, reason: str) -> None:
    numbers = np.random.default_rng(0)

    def penalty(batch: Batch) -> torch.Tensor:
        if kind == "branch":
            return batch.log_q.square().sum(-1) * float(batch.x[0, 0] > 0)
        scale = numbers.random() if kind == "generator" else 1.0
        return batch.log_q.square().sum(-1) * scale

    guide = SoftmaxGuide(MLP(2, 3, hidden=(4,)).double(), [CustomTerm(penalty)])
    weights = Dirichlet(torch.ones(3)) if kind == "sites" else "uniform"
    one = VMoNF(FlowMixture(copy.deepcopy(pair.model.bank), weights), guide).double()
    x, _, _ = rows_of(torch.float64)
    road = one.fit(x, epochs=1, compile=True, progress=False).road
    assert road.startswith(f"short, not compiled: {reason}")


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize("change", ["freeze", "elbo_gradient", "mode", "nothing"])
def test_a_callback_that_changes_the_pair_ends_the_graph(pair: VMoNF, change: str) -> None:
    """The graph has frozen parameters, modes and settings as they were."""
    x, _, _ = rows_of(torch.float64)

    def callback(progress: Progress) -> None:
        if progress.epoch == 1 and change == "freeze":
            progress.model.bank.requires_grad_(False)
        elif progress.epoch == 1 and change == "elbo_gradient":
            progress.guide.elbo_gradient = 0.5  # type: ignore[assignment]
        elif progress.epoch == 1 and change == "mode":
            progress.guide.network.eval()

    ends = []
    for compile in (False, True):
        one = copy.deepcopy(pair)
        options: dict[str, Any] = {**EVEN, "callbacks": callback, "compile": compile}
        history = one.fit(x, **options)
        ends.append(one)
    ended = history.road == "short, compiled until a part of the pair was changed"
    assert ended == (change != "nothing"), history.road
    for one, other in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_a_graph_that_differs_ends_with_a_warning(pair: VMoNF) -> None:
    """A number that hides in a closure is found by its value."""
    x, _, _ = rows_of(torch.float64)
    scale = [1.0]
    guide = SoftmaxGuide(
        MLP(2, 3, hidden=(4,)).double(),
        [CustomTerm(lambda batch: scale[0] * batch.log_q.square().sum(-1))],
    )
    one = VMoNF(copy.deepcopy(pair.model), guide)

    def change(progress: Progress) -> None:
        scale[0] = 2.0

    with pytest.warns(RuntimeWarning, match="the compiled road ends after .* steps: the compiled"):
        history = one.fit(
            x, epochs=30, batch_size=14, compile=True, callbacks=change, progress=False
        )
    assert history.road == "short"


def test_without_a_compiler_the_step_is_eager(pair: VMoNF, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(graph: object, inputs: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(graphs, "compiled", missing)
    one = copy.deepcopy(pair)
    road = one.fit(rows_of(torch.float64)[0], epochs=1, compile=True, progress=False).road
    assert road == "short, not compiled: RuntimeError: No working C++ compiler found"


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_machine_code_takes_the_same_steps(
    built: list[compiling.Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps in a loop, and one of a short batch."""
    monkeypatch.setattr(graphs, "compiled", compiled)
    x, _, _ = rows_of(torch.float64)
    ends = []
    for compile in (False, True):
        torch.manual_seed(0)
        one = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(nn.Linear(2, 2))).double()
        history = one.fit(x, compile=compile, **WHOLE)
        ends.append(one)
    assert history.road.startswith("short, compiled in"), history.road
    assert built[0].count == 0
    for one, other in zip(*(end.state_dict().values() for end in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


MEASURED: dict[str, Any] = {
    "epochs": 4, "batch_size": 25, "held_out": torch.arange(20), "keep": "best", "progress": False,
    "seed": 0,
}  # fmt: skip


@pytest.fixture
def measured_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of measured rows pays at once."""
    monkeypatch.setattr(compiling, "SAVED_PER_NODE", 1e9)


@pytest.mark.usefixtures("captured_once", "measured_pays")
@pytest.mark.parametrize("size", [64, 16])
def test_measured_rows_have_a_graph(
    pair: VMoNF, size: int, built: list[compiling.Compiled], tmp_path: Path
) -> None:
    """The terms have the weights of the last step there, and a dropout is none."""
    x, _, _ = rows_of(torch.float64)
    options = MEASURED | {"batch_size": size, "held_out": torch.arange(22)}
    terms = [Balance(weight=linear_decay(3)), Confidence(weight=0.1)]
    network = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    ends = []
    for compile in (False, True):
        one = VMoNF(copy.deepcopy(pair.model), SoftmaxGuide(copy.deepcopy(network), terms))
        history = one.fit(x, compile=compile, temperature=linear_decay(9, initial=2.0), **options)
        ends.append(history)
    assert ends[1].road.endswith("measured rows too"), ends[1].road
    graph = built[-1].measured
    assert graph is not None
    assert graph.lengths == ({22} if size > 22 else {16, 6})
    np.testing.assert_allclose(ends[1].held_out, ends[0].held_out, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ends[1].objective, ends[0].objective, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("captured_once")
def test_few_measurements_stay_with_python(pair: VMoNF, built: list[compiling.Compiled]) -> None:
    x, _, _ = rows_of(torch.float64)
    history = copy.deepcopy(pair).fit(x, compile=True, **MEASURED)
    assert built[-1].graph is not None
    assert built[-1].measured is None
    assert "measured" not in history.road


@pytest.mark.usefixtures("captured_once")
def test_a_resumed_run_measures_on_the_road_that_it_took(
    pair: VMoNF, built: list[compiling.Compiled], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, _ = rows_of(torch.float64)
    options = MEASURED | {"compile": True}
    for pays in (True, False):
        path = tmp_path / f"{pays}.ckpt"
        monkeypatch.setattr(compiling, "SAVED_PER_NODE", 1e9 if pays else 0.0)

        def stop(progress: Progress) -> bool:
            return progress.epoch == 1

        one, whole = copy.deepcopy(pair), copy.deepcopy(pair)
        whole.fit(x, **options)
        one.fit(x, **options, checkpoint=path, callbacks=stop)
        monkeypatch.setattr(compiling, "SAVED_PER_NODE", 0.0 if pays else 1e9)
        again = copy.deepcopy(pair)
        again.fit(x, **options, resume=path)
        assert (built[-1].measured is not None) == pays
        for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:the fit ended with a held-out objective")
@pytest.mark.usefixtures("captured_once", "measured_pays")
def test_a_graph_of_measured_rows_that_differs_ends_the_road(
    pair: VMoNF, built: list[compiling.Compiled], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, _ = rows_of(torch.float64)
    changed = []

    def spoil(progress: Progress) -> None:
        graph = built[-1].measured
        if graph is not None and not changed:
            own = graph.function
            graph.function = lambda *inputs: [value + 1 for value in own(*inputs)]
            changed.append(progress.epoch)

    options = MEASURED | {"epochs": 60, "keep": "last"}
    with pytest.warns(RuntimeWarning, match="the compiled road ends"):
        copy.deepcopy(pair).fit(x, compile=True, callbacks=spoil, **options)
    assert changed
    assert built[-1].graph is built[-1].measured is None
