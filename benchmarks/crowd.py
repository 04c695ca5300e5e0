"""``python -m benchmarks.crowd --minutes M``: two processes of three threads, cut short at random.

Each thread fits, is interrupted at random, resumes, saves to a path that all share, loads, and
scores. Every result has to be the same to the bit, every file whole. One process lives to the end,
and its memory must not grow; the other is killed at random and started again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import megabytes
from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.distortions import Jitter
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Consistency
from tests.processes import start

THREADS = 3
EPOCHS = 8


class Interrupted(KeyboardInterrupt):
    """What a callback raises in place of Ctrl-C, which reaches the main thread alone."""


def pair() -> VMoNF:
    """Return the pair of every round, whose steps draw."""
    with local_seed(0):
        guide = SoftmaxGuide(MLP(2, 3), [Consistency(Jitter(0.1))])
        return VMoNF(FlowMixture(RealNVP(2, 3, blocks=2), "learned"), guide)


def fitted(checkpoint: Path, interrupts: list[int]) -> VMoNF:
    """Fit a pair that is interrupted at some epochs and resumed in a fresh one."""
    x, _ = pinwheel(wings=3, per_wing=60, seed=0)
    while True:
        vmonf = pair()
        stop = interrupts.pop() if interrupts else EPOCHS

        def callback(progress: Any, stop: int = stop) -> None:
            if progress.epoch == stop:
                raise Interrupted

        try:
            vmonf.fit(
                x,
                epochs=EPOCHS,
                seed=1,
                progress=False,
                callbacks=callback,
                checkpoint=checkpoint,
                resume=checkpoint,
            )
        except Interrupted:
            assert vmonf.history is not None
            assert vmonf.history.stopped
            continue
        checkpoint.unlink()
        return vmonf


def one_round(folder: Path, own: Path, draw: random.Random) -> list[torch.Tensor]:
    """Return the state of a fit that is interrupted, saved to a shared path, and loaded."""
    stops = sorted((draw.randrange(EPOCHS) for _ in range(draw.randrange(3))), reverse=True)
    vmonf = fitted(own, stops)
    vmonf.save(folder / "shared.pt")
    loaded = VMoNF.load(folder / "shared.pt")  # the file of any thread, and all are alike
    assert all(
        torch.equal(a, b)
        for a, b in zip(vmonf.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    x, _ = pinwheel(wings=3, per_wing=60, seed=0)
    return [*loaded.state_dict().values(), loaded.log_prob(x), loaded.predict_proba(x)]


def work(folder: Path, name: str, end: float) -> None:
    """Run rounds in three threads until the end; write what they found to a file of lines."""
    expected = one_round(folder, folder / f"{name}.first", random.Random(0))
    failures: list[str] = []
    rounds = [0] * THREADS

    def go_on(number: int) -> None:
        draw = random.Random(f"{name} {number} {os.getpid()}")
        own = folder / f"{name}.{os.getpid()}.{number}"
        try:
            while time.time() < end and not failures:
                found = one_round(folder, own, draw)
                same = all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
                assert same, "a round differs from the first"
                rounds[number] += 1
        except BaseException as error:
            failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=go_on, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    with (folder / f"{name}.log").open("a") as log:
        while any(thread.is_alive() for thread in threads):
            time.sleep(1.0)
            gc.collect()
            line = {"rounds": sum(rounds), "megabytes": megabytes(), "failures": failures}
            log.write(json.dumps(line) + "\n")
            log.flush()


def crowd(minutes: float, kill_every: float = 20.0) -> dict[str, Any]:
    """Let two processes work for a time, and kill one of them at random.

    Raises:
        AssertionError: if a round differs, a file is not whole, or memory grows.
    """
    draw, end, kills = random.Random(0), time.time() + 60 * minutes, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steady, mortal = (start(work, folder, who, end) for who in ("steady", "mortal"))
        while (left := end - time.time()) > 0:
            time.sleep(min(left, kill_every * (0.5 + draw.random())))
            assert steady.is_alive() or time.time() > end, "the steady process died"
            if end - time.time() > kill_every:
                mortal.kill()
                mortal.join()
                mortal, kills = start(work, folder, "mortal", end), kills + 1
        steady.join()
        mortal.join()
        VMoNF.load(folder / "shared.pt")
        found = {
            who: [json.loads(line) for line in (folder / f"{who}.log").read_text().splitlines()]
            for who in ("steady", "mortal")
        }
    failures = [line["failures"] for lines in found.values() for line in lines if line["failures"]]
    assert not failures, failures[0]
    held = [line["megabytes"] for line in found["steady"]]
    settled = held[len(held) // 4]
    grown = held[-1] - settled
    assert grown < 30, f"{grown:.0f} MB more are held than after a quarter of the time"
    return {
        "rounds": found["steady"][-1]["rounds"],
        "kills": kills,
        "megabytes": settled,
        "megabytes_grown": grown,
    }


def main() -> None:
    """Run for as long as is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    print(crowd(parser.parse_args().minutes))


if __name__ == "__main__":
    main()
