"""Restarts as one batch: R runs of the same fit, one program under ``torch.vmap``.

A step of a small mixture is mostly Python; R of them at once cost hardly more than one. Nothing of
the pair has to know: its parameters are stacked, and the program runs over the stack.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf._utils.contexts import evaluating, local_seed, training
from pyro_vmonf._utils.progress import progress_bar
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule
from pyro_vmonf.training.data import TensorSource
from pyro_vmonf.training.history import History
from pyro_vmonf.training.objective import Objective, max_plate_nesting
from pyro_vmonf.training.preparing import check_data, check_options, schedule_of, start_parts
from pyro_vmonf.training.runs import Runs
from pyro_vmonf.training.trainer import Guide, objective_of

# What the runs share; with any other option of ``fit`` they have to be made one after the other.
OPTIONS = {
    "epochs", "steps", "batch_size", "lr", "weight_decay", "scheduler", "clip_norm", "temperature",
    "sample_weight", "given", "held_out", "patience", "keep", "standardize", "max_rejected",
    "progress",
}  # fmt: skip


class NotTogether(RuntimeError):
    """The pair cannot run under ``torch.vmap``."""


@dataclass
class Run:
    """One of the runs: its order of the rows, and what became of it."""

    generator: torch.Generator
    train: TensorSource
    held_out: TensorSource | None
    history: History
    best: float = -math.inf
    best_epoch: int = 0
    rejected_in_a_row: int = 0
    going: bool = True


def fit_together(
    pairs: list[tuple[FlowMixture, Guide]],
    x: Any,
    y: Any,
    seeds: list[int],
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    temperature: float | Schedule | Cooling | None = None,
    sample_weight: Any = None,
    given: Any = None,
    held_out: float | Tensor = 0.0,
    patience: int | None = None,
    keep: Literal["last", "best"] = "last",
    standardize: bool = True,
    max_rejected: int = 20,
    progress: bool = True,
) -> list[History]:
    """Fit pairs that differ in their state alone, as :func:`~pyro_vmonf.fit` would each.

    Batches, held-out rows, clipping, rejected steps and early stopping are each run's own; what
    terms and random weights draw comes from one stream, and differs between the runs.

    Arguments:
        pairs: models and guides, which are left in the state that their run ended in.
        x, y: rows and their evidence.
        seeds: one for each run, as ``fit`` takes it.
        epochs, steps, batch_size, lr, weight_decay, scheduler, clip_norm, temperature,
            sample_weight, given, held_out, patience, keep, standardize, max_rejected, progress: as
            there.

    Returns:
        The history of each; the objective of a run that was given up is minus infinity.

    Raises:
        NotTogether: if the program does not run under ``torch.vmap``; no pair has then changed.
        ValueError: if data or options do not fit.
    """
    model, guide = pairs[0]
    epochs = check_options(
        model,
        guide,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        max_rejected=max_rejected,
        clip_norm=clip_norm,
        temperature=temperature,
        sample_weight=sample_weight,
        pretrain_epochs=0,
        held_out=held_out,
        patience=patience,
        keep=keep,
    )
    x, y, sample_weight, given = check_data(model, x, y, sample_weight, given)
    numbers = torch.arange(len(x), device=x.device)
    runs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        # A source of the rows' numbers: the rows themselves are there once.
        train, held = TensorSource(numbers, None, None, batch_size, numbers).split(
            held_out, generator
        )
        draws = int(torch.randint(2**62, (), generator=generator))
        runs.append((Run(generator, train, held, History()), draws))
    train = runs[0][0].train
    schedule = schedule_of(guide, temperature, steps or (epochs or 0) * train.batches)
    copies: list[tuple[FlowMixture, Guide]] = []
    for (own, own_guide), (run, _) in zip(pairs, runs, strict=True):
        both = copy.deepcopy(nn.ModuleList([own, own_guide]))
        copied, copied_guide = both
        assert isinstance(copied, FlowMixture)
        copied_guide.bind_(copied)  # type: ignore[operator]
        if standardize and not copied.bounded and not copied.standardizer.fitted:
            copied.standardize_(x[run.train.positions])
        copied.standardizer.fitted.fill_(True)
        rows = next(iter(run.train.epoch(torch.Generator())))["x"]  # those that fit begins with
        start_parts(copied, copied_guide, {"x": x[rows]})  # type: ignore[arg-type]
        copies.append((copied, copied_guide))  # type: ignore[arg-type]
    start = time.perf_counter()
    with (
        pyro.get_param_store().scope(),
        local_seed(runs[0][1]),
        warnings.catch_warnings(),
        pyro.validation_enabled(False),  # a row that is not finite is the runs' own affair
    ):
        warnings.filterwarnings("ignore", ".*requires_grad=False")
        warnings.filterwarnings("ignore", "There is a performance drop")  # vmap goes through some
        first = torch.stack([run.train.positions[:batch_size] for run, _ in runs])
        some = first[0]
        probe = {
            "x": x[some],
            "y": None if y is None else y[some],
            "size": len(some),
            "given": None if given is None else given[some],
        }
        with evaluating(copies[0][0]), evaluating(copies[0][1]):
            nesting = max_plate_nesting(*copies[0], **probe)
        objectives = [Objective(*pair, nesting) for pair in copies]
        arrays = {"x": x, "y": y, "sample_weight": sample_weight, "given": given}
        _try(Runs(copy.deepcopy(objectives), arrays, train.size), first)
        every = Runs(
            objectives,
            arrays,
            train.size,
            lr=lr,
            weight_decay=weight_decay,
            scheduler=scheduler,
            clip_norm=clip_norm,
        )
        with training(every.template):
            histories, states = _course(
                every,
                [run for run, _ in runs],
                steps=steps,
                epochs=epochs,
                schedule=schedule,
                patience=patience,
                keep=keep == "best",
                max_rejected=max_rejected,
                progress=progress,
            )
    for (own, own_guide), state, history in zip(pairs, states, histories, strict=True):
        own_guide.bind_(own)
        Objective(own, own_guide, nesting).load_state_dict(state)
        history.seconds = time.perf_counter() - start
    return histories


@torch.no_grad()
def _try(runs: Runs, index: Tensor) -> None:
    """Run the program once in either mode, on a copy that is thrown away."""
    for mode in (evaluating, training):
        try:
            with mode(runs.template), local_seed(0):
                runs.terms(index, runs.size)
        except RuntimeError as error:
            raise NotTogether(str(error)) from error


def _course(
    every: Runs,
    runs: list[Run],
    *,
    steps: int | None,
    epochs: int | None,
    schedule: Schedule | None,
    patience: int | None,
    keep: bool,
    max_rejected: int,
    progress: bool,
) -> tuple[list[History], list[dict[str, Tensor]]]:
    """Go through the epochs; return the histories and the states that the runs end in."""
    guide = every.template.guide
    done, epoch = 0, 0
    states: list[dict[str, Tensor]] = [{} for _ in runs]
    with progress_bar(epochs, progress, f"fit {len(runs)} starts") as bar:
        while any(run.going for run in runs) and (
            epoch < (epochs or 0) if steps is None else done < steps
        ):
            taken_in_all = torch.zeros(len(runs))
            totals: dict[str, Tensor] = {}
            batches = [run.train.epoch(run.generator) for run in runs]
            temperature = 1.0
            for arguments in zip(*batches, strict=True):
                if steps is not None and done >= steps:
                    break
                if schedule is not None:
                    guide.set_step_(done)  # type: ignore[operator]
                    temperature = schedule(done)
                    every.set_temperature_(temperature)
                going = torch.tensor([run.going for run in runs])
                index = torch.stack([a["index"] for a in arguments])
                terms, taken = every.step(index, going.to(index.device))
                done += 1
                for run, ok in zip(runs, taken.tolist(), strict=True):
                    if not run.going:
                        continue
                    run.rejected_in_a_row = 0 if ok else run.rejected_in_a_row + 1
                    run.history.rejected += not ok
                    if run.rejected_in_a_row >= max_rejected:
                        run.going = False
                        run.history.stopped = f"{max_rejected} steps in a row were not finite"
                taken_in_all += taken.cpu()
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + value.where(taken, 0.0).cpu()
            held = _held_out(every, runs)
            for i, run in enumerate(runs):
                if run.history.stopped:
                    continue
                count = float(taken_in_all[i])
                means = {name: float(v[i]) / count for name, v in totals.items()} if count else {}
                objective = objective_of(guide, means)  # type: ignore[arg-type]
                run.history.record(epoch, done, means, temperature, objective)
                if held is not None:
                    scores = {name: float(v[i]) for name, v in held.items()}
                    run.history.held_out.append(sum(scores.values()))
                    run.history.objective[-1] = objective_of(guide, scores)  # type: ignore[arg-type]
                score = (run.history.held_out or run.history.elbo)[-1]
                if score > run.best:
                    run.best, run.best_epoch = score, epoch
                    if keep:
                        states[i], run.history.kept = every.state(i), epoch
                if patience is not None and epoch - run.best_epoch >= patience:
                    run.going = False
                    run.history.stopped = f"no better held-out ELBO for {patience} epochs"
                    states[i] = states[i] or every.state(i)  # the temperature of the others goes on
            bar.update()
            epoch += 1
    for run in runs:
        given_up = run.rejected_in_a_row >= max_rejected or run.history.rejected == done
        if given_up or not run.history.objective:
            run.history.objective.append(-math.inf)
            run.history.kept = -1
    return [run.history for run in runs], [s or every.state(i) for i, s in enumerate(states)]


@torch.no_grad()
def _held_out(every: Runs, runs: list[Run]) -> dict[str, Tensor] | None:
    """Return the terms of each run's held-out rows, per row, in ``eval()``."""
    sources = [run.held_out for run in runs if run.held_out is not None]
    if not sources:
        return None
    totals: dict[str, Tensor] = {}
    size = sources[0].size
    rows = torch.stack([source.positions for source in sources])
    with evaluating(every.template):
        for chosen in rows.split(sources[0].batch_size, -1):
            for name, value in every.terms(chosen, size).items():
                share = chosen.shape[1] / size
                totals[name] = totals.get(name, 0.0) + value.cpu() * share
    return totals
