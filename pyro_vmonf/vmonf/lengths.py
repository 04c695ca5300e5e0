"""The length of a fit: as long as held-out rows gain, in the time that there is."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pyro_vmonf._utils.contexts import own_filters
from pyro_vmonf._utils.progress import Stages
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training.fit import Progress, fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.trainer import shown_of
from pyro_vmonf.vmonf.table import Rows

PATIENCE = 8  # epochs without a better held-out objective, at least
FEWEST_STEPS = 100  # without a better one
MOST_EPOCHS = 10_000
BATCH = 256
MOST_BATCH = 4096
RATE = 2e-3
COOLED = 3  # epochs at the first rate for each epoch in which the rate falls to zero
WORTH_COMPILING = 120.0  # seconds of a fit whose length nobody knows


@dataclass(frozen=True)
class Length:
    """The length that held-out rows found.

    Arguments:
        epochs: at the first rate.
        cooled: epochs in which the rate falls to zero, after these.
        out_of_time: whether time ended the epochs, and not the held-out rows.
    """

    epochs: int
    cooled: int
    out_of_time: bool


@dataclass
class Lessons:
    """The fits of a pair to the rows of a table.

    Arguments:
        rows: of the table.
        stages: that show the course.
    """

    rows: Rows
    stages: Stages

    @property
    def batch_size(self) -> int:
        """Rows of one step."""
        return min(MOST_BATCH, max(BATCH, len(self.rows.x) // 100))

    def search(
        self, model: FlowMixture, guide: SoftmaxGuide, held: Tensor, seconds: float
    ) -> tuple[Length, History]:
        """Train until held-out rows stop gaining, or a third of the time is over; then cool.

        A fit that time ended cools for the rest of the time. The other two thirds are otherwise
        for the fit to all rows. The pair ends in the state that is best on the held-out rows.
        """
        begun = time.perf_counter()
        batches = math.ceil((len(self.rows.x) - len(held)) / self.batch_size)
        history = self._fit(
            model,
            guide,
            seconds / 3,
            held_out=held,
            epochs=MOST_EPOCHS,
            patience=max(PATIENCE, math.ceil(FEWEST_STEPS / batches)),
            compile="auto" if seconds > WORTH_COMPILING else False,
        )
        best = 0 if history.kept is None else history.kept + 1
        out_of_time = "no better" not in history.stopped
        if out_of_time:
            used = time.perf_counter() - begun
            cooled = int((seconds - used) / used * len(history.epoch))
        else:
            cooled = math.ceil(best / COOLED)
        if cooled:
            left = seconds - (time.perf_counter() - begun)
            falls = _falling(cooled * batches, cooled * batches)
            again = self._fit(model, guide, left, held_out=held, epochs=cooled, scheduler=falls)
            if again.kept is None:
                cooled = 0
            else:
                history = again
        return Length(best, cooled, out_of_time), history

    def repeat(self, model: FlowMixture, guide: SoftmaxGuide, length: Length) -> History:
        """Train on all rows for as long."""
        batches = math.ceil(len(self.rows.x) / self.batch_size)
        epochs = length.epochs + length.cooled
        if epochs == 0:
            return History(kept=None)
        falls = _falling(epochs * batches, length.cooled * batches)
        return self._fit(model, guide, math.inf, epochs=epochs, scheduler=falls)

    def _fit(
        self, model: FlowMixture, guide: SoftmaxGuide, seconds: float, **options: Any
    ) -> History:
        end = time.perf_counter() + seconds

        def in_time(progress: Progress) -> bool:
            self.stages.show(shown_of(progress.history))
            return time.perf_counter() > end

        with own_filters():
            warnings.filterwarnings("ignore", "the fit ended")
            return fit(
                model,
                guide,
                self.rows.x,
                self.rows.y,
                batch_size=self.batch_size,
                lr=RATE,
                clip_norm=10.0,
                temperature=1.0,
                sample_weight=self.rows.weight,
                callbacks=in_time,
                seed=self.rows.seed,
                progress=False,
                **options,
            )


def _falling(steps: int, cooled: int) -> Callable[[Optimizer], LambdaLR]:
    """Return a schedule whose rate falls to zero in the last of some steps."""

    def factor(step: int) -> float:
        return min(1.0, max(0, steps - step) / max(cooled, 1))

    return lambda optimizer: LambdaLR(optimizer, factor)
