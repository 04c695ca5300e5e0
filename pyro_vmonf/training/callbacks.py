"""Functions of the user that a run calls after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from pyro.infer.util import is_validation_enabled

from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training.history import STOPPED, History

if TYPE_CHECKING:
    from pyro_vmonf.training.trainer import Trainer


@dataclass(frozen=True)
class Progress:
    """The state of a run after an epoch, as a callback sees it."""

    epoch: int
    step: int
    model: FlowMixture
    guide: BoundGuide
    history: History


Callback = Callable[[Progress], bool | None]


class Callbacks:
    """The hook of a run that calls the user's functions.

    Arguments:
        callbacks: a function, or several; all of them see every epoch.
        model, guide: the pair.

    Raises:
        ValueError: after an epoch, if one of them has put other parameters into the pair.
    """

    def __init__(
        self, callbacks: Callback | Sequence[Callback], model: FlowMixture, guide: BoundGuide
    ) -> None:
        self.callbacks = [callbacks] if callable(callbacks) else list(callbacks)
        self.model, self.guide = model, guide
        self.trained = self._parameters()
        self.validates = is_validation_enabled()

    def __call__(self, trainer: Trainer, epoch: int) -> str | None:
        if not self.callbacks:
            return None
        view = Progress(epoch, trainer.steps, self.model, self.guide, trainer.runs[0].history)
        known, self.model.incomplete = self.model.incomplete, None  # they may score other rows
        try:
            with pyro.validation_enabled(self.validates):
                said = [callback(view) for callback in self.callbacks]
        finally:
            self.model.incomplete = known
        if self._parameters() != self.trained:
            raise ValueError(
                "a callback has put other parameters into the pair, as prune_, another bank and "
                "double() do, and the run would train those that it began with; change the pair "
                "between two fits (within one, Reseed fills empty components)"
            )
        return STOPPED if any(isinstance(stop, bool | np.bool_) and stop for stop in said) else None

    def _parameters(self) -> list[tuple[int, torch.dtype]]:
        """Return identity and dtype of every parameter."""
        pair = (self.model, self.guide)
        return [(id(p), p.dtype) for part in pair for p in part.parameters()]
