"""A run whose steps the host does not wait for is the run whose steps it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.flows import Flow, StandardNormal
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.terms import Balance, Batch, Classification
from pyro_vmonf.training import compiling, graphs, trainer, unread
from pyro_vmonf.training.compiling import Compiled
from pyro_vmonf.training.fit import Progress
from pyro_vmonf.training.trainer import Trainer
from pyro_vmonf.transforms import BatchNorm

K, D = 3, 2
X = torch.randn(96, D, generator=torch.Generator().manual_seed(5))
Y = torch.where(torch.arange(96) < 12, torch.arange(96) % K, -1)
OPTIONS: dict[str, Any] = {"epochs": 6, "batch_size": 20, "progress": False, "seed": 0}


@pytest.fixture
def unread_steps(monkeypatch: pytest.MonkeyPatch, captured_once: None) -> Callable[[bool], None]:
    """A function that lets the verdicts of the steps wait, as on a device, or not."""
    own = unread.has_to_wait
    monkeypatch.setattr(graphs, "compiled", lambda graph, inputs: graph)

    def let(wait: bool) -> None:
        monkeypatch.setattr(unread, "has_to_wait", (lambda *_: False) if wait else own)
        monkeypatch.setattr(compiling, "MOST_AT_ONCE", 1 if wait else 16)

    return let


def pair(weights: Any = "learned", term: Any = None) -> VMoNF:
    """A pair whose forward pass moves buffers and counts."""
    torch.manual_seed(0)
    own = RealNVP(D, K, blocks=1, hidden=(4,)).transforms
    bank = Flow([*own, BatchNorm(D, batch_shape=(K,))], base=StandardNormal(D, K))
    terms = [Classification(), *([term] if term else [])]
    return VMoNF(FlowMixture(bank, weights), SoftmaxGuide(nn.Linear(D, K), terms))


def same(one: VMoNF, other: VMoNF) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


TERMS: dict[str, Callable[[Batch], Tensor]] = {
    "value": lambda batch: 1 / (batch.index - 7.0).abs().to(batch.log_q),
    "gradient": lambda batch: ((batch.index - 7.0).abs() + 0 * batch.log_q[..., 0]).sqrt(),
}


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", list(TERMS))
def test_steps_that_are_not_finite_reach_nothing(
    kind: str, compile: bool, unread_steps: Callable[[bool], None]
) -> None:
    """Parameters, moments, counts, buffers and history are those of a run that is read."""
    ends = []
    for wait in (False, True):
        unread_steps(wait)
        one, optimizers = pair(term=TERMS[kind]), []
        optimizer = partial(kept_adam, optimizers)
        # Batches of one length: an open one takes several times as long to capture.
        options = {**OPTIONS, "epochs": 4, "held_out": torch.arange(80, 96), "compile": compile}
        with pytest.warns(RuntimeWarning, match="4 of 16 steps"):
            history = one.fit(X, Y, optimizer=optimizer, clip_norm=0.5, **options)
        assert history.road.startswith("short, compiled") == compile
        ends.append((one, history, optimizers[-1]))
    (first, plain, adam), (second, history, other) = ends
    same(first, second)
    assert history.rejected == plain.rejected == 4
    for name, values in plain.terms.items():
        assert history.terms[name] == pytest.approx(values, rel=1e-6)
    assert history.held_out == plain.held_out
    for one, two in zip(adam.state.values(), other.state.values(), strict=True):
        for name, value in one.items():
            assert torch.equal(value, two[name]), name


def kept_adam(made: list[torch.optim.Optimizer], parameters: list[Tensor]) -> torch.optim.Optimizer:
    made.append(torch.optim.Adam(parameters, lr=0.01, fused=True))
    return made[-1]


class Unwaited(TorchDispatchMode):
    """Refuses what needs a number from the device."""

    WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert op._schema.name.split("::")[1] not in self.WAITS, op
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", ["uniform", "learned", "dirichlet"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_step_asks_the_device_for_nothing(
    weights: str, compile: bool, unread_steps: Callable[[bool], None], monkeypatch: Any
) -> None:
    own, steps = Trainer.step, [0]

    def step(self: Trainer, batches: Any) -> Any:
        steps[0] += 1
        if steps[0] < 3:  # the weights look for counts until there are some
            return own(self, batches)
        with Unwaited(), pytest.MonkeyPatch.context() as patch:
            for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
                patch.setattr(Tensor, name, lambda *_: pytest.fail("a step reads a number"))
            return own(self, batches)

    prior = torch.distributions.Dirichlet(torch.ones(K)) if weights == "dirichlet" else weights
    one = pair(prior, Balance(weight=linear_decay(9, initial=2.0)))
    unread_steps(True)
    monkeypatch.setattr(Trainer, "step", step)
    options = {**OPTIONS, "batch_size": 24, "held_out": 0.25, "clip_norm": 0.5}
    history = one.fit(X, Y, compile=compile, **options)
    drawn = weights == "dirichlet"  # its sites are no part of a graph
    assert history.road.startswith("short, compiled") == (compile and not drawn), history.road
    assert steps[0] == 18


def test_a_lost_run_is_given_up(unread_steps: Callable[[bool], None]) -> None:
    ends = []
    for wait in (False, True):
        unread_steps(wait)
        one = pair(term=lambda batch: batch.log_q[..., 0] * torch.nan)
        with pytest.raises(FloatingPointError, match=r"20 steps in a row .*\(step 20: term custom"):
            one.fit(X, **OPTIONS)
        ends.append(one)
    same(*ends)


def test_long_epochs_are_read_in_the_middle(
    unread_steps: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "LONGEST_UNREAD", 8)
    one = pair(term=lambda batch: batch.log_q[..., 0] * torch.nan)
    unread_steps(True)
    with pytest.raises(FloatingPointError, match="24 steps in a row"):
        one.fit(X, epochs=1, batch_size=2, progress=False)


@pytest.mark.parametrize("compile", [False, True])
def test_an_interrupt_leaves_the_last_accepted_state(
    compile: bool, unread_steps: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, steps, ends = Compiled.step, [0], []

    def step(self: Compiled, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 8:
            raise KeyboardInterrupt
        return own(self, *arguments)

    monkeypatch.setattr(Compiled, "step", step)
    for wait in (False, True):
        unread_steps(wait)
        one, steps[0] = pair(), 0
        with pytest.raises(KeyboardInterrupt) as stopped:
            one.fit(X, compile=compile, **{**OPTIONS, "batch_size": 24})
        ends.append((one, stopped.value.history))  # type: ignore[attr-defined]
    same(ends[0][0], ends[1][0])
    assert ends[0][1].elbo == pytest.approx(ends[1][1].elbo, rel=1e-6)


def test_a_resumed_run_is_the_run_that_nothing_interrupts(
    unread_steps: Callable[[bool], None], tmp_path: Path
) -> None:
    unread_steps(True)
    whole, part, path = pair(term=TERMS["value"]), pair(term=TERMS["value"]), tmp_path / "run.pt"

    def stop(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="6 of 30 steps"):
        plain = whole.fit(X, Y, **OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        part.fit(X, Y, checkpoint=path, callbacks=stop, **OPTIONS)
    with pytest.warns(RuntimeWarning, match="6 of 30 steps"):
        history = part.fit(X, Y, resume=path, **OPTIONS)
    same(whole, part)
    assert history.elbo == plain.elbo


def test_what_takes_no_verdict_is_read() -> None:
    there = [torch.nn.Parameter(torch.ones(2, device="meta")) for _ in range(2)]
    here = [torch.nn.Parameter(torch.ones(2))]
    fused = torch.optim.Adam(there)
    fused.param_groups[0]["fused"] = True
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(fused)
    assert not unread.has_to_wait(fused, None, there)
    assert not unread.has_to_wait(fused, plateau, there)
    assert unread.has_to_wait(fused, torch.optim.lr_scheduler.StepLR(fused, 1), there)
    assert unread.has_to_wait(torch.optim.Adam(there), None, there)
    assert unread.has_to_wait(torch.optim.SGD(there, lr=0.1, fused=False), None, there)
    assert unread.has_to_wait(torch.optim.Adam(here, fused=True), None, here)
    assert unread.has_to_wait(fused, None, there + here)
