"""Medians of interleaved repeats, and the memory that a function takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from pyro_vmonf.starts import growth
from pyro_vmonf.training import trainer
from pyro_vmonf.vmonf import automatic


@dataclass(frozen=True)
class Several:
    """A function whose call takes several steps."""

    function: Callable[[], Any]
    steps: int

    def __call__(self) -> None:
        self.function()


@contextmanager
def processor_minutes() -> Iterator[None]:
    """Let the minutes of ``from_data`` be those of the processor: other programs do not count."""
    clock = SimpleNamespace(perf_counter=time.process_time)
    with ExitStack() as stack:
        for module in (automatic, growth, trainer):
            stack.enter_context(patch.object(module, "time", clock))
        yield


def wait(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 50,
    warm_up: int = 3,
    seconds: float = 120.0,
    device: str = "cpu",
) -> dict[str, float]:
    """Return the median time of each function, or of its steps, in ms, all of them taken in turn.

    At its turn each is called three times, of which the first does not count: in training a step
    follows one of its own kind, and not somebody else's that left other things in the caches.

    Arguments:
        functions: what is timed.
        repeats: rounds, fewer if they take longer than ``seconds``.
        warm_up: rounds that do not count.
        seconds: limit of the whole; five rounds are always taken.
        device: ``"cpu"`` or ``"cuda"``.
    """
    for _ in range(warm_up):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    begun = time.perf_counter()
    for done in range(repeats):
        if done >= 5 and time.perf_counter() - begun > seconds:
            break
        for name, function in functions.items():
            function()
            for _ in range(2):
                wait(device)
                start = time.perf_counter()
                function()
                wait(device)
                times[name].append(time.perf_counter() - start)
    steps = {name: getattr(function, "steps", 1) for name, function in functions.items()}
    return {name: 1e3 * median(values) / steps[name] for name, values in times.items()}


def peak_megabytes(device: str) -> float:
    """Return the most memory that the process has held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
