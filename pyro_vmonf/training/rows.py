"""Rows in memory, in the batches of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import listed
from pyro_vmonf.model import FlowMixture

Arguments = dict[str, Any]  # of one call of model and guide


def number_of_rows(x: Tensor, weight: Tensor | None) -> Any:
    """Return how many rows count: those whose weight is above zero, as a tensor of one number."""
    return x.shape[0] if weight is None else (weight > 0).sum()  # len() would close a graph


class Source(Protocol):
    """Rows that can be gone through once an epoch, in batches of the program's arguments."""

    @property
    def size(self) -> int: ...

    @property
    def batches(self) -> int: ...

    def epoch(self, generator: torch.Generator) -> Iterator[Arguments]: ...

    def standardize(self, model: FlowMixture) -> None: ...

    def sample(self, count: int) -> TensorSource | None: ...

    def seen(self, count: int) -> TensorSource | None: ...


@dataclass
class TensorSource:
    """Rows in memory, shuffled each epoch.

    Arguments:
        x: rows ``(N, *event_shape)``.
        y: evidence or ``None``.
        sample_weight: weights ``(N,)`` or ``None``.
        batch_size: rows of one step.
        positions: numbers of the rows in the user's data, which terms see as ``index``.
        given: the rows' context ``(N, H)`` or ``None``.
        whole: number of the rows of the data set, where these are a part that trains beside the
            others, or one that is measured; their own number by default.
    """

    x: Tensor
    y: Tensor | None
    sample_weight: Tensor | None
    batch_size: int
    positions: Tensor
    given: Tensor | None = None
    whole: int | None = None

    @property
    def size(self) -> int:
        return len(self.x)

    @property
    def batches(self) -> int:
        """Steps of one epoch; a last batch of one row joins the one before."""
        whole, rest = divmod(self.size, self.batch_size)
        return max(whole + (rest > 1), 1)

    @property
    def lengths(self) -> frozenset[int]:
        """Numbers of rows of the batches."""
        rest = self.size % self.batch_size
        if self.size <= self.batch_size or rest == 0:
            return frozenset({min(self.size, self.batch_size)})
        return frozenset({self.batch_size, rest if rest > 1 else self.batch_size + 1})

    def standardize(self, model: FlowMixture) -> None:
        """Let the model take the rows' units."""
        model.standardizer.fit_(*model.each_row(self.x, self.sample_weight))

    def counting(self) -> TensorSource:
        """Return the rows whose weight is above zero; the others take no part in anything.

        Raises:
            ValueError: if there are none.
        """
        if self.sample_weight is None or bool((self.sample_weight > 0).all()):
            return self
        counting = self.sample_weight > 0
        if not bool(counting.any()):
            raise ValueError(
                "sample_weight is zero for every row that trains, or every row held out; some "
                "have to count"
            )
        return self.rows(counting.nonzero().squeeze(1))

    def rows(self, chosen: Tensor) -> TensorSource:
        """Return the source of the rows at ``chosen``."""
        return TensorSource(
            self.x[chosen],
            _at(self.y, chosen),
            _at(self.sample_weight, chosen),
            self.batch_size,
            self.positions[chosen],
            _at(self.given, chosen),
        )

    def arguments(self, chosen: Tensor) -> Arguments:
        """Return one step's arguments for the rows at ``chosen``."""
        return {
            "x": self.x.index_select(0, chosen),
            "y": _at(self.y, chosen),
            "index": self.positions.index_select(0, chosen),
            "size": self.size if self.whole is None else self.whole,
            "sample_weight": _at(self.sample_weight, chosen),
            "given": _at(self.given, chosen),
        }

    def epoch(self, generator: torch.Generator, alone: bool = False) -> Iterator[Arguments]:
        """Return the batches; ``alone`` they count as all rows, and not as a part of a whole."""
        order = torch.randperm(self.size, generator=generator).to(self.x.device)
        batches = list(order.split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1 < self.batch_size:
            # One row alone has no batch statistics.
            batches[-2:] = [torch.cat(batches[-2:])]
        for chosen in batches:
            own = self.arguments(chosen)
            yield {**own, "size": self.size} if alone else own

    def in_order(self, times: int = 1) -> Iterator[Arguments]:
        """Return batches of all rows, in their own order, once or several times."""
        for _ in range(times):
            for chosen in torch.arange(self.size, device=self.x.device).split(self.batch_size):
                yield self.arguments(chosen)

    def seen(self, count: int) -> TensorSource:
        """Return at most so many rows that training saw."""
        return self.sample(count)

    def sample(self, count: int) -> TensorSource:
        """Return some of the rows, always the same ones."""
        if self.size <= count:
            return self
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))
        return self.rows(order[:count].to(self.x.device))

    def split(
        self, fraction: float | Tensor, generator: torch.Generator
    ) -> tuple[TensorSource, TensorSource | None]:
        """Return training and held-out rows; the latter are ``None`` if the fraction is zero.

        Rows of weight zero are in neither.

        Arguments:
            fraction: of the rows that are held out, or their positions.
            generator: of the choice.

        Raises:
            ValueError: if the fraction leaves either side empty, or there are no such positions.
        """
        if isinstance(fraction, Tensor):
            held = torch.zeros(self.size, dtype=torch.bool, device=self.x.device)
            numbers = fraction.to(self.x.device)
            if numbers.dtype == torch.bool and len(numbers) == self.size:
                numbers = numbers.nonzero().squeeze(1)
            if numbers.dim() != 1 or numbers.is_floating_point() or not len(numbers):
                raise ValueError(
                    f"held_out has shape {tuple(fraction.shape)} and dtype {fraction.dtype}; "
                    f"expected a fraction, or positions among the {self.size} rows"
                )
            numbers = numbers.long()
            bad = numbers[(numbers < 0) | (numbers >= self.size)]
            if len(bad):
                raise ValueError(
                    f"held_out has the position {int(bad[0])}; expected 0 to {self.size - 1}"
                )
            if len(numbers.unique()) < len(numbers):
                raise ValueError("held_out has a position twice; name each row once")
            if len(numbers) == self.size:
                raise ValueError(f"held_out has all {self.size} rows; leave some to train on")
            held[numbers] = True
            others = self.rows((~held).nonzero().squeeze(1))
            return others.counting(), self.rows(numbers).counting()
        counting = self.counting()
        if counting is not self:
            return counting.split(fraction, generator)
        if fraction == 0:
            return self, None
        count = round(self.size * fraction)
        if not 0 < count < self.size:
            raise ValueError(
                f"held_out={fraction} of {self.size} rows holds out {count}; expected a fraction "
                "that leaves rows on both sides"
            )
        order = torch.randperm(self.size, generator=generator).to(self.x.device)
        return self.rows(order[count:]), self.rows(order[:count])

    def split_by_label(self) -> tuple[TensorSource, TensorSource]:
        """Return the rows that carry evidence and those that carry none.

        Raises:
            ValueError: if no row carries any.
        """
        if self.y is None:
            labelled = torch.zeros(self.size, dtype=torch.bool, device=self.x.device)
        elif self.y.dim() == 1:
            labelled = self.y >= 0
        else:
            labelled = (self.y != self.y[:, :1]).any(-1)
        if not labelled.any():
            raise ValueError("no row is labelled; pass y with at least one label of 0 or more")
        return self.rows(labelled.nonzero().squeeze(1)), self.rows((~labelled).nonzero().squeeze(1))


def _at(rows: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if rows is None else rows.index_select(0, chosen)


def check_inside(
    model: FlowMixture,
    x: Tensor,
    given: Tensor | None,
    sample_weight: Tensor | None,
    first: int = 0,
) -> None:
    """Refuse rows that count and lie outside the support of every component.

    Arguments:
        model: the mixture.
        x: rows ``(N, *event_shape)``.
        given: their context ``(N, H)`` or ``None``.
        sample_weight: their weights ``(N,)`` or ``None``.
        first: number of the first row, for the message.

    Raises:
        ValueError: if there are such rows.
    """
    outside = model.is_outside(x, given)
    if sample_weight is not None:
        outside &= sample_weight > 0
    bad = outside.nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"rows {listed(bad + first)} of x lie outside the support of every component "
            f"({len(bad)} of {len(x)} rows): no component has a density there; remove them, or map "
            "them inside"
        )
