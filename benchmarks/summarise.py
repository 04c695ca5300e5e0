"""Summarise the metrics of an experiment's seeds: ``python benchmarks/summarise.py OUT/NAME FILE``.

Reads every ``seed-*/metrics.json`` below the folder, writes seed by seed values with mean, minimum
and maximum to FILE as JSON, and prints a row of the README's table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean


def summarise(folder: Path) -> dict[str, object]:
    """Return the scores of every seed below a folder, and their mean, minimum and maximum."""
    found = {
        int(path.parent.name.removeprefix("seed-")): json.loads(path.read_text())
        for path in folder.glob("seed-*/metrics.json")
    }
    seeds = sorted(found)
    table = {key: [found[seed][key] for seed in seeds] for key in found[seeds[0]]}
    return {
        "experiment": folder.name,
        "seeds": seeds,
        "mean": {key: mean(values) for key, values in table.items()},
        "min": {key: min(values) for key, values in table.items()},
        "max": {key: max(values) for key, values in table.items()},
        "scores": table,
    }


def main() -> None:
    """Write the summary and print its row."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    summary = summarise(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(summary), parse_float=lambda text: round(float(text), 5))
    target.write_text(json.dumps(rounded) + "\n")
    mid, low, high = rounded["mean"], rounded["min"], rounded["max"]
    cells = [folder.name, str(len(rounded["seeds"]))]
    for key in ("accuracy", "accuracy_exact", "nmi", "kl_to_truth", "bits_per_dim", "seconds"):
        if key in mid:
            cells.append(f"{key} {mid[key]:.3f} ({low[key]:.3f} to {high[key]:.3f})")
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
