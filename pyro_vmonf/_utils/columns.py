"""Columns and rows on which a density grows without bound, and what helps."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vmonf._utils.frames import Names
from pyro_vmonf._utils.validation import has_gaps
from pyro_vmonf._utils.warned import warn

FEWEST = 10  # rows below which nothing is said
REPEATED = 0.05  # share of rows that repeat another one, above which they are named
MOST_COLUMNS = 512  # beyond which none is looked for that follows from others
REST = 1e-9  # share of a column's variance that the columns before it do not explain
SHOWN = 8  # columns that are named
MOST_PIXELS = 2**20  # that are looked at for grey levels
MOST_LEVELS = 4096


def warn_of_columns(x: Tensor, names: Names | None = None) -> None:
    """Warn, once for all, of columns with few values and of repeated rows, where none is missing.

    Arguments:
        x: rows ``(N, D)``, or images ``(N, C, H, W)``; of other rows nothing is said.
        names: of the columns; their numbers by default.
    """
    if x.dim() == 4:
        _warn_of_levels(x)
    if x.dim() != 2:
        return
    if has_gaps(x):
        x = x[~x.isnan().any(1)]
    if len(x) < FEWEST:
        return
    kinds = kinds_of(x)
    said, helps = [], []
    for kind, cure in CURES.items():
        columns = [column for column, found in enumerate(kinds) if found == kind]
        if columns:
            shown = [repr(names[c]) if names else str(c) for c in columns[:SHOWN]]
            more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
            said.append(f"column {', '.join(shown)}{more} {kind}")
            helps.append(cure)
    repeated = len(x) - _distinct(x)
    if repeated > REPEATED * len(x):
        said.append(f"{repeated} of {len(x)} rows repeat another one")
        helps.append("pass each row once, or jitter the rows by a little noise")
    if said:
        warn(
            f"{'; '.join(said)}. A density of real numbers grows without bound there, and "
            f"log-densities say little. Remedies: {'; '.join(dict.fromkeys(helps))}",
            category=UserWarning,
        )


CONSTANT, TWO, WHOLE = "is constant", "has two values only", "holds whole numbers that repeat"
FOLLOWS = "follows from the columns before it"
CURES = {
    CONSTANT: "drop constant columns",
    TWO: "drop columns of two values, or fit the rows of each value apart",
    WHOLE: "dequantise whole numbers, as x + torch.rand(x.shape)",
    FOLLOWS: "drop columns that follow from others",
}


def levels_of(images: Tensor) -> int | None:
    """Return the number of even grey levels in [0, 1] that pixels have; ``None`` without levels.

    Example:
        >>> levels_of(torch.tensor([[0.0, 0.25, 1.0, 0.5], [0.0, 0.25, 0.0, 1.0]]))
        5
    """
    some = images.flatten()[:MOST_PIXELS].double().unique()
    if len(some) < 2 or len(some) > min(MOST_LEVELS, images.numel() / 2):
        return None
    least = float(some.diff().min())
    for steps in (255, round(1 / least) if least * MOST_LEVELS > 1 else 0):
        places = images * steps
        if steps and bool(((places - places.round()).abs() < 1e-3).all()):
            return steps + 1
    return None


def _warn_of_levels(images: Tensor) -> None:
    """Warn of images of whole grey levels, once for all."""
    inside = bool(((images >= 0) & (images <= 1)).all())
    levels = levels_of(images) if inside else None
    if levels is None and bool((images == images.round()).all()):
        levels = int(images.max() - images.min()) + 1
    if levels is not None:
        warn(
            f"the pixels have {levels} grey levels. A density of real numbers grows without bound "
            "there, and log-densities say little. Remedy: add uniform noise to whole levels, as "
            f"(levels + torch.rand(levels.shape)) / {levels}; datasets.dequantize is for bytes",
            category=UserWarning,
        )


def kinds_of(x: Tensor) -> list[str | None]:
    """Return, for each column, the reason why it is no real number, or ``None``."""
    low, high = x.amin(0), x.amax(0)
    ends, whole = torch.ones_like(low, dtype=torch.bool), torch.ones_like(low, dtype=torch.bool)
    for part in x.split(2**16):
        ends &= ((part == low) | (part == high)).all(0)
        whole &= (part == part.round()).all(0)
    kinds: list[str | None] = [None] * x.shape[1]
    for column in (ends | whole).nonzero().squeeze(1).tolist():
        if low[column] == high[column]:
            kinds[column] = CONSTANT
        elif ends[column]:
            kinds[column] = TWO
        elif len(x[:, column].unique()) <= len(x) / 2:
            kinds[column] = WHOLE
    for column in _following(x):
        kinds[column] = kinds[column] or FOLLOWS
    return kinds


def _following(x: Tensor) -> list[int]:
    """Return the columns that are linear functions of those before them."""
    if not 2 * x.shape[1] < len(x) or not 1 < x.shape[1] <= MOST_COLUMNS:
        return []
    scale = x.std(0)
    used = (scale > 0).nonzero().squeeze(1)
    covariance = torch.zeros(len(used), len(used), dtype=torch.float64, device=x.device)
    mean = x.mean(0)
    for part in x.split(2**16):
        z = ((part - mean) / scale)[:, used].double()
        covariance += z.T @ z / len(x)
    unit = torch.eye(len(used), dtype=covariance.dtype, device=x.device)
    factor, wrong = torch.linalg.cholesky_ex(covariance + 1e-3 * REST * unit)
    rest = factor.diagonal().square()  # of the variance, given the columns before
    return [] if wrong else used[rest < REST].tolist()


def _distinct(x: Tensor) -> int:
    """Return the number of distinct rows, by their products with one random vector."""
    centre, generator = x[:1].double(), torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x.device)
    direction = direction / (x.amax(0).double() - x.amin(0).double()).clamp_min(1e-300)
    products = [((part.double() - centre) * direction).sum(1) for part in x.split(2**16)]
    return len(torch.cat(products).unique())
