"""Threads and processes: fits and verbs give what each gives alone, saves are whole."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, RandomWeights, RealNVP, SoftmaxGuide, VMoNF, files
from pyro_vmonf._utils.contexts import one_thread
from pyro_vmonf.distortions import Jitter
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.terms import Consistency
from tests.processes import start

K, D = 3, 2
X = torch.randn(90, D, generator=torch.Generator().manual_seed(5))


def pair(seed: int) -> VMoNF:
    """A pair whose every step draws: random weights, noise on the rows, dropout."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Dropout(0.2), MLP(D, K, hidden=(4,)))
    guide = SoftmaxGuide(network, [Consistency(Jitter(0.1))])
    bank = RealNVP(D, K, blocks=2, hidden=(4,))
    return VMoNF(FlowMixture(bank, RandomWeights(torch.ones(K))), guide)


def state(vmonf: VMoNF) -> list[Tensor]:
    return [value.clone() for value in vmonf.state_dict().values()]


def by_fit(vmonf: VMoNF, seed: int) -> list[Tensor]:
    vmonf.fit(X, epochs=8, batch_size=30, seed=seed, progress=False)
    return state(vmonf)


def by_restarts(vmonf: VMoNF, seed: int) -> list[Tensor]:
    vmonf.fit(X, epochs=4, batch_size=30, seed=seed, n_init=2, progress=False)
    return state(vmonf)


def by_verbs(vmonf: VMoNF, seed: int) -> list[Tensor]:
    found: list[Tensor] = []
    for i in range(10):
        found += [*vmonf.sample(20, seed=seed + i), vmonf.log_prob(X), vmonf.predict_proba(X)]
        found.append(vmonf.elbo(X))
        vmonf._repr_html_()
    return found


def by_start(vmonf: VMoNF, seed: int) -> list[Tensor]:
    warm_start_(vmonf.guide, X, torch.arange(len(X)) % K, steps=20, seed=seed)
    return state(vmonf)


def together(works: list[Callable[[], object]]) -> list[object]:
    """The results of functions, each in a thread of its own, all begun at once."""
    found: list[object] = [None] * len(works)
    begin = threading.Barrier(len(works))

    def run(i: int) -> None:
        begin.wait()
        try:
            found[i] = works[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("second", [by_fit, by_verbs, by_restarts, by_start])
def test_two_threads_give_what_each_gives_alone(
    second: Callable[[VMoNF, int], list[Tensor]],
) -> None:
    pairs = [pair(0), pair(1)]
    expected = [by_fit(pair(0), 0), second(pair(1), 1)]
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(()))
    before = torch.get_rng_state(), list(warnings.filters)
    found = together([lambda: by_fit(pairs[0], 0), lambda: second(pairs[1], 1)])
    for values, wanted in zip(found, expected, strict=True):
        assert isinstance(values, list), values
        assert all(torch.equal(a, b) for a, b in zip(values, wanted, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert list(warnings.filters) == before[1]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


def fork_during_a_fit() -> None:
    """Leave with the status of a child that is forked while another thread fits."""
    forked, done = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        forked.set()
        done.wait(60)

    vmonf, other = pair(0), pair(1)
    thread = threading.Thread(
        target=lambda: vmonf.fit(X, epochs=1, callbacks=wait, seed=0, progress=False)
    )
    thread.start()
    assert forked.wait(60)
    warnings.simplefilter("ignore")  # of forks beside threads
    child = os.fork()
    if not child:
        other.log_prob(X)
        os._exit(7)
    status = os.waitpid(child, 0)[1]
    done.set()
    thread.join()
    os._exit(os.waitstatus_to_exitcode(status))


def test_a_process_that_is_forked_during_a_fit_can_score() -> None:
    """The child has no thread that could give the lock back."""
    process = start(fork_during_a_fit)
    process.join(60)
    status = process.exitcode  # none, if it waits for ever
    process.kill()
    assert status == 7


# Files.


def write_often(path: Path, number: int) -> None:
    numbers = torch.full((20_000,), float(number))
    for _ in range(40):
        files.write({"kind": "x", "number": number, "numbers": numbers}, path)


def whole(path: Path) -> int:
    """The number in a file, all of whose parts are of one writer."""
    found = files.read(path, "x")
    assert bool((found["numbers"] == found["number"]).all())
    return int(found["number"])


def test_threads_and_processes_save_to_one_path(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    files.write({"kind": "x", "number": 0, "numbers": torch.zeros(20_000)}, path)
    process = start(write_often, path, 2)

    def watch() -> set[int]:
        seen = {whole(path) for _ in range(40)}
        while process.is_alive():
            seen.add(whole(path))
        return seen

    found = together([lambda: write_often(path, 0), lambda: write_often(path, 1), watch])
    assert found[:2] == [None, None]
    assert isinstance(found[2], set), found[2]
    assert 2 in found[2], "the other process did not write"
    process.join()
    assert process.exitcode == 0
    assert whole(path) in range(3)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_what_a_killed_writer_left_is_swept_after_a_day(tmp_path: Path) -> None:
    names = {
        ".x.pt.12345.part": True,  # of the process 12345, by an earlier version
        ".x.pt.0123456789abcdef.part": True,
        ".x.pt.fresh.part": False,
        ".y.pt.0123456789abcdef.part": False,  # another path
        "x.pt.part": False,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
        age = 0 if "fresh" in name else 2 * 24 * 60 * 60
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.write({"kind": "x"}, tmp_path / "x.pt")
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {name for name, swept in names.items() if not swept} | {"x.pt"}


def test_linear_algebra_has_its_threads_back() -> None:
    def threads() -> list[int]:
        return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

    with one_thread():
        pass  # every library is there
    with threadpool_limits(2, "blas"):
        with one_thread():
            assert set(threads()) == {1}
        assert set(threads()) == {2}
