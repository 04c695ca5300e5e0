"""R restarts of the pinwheel's mixture at once, against one fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.configurations import CONFIGURATIONS
from benchmarks.tables import Options, Row
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.terms import Balance
from pyro_vmonf.training.together import fit_together

STEPS, NUMBERS, ROUNDS = 30, (1, 2, 4, 8, 16, 32), 3


def run(options: Options) -> Iterator[list[Row]]:
    """Yield one row for each number of restarts; a round goes through all of them."""
    x, _ = pinwheel(seed=0)
    x = x.to(options.device)
    seconds: dict[int, list[float]] = {count: [] for count in (0, *NUMBERS)}
    for _ in range(ROUNDS):
        for count, times in seconds.items():
            with local_seed(0):
                pairs = [CONFIGURATIONS["pinwheel"].pair() for _ in range(max(count, 1))]
            for pair in pairs:
                pair.guide.terms.append(Balance())
                pair.to(options.device)
            start = time.perf_counter()
            if count:
                both = [(pair.model, pair.guide) for pair in pairs]
                fit_together(both, x, None, list(range(count)), steps=STEPS, progress=False)
            else:
                pairs[0].fit(x, steps=STEPS, seed=0, progress=False)
            times.append((time.perf_counter() - start) / STEPS)
    one = median(seconds.pop(0))
    yield [
        {
            "config": f"R={count}",
            "peer": "library",
            "median_ms": round(1e3 * median(times), 2),
            "over_one_fit": round(median(times) / one, 2),
            "ms_per_restart": round(1e3 * median(times) / count, 2),
            "threads": options.threads,
            "device": options.device,
        }
        for count, times in seconds.items()
    ]
