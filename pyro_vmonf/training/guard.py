"""The short road of a run, watched between its epochs."""

from __future__ import annotations

from pyro_vmonf.training.compiling import Compiled
from pyro_vmonf.training.history import History
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.trainer import Trainer

FEWEST, MOST = 50, 1000  # steps between two checks


class Guard:
    """The comparison of a short road with ``TraceEnum_ELBO``, and of a compiled one with it.

    It takes place after the first epoch, and then each time that the steps have doubled, or after
    1,000 more.

    Arguments:
        objective: of the run.
        lanes: whose graph ends with it, or where it differs from the step.
        history: whose road is named, and anew where the short one ends.
    """

    def __init__(self, objective: Objective, lanes: Compiled, history: History) -> None:
        self.lanes = lanes
        self.objective = objective
        self.history = history
        history.road = objective.road
        self.due = 0
        self.said: list[str] = []

    def __call__(self, trainer: Trainer, _: int) -> None:
        if trainer.steps < self.due or not trainer.batches:
            return
        self.due = trainer.steps + min(max(trainer.steps, FEWEST), MOST)
        reason = self.objective.compare_(dict(trainer.batches[0]))
        if reason:
            self.lanes.leave_()
            self.said.append(f"the short road ends after {trainer.steps} steps: {reason}")
        else:
            reason = self.lanes.compare_()
            if reason:
                self.said.append(f"the compiled road ends after {trainer.steps} steps: {reason}")
        if reason:
            self.history.road = self.objective.road
