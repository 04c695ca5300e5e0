"""Starting points that look at the data: spectral clusters, and a guide that is taught them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg, sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from pyro_vmonf._utils.neighbors import nearest_neighbors
from pyro_vmonf._utils.validation import (
    as_tensor,
    check_positive,
    check_rows,
)


def spectral_clusters(
    x: Tensor, num_clusters: int, *, neighbors: int = 15, iterations: int = 30
) -> Tensor:
    r"""Cluster rows by the slowest directions of a random walk on their nearest neighbours.

    The first K eigenvectors of the normalised adjacency :math:`D^{-1/2} A D^{-1/2}` embed the rows;
    a pivoted QR factorisation of the embedding assigns them, without any random start.

    Arguments:
        x: rows ``(N, *event_shape)``.
        num_clusters: number of clusters *K*.
        neighbors: links of each row; links go both ways, and count once more where both rows ask.
        iterations: of block inverse iteration. It factorises the graph once, which is cheap for the
            graphs of points in few dimensions and dear in many.

    Returns:
        The cluster ``(N,)`` of each row.

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
    count = len(near)
    rows = np.repeat(np.arange(count), neighbors)
    ones = np.ones(rows.shape)
    directed = sparse.csr_matrix((ones, (rows, near.ravel())), shape=(count, count))
    adjacency = directed + directed.T
    scale = 1 / np.sqrt(np.asarray(adjacency.sum(1)).ravel())
    normalized = sparse.diags(scale) @ adjacency @ sparse.diags(scale)
    # Inverse iteration on a block finds them also where eigenvalues coincide (parts that no link
    # joins), which a Lanczos iteration from one vector does not. A fixed start makes the result a
    # function of the data.
    shifted = (1 + 1e-4) * sparse.identity(count) - normalized
    solve = splu(shifted.tocsc()).solve
    block = np.random.default_rng(0).standard_normal((count, min(num_clusters + 4, count)))
    for _ in range(iterations):
        block, _ = np.linalg.qr(solve(block))
    _, rotation = np.linalg.eigh(block.T @ (normalized @ block))
    vectors = block @ rotation[:, -num_clusters:]
    embedding = vectors * scale[:, None]
    _, _, pivots = linalg.qr(embedding.T, pivoting=True)
    left, _, right = np.linalg.svd(embedding[pivots[:num_clusters]].T)
    return torch.as_tensor(np.abs(embedding @ (left @ right)).argmax(1), device=x.device)


def merge_linked(clusters: Tensor, ends: Tensor, *, above: float = 0.04) -> Tensor:
    """Join clusters that exchange more than a share of their random walks.

    With more clusters than the data have, it says how many there are: a cluster that was cut in two
    loses many walks across the cut, two clusters with few points between them lose few.

    Arguments:
        clusters: cluster ``(N,)`` of each row.
        ends: where walks from each row ended, ``(N, walks)``: the ``ends`` of a
            :class:`~pyro_vmonf.distortions.RandomWalk` of the same rows.
        above: two clusters are one if more than this share of the walks from either ends in the
            other. The pair that exchanges most is joined first, until none does.

    Returns:
        Clusters ``(N,)``, numbered from 0 without gaps.

    Raises:
        ValueError: if the share is not above zero.

    Example:
        >>> ends = torch.tensor([[1, 0], [0, 1], [3, 2], [2, 3], [5, 4], [4, 5]])
        >>> merge_linked(torch.tensor([0, 1, 2, 2, 5, 5]), ends)
        tensor([0, 0, 1, 1, 2, 2])
    """
    if not above > 0:
        raise ValueError(f"above is {above}; expected a share of walks above zero")
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
