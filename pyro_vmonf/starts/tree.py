"""Clusters by cutting the longest edges of a spanning tree, where both sides are large enough."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
NEIGHBORS = 5  # of the distance that a row is at least away from any other


def spanning_tree(x: Array, neighbors: int = NEIGHBORS) -> tuple[Array, Array, Array]:
    """Return the minimum spanning tree of the mutual reachability distances.

    The distance of two rows is the largest of their own and of the distances from either row to its
    fifth neighbour. A row in a sparse place is far from every other.

    Arguments:
        x: rows ``(N, D)``.
        neighbors: number of the neighbour that counts.

    Returns:
        The rows in the order in which the tree takes them, the parent of each row (−1 for the
        first), and the length of the edge to the parent.

    References:
        Campello, Moulavi, Sander (2013), Density-based clustering based on hierarchical density
        estimates. Prim (1957), Shortest connection networks and some generalizations.

    Example:
        >>> order, parent, length = spanning_tree(np.array([[0.0], [1.0], [3.0]]), neighbors=1)
        >>> order.tolist(), parent.tolist(), length.tolist()
        ([0, 1, 2], [-1, 0, 1], [0.0, 1.0, 2.0])
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(x)
    x = x - x.mean(0)  # differences of squares lose the digits of rows far from zero
    found, _ = NearestNeighbors(n_neighbors=min(neighbors, count - 1)).fit(x).kneighbors()
    core, squares = found[:, -1], (x * x).sum(1)
    parent, length = np.full(count, -1), np.zeros(count)
    order = np.empty(count, dtype=np.int64)
    near = np.full(count, np.inf)
    outside = np.ones(count, dtype=bool)
    row = 0
    for place in range(count):
        order[place], outside[row] = row, False
        length[row] = near[row] if place else 0.0
        away = np.sqrt(np.maximum(squares + squares[row] - 2 * x @ x[row], 0.0))
        away = np.maximum(np.maximum(away, core), core[row])
        closer = outside & (away < near)
        near[closer], parent[closer] = away[closer], row
        row = int(np.where(outside, near, np.inf).argmin())
    return order, parent, length


def cut_tree(order: Array, parent: Array, length: Array, num_clusters: int) -> Array:
    """Cut the longest edges that leave at least N/(2K) rows on both sides.

    Arguments:
        order, parent, length: of :func:`spanning_tree`.
        num_clusters: number of clusters *K*; fewer come back where no further edge can be cut.

    Returns:
        The cluster ``(N,)`` of each row.

    References:
        Gagolewski (2026), Lumbermark, arXiv:2604.07143, for the bound on the sizes.

    Example:
        >>> x = np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0], [99.0]])
        >>> cut_tree(*spanning_tree(x, neighbors=1), 2)
        array([0, 0, 0, 1, 1, 1, 1])
    """
    count, root = len(order), order[0]
    size = np.ones(count, dtype=np.int64)
    for row in order[:0:-1]:
        size[parent[row]] += size[row]
    least = max(count / (2 * num_clusters), 1)
    cut = np.zeros(count, dtype=bool)
    cuts = 1
    for row in np.argsort(-length, kind="stable"):
        if cuts == num_clusters:
            break
        if row == root or size[row] < least:
            continue
        above = [parent[row]]
        while above[-1] != root and not cut[above[-1]]:
            above.append(parent[above[-1]])
        if size[above[-1]] - size[row] >= least:
            cut[row] = True
            cuts += 1
            size[above] -= size[row]
    clusters, number = np.zeros(count, dtype=np.int64), 0
    for row in order:
        if row == root or cut[row]:
            clusters[row], number = number, number + 1
        else:
            clusters[row] = clusters[parent[row]]
    return clusters
