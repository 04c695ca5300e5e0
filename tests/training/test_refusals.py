"""A refused option leaves the pair as it was: state, modes, frozen parameters, binding, store."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.utils.data import DataLoader

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF, fit
from pyro_vmonf.distortions import Adversarial, AffineImages, Jitter
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import Linear
from pyro_vmonf.terms import Balance, Classification

N, K = 24, 2
X = torch.linspace(-3, 3, 2 * N).sin().reshape(N, 2)
Y = torch.tensor([0, -1, -1, 1] * (N // 4))
NAN = math.nan


class NoSteps(Optimizer):
    """An optimiser that fails at its first step."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        raise RuntimeError("no step")


class Unwritten(SGD):
    """An optimiser whose state no file can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "lock": lambda: None}


def own() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(1))


def short(steps: int) -> Any:
    return lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=steps, cycle_momentum=False)


def short_in_sequence(o: Optimizer) -> lr_scheduler.SequentialLR:
    return lr_scheduler.SequentialLR(o, [lr_scheduler.ConstantLR(o, 0.1, 2), short(3)(o)], [2])


def listed(values: list[float]) -> Any:
    return lambda step: values[step]


FAIL_AT_A_STEP = [NoSteps, torch.optim.SparseAdam]

# Values that no option of that kind takes.
WRONG_COUNTS: list[Any] = [0, -1, 1.5, NAN, "3", True, [3], torch.tensor([1, 2])]
WRONG_NUMBERS: list[Any] = [-1.0, NAN, math.inf, "0.1", True, [0.1]]
WRONG_FLAGS: list[Any] = ["yes", 2, None, [True]]
WRONG_PATHS: list[Any] = [3, "", True, [Path("a.pt")], "/no/such/folder/run.pt", "."]
NO_FUNCTIONS: list[Any] = [3, "adam", [Adam]]

BAD: dict[str, list[Any]] = {
    "epochs": WRONG_COUNTS,
    "steps": WRONG_COUNTS,
    "batch_size": [*WRONG_COUNTS, None],
    "lr": [*WRONG_NUMBERS, None],
    "weight_decay": [*WRONG_NUMBERS, None],
    "optimizer": [
        *NO_FUNCTIONS,
        Adam([own()]),
        torch.optim.LBFGS,
        NoSteps,
        torch.optim.SparseAdam,
        lambda p: None,
        lambda p: Adam([own()]),
        lambda p: Adam([]),
        lambda p: SGD(p, lr=NAN),
        lambda p: SGD(p, lr=-1.0),
        lambda: None,
    ],
    "scheduler": [
        *NO_FUNCTIONS,
        lambda o: None,
        lambda o: lr_scheduler.StepLR,
        lambda o: lr_scheduler.StepLR(Adam([own()]), 2),
        lambda o: lr_scheduler.LambdaLR(o, listed([1.0] * 5)),
        lambda: None,
        short(7),
        short_in_sequence,
    ],
    "clip_norm": [0.0, *WRONG_NUMBERS],
    "minutes": [0.0, *WRONG_NUMBERS],
    "temperature": [
        0.0,
        *WRONG_NUMBERS,
        listed([1.0] * 5),
        lambda step: -1.0,
        lambda step: "warm",
        lambda step: 1.0 if step != 4 else NAN,
        lambda: 1.0,
        Linear(4, 1.0, 0.0),
    ],
    "sample_weight": [
        "heavy",
        [1.0],
        [1.0] * (N - 1) + [-1.0],
        [NAN] * N,
        [0.0] * N,
        np.zeros(N),
        torch.zeros(N),
    ],
    "given": [torch.zeros(N, 1), np.zeros((N, 1))],
    "pretrain_epochs": [-1, 1.5, "3", True, None],
    "interleave": WRONG_FLAGS,
    "held_out": [
        *WRONG_NUMBERS, 1.0, 0.001, None, torch.tensor([0, 0]), torch.tensor([N]), torch.arange(N),
        torch.tensor([0.5]), np.array([-1]),
    ],
    "patience": [*WRONG_COUNTS, 3],
    "keep": ["first", 3, True, ["best"]],
    "standardize": WRONG_FLAGS,
    "callbacks": [3, "abc", [3], None, [lambda progress: None, "abc"]],
    "max_rejected": [*WRONG_COUNTS, None],
    "checkpoint": WRONG_PATHS,
    "every": [*WRONG_COUNTS, None],
    "resume": [*WRONG_PATHS[:4]],
    "progress": WRONG_FLAGS,
    "seed": [1.5, NAN, "a", True, [1], 2**70, -(2**70)],
    "fast": WRONG_FLAGS,
    "compile": ["yes", 2, None, [True]],
    "loss": [1.5, "a", True, TraceEnum_ELBO],
}  # fmt: skip
CASES = [(name, i) for name, values in BAD.items() for i in range(len(values))]


def pair() -> VMoNF:
    torch.manual_seed(0)
    terms = [Classification(weight=Linear(8, 3.0, 1.0)), Balance()]
    vmonf = VMoNF(
        FlowMixture(Gaussian(2, K), "learned"), SoftmaxGuide(MLP(2, K, hidden=(3,)), terms)
    )
    vmonf.guide.network.eval()
    next(vmonf.guide.parameters()).requires_grad_(False)
    return vmonf


def all_of(vmonf: VMoNF) -> dict[str, Any]:
    """Everything that a fit changes."""
    return {
        "state": {name: value.tolist() for name, value in vmonf.state_dict().items()},
        "modes": [part.training for part in vmonf.modules()],
        "trained": [parameter.requires_grad for parameter in vmonf.parameters()],
        "binding": id(vmonf.guide.model),
        "weights": [term.current_weight for term in vmonf.guide.terms],
        "history": vmonf.history,
        "store": dict(pyro.get_param_store()),
        "random": torch.get_rng_state().tolist(),
    }


def test_every_option_has_bad_values() -> None:
    parameters = inspect.signature(fit).parameters
    assert BAD.keys() == parameters.keys() - {"model", "guide", "x", "y"}


@pytest.mark.filterwarnings("ignore")
def test_bad_options_are_refused_by_name_before_the_pair_changes() -> None:
    assert len(CASES) > 150
    pyro.param("mine", torch.ones(1))
    vmonf = pair()
    before = all_of(vmonf)
    for name, number in CASES:
        value = BAD[name][number]
        options: dict[str, Any] = {"epochs": 4, "batch_size": 12, "progress": False, "seed": 0}
        if name == "steps":
            del options["epochs"]
        fails_late = any(value is late for late in FAIL_AT_A_STEP)
        kinds = (ValueError, TypeError, RuntimeError) if fails_late else (ValueError, TypeError)
        with pytest.raises(kinds) as refusal:
            vmonf.fit(X, Y, **(options | {name: value}))
        assert fails_late or name in str(refusal.value), f"{name}={value!r}: {refusal.value}"
        after = all_of(vmonf)
        for key, what in before.items():
            assert after[key] == what, f"{name}={value!r} changes {key}"


LATER: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such file to resume": ({"resume": "none.pt"}, FileNotFoundError, "none.pt"),
    "two lengths": ({"epochs": 1, "steps": 1}, ValueError, "epochs=1 and steps=1"),
    "a state that no file holds": (
        {"optimizer": lambda p: Unwritten(p, lr=0.1), "checkpoint": "run.pt"},
        ValueError,
        "optimizer is a Unwritten",
    ),
    "a scheduler with pretraining": (
        {"pretrain_epochs": 2, "epochs": 4, "batch_size": 12, "scheduler": short(9)},
        ValueError,
        "ends after 9 of the 10 steps",
    ),
    "a scheduler that interleaving makes too short": (
        {"interleave": True, "epochs": 4, "batch_size": 12, "scheduler": short(7)},
        ValueError,
        "scheduler is a OneCycleLR that ends after 7 of the 8 steps",
    ),
    "a term without a weight at a step": ({}, ValueError, "no number at step 2"),
}


@pytest.mark.parametrize("case", LATER)
def test_what_fits_nothing_is_refused_before_the_pair_changes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options, kind, message = LATER[case]
    length = {} if "steps" in options else {"epochs": 4}
    vmonf = pair()
    if not options:
        vmonf.guide.terms[1].weight = listed([1.0, 2.0])
    before = all_of(vmonf)
    with pytest.raises(kind, match=message):
        vmonf.fit(X, Y, **{**length, "progress": False, "seed": 0, **options})
    assert all_of(vmonf) == before


class Doubled(nn.Module):
    """Components in float64 of parameters in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(3, 2))

    def forward(self, context: Tensor | None = None) -> dist.Distribution:
        return dist.Normal(self.loc.double(), torch.ones(3, 2).double()).to_event(1)


MIXED: dict[str, tuple[Callable[[], VMoNF], str]] = {
    "guide": (lambda: _doubled("guide"), "its bank in torch.float32.*guide in torch.float64"),
    "bank": (lambda: _doubled("model.bank"), "its bank in torch.float64.*guide in torch.float32"),
    "weights": (lambda: _doubled("model.weights"), "weights in torch.float64"),
    "components": (
        lambda: VMoNF(FlowMixture(Doubled(), "learned"), SoftmaxGuide(MLP(2, 3))),
        "site c in torch.float32, site x in torch.float64, posterior in torch.float32",
    ),
    "components of an exact guide": (
        lambda: VMoNF(FlowMixture(Doubled(), "learned")),
        "several precisions",
    ),
}


def _doubled(part: str) -> VMoNF:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3)))
    vmonf.get_submodule(part).double()
    return vmonf


@pytest.mark.parametrize("case", MIXED)
def test_two_precisions_are_refused_before_the_pair_changes(case: str) -> None:
    make, message = MIXED[case]
    vmonf = make()
    before = [(value.dtype, value.tolist()) for value in vmonf.state_dict().values()]
    with pytest.raises(ValueError, match=message):
        vmonf.fit(X, epochs=1, progress=False)
    assert [(v.dtype, v.tolist()) for v in vmonf.state_dict().values()] == before


def test_a_fit_under_autocast_is_refused() -> None:
    vmonf = pair()
    before = all_of(vmonf)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast to"):
        vmonf.fit(X, epochs=1, progress=False)
    assert all_of(vmonf) == before


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int16, torch.bool])
def test_positions_of_any_whole_numbers_are_held_out(kind: torch.dtype) -> None:
    positions = torch.tensor([1, 5, 7])
    held = torch.zeros(len(X), dtype=torch.bool).index_fill(0, positions, True)
    ends = []
    for held_out in (positions, held if kind == torch.bool else positions.to(kind)):
        vmonf = pair()
        vmonf.fit(X, epochs=1, held_out=held_out, seed=0, progress=False)
        ends.append(vmonf.log_prob(X))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_sizes_and_seeds_of_verbs_are_whole_numbers() -> None:
    vmonf = pair()
    for verb in (vmonf.log_prob, vmonf.predict, vmonf.elbo, vmonf.partial_log_prob):
        chunks, whole = verb(X, chunk_size=np.int64(3)), verb(X)
        for one, other in zip(_listed(chunks), _listed(whole), strict=True):
            torch.testing.assert_close(one, other)
    assert vmonf.sample(5, chunk_size=np.int64(2), seed=np.int64(0))[0].shape == (5, 2)
    for seed, kind in ((2**64, ValueError), ("a", TypeError), (True, TypeError), (1.0, TypeError)):
        with pytest.raises(kind, match="seed is"):
            vmonf.sample(5, seed=seed)


def _listed(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def test_a_refused_checkpoint_leaves_the_temperature(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), SoftmaxGuide(MLP(2, K, hidden=(3,)))).fit(
        X, Y, epochs=1, temperature=0.5, progress=False, seed=0, checkpoint=path
    )
    vmonf = pair()
    before = all_of(vmonf)
    with pytest.raises(ValueError, match="does not fit the pair"):
        vmonf.fit(X, Y, epochs=1, temperature=0.5, progress=False, resume=path)
    assert all_of(vmonf) == before


def test_a_loaders_batches_of_weight_zero_are_refused() -> None:
    vmonf = pair()
    before = all_of(vmonf)
    data = [(X[i], Y[i], torch.tensor(0.0)) for i in range(N)]
    loader: DataLoader[Any] = DataLoader(data, batch_size=12)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight"):
        vmonf.fit(loader, epochs=1, progress=False, seed=0)
    assert all_of(vmonf) == before


def test_schedulers_that_are_long_enough_run_as_they_would_alone() -> None:
    """The rehearsal leaves no trace: the rates of a run are those of the scheduler by itself."""
    makers: dict[str, Any] = {
        "one cycle": short(8),
        "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 2, cycle_momentum=False),
        "multiplied": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
        "lambda": lambda o: lr_scheduler.LambdaLR(o, listed([0.5**i for i in range(9)])),
        "sequence": lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
        "chain": lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
        ),
    }
    for name, make in makers.items():
        rates: list[float] = []

        class Seen(SGD):
            def step(self, closure: Any = None) -> None:
                rates.append(self.param_groups[0]["lr"])  # noqa: B023
                super().step()

        pair().fit(X, Y, epochs=4, batch_size=12, progress=False, seed=0, scheduler=make,
                   optimizer=lambda p: Seen(p, lr=0.1))  # fmt: skip
        alone = SGD([own()], lr=0.1)
        scheduler, wanted = make(alone), []
        for _ in range(8):
            wanted.append(alone.param_groups[0]["lr"])
            alone.step()
            scheduler.step()
        assert rates == wanted, name


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_is_measured_by_the_epochs_objective(mode: str) -> None:
    made: list[lr_scheduler.ReduceLROnPlateau] = []
    seen: list[float] = []

    class Recorded(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            seen.append(float(metrics))
            super().step(metrics)

    def make(optimizer: Optimizer) -> lr_scheduler.ReduceLROnPlateau:
        made.append(
            Recorded(optimizer, mode, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs")
        )  # type: ignore[arg-type]
        return made[0]

    history = pair().fit(X, Y, epochs=4, batch_size=12, held_out=0.25, pretrain_epochs=1,
                         scheduler=make, progress=False, seed=0)  # fmt: skip
    objective = [v for e, v in zip(history.epoch, history.objective, strict=True) if e >= 0]
    assert seen == [v if mode == "max" else -v for v in objective]
    assert made[0].optimizer.param_groups[0]["lr"] < 1e-3


def test_restarts_with_a_plateau_have_a_rate_each() -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, K)), SoftmaxGuide(MLP(2, K, hidden=(3,))))
    history = vmonf.fit(X, n_init=2, epochs=2, scheduler=lr_scheduler.ReduceLROnPlateau,
                        progress=False, seed=0)  # fmt: skip
    assert len(history.restarts) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Jitter(NAN),
        lambda: Jitter(-1.0),
        lambda: Jitter(math.inf),
        lambda: Jitter("a"),  # type: ignore[arg-type]
        lambda: Adversarial(NAN),
        lambda: Adversarial(probe=0.0),
        lambda: AffineImages((4, 4), shear=NAN),
        lambda: MLP(2, 3, hidden=(0,)),
        lambda: MLP(2, 3, hidden=(4, -1)),
        lambda: MLP(2, 3, hidden=(4, 1.5)),  # type: ignore[arg-type]
        lambda: RealNVP(2, 3, hidden=(0,), blocks=2),
    ],
)
def test_parts_refuse_what_they_cannot_be(make: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"scale|hidden|epsilon|probe|shear"):
        make()


@pytest.mark.parametrize(
    "options",
    [{}, {"n_init": 2}, {"optimizer": lambda p: SGD(p, lr=0.1)}],
    ids=["one run", "two runs", "own optimiser"],
)
def test_a_pair_with_nothing_to_train_is_refused_in_words(options: dict[str, Any]) -> None:
    frozen = Gaussian(2, K).requires_grad_(False)
    for guide in (None, lambda: None, SoftmaxGuide(MLP(2, K)).requires_grad_(False)):
        vmonf = VMoNF(FlowMixture(frozen), guide)
        with pytest.raises(
            ValueError, match=r"nothing to train: .*; expected one at least\. Free a"
        ):
            vmonf.fit(X, epochs=1, progress=False, **options)
        assert not vmonf.model.standardizer.fitted
