"""Nearest neighbours, on which preferences for connected clusters rest."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive


def nearest_neighbors(x: Tensor, neighbors: int, chunk_size: int = 1024) -> Tensor:
    """Return the positions ``(N, neighbors)`` of each row's nearest rows, itself left out.

    Each feature is divided by its standard deviation before distances are taken; constant features
    count nothing.

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
    rows = rows - rows.mean(0)
    spread = rows.square().mean(0).sqrt()
    rows = rows / spread.where(spread > 0, torch.ones_like(spread))
    found = []
    for start in range(0, len(rows), chunk_size):
        # By products, distances of rows that lie close together would be rounding errors.
        distance = torch.cdist(
            rows[start : start + chunk_size], rows, compute_mode="donot_use_mm_for_euclid_dist"
        )
        own = torch.arange(len(distance), device=x.device)
        distance[own, start + own] = torch.inf  # equal rows are neighbours, a row is not its own
        found.append(distance.topk(neighbors, largest=False).indices)
    return torch.cat(found)
