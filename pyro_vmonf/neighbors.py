"""Nearest neighbours, on which preferences for connected clusters rest."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vmonf.checks import check_positive


def nearest_neighbors(x: Tensor, neighbors: int, chunk_size: int = 1024) -> Tensor:
    """Return the positions ``(N, neighbors)`` of each row's nearest rows, itself left out.

    Each feature is divided by its standard deviation before distances are taken.

    Raises:
        ValueError: if there are not more rows than neighbours.

    Example:
        >>> nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        tensor([[1],
                [0],
                [1]])
    """
    check_positive("neighbors", neighbors)
    if len(x) <= neighbors:
        raise ValueError(f"x has {len(x)} rows; {neighbors} neighbours need more rows than that")
    rows = x.flatten(1)
    rows = rows / rows.std(0, unbiased=False).clamp_min(torch.finfo(x.dtype).tiny)
    found = []
    for start in range(0, len(rows), chunk_size):
        distance = torch.cdist(rows[start : start + chunk_size], rows)
        own = torch.arange(len(distance), device=x.device)
        distance[own, start + own] = torch.inf  # equal rows are neighbours, a row is not its own
        found.append(distance.topk(neighbors, largest=False).indices)
    return torch.cat(found)
