"""The options of ``fit`` as keywords that editors and type checkers know."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypedDict, TypeVar

from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf.schedules import Cooling, Schedule
from pyro_vmonf.training.callbacks import Callback
from pyro_vmonf.training.options import Compile, Keep

Method = TypeVar("Method", bound=Callable[..., Any])


class FitOptions(TypedDict, total=False):
    """The options of :func:`pyro_vmonf.training.fit.fit`."""

    epochs: int | None
    steps: int | None
    minutes: float | None
    batch_size: int
    lr: float
    weight_decay: float
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None
    scheduler: Callable[[Optimizer], LRScheduler] | None
    clip_norm: float | None
    temperature: float | Schedule | Cooling | None
    sample_weight: Any
    given: Any
    pretrain_epochs: int
    interleave: bool
    held_out: float | Tensor
    patience: int | None
    keep: Keep | None
    standardize: bool
    callbacks: Callback | Sequence[Callback]
    max_rejected: int
    checkpoint: str | os.PathLike[str] | None
    every: int
    resume: str | os.PathLike[str] | None
    progress: bool
    seed: int | None
    fast: bool
    compile: Compile
    loss: ELBO | None


def shows_options_of(
    function: Callable[..., Any], but: Collection[str] = ()
) -> Callable[[Method], Method]:
    """Let ``help`` and notebooks show the options that a method hands on.

    Arguments:
        function: that takes the options.
        but: names of those that the method does not take.

    Example:
        >>> def solve(x, *, steps=10, rate=0.1): ...
        >>> @shows_options_of(solve, but=["rate"])
        ... def run(x, **options): ...
        >>> inspect.signature(run)
        <Signature (x, *, steps=10)>
    """

    def decorate(method: Method) -> Method:
        own = inspect.signature(method)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        known = {parameter.name for parameter in named} | set(but)
        options = [
            parameter
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in known
        ]
        shown = own.replace(parameters=[*named, *options])
        method.__signature__ = shown  # type: ignore[attr-defined]
        return method

    return decorate
