"""The end of a run: interrupts and errors leave what was reached, and dead states are named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.em import fit_em
from pyro_vmonf.nn.mlp import MLP
from pyro_vmonf.training.endings import _clusters, endings, endings_of_data
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.trainer import Trainer

X, _ = pinwheel(wings=3, per_wing=40, seed=0)
STEPS = 4  # of an epoch: 120 rows in batches of 30
OPTIONS: dict[str, Any] = {"batch_size": 30, "progress": False, "seed": 0}


def pair(dtype: torch.dtype = torch.float32) -> VMoNF:
    torch.manual_seed(0)
    return VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3, hidden=(8,)))).to(
        dtype
    )


class Failing(torch.optim.SGD):
    """An optimiser that is interrupted after it moved half of the parameters."""

    def __init__(self, parameters: Any, error: BaseException, at: int) -> None:
        super().__init__(parameters, lr=0.1)
        self.error, self.left = error, at

    def step(self, closure: Any = None) -> Any:
        if self.left == 0:
            with torch.no_grad():
                for parameter in self.param_groups[0]["params"][::2]:
                    parameter.add_(1.0)
            raise self.error
        self.left -= 1
        return super().step(closure)


def state_after(steps: int) -> dict[str, torch.Tensor]:
    """The state after some whole steps of the same run."""
    vmonf = pair()
    options = {**OPTIONS, "temperature": 1.0, "keep": "last"}
    vmonf.fit(X, steps=steps, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **options)
    return vmonf.state_dict()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("no")], ids=str)
@pytest.mark.parametrize("at", [1, 3, 4, 9, 13])
def test_interrupt_leaves_last_accepted_state(error: BaseException, at: int) -> None:
    vmonf = pair().eval()
    vmonf.model.train()
    modes = [part.training for part in vmonf.modules()]
    random = torch.get_rng_state()
    store = dict(pyro.get_param_store())
    with pytest.raises(type(error)) as caught:
        vmonf.fit(
            X,
            epochs=5,
            temperature=1.0,
            optimizer=lambda p: Failing(p, error, at),
            **OPTIONS,
        )
    history = vmonf.history
    assert caught.value is error
    assert history is not None
    epoch = at // STEPS
    kind = type(error).__name__
    words = "interrupted" if isinstance(error, KeyboardInterrupt) else kind
    words += " in" if not words.endswith("in") else ""
    assert history.stopped == f"{words} epoch {epoch}"
    assert history.epoch == list(range(epoch))
    assert history.seconds > 0
    note = error.__notes__[-1]  # the last of those that this error has seen
    assert f"{history.stopped}; {epoch} epochs are whole" in note
    assert history.road == "short"
    assert modes == [part.training for part in vmonf.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert dict(pyro.get_param_store()) == store
    assert bool(vmonf.model.standardizer.fitted)
    for name, value in state_after(at).items():
        assert torch.equal(value, vmonf.state_dict()[name]), name


def raising(error: BaseException, epoch: int) -> Any:
    def callback(progress: Any) -> None:
        if progress.epoch == epoch:
            raise error

    return callback


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("held_out", [0.0, 0.25])
@pytest.mark.parametrize(
    ("error", "stopped"),
    [
        (ValueError("mine"), "ValueError in a callback"),
        (KeyboardInterrupt(), "interrupted in epoch 3"),
    ],
    ids=["error", "interrupt"],
)
def test_error_in_callback(
    error: BaseException, stopped: str, keep: Any, held_out: float, tmp_path: Path
) -> None:
    vmonf, whole = pair(), pair()
    options = {**OPTIONS, "keep": keep, "held_out": held_out, "temperature": 1.0}
    with pytest.raises(type(error)) as caught:
        vmonf.fit(X, epochs=10, callbacks=raising(error, 3), **options)
    assert caught.value is error
    assert vmonf.history is not None
    expected = whole.fit(X, epochs=4, **{**options, "keep": "last"})
    assert vmonf.history.elbo == expected.elbo
    assert vmonf.history.held_out == expected.held_out
    assert vmonf.history.stopped == stopped
    for name, value in whole.state_dict().items():
        assert torch.equal(value, vmonf.state_dict()[name]), name
    vmonf.save(tmp_path / "pair.pt")  # what was reached can be used
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert loaded.history == vmonf.history
    assert torch.equal(loaded.log_prob(X), vmonf.log_prob(X))
    assert stopped in vmonf.history._repr_html_()
    vmonf.fit(X, epochs=1, **options)
    assert vmonf.history.stopped == ""


def test_interrupt_in_record_leaves_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    measure, calls = Trainer._measure, [0]

    def interrupted(self: Trainer, epoch: int) -> None:
        calls[0] += 1
        if epoch == 2:
            raise KeyboardInterrupt
        measure(self, epoch)

    monkeypatch.setattr(Trainer, "_measure", interrupted)
    vmonf = pair()
    with pytest.raises(KeyboardInterrupt):
        vmonf.fit(X, epochs=5, held_out=0.25, **OPTIONS)
    history = vmonf.history
    assert history is not None
    assert history.epoch == [0, 1]
    columns = (history.step, history.elbo, history.objective, history.held_out, history.temperature)
    assert {len(column) for column in (*columns, *history.terms.values())} == {2}


def test_refused_run_keeps_former_history() -> None:
    vmonf = pair()
    former = vmonf.fit(X, epochs=1, **OPTIONS)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        vmonf.fit(X, epochs=2, optimizer=lambda p: Failing(p, ZeroDivisionError(), 0), **OPTIONS)
    assert vmonf.history is former
    for name, value in before.items():
        assert torch.equal(value, vmonf.state_dict()[name]), name


ERRORS = [KeyboardInterrupt(), ValueError("mine")]


def failing_at(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int, run: int = 0
) -> None:
    """Let a run fail before a step, or in the middle of one if the number is no integer."""
    step, begin, number = Trainer.step, Trainer.run, [-1]

    def counted(self: Trainer) -> Any:
        number[0] += 1
        return begin(self)

    def failing(self: Trainer, batches: Any) -> Any:
        if number[0] == run and self.steps == at:

            def halfway() -> None:
                with torch.no_grad():
                    for parameter in self.lanes.parameters[::2]:
                        parameter.add_(1.0)
                raise error

            monkeypatch.setattr(self, "_move", halfway)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "run", counted)
    monkeypatch.setattr(Trainer, "step", failing)


RESTARTS: dict[str, Any] = {**OPTIONS, "temperature": 1.0, "held_out": 0.25, "keep": "last"}
EPOCH = 3  # steps of an epoch: 90 rows in batches of 30


def equal(one: VMoNF, other: VMoNF) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.allclose(mine[k], theirs[k], rtol=1e-9, atol=1e-9) for k in theirs)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_interrupted_restarts_side_by_side_leave_the_best_state_reached(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the best of the same runs that end after the steps that were accepted."""
    vmonf, whole = pair(torch.float64), pair(torch.float64)
    x = X.double()
    whole.fit(x, steps=2 * EPOCH + 1, n_init=3, **RESTARTS)
    failing_at(monkeypatch, error, 2 * EPOCH + 1)
    with pytest.raises(type(error)) as caught:
        vmonf.fit(x, epochs=9, n_init=3, **RESTARTS)
    history = vmonf.history
    assert caught.value is error
    assert history is not None
    assert history is vars(error).pop("history")
    assert history.stopped.endswith("epoch 2")
    assert history.epoch == [0, 1]
    assert len(history.restarts) == 3
    assert history.final_objective == max(history.restarts)
    assert equal(vmonf, whole)
    assert torch.isfinite(vmonf.log_prob(x)).all()
    monkeypatch.undo()
    assert len(vmonf.fit(x, epochs=1, n_init=2, **RESTARTS).restarts) == 2


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("run", [0, 1, 2])
def test_interrupted_restarts_one_by_one_leave_the_best_that_ended(
    run: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against as many runs as ended, or the first steps of the first one."""
    vmonf, whole = pair(torch.float64), pair(torch.float64)
    x = X.double()
    # The rows that restarts of seed 0 hold out.
    held_out = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: len(x) // 4]
    options = {**RESTARTS, "held_out": held_out, "callbacks": lambda _: None}
    course = {"epochs": 3, "n_init": run} if run else {"steps": EPOCH + 1}
    whole.fit(x, **course, **options)
    failing_at(monkeypatch, error, EPOCH + 1, run)
    options["held_out"] = 0.25
    with pytest.raises(type(error)) as caught:
        vmonf.fit(x, epochs=3, n_init=3, **options)
    history = vmonf.history
    assert caught.value is error
    assert history is vars(error).pop("history")
    assert history is not None
    assert len(history.epoch) == (3 if run else 1)
    assert history.stopped.endswith(f"restart {run}" if run else "epoch 1")
    assert len(history.restarts) == run
    assert equal(vmonf, whole)
    assert torch.isfinite(vmonf.log_prob(x)).all()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.filterwarnings("ignore:the guide knows clusters")
def test_restarts_that_reach_nothing_leave_pair_and_history(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmonf = pair()
    former = vmonf.fit(X, epochs=1, **OPTIONS)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    options = OPTIONS if together else {**OPTIONS, "callbacks": lambda _: None}
    if together:
        monkeypatch.setattr(Trainer, "_measure", lambda *_: 1 / 0)
    else:
        failing_at(monkeypatch, ZeroDivisionError(), 0)
    with pytest.raises(ZeroDivisionError):
        vmonf.fit(X, epochs=4, n_init=2, held_out=0.25, **options)
    assert vmonf.history is former
    assert former.stopped == ""
    for name, value in before.items():
        assert torch.equal(value, vmonf.state_dict()[name]), name


def test_given_up_run_has_history() -> None:
    vmonf = pair()
    vmonf.fit(X, epochs=1, **OPTIONS)
    with pytest.raises(FloatingPointError):
        vmonf.fit(
            X, epochs=9, max_rejected=3, optimizer=lambda p: torch.optim.SGD(p, lr=1e30), **OPTIONS
        )
    assert vmonf.history is not None
    assert vmonf.history.stopped == "3 steps in a row were not finite"


def test_plain_fit_hands_history_to_error() -> None:
    vmonf = pair()
    callback = raising(ValueError("mine"), 2)
    with pytest.raises(ValueError, match="mine") as caught:
        fit(vmonf.model, vmonf.guide, X, epochs=5, callbacks=callback, **OPTIONS)
    assert vars(caught.value)["history"].epoch == [0, 1, 2]
    assert vmonf.history is None


LONG: dict[str, Any] = {**OPTIONS, "epochs": 25}  # 100 steps
SOON: dict[str, Any] = {**OPTIONS, "epochs": 8}  # 32 steps, or 24 where rows are held out


@pytest.fixture
def ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run of twenty steps count as one that had the time to end somewhere."""
    monkeypatch.setattr("pyro_vmonf.training.endings.LEAST_STEPS", 20)


def weights_of(vmonf: VMoNF, *logits: float) -> None:
    """Let the guide give every row the same posterior, for good."""
    last = [m for m in vmonf.guide.modules() if hasattr(m, "bias") and m.bias is not None][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(logits).reshape(last.bias.shape))
    vmonf.guide.requires_grad_(False)


def said_by(call: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if "the fit ended" in str(w.message)]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((40, 40, 40), None),
        ((58, 58, 4), None),
        ((59, 58, 3), "with collapsed components: 2, whose shares of 120 rows are 0.025 (below"),
        ((3, 114, 3), "with collapsed components: 0, 2, whose shares of 120 rows are 0.025, 0.025"),
        ((0, 0, 120), "with all of 120 rows in one cluster, component 2 of 3;"),
        ((120, 0, 0), "with all of 120 rows in one cluster, component 0 of 3;"),
    ],
    ids=str,
)
def test_clusters_are_judged(shares: tuple[int, ...], expected: str | None) -> None:
    """Against posteriors whose shares are known; the bound is 1/30, four rows of 120."""
    q = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor(shares), 0)
    found = _clusters(q, None)
    assert len(found) == (expected is not None)
    for text in found:
        assert text.startswith(f"the fit ended {expected}")


def test_shares_count_rows_by_their_weight() -> None:
    q = torch.eye(2).repeat_interleave(torch.tensor([90, 10]), 0)
    assert _clusters(q, None) == []
    weight = torch.ones(100)
    weight[90:] = 0.1  # one row of 91
    [text] = _clusters(q, weight)
    assert "collapsed components: 1, whose shares of 100 rows are 0.011 (below" in text


@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize("dead", [[0], [1, 2]], ids=str)
@pytest.mark.parametrize("options", [{}, {"keep": "best"}, {"held_out": 0.25}], ids=str)
def test_dead_fit_warns_at_the_call(dead: list[int], options: dict[str, Any]) -> None:
    vmonf = pair()
    weights_of(vmonf, *(-30.0 if c in dead else 0.0 for c in range(3)))
    [caught] = said_by(lambda: vmonf.fit(X, **SOON, **options))
    rows = 30 if "held_out" in options else 120
    words = f"all of {rows} rows in one cluster"  # equal logits have the same largest one
    assert words in str(caught.message)
    assert caught.category is RuntimeWarning
    assert caught.filename == __file__
    assert vmonf.history is not None


class Raw(pyro.nn.PyroModule):
    """A guide that is no part of the library, and puts all rows into one cluster."""

    def log_q(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([9.0, 0.0, 0.0]).expand(len(x), 3).log_softmax(-1)

    def forward(self, x: torch.Tensor, index: Any = None, size: int | None = None) -> None:
        with pyro.plate("data", size or len(x), subsample=index):
            q = pyro.distributions.Categorical(logits=self.log_q(x))
            pyro.sample("c", q, infer={"enumerate": "parallel"})


@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize("several", [False, True])
def test_raw_units_are_named_where_the_log_q_is_of_the_user(several: bool) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), [lambda: None, Raw()] if several else Raw())
    options = SOON
    [raw] = said_by(lambda: vmonf.fit(X, standardize=False, **options))
    assert "units" not in str(raw.message)
    vmonf.model.standardize_(X)
    [caught] = said_by(lambda: vmonf.fit(X, **options))
    assert str(caught.message).startswith(str(raw.message))
    assert "The log_q of Raw is given rows in raw units" in str(caught.message)
    library = pair()
    weights_of(library, 9.0, 0.0, 0.0)
    [caught] = said_by(lambda: library.fit(X, **options))
    assert "units" not in str(caught.message)


def test_short_fit_and_healthy_fit_do_not_warn() -> None:
    healthy = VMoNF(FlowMixture(Gaussian(2, 3), "learned"))
    fit_em(healthy.model, X, seed=0)
    assert said_by(lambda: healthy.fit(X, **LONG)) == []
    assert bool((healthy.predict_proba(X).mean(0) > 0.1).all())
    vmonf = pair()
    weights_of(vmonf, 9.0, 0.0, 0.0)
    assert said_by(lambda: vmonf.fit(X, **{**LONG, "epochs": 24})) == []
    assert len(said_by(lambda: vmonf.fit(X, **LONG))) == 1


class Counted(TensorDataset):
    """Rows that remember how often they were asked for."""

    asked = 0

    def __getitem__(self, index: Any) -> Any:
        self.asked += 1
        return super().__getitem__(index)


def test_dead_fit_on_a_loader_warns_without_another_pass() -> None:
    vmonf = pair()
    weights_of(vmonf, 9.0, 0.0, 0.0)
    rows = Counted(X[torch.arange(120).argsort(stable=True)])
    loader = DataLoader(rows, batch_size=24)
    [caught] = said_by(lambda: vmonf.fit(loader, **{**LONG, "epochs": 40}))
    assert "all of 120 rows in one cluster" in str(caught.message)
    assert rows.asked <= 120 * (40 + 2)  # epochs, units, and the first batch of the check


def test_columns_of_a_loader_are_named() -> None:
    x = torch.cat((X, torch.ones(120, 1)), 1)
    vmonf = VMoNF(FlowMixture(Gaussian(3, 2), "learned"))
    loader = DataLoader(TensorDataset(x), batch_size=24, shuffle=True)
    with pytest.warns(UserWarning, match="column 2 is constant"):
        vmonf.fit(loader, epochs=1, progress=False, seed=0)


def test_one_component_and_few_rows_do_not_warn() -> None:
    alone = VMoNF(FlowMixture(Gaussian(2, 1)))
    assert said_by(lambda: alone.fit(X, **LONG)) == []
    vmonf = pair()
    weights_of(vmonf, 9.0, 0.0, 0.0)
    assert said_by(lambda: vmonf.fit(X[:29], **{**LONG, "epochs": 100})) == []


@pytest.mark.usefixtures("ends_soon")
@pytest.mark.parametrize("options", [{}, {"callbacks": lambda _: None}], ids=["together", "alone"])
def test_restarts_warn_of_the_one_that_stays(options: dict[str, Any]) -> None:
    vmonf = pair()
    options = {**SOON, "lr": 1e-9, **options}  # nothing is learned
    caught = said_by(lambda: vmonf.fit(X, n_init=2, **options))
    assert vmonf.history is not None
    expected = endings_of_data(vmonf.model, vmonf.guide, vmonf.history, X, None, {})
    assert [str(w.message) for w in caught] == expected
    assert all(w.filename == __file__ for w in caught)
    weights_of(vmonf, 0.0, 9.0, 0.0)  # and the judgement depends on the state
    [text] = endings_of_data(vmonf.model, vmonf.guide, vmonf.history, X, None, {})
    assert "all of 120 rows in one cluster" in text


def test_state_that_is_not_finite_is_named() -> None:
    vmonf = pair()
    history = vmonf.fit(X, epochs=1, **OPTIONS)
    assert endings(vmonf.model, vmonf.guide, history, None) == []
    name = "model.bank.loc"
    parameter = dict(vmonf.named_parameters()).get(name, next(vmonf.model.bank.parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = torch.nan
    [text] = endings(vmonf.model, vmonf.guide, history, None)
    assert "not finite (1 of " in text


@pytest.mark.parametrize("keep", ["last", "best"])
def test_worse_held_out_objective_has_both_numbers(keep: Any) -> None:
    vmonf = pair()
    said_by(lambda: vmonf.fit(X, **LONG, lr=0.01))
    wild = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.7, maximize=True), "clip_norm": 0.05}
    caught = said_by(
        lambda: vmonf.fit(X, held_out=0.25, keep=keep, **LONG | {"epochs": 40}, **wild)
    )
    history = vmonf.history
    assert history is not None
    [text] = [str(w.message) for w in caught if "held-out objective" in str(w.message)]
    reached = max(history.objective) if keep == "best" else history.objective[-1]
    assert reached < history.start
    assert f"{reached:.4f}" in text
    assert f"{history.start:.4f}" in text


def test_warning_as_error_keeps_history() -> None:
    vmonf = pair()
    weights_of(vmonf, 9.0, 0.0, 0.0)
    with pytest.raises(RuntimeWarning, match="in one cluster"):
        vmonf.fit(X, **LONG)
    assert vmonf.history is not None
    assert len(vmonf.history.epoch) == 25


def test_a_run_ends_when_its_minutes_are_over() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    history = vmonf.fit(torch.randn(64, 2), epochs=10**5, minutes=1e-3, progress=False, seed=0)
    assert history.stopped == "0.001 minutes were over"
    assert 0 < len(history.epoch) < 10**5
    assert history.seconds >= 0.06
    # in the middle of an epoch as well
    history = vmonf.fit(torch.randn(4096, 2), batch_size=2, epochs=1, minutes=1e-5, progress=False)
    assert 0 < history.step[-1] < 2048
    assert history.stopped == "1e-05 minutes were over"
