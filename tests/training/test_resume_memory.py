"""What samplers, schedules and terms remember goes on in a resumed run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Batch

N, K = 24, 2
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0)).double()
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "progress": False, "seed": 0}


class Stop(Exception):
    """What ends the first part of a run."""


def stop(progress: Any) -> None:
    if progress.epoch == 2:
        raise Stop


class Order(Sampler[int]):
    """An order that is shuffled in place."""

    def __init__(self, kind: str) -> None:
        self.order: Any = list(range(N)) if kind == "list" else np.arange(N)
        self.generator = random.Random(0)

    def __iter__(self) -> Iterator[int]:
        self.generator.shuffle(self.order)
        return iter(int(i) for i in self.order)

    def __len__(self) -> int:
        return N


class Drawn(Sampler[int]):
    """Rows by weights that fall with each draw; the number of passes lies in a slot."""

    __slots__ = ("passes",)

    def __init__(self) -> None:
        self.weight, self.passes = torch.ones(N), 0

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        generator = torch.Generator().manual_seed(self.passes)
        drawn = torch.multinomial(self.weight, N, generator=generator)
        self.weight[drawn[:8]] *= 0.5
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return N


def counting() -> DataLoader[Tensor]:
    calls = 0

    def collate(rows: list[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.stack(rows) + 0.01 * calls

    return DataLoader(X, 8, collate_fn=collate)  # type: ignore[arg-type]


class Warm:
    """A term that counts its calls, from a number of its class."""

    calls = 0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += 1
        return 0.1 * self.calls * batch.log_q.exp().amax(-1)


class Shares:
    """A term that remembers the shares of the components."""

    def __init__(self) -> None:
        self.shares = torch.zeros(K).double()

    def __call__(self, batch: Batch) -> Tensor:
        q = batch.log_q.exp()
        self.shares = 0.9 * self.shares + 0.1 * q.detach().mean(0)
        return (q * self.shares).sum(-1)


class Buffered(nn.Module):
    """The same in a buffer that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.zeros(K).double(), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        q = batch.log_q.exp()
        self.shares = 0.9 * self.shares + 0.1 * q.detach().mean(0)
        return (q * self.shares).sum(-1)


class Cooling:
    """A schedule that falls with its calls."""

    def __init__(self) -> None:
        self.value = 2.0

    def __call__(self, step: int) -> float:
        self.value = max(0.999 * self.value, 0.2)
        return self.value


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: DataLoader(X, 8, sampler=Order("list")),  # type: ignore[arg-type]
    "array": lambda: DataLoader(X, 8, sampler=Order("array")),  # type: ignore[arg-type]
    "tensor and slot": lambda: DataLoader(X, 8, sampler=Drawn()),  # type: ignore[arg-type]
    "closure": counting,
}
TERMS: dict[str, Callable[[], Any]] = {"number": Warm, "shares": Shares, "buffer": Buffered}


def check(data: Callable[[], Any], term: Any, path: Path, **given: Callable[[], Any]) -> None:
    ends = []
    for resume in (False, True):
        for part in ((stop, None), (None, path))[: 1 + resume]:
            torch.manual_seed(0)
            guide = SoftmaxGuide(MLP(2, K, hidden=(3,)), [term()] if term else [])
            vmonf = VMoNF(FlowMixture(Gaussian(2, K)), guide).double()
            options = {**OPTIONS, **{name: make() for name, make in given.items()}}
            if not resume:
                vmonf.fit(data(), **options)
            elif part[0] is not None:
                with pytest.raises(Stop):
                    vmonf.fit(data(), checkpoint=path, callbacks=[stop], **options)
            else:
                vmonf.fit(data(), resume=path, **options)
        ends.append(vmonf)
    whole, resumed = ends
    assert resumed.history.elbo == whole.history.elbo
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


@pytest.mark.parametrize("kind", LOADERS)
def test_the_memory_of_a_loader_goes_on(kind: str, tmp_path: Path) -> None:
    check(LOADERS[kind], None, tmp_path / "run.pt")


@pytest.mark.parametrize("kind", TERMS)
def test_the_memory_of_a_term_goes_on(kind: str, tmp_path: Path) -> None:
    check(lambda: X, TERMS[kind], tmp_path / "run.pt")


def test_the_memory_of_a_schedule_goes_on(tmp_path: Path) -> None:
    check(lambda: X, None, tmp_path / "run.pt", temperature=Cooling)


def test_a_number_of_an_optimiser_keeps_its_precision(tmp_path: Path) -> None:
    """NAdam has a product in float32 beside parameters in float64."""
    nadam = lambda: lambda p: torch.optim.NAdam(p, 1e-2)  # noqa: E731
    check(lambda: X, None, tmp_path / "run.pt", optimizer=nadam)
