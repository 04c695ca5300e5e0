"""The state of a run between two epochs: enough to go on as if nothing had happened."""

from __future__ import annotations

import os
from typing import Any

from pyro_vmonf import files
from pyro_vmonf.training.trainer import Trainer

KIND = "checkpoint"
FORMAT = 1


class Writer:
    """Writes the state of a trainer after an epoch, where it is due.

    Arguments:
        trainer: of the run.
        path: the file, which is replaced whole.
        every: epochs between two checkpoints; the last epoch always leaves one.
        seed: of the run.
        run: the options that make the run what it is.
    """

    def __init__(
        self,
        trainer: Trainer,
        path: str | os.PathLike[str],
        every: int,
        seed: int,
        run: dict[str, Any],
    ) -> None:
        self.trainer = trainer
        self.path = path
        self.every = every
        self.head = {"kind": KIND, "format": FORMAT, "seed": seed, "run": run}

    def __call__(self) -> None:
        trainer = self.trainer
        over = trainer.done() or not trainer.runs[0].going
        if trainer.epoch % self.every == 0 or over:
            files.write({**self.head, **trainer.state_dict()}, self.path)


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
