"""Compiled runs whose parts move, fail or are changed on the way: they are the runs from Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.terms import Batch, Term
from pyro_vmonf.training.fit import Progress

X = torch.randn(96, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("captured_once")
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 24, "seed": 0, "progress": False}


class AtSteps(Term):
    """A term whose value, or gradient, is no number in some steps."""

    def __init__(self, steps: set[int], gradient: bool = False) -> None:
        super().__init__()
        self._steps, self.gradient = steps, gradient

    def set_step_(self, step: int) -> None:
        self.step = step
        self.current_weight = 1.0 if step not in getattr(self, "_steps", ()) else float("inf")

    def forward(self, batch: Batch) -> Tensor:
        flat = batch.log_q.square().sum(-1)
        return (flat - flat.detach()).abs().sqrt() if self.gradient else flat


def pair(*terms: Term, norm: bool = False) -> VMoNF:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(6)] if norm else [nn.Tanh()]
    network = nn.Sequential(nn.Linear(2, 6), *middle, nn.Linear(6, 3))
    model = FlowMixture(Gaussian(2, 3), "learned")
    return VMoNF(model, SoftmaxGuide(network, list(terms))).double()


def same(one: VMoNF, other: VMoNF) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=1e-10)


def both(make: Callable[[], VMoNF], **options: Any) -> list[Any]:
    found = []
    for compile in (False, True):
        one = make()
        history = one.fit(X, compile=compile, **{**OPTIONS, **options})
        found += [one, history]
    assert found[3].road.startswith("short, compiled"), found[3].road
    return found


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_batch_statistics_move_as_from_python(optimizer: Any) -> None:
    """Batch normalisation moves its buffers without telling torch."""
    one, plain, other, history = both(
        lambda: pair(norm=True), optimizer=lambda p: optimizer(p, lr=1e-3), epochs=2
    )
    same(one, other)
    assert history.elbo == pytest.approx(plain.elbo, abs=1e-9)


@pytest.mark.parametrize("compile", [False, True])
def test_batch_statistics_of_a_rejected_step_are_taken_back(compile: bool) -> None:
    ends = []
    for steps in ({1}, set()):
        one = pair(AtSteps(steps), norm=True)
        # A bias in front of the statistics has a gradient of rounding, which Adam would divide by.
        options = {**OPTIONS, "optimizer": lambda p: torch.optim.Adam(p, 1e-3, eps=1e-3)}
        options |= {"batch_size": 96, "epochs": 4 if steps else 3}
        if steps:
            with pytest.warns(RuntimeWarning, match="1 of 4 steps"):
                one.fit(X, compile=compile, temperature=1.0, **options)
        else:
            one.fit(X, compile=compile, temperature=1.0, **options)
        ends.append(one)
    same(*ends)


@pytest.mark.parametrize("step", [0, 3, 7, 11])
def test_a_step_without_a_number_ends_no_run(step: int) -> None:
    """Also where the graph is compared with the step just then."""
    with pytest.warns(RuntimeWarning, match="1 of 16 steps"):
        one, plain, other, history = both(lambda: pair(AtSteps({step})))
    same(one, other)
    assert plain.rejected == history.rejected == 1


def test_an_epoch_without_an_accepted_step_has_no_objective() -> None:
    with pytest.warns(RuntimeWarning, match="4 of 16 steps"):
        _, plain, _, history = both(lambda: pair(AtSteps({8, 9, 10, 11})))
    assert torch.tensor(plain.elbo).isnan().tolist() == [False, False, True, False]
    assert history.elbo == pytest.approx(plain.elbo, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("steps", [{4, 5, 6}, {3, 4}, {10, 11, 12}])
def test_too_many_rejected_steps_in_a_row_end_a_run(steps: set[int], compile: bool) -> None:
    """Also if good steps of the same epoch follow, and across two epochs."""
    with pytest.raises(FloatingPointError, match=r"steps in a row"):
        pair(AtSteps(steps)).fit(X, compile=compile, max_rejected=2, **OPTIONS)


def test_a_new_state_of_the_optimiser_ends_the_graph() -> None:
    made: list[torch.optim.Optimizer] = []

    def adam(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=0.01))
        return made[-1]

    def callback(progress: Progress) -> None:
        if progress.epoch == 1:
            made[-1].load_state_dict(made[-1].state_dict())
        if progress.epoch == 2:
            made[-1].param_groups[0]["lr"] = 0.0

    one, _, other, _ = both(pair, optimizer=adam, callbacks=callback)
    same(one, other)


class Scaled(Term):
    power = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.more: float | None = None
        self._private = 1.0
        self.settings: dict[str, Any] = {"factors": [1.0], "object": SimpleNamespace(factor=1.0)}
        self.scale = torch.tensor(1.0, dtype=torch.float64)
        self.penalty: Callable[[Tensor], Tensor] = torch.square
        self.register_buffer("level", torch.tensor(0.1, dtype=torch.float64))

    def forward(self, batch: Batch) -> Tensor:
        factors = (self.power, self.more or 1.0, self._private, self.settings["factors"][0])
        factor = math.prod(factors) * self.settings["object"].factor
        return factor * self.level * (self.scale * self.penalty(batch.log_q)).sum(-1)


def multiple(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda values: factor * values.square()


CHANGES: dict[str, Callable[[Any], object]] = {
    "function": lambda term: setattr(term, "penalty", multiple(3.0)),
    "tensor": lambda term: setattr(term, "scale", 3 * term.scale),
    "tensor in place": lambda term: term.scale.mul_(3.0),
    "buffer": lambda term: setattr(term, "level", 3 * term.level),
    "of the class": lambda term: setattr(term, "power", 3.0),
    "none": lambda term: setattr(term, "more", 3.0),
    "private": lambda term: setattr(term, "_private", 3.0),
    "list": lambda term: term.settings["factors"].__setitem__(0, 3.0),
    "object": lambda term: setattr(term.settings["object"], "factor", 3.0),
    "forward": lambda term: setattr(
        term, "forward", lambda batch: 3 * batch.log_q.square().sum(-1)
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_callback_changes_is_seen(name: str) -> None:
    def callback(progress: Progress) -> None:
        if progress.epoch == 1:
            CHANGES[name](progress.guide.terms[0])  # type: ignore[index]

    one, _, other, history = both(lambda: pair(Scaled()), callbacks=callback)
    same(one, other)
    assert "until a part of the pair was changed" in history.road


def test_a_term_that_counts_its_calls_goes_on_counting() -> None:
    class Late(Term):
        def __init__(self) -> None:
            super().__init__()
            self._calls = 0

        def forward(self, batch: Batch) -> Tensor:
            self._calls += 1
            return (10.0 if self._calls > 30 else 0.0) * batch.log_q.square().sum(-1)

    _, history, _, other = both(lambda: pair(Late()), epochs=20)
    assert history.terms["late"][-1] < 0
    assert other.terms["late"][-1] == pytest.approx(history.terms["late"][-1], rel=0.3)


def test_a_number_in_a_function_is_seen() -> None:
    factor = 1.0

    class Closed(Term):
        def __init__(self) -> None:
            super().__init__()
            self.penalty = lambda values: factor * values.square()

        def forward(self, batch: Batch) -> Tensor:
            found: Tensor = self.penalty(batch.log_q).sum(-1)
            return found

    def callback(progress: Progress) -> None:
        nonlocal factor
        factor = 1.0 if progress.epoch in (0, 3) else 3.0

    one, _, other, _ = both(lambda: pair(Closed()), callbacks=callback)
    same(one, other)


def test_a_hook_that_a_callback_registers_ends_the_graph() -> None:
    def callback(progress: Progress) -> None:
        if progress.epoch == 1:
            progress.model.bank.loc.register_hook(lambda gradient: 0 * gradient)  # type: ignore[union-attr]

    one, _, other, _ = both(pair, callbacks=callback)
    same(one, other)


@pytest.mark.parametrize("compile", [False, True])
def test_training_goes_on_where_gradients_are_off(compile: bool) -> None:
    one, other = pair(), pair()
    one.fit(X, compile=compile, **OPTIONS)
    with torch.no_grad():
        other.fit(X, compile=compile, **OPTIONS)
    same(one, other)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with torch.inference_mode(), pytest.raises(RuntimeError, match="call it outside"):
        other.fit(X, compile=compile, **OPTIONS)
    for name, value in before.items():
        assert torch.equal(value, other.state_dict()[name])
