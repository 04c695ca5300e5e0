"""The short road of a run, watched between its epochs."""

from __future__ import annotations

from pyro_vmonf.training.history import History
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.trainer import Trainer

STEPS_BETWEEN_CHECKS = 50


class Guard:
    """The comparison of a short road with ``TraceEnum_ELBO`` between the epochs of a run.

    It takes place after the first epoch, and then after at least 50 steps.

    Arguments:
        objective: of the run.
        history: whose road is named anew where the short one ends.
    """

    def __init__(self, objective: Objective, history: History) -> None:
        self.objective = objective
        self.history = history
        self.due = 0
        self.said: list[str] = []

    def __call__(self, trainer: Trainer, _: int) -> None:
        if trainer.steps < self.due or not trainer.batches:
            return
        self.due = trainer.steps + STEPS_BETWEEN_CHECKS
        reason = self.objective.compare_(dict(trainer.batches[0]))
        if reason:
            self.history.road = self.objective.road
            self.said.append(f"the short road ends after {trainer.steps} steps: {reason}")
