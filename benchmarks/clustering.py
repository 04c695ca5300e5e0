"""``python -m benchmarks.clustering FOLDER``: ``VMoNF.from_data`` on sets that nobody tuned to.

The folder holds ``NAME.data.gz`` (whitespace-separated numbers) and ``NAME.labels0.gz``, …, as the
collection clustering-data-v1 has them (Gagolewski, 2022); label 0 is noise and is not scored. Of
several partitions the best one counts. Columns are standardised, constant ones dropped, and at most
10,000 rows are drawn. Each line of the result is one set under one seed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from benchmarks.tables import Row, table
from benchmarks.timing import processor_minutes
from pyro_vmonf import VMoNF
from pyro_vmonf.starts.choice import Scored, choose
from pyro_vmonf.vmonf import automatic

Array = np.ndarray[Any, Any]
MOST_ROWS = 10_000


def load(path: Path) -> tuple[Array, list[Array], int]:
    """Return the rows of a set, its partitions, and the number of clusters."""
    name = path.name.removesuffix(".data.gz")
    x = np.loadtxt(path, ndmin=2)
    found = sorted(path.parent.glob(f"{name}.labels*.gz"))
    partitions = [np.loadtxt(file, dtype=int) for file in found]
    if len(x) > MOST_ROWS:
        kept = np.random.default_rng(0).permutation(len(x))[:MOST_ROWS]
        x, partitions = x[kept], [labels[kept] for labels in partitions]
    x = x[:, x.std(0) > 0]
    return (x - x.mean(0)) / x.std(0), partitions, int(partitions[0].max())


def agreement(partitions: list[Array], clusters: Array) -> float:
    """Return the adjusted Rand index with the partition that agrees best."""
    return max(adjusted_rand_score(p[p > 0], clusters[p > 0]) for p in partitions)


def fitted(x: Array, number: int, seed: int) -> tuple[VMoNF, Array]:
    """Return the pair with K given, and the clusters of the start that it chose."""
    starts: list[Scored] = []

    def recorded(*args: Any, **options: Any) -> list[Scored]:
        found = choose(*args, **options)
        starts.extend(found)
        return found

    with patch.object(automatic, "choose", recorded), processor_minutes():
        vmonf = VMoNF.from_data(x, components=number, seed=seed)
    return vmonf, starts[0].clusters


def row(path: Path, seed: int) -> dict[str, Any]:
    """Return what ``from_data`` makes of a set, with K given and without."""
    x, partitions, number = load(path)
    begun = time.process_time()
    vmonf, chosen = fitted(x, number, seed)
    seconds = time.process_time() - begun
    assert vmonf.history is not None
    choice = vmonf.history.choice
    with torch.no_grad():
        z = vmonf.model.standardizer.inv(torch.as_tensor(x))
        start = vmonf.guide.network.start(z.float()).argmax(-1).numpy()  # type: ignore[union-attr, operator]
    with processor_minutes():
        unknown = VMoNF.from_data(x, seed=seed)
    return {
        "rows": len(x),
        "columns": x.shape[1],
        "components": number,
        "start": choice["start"],
        "ari_clusters": agreement(partitions, chosen),
        "ari_start": agreement(partitions, start),
        "ari_exact": agreement(partitions, vmonf.predict(x, exact=True).numpy()),
        "ari": agreement(partitions, vmonf.predict(x).numpy()),
        "ari_unknown": agreement(partitions, unknown.predict(x).numpy()),
        "components_found": unknown.model.num_components,
        "nats": choice.get("held_out", math.nan),
        "nats_start": choice.get("held_out_start", math.nan),
        "nats_gaussians": choice.get("held_out_gaussians", math.nan),
        "epochs": choice["epochs"],
        "seconds": round(seconds, 1),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the means over sets and seeds."""
    gain = [r["nats"] - r["nats_gaussians"] for r in rows if math.isfinite(r["nats"])]
    change = [r["ari"] - r["ari_start"] for r in rows]
    return {
        "sets": len({r["set"] for r in rows}),
        "ari": mean(r["ari"] for r in rows),
        "ari_start": mean(r["ari_start"] for r in rows),
        "smallest_change": min(change),
        "ari_unknown": mean(r["ari_unknown"] for r in rows),
        "median_gain_over_gaussians": median(gain),
        "worse_than_gaussians_by_.05": sum(g < -0.05 for g in gain),
        "median_seconds": median(r["seconds"] for r in rows),
        "most_seconds": max(r["seconds"] for r in rows),
    }


def ablation(rows: list[dict[str, Any]]) -> list[Row]:
    """Return, for each set, means over seeds: the start, its densities, and the trained pair.

    Rows of earlier versions do not have the first and the last of the four.
    """
    columns = {
        "start": "ari_clusters",
        "with densities": "ari_start",
        "with the ELBO in the guide": "ari",
        "its flows": "ari_exact",
        "K unknown": "ari_unknown",
    }
    result: list[Row] = []
    for name in dict.fromkeys(r["set"] for r in rows):
        own = [r for r in rows if r["set"] == name]
        line: Row = {"set": name, "seeds": len(own)}
        for title, key in columns.items():
            found = [r[key] for r in own if key in r]
            line[title] = round(mean(found), 3) if found else ""
        change = min(r["ari"] - r["ari_start"] for r in own)
        result.append(line | {"smallest change": round(change, 3)})
    return result


def gone_through(
    paths: Sequence[Path],
    json_file: Path,
    key: str,
    numbers: Sequence[int],
    make: Callable[[Path, int], dict[str, Any] | None],
) -> list[dict[str, Any]]:
    """Return the lines of all sets and numbers; those that the file has are not done again.

    Arguments:
        paths: files of the sets.
        json_file: to which each new line is added.
        key: of the number in a line, such as ``"seed"``.
        numbers: of seeds or splits.
        make: function from a set and a number to the rest of a line; ``None`` leaves it out.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)  # the other threads of BLAS would wait for work, and count as seconds
    warnings.simplefilter("ignore")
    done = [json.loads(line) for line in json_file.open()] if json_file.exists() else []
    seen = {(r["set"], r[key]) for r in done}
    for number in numbers:
        for path in paths:
            name = f"{path.parent.name}/{path.name.removesuffix('.data.gz')}"
            if (name, number) in seen or (found := make(path, number)) is None:
                continue
            done.append({"set": name, key: number, **found})
            print(done[-1], flush=True)
            with json_file.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    return done


def main() -> None:
    """Go through the sets; lines that the file has already are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clustering", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--part", default="0/1", help="every so-manieth set, as 0/2 and 1/2")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/clustering.jsonl"))
    given = parser.parse_args()
    first, step = map(int, given.part.split("/"))
    paths = sorted(given.folder.glob("*/*.data.gz"))[first::step]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    done = gone_through(paths, given.json, "seed", seeds, row)
    print(table(ablation(done)))
    print(json.dumps(summary(done), indent=1))


if __name__ == "__main__":
    main()
