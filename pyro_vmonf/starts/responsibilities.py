"""The answer of a start, as responsibilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmonf._utils.validation import as_tensor

SUM_TOLERANCE = 1e-3


def check_start(name: str, start: Any) -> None:
    """Refuse something that is no start.

    Raises:
        TypeError: if it cannot be called, or is a class.
    """
    if isinstance(start, type) or not callable(start):
        raise TypeError(
            f"{name} is {start!r}; expected an object such as KMeans(), or a function from rows "
            "and the number of clusters to clusters or responsibilities"
        )


def as_responsibilities(found: Any, rows: int, num_clusters: int, like: Tensor) -> Tensor:
    """Return clusters ``(N,)`` or responsibilities ``(N, K)`` as responsibilities.

    Arguments:
        found: of a start, or of a user.
        rows: number of rows *N*.
        num_clusters: number of clusters *K*.
        like: a tensor of the kind of the result.

    Raises:
        TypeError: if they are no numbers of either kind.
        ValueError: if they do not fit the rows or the clusters, or are no probabilities.

    Example:
        >>> as_responsibilities(torch.tensor([0, 2]), 2, 3, torch.zeros(()))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    found = as_tensor("clusters", found)
    if found.is_complex() or found.dtype == torch.bool:
        raise TypeError(
            f"clusters have dtype {found.dtype}; expected integers from 0, or responsibilities "
            f"(N, {num_clusters})"
        )
    if found.is_floating_point() and found.dim() < 2:
        raise TypeError(f"clusters have dtype {found.dtype}; expected integers from 0")
    shape = (rows, num_clusters) if found.is_floating_point() else (rows,)
    if tuple(found.shape) != shape:
        raise ValueError(
            f"clusters have shape {tuple(found.shape)}; expected one number from 0 for each of "
            f"{rows} rows, or responsibilities of shape {(rows, num_clusters)}"
        )
    if found.is_floating_point():
        bad = ~((found >= 0).all(1) & ((found.sum(1) - 1).abs() <= SUM_TOLERANCE))
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ValueError(
                f"the responsibilities of row {first} are {found[first].tolist()}; expected "
                f"probabilities that sum to 1 ({int(bad.sum())} such rows)"
            )
        return found.to(like)
    outside = ((found < 0) | (found >= num_clusters)).nonzero().squeeze(1)
    if len(outside):
        raise ValueError(
            f"clusters hold {int(found[outside[0]])} in row {int(outside[0])}; expected numbers "
            f"from 0 to {num_clusters - 1} ({len(outside)} such rows)"
        )
    return F.one_hot(found.long(), num_clusters).to(like)
