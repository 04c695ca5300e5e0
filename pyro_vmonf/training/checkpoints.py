"""The state of a run between two epochs: enough to go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vmonf import files
from pyro_vmonf._utils.plain import plain
from pyro_vmonf.training.compiling import Compiled
from pyro_vmonf.training.history import OVER, STOPPED, History
from pyro_vmonf.training.lanes import Single
from pyro_vmonf.training.streams import Streams
from pyro_vmonf.training.trainer import Trainer

logger = logging.getLogger(__name__)

KIND = "checkpoint"


class Writer:
    """Writes the state of a trainer after an epoch, where it is due.

    Arguments:
        trainer: of the run.
        path: the file, which is replaced whole.
        every: epochs between two checkpoints; the last epoch always leaves one.
        head: what stays the same over the run: its seed, first temperature, options and data.
        streams: generators and counters outside of the pair.

    Raises:
        ValueError: if a file could not give back the state of the optimiser or scheduler.
    """

    def __init__(
        self,
        trainer: Trainer,
        path: str | os.PathLike[str],
        every: int,
        head: dict[str, Any],
        streams: Streams,
    ) -> None:
        self.trainer = trainer
        self.path = path
        self.every = every
        self.head = {"kind": KIND, **head}
        self.streams = streams
        _check_plain("optimizer", trainer.optimizer)
        _check_plain("scheduler", trainer.scheduler)

    def __call__(self) -> None:
        trainer = self.trainer
        over = trainer.done() or not trainer.runs[0].going
        if trainer.epoch % self.every == 0 or over:
            files.write({**self.head, **state_of(trainer, self.streams)}, self.path)
            logger.info("checkpoint %s, %s", self.path, trainer.place())


def _check_plain(name: str, mover: Any) -> None:
    """Refuse an optimiser or a scheduler whose state a file could not hold.

    Raises:
        ValueError: if it could not.
    """
    file = io.BytesIO()
    try:
        if mover is not None:
            torch.save(plain(mover.state_dict()), file)
            file.seek(0)
            torch.load(file, weights_only=True)
    except Exception as error:  # pickle fails in many ways
        raise ValueError(
            f"{name} is a {type(mover).__name__} whose state_dict() is more than numbers, text and "
            f"tensors, so no checkpoint can hold it ({str(error).strip().partition(chr(10))[0]}); "
            "leave out checkpoint, or use another one"
        ) from error


def state_of(trainer: Trainer, streams: Streams) -> dict[str, Any]:
    """Return everything that moves during a run, with the states of all generators."""
    lanes, [run] = trainer.lanes, trainer.runs
    assert isinstance(lanes, Single), "R runs side by side have no checkpoint"
    return {
        "epoch": trainer.epoch,
        "seconds": trainer.seconds,
        "state": lanes.module.state_dict(),
        "settings": files.settings_of(lanes.module),
        "frozen": [name for name, p in lanes.module.named_parameters() if not p.requires_grad],
        "in eval": [name for name, part in lanes.module.named_modules() if not part.training],
        "trained": _trained(trainer),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "counts": [trainer.steps, trainer.scheduled_steps, run.rejected_in_a_row],
        "last_finite": lanes.last_finite,
        "compiled": isinstance(lanes, Compiled) and lanes.graph is not None,
        "measured": isinstance(lanes, Compiled) and lanes.measured is not None,
        "history": dataclasses.asdict(run.history),
        "failure": run.failure,
        "best": {
            "objective": run.keeper.objective,
            "epoch": run.keeper.epoch,
            "state": run.keeper.state,
            "trained": [run.keeper.trained, run.keeper.trained_epoch],
        },
        "order": run.generator.get_state(),
        "streams": streams.state_dict(),
        "start": streams.start_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _trained(trainer: Trainer) -> list[list[str]]:
    """Return the names of the parameters of each group of the optimiser."""
    assert isinstance(trainer.lanes, Single)
    names = {parameter: name for name, parameter in trainer.lanes.module.named_parameters()}
    groups = [group["params"] for group in trainer.optimizer.param_groups]
    return [[names.get(parameter, "?") for parameter in group] for group in groups]


def _check_trained(own: list[list[str]], theirs: list[list[str]]) -> None:
    """Refuse the state of an optimiser that has other parameters, or has them in another order.

    Raises:
        ValueError: if it has.
    """
    if own != theirs:
        apart = sorted({*chain(*own)} ^ {*chain(*theirs)}) or ["their order"]
        raise ValueError(
            f"its optimiser has other parameters, which differ in {', '.join(apart[:5])}; build "
            "the pair, freeze parameters and make groups of them as for the first part"
        )


def go_on_(trainer: Trainer, streams: Streams, content: dict[str, Any]) -> None:
    """Put a run where :func:`state_of` found it.

    Raises:
        ValueError: if the state does not fit.
    """
    lanes, [run] = trainer.lanes, trainer.runs
    assert isinstance(lanes, Single)
    try:
        lanes.module.load_state_dict(content["state"])
        trained = _trained(trainer)
        _check_trained(trained, content.get("trained", trained))
        _load_optimizer(trainer.optimizer, content["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(content["scheduler"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the checkpoint does not fit the pair: {error}") from error
    own, whole = files.settings_of(lanes.module), "frozen" in content  # an earlier one has less
    if differs := files.difference(own, content.get("settings", {}), whole=whole):
        raise ValueError(f"the checkpoint is of another pair: {differs}")
    if whole:  # a callback may have frozen some
        for name, parameter in lanes.module.named_parameters():
            parameter.requires_grad_(name not in content["frozen"])
    trainer.in_eval = content.get("in eval", ())
    trainer.epoch, trainer.seconds = int(content["epoch"]), content["seconds"]
    trainer.steps, trainer.scheduled_steps, run.rejected_in_a_row = content["counts"]
    trainer.anneal(max(trainer.scheduled_steps - 1, 0))  # as the last step left it
    run.history = History(**content["history"])
    lanes.guard_(content["last_finite"])
    best, keeper = content["best"], run.keeper
    keeper.objective, keeper.epoch, keeper.state = best["objective"], best["epoch"], best["state"]
    keeper.trained, keeper.trained_epoch = best["trained"]
    if run.history.stopped.endswith((OVER, STOPPED)):  # which another limit or callback need not do
        minutes = trainer.plan.minutes
        if minutes is None or trainer.seconds < 60 * minutes:
            run.history.stopped = ""
    run.going, run.failure = not run.history.stopped, content["failure"]
    run.generator.set_state(content["order"])
    streams.load_state_dict(content["streams"])
    torch.set_rng_state(content["random"])
    if content["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["random_cuda"])


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser, with every number in the precision that it had.

    Torch takes what is no count of steps to the precision of the parameter.
    """
    optimizer.load_state_dict(state)
    for number, own in optimizer.state_dict()["state"].items():
        for name, saved in state["state"][number].items():
            if isinstance(saved, Tensor) and saved.dtype != own[name].dtype:
                own[name] = saved.to(own[name].device, copy=True)


def read(path: str | os.PathLike[str], seed: int | None) -> dict[str, Any]:
    """Return a run's state.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or of a run with another seed.
    """
    content = files.read(path, KIND)
    if seed is not None and seed != content["seed"]:
        raise ValueError(
            f"seed is {seed} but {os.fspath(path)} is of a run with seed {content['seed']}; pass "
            "that one, or none"
        )
    return content


def check_same(content: dict[str, Any], run: dict[str, Any]) -> None:
    """Refuse a checkpoint of a run with other options or data.

    A checkpoint of an earlier version may lack some of what is compared.

    Raises:
        ValueError: if they differ.
    """
    for name, value in run.items():
        before = content["run"].get(name, value)
        if before != value:
            raise ValueError(
                f"the checkpoint is of a run with {name}={before!r}, and this one has {value!r}; "
                "resume with the same options and data, or start a new run"
            )
