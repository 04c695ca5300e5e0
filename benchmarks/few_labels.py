"""``python -m benchmarks.few_labels FOLDER``: ``VMoNF.from_data`` with a few labels, and without.

A class has min(10, half of its rows) labels from the first partition of a set. The index counts the
other rows. Sets are those of :mod:`benchmarks.clustering` with at most 5,000 rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from benchmarks.clustering import Array, gone_through, load
from benchmarks.tables import table
from benchmarks.timing import processor_minutes
from pyro_vmonf import VMoNF

MOST_ROWS = 5000
EACH = 10  # labels of a class, at most


def drawn_labels(classes: Array, seed: int) -> Array:
    """Return the labels of some rows, and -1 for the others; class -1 is noise."""
    generator = np.random.default_rng(seed)
    labels = np.full(len(classes), -1)
    for c in range(classes.max() + 1):
        members = generator.permutation(np.flatnonzero(classes == c))
        labels[members[: max(1, min(EACH, len(members) // 2))]] = c
    return labels


def row(path: Path, seed: int) -> dict[str, Any] | None:
    """Return what labels bring to a set; ``None`` for a large one."""
    x, partitions, _ = load(path)
    if len(x) > MOST_ROWS:
        return None
    classes = partitions[0] - 1
    labels = drawn_labels(classes, seed)
    judged = (labels < 0) & (classes >= 0)
    begun = time.process_time()
    found = {}
    with processor_minutes():
        for name, y in (("ari_without", None), ("ari", labels)):
            vmonf = VMoNF.from_data(x, y, components=int(classes.max()) + 1, seed=seed)
            clusters = vmonf.predict(x).numpy()
            found[name] = adjusted_rand_score(classes[judged], clusters[judged])
    assert vmonf.history is not None
    seconds = round(time.process_time() - begun, 1)
    start = vmonf.history.choice["start"]
    return {"labels": int((labels >= 0).sum()), **found, "start": start, "seconds": seconds}


def main() -> None:
    """Go through the sets; lines that the file has already are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_labels", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/few-labels.jsonl"))
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*/*.data.gz"))
    seeds = [int(seed) for seed in given.seeds.split(",")]
    done = gone_through(paths, given.json, "seed", seeds, row)
    print(table(done))
    labelled, without = ([r[key] for r in done] for key in ("ari", "ari_without"))
    print(f"mean {mean(labelled):.3f}, without labels {mean(without):.3f}")
    print(f"least change {min(a - b for a, b in zip(labelled, without, strict=True)):.3f}")


if __name__ == "__main__":
    main()
