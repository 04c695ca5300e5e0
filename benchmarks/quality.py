"""Seconds until the pinwheel's density is within 0.1 nats of the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from benchmarks.tables import Options, Row
from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf.datasets import Pinwheel
from pyro_vmonf.experiments import EXPERIMENTS
from pyro_vmonf.experiments.draws import Settings
from pyro_vmonf.experiments.run import run as run_recipe
from pyro_vmonf.training.fit import Progress

WANTED, ROWS, EVERY, SEEDS = 0.1, 20_000, 10, (0, 1, 2)


def run(options: Options) -> Iterator[list[Row]]:
    """Yield one row for each recipe and seed; looking at the divergence does not count."""
    truth = Pinwheel(rate=0.4)
    with local_seed(1):
        fresh, _ = truth.sample(ROWS // 5)
    entropy = truth.log_prob(fresh).mean()
    rows = []
    for name in ("best", "thesis"):
        for seed in SEEDS:
            looking, lowest, reached = 0.0, float("inf"), float("nan")
            begun = time.perf_counter()

            def look(progress: Progress) -> bool:
                nonlocal looking, lowest, reached
                if progress.epoch % EVERY:
                    return False
                start = time.perf_counter()
                with torch.no_grad(), evaluating(progress.model):
                    scores = [progress.model.mixture().log_prob(x) for x in fresh.split(4096)]
                lowest = min(lowest, float(entropy - torch.cat(scores).mean()))
                if lowest <= WANTED:
                    reached = start - begun - looking  # noqa: B023
                looking += time.perf_counter() - start
                return lowest <= WANTED

            recipe = EXPERIMENTS["pinwheel"].recipes[name]
            settings = Settings(seed)
            data = EXPERIMENTS["pinwheel"].draw(settings)
            run_recipe(data, recipe, settings, callbacks=(look,), progress=False)
            rows.append(
                {
                    "config": f"pinwheel, seed {seed}",
                    "peer": f"recipe {name}",
                    "seconds": "not reached" if math.isnan(reached) else round(reached, 1),
                    "lowest_kl": round(lowest, 3),
                    "threads": options.threads,
                    "device": options.device,
                }
            )
    yield rows
