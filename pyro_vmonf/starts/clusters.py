"""Clusters of rows along a graph of nearest neighbours, a start for a guide."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import own_filters
from pyro_vmonf._utils.neighbors import nearest_neighbors
from pyro_vmonf._utils.validation import as_tensor, check_positive, check_rows

Array = np.ndarray[Any, Any]
PARTS_EACH = (2, 3, 4, 6, 8)  # parts for each cluster
FEWEST_EACH = 10  # rows of a part, on average
OPEN_PARTS = 60  # where the number of clusters is open
OPEN_SHARE = 0.07  # of the links of the smaller part that go to the other, above which both are one


def spectral_clusters(x: Tensor, num_clusters: int, *, neighbors: int = 15) -> Tensor:
    r"""Cluster rows by the slowest directions of a random walk on their nearest neighbours.

    The first K eigenvectors of the normalised adjacency :math:`D^{-1/2} A D^{-1/2}` embed the rows.
    A pivoted QR factorisation of the embedding assigns them. The same ``x`` gives the same
    clusters: the seed is fixed.

    Arguments:
        x: rows ``(N, *event_shape)``.
        num_clusters: number of clusters *K*.
        neighbors: links of each row. Links go both ways, and a link that both rows ask for counts
            twice.

    Returns:
        The cluster ``(N,)`` of each row.

    Raises:
        ValueError: if there are fewer rows than clusters, not more rows than neighbours, or a
            value is not finite.

    References:
        Shi, Malik (2000), Normalized cuts and image segmentation. Damle, Minden, Ying (2019),
        Simple, direct and efficient multi-way spectral clustering, arXiv:1609.08251.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> clusters = spectral_clusters(x, 2)
        >>> clusters[:50].unique().shape, clusters.bincount()
        (torch.Size([1]), tensor([50, 50]))
    """
    check_positive("num_clusters", num_clusters)
    x = as_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected rows (N, *event_shape)")
    kind = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
    x = check_rows(x, tuple(x.shape[1:]), torch.empty(0, dtype=kind, device=x.device))
    if len(x) < num_clusters:
        raise ValueError(f"x has {len(x)} rows; expected at least {num_clusters}, one a cluster")
    if num_clusters == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    near = nearest_neighbors(x, neighbors).cpu().numpy()
    if num_clusters == len(x):  # the eigenvectors of a sparse matrix are fewer than its rows
        return torch.arange(len(x), device=x.device)
    return torch.as_tensor(_cut(near, num_clusters), dtype=torch.long, device=x.device)


def _cut(near: np.ndarray, num_clusters: int) -> np.ndarray:
    """Return the cluster of each row of a graph with links to the rows in ``near``."""
    from scipy import sparse
    from sklearn.cluster import SpectralClustering

    count, neighbors = near.shape
    rows = np.repeat(np.arange(count), neighbors)
    directed = sparse.csr_matrix((np.ones(near.size), (rows, near.ravel())), (count, count))
    method = SpectralClustering(
        num_clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    )
    with own_filters():
        # Parts that no link joins are the easiest clusters, and each is found.
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        return method.fit_predict(directed + directed.T)


def merged_parts(near: Array, num_clusters: int | None = None) -> tuple[Array, float]:
    r"""Cut a graph of neighbours into many parts, and join those with the most links.

    Eigenvectors for K clusters alone often halve a large cluster and join two small ones. Many
    parts keep small clusters apart. Several numbers of parts and two orders of joining are tried:
    by the share of the smaller part's links, and by the links for each pair of rows. The clusters
    with the smallest normalised cut stay:

    .. math::
        \sum_c \frac{\text{links from cluster } c \text{ to others}}{\text{links from } c}

    Arguments:
        near: positions ``(N, L)`` of each row's nearest rows.
        num_clusters: number of clusters *K*. Without it 60 parts are joined as long as one of the
            two parts loses more than 7 % of its links between them.

    Returns:
        The cluster ``(N,)`` of each row, and the normalised cut.

    References:
        Shi, Malik (2000), Normalized cuts and image segmentation.

    Example:
        >>> rows = np.arange(40)
        >>> ring = (rows // 20 * 20)[:, None] + (rows[:, None] + np.array([1, 2, 18, 19])) % 20
        >>> clusters, cut = merged_parts(ring, 2)
        >>> np.bincount(clusters).tolist(), cut
        ([20, 20], 0.0)
    """
    if num_clusters == 1:
        return np.zeros(len(near), dtype=np.int64), 0.0
    tried = (OPEN_PARTS,) if num_clusters is None else [f * num_clusters for f in PARTS_EACH]
    most = max(num_clusters or 2, len(near) // FEWEST_EACH)
    found = []
    for count in sorted({min(parts, most) for parts in tried}):
        parts = _cut(near, count)
        for average in (False, True):
            found.append(_joined(parts, near, num_clusters, average))
    return min(found, key=lambda pair: pair[1])


def _joined(
    clusters: Array, near: Array, num_clusters: int | None, average: bool
) -> tuple[Array, float]:
    """Join parts until K are left, or until the links between any two are few."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    own = np.eye(int(clusters.max()) + 1)[clusters]
    links = own.T @ own[near].mean(1)
    links = (links + links.T) / 2
    while (count := len(links)) > max(2, num_clusters or 2):
        sizes, between = links.sum(1), links - np.diag(np.diag(links))
        share = between / np.minimum(sizes[:, None], sizes)
        ranked = between / (sizes[:, None] * sizes) if average else share
        if num_clusters is None:
            ranked = np.where(share > OPEN_SHARE, ranked, 0.0)
            if not ranked.any():
                break
        one, other = sorted(np.unravel_index(ranked.argmax(), ranked.shape))
        joins = np.eye(count)
        joins[other, one] = 1.0
        joins = np.delete(joins, other, 1)
        clusters, links = joins.argmax(1)[clusters], joins.T @ links @ joins
    return clusters, float((1 - np.diag(links) / links.sum(1)).sum())


def merge_linked(clusters: Tensor, ends: Tensor, *, above: float = 0.04) -> Tensor:
    """Join clusters that exchange more than a share of their random walks.

    It says how many clusters the data have, where it is given more of them. A cluster that was cut
    in two loses many walks across the cut. Two clusters with few points between them lose few.

    Arguments:
        clusters: cluster ``(N,)`` of each row.
        ends: where walks from each row ended, ``(N, walks)``: the ``ends`` of a
            :class:`~pyro_vmonf.distortions.RandomWalk` of the same rows.
        above: two clusters are one if more than this share of the walks from either ends in the
            other. The pair that exchanges most is joined first, until no pair exchanges more.

    Returns:
        Clusters ``(N,)``, numbered from 0 without gaps.

    Raises:
        ValueError: if the share is not above zero, or clusters and ends do not fit.

    Example:
        >>> ends = torch.tensor([[1, 0], [0, 1], [3, 2], [2, 3], [5, 4], [4, 5]])
        >>> merge_linked(torch.tensor([0, 1, 2, 2, 5, 5]), ends)
        tensor([0, 0, 1, 1, 2, 2])
    """
    if not above > 0:
        raise ValueError(f"above is {above}; expected a share of walks above zero")
    clusters, ends = as_tensor("clusters", clusters), as_tensor("ends", ends)
    rows = len(clusters) if clusters.dim() == 1 else 0
    shapes = f"clusters have shape {tuple(clusters.shape)} and ends {tuple(ends.shape)}"
    if not rows or ends.dim() != 2 or len(ends) != rows:
        raise ValueError(f"{shapes}; expected (N,) and (N, walks)")
    if ends.is_floating_point() or not bool(((ends >= 0) & (ends < rows)).all()):
        raise ValueError(f"ends hold other numbers than those of rows, 0 to {rows - 1}")
    clusters = torch.unique(clusters, return_inverse=True)[1]
    while (count := int(clusters.max()) + 1) > 1:
        own = torch.nn.functional.one_hot(clusters, count).to(torch.get_default_dtype())
        exchanged = (own.mT @ own[ends].mean(1)) / own.sum(0).unsqueeze(1)
        exchanged = torch.maximum(exchanged, exchanged.mT).fill_diagonal_(0.0)
        if exchanged.max() <= above:
            break
        one, other = sorted(divmod(int(exchanged.argmax()), count))
        clusters = clusters.where(clusters != other, one)
        clusters = clusters - (clusters > other).long()
    return clusters
