"""The criterion that chooses a start, with other weights of its terms: mean ARI of the choice.

The sets are drawn from ``datasets.random_mixture`` (those of at most 1,800 rows among 82 seeds),
beside ten pinwheels of each rate and ten pairs of circles. ``--config FOLDER`` adds real sets, as
:mod:`benchmarks.clustering` reads them. K is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clustering import agreement, load
from benchmarks.tables import Options, Row
from pyro_vmonf.datasets import pinwheel, random_mixture, two_circles
from pyro_vmonf.starts.choice import VALLEYS, choose

Array = np.ndarray[Any, Any]
Drawn = tuple[str, Array, list[Array], int]  # family, rows, partitions, number of clusters
SEEDS = range(1000, 1082)
MOST_ROWS = 1800
WEIGHTS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


def drawn(family: str, x: Any, c: Any) -> Drawn:
    """Return a labelled set in standardised units; label −1 is noise and is not scored."""
    rows = np.asarray(x, dtype=float)
    labels = np.asarray(c) + 1
    return family, (rows - rows.mean(0)) / rows.std(0), [labels], int(labels.max())


def simulated() -> Iterator[Drawn]:
    """Yield random mixtures, pinwheels and circles."""
    for seed in SEEDS:
        x, c = random_mixture(seed)
        if len(x) <= MOST_ROWS:
            yield drawn("random mixtures", x, c)
    for seed in range(10):
        yield drawn("pinwheel .25", *pinwheel(rate=0.25, seed=seed))
        yield drawn("pinwheel .4", *pinwheel(rate=0.4, seed=seed))
        yield drawn("two circles", *two_circles(seed=seed))


def real(folder: Path) -> Iterator[Drawn]:
    """Yield the sets of a folder."""
    for path in sorted(folder.glob("*/*.data.gz")):
        yield ("real", *load(path))


def judged(sets: Iterator[Drawn]) -> Iterator[Row]:
    """Yield a row for each candidate of each set: its score without valleys, valleys, and ARI."""
    for number, (family, x, partitions, count) in enumerate(sets):
        for found in choose(x, count):
            yield {
                "family": family,
                "set": number,
                "candidate": found.name,
                "whole": len(found.densities) == count,
                "score": found.score + found.valleys,
                "valley": found.valleys / VALLEYS,
                "ari": agreement(partitions, found.clusters),
            }


def compared(rows: list[Row]) -> list[Row]:
    """Return, for each family, the mean ARI that each weight of the valleys chooses."""
    result = []
    for family in dict.fromkeys(row["family"] for row in rows):
        sets: dict[int, list[Row]] = {}
        for row in rows:
            if row["family"] == family:
                sets.setdefault(row["set"], []).append(row)
        line: Row = {"family": family, "sets": len(sets)}
        for weight in WEIGHTS:
            chosen = [
                max(own, key=lambda r: (r["whole"], r["score"] - weight * r["valley"]))["ari"]
                for own in sets.values()
            ]
            line[f"weight {weight}"] = round(float(np.mean(chosen)), 4)
        best = [max(own, key=lambda r: (r["whole"], r["ari"]))["ari"] for own in sets.values()]
        result.append(line | {"oracle": round(float(np.mean(best)), 4)})
    return result


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the table of simulated sets, and that of real ones where a folder is given."""
    yield compared(list(judged(simulated())))
    if options.config is not None:
        yield compared(list(judged(real(Path(options.config)))))
