"""``python -m benchmarks.held_out FOLDER``: log-densities of test rows of sets for clustering.

A fifth of the rows of a set is for the test, five times. ``VMoNF.from_data`` with K given stands
beside a Gaussian mixture of the size that BIC wants, the best of five starts, and kernels. A
difference has the standard error over the test rows, which both score. Sets are those of
:mod:`benchmarks.clustering`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.clustering import Array, gone_through, load
from benchmarks.density import gaussian_mixture, kernel_density
from benchmarks.density_tables import Split
from benchmarks.tables import Row, table
from benchmarks.timing import processor_minutes
from pyro_vmonf import VMoNF

TEST = 0.2  # share of the rows
FEWEST_VALUES = 0.1  # distinct values of a column, for each row, that make real numbers
SMALLEST = 0.05  # nats a row that make a difference


def split_of(x: Array, number: int) -> Split:
    """Return one of the splits of a set."""
    order = np.random.default_rng(number).permutation(len(x))
    held = round(TEST * len(x))
    return Split(x[order[held:]], x[order[:held]])


def is_real(x: Array) -> bool:
    """Return whether every column has as many values as real numbers have."""
    return all(len(np.unique(column)) >= FEWEST_VALUES * len(x) for column in x.T)


def row(path: Path, number: int) -> dict[str, Any]:
    """Return the mean log-densities of one split in nats, and the difference with its error."""
    x, _, components = load(path)
    split = split_of(x, number)
    begun = time.process_time()
    with processor_minutes():
        vmonf = VMoNF.from_data(split.train, components=components, seed=number)
    seconds = time.process_time() - begun
    ours = vmonf.log_prob(split.test).double().numpy()
    theirs, choice = gaussian_mixture(split, number, 0.0)
    kernels, _ = kernel_density(split, number, 0.0)
    gap = ours - theirs
    return {
        "rows": len(x),
        "columns": x.shape[1],
        "real": is_real(x),
        "nats": float(ours.mean()),
        "gaussian_mixture": float(theirs.mean()),
        "kernels": float(kernels.mean()),
        "gain": float(gap.mean()),
        "error": float(gap.std(ddof=1) / len(gap) ** 0.5),
        "gaussians": choice["components"],
        "seconds": round(seconds, 1),
    }


def by_set(rows: list[dict[str, Any]]) -> list[Row]:
    """Return the means over the splits of each set.

    The error of a mean over splits is that of one split: their test rows overlap.
    """
    lines: list[Row] = []
    for name in dict.fromkeys(r["set"] for r in rows):
        own = [r for r in rows if r["set"] == name]
        means = {key: mean(r[key] for r in own) for key in ("nats", "gaussian_mixture", "kernels")}
        gain, error = (mean(r[key] for r in own) for key in ("gain", "error"))
        line: Row = {"set": name, "splits": len(own), "real": own[0]["real"]}
        line |= {key: round(value, 3) for key, value in means.items()}
        line |= {"gain": round(gain, 3), "error": round(error, 3)}
        lines.append(line | {"worse": gain < -max(SMALLEST, 2 * error)})
    return lines


def summary(rows: list[dict[str, Any]]) -> Row:
    """Return what the sets of real numbers say."""
    lines: list[dict[str, Any]] = [dict(line) for line in by_set(rows) if line["real"]]
    above = sum(line["nats"] >= line["kernels"] for line in lines)
    return {
        "sets": len(lines),
        "median_gain": round(median(line["gain"] for line in lines), 3),
        "worse": ", ".join(line["set"] for line in lines if line["worse"]) or "none",
        "not_below_kernels": f"{above} of {len(lines)}",
    }


def main() -> None:
    """Go through sets and splits; lines that the file has already are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/held-out.jsonl"))
    given = parser.parse_args()
    paths = sorted(given.folder.glob("*/*.data.gz"))
    done = gone_through(paths, given.json, "split", range(given.splits), row)
    print(table(by_set(done)))
    print(json.dumps(summary(done), indent=1))


if __name__ == "__main__":
    main()
