"""The choice of the state that a run ends in."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

State = dict[str, Tensor]
MEASURED_ROWS = 4096  # training rows that states are measured on where none are held out
MEASURED_DRAWS = 4  # of random weights and banks, each time
START = -(10**9)  # the epoch of the state before training; those of labelled rows are negative


class Keeper:
    """The best state of a run so far.

    Every state is measured by the same objective on the same rows, in ``eval()``, under the weights
    that the terms have in the last step.

    Arguments:
        keep: keep a copy of the best state, and not its number alone.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.objective = -math.inf
        self.epoch = START
        self.state: State = {}
        self.trained = -math.inf  # the best objective after an epoch, the start left out
        self.trained_epoch = 0

    def see(self, epoch: int, objective: float, state: Callable[[], State]) -> None:
        """Compare the state after an epoch with the best one.

        Arguments:
            epoch: number of the epoch; ``START`` before the first.
            objective: of the state; one that is not finite is never kept.
            state: function that copies the state.
        """
        if epoch != START and objective > self.trained:
            self.trained, self.trained_epoch = objective, epoch
        if not math.isfinite(objective) or objective <= self.objective:
            return
        copied = state() if self.keep else {}
        if any(v.is_floating_point() and not bool(v.isfinite().all()) for v in copied.values()):
            return
        self.objective, self.epoch, self.state = objective, epoch, copied
