"""The state of a run between two epochs: enough to go on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro_vmonf import files
from pyro_vmonf.training.history import History

if TYPE_CHECKING:
    from pyro_vmonf.training.fit import Best
    from pyro_vmonf.training.trainer import Trainer

KIND = "checkpoint"
FORMAT = 1


def save(
    path: str | os.PathLike[str],
    trainer: Trainer,
    best: Best,
    generators: Sequence[torch.Generator],
    *,
    seed: int,
    epoch: int,
    run: dict[str, Any],
    seconds: float,
) -> None:
    """Write a run's state after an epoch.

    Arguments:
        path: the file, which is replaced whole.
        trainer, best, generators: what moves during the run; torch's own generators belong to it.
        seed: the run's seed.
        epoch: number of the epoch that comes next.
        run: the options that make the run what it is.
        seconds: time it has taken so far.
    """
    content = {
        "kind": KIND,
        "format": FORMAT,
        "seed": seed,
        "epoch": epoch,
        "run": run,
        "seconds": seconds,
        "state": trainer.objective.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": None if trainer.scheduler is None else trainer.scheduler.state_dict(),
        "counts": [trainer.steps, trainer.scheduled_steps, trainer.rejected_in_a_row],
        "last_finite": trainer.safeguard.parameters,
        "history": dataclasses.asdict(trainer.history),
        "best": {"objective": best.objective, "epoch": best.epoch, "state": best.state},
        "order": [generator.get_state() for generator in generators],
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    files.write(content, path)


def read(path: str | os.PathLike[str], seed: int | None) -> dict[str, Any]:
    """Return a run's state.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, of another format, or of a run with another seed.
    """
    content = files.read(path, KIND)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} has format {content.get('format')!r}; expected {FORMAT}"
        )
    if seed is not None and seed != content["seed"]:
        raise ValueError(
            f"seed is {seed} but {os.fspath(path)} is of a run with seed {content['seed']}; pass "
            "that one, or none"
        )
    return content


def check_same(content: dict[str, Any], run: dict[str, Any]) -> None:
    """Refuse a checkpoint of a run with other options or data.

    Raises:
        ValueError: if they differ.
    """
    for name, value in run.items():
        before = content["run"].get(name)
        if before != value:
            raise ValueError(
                f"the checkpoint is of a run with {name}={before!r}, and this one has {value!r}; "
                "resume with the same options and data, or start a new run"
            )


def restore(
    content: dict[str, Any],
    trainer: Trainer,
    best: Best,
    generators: Sequence[torch.Generator],
) -> int:
    """Put a run where :func:`save` found it; return the number of the epoch that comes next.

    Raises:
        ValueError: if the state does not fit the pair or the optimiser; neither has then changed.
    """
    before = {k: v.clone() for k, v in trainer.objective.state_dict().items()}
    try:
        trainer.objective.load_state_dict(content["state"])
        trainer.optimizer.load_state_dict(content["optimizer"])
        if trainer.scheduler is not None:
            trainer.scheduler.load_state_dict(content["scheduler"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        trainer.objective.load_state_dict(before)
        raise ValueError(f"the checkpoint does not fit the pair: {error}") from error
    trainer.steps, trainer.scheduled_steps, trainer.rejected_in_a_row = content["counts"]
    trainer.history = History(**content["history"])
    trainer.start_guarding(content["last_finite"])
    best.objective = content["best"]["objective"]
    best.epoch = content["best"]["epoch"]
    best.state = content["best"]["state"]
    for generator, state in zip(generators, content["order"], strict=True):
        generator.set_state(state)
    torch.set_rng_state(content["random"])
    if content["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["random_cuda"])
    return int(content["epoch"])
