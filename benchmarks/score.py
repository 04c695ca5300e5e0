"""Log-density and cluster of a million rows of the pinwheel."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.configurations import CONFIGURATIONS
from benchmarks.tables import Options, Row
from benchmarks.timing import peak_megabytes, wait
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import Pinwheel

ROWS = 1_000_000


def run(options: Options) -> Iterator[list[Row]]:
    """Yield one row for each of the verbs."""
    with local_seed(0):
        vmonf = CONFIGURATIONS["pinwheel"].pair().to(options.device)
        x, _ = Pinwheel().sample(ROWS // 5)
    x = x.to(options.device)
    rows = []
    for name, verb in (("log_prob", vmonf.log_prob), ("predict", vmonf.predict)):
        verb(x[:10_000])
        before = peak_megabytes(options.device)
        start = time.perf_counter()
        verb(x)
        wait(options.device)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "config": f"pinwheel, {name}",
                "peer": "library",
                "median_ms": round(1e3 * seconds, 1),
                "rows_per_second": round(ROWS / seconds),
                "megabytes_above_data": round(peak_megabytes(options.device) - before, 1),
                "threads": options.threads,
                "device": options.device,
            }
        )
    yield rows
