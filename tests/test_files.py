"""Files: whole or not at all, hostile ones refused; runs that go on where they stopped."""

from __future__ import annotations

import functools
import gzip
import io
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    History,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    files,
)
from pyro_vmonf.datasets import read_idx
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Consistency
from tests.processes import start

K, D = 3, 2
X = torch.randn(120, D, generator=torch.Generator().manual_seed(5))


def pair(seed: int = 0) -> VMoNF:
    torch.manual_seed(seed)
    return VMoNF(FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,))), SoftmaxGuide(MLP(D, K)))


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_file_brings_the_history_and_the_units(tmp_path: Path) -> None:
    vmonf = pair()
    history = vmonf.fit(100 + 7 * X, epochs=2, temperature=0.3, progress=False)
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert same(loaded, vmonf)
    assert loaded.history == history
    assert float(loaded.guide.temperature) == pytest.approx(0.3)
    torch.testing.assert_close(loaded.log_prob(100 + 7 * X), vmonf.log_prob(100 + 7 * X))
    loaded.fit(100 + 7 * X, epochs=1, progress=False)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in a file was run",))


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _changed(**changes: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        found = torch.load(io.BytesIO(content), weights_only=True)
        return _saved({**found, **changes})

    return change


def _declared(name: str, value: Any) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        found = torch.load(io.BytesIO(content), weights_only=True)
        found["description"]["model"]["arguments"]["bank"]["arguments"][name] = value
        return _saved(found)

    return change


def _inflated(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**8)
    return buffer.getvalue()


def _deep(content: bytes) -> bytes:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    return _changed(description={"model": nested, "guide": nested})(content)


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "text": lambda content: b"not a model at all",
    "a pickle": lambda content: pickle.dumps({"kind": "fitted mixture"}),
    "a malicious pickle": lambda content: pickle.dumps(Malicious(), protocol=2),
    "a malicious archive": lambda content: _saved({"kind": "fitted mixture", "x": Malicious()}),
    "a list": lambda content: _saved([1, 2]),
    "a checkpoint": _changed(kind="checkpoint"),
    "another format": _changed(format=99),
    "nothing in it": lambda content: _saved({"kind": "fitted mixture", "format": 2}),
    "unknown part": _changed(description={"model": {"part": "Nope", "arguments": {}}, "guide": {}}),
    "a part that is no pair": _changed(description={"model": {"part": "MLP"}, "guide": None}),
    "wrong arguments": _declared("nope", 3),
    "state of another": _changed(state={"nothing": torch.zeros(3)}),
    "state that is no tensor": _changed(state={"nothing": 3}),
    "a huge bank": _declared("features", 10**12),
    "many components": _declared("components", 10**9),
    "wide layers": _declared("hidden", [10**6, 10**6]),
    "wide layers that pass by themselves": _declared("hidden", [1500, 1500, 1500, 1500, 1500]),
    "many blocks": _declared("blocks", 10**9),
    "a bomb": _inflated,
    "nested deep": _deep,
}


@contextmanager
def little_memory(megabytes: int = 300) -> Iterator[None]:
    """Let the process have so much more than it has, no more."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "pair.pt"
    pair().save(path)
    path.write_bytes(HOSTILE[case](path.read_bytes()))
    start = time.perf_counter()
    with little_memory(), pytest.raises(ValueError, match=r"pair\.pt"):
        VMoNF.load(path)
    assert time.perf_counter() - start < 20
    into = pair(1)
    before = pair(1)
    if case.startswith(("a malicious", "state", "half", "a bomb", "a checkpoint")):
        with pytest.raises(ValueError, match=r"pair\.pt"):
            VMoNF.load(path, into=into)
        assert same(into, before)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    vmonf, path = pair(), tmp_path / "pair.pt"
    vmonf.save(path)
    content = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        place = draw.randrange(len(content))
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(changed))
        try:
            assert same(VMoNF.load(path), vmonf)  # padding, and what nobody reads
        except ValueError as error:
            assert "pair.pt" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 75


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmonf, path = pair(), tmp_path / "pair.pt"
    vmonf.save(path)
    before = path.read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"untouched .*No space left"):
        vmonf.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pair.pt"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A real limit on the size of files, which the operating system enforces."""
    vmonf, path = pair(), tmp_path / "pair.pt"
    vmonf.save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="untouched"):
            vmonf.save(path)
        with pytest.raises(OSError, match="untouched"):
            pair().fit(X, epochs=2, checkpoint=path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pair.pt"]


def test_folders_that_cannot_be_written_to_are_told_at_once(tmp_path: Path) -> None:
    vmonf = pair()
    before = pair()
    for path in (tmp_path / "none" / "pair.pt", tmp_path):
        with pytest.raises(ValueError, match="cannot be written"):
            vmonf.save(path)
        with pytest.raises(ValueError, match="cannot be written"):
            vmonf.fit(X, epochs=1, checkpoint=path, progress=False)
    assert same(vmonf, before)
    with pytest.raises(FileNotFoundError):
        VMoNF.load(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):
        vmonf.fit(X, epochs=1, resume=tmp_path / "none.pt", progress=False)


IMAGES: dict[str, bytes] = {
    "promises more": b"\0\0\x08\x01" + (10).to_bytes(4, "big") + b"abc",
    "promises the world": b"\0\0\x08\x03" + b"\xff" * 12 + b"abc",
    "holds more": b"\0\0\x08\x01" + (1).to_bytes(4, "big") + b"\0" * 10**7,
    "many dimensions": b"\0\0\x08\xff" + b"\1" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("case", IMAGES)
def test_images_that_lie_are_refused(case: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(IMAGES[case]) if packed else IMAGES[case])
    with little_memory(200), pytest.raises(ValueError, match="images"):
        read_idx(path)


# Runs that go on --------------------------------------------------------------------------------

RUNS: dict[str, tuple[Callable[[], VMoNF], dict[str, Any]]] = {
    "plain": (pair, {}),
    "random weights": (
        lambda: VMoNF(
            FlowMixture(RealNVP(D, K, blocks=1), dist.Dirichlet(torch.ones(K))),
            SoftmaxGuide(MLP(D, K), [Balance(weight=lambda step: 1 / (1 + step))]),
        ),
        {"held_out": 0.2, "keep": "best", "patience": 3},
    ),
    "a schedule": (
        lambda: VMoNF(FlowMixture(RealNVP(D, K, blocks=1), "updated"), ExactGuide()),
        {
            "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 5),
            "optimizer": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
        },
    ),
    "labels": (
        pair,
        {
            "y": torch.tensor([0, 1, 2] * 10 + [-1] * 90),
            "pretrain_epochs": 2,
            "interleave": True,
            "sample_weight": torch.linspace(0, 1, 120),
            "clip_norm": 1.0,
        },
    ),
    "no guide, by steps": (
        lambda: VMoNF(FlowMixture(RealNVP(D, K, blocks=1), "learned")),
        {"epochs": None, "steps": 22},
    ),
}


COMMON: dict[str, Any] = {"epochs": 6, "batch_size": 32, "progress": False}


class Stop(Exception):
    """What interrupts a run."""


def interrupt_at(epoch: int) -> Callable[[Any], None]:
    def callback(progress: Any) -> None:
        if progress.epoch == epoch:
            raise Stop

    return callback


def without_time(history: History) -> dict[str, Any]:
    return {**vars(history), "seconds": 0.0}


@functools.cache
def whole_run(name: str) -> tuple[dict[str, Tensor], VMoNF, History]:
    """The state before a run that nothing interrupts, its pair, and its history."""
    make, options = RUNS[name]
    whole = make()
    torch.manual_seed(11)
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    return start, whole, whole.fit(X, seed=3, **COMMON | options)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_where_it_would_have(name: str, every: int, tmp_path: Path) -> None:
    make, options = RUNS[name]
    options, path = COMMON | options, tmp_path / "run.pt"
    start, whole, expected = whole_run(name)
    # Where labels come first, a file may be there before the first epoch has ended.
    for epoch in (0, 3) if name == "labels" else (3,):
        part = make()
        part.load_state_dict(start)
        with pytest.raises(Stop):
            part.fit(
                X, seed=3, checkpoint=path, every=every, callbacks=interrupt_at(epoch), **options
            )
        if not path.exists():
            continue
        torch.manual_seed(99)  # whatever else goes on in the other process
        torch.randn(7)
        before = torch.get_rng_state()
        other = make()
        torch.set_rng_state(before)
        history = other.fit(X, resume=path, **options)
        assert torch.equal(torch.get_rng_state(), before)
        assert same(other, whole)
        assert without_time(history) == without_time(expected)
        assert other.history is history


def test_a_loaders_own_order_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def loader() -> DataLoader[Any]:
        draws = torch.Generator().manual_seed(5)
        return DataLoader(TensorDataset(X), batch_size=32, shuffle=True, generator=draws)

    whole, part, again = pair(), pair(), pair(1)
    whole.fit(loader(), epochs=5, seed=1, progress=False)
    with pytest.raises(Stop):
        part.fit(
            loader(), epochs=5, seed=1, checkpoint=path, callbacks=interrupt_at(3), progress=False
        )
    again.fit(loader(), epochs=5, resume=path, progress=False)
    assert same(whole, again)


def test_a_path_is_a_path_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    pair().fit(X, epochs=1, checkpoint=str(path), resume=path, progress=False)
    assert path.exists()


def test_a_finished_run_resumes_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    whole, again = pair(), pair(1)
    whole.fit(X, epochs=3, seed=1, checkpoint=path, resume=path, every=5, progress=False)
    again.fit(X, epochs=3, checkpoint=path, resume=path, progress=False)
    assert same(whole, again)


MISMATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": 9}, "epochs=4, and this one has 9"),
    "batches": ({"batch_size": 7}, "batch_size=32"),
    "seed": ({"seed": 8}, "seed is 8 but .* seed 1"),
    "rows": ({"x": X[:100]}, "rows=120"),
    "data": ({"x": X + 1}, "sum of x"),
    "order of the rows": ({"x": torch.stack((X[1], X[0], *X[2:]))}, "order of x"),
    "labels": ({"y": torch.zeros(120, dtype=torch.long)}, "sum of y=None"),
    "weights": ({"sample_weight": torch.ones(120)}, "sum of sample_weight=None"),
    "step size": ({"lr": 0.5}, "lr=0.001"),
}


RUN: dict[str, Any] = {"x": X, "epochs": 4, "batch_size": 32, "progress": False}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.pt"
    pair().fit(seed=1, checkpoint=path, **RUN)
    return path


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_run_is_not_resumed(case: str, run_file: Path) -> None:
    changes, message = MISMATCHES[case]
    other, before = pair(1), pair(1)
    with pytest.raises(ValueError, match=message):
        other.fit(resume=run_file, **(RUN | changes))
    assert same(other, before)


def test_another_pair_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    pair().fit(X, epochs=1, seed=1, checkpoint=path, progress=False)
    other = VMoNF(FlowMixture(RealNVP(D, K, blocks=3)), SoftmaxGuide(MLP(D, K)))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the pair"):
        other.fit(X, epochs=1, resume=path, progress=False)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name
    pair().save(tmp_path / "pair.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        pair().fit(X, epochs=1, resume=tmp_path / "pair.pt", progress=False)
    with pytest.raises(ValueError, match="one run"):
        pair().fit(X, epochs=1, n_init=2, checkpoint=path, progress=False)


def run_to_the_end(path: Path, out: Path) -> None:
    """Go on with a run from its checkpoint, if there is one."""
    vmonf = pair()
    options = {"checkpoint": path, "resume": path, "progress": False}
    vmonf.fit(X, epochs=25, batch_size=32, seed=3, **options)
    vmonf.save(out)


def test_a_run_survives_kill_9(tmp_path: Path) -> None:
    kills = int(os.environ.get("KILLS", "2"))
    path, out = tmp_path / "run.pt", tmp_path / "pair.pt"
    draw = random.Random(0)
    ends = []
    while not out.exists():
        process = start(run_to_the_end, path, out)
        if len(ends) < kills:
            while not path.exists() and process.is_alive():  # it has to have begun
                time.sleep(0.01)
            time.sleep(0.2 * draw.random())
            process.kill()
        process.join()
        ends.append(process.exitcode)
    assert ends[0] == -signal.SIGKILL
    assert ends[-1] in (0, -signal.SIGKILL)
    whole = pair()
    whole.fit(X, epochs=25, batch_size=32, seed=3, progress=False)
    assert same(VMoNF.load(out), whole)
    leftovers = {p.name for p in tmp_path.iterdir()} - {"run.pt", "pair.pt"}
    assert all(name.endswith(".part") for name in leftovers)


def test_write_and_read_are_inverse(tmp_path: Path) -> None:
    content = {
        "kind": "x",
        "b": [1, 2.5, "three", None, {"c": True}],
        "long": [float(n) / 3 for n in range(40)] + [float("inf"), -0.0],
        "whole": list(range(40)),
        "mixed": [1, *(float(n) for n in range(40))],
        "pair": ("one", (1.5, ())),
    }
    files.write(content, tmp_path / "x")
    found = files.read(tmp_path / "x", "x")
    assert {key: found[key] for key in content} == content
    assert str(found["long"][-1]) == "-0.0"
    assert list(map(type, found["mixed"])) == list(map(type, content["mixed"]))


def test_tensors_of_a_file_are_of_their_kind_and_apart(tmp_path: Path) -> None:
    one, turned = torch.randn(3, 4, dtype=torch.float64), torch.randn(2, dtype=torch.complex64)
    tensors = {
        "one": one,
        "again": one,
        "turned": one.t(),
        "a column": one[:, 1],
        "no rows": torch.zeros(0, 4),
        "a number": torch.tensor(float("nan")),
        "whole": torch.arange(5),
        "true": torch.tensor([True, False]),
        "half": torch.randn(2).half(),
        "large": torch.randn(300, 300),
        "complex": turned,
        "its conjugate": turned.conj(),
        "imaginary": turned.imag,
        "negative": turned.conj().imag,
    }
    files.write({"kind": "x", "state": dict(tensors), "tuple": (1, one)}, tmp_path / "x")
    found = files.read(tmp_path / "x", "x")
    for name, value in tensors.items():
        torch.testing.assert_close(found["state"][name], value, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found["tuple"][1], one)
    found["state"]["one"].zero_()  # tensors of two shapes have numbers of their own
    assert torch.equal(found["state"]["turned"], one.t())


def test_a_program_may_change_the_tensors_of_a_file(tmp_path: Path) -> None:
    """A file is what ``torch.load`` reads: dictionaries of tensors."""
    path = tmp_path / "pair.pt"
    vmonf = pair()
    vmonf.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = [entry for entry in archive.namelist() if "/data/" in entry]
    content = torch.load(path, weights_only=True)
    assert len(parts) < len(content["state"]) / 4
    content["state"]["guide.temperature"].fill_(0.5)
    torch.save(content, path)
    loaded = VMoNF.load(path)
    assert loaded.guide.temperature == 0.5
    others = {n: v for n, v in vmonf.state_dict().items() if n != "guide.temperature"}
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in others.items())


def test_opening_a_file_draws_no_walks_and_imports_no_compiler(tmp_path: Path) -> None:
    """The walks of a graph are drawn when they are used: the next fit does."""
    x = torch.randn(60, 2)
    guide = SoftmaxGuide(MLP(2, 3), [Consistency(RandomWalk(x, neighbors=5))])
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), guide)
    vmonf.fit(x, epochs=1, progress=False)
    vmonf.save(tmp_path / "pair")
    code = (
        "import sys; from pyro_vmonf import VMoNF\n"
        "before = {'torch._dynamo', 'sklearn.neighbors'} & set(sys.modules)\n"
        f"vmonf = VMoNF.load({str(tmp_path / 'pair')!r})\n"
        "after = {'torch._dynamo', 'sklearn.neighbors'} & set(sys.modules)\n"
        "assert after == before, after"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    loaded = VMoNF.load(tmp_path / "pair")
    walk = loaded.guide.terms[0].distort
    assert walk.get_buffer("_ends") is None
    loaded.fit(x, epochs=1, progress=False)
    assert walk.get_buffer("_ends").shape == walk.ends.shape == (60, 64)
