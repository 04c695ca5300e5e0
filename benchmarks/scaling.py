"""The step's time and memory against the numbers of components, rows and features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.configurations import CONFIGURATIONS, Configuration
from benchmarks.peers import library
from benchmarks.tables import Options, Row
from benchmarks.timing import interleaved, peak_megabytes
from pyro_vmonf._utils.contexts import local_seed

BASE = CONFIGURATIONS["pinwheel"]
COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POINTS: dict[str, tuple[Configuration, int | None]] = {
    **{f"K={k}": (replace(BASE, components=k), None) for k in COMPONENTS},
    "K=256, top=4": (replace(BASE, components=256), 4),
    **{f"N={n}": (replace(BASE, rows=n), None) for n in (128, 512, 2048, 8192)},
    **{f"D={d}": (replace(BASE, features=d), None) for d in (2, 8, 32, 128)},
}


def run(options: Options) -> Iterator[list[Row]]:
    """Yield one row for each size, the points of each series together."""
    names = POINTS if options.config is None else [options.config]
    rows = []
    before = peak_megabytes(options.device)
    for name in names:
        configuration, top = POINTS[name]
        with local_seed(0):
            step = library(configuration, options.device, top=top)
        times = interleaved({"library": step}, repeats=options.repeats, device=options.device)
        rows.append(
            {
                "config": name,
                "peer": "library",
                "median_ms": round(times["library"], 3),
                "ms_per_component": round(times["library"] / configuration.components, 3),
                "peak_megabytes_so_far": round(peak_megabytes(options.device) - before, 1),
                "threads": options.threads,
                "device": options.device,
            }
        )
        del step
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
    yield rows
