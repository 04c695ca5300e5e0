"""The options of a fit, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf import files
from pyro_vmonf._utils.contexts import alone, checked_seed
from pyro_vmonf._utils.plain import plain
from pyro_vmonf._utils.validation import check_number, check_positive, floating_buffer
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.guides.base import check_pair
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule, as_schedule, check_temperature
from pyro_vmonf.terms import Term
from pyro_vmonf.training.callbacks import Callback
from pyro_vmonf.training.optimisers import make_optimizer, make_scheduler

Keep = Literal["last", "best"]
Compile = bool | Literal["auto"]


@dataclass
class Options:
    """The options of :func:`~pyro_vmonf.fit` but for data and seed; see there."""

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
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
    compile: Compile = "auto"
    loss: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = plain(getattr(self, field.name))
            is_number = isinstance(value, Tensor) and not value.dim()
            setattr(self, field.name, value.item() if is_number else value)
        self._check_numbers()
        self._check_kinds()
        if not isinstance(self.temperature, Cooling) and self.temperature is not None:
            check_temperature(_at(as_schedule(self.temperature), 0))
        if self.checkpoint is not None:
            try:
                files.check_writable(self.checkpoint)
            except ValueError as error:
                raise ValueError(f"checkpoint: {error}") from error

    def _check_numbers(self) -> None:
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
        for name in ("clip_norm", "minutes"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if isinstance(self.held_out, list | tuple | range):
            self.held_out = torch.as_tensor(list(self.held_out))
        if isinstance(self.held_out, Tensor):
            return
        if check_number("held_out", self.held_out, zero=True) >= 1:
            raise ValueError(
                f"held_out is {self.held_out}; expected a fraction of the rows, below 1"
            )
        if self.patience is not None and self.held_out == 0:
            raise ValueError("patience was given without held_out; pass the fraction to hold out")

    def _check_kinds(self) -> None:
        for name in ("interleave", "standardize", "progress", "fast"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}; expected True or False")
        for name in ("optimizer", "scheduler"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; expected a function that makes one, such "
                    "as lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
                )
        for name in ("checkpoint", "resume"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (str, os.PathLike)) and str(value)):
                raise TypeError(f"{name} is {value!r}; expected the path of a file")
        several = self.callbacks if isinstance(self.callbacks, Sequence) else [self.callbacks]
        if isinstance(several, str) or not all(callable(callback) for callback in several):
            raise TypeError(
                f"callbacks is {self.callbacks!r}; expected a function of a Progress, or several"
            )
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise ValueError(f"compile is {self.compile!r}; expected True, False or 'auto'")
        if self.keep not in ("last", "best", None):
            raise ValueError(f"keep is {self.keep!r}; expected 'last', 'best' or None")

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
            TypeError: if it is no mixture with a guide.
            ValueError: if they do not.
        """
        check_pair(model, guide)
        _check_precision(model, guide)
        device = floating_buffer(model).device.type
        if torch.is_autocast_enabled(device):
            raise ValueError(
                f"autocast to {torch.get_autocast_dtype(device)} is on, and sums of log-densities "
                "lose their digits; call fit outside of it"
            )
        if self.temperature is not None and guide.temperature is None:
            raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")
        if sample_weight is not None and not guide.draws_component:
            raise ValueError(
                "sample_weight needs a guide with its own c; Pyro sums c out of the model only "
                "under one common weight: use a SoftmaxGuide or ExactGuide()"
            )
        if guide.model is not None and guide.model is not model:
            raise ValueError("the guide is bound to another model; pass that one, or a new guide")

    def schedule(
        self, guide: BoundGuide, batches: int, initial: float | None = None
    ) -> Schedule | None:
        """Return the schedule of the temperature; ``None`` if the guide has none.

        Arguments:
            guide: of the run.
            batches: steps of one epoch.
            initial: the first temperature of a cooling; by default the guide's.

        Raises:
            ValueError: if it reaches no temperature at a step of the run, or a term no weight.
        """
        steps = self.steps or (self.epochs or 0) * batches
        for term in (part for part in guide.modules() if isinstance(part, Term)):
            if callable(term.weight):
                for step in _steps(steps - 1):
                    if not _at(term.weight, step) >= 0:
                        raise ValueError(
                            f"the weight of {type(term).__name__} is {term.weight(step)} at step "
                            f"{step}; expected at least 0"
                        )
        if guide.temperature is None:
            return None
        schedule = as_schedule(
            Cooling() if self.temperature is None else self.temperature,
            steps=steps,
            initial=float(guide.temperature) if initial is None else initial,
        )
        for step in _steps(steps):
            check_temperature(_at(schedule, step))
        return schedule

    def moves(self, batches: int, labelled: int = 0) -> int:
        """Return the largest number of steps of the optimiser.

        Arguments:
            batches: steps of one epoch.
            labelled: steps of one pass through the labelled rows.
        """
        epochs = self.epochs if self.steps is None else -(-self.steps // max(batches, 1))
        steps = (epochs or 0) * batches if self.steps is None else self.steps
        return steps + (self.pretrain_epochs + self.interleave * (epochs or 0)) * labelled

    def optimizer_of(self, parameters: list[Any]) -> Optimizer:
        """Return the optimiser of parameters: Adam by default.

        Raises:
            ValueError: if there are none, or a function of the user's makes no such optimiser.
        """
        if not parameters:
            raise ValueError(
                "there is nothing to train: no parameter of bank, weights and guide requires a "
                "gradient; expected one at least. Free a part by part.requires_grad_(), or ask the "
                "verbs, which need no fit"
            )
        if self.optimizer is not None:
            return make_optimizer(self.optimizer, parameters)
        return Adam(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)

    def scheduler_of(self, optimizer: Optimizer, moves: int) -> LRScheduler | None:
        """Return the scheduler of an optimiser that takes so many steps."""
        return None if self.scheduler is None else make_scheduler(self.scheduler, optimizer, moves)

    def fingerprint(self, optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
        """Return the options that a resumed run has in common with its first part."""
        temperature: Any = self.temperature
        if not isinstance(temperature, int | float | None):
            temperature = repr(temperature) if is_dataclass(temperature) else None
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "optimizer": type(optimizer).__name__,
            "scheduler": None if scheduler is None else type(scheduler).__name__,
            "clip_norm": self.clip_norm,
            "held_out": None if isinstance(self.held_out, Tensor) else float(self.held_out),
            "standardize": self.standardize,
            "temperature": temperature,
            "epochs": self.epochs,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "pretrain_epochs": self.pretrain_epochs,
            "interleave": self.interleave,
            "patience": self.patience,
            "max_rejected": self.max_rejected,
            "keep": "best" if self.keeps_best else "last",
            "fast": self.fast,
            **({} if self.loss is None else _of_loss(self.loss)),
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


def _of_loss(loss: Any) -> dict[str, Any]:
    """Return the class of a loss and its numbers, but for the depth of plates that a run finds."""
    kinds = (bool, int, float, str)
    own = {name: value for name, value in vars(loss).items() if isinstance(value, kinds)}
    own.pop("max_plate_nesting", None)
    return {"loss": type(loss).__name__, **{f"loss.{name}": own[name] for name in sorted(own)}}


MOST_STEPS = 10_000  # of a schedule that are tried before a run


def _steps(last: int) -> Sequence[int]:
    """Return the steps from 0 to the last one, or some of them where there are very many."""
    some = range(0, max(last, 0), max(last // MOST_STEPS, 1))
    return [*some, max(last, 0)]


def _at(schedule: Schedule, step: int) -> float:
    """Return the value of a schedule.

    Raises:
        ValueError: if it has none.
    """
    try:
        return float(schedule(step))
    except Exception as error:  # of the user's function
        raise ValueError(
            f"the schedule of a temperature or weight has no number at step {step}: {error}"
        ) from error


def _check_precision(model: FlowMixture, guide: BoundGuide) -> None:
    """Refuse parts of several precisions.

    Raises:
        ValueError: if the parameters have no precision in common.
    """
    kinds = {
        name: {str(p.dtype) for p in part.parameters() if p.is_floating_point()}
        for name, part in (("bank", model.bank), ("weights", model.weights), ("guide", guide))
    }
    known = {name: of for name, of in kinds.items() if of}
    if known and not set.intersection(*known.values()):
        found = ", ".join(f"{name} in {' and '.join(sorted(of))}" for name, of in known.items())
        raise ValueError(
            f"a pair has one precision, and this one has its {found}; change the whole pair, as in "
            "vmonf.double()"
        )


def seed_of(seed: Any) -> int:
    """Return the seed of a run; one from torch's own generator for ``None``.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is out of range.
    """
    if seed is None:
        with alone():
            return int(torch.randint(2**62, ()))
    return checked_seed(seed)
