"""The optimiser and the scheduler of a fit, refused before a step where they could not run."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vmonf._utils.contexts import own_filters


def make_optimizer(make: Callable[[list[Any]], Optimizer], parameters: list[Any]) -> Optimizer:
    """Return the optimiser that a user's function makes of parameters.

    Raises:
        TypeError: if it makes something else.
        ValueError: if it fails, holds none of the parameters, or wants a closure for its step.
    """
    made = _made("optimizer", make, parameters, Optimizer)
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer is a {type(made).__name__}, whose step wants a closure that draws the same "
            "numbers each time; fit gives none. Take another optimizer, or call "
            "optimizer.step(closure) on a TrainingLoss of the pair yourself"
        )
    own = {id(parameter) for parameter in parameters}
    if not any(id(p) in own for group in made.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer holds none of the pair's parameters that require a gradient; make it of "
            "those that it is called with"
        )
    for group in made.param_groups:
        if not math.isfinite(group.get("lr", 0.0)):
            raise ValueError(f"optimizer has lr={group['lr']}; expected a finite number")
    return made


def make_scheduler(
    make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer, moves: int
) -> LRScheduler:
    """Return the scheduler that a user's function makes, once it has gone through a whole run.

    Arguments:
        make: the function.
        optimizer: of the run.
        moves: the largest number of its steps.

    Raises:
        TypeError: if the function makes something else.
        ValueError: if it fails, or the scheduler is of another optimiser or too short.
    """
    made = _made("scheduler", make, optimizer, LRScheduler)
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise ValueError("scheduler moves another optimizer than the one that it is called with")
    if not isinstance(made, ReduceLROnPlateau):
        _rehearse(made, optimizer, moves)
    return made


def _made(option: str, make: Callable[[Any], Any], of: Any, kind: type[Any]) -> Any:
    """Return what a user's function makes, if it is of the right kind."""
    try:
        made = make(of)
    except Exception as error:  # of the user's function
        raise ValueError(f"{option} fails on what it is called with: {error}") from error
    if not isinstance(made, kind):
        raise TypeError(
            f"{option} returns a {type(made).__name__}; expected a {kind.__module__}."
            f"{kind.__name__} of what it is called with"
        )
    return made


def _rehearse(scheduler: LRScheduler, optimizer: Optimizer, moves: int) -> None:
    """Take all steps of a scheduler, and put it and the rates back.

    Raises:
        ValueError: if a step fails.
    """
    before = copy.deepcopy(scheduler.state_dict())
    groups = [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    done = 0
    try:
        with own_filters():
            warnings.simplefilter("ignore")  # no step of the optimiser comes before
            for done in range(moves):  # noqa: B007
                scheduler.step()
    except Exception as error:  # each scheduler has its own
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__} that ends after {done} of the {moves} "
            f"steps of this run: {error}"
        ) from error
    finally:
        scheduler.load_state_dict(before)
        for group, old in zip(optimizer.param_groups, groups, strict=True):
            for name, value in old.items():
                if isinstance(group[name], Tensor):
                    group[name].copy_(value)
                else:
                    group[name] = value


@torch.no_grad()
def flush_(optimizer: Optimizer) -> None:
    """Set the denormal numbers of an optimiser's state to zero.

    The moments of a parameter without a gradient fall to the smallest numbers and stay there, and
    a processor takes ten times as long for a step with them.
    """
    for state in optimizer.state.values():
        for value in state.values():
            plain = isinstance(value, Tensor) and value.layout is torch.strided and value.dim()
            if plain and value.is_floating_point():
                value.masked_fill_(value.abs() < torch.finfo(value.dtype).tiny, 0.0)
