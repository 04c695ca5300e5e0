"""``python -m benchmarks.thinned DATA``: ``VMoNF.from_data`` on digits in unequal shares.

``DATA`` is a folder with the files of MNIST. Each set takes the first images of each digit in a
fixed random order. No label is used; each line of the result is one set under one seed, with the
accuracy of the first clusters and of the guide that learned them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.tables import table
from benchmarks.timing import processor_minutes
from pyro_vmonf import VMoNF, metrics
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import mnist
from pyro_vmonf.vmonf import pictures

RESULTS = Path(__file__).parent / "results" / "thinned.jsonl"
SHARES = np.array([17, 14, 10, 9, 9, 8, 9, 9, 8, 9])
COUNTS = {
    "equal": np.full(10, 930),
    "unequal": np.rint(9300 * SHARES / SHARES.sum()).astype(int),
    "long tail": np.rint(np.geomspace(3000, 380, 10)).astype(int),
}
MINUTES = 0.1  # of the flows, which do not move the clusters


def thinned(data: Path, counts: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """Return so many images of each digit, and their digits."""
    images, digits = mnist(data)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    taken = [order[digits[order] == digit][:count] for digit, count in enumerate(counts)]
    index = torch.cat(taken)
    return images[index].unsqueeze(1) / 255, digits[index]


def row(images: Tensor, digits: Tensor, seed: int) -> dict[str, Any]:
    """Return what ``from_data`` makes of images."""
    found: list[tuple[Any, float]] = []
    clusters_of = pictures.image_clusters

    def recorded(features: Any, number: int | None) -> tuple[Any, float]:
        found.append(clusters_of(features, number))
        return found[0]

    begun = time.process_time()
    with patch.object(pictures, "image_clusters", recorded), processor_minutes():
        vmonf = VMoNF.from_data(images, components=10, seed=seed, minutes=MINUTES, progress=False)
    seconds = time.process_time() - begun
    with local_seed(seed):  # the images whose graph is cut
        searched = torch.randperm(len(images))[: pictures.MOST_ROWS]
    clusters, cut = found[0]
    return {
        "images": len(images),
        "start": round(metrics.accuracy(digits[searched], torch.as_tensor(clusters)), 4),
        "accuracy": round(metrics.accuracy(digits, vmonf.predict(images)), 4),
        "normalised_cut": round(cut, 4),
        "seconds": round(seconds),
    }


def main() -> None:
    """Go through sets and seeds; lines that the file has already are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thinned", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in given.json.open()] if given.json.exists() else []
    seen = {(r["set"], r["seed"]) for r in done}
    for seed in map(int, given.seeds.split(",")):
        for name, counts in COUNTS.items():
            if (name, seed) not in seen:
                images, digits = thinned(given.data, counts)
                found = row(images.to(given.device), digits, seed)
                done.append({"set": name, "seed": seed, **found, "device": given.device})
                print(done[-1], flush=True)
                with given.json.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


if __name__ == "__main__":
    main()
