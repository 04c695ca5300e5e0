"""``python -m benchmarks.clustering_peers FOLDER``: scikit-learn on the sets of ``clustering``.

Rows, partitions and scores are those of :mod:`benchmarks.clustering`. Seed 0 and the defaults of
scikit-learn, but five starts where there are several. Noise of HDBSCAN is a cluster. The scores go
into ``clustering-peers.jsonl``, beside those of other programs that are there already.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sklearn.cluster import HDBSCAN, KMeans
from sklearn.mixture import GaussianMixture

from benchmarks.clustering import agreement, load

RESULTS = Path(__file__).parent / "results" / "clustering-peers.jsonl"


def scores(path: Path) -> dict[str, float]:
    """Return the adjusted Rand index of each method on a set; only HDBSCAN finds K itself."""
    x, partitions, number = load(path)
    methods = {
        "gaussian_mixture": GaussianMixture(number, n_init=5, random_state=0),
        "kmeans": KMeans(number, n_init=5, random_state=0),
        "hdbscan": HDBSCAN(copy=True),
    }
    found = {name: agreement(partitions, m.fit_predict(x)) for name, m in methods.items()}
    return {name: round(value, 4) for name, value in found.items()}


def main() -> None:
    """Score every set that has a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    rows = [row | scores(folder / f"{row['set']}.data.gz") for row in rows]
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
