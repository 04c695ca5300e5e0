"""The course of a training run, and its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vmonf.schedules import Schedule
from pyro_vmonf.training.data import Arguments, Source, TensorSource
from pyro_vmonf.training.history import History
from pyro_vmonf.training.reading import Terms
from pyro_vmonf.training.selection import Keeper


@dataclass
class Run:
    """The rows of one run, and its record.

    Arguments:
        train: rows of the epochs.
        generator: of their order.
        labelled: rows of pretraining and of interleaved epochs.
        measured: rows on which states are measured; ``None`` measures none.
        held_out: whether the measured rows are held out of training.
    """

    train: Source
    generator: torch.Generator
    labelled: TensorSource | None = None
    measured: TensorSource | None = None
    held_out: bool = False
    history: History = field(default_factory=History)
    keeper: Keeper = field(default_factory=lambda: Keeper(False))
    rejected_in_a_row: int = 0
    going: bool = True
    failure: str = ""  # the reason why the run was given up
    totals: dict[str, Tensor | float] = field(default_factory=dict)
    taken: int = 0  # rows of the accepted steps of the epoch, those that count

    def close_epoch(
        self, number: int, step: int, temperature: float, objective: Callable[..., float]
    ) -> None:
        """Record the means of the terms over the rows of the epoch that count."""
        count = max(self.taken, 1)
        means = {name: float(value) / count for name, value in self.totals.items()}
        self.history.record(number, step, means, temperature, objective(means))
        self.totals, self.taken = {}, 0


@dataclass(frozen=True)
class Plan:
    """The course of a run.

    Arguments:
        epochs: passes through the rows; ``None`` where steps count.
        steps: training steps; ``None`` where epochs count.
        minutes: after which the run stops, in the middle of an epoch if need be.
        pretrain_epochs: passes through the labelled rows, before the first epoch.
        interleave: each epoch begins with the labelled rows.
        patience: epochs without a better state before a run stops.
        max_rejected: steps in a row with a loss that is not finite before a run is given up.
        temperature: schedule of the guide's temperature.
        objective: function from the terms to the objective that the history records.
        culprit: function from terms and arguments to the words that name a fault.
        title: of the progress bar; empty for none.
        draws: of what the program draws, each time that states are measured.
        check_last: take back a last step whose state has no finite objective.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    pretrain_epochs: int = 0
    interleave: bool = False
    patience: int | None = None
    max_rejected: int = 20
    temperature: Schedule | None = None
    objective: Callable[[dict[str, float]], float] = lambda terms: sum(terms.values())
    culprit: Callable[[Terms, Arguments], str] = lambda terms, arguments: "the sum of the terms"
    title: str = ""
    draws: int = 1
    check_last: bool = False
