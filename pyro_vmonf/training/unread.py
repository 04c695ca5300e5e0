"""The step of a run on a device, for which the host does not wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.flat_adam import special
from pyro_vmonf.training.lanes import Single
from pyro_vmonf.training.reading import Reading, Terms
from pyro_vmonf.training.rows import number_of_rows

COUNTS = 5  # see :func:`added`


class Unread(Single):
    """One run whose verdicts stay on the device until they are read.

    A step whose loss or gradient is not finite reaches nothing. Fused Adam takes the verdict as
    its ``found_inf``. Buffers and counts that the forward pass moves go back by it.

    Arguments:
        module: its call takes the arguments of a batch and returns terms.
        clip_norm: the largest norm of the gradient.
        parameters: of the optimiser.
        optimizer: of the run.
        scheduler: of the optimiser.
    """

    def __init__(
        self,
        module: nn.Module,
        clip_norm: float | None,
        parameters: Sequence[Tensor],
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
    ) -> None:
        super().__init__(module, clip_norm, parameters)
        self.optimizer: Any = optimizer
        self.scheduled = counts_steps(scheduler)
        self.waits = has_to_wait(optimizer, scheduler, self.kept)
        self.totals: dict[tuple[str, ...], Tensor] = {}  # of the terms, by their names
        self.last_terms: Terms = {}
        self.counts = torch.zeros(COUNTS, dtype=torch.int64, device=self.kept[0].device)
        self.steps = 0  # that nobody has read

    def _step(
        self, batches: Sequence[Arguments], start: list[Tensor], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        if self.waits:
            return super()._step(batches, start, move)
        versions = [value._version for value in self.kept]
        terms, loss, norm = self._gradients(batches)
        counted = [
            (value, old)
            for value, version, old in zip(self.kept, versions, start, strict=True)
            if value._version != version
        ]
        if self.clip_norm < float("inf"):
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        finite = loss.isfinite()
        taken = finite & norm.isfinite()
        self.optimizer.found_inf = (~taken).float()
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.found_inf
        with torch.no_grad():
            for value, old in counted:
                value.copy_(torch.where(taken, value, old))
        self._keep_where(finite, taken)
        self._add_(terms, taken, batches[0])
        return terms, []

    @torch.no_grad()
    def _start(self) -> list[Tensor]:
        if self.waits or self.before:
            return super()._start()
        self.flat = torch.cat([value.detach().flatten() for value in self.kept])
        known = self.last_finite or self.kept  # a resumed run knows them
        self.last = torch.cat([value.detach().flatten() for value in known])
        sizes = [value.numel() for value in self.kept]
        self.before, self.last_finite = (
            [part.view(v.shape) for part, v in zip(vector.split(sizes), self.kept, strict=True)]
            for vector in (self.flat, self.last)
        )
        return self.before

    @torch.no_grad()
    def _keep_where(self, finite: Tensor, taken: Tensor) -> None:
        """Keep the parameters before the step, and the buffers after it, where a flag is true."""
        torch.where(finite, self.flat, self.last, out=self.last)
        for i in self.moved():
            self.copies[i].copy_(torch.where(taken, self.buffers[i], self.copies[i]))
        self._settle(accepted=False)

    @torch.no_grad()
    def _add_(self, terms: Terms, taken: Tensor, batch: Arguments) -> None:
        """Add a step to those that nobody has read."""
        stacked, names = torch.stack(list(terms.values())), tuple(terms)
        before = self.totals.get(names, torch.zeros_like(stacked))
        rows = batch["x"], batch.get("sample_weight")
        self.totals[names], self.counts = added(before, self.counts, stacked, taken, *rows)
        self.last_terms = terms
        self.steps += 1

    def read(self) -> Reading | None:
        if not self.steps:
            return None
        rows, accepted, in_a_row, longest, leading = self.counts.tolist()
        totals: dict[str, float] = {}
        for names, values in self.totals.items():
            for name, value in zip(names, values.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
        rejected = self.steps - accepted
        streaks = (in_a_row, longest, leading)
        found = Reading(self.steps, totals, rows, rejected, *streaks, self.last_terms)
        self.totals, self.steps = {}, 0
        self.counts.zero_()
        return found


def added(
    totals: Tensor, counts: Tensor, terms: Tensor, taken: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return totals and counts after one more step.

    Arguments:
        totals: of the terms over the rows of the accepted steps ``(T,)``.
        counts: rows of the accepted steps that count, the number of these steps, how many of the
            last steps in a row were rejected, the most in a row, and the number before the first
            accepted one ``(5,)``.
        terms: of the step, per row ``(T,)``.
        taken: flag of the step, that it was accepted.
        x, weight: rows of the step, and how much each counts.
    """
    accepted = taken.to(counts.dtype)
    in_a_row = (counts[2] + 1) * (1 - accepted)
    number = counts[1] + accepted
    longest = torch.maximum(counts[3], in_a_row)
    leading = torch.where(number == 0, in_a_row, counts[4])
    rows = counts[0] + number_of_rows(x, weight) * accepted
    new = torch.stack((rows, number, in_a_row, longest, leading))
    return totals + torch.where(taken, x.shape[0] * terms, 0.0), new


def has_to_wait(
    optimizer: Optimizer, scheduler: LRScheduler | None, parameters: Sequence[Tensor]
) -> bool:
    """Return whether the host has to read the verdict on each step.

    There is nothing to wait for on a CPU. Another optimiser than fused Adam takes no verdict, and
    a scheduler counts the accepted steps in Python.
    """
    [kind, *others] = {(value.device, value.dtype) for value in parameters}
    return bool(
        others
        or kind[0].type == "cpu"
        or type(optimizer) not in (Adam, AdamW)
        or special(optimizer)
        or not optimizer.param_groups[0]["fused"]
        or counts_steps(scheduler)
    )


def counts_steps(scheduler: LRScheduler | None) -> bool:
    """Return whether a scheduler counts the accepted steps."""
    return not isinstance(scheduler, ReduceLROnPlateau | None)
