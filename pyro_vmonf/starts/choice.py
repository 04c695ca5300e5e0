"""Candidates for a first clustering, and the criterion that chooses one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_vmonf.contracts import Start
from pyro_vmonf.starts.gaussians import GaussianFit, fit_gaussians
from pyro_vmonf.starts.ready_made import MergedGaussians, SpanningTree, Spectral
from pyro_vmonf.starts.responsibilities import as_responsibilities, check_start
from pyro_vmonf.starts.valleys import valleys

Array = np.ndarray[Any, Any]
MOST_EACH = 20  # Gaussians of one cluster
SEARCHED_EACH = 1500  # rows of a cluster on which their number is searched
FITTED_EACH = 20_000  # rows of a cluster that its mixture is fitted to
LINKS = 10  # neighbours of a row that should be in its cluster
CUT_LINKS = 10.0  # nats that a row is charged if all its links are cut
VALLEYS = 0.1  # nats that a row is charged for each nat of the deepest valley in its cluster


CANDIDATES: dict[str, Start] = {
    "merged Gaussians": MergedGaussians(),
    "spanning tree": SpanningTree(),
    "spectral": Spectral(),
}


def by_name(starts: Mapping[str, Start] | Sequence[Start]) -> dict[str, Start]:
    """Return starts by their names: those of a list have the name of function or class.

    Raises:
        TypeError: if one cannot be called.
        ValueError: if there are none, or two have one name.
    """
    if callable(starts) or isinstance(starts, str):
        raise TypeError(f"starts is {starts!r}; expected a list of starts, or a dict of them")
    starts = starts if isinstance(starts, Mapping) else list(starts)
    names = [getattr(start, "__name__", type(start).__name__) for start in starts]
    found = dict(starts) if isinstance(starts, Mapping) else dict(zip(names, starts, strict=True))
    for name, start in found.items():
        check_start(f"the start {name!r}", start)
    if not found:
        raise ValueError("starts is empty; expected one start or more")
    if len(found) < len(starts):
        raise ValueError(f"starts have the names {names}; pass a dict with a name for each")
    return found


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
    candidates: Mapping[str, Start] | None = None,
    *,
    seed: int = 0,
) -> list[Scored]:
    """Return the clusterings of all candidates, the best one first.

    Arguments:
        x: rows ``(N, D)``, in units of about one standard deviation.
        num_clusters: number of clusters *K*.
        candidates: starts by name; :data:`CANDIDATES` by default.
        seed: of the mixtures' starts.

    Raises:
        ValueError: if there are fewer rows than clusters, or what a start returns does not fit.

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
        scored(name, x, _clusters(name, start, x, num_clusters), links, seed=seed, known=known)
        for name, start in (CANDIDATES if candidates is None else candidates).items()
    ]
    return sorted(found, key=rank(num_clusters))


def _clusters(name: str, start: Start, x: Array, num_clusters: int) -> Array:
    """Return the cluster ``(N,)`` that a start gives each row."""
    rows = torch.as_tensor(x)
    try:
        own = start(rows.clone(), num_clusters)  # it may work in place
        found = as_responsibilities(own, len(x), num_clusters, rows)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the start {name!r} failed: {error}") from error
    return found.argmax(1).numpy()


def rank(num_clusters: int) -> Callable[[Scored], tuple[bool, float]]:
    """Return the order of clusterings: those with K clusters first, then by score."""
    return lambda s: (len(s.densities) != num_clusters, -s.score)
