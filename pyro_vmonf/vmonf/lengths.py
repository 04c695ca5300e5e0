"""The length of a fit: as long as held-out rows gain, in the time that there is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from pyro_vmonf.vmonf.table import Rows

PATIENCE = 8  # epochs without a better held-out objective, at least
FEWEST_STEPS = 100  # without a better one
MOST_EPOCHS = 10_000
FEWEST_BATCH, BATCH, MOST_BATCH = 16, 256, 1024
MOST_SPLINES = 200_000  # of one step: rows, times columns, times components
RATE = 2e-3
COOLED = 3  # steps at the first rate for each step in which the rate falls to zero
SEARCHED = 0.4  # share of the time in which held-out rows may end the epochs
WORTH_COMPILING = 120.0  # seconds of a fit whose length nobody knows


@dataclass(frozen=True)
class Length:
    """The length that held-out rows found.

    Arguments:
        epochs: at the first rate.
        cooled: epochs in which the rate falls to zero, after these.
        out_of_time: whether time ended the epochs, and not the held-out rows. The cooled ones are
            then those for which there is time.
    """

    epochs: float
    cooled: float
    out_of_time: bool


@dataclass
class Lessons:
    """The fits of a pair to the rows of a table.

    Arguments:
        rows: of the table.
        stages: that show the course.
        components: of the pair.
    """

    rows: Rows
    stages: Stages
    components: int

    @property
    def batch_size(self) -> int:
        """Rows of one step: more for long tables, fewer for wide ones, whose memory is bounded."""
        count, width = self.rows.x.shape
        fitting = max(FEWEST_BATCH, MOST_SPLINES // (width * self.components))
        return min(MOST_BATCH, fitting, max(BATCH, count // 100))

    def search(
        self, model: FlowMixture, guide: SoftmaxGuide, held: Tensor, seconds: float
    ) -> Length:
        """Train until held-out rows stop gaining, and cool; or until its share of the time is over.

        The pair ends in the state that is best on the held-out rows.
        """
        batches = math.ceil((len(self.rows.x) - len(held)) / self.batch_size)
        history = self._fit(
            model,
            guide,
            held_out=held,
            epochs=MOST_EPOCHS,
            minutes=SEARCHED * seconds / 60,
            patience=max(PATIENCE, math.ceil(FEWEST_STEPS / batches)),
            compile="auto" if seconds > WORTH_COMPILING else False,
        )
        best = 0 if history.kept is None else history.step[history.kept]
        steps, spent = history.step[-1], history.seconds
        if "no better" not in history.stopped:
            rest = (1 / SEARCHED - 1) * steps
            return Length(best / batches, rest / self._batches, out_of_time=True)
        cooled = best // COOLED
        if cooled:
            falls = _falling(cooled, cooled)
            again = self._fit(model, guide, held_out=held, steps=cooled, scheduler=falls)
            steps, spent = steps + cooled, spent + again.seconds
            cooled = 0 if again.kept is None else cooled
        # The same on all rows has to fit into the time that is left.
        wanted = max(best + cooled, 1) / batches * self._batches
        share = min(1.0, max(0.0, seconds - spent) / spent * steps / wanted)
        return Length(share * best / batches, share * cooled / batches, out_of_time=False)

    def repeat(self, model: FlowMixture, guide: SoftmaxGuide, length: Length) -> History:
        """Train on all rows for as long."""
        return self._cooled(model, guide, length.epochs + length.cooled, length.cooled)

    def go_on(self, model: FlowMixture, guide: SoftmaxGuide, length: Length) -> History:
        """Train on all rows for the rest of the time, in which the rate falls to zero."""
        return self._cooled(model, guide, length.cooled, length.cooled)

    @property
    def _batches(self) -> int:
        return math.ceil(len(self.rows.x) / self.batch_size)

    def _cooled(
        self, model: FlowMixture, guide: SoftmaxGuide, epochs: float, cooled: float
    ) -> History:
        steps, last = round(epochs * self._batches), round(cooled * self._batches)
        if steps == 0:
            return History(kept=None)
        return self._fit(model, guide, steps=steps, scheduler=_falling(steps, last))

    def _fit(self, model: FlowMixture, guide: SoftmaxGuide, **options: Any) -> History:
        def show(progress: Progress) -> None:
            self.stages.show(progress.history.last_numbers())

        with own_filters(), reached(model, guide):
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
                callbacks=show,
                seed=self.rows.seed,
                progress=False,
                **options,
            )


@contextmanager
def reached(model: FlowMixture, guide: SoftmaxGuide) -> Iterator[None]:
    """Give an interrupt of a block the pair that is trained in it, as the attribute ``pair``."""
    try:
        yield
    except KeyboardInterrupt as error:
        vars(error)["pair"] = (model, guide)
        raise


def _falling(steps: int, cooled: int) -> Callable[[Optimizer], LambdaLR]:
    """Return a schedule whose rate falls to zero in the last of some steps."""

    def factor(step: int) -> float:
        return min(1.0, max(0, steps - step) / max(cooled, 1))

    return lambda optimizer: LambdaLR(optimizer, factor)
