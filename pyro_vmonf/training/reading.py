"""The record of steps, as lanes hand it to the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Terms = dict[str, Any]  # tensors, or the numbers that were read of them


@dataclass(frozen=True)
class Reading:
    """Steps that nobody had read.

    Arguments:
        steps: their number.
        totals: sum of each term over the rows of the accepted steps.
        rows: of the accepted steps.
        rejected: number of steps that were not finite.
        in_a_row: how many of them are the last ones.
        longest: the most in a row.
        leading: how many of them are the first ones.
        terms: of the last step, per row.
    """

    steps: int
    totals: dict[str, float]
    rows: int
    rejected: int
    in_a_row: int
    longest: int
    leading: int
    terms: Terms
