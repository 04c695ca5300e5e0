"""The tables of ``density``, read from a folder of the user's; none of them is in this project.

``winequality-*.csv`` (UCI, Cortez 2009) and ``*.csv.gz`` (UCI and Delve, from
treforevans/uci_datasets) are cut into ten folds. ``images/train`` and ``images/val`` of BSDS500
make BSDS300, whose split is fixed. ``*.npz`` are tables of ADBench, with keys ``X`` and ``y``; a
random half of the normal rows is for training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FOLDS = 10
FEWEST_VALUES = 20  # a column with as many or fewer distinct values is dropped
MOST_CORRELATED = 0.98
GRID = 0.95  # share of rows on a grid, above which a column gets noise of one step
SIDE = 8  # pixels of a patch of BSDS300
PATCHES = {"train": 5600, "val": 2500}  # from each image


@dataclass(frozen=True)
class Split:
    """Rows for training and rows for the score, both in units of the training rows.

    Attributes:
        train, test: rows ``(N, D)`` and ``(M, D)``.
        unusual: which test rows are anomalies ``(M,)``; ``None`` for a table of densities.
    """

    train: Array
    test: Array
    unusual: Array | None = None


def step_of(column: Array) -> float:
    """Return the step of the grid that a column lies on, or zero.

    Example:
        >>> step_of(np.array([0.5, 1.5, 3.0])), step_of(np.array([0.1, 0.1 + 1e-7]))
        (0.5, 0.0)
    """
    values, counts = np.unique(column, return_counts=True)
    away = column - values[counts.argmax()]
    for step in (unit * 10.0**-digits for digits in range(6) for unit in (1.0, 0.5)):
        places = away / step
        nearest = np.rint(places)
        on_grid = np.abs(places - nearest) < 0.02
        # A coarse grid has all rows near one of its places.
        if on_grid.mean() >= GRID and len(np.unique(nearest)) > len(values) / 2:
            return step
    return 0.0


def columns_of(x: Array) -> Array:
    """Return columns with many values, one of each pair that says the same, with their noise."""
    x = x[:, [len(np.unique(column)) > FEWEST_VALUES for column in x.T]]
    close = np.abs(np.corrcoef(x.T)) > MOST_CORRELATED
    x = x[:, [not close[i, :i].any() for i in range(x.shape[1])]]
    steps = np.array([step_of(column) for column in x.T])
    return x + steps * np.random.default_rng(0).uniform(-0.5, 0.5, x.shape)


def in_units(train: Array, test: Array, unusual: Array | None = None) -> Split:
    """Return a split, standardised by its training part, without columns constant there."""
    train, test = (x[:, train.std(0) > 0] for x in (train, test))
    mean, scale = train.mean(0), train.std(0)
    return Split((train - mean) / scale, (test - mean) / scale, unusual)


def fold(path: Path, number: int) -> Split:
    """Return one of the ten splits of a table."""
    x = np.genfromtxt(path, delimiter=",")
    x = columns_of(x[:, :-1] if "wine" in path.name else x)
    parts = np.array_split(np.random.default_rng(0).permutation(len(x)), FOLDS)
    test = parts.pop(number)
    return in_units(x[np.concatenate(parts)], x[test])


def half(path: Path, number: int) -> Split:
    """Return a split of a table of anomalies: half of the normal rows, and all the rest."""
    with np.load(path) as found:
        x, y = found["X"].astype(float), found["y"].ravel().astype(bool)
    normal = np.random.default_rng(number).permutation(np.flatnonzero(~y))
    train = normal[: len(normal) // 2]
    rest = np.setdiff1d(np.arange(len(x)), train)
    return in_units(x[train], x[rest], y[rest])


def patches(folder: Path, count: int, draws: np.random.Generator) -> Array:
    """Return patches of grey images as rows of 63 pixels without their mean."""
    from PIL import Image

    found = []
    for path in sorted(folder.glob("*.jpg")):
        grey = np.rint(np.asarray(Image.open(path), float) @ [0.299, 0.587, 0.114])
        windows = np.lib.stride_tricks.sliding_window_view(grey, (SIDE, SIDE))
        top, left = (draws.integers(n, size=count) for n in windows.shape[:2])
        rows = windows[top, left].reshape(count, -1)
        rows = (rows + draws.uniform(size=rows.shape)) / 256
        found.append((rows - rows.mean(1, keepdims=True))[:, :-1].astype(np.float32))
    return np.concatenate(found)


def bsds300(folder: Path, _: int) -> Split:
    """Return the one split of BSDS300, in the units of its papers; 20 images are left out."""
    draws = np.random.default_rng(0)
    train, test = (patches(folder / name, count, draws) for name, count in PATCHES.items())
    return Split(train[: 180 * PATCHES["train"]], test)


def tables(folder: Path) -> dict[str, tuple[Callable[[int], Split], int]]:
    """Return, by the name of each table, the function of a split's number, and how many it has."""
    found: dict[str, tuple[Callable[[int], Split], int]] = {}
    for pattern, make, count in (("*.csv*", fold, FOLDS), ("*.npz", half, 5)):
        for path in sorted(folder.rglob(pattern)):
            found[path.name.split(".csv")[0].removesuffix(".npz")] = (
                lambda number, path=path, make=make: make(path, number),
                count,
            )
    for path in sorted(folder.rglob("images")):
        if (path / "train").is_dir() and (path / "val").is_dir():
            found["bsds300"] = (lambda number, path=path: bsds300(path, number), 1)
    return found
