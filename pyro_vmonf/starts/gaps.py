"""Rows with missing entries, filled in for a start, which needs whole rows."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MOST_DONORS = 4000  # rows that values are taken from


def hot_deck(x: Array, *, seed: int = 0) -> Array:
    """Return rows whose missing entries are those of the nearest row that has them.

    Distances count the entries that both rows have. A value of a real row keeps clusters apart; a
    mean of several rows can lie between them.

    Arguments:
        x: rows ``(N, D)`` in units of about one standard deviation, with NaN for missing entries.
        seed: of the rows that values are taken from, where there are many.

    References:
        Andridge, Little (2010), A review of hot deck imputation for survey non-response.

    Example:
        >>> hot_deck(np.array([[0.0, 1.0], [5.0, 6.0], [0.1, np.nan]]))[2].tolist()
        [0.1, 1.0]
    """
    if not np.isnan(x).any():
        return x
    from sklearn.impute import KNNImputer

    order = np.random.default_rng(seed).permutation(len(x))[:MOST_DONORS]
    donors = x[order]
    lacking = np.isnan(donors).all(0)
    if lacking.any():  # a column that only rows beyond the donors have
        first = (~np.isnan(x[:, lacking])).argmax(0)
        donors = np.concatenate((donors, x[first]))
    return np.asarray(KNNImputer(n_neighbors=1).fit(donors).transform(x))
