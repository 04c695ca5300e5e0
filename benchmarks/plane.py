"""``VMoNF.from_data`` on the thesis's sets of the plane: accuracy of ten seeds each, K given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.tables import Options, Row
from pyro_vmonf import VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel, two_circles
from pyro_vmonf.metrics import accuracy

SEEDS = range(10)
SETS = ("pinwheel .25", "pinwheel .4", "two circles", "32 labels", "11 labels")


def drawn(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the rows of a set, their clusters, and the labels that are given."""
    if name.startswith("pinwheel"):
        return *pinwheel(rate=float(name.split()[1]), seed=seed), None
    x, c = two_circles(seed=seed)
    if name == "two circles":
        return x, c, None
    with local_seed(seed):
        known = torch.randperm(len(x))[: int(name.split()[0])]
    labels = torch.full_like(c, -1)
    labels[known] = c[known]
    return x, c, labels


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of each set."""
    for name in SETS if options.config is None else [options.config]:
        rows: list[Row] = []
        for seed in SEEDS:
            x, c, labels = drawn(name, seed)
            vmonf = VMoNF.from_data(x, labels, components=int(c.max()) + 1, seed=seed)
            assert vmonf.history is not None
            found = vmonf.predict(x)
            right = (found == c).double().mean() if labels is not None else accuracy(c, found)
            start = vmonf.history.choice["start"]
            rows.append({"set": name, "seed": seed, "start": start, "accuracy": float(right)})
        yield rows
