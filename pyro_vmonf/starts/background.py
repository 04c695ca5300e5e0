"""Rows that are far from all others, and the broad Gaussian that takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vmonf.starts.gaussians import GaussianFit

Array = np.ndarray[Any, Any]
TAIL = 0.05  # share of rows at each end of a column that says nothing of its scale
ROUNDING = 1e-6  # of the standard deviation, below which a scale is none
OUTSIDE = 30.0  # scales of a column from its median, within which a row is not far
NEIGHBORS = 5
APART = 10.0  # times the distance that nearly all rows have to their neighbours
MOST_KNOWN = 10_000  # rows among which neighbours are searched
MOST_FAR = 0.1  # share of the rows that can be far
FEWEST = 50  # rows of a table in which none is looked for
BROAD = 10.0  # standard deviations of the other rows that the Gaussian has at least


def far_rows(x: Array, seed: int = 0) -> Array:
    """Return whether each row is far from all others ``(N,)``.

    A row is far if it is more than thirty scales from the median of some column, and if its fifth
    neighbour is more than ten times as far away as that of 95 % of the rows. The scale of a column
    is the standard deviation without its tails, so that outliers do not hide each other. Rows that
    are close together, however far out, are a cluster and not far. If more than a tenth of the rows
    were, none is.

    Arguments:
        x: rows ``(N, D)``; of fewer than fifty none is far.
        seed: of the rows among which neighbours are searched, if there are many.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> x[:2] *= 1000
        >>> far_rows(x)[:4]
        array([ True,  True, False, False])
    """
    from sklearn.neighbors import NearestNeighbors

    count, nobody = len(x), np.zeros(len(x), dtype=bool)
    if count < FEWEST:
        return nobody
    low, middle, high = np.quantile(x, (TAIL, 0.5, 1 - TAIL), axis=0)
    scale, whole = np.clip(x, low, high).std(0), x.std(0)
    scale = np.where(scale > ROUNDING * whole, scale, whole)  # constant but for tails
    z = (x - middle) / np.where(scale > 0, scale, 1.0)
    outside = np.flatnonzero((np.abs(z) > OUTSIDE).any(1))
    if not len(outside) > 0:
        return nobody
    known = z[np.random.default_rng(seed).permutation(count)[:MOST_KNOWN]]
    near = NearestNeighbors(n_neighbors=NEIGHBORS + 1).fit(known)  # a known row finds itself
    usual = np.quantile(near.kneighbors(known)[0][:, -1], 0.95)
    away = near.kneighbors(z[outside])[0][:, -1]
    nobody[outside[away > APART * max(usual, 1e-9)]] = True
    return nobody if nobody.mean() <= MOST_FAR else np.zeros(count, dtype=bool)


def broad_gaussian(far: Array, width: int) -> GaussianFit:
    """Return the Gaussian of the far rows, at least ten standard deviations of the others wide.

    Arguments:
        far: far rows ``(M, D)``, possibly none, in units of the others' standard deviations.
        width: number of columns *D*.
    """
    squares = np.full(width, BROAD**2)
    if len(far):
        squares = np.maximum(squares, (far**2).mean(0))
    return GaussianFit(np.ones(1), np.zeros((1, width)), np.diag(squares)[None], width)
