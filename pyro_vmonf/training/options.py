"""The options of a fit, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf import files
from pyro_vmonf._utils.contexts import alone
from pyro_vmonf._utils.plain import plain
from pyro_vmonf._utils.validation import check_number, check_positive
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule, as_schedule, check_temperature
from pyro_vmonf.training.history import History

Keep = Literal["last", "best"]


@dataclass(frozen=True)
class Progress:
    """The state of a run after an epoch, as a callback sees it."""

    epoch: int
    step: int
    model: FlowMixture
    guide: BoundGuide
    history: History


Callback = Callable[[Progress], bool | None]


@dataclass
class Options:
    """The options of :func:`~pyro_vmonf.fit` but for data and seed; see there."""

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 512
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Callable[[list[Any]], Optimizer] | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    clip_norm: float | None = None
    temperature: float | Schedule | Cooling | None = None
    pretrain_epochs: int = 0
    interleave: bool = False
    held_out: float | Tensor = 0.0
    patience: int | None = None
    keep: Keep | None = None
    standardize: bool = True
    callbacks: Callback | Sequence[Callback] = ()
    max_rejected: int = 20
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 1
    resume: str | os.PathLike[str] | None = None
    progress: bool = True
    fast: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, plain(getattr(self, field.name)))
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs} and steps={self.steps} were both given; pass one of them"
            )
        if self.epochs is None and self.steps is None:
            self.epochs = 100
        for name in ("epochs", "steps", "batch_size", "max_rejected", "patience", "every"):
            value = getattr(self, name)
            if value is not None or name in ("batch_size", "max_rejected", "every"):
                check_positive(name, value)
        check_positive("pretrain_epochs", self.pretrain_epochs, minimum=0)
        check_number("lr", self.lr, zero=True)
        check_number("weight_decay", self.weight_decay, zero=True)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm)
        if self.keep not in ("last", "best", None):
            raise ValueError(f"keep is {self.keep!r}; expected 'last', 'best' or None")
        if not isinstance(self.held_out, Tensor):
            if check_number("held_out", self.held_out, zero=True) >= 1:
                raise ValueError(
                    f"held_out is {self.held_out}; expected a fraction of the rows, below 1"
                )
            if self.patience is not None and self.held_out == 0:
                raise ValueError(
                    "patience was given without held_out; pass the fraction to hold out"
                )
        if not isinstance(self.temperature, Cooling) and self.temperature is not None:
            check_temperature(as_schedule(self.temperature)(0))
        if callable(self.callbacks):
            self.callbacks = [self.callbacks]
        if self.checkpoint is not None:
            files.check_writable(self.checkpoint)

    @property
    def holds_out(self) -> bool:
        """``True`` if rows are held out."""
        return isinstance(self.held_out, Tensor) or self.held_out != 0

    @property
    def keeps_best(self) -> bool:
        """``True`` if the best state stays: by default if rows are held out."""
        return self.keep == "best" or (self.keep is None and self.holds_out)

    @property
    def by_label(self) -> bool:
        """``True`` if labelled rows have epochs of their own."""
        return self.pretrain_epochs > 0 or self.interleave

    def of_sources(self) -> dict[str, Any]:
        """Return the options that say which rows a batch has."""
        names = ("batch_size", "held_out", "by_label", "interleave")
        return {name: getattr(self, name) for name in names}

    def check_pair(self, model: FlowMixture, guide: BoundGuide, sample_weight: Any) -> None:
        """Refuse a pair that the options do not fit.

        Raises:
            ValueError: if they do not.
        """
        if self.temperature is not None and guide.temperature is None:
            raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")
        if sample_weight is not None and not guide.draws_component:
            raise ValueError(
                "sample_weight needs a guide with its own c; Pyro sums c out of the model only "
                "under one common weight: use a SoftmaxGuide"
            )
        if guide.model is not None and guide.model is not model:
            raise ValueError("the guide is bound to another model; pass that one, or a new guide")

    def schedule(self, guide: BoundGuide, batches: int) -> Schedule | None:
        """Return the schedule of the temperature; ``None`` if the guide has none.

        Arguments:
            guide: of the run.
            batches: steps of one epoch.

        Raises:
            ValueError: if it ends at no temperature.
        """
        if guide.temperature is None:
            return None
        steps = self.steps or (self.epochs or 0) * batches
        schedule = as_schedule(
            Cooling() if self.temperature is None else self.temperature,
            steps=steps,
            initial=float(guide.temperature),
        )
        check_temperature(schedule(steps))
        return schedule

    def optimizer_of(self, parameters: list[Any]) -> Optimizer:
        """Return the optimiser of parameters: Adam by default."""
        if self.optimizer is not None:
            return self.optimizer(parameters)
        return Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def fingerprint(self) -> dict[str, Any]:
        """Return the options that a resumed run has in common with its first part."""
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
            "held_out": None if isinstance(self.held_out, Tensor) else float(self.held_out),
            "standardize": self.standardize,
            "temperature": self.temperature if isinstance(self.temperature, int | float) else None,
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "pretrain_epochs": self.pretrain_epochs,
            "interleave": self.interleave,
            "patience": self.patience,
            "keep": "best" if self.keeps_best else "last",
        }

    @property
    def begins(self) -> bool:
        """``True`` if the checkpoint to resume is the one to write, and does not exist yet."""
        return (
            self.resume is not None
            and self.checkpoint is not None
            and os.path.abspath(self.resume) == os.path.abspath(self.checkpoint)
            and not os.path.exists(self.resume)
        )


def drawn_seed() -> int:
    """Return a seed from torch's own generator."""
    with alone():
        return int(torch.randint(2**62, ()))
