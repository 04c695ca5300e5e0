"""A thousand steps of ``fit`` with all that it does, beside a thousand bare steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.configurations import CONFIGURATIONS
from benchmarks.peers import library
from benchmarks.tables import Options, Row
from pyro_vmonf._utils.contexts import local_seed

STEPS, ROUNDS = 1000, 3


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of the pinwheel: from Python, and compiled."""
    name = options.config or "pinwheel"
    c = CONFIGURATIONS[name]
    rows = c.batch().repeat(5, 1)
    for compile in (False, True):
        with local_seed(0):
            step = library(c, options.device, compile=compile)
        bare: list[float] = []
        whole: list[float] = []
        for number in range(ROUNDS + 1):  # the first one does not count
            start = time.perf_counter()
            calls = -(-STEPS // step.steps)
            for _ in range(calls):
                step()
            bare.append((time.perf_counter() - start) * STEPS / (calls * step.steps))
            with local_seed(0):
                pair = c.pair()
            start = time.perf_counter()
            history = pair.fit(
                rows,
                steps=STEPS,
                batch_size=c.rows,
                held_out=1 / 6,
                compile=compile,
                seed=number,
                progress=False,
            )
            compiling = time.perf_counter() - start - history.seconds
            whole.append(history.seconds)
        yield [
            {
                "config": name,
                "compiled": compile,
                "bare_s": round(median(bare[1:]), 3),
                "fit_s": round(median(whole[1:]), 3),
                "ratio": round(median(whole[1:]) / median(bare[1:]), 3),
                "start_s": round(compiling, 2),
                "road": history.road,
                "threads": options.threads,
                "device": options.device,
            }
        ]
