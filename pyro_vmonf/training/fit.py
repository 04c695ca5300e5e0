"""``fit``: the loop over TraceEnum_ELBO."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf import files
from pyro_vmonf._utils.contexts import evaluating, local_seed, training
from pyro_vmonf._utils.progress import progress_bar
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule
from pyro_vmonf.training import checkpoints
from pyro_vmonf.training.history import History
from pyro_vmonf.training.objective import max_plate_nesting
from pyro_vmonf.training.preparing import (
    check_options,
    fingerprint,
    make_sources,
    schedule_of,
    start_parts,
)
from pyro_vmonf.training.trainer import Guide, Trainer


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each epoch; it stops the run by returning ``True``."""

    epoch: int
    step: int
    model: FlowMixture
    guide: Guide
    history: History


Callback = Callable[[Progress], bool | None]


class Best:
    """The best epoch so far, and a real copy of its parameters where they are wanted."""

    def __init__(self, module: nn.Module, keep: bool) -> None:
        self.module = module
        self.keep = keep
        self.objective = -math.inf
        self.epoch = 0
        self.state: dict[str, Tensor] = {}

    def see(self, epoch: int, objective: float) -> None:
        """Compare an epoch with the best."""
        if objective > self.objective:
            self.objective, self.epoch = objective, epoch
            if self.keep:
                self.state = {k: v.clone() for k, v in self.module.state_dict().items()}

    def restore(self) -> None:
        """Give the module the best epoch's parameters back."""
        if self.state:
            self.module.load_state_dict(self.state)


def fit(
    model: FlowMixture,
    guide: Guide,
    x: Any,
    y: Any = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 512,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    temperature: float | Schedule | Cooling | None = None,
    sample_weight: Any = None,
    given: Any = None,
    pretrain_epochs: int = 0,
    interleave: bool = False,
    held_out: float | Tensor = 0.0,
    patience: int | None = None,
    keep: Literal["last", "best"] = "last",
    standardize: bool = True,
    callbacks: Callback | Sequence[Callback] = (),
    max_rejected: int = 20,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int | None = None,
) -> History:
    r"""Fit model and guide together by maximising the ELBO, per row.

    The loop is ``TraceEnum_ELBO()(model, guide)`` and a torch optimiser, inside a param store of
    its own; every term it minimises is a site of the Pyro program, so plain ``SVI`` does the same.

    Arguments:
        model: the mixture.
        guide: its guide.
        x: rows ``(N, *event_shape)`` as a tensor or numpy array, in raw units; or a ``DataLoader``
            that yields ``x`` or ``(x, y)``.
        y: labels ``(N,)`` with −1 for unlabelled, or log-likelihoods log p(y|c) ``(N, K)``.
        epochs: passes through the data; 100 by default.
        steps: training steps, in place of epochs.
        batch_size: rows of one step.
        lr, weight_decay: of the default optimiser, Adam.
        optimizer: function from the parameters to an optimiser.
        scheduler: function from the optimiser to its schedule, moved once a step.
        clip_norm: largest norm of the gradient.
        temperature: a number, or a schedule over the steps, whose last value stays; by default
            :func:`~pyro_vmonf.schedules.cooling`, from where the guide is to 0.1 in half the run.
        sample_weight: weights of the rows ``(N,)``, at least zero.
        given: the rows' context ``(N, H)``, where the mixture depends on one.
        pretrain_epochs: passes through the labelled rows alone, before anything else.
        interleave: each epoch goes through the labelled rows and then through the others.
        held_out: fraction of the rows kept for the held-out ELBO, or their positions.
        patience: epochs without a better held-out ELBO before the run stops.
        keep: which parameters stay, the last or those with the best ELBO (held out, if any is).
        standardize: standardise at the first fit; later ones keep what the first one found, and
            components on a bounded set (pixels behind a logit) are left as they are.
        callbacks: called after each epoch with :class:`Progress`; returning ``True`` stops the run.
        max_rejected: steps in a row with a non-finite loss before the run gives up.
        checkpoint: file that the run's state is written to, so that it can be resumed.
        every: epochs between two checkpoints; the last epoch always leaves one.
        resume: checkpoint of a run with the same options and data, which goes on from there. On
            the CPU it ends where it would have ended, to the bit. Where it is the ``checkpoint``
            too and is not there yet, the run begins, so one call starts and resumes.
        progress: show a progress bar.
        seed: seed of the order of the rows and of every draw; the global state is left alone.

    Returns:
        The history of the run.

    Raises:
        TypeError: if ``x`` or ``y`` have the wrong kind of numbers.
        ValueError: if data, options or checkpoint do not fit; the model is then as it was.
        FileNotFoundError: if there is no checkpoint to resume.
        OSError: if a checkpoint cannot be written; the former one is then still whole.
        FloatingPointError: if the loss stays non-finite; the model is then in its last good state.

    Example:
        >>> from pyro_vmonf import FlowMixture, MarginalGuide, RealNVP
        >>> model = FlowMixture(RealNVP(features=2, components=5))
        >>> history = fit(model, MarginalGuide(model), torch.randn(64, 2), epochs=2, progress=False)
        >>> len(history.elbo)
        2
    """
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
        pretrain_epochs=pretrain_epochs,
        held_out=held_out,
        patience=patience,
        keep=keep,
    )
    callbacks = [callbacks] if callable(callbacks) else callbacks
    check_positive("every", every)
    if checkpoint is not None:
        files.check_writable(checkpoint)
    past = None
    begins = (
        resume is not None
        and checkpoint is not None
        and os.path.abspath(resume) == os.path.abspath(checkpoint)
        and not os.path.exists(resume)
    )
    if resume is not None and not begins:
        past = checkpoints.read(resume, seed)
        seed = past["seed"]
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    sources = make_sources(
        model,
        x,
        y,
        sample_weight,
        given,
        batch_size=batch_size,
        held_out=held_out,
        by_label=pretrain_epochs > 0 or interleave,
        interleave=interleave,
        generator=generator,
    )
    generators = [generator, *sources.train.generators]
    run: dict[str, Any] = {}
    if checkpoint is not None or past is not None:  # it goes through all rows
        run = fingerprint(
            sources,
            lr=lr,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            held_out=None if isinstance(held_out, Tensor) else float(held_out),
            standardize=standardize,
            temperature=temperature if isinstance(temperature, (int, float)) else None,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            pretrain_epochs=pretrain_epochs,
            interleave=interleave,
            patience=patience,
            keep=keep,
        )
    if past is not None:
        checkpoints.check_same(past, run)

    total_steps = steps or (epochs or 0) * sources.train.batches
    schedule = schedule_of(guide, temperature, total_steps)
    # dict.fromkeys: a parameter that both own counts once, in a fixed order.
    shared = dict.fromkeys((*model.parameters(), *guide.parameters()))
    parameters = [parameter for parameter in shared if parameter.requires_grad]
    made = (
        optimizer(parameters)
        if optimizer
        else Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    )
    units = {name: value.clone() for name, value in model.standardizer.state_dict().items()}
    guide.bind_(model)
    if standardize and not model.bounded and not model.standardizer.fitted:
        sources.train.standardize(model)
    model.standardizer.fitted.fill_(True)  # the units are settled, also where they are raw
    start = time.perf_counter()
    with (
        pyro.get_param_store().scope(),
        local_seed(int(torch.randint(2**62, (), generator=generator))),
        warnings.catch_warnings(),
    ):
        # Non-finite losses are counted and reported; frozen parameters are the user's choice.
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)")
        warnings.filterwarnings("ignore", ".*requires_grad=False")
        try:
            with evaluating(model), evaluating(guide):
                probe = next(iter(sources.train.epoch(torch.Generator())))
                nesting = max_plate_nesting(model, guide, **probe)
            trainer = Trainer(
                model,
                guide,
                made,
                scheduler(made) if scheduler else None,
                clip_norm=clip_norm,
                max_rejected=max_rejected,
                temperature=schedule,
                nesting=nesting,
            )
            trainer.anneal()  # pretraining stays at the schedules' start
            best = Best(trainer.objective, keep == "best")
            total = None if epochs is None else pretrain_epochs + epochs
            epoch = -pretrain_epochs
            if past is not None:
                epoch = checkpoints.restore(past, trainer, best, generators)
                start -= past["seconds"]
        except BaseException:  # it was refused after all: nothing has been trained
            model.standardizer.load_state_dict(units)
            raise
        if past is None:
            start_parts(model, guide, probe)
        history = trainer.history

        def done(epoch: int) -> bool:
            return epoch >= (epochs or 0) if steps is None else trainer.scheduled_steps >= steps

        with (
            training(model),
            training(guide),
            pyro.validation_enabled(False),  # the probe has paid for it; bad steps are caught below
            progress_bar(total, progress, "fit") as bar,
        ):
            bar.update(epoch + pretrain_epochs)
            while not history.stopped and not done(epoch):
                if sources.labelled and (epoch < 0 or interleave):
                    trainer.epoch(sources.labelled.epoch(generator), steps, scheduled=False)
                if epoch >= 0:
                    trainer.epoch(sources.train.epoch(generator), steps, scheduled=True)
                trainer.record(epoch)
                if sources.held_out:
                    trainer.score(sources.held_out)
                bar.update()
                bar.set_postfix(
                    elbo=f"{history.elbo[-1]:.3f}",
                    T=f"{history.temperature[-1]:.3f}",
                    refresh=False,
                )
                if epoch >= 0:
                    best.see(epoch, (history.held_out or history.elbo)[-1])
                view = Progress(epoch, trainer.steps, model, guide, history)
                stops = [callback(view) for callback in callbacks]  # all of them see every epoch
                if any(stops):
                    history.stopped = "a callback returned True"
                elif patience is not None and epoch - best.epoch >= patience:
                    history.stopped = f"no better held-out ELBO for {patience} epochs"
                epoch += 1
                due = epoch % every == 0 or history.stopped or done(epoch)
                if checkpoint is not None and due:
                    checkpoints.save(
                        checkpoint,
                        trainer,
                        best,
                        generators,
                        seed=seed,
                        epoch=epoch,
                        run=run,
                        seconds=time.perf_counter() - start,
                    )
        best.restore()
        if best.state:
            history.kept = history.epoch.index(best.epoch)
    if history.rejected:
        trainer.report_rejected()
    history.seconds = time.perf_counter() - start
    return history
