"""Clusters around means, of rows with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def k_means(
    x: Tensor,
    num_clusters: int,
    *,
    sample_weight: np.ndarray[Any, Any] | None = None,
    n_init: int = 4,
    seed: int | None = None,
) -> Tensor:
    """Return the clusters ``(N,)`` of k-means on standardised columns.

    Arguments:
        x: rows ``(N, D)``.
        num_clusters: number of clusters.
        sample_weight: how much each row counts ``(N,)``.
        n_init: number of starts.
        seed: of the starts.

    Example:
        >>> k_means(torch.tensor([[0.0], [0.1], [9.0]]), 2, seed=0).bincount().sort().values
        tensor([1, 2])
    """
    from sklearn.cluster import KMeans

    rows = x.numpy()
    centre, spread = rows.mean(0), rows.std(0)
    if sample_weight is not None and (sample_weight != sample_weight[0]).any():
        centre = np.average(rows, 0, sample_weight)
        spread = np.sqrt(np.average((rows - centre) ** 2, 0, sample_weight))
    found = KMeans(num_clusters, n_init=n_init, random_state=seed)
    spread = np.where(spread > 0, spread, 1.0)
    labels = found.fit_predict((rows - centre) / spread, sample_weight=sample_weight)
    return torch.as_tensor(labels.astype(np.int64))
