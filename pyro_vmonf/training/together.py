"""Several runs of a pair side by side, as one batch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_vmonf._utils.contexts import evaluating, local_seed, training
from pyro_vmonf._utils.frames import Names, names_of, ordered
from pyro_vmonf._utils.validation import has_gaps
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import unregistered
from pyro_vmonf.training.data import Sources, TensorSource, check_data
from pyro_vmonf.training.fit import fit, in_units, plan_of, quiet_scope, run_of
from pyro_vmonf.training.history import History
from pyro_vmonf.training.knowledge import start_parts
from pyro_vmonf.training.lanes import Stacked
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.options import Options
from pyro_vmonf.training.plan import Run
from pyro_vmonf.training.reading import Terms
from pyro_vmonf.training.trainer import Trainer

# The options of ``fit`` under which runs go on side by side.
TOGETHER = {
    "epochs", "steps", "batch_size", "lr", "weight_decay", "scheduler", "clip_norm", "temperature",
    "sample_weight", "given", "held_out", "patience", "keep", "standardize", "max_rejected",
    "progress", "fast", "compile",
}  # fmt: skip

Pair = tuple[FlowMixture, BoundGuide]
Arrays = dict[str, Tensor | None]  # rows, evidence, weights and context


class NotTogether(RuntimeError):
    """The pair cannot run under ``torch.vmap``."""


def fit_together(
    pairs: Sequence[Pair],
    x: Any,
    y: Any,
    seeds: Sequence[int],
    *,
    sample_weight: Any = None,
    given: Any = None,
    **options: Any,
) -> list[History]:
    """Fit pairs that differ in their state alone, as :func:`~pyro_vmonf.fit` would fit each.

    Each run has its own batches, held-out rows, clipping, rejected steps and early stopping. The
    draws of terms and of random weights come from one stream.

    Arguments:
        pairs: models and guides, which end in the state of their run.
        x, y, sample_weight, given: rows, their evidence, weights and context.
        seeds: one for each run, as ``fit`` takes it.
        options: as for ``fit``, those of :data:`TOGETHER`.

    Returns:
        The history of each; the objective of a run that was given up is minus infinity.

    Raises:
        NotTogether: if the program does not run under ``torch.vmap``; no pair has then changed.
        BaseException: after the first step, with the histories as its attribute ``histories``; each
            pair is then in the last accepted state of its run.
        ValueError: if data or options do not fit.
    """
    if len(pairs) == 1:
        [(model, guide)] = pairs
        data = {"sample_weight": sample_weight, "given": given}
        return [fit(model, guide, x, y, seed=seeds[0], **data, **options)]
    checked = Options(**options)
    checked.check_pair(*pairs[0], sample_weight)
    names = names_of(ordered(x, pairs[0][0].feature_names))
    arrays = dict(
        zip(
            ("x", "y", "sample_weight", "given"),
            check_data(pairs[0][0], x, y, sample_weight, given),
            strict=True,
        )
    )
    assert arrays["x"] is not None
    if has_gaps(arrays["x"]):
        raise NotTogether("rows have missing entries")
    runs = [_run(arrays, checked, seed) for seed in seeds]
    copies = [_copy(pair, arrays, run, checked) for pair, (run, _) in zip(pairs, runs, strict=True)]
    schedule = checked.schedule(copies[0][1], runs[0][0].train.batches)
    with quiet_scope(runs[0][1]), pyro.validation_enabled(False):
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap loops over some
        probe = next(iter(runs[0][0].train.epoch(torch.Generator())))
        objective = Objective(*copies[0])
        objective.prepare_(_rows(arrays, probe["x"]), checked.fast)
        if objective.reason:
            raise NotTogether(objective.reason)
        nesting = objective.elbo.max_plate_nesting
        objectives = [Objective(*pair, nesting, direct=objective.direct) for pair in copies]
        if any(hasattr(part, "counts") and _is_frozen(part) for part in objective.modules()):
            raise NotTogether("weights in closed form are frozen")
        size = runs[0][0].train.size
        tried = copy.deepcopy(objectives)
        _try(Stacked(tried, arrays, size), objectives, [run for run, _ in runs])
        lanes = Stacked(objectives, arrays, size, checked.clip_norm)
        lanes.optimizer = optimizer = checked.optimizer_of(lanes.parameters)
        title = f"fit {len(pairs)} starts"
        plan = plan_of(*copies[0], checked, schedule, title, lambda terms, _: ", ".join(terms))
        scheduler = checked.scheduler_of(optimizer, checked.moves(runs[0][0].train.batches))
        if isinstance(scheduler, ReduceLROnPlateau):
            raise NotTogether("each run has its own plateau")
        trainer = Trainer(lanes, [run for run, _ in runs], optimizer, scheduler, plan)
        try:
            trainer.run()
        except BaseException as error:
            if trainer.steps:
                vars(error)["histories"] = _settle_(pairs, trainer, objective, names)
            raise
    return _settle_(pairs, trainer, objective, names)


def _settle_(
    pairs: Sequence[Pair], trainer: Trainer, objective: Objective, names: Names | None
) -> list[History]:
    """Put every pair into the state of its run; return the histories."""
    for i, ((model, guide), run) in enumerate(zip(pairs, trainer.runs, strict=True)):
        guide.bind_(model)
        model.feature_names = names or model.feature_names
        Objective(model, guide).load_state_dict(trainer.lanes.state(i))
        run.history.road = objective.road
        if run.failure:
            run.history.objective.append(-math.inf)
            run.history.kept = -1
    return [run.history for run in trainer.runs]


def _is_frozen(part: nn.Module) -> bool:
    return not all(p.requires_grad for p in part.parameters(recurse=False))


def _run(arrays: Arrays, options: Options, seed: int) -> tuple[Run, torch.Generator]:
    """Return a run over the numbers of the rows: the rows themselves are there once."""
    x = arrays["x"]
    assert x is not None
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(len(x), device=x.device)
    rows = TensorSource(numbers, None, arrays["sample_weight"], options.batch_size, numbers)
    train, held = rows.split(options.held_out, generator)
    draws = torch.Generator().manual_seed(seed)
    draws.set_state(generator.get_state())
    torch.randint(2**62, (), generator=generator)  # the seed of the draws, as fit takes it
    return run_of(Sources(train, None, held), generator, options), draws


def _copy(pair: Pair, arrays: Arrays, run: Run, options: Options) -> Pair:
    """Return a copy of a pair, in units and with its parts started, as fit would begin."""
    copied, guide = copy.deepcopy(pair)  # one memo: what both hold stays common
    train: Any = run.train
    own = _rows(arrays, train.positions)
    rows = TensorSource(own["x"], None, own["sample_weight"], options.batch_size, train.positions)
    with in_units(copied, guide, Sources(rows, None, None), options.standardize):
        first = next(iter(run.train.epoch(torch.Generator())))["x"]  # those that fit begins with
        start_parts(copied, guide, _rows(arrays, first))
    copied.incomplete = False  # nobody can look under vmap
    return copied, guide


def _rows(arrays: Arrays, index: Tensor) -> dict[str, Any]:
    """Return the arguments of the program for the rows of some numbers."""
    rows = {name: None if a is None else a[index] for name, a in arrays.items()}
    return {**rows, "index": index, "size": len(index)}


@torch.no_grad()
def _try(lanes: Stacked, objectives: Sequence[Objective], runs: Sequence[Run]) -> None:
    """Run the program once in either mode, and compare it with each run alone.

    Arguments:
        lanes: copies, which are thrown away.
        objectives: of the runs.
        runs: the runs.

    Raises:
        NotTogether: if the program does not run, or has other terms.
    """
    own = [
        part
        for _, part in objectives[0].named_modules(remove_duplicate=False)
        if part._parameters or part._buffers
    ]
    if len(set(own)) < len(own):
        raise NotTogether("a part has two names, and torch gives it its parameters twice")
    batches = [next(iter(run.train.epoch(torch.Generator()))) for run in runs]
    terms: list[Terms] = []
    for mode in (evaluating, training):
        try:
            with mode(lanes.module), local_seed(0):
                terms.append(lanes.terms(batches))
        except RuntimeError as error:
            raise NotTogether(str(error)) from error
    found, _ = terms
    first, again = (_terms_alone(objectives[0], lanes, batches[0], seed) for seed in (0, 1))
    drawn = any(not torch.equal(first[name], again[name]) for name in first)  # by another stream
    for i, (objective, batch) in enumerate(zip(objectives, batches, strict=True)):
        alone = _terms_alone(objective, lanes, batch, 0)
        same = found.keys() == alone.keys()
        if same and not drawn:
            mine, theirs = (torch.stack([v[name] for name in alone]) for v in (alone, found))
            atol = 1e3 * torch.finfo(mine.dtype).eps * float(mine.abs().max())
            same = torch.allclose(mine, theirs[:, i], rtol=0, atol=atol, equal_nan=True)
        if not same:
            raise NotTogether("the runs have other terms together than alone")


def _terms_alone(objective: Objective, lanes: Stacked, batch: Any, seed: int) -> Terms:
    """Return the terms per row of one run, without ``torch.vmap``."""
    arrays = {n: None if a is None else a[batch["x"]] for n, a in lanes.arrays.items()}
    arguments = {**arrays, "index": batch["x"], "size": batch["size"]}
    with evaluating(objective), local_seed(seed), unregistered():
        return {name: value / batch["size"] for name, value in objective(**arguments).items()}
