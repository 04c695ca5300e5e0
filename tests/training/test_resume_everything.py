"""A run that is interrupted and resumed is the run that nothing interrupts, to the bit."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
)

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.distortions import Jitter
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import Linear, cooling, linear_decay
from pyro_vmonf.terms import Balance, Batch, Classification, Consistency

N, K, BATCH = 24, 2, 12
X = torch.linspace(-3, 3, 2 * N).sin().mul(3).reshape(N, 2)
Y = torch.tensor([0, -1, -1, 1] * (N // 4))
WEIGHT = torch.linspace(0.5, 1.5, N)


class Stop(Exception):
    """What interrupts a run."""


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


class Counting(Sampler[int]):
    """An order that depends on how often it was asked for."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(np.random.default_rng(self.passes).permutation(N).tolist())

    def __len__(self) -> int:
        return N


class Noisy(Dataset[Tensor]):
    """Rows with noise from a generator of NumPy, and from the global ones."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(3)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Tensor:
        drawn = self.own.normal() + np.random.normal() + random.gauss(0.0, 1.0)  # noqa: NPY002
        return X[index] + 0.1 * drawn + 0.1 * torch.randn(2)


class Stream(IterableDataset[Tensor]):
    def __init__(self) -> None:
        self.generator = random.Random(4)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X[self.generator.sample(range(N), N)])


def with_noise(generator: torch.Generator) -> Callable[[Batch], Tensor]:
    return lambda batch: batch.x + 0.1 * torch.randn(batch.x.shape, generator=generator)


def batched() -> BatchSampler:
    return BatchSampler(RandomSampler(range(N), generator=seeded()), BATCH, False)


LOADERS: dict[str, Callable[[], Any]] = {
    "batch sampler": lambda: DataLoader(X, batch_sampler=batched()),
    "counting": lambda: DataLoader(X, BATCH, sampler=Counting()),
    "noisy": lambda: DataLoader(Noisy(), BATCH, shuffle=True, generator=seeded()),
    "stream": lambda: DataLoader(Stream(), BATCH),
}
GUIDES: dict[str, Callable[[], Any]] = {
    "cold": lambda: SoftmaxGuide(MLP(2, K, hidden=(3,)), temperature=0.7, top=1),
    "scheduled": lambda: SoftmaxGuide(
        MLP(2, K, hidden=(3,)),
        [Classification(weight=linear_decay(6, initial=9.0)), Balance(weight=Linear(5, 3.0, 0.0))],
    ),
    "noisy": lambda: SoftmaxGuide(
        torch.nn.Sequential(torch.nn.Linear(2, K), torch.nn.BatchNorm1d(K), torch.nn.Dropout(0.2)),
        [Consistency(with_noise(seeded())), Consistency(Jitter())],
    ),
    "exact": ExactGuide,
    "none": lambda: None,
}  # fmt: skip
BANKS: dict[str, Callable[[], Any]] = {
    "gaussian": lambda: Gaussian(2, K),
    "flow": lambda: RealNVP(2, K, blocks=2, hidden=(2,)),
    "random": lambda: RandomBank(Gaussian(2, K)),
}
WEIGHTS: dict[str, Callable[[], Any]] = {
    "uniform": lambda: "uniform",
    "learned": lambda: "learned",
    "updated": lambda: "updated",
    "dirichlet": lambda: torch.distributions.Dirichlet(torch.ones(K)),
}
OPTIMIZERS: dict[str, Any] = {
    "default": None,
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "rprop": torch.optim.Rprop,
    "groups": lambda p: torch.optim.Adam([{"params": p[:1], "lr": 1e-2}, {"params": p[1:]}]),
}
SCHEDULERS: dict[str, Any] = {
    "none": None,
    "one cycle": lambda o: lr_scheduler.OneCycleLR(
        o, 1e-2, total_steps=40, cycle_momentum=False
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1), lr_scheduler.StepLR(o, 2)], optimizer=o
    ),
}  # fmt: skip
TEMPERATURES: dict[str, Any] = {
    "default": None,
    "number": 0.5,
    "cooling": cooling(0.3, share=1.0),
    "function": lambda step: 1.0 / (1 + step),
}
FACTORS: dict[str, list[Any]] = {
    "rows": ["memory", *LOADERS],
    "guide": list(GUIDES),
    "bank": list(BANKS),
    "weights": list(WEIGHTS),
    "optimizer": list(OPTIMIZERS),
    "scheduler": list(SCHEDULERS),
    "temperature": list(TEMPERATURES),
    "phases": ["plain", "interleave", "pretrain", "both"],
    "length": [{"epochs": 3}, {"steps": 5}],
    "held_out": [0.0, 0.25, torch.tensor([1, 5, 9])],
    "keep": [None, "best", "last"],
    "patience": [None, 2],
    "sample_weight": [False, True],
    "clip_norm": [None, 0.5],
    "standardize": [True, False],
    "every": [1, 2],
    "stop": [1, 2],  # the epoch after whose callbacks no checkpoint is written any more
    "resumes": ["fresh", "same"],  # the pair that goes on: a new one, or the one that was stopped
}
Case = dict[str, Any]


def possible(case: Case) -> bool:
    """Whether ``fit`` accepts a combination."""
    in_memory = case["rows"] == "memory"
    held_out = case["held_out"] != 0.0 if isinstance(case["held_out"], float) else True
    networks = case["guide"] not in ("exact", "none")
    return (
        case["stop"] >= case["every"]
        and (
            in_memory or (case["phases"] == "plain" and not held_out and not case["sample_weight"])
        )
        and (held_out or case["patience"] is None)
        and (networks or case["temperature"] == "default")
        and not (case["guide"] == "none" and case["sample_weight"])
    )


def pairs_of(chosen: dict[str, int]) -> set[Any]:
    return set(itertools.combinations(chosen.items(), 2))


def drawn_cases(seed: int, count: int) -> Iterator[dict[str, int]]:
    """Possible combinations at random, as the number of each factor's value."""
    draw = random.Random(seed)
    for _ in range(count):
        chosen = {name: draw.randrange(len(values)) for name, values in FACTORS.items()}
        if chosen["rows"]:  # of what goes with a loader
            chosen |= dict.fromkeys(("phases", "held_out", "patience", "sample_weight"), 0)
        if possible({name: FACTORS[name][i] for name, i in chosen.items()}):
            yield chosen


def covering_array(seed: int) -> list[dict[str, int]]:
    """Combinations in which every pair of values occurs that is possible."""
    pool = list(drawn_cases(seed, 3000))
    covers = [pairs_of(chosen) for chosen in pool]
    numbers = {pair: i for i, pair in enumerate(set().union(*covers))}
    bits = [sum(1 << numbers[pair] for pair in pairs) for pairs in covers]
    missing = (1 << len(numbers)) - 1
    array: list[dict[str, int]] = []
    while missing:
        best = max(range(len(pool)), key=lambda i: (bits[i] & missing).bit_count())
        missing &= ~bits[best]
        array.append(pool[best])
    return array


ARRAY = covering_array(0)
CASES: list[Case] = [{name: FACTORS[name][i] for name, i in row.items()} for row in ARRAY]


def make(case: Case) -> VMoNF:
    torch.manual_seed(1)
    model = FlowMixture(BANKS[case["bank"]](), WEIGHTS[case["weights"]]())
    return VMoNF(model, GUIDES[case["guide"]]())


def data_of(case: Case) -> tuple[Any, ...]:
    if case["rows"] != "memory":
        return (LOADERS[case["rows"]](),)
    return X, None if case["phases"] == "plain" else Y


def options_of(case: Case) -> dict[str, Any]:
    return {
        **case["length"],
        "batch_size": BATCH,
        "optimizer": OPTIMIZERS[case["optimizer"]],
        "scheduler": SCHEDULERS[case["scheduler"]],
        "temperature": TEMPERATURES[case["temperature"]],
        "interleave": case["phases"] in ("interleave", "both"),
        "pretrain_epochs": int(case["phases"] in ("pretrain", "both")),
        "sample_weight": WEIGHT if case["sample_weight"] else None,
        "every": case["every"],
        "fast": case["scheduler"] != "chained",
        "progress": False,
        "seed": 3,
        **{name: case[name] for name in ("held_out", "keep", "patience", "clip_norm",
                                         "standardize")},
    }  # fmt: skip


def everything(vmonf: VMoNF) -> dict[str, Any]:
    """State and history, but for the time, and the weights of the terms."""
    assert vmonf.history is not None
    return {
        "state": {k: v.double().nan_to_num(7e77).tolist() for k, v in vmonf.state_dict().items()},
        "history": repr({**vars(vmonf.history), "seconds": 0.0}),
        "terms": [t.current_weight for t in getattr(vmonf.guide, "terms", [])],
    }


def reset_globals() -> None:
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    random.seed(11)


def check_resumes(case: Case, path: Path) -> None:
    options = options_of(case)
    whole, part = make(case), make(case)

    def interrupt(progress: Any) -> None:
        if progress.epoch == case["stop"]:
            raise Stop

    data = data_of(case)
    reset_globals()
    with contextlib.suppress(Stop):
        part.fit(*data, checkpoint=path, callbacks=interrupt, **options)
    reset_globals()
    whole.fit(*data_of(case), **options)
    expected = everything(whole)
    if case["resumes"] == "fresh":
        part, data = make(case), data_of(case)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    part.fit(*data, checkpoint=path, resume=path, **options)
    assert everything(part) == expected, case
    if case["stop"] == 2:  # the run is over: going on with it changes nothing
        part.fit(*data, checkpoint=path, resume=path, **options)
        assert everything(part) == expected, f"{case}: over"


def test_the_array_covers_the_pairs() -> None:
    """Of other combinations that are drawn, every pair of values is in the array."""
    covered = set().union(*map(pairs_of, ARRAY))
    wanted = set().union(*map(pairs_of, drawn_cases(1, 1000)))
    assert len(CASES) >= 40
    assert len(wanted) > 1000
    assert len(wanted - covered) <= 5, wanted - covered


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(CASES)))
def test_resumed_runs_are_equal_to_the_bit(number: int, tmp_path: Path) -> None:
    check_resumes(CASES[number], tmp_path / "run.pt")
