"""The rows of a table, checked, in raw and in standardised units."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.columns import warn_of_columns
from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.frames import Names, names_of, numeric, ordered
from pyro_vmonf._utils.validation import (
    as_tensor,
    check_gaps,
    check_positive,
    check_rows,
    has_gaps,
    listed,
)
from pyro_vmonf.starts.background import far_rows
from pyro_vmonf.starts.gaps import hot_deck
from pyro_vmonf.training.options import seed_of
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.transforms.standardize import check_spread

Array = np.ndarray[Any, Any]
SEEDS = 2**32  # scikit-learn takes seeds below it
LEAST_ROWS = 10  # for each component; fewer say little about a density
Background = bool | Literal["auto"]


@dataclass(frozen=True)
class Rows:
    """The rows of a table, in raw and in standardised units.

    Arguments:
        x: rows ``(N, D)``, with NaN for missing entries.
        filled: the rows with values of other rows in place of missing ones.
        y: labels ``(N,)``, −1 for unlabelled, or ``None``.
        weight: how much each row counts ``(N,)``, or ``None``.
        names: of the columns.
        units: between raw and standardised units.
        seed: of every choice and draw.
        device: on which the rows were given, and the pair is trained; ``x`` is on the CPU.
    """

    x: Tensor
    filled: Tensor
    y: Tensor | None
    weight: Tensor | None
    names: Names | None
    units: Standardize
    seed: int
    device: torch.device

    @property
    def z(self) -> Array:
        """The filled rows in standardised units."""
        return np.asarray(self.units.inv(self.filled).double().numpy())

    def only(self, kept: Array) -> Rows:
        """Return some of the rows, in units of their own."""
        index = torch.as_tensor(np.flatnonzero(kept))
        x = self.x[index]
        y = None if self.y is None else self.y[index]
        weight = None if self.weight is None else self.weight[index]
        filled = self.filled[index]
        return replace(self, x=x, filled=filled, y=y, weight=weight, units=_units(x, weight))

    def missing(self) -> dict[str, int]:
        """Return the numbers of missing entries, and of rows that have them; nothing if none do."""
        gaps = self.x.isnan()
        counts = {"entries": int(gaps.sum()), "rows": int(gaps.any(1).sum())}
        return counts if counts["entries"] else {}

    def counted(self) -> Array:
        """Return the positions of the rows whose weight is above zero."""
        if self.weight is None:
            return np.arange(len(self.x))
        return np.flatnonzero(self.weight.numpy() > 0)

    def drawn(self, positions: Array, most: int) -> Array:
        """Return at most so many of some positions, each as often as its row counts."""
        size = min(len(positions), most)
        generator = np.random.default_rng(self.seed)
        if self.weight is None:
            whole = size == len(positions)
            return positions if whole else positions[generator.permutation(len(positions))[:size]]
        share = self.weight.double().numpy()[positions].cumsum()
        places = (np.arange(size) + generator.random()) * share[-1] / size
        return positions[np.searchsorted(share, places)]


def rows_of(x: Any, y: Any, sample_weight: Any, components: int | None, seed: int | None) -> Rows:
    """Return the rows of a table, with labels and weights.

    Raises:
        TypeError: if they are no numbers.
        ValueError: if they do not fit.
    """
    names = names_of(x)
    rows = as_tensor("x", numeric(ordered(x, names), missing=True))
    if rows.dim() != 2:
        raise ValueError(
            f"x has shape {tuple(rows.shape)}; from_data takes tables (N, D) and images "
            "(N, C, H, W)"
        )
    if not rows.shape[1]:
        raise ValueError(
            f"x has shape {tuple(rows.shape)}, without a column; expected at least one"
        )
    kind = rows.dtype if rows.is_floating_point() else torch.float32
    whole = not rows.is_floating_point()
    if whole and not torch.equal(rows.to(kind).to(rows.dtype), rows):  # it has too few digits
        kind = torch.float64
    like = torch.empty(0, dtype=kind)
    device = rows.device
    rows = check_rows(rows.to(kind), tuple(rows.shape[1:]), like, missing=True)
    count = 2 if components is None else check_positive("components", components)
    if len(rows) < max(2, count):
        raise ValueError(f"x has {len(rows)} rows; expected at least {max(2, count)}")
    like = torch.empty(0)
    weight = None
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, len(rows), like)
        if not weight.any():
            raise ValueError("sample_weight is zero for every row; some have to count")
        counting, least = int((weight > 0).sum()), max(2, count)
        if counting < least:
            raise ValueError(f"{counting} rows have a sample_weight above zero; expected {least}")
    check_gaps(rows, names, weight)
    labels = None if y is None else labels_of(y, len(rows), components, like)
    warn_of_columns(rows if weight is None else rows[weight > 0], names)
    seed, units = seed_of(seed) % SEEDS, _units(rows, weight)
    return Rows(rows, filled(rows, units, seed), labels, weight, names, units, seed, device)


def filled(x: Tensor, units: Standardize, seed: int) -> Tensor:
    """Return rows without gaps, for a start."""
    if not has_gaps(x):
        return x
    z = hot_deck(units.inv(x).double().numpy(), seed=seed)
    return torch.where(x.isnan(), units(torch.as_tensor(z)).to(x), x)


def _units(x: Tensor, weight: Tensor | None) -> Standardize:
    """Return the units in which the rows that count have mean zero and variance one."""
    units = Standardize(x.shape[1:]).to(x.dtype)
    counted = slice(None) if weight is None else weight > 0
    units.fit_(x[counted], None if weight is None else weight[counted])
    check_spread(units.scale, torch.get_default_dtype())  # of the pair
    return units


def labels_of(y: Any, count: int, components: int | None, like: Tensor) -> Tensor:
    """Return the labels ``(N,)`` of rows, which are numbers of components, and −1 for none.

    Arguments:
        y: the labels.
        count: number of rows.
        components: number of components; ``None`` if it is not given.
        like: tensor of the device of the labels.

    Raises:
        ValueError: if they are no labels of so many rows, or nobody says how many components there
            are and the labels leave numbers out.

    Warns:
        UserWarning: if they leave out 0 alone.
    """
    given = as_tensor("y", y)
    whole = given.numel() and not (given.is_floating_point() or given.is_complex())
    most = max(int(given.max()) + 1, 1) if whole else 1
    labels = check_evidence(given, count, components or most, like)
    if labels.dim() > 1:
        raise ValueError("y holds log-likelihoods; from_data takes labels (N,), -1 for none")
    classes = labels[labels >= 0].unique().tolist()
    holes = sorted({*range(max(classes, default=-1) + 1)} - {*classes})
    if holes and components is None:
        raise ValueError(
            f"y has the labels {listed(labels[labels >= 0].unique())}, which are numbers of "
            f"components, and leaves out {listed(torch.tensor(holes))}; number the classes from 0 "
            "(np.unique(labels, return_inverse=True)[1]), or pass components= where these have no "
            "labelled row"
        )
    if len(classes) > 1 and holes == [0]:
        warnings.warn(
            f"the labels go from 1 to {len(classes)}, and no row has label 0, which names a "
            "component too; number the classes from 0",
            UserWarning,
            stacklevel=5,
        )
    return labels


def warn_of_few(count: int, components: int) -> None:
    """Warn of fewer than ten rows a component, which say little about a density."""
    if count < LEAST_ROWS * components:
        said = f"x has {count} rows for {components} component{'s' * (components > 1)}: with fewer "
        said += f"than {LEAST_ROWS} rows for each, densities and clusters are guesses; take fewer "
        said += "components, or more rows"
        warnings.warn(said, UserWarning, stacklevel=4)


def without_far(rows: Rows, background: Background) -> tuple[Rows, Array | None]:
    """Return the rows that take part, and which ones the background takes, if there is one."""
    if background not in (True, False, "auto"):
        raise ValueError(f"background is {background!r}; expected True, False or 'auto'")
    far = np.zeros(len(rows.x), dtype=bool)
    counted = rows.counted()
    far[counted] = far_rows(rows.filled.double().numpy()[counted], rows.seed)
    if rows.y is not None:
        far &= rows.y.numpy() < 0  # a label says where a row belongs
    if not far.any():
        return rows, far if background is True else None
    said = f"{far.sum()} of {len(far)} rows are far from all others"
    if background:
        said += ": a component of their own, the last one, takes them"
    else:
        said += ' and stretch the units of the rest; background="auto" gives them a component'
    warnings.warn(said, UserWarning, stacklevel=4)
    return (rows.only(~far), far) if background else (rows, None)
