"""The answer of components to rows with missing entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PLAUSIBLE = math.log(1e-3)  # posterior of a component, above which its density matters


@dataclass(frozen=True)
class Partial:
    r"""The entries of rows that are there, and the law of the missing ones, under K components.

    Attributes:
        log_prob: :math:`\log p(x_\text{obs} \mid c)` ``(*, K)``.
        error: its standard error ``(*, K)``; zero where it is exact.
        effective: the share of the draws that count, between 0 and 1 ``(*, K)``; one where it is
            exact.
        mean: function to the rows completed by their conditional mean ``(*, K, D)``.
        draw: function from a number to as many completed rows ``(number, *, K, D)``.
    """

    log_prob: Tensor
    error: Tensor
    effective: Tensor
    mean: Callable[[], Tensor]
    draw: Callable[[int], Tensor]

    def draws_that_count(self, log_posterior: Tensor, draws: int) -> Tensor:
        """Return the least number of effective draws of the components that a row may be from.

        Arguments:
            log_posterior: log p(c|x_obs) ``(*, K)``.
            draws: number of draws of each row.

        Returns:
            Numbers ``(*)``, infinite for rows whose density is exact.
        """
        count = torch.where(self.error == 0, torch.inf, draws * self.effective)
        return count.masked_fill(log_posterior < PLAUSIBLE, torch.inf).amin(-1)


def exactly(log_prob: Tensor, mean: Callable[[], Tensor], draw: Callable[[int], Tensor]) -> Partial:
    """Return what is known without an error."""
    sure = torch.zeros_like(log_prob)
    return Partial(log_prob, sure, sure + 1, mean, draw)


def joined(first: Tensor, one: Partial, other: Partial) -> Partial:
    """Return one of two answers for each row and component: the first where ``first`` is true."""
    points = first.unsqueeze(-1)
    return Partial(
        torch.where(first, one.log_prob, other.log_prob),
        torch.where(first, one.error, other.error),
        torch.where(first, one.effective, other.effective),
        lambda: torch.where(points, one.mean(), other.mean()),
        lambda number: torch.where(points, one.draw(number), other.draw(number)),
    )
