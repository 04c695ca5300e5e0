"""Restarts: the same pair from other starting points, of which the best is kept."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training import together
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.trainer import Guide


def reset_parameters_(module: nn.Module) -> None:
    """Draw every parameter of a module anew, by the ``reset_parameters`` of its parts.

    Raises:
        ValueError: if a part has trainable parameters of its own and no such method; nothing has
            then changed.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = layer.weight.clone()
        >>> reset_parameters_(layer)
        >>> bool((layer.weight == before).any())
        False
    """
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if p.requires_grad]
        if own and not callable(getattr(part, "reset_parameters", None)):
            raise ValueError(
                f"{name or 'the module'} is a {type(part).__name__} without reset_parameters(): "
                "give it one, that draws its parameters anew, or use a single start"
            )

    def reset(part: nn.Module) -> None:
        method = getattr(part, "reset_parameters", None)
        if callable(method):
            method()

    module.apply(reset)  # the parts come before what they are parts of


def best_of_(
    modules: Sequence[nn.Module], run: Callable[[int], float], n_init: int, seed: int
) -> list[float]:
    """Run from several starts and leave the modules as the best run did.

    Arguments:
        modules: what is started anew; the first run begins with their parameters as they are.
        run: function from the number of the run to its objective, larger is better.
        n_init: number of runs.
        seed: seed of the starts.

    Returns:
        The objective of each run.

    Raises:
        ValueError: if there is a choice to make and no objective is a number, or a module cannot be
            started anew. Whatever is raised, the modules are then as they were.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> found = best_of_([layer], lambda i: layer.weight.item(), n_init=5, seed=0)
        >>> max(found) == layer.weight.item()
        True
    """
    whole = nn.ModuleList(modules)
    start = copy.deepcopy(whole.state_dict())
    objectives: list[float] = []
    best, best_objective = start, -math.inf
    try:
        for i in range(n_init):
            if i:
                whole.load_state_dict(start)
                with local_seed(seed + i):
                    reset_parameters_(whole)
            objectives.append(run(i))
            if objectives[-1] > best_objective:
                best_objective = objectives[-1]
                best = copy.deepcopy(whole.state_dict())
        if n_init > 1 and best is start:
            raise ValueError(f"the runs' objectives are {objectives}: there is no best one")
    except BaseException:
        whole.load_state_dict(start)
        raise
    whole.load_state_dict(best)
    return objectives


def fit_best(
    model: FlowMixture,
    guide: Guide,
    x: Any,
    y: Any = None,
    *,
    n_init: int,
    seed: int | None = None,
    held_out: float | Tensor | None = None,
    **options: Any,
) -> History:
    """Fit from several starts and keep the run with the best objective on held-out rows.

    The objective is :attr:`History.objective`: what the guide is trained on. The runs go on side by
    side in one batch (``together.py``); with an optimiser of your own, callbacks, a
    ``DataLoader``, or something that ``torch.vmap`` does not take (``top``, random weights, an
    ``Adversarial`` distortion, a network that looks at values), they come one after the other.

    Arguments:
        model, guide: the pair; the first run begins with their parameters as they are.
        x, y, options: as for :func:`~pyro_vmonf.training.fit.fit`.
        n_init: number of runs.
        seed: seed of the runs and of their starts.
        held_out: fraction of the rows that the runs are compared on, or their positions, the same
            for all runs; a tenth by default. A ``DataLoader`` has none to hold out, and its runs
            are compared on what they were trained on.

    Returns:
        The history of the run that was kept; ``restarts`` holds the objectives of all.

    Raises:
        FloatingPointError: if every run ends with losses that are not finite.
        ValueError: if a part cannot be started anew. Whatever is raised, the pair is as it was.
    """
    if not options.keys().isdisjoint(("checkpoint", "resume")):
        raise ValueError("checkpoint and resume go with one run; pass n_init=1")
    first = int(torch.randint(2**31, ())) if seed is None else seed
    held_out = _common_rows(x, held_out, first)
    if options.keys() <= together.OPTIONS and not isinstance(x, DataLoader):
        with contextlib.suppress(together.NotTogether):
            return _best_together(model, guide, x, y, n_init, first, held_out, options)
    histories: list[History] = []
    failures: list[FloatingPointError] = []

    def run(number: int) -> float:
        try:
            history = fit(model, guide, x, y, seed=first + number, held_out=held_out, **options)
        except FloatingPointError as error:
            failures.append(error)
            if len(failures) == n_init:
                raise
            return -math.inf
        histories.append(history)
        return history.final_objective

    objectives = best_of_([model, guide], run, n_init, first)
    history = max(histories, key=lambda history: history.final_objective)
    history.restarts = objectives
    return history


def _best_together(
    model: FlowMixture,
    guide: Guide,
    x: Any,
    y: Any,
    n_init: int,
    first: int,
    held_out: float | Tensor,
    options: dict[str, Any],
) -> History:
    starts = [copy.deepcopy(nn.ModuleList([model, guide])) for _ in range(n_init)]
    for i, start in enumerate(starts[1:], 1):
        with local_seed(first + i):
            reset_parameters_(start)
    histories = together.fit_together(
        [tuple(pair) for pair in starts],  # type: ignore[misc]
        x,
        y,
        [first + i for i in range(n_init)],
        held_out=held_out,
        **options,
    )
    objectives = [history.final_objective for history in histories]
    best = max(range(n_init), key=lambda i: (math.isfinite(objectives[i]), objectives[i]))
    if not math.isfinite(objectives[best]):
        raise FloatingPointError(
            f"the runs' objectives are {objectives}: none of {n_init} stayed finite. "
            "Try a smaller lr, clip_norm, or a smaller bound of the flows"
        )
    nn.ModuleList([model, guide]).load_state_dict(starts[best].state_dict())
    guide.bind_(model)
    history = histories[best]
    if isinstance(guide, SoftmaxGuide):
        guide.set_step_(history.step[-1] - 1)  # where the terms' weights are is no part of a state
    history.restarts = objectives
    if history.rejected:
        warnings.warn(
            f"{history.rejected} of {history.step[-1]} steps had a loss or gradient that is not "
            "finite and were rolled back",
            RuntimeWarning,
            stacklevel=4,
        )
    return history


def _common_rows(x: Any, held_out: float | Tensor | None, seed: int) -> float | Tensor:
    """Return the rows that all runs are compared on; what cannot be held out is left to ``fit``."""
    if held_out is None:
        held_out = 0.0 if isinstance(x, DataLoader) else 0.1
    if isinstance(held_out, Tensor) or isinstance(x, DataLoader) or not hasattr(x, "__len__"):
        return held_out
    rows = np.shape(x)[0] if np.shape(x) else 0  # sparse matrices have no length
    if not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        return held_out
    count = round(rows * held_out)
    if not 0 < count < rows:
        return held_out
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count]
