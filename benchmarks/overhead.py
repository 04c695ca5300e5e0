"""``python -m benchmarks.overhead``: where a step goes: the program, the bank, the operations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.configurations import CONFIGURATIONS
from benchmarks.peers import adam, library, limit_step
from benchmarks.timing import interleaved


def without_pyro(name: str) -> Callable[[], None]:
    """Return a step of this library's bank and network with the closed form of the ELBO."""
    c = CONFIGURATIONS[name]
    pair, x = c.pair(), c.batch()
    optimizer = adam(pair.parameters())
    bank, network = pair.model.bank, pair.guide.network

    def step() -> None:
        log_q = network(x).log_softmax(-1)
        log_prob = bank().log_prob(x.unsqueeze(1))
        loss = (log_q.exp() * (log_q - log_prob)).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def shares(step: Callable[[], object], steps: int = 10) -> dict[str, float]:
    """Return the largest shares of a step's own time by operation, in per cent."""
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:4]
    return {event.key: 100 * event.self_cpu_time_total / total for event in largest}


if __name__ == "__main__":
    torch.set_num_threads(2)
    for name in ("pinwheel", "mid"):
        c = CONFIGURATIONS[name]
        steps = {
            "the whole step": library(c, "cpu"),
            "without Pyro": without_pyro(name),
            "written by hand": limit_step(c, "cpu"),
        }
        times = interleaved(steps, repeats=100, seconds=30)
        print(name, {key: f"{value:.2f} ms" for key, value in times.items()})
        print(
            name, {key: f"{value:.0f} %" for key, value in shares(steps["the whole step"]).items()}
        )
