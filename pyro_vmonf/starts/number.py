"""Clusterings that find their number of clusters themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vmonf.starts.choice import Scored, links_of, scored
from pyro_vmonf.starts.gaussians import GaussianFit, merged
from pyro_vmonf.starts.ready_made import large_mixture

Array = np.ndarray[Any, Any]
MISTAKEN = 0.05  # Gaussians that are mistaken for each other more often are one cluster
SMALLEST = 0.03  # share of the rows that a cluster of high density has at least
NEIGHBORS = 5


def by_density(x: Array) -> Array:
    """Cluster rows into regions of high density; a row between them goes to the nearest.

    References:
        Campello, Moulavi, Sander (2013), Density-based clustering based on hierarchical density
        estimates.
    """
    from sklearn.cluster import HDBSCAN
    from sklearn.neighbors import KNeighborsClassifier

    smallest = max(NEIGHBORS, round(SMALLEST * len(x)))
    if smallest >= len(x):
        return np.zeros(len(x), dtype=np.int64)
    found = HDBSCAN(min_cluster_size=smallest, min_samples=NEIGHBORS, copy=True).fit_predict(x)
    known = found >= 0
    if not known.any():
        return np.zeros(len(x), dtype=np.int64)
    nearest = KNeighborsClassifier(1).fit(x[known], found[known])
    return np.where(known, found, nearest.predict(x))


def by_overlap(x: Array, large: GaussianFit) -> Array:
    """Merge the Gaussians of a large mixture that are mistaken for each other.

    See :func:`~pyro_vmonf.starts.gaussians.merged`.
    """
    return merged(large.responsibilities(x), 1, mistaken=MISTAKEN)


def clusterings(x: Array, *, seed: int = 0, large: GaussianFit | None = None) -> list[Scored]:
    """Return clusterings that find their number of clusters, the best one first.

    One with a single cluster comes last: fewer clusters describe the rows as well, since a cluster
    may have many modes, but they say less.

    Arguments:
        x: rows ``(N, D)``, in units of about one standard deviation.
        seed: of whatever they draw.
        large: of :func:`~pyro_vmonf.starts.ready_made.large_mixture`, where there is one already.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(90, 2)) + 9 * (np.arange(90) % 3)[:, None]
        >>> len(clusterings(rows)[0].densities)
        3
    """
    links = links_of(x)
    known: dict[bytes, GaussianFit] = {}
    made = {
        "regions of high density": by_density(x),
        "Gaussians merged by overlap": by_overlap(x, large or large_mixture(x, seed=seed)),
    }
    found = [scored(name, x, c, links, seed=seed, known=known) for name, c in made.items()]
    return sorted(found, key=lambda s: (len(s.densities) == 1, -s.score))
