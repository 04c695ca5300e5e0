"""Valleys of the density inside clusters: the sign that a cluster joins parts that are apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PART = 0.1  # share of a cluster's rows that each side of a valley holds at least
DEEPEST = 9.0  # nats; a deeper valley counts as much


def valleys(x: Array, links: Array, clusters: Array) -> Array:
    r"""Return the depth of the deepest valley inside each cluster, in nats ``(K,)``.

    The log-density of a row is :math:`-D \log r` plus a constant, with *r* the distance to the
    farthest of its links. Rows enter from the densest to the sparsest, and links to rows that are
    in already join them to hills. Where two hills of a tenth of the cluster meet, the valley is as
    deep as the lower top is above the row that joins them. Hills that never meet have a valley down
    to the sparsest row of the cluster. A cluster of one hill has depth zero.

    Arguments:
        x: rows ``(N, D)``.
        links: positions ``(N, L)`` of each row's nearest rows, the nearest first.
        clusters: the cluster ``(N,)`` of each row, 0 to K - 1.

    References:
        Chazal, Guibas, Oudot, Skraba (2013), Persistence-based clustering in Riemannian manifolds.

    Example:
        >>> x = np.r_[np.arange(50), 99 + np.arange(50)][:, None] + 0.0
        >>> links = np.abs(x - x.T).argsort(1, kind="stable")[:, 1:5]
        >>> valleys(x, links, np.arange(100) // 50).round(1).tolist()
        [0.0, 0.0]
        >>> valleys(x, links, np.zeros(100, int)).round(1).tolist()
        [0.7]
    """
    radius = np.linalg.norm(x - x[links[:, -1]], axis=1)
    height = -x.shape[1] * np.log(np.maximum(radius, 1e-9))
    count, sizes = len(x), np.bincount(clusters)
    place = np.empty(count, dtype=np.int64)  # of a row in the order of its entrance
    place[np.argsort(-height, kind="stable")] = np.arange(count)
    hill, mass = list(range(count)), [1] * count  # a hill is named after its top
    depth = np.zeros(len(sizes))

    def top(row: int) -> int:
        while hill[row] != row:
            hill[row] = hill[hill[row]]
            row = hill[row]
        return row

    for row, earlier in _entrances(links, clusters, place):
        own = clusters[row]
        met = sorted({top(other) for other in earlier}, key=place.__getitem__)
        large = [h for h in met if mass[h] >= PART * sizes[own]]
        if len(large) > 1:
            depth[own] = max(depth[own], height[large[1]] - height[row])
        for other in (*met[1:], row):
            hill[other] = met[0]
            mass[met[0]] += mass[other]
    for own, size in enumerate(sizes):
        rows = np.flatnonzero(clusters == own)
        tops = [height[r] for r in rows if hill[r] == r and mass[r] >= PART * size]
        if len(tops) > 1:
            depth[own] = max(depth[own], sorted(tops)[-2] - height[rows].min())
    return np.minimum(depth, DEEPEST)


def _entrances(links: Array, clusters: Array, place: Array) -> Iterator[tuple[int, list[int]]]:
    """Yield rows as they enter, each with the linked rows of its cluster that are in already."""
    one, other = np.repeat(np.arange(len(links)), links.shape[1]), links.ravel()
    inner = clusters[one] == clusters[other]
    pairs = np.stack((one[inner], other[inner]), 1)
    swapped = place[pairs[:, 0]] < place[pairs[:, 1]]
    pairs[swapped] = pairs[swapped, ::-1]
    pairs = pairs[np.argsort(place[pairs[:, 0]], kind="stable")]
    ends = np.flatnonzero(np.diff(pairs[:, 0])) + 1
    for group in np.split(pairs, ends):
        if len(group):
            yield int(group[0, 0]), group[:, 1].tolist()
