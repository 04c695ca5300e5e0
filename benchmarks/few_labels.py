"""``python -m benchmarks.few_labels FOLDER``: ``VMoNF.from_data`` with a few labels, and without.

A class has min(10, half of its rows) labels from the first partition of a set. The index counts the
other rows. Sets are those of :mod:`benchmarks.clustering` with at most 5,000 rows.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from benchmarks.clustering import Array, load
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


def row(x: Array, classes: Array, seed: int) -> dict[str, Any]:
    """Return what labels bring to a set."""
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
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    done = [json.loads(line) for line in given.json.open()] if given.json.exists() else []
    seen = {(r["set"], r["seed"]) for r in done}
    for seed in map(int, given.seeds.split(",")):
        for path in sorted(given.folder.glob("*/*.data.gz")):
            name = str(path.relative_to(given.folder)).removesuffix(".data.gz")
            x, partitions, _ = load(path)
            if len(x) > MOST_ROWS or (name, seed) in seen:
                continue
            done.append({"set": name, "seed": seed, **row(x, partitions[0] - 1, seed)})
            print(done[-1], flush=True)
            with given.json.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table(done))
    labelled, without = ([r[key] for r in done] for key in ("ari", "ari_without"))
    print(f"mean {mean(labelled):.3f}, without labels {mean(without):.3f}")
    print(f"least change {min(a - b for a, b in zip(labelled, without, strict=True)):.3f}")


if __name__ == "__main__":
    main()
