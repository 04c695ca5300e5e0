"""Candidates for a first clustering, and the criterion that chooses one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_vmonf.starts.clusters import spectral_clusters
from pyro_vmonf.starts.gaussians import GaussianFit, fit_gaussians, gaussians_of_size, merged
from pyro_vmonf.starts.tree import cut_tree, spanning_tree
from pyro_vmonf.starts.valleys import valleys

Array = np.ndarray[Any, Any]
Candidate = Callable[[Array, int], Array]
MOST = 40  # Gaussians of an over-complete mixture, at least
MOST_OF_ANY = 128  # where nobody knows the number of clusters
MOST_EACH = 20  # Gaussians of one cluster
SEARCHED_EACH = 1500  # rows of a cluster on which their number is searched
FITTED_EACH = 20_000  # rows of a cluster that its mixture is fitted to
LINKS = 10  # neighbours of a row that should be in its cluster
CUT_LINKS = 10.0  # nats that a row is charged if all its links are cut
VALLEYS = 0.1  # nats that a row is charged for each nat of the deepest valley in its cluster


def large_mixture(x: Array, num_clusters: int | None = None, *, seed: int = 0) -> GaussianFit:
    """Return a mixture of as many Gaussians as BIC wants, from which clusters are merged."""
    most = MOST_OF_ANY if num_clusters is None else max(MOST, 2 * num_clusters)
    return fit_gaussians(x, most, seed=seed)


def by_merged_gaussians(
    x: Array, num_clusters: int, seed: int = 0, large: GaussianFit | None = None
) -> Array:
    """Cluster rows by a mixture of many Gaussians whose components are merged.

    See :func:`~pyro_vmonf.starts.gaussians.fit_gaussians` and
    :func:`~pyro_vmonf.starts.gaussians.merged`.

    Arguments:
        x: rows ``(N, D)``.
        num_clusters: number of clusters *K*.
        seed: of the mixture's start.
        large: of :func:`large_mixture`, where there is one already.
    """
    found = large or large_mixture(x, num_clusters, seed=seed)
    if len(found.weights) < num_clusters:
        found = gaussians_of_size(x, num_clusters, seed=seed)
    return merged(found.responsibilities(x), num_clusters)


def by_spanning_tree(x: Array, num_clusters: int, seed: int = 0) -> Array:
    """Cluster rows by cuts of a spanning tree: see :func:`~pyro_vmonf.starts.tree.cut_tree`."""
    return cut_tree(*spanning_tree(x), num_clusters)


def by_spectral_clusters(x: Array, num_clusters: int, seed: int = 0) -> Array:
    """Cluster rows along neighbours: see :func:`~pyro_vmonf.starts.spectral_clusters`."""
    near = min(15, len(x) - 1)
    return spectral_clusters(torch.as_tensor(x), num_clusters, neighbors=near).numpy()


CANDIDATES: dict[str, Candidate] = {
    "merged Gaussians": by_merged_gaussians,
    "spanning tree": by_spanning_tree,
    "spectral": by_spectral_clusters,
}


@dataclass(frozen=True)
class Scored:
    """A clustering, the densities of its clusters, and the value of the criterion.

    Arguments:
        name: of the candidate.
        clusters: the cluster of each row ``(N,)``, 0 to K - 1 without gaps.
        densities: a mixture of Gaussians for each cluster.
        score: nats a row, larger is better: see :func:`scored`.
        valleys: the part of the score that valleys inside clusters cost.
    """

    name: str
    clusters: Array
    densities: list[GaussianFit]
    score: float
    valleys: float = 0.0

    def log_shares(self) -> Array:
        """Return the log of each cluster's share of the rows ``(K,)``."""
        return np.asarray(np.log(np.bincount(self.clusters) / len(self.clusters)))

    def responsibilities(self, x: Array) -> Array:
        """Return the posterior of the clusters ``(N, K)`` under their densities."""
        joint = np.stack([d.log_prob(x) for d in self.densities], 1) + self.log_shares()
        return np.asarray(np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None]))


def links_of(x: Array) -> Array:
    """Return the positions ``(N, L)`` of each row's nearest rows."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(LINKS, len(x) - 1)).fit(x)
    return np.asarray(near.kneighbors(return_distance=False))


def scored(
    name: str,
    x: Array,
    clusters: Array,
    links: Array,
    *,
    seed: int = 0,
    known: dict[bytes, GaussianFit] | None = None,
) -> Scored:
    r"""Score a clustering by the densities of its clusters and by the neighbours that it parts.

    .. math::
        \frac1N \sum_n \log \pi_{c_n} p(x_n|c_n) - \frac{k \log N}{2N}
        - 10 \cdot \text{share of links cut} - \frac{0.1}N \sum_n v_{c_n}

    Each p(x|c) is a mixture of as many Gaussians as BIC wants, with *k* free parameters in all.
    *v* is the deepest valley inside a cluster: see ``pyro_vmonf.starts.valleys``.
    ``python -m benchmarks criterion`` compares forms and constants on simulated sets.

    Arguments:
        name: of the candidate.
        x: rows ``(N, D)``.
        clusters: the cluster of each row.
        links: of :func:`links_of`.
        seed: of the mixtures' starts.
        known: densities by the rows of their cluster; those that are found are added.
    """
    clusters = np.unique(clusters, return_inverse=True)[1]
    count = len(x)
    densities = densities_of(x, clusters, seed=seed, known=known)
    total, free = 0.0, len(densities) - 1
    for c, found in enumerate(densities):
        rows = x[clusters == c]
        free += found.free
        total += float(found.log_prob(rows).sum()) + len(rows) * np.log(len(rows) / count)
    cut = float((clusters[links] != clusters[:, None]).mean())
    inside = VALLEYS * float(valleys(x, links, clusters)[clusters].mean())
    score = (total - 0.5 * np.log(count) * free) / count - CUT_LINKS * cut - inside
    return Scored(name, clusters, densities, float(score), inside)


def densities_of(
    x: Array,
    clusters: Array,
    *,
    seed: int = 0,
    known: dict[bytes, GaussianFit] | None = None,
    sizes: Sequence[int] | None = None,
) -> list[GaussianFit]:
    """Return a mixture of as many Gaussians as BIC wants for each cluster, 0 to K - 1.

    A cluster of many rows is fitted to a sample of them. Several clusterings of the same rows share
    clusters: what is ``known`` of one is not fitted again. Where the ``sizes`` of the mixtures are
    given they are not searched.
    """
    known = {} if known is None else known
    members = [np.flatnonzero(clusters == c) for c in range(int(clusters.max()) + 1)]
    for c, own in enumerate(members):
        if own.tobytes() not in known:
            known[own.tobytes()] = _density(x[own], seed, None if sizes is None else sizes[c])
    return [known[own.tobytes()] for own in members]


def _density(rows: Array, seed: int, size: int | None = None) -> GaussianFit:
    """Return a mixture of so many Gaussians, or of as many as BIC wants."""
    if len(rows) > FITTED_EACH:
        rows = rows[np.random.default_rng(seed).permutation(len(rows))[:FITTED_EACH]]
    rows = _at_least_two(rows)
    most = max(1, min(size or MOST_EACH, len(rows) // (2 * rows.shape[1] + 2)))
    return fit_gaussians(rows, most, least=size or 1, seed=seed, searched=SEARCHED_EACH)


def _at_least_two(rows: Array) -> Array:
    """Return rows that a Gaussian can be fitted to: a single one counts twice."""
    return rows if len(rows) > 1 else np.repeat(rows, 2, 0)


def choose(
    x: Array,
    num_clusters: int,
    candidates: Mapping[str, Candidate] | None = None,
    *,
    seed: int = 0,
) -> list[Scored]:
    """Return the clusterings of all candidates, the best one first.

    Arguments:
        x: rows ``(N, D)``, in units of about one standard deviation.
        num_clusters: number of clusters *K*.
        candidates: functions from rows and *K* to clusters; :data:`CANDIDATES` by default.
        seed: of whatever they draw.

    Raises:
        ValueError: if there are fewer rows than clusters.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(90, 2)) + 9 * (np.arange(90) % 3)[:, None]
        >>> best, *others = choose(rows, 3)
        >>> sorted(np.bincount(best.clusters).tolist())
        [30, 30, 30]
    """
    if len(x) < num_clusters:
        raise ValueError(f"x has {len(x)} rows; expected at least {num_clusters}, one a cluster")
    links = links_of(x)
    known: dict[bytes, GaussianFit] = {}
    found = [
        scored(name, x, make(x, num_clusters), links, seed=seed, known=known)
        for name, make in (CANDIDATES if candidates is None else candidates).items()
    ]
    return sorted(found, key=rank(num_clusters))


def rank(num_clusters: int) -> Callable[[Scored], tuple[bool, float]]:
    """Return the order of clusterings: those with K clusters first, then by score."""
    return lambda s: (len(s.densities) != num_clusters, -s.score)
