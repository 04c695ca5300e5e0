"""Nearest neighbours, the links of a graph of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive


def nearest_neighbors(x: Tensor, neighbors: int) -> Tensor:
    """Return the positions of each row's nearest rows, itself left out.

    Each feature is divided by its standard deviation before distances are taken. Constant features
    count nothing. Equal rows are neighbours of each other.

    Arguments:
        x: rows ``(N, *event_shape)``.
        neighbors: number of neighbours of each row.

    Returns:
        Positions ``(N, neighbors)``, the nearest first.

    Raises:
        ValueError: if there are not more rows than neighbours.

    Example:
        >>> nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        tensor([[1],
                [0],
                [1]])
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    check_positive("neighbors", neighbors)
    if len(x) <= neighbors:
        raise ValueError(f"x has {len(x)} rows; {neighbors} neighbours need more rows than that")
    rows = StandardScaler().fit_transform(x.detach().flatten(1).cpu().double().numpy())
    # Rows that are fitted and not given again are left out of their own neighbours.
    found = NearestNeighbors(n_neighbors=neighbors).fit(rows).kneighbors(return_distance=False)
    return torch.as_tensor(found, device=x.device)
