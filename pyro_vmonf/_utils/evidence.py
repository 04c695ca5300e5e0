"""Checks of what is said of rows: labels, log-likelihoods and weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import as_tensor, listed

DIGITS = 1e-3  # nats by which log-likelihoods may differ from those given
LARGEST = 1e-6  # share of the largest number, up to which weights may add


def check_evidence(y: Any, rows: int, num_components: int, like: Tensor) -> Tensor:
    """Return labels ``(N,)`` as long, or log-likelihoods ``(N, K)`` as floats.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if the length or a label is out of range, or a row rules out every component.
    """
    y = as_tensor("y", y).to(like.device)
    if y.dim() == 2 and y.is_floating_point():
        if tuple(y.shape) != (rows, num_components):
            raise ValueError(
                f"y has shape {tuple(y.shape)}; log-likelihoods of {rows} rows and "
                f"{num_components} components have shape ({rows}, {num_components})"
            )
        check_values(y, num_components)
        _check_digits(y, like.dtype)
        return y.to(like.dtype)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(
            f"y has dtype {y.dtype} and shape {tuple(y.shape)}; expected integer labels (N,), "
            f"-1 for unlabelled, or log-likelihoods ({rows}, {num_components}); weights of rows "
            "are sample_weight"
        )
    if tuple(y.shape) != (rows,):
        raise ValueError(
            f"y has shape {tuple(y.shape)} but x has {rows} rows; pass one label a row, "
            "-1 for unlabelled"
        )
    y = y.long()
    check_values(y, num_components)
    return y


def check_values(y: Tensor, num_components: int) -> None:
    """Refuse labels that are out of range, and log-likelihoods that say nothing.

    Arguments:
        y: integer labels ``(*)``, or log-likelihoods ``(*, K)``.
        num_components: number of components *K*.

    Raises:
        ValueError: if there are some.
    """
    if y.is_floating_point():
        bad = (y.isnan() | (y == torch.inf)).any(-1) | (y == -torch.inf).all(-1)
        if bad.any():
            where = listed(bad.flatten().nonzero().squeeze(1))
            raise ValueError(
                f"rows {where} of y have NaN or +inf, or rule out every component; "
                "expected log-likelihoods with at least one finite value a row"
            )
        return
    y = y.flatten().long()  # numbers without a sign are never below zero
    bad = ((y < -1) | (y >= num_components)).nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"label {int(y[bad[0]])} in row {int(bad[0])} is out of range; expected -1 "
            f"(unlabelled) or 0 to {num_components - 1} ({len(bad)} such rows)"
        )


def _check_digits(y: Tensor, dtype: torch.dtype) -> None:
    """Refuse log-likelihoods whose differences a dtype loses.

    Raises:
        ValueError: if there are some.
    """
    cast = y.to(dtype)
    exact, kept = (v.double() - v.double().amax(1, keepdim=True) for v in (y, cast))
    lost = ((exact - kept).abs() > DIGITS) & exact.isfinite()
    lost |= exact.isfinite() & ~kept.isfinite()
    if lost.any():
        rows = lost.any(1).nonzero().squeeze(1)
        raise ValueError(
            f"rows {listed(rows)} of y hold log-likelihoods down to {float(y[rows].amin()):g}, and "
            f"{dtype} loses their differences; take off the largest of each row, which changes no "
            "posterior: y - y.max(1, keepdims=True)"
        )


def check_sample_weight(weight: Any, rows: int, like: Tensor) -> Tensor:
    """Return the weights ``(N,)`` of the rows.

    Raises:
        ValueError: if the length is wrong, a weight is negative or not finite, or the dtype of
            ``like`` cannot hold the weights.
    """
    given = as_tensor("sample_weight", weight).to(like.device)
    weight = given.to(like.dtype)
    if tuple(weight.shape) != (rows,):
        raise ValueError(
            f"sample_weight has shape {tuple(weight.shape)} but x has {rows} rows; pass one a row"
        )
    if not (given.isfinite().all() and (given >= 0).all()):
        raise ValueError("sample_weight has negative or non-finite values; expected at least 0")
    vanished = bool(((given > 0) & (weight == 0)).any())
    if vanished or float(given.double().sum()) > LARGEST * torch.finfo(like.dtype).max:
        raise ValueError(
            f"sample_weight has values from {float(given.min()):g} to {float(given.max()):g}: "
            f"{like.dtype} cannot hold and add them; divide them by their mean"
        )
    return weight
