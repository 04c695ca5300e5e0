"""Restarts: the same pair from other starting points, of which the best is kept."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import alone, local_seed, own_filters
from pyro_vmonf._utils.validation import as_tensor
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.contracts import optional
from pyro_vmonf.guides import BoundGuide, PyroGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.terms import Term
from pyro_vmonf.training.data import in_memory, make_sources
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.knowledge import warn_of_lost_clusters
from pyro_vmonf.training.lanes import is_watched
from pyro_vmonf.training.loaders import is_streamed
from pyro_vmonf.training.options import Options
from pyro_vmonf.training.together import TOGETHER, NotTogether, Pair, fit_together

logger = logging.getLogger(__name__)


def reset_parameters_(module: nn.Module) -> None:
    """Draw every parameter that is trained anew, by the ``reset_parameters`` of its part.

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
    _check_resets(module)

    def reset(part: nn.Module) -> None:
        optional(part, "reset_parameters", lambda: None)()

    frozen = [(p, p.detach().clone()) for p in module.parameters() if not p.requires_grad]
    module.apply(reset)  # the parts come before what they are parts of
    with torch.no_grad():
        for parameter, before in frozen:
            parameter.copy_(before)


def _check_resets(module: nn.Module) -> None:
    guides = [part for part in module.modules() if isinstance(part, PyroGuide)]
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if p.requires_grad]
        if any(guide.resets(part) for guide in guides):
            continue
        if own and not hasattr(part, "reset_parameters"):
            raise ValueError(
                f"{name or 'the module'} is a {type(part).__name__} without reset_parameters(): "
                "give it one, that draws its parameters anew, or use a single start"
            )


def best_of_(
    modules: Sequence[nn.Module],
    run: Callable[[int], float],
    n_init: int,
    seed: int,
    *,
    reached: bool = False,
) -> list[float]:
    """Run from several starts and leave the modules as the best run did.

    Arguments:
        modules: what is started anew; the first run begins with their parameters as they are.
        run: function from the number of the run to its objective, larger is better.
        n_init: number of runs.
        seed: seed of the starts.
        reached: where an error carries the history of a run (see :meth:`History.kept_by`), leave
            the modules in the best state of the runs that ended, or else as that run left them.

    Returns:
        The objective of each run.

    Raises:
        ValueError: if there is a choice to make and no objective is a number, or a module cannot be
            started anew. Whatever is raised, the modules are then as they were, but for
            ``reached``.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> found = best_of_([layer], lambda i: layer.weight.item(), n_init=5, seed=0)
        >>> max(found) == layer.weight.item()
        True
    """
    whole = nn.ModuleList(modules)
    if n_init > 1:
        _check_resets(whole)
    start = copy.deepcopy(whole.state_dict())
    objectives: list[float] = []
    best, best_objective = start, -math.inf
    try:
        for i in range(n_init):
            if i:
                whole.load_state_dict(start)
                with local_seed(_start_seed(seed, i)):
                    reset_parameters_(whole)
            objectives.append(run(i))
            if objectives[-1] > best_objective:
                best_objective = objectives[-1]
                best = copy.deepcopy(whole.state_dict())
        if n_init > 1 and best is start:
            raise ValueError(f"the runs' objectives are {objectives}: there is no best one")
    except BaseException as error:
        stays = reached and "history" in vars(error)
        if best is not start or not stays:
            whole.load_state_dict(best if stays else start)
        raise
    whole.load_state_dict(best)
    return objectives


def _start_seed(seed: int, number: int) -> int:
    """Return the seed of a start, which is none that a user takes for a first pair by chance."""
    drawn = torch.randint(2**62, (number + 1,), generator=torch.Generator().manual_seed(seed))
    return int(drawn[number])


def fit_best(
    model: FlowMixture,
    guide: BoundGuide,
    x: Any,
    y: Any = None,
    *,
    n_init: int,
    seed: int | None = None,
    held_out: float | Tensor | None = None,
    start: Callable[[FlowMixture, BoundGuide, int], None] | None = None,
    **options: Any,
) -> History:
    """Fit from several starts and keep the run with the best objective on held-out rows.

    The objective is :attr:`History.objective`. The runs go on side by side, as one batch. They come
    one after the other with an optimiser of your own, callbacks, a ``DataLoader``, or a part that
    ``torch.vmap`` does not take (``top``, random weights, an ``Adversarial`` distortion, a network
    that reads values).

    Arguments:
        model, guide: the pair; the first run begins with their parameters as they are.
        x, y, options: as for :func:`~pyro_vmonf.training.fit.fit`.
        n_init: number of runs.
        seed: seed of the runs and of their starts.
        held_out: fraction of the rows that the runs are compared on, or their positions, the same
            for all runs; a tenth by default. A ``DataLoader`` has none to hold out, and its runs
            are compared on what they were trained on.
        start: function that starts the pair of a run, before it is trained: it takes model, guide
            and the number of the run, from 0. It comes after the parameters were drawn anew, so a
            first clustering that was taught to the guide before the fit is lost in all runs but the
            first: teach it here, by :func:`~pyro_vmonf.starts.warm_start_` for example.

    Returns:
        The history of the run that was kept; ``restarts`` holds the objectives of all.

    Warns:
        RuntimeWarning: if the guide knows clusters that only the first run begins with.

    Raises:
        FloatingPointError: if every run ends with losses that are not finite; the pair is then as
            it was.
        ValueError: if a part cannot be started anew; the pair is then as it was.

    An interrupt, or an error of a callback, leaves the pair in the best state that was reached, and
    has its history as the attribute ``history``. Side by side, the last accepted states of all runs
    are compared; one after the other, the runs that ended come before the one that did not.
    """
    if not options.keys().isdisjoint(("checkpoint", "resume")):
        raise ValueError("checkpoint and resume go with one run; pass n_init=1")
    callbacks = options.get("callbacks", ())
    for callback in callbacks if isinstance(callbacks, Sequence) else [callbacks]:
        if getattr(callback, "of_one_run", False):
            kind = type(callback).__name__
            raise ValueError(f"a {kind} holds one run, and n_init is {n_init}; pass n_init=1")
    with alone():
        first = int(torch.randint(2**31, ()) if seed is None else seed)
    x, y, options["sample_weight"] = in_memory(x, y, options.get("sample_weight"))
    held_out = _common_rows(x, held_out, options["sample_weight"], first)
    if start is None and not is_streamed(x):
        warn_of_lost_clusters(model, guide, x, n_init)
    watched = any(is_watched(p) for part in (model, guide) for p in part.parameters())
    alike = not (watched or isinstance(guide, PyroGuide) or options.get("compile") is True)
    if options.keys() <= TOGETHER and not is_streamed(x) and alike:
        with contextlib.suppress(NotTogether):
            return _best_together(model, guide, x, y, n_init, first, held_out, start, options)
    return _best_in_turn(model, guide, x, y, n_init, first, held_out, start, options)


def _best_in_turn(
    model: FlowMixture,
    guide: BoundGuide,
    x: Any,
    y: Any,
    n_init: int,
    first: int,
    held_out: float | Tensor,
    start: Callable[[FlowMixture, BoundGuide, int], None] | None,
    options: dict[str, Any],
) -> History:
    histories: list[History] = []
    weights: list[list[float]] = []  # of the terms, at the end of each run; no part of a state
    failures: list[FloatingPointError] = []
    terms = [part for part in guide.modules() if isinstance(part, Term)]

    def run(number: int) -> float:
        try:
            if start is not None:
                start(model, guide, number)
            with own_filters():  # only the run that is kept counts
                warnings.filterwarnings("ignore", "the fit ended", RuntimeWarning)
                history = fit(model, guide, x, y, seed=first + number, held_out=held_out, **options)
        except FloatingPointError as error:
            failures.append(error)
            if len(failures) == n_init:
                vars(error).pop("history", None)  # no run has anything to keep
                raise
            return -math.inf
        except BaseException as error:
            if any(math.isfinite(past.final_objective) for past in histories):
                best().interrupted_by(error, f"restart {number}")
            raise
        histories.append(history)
        weights.append([term.current_weight for term in terms])
        return history.final_objective

    def best() -> History:
        history = max(histories, key=lambda history: history.final_objective)
        history.restarts = [past.final_objective for past in histories]
        return history

    names = model.feature_names
    # All runs share the state that a guide begins with.
    if isinstance(guide, PyroGuide) and not guide.ready:
        _build_(model, guide, x, y, first, {**options, "held_out": held_out})
    try:
        objectives = best_of_([model, guide], run, n_init, first, reached=True)
    except BaseException as error:
        if "history" not in vars(error):
            model.feature_names = names
        raise
    history = best()
    chosen = next(own for past, own in zip(histories, weights, strict=True) if past is history)
    for term, weight in zip(terms, chosen, strict=True):
        term.current_weight = weight
    logger.info("objectives of %d starts: %s", n_init, objectives)
    history.restarts = objectives
    return history


def _build_(
    model: FlowMixture, guide: BoundGuide, x: Any, y: Any, seed: int, options: dict[str, Any]
) -> None:
    """Let a guide build itself on the first rows of a fit."""
    rows = {name: options.pop(name, None) for name in ("sample_weight", "given")}
    of_sources = Options(**options).of_sources()
    generator = torch.Generator().manual_seed(seed)
    sources = make_sources(model, x, y, **rows, **of_sources, generator=generator)
    guide.build_(model, sources.first_batch())


def _best_together(
    model: FlowMixture,
    guide: BoundGuide,
    x: Any,
    y: Any,
    n_init: int,
    first: int,
    held_out: float | Tensor,
    start: Callable[[FlowMixture, BoundGuide, int], None] | None,
    options: dict[str, Any],
) -> History:
    starts = [copy.deepcopy(nn.ModuleList([model, guide])) for _ in range(n_init)]
    for i, pair in enumerate(starts):
        with local_seed(_start_seed(first, i)):
            if i:
                reset_parameters_(pair)
            if start is not None:
                with contextlib.suppress(FloatingPointError):  # it stays at its last good state
                    start(pair[0], pair[1], i)  # type: ignore[arg-type]
    pairs: list[Any] = [tuple(pair) for pair in starts]
    seeds = [first + i for i in range(n_init)]
    try:
        histories = fit_together(pairs, x, y, seeds, held_out=held_out, **options)
    except BaseException as error:
        if "histories" in vars(error):
            _take_best_(model, guide, pairs, vars(error).pop("histories")).kept_by(error)
        raise
    objectives = [history.final_objective for history in histories]
    logger.info("objectives of %d starts: %s", n_init, objectives)
    if not any(map(math.isfinite, objectives)):
        raise FloatingPointError(
            f"the runs' objectives are {objectives}: none of {n_init} stayed finite. "
            "Try a smaller lr, clip_norm, or a smaller bound of the flows"
        )
    history = _take_best_(model, guide, pairs, histories)
    if history.rejected:
        warn(
            f"{history.rejected} of {history.step[-1]} steps had a loss or gradient that is not "
            "finite and were rolled back"
        )
    return history


def _take_best_(
    model: FlowMixture,
    guide: BoundGuide,
    pairs: Sequence[Pair],
    histories: Sequence[History],
) -> History:
    """Put a pair into the state of the best run, and return its history."""
    objectives = [history.final_objective for history in histories]
    best = max(range(len(pairs)), key=lambda i: (math.isfinite(objectives[i]), objectives[i]))
    history, chosen = histories[best], nn.ModuleList(pairs[best])
    nn.ModuleList([model, guide]).load_state_dict(chosen.state_dict())
    guide.bind_(model)
    model.feature_names = pairs[best][0].feature_names
    # The weights of the terms are no part of a state.
    guide.set_step_(history.step[-1] - 1 if history.step else 0)
    history.restarts = objectives
    return history


def _common_rows(
    x: Any, held_out: float | Tensor | None, sample_weight: Any, seed: int
) -> float | Tensor:
    """Return the rows that all runs are compared on; what cannot be held out is left to ``fit``."""
    if held_out is None:
        held_out = 0.0 if is_streamed(x) else 0.1
    if isinstance(held_out, Tensor) or is_streamed(x) or not hasattr(x, "__len__"):
        return held_out
    rows = np.shape(x)[0] if np.shape(x) else 0  # sparse matrices have no length
    if not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        return held_out
    counting = torch.arange(rows)
    if sample_weight is not None:
        weight = as_tensor("sample_weight", sample_weight).cpu()
        counting = counting[weight > 0] if weight.shape == counting.shape else counting
    count = round(len(counting) * held_out)
    if not 0 < count < len(counting):
        return held_out
    order = torch.randperm(len(counting), generator=torch.Generator().manual_seed(seed))
    return counting[order[:count]]
