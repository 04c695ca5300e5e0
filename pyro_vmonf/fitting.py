"""``fit``: the loop over TraceEnum_ELBO."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from pyro_vmonf.checks import (
    check_context,
    check_context_rows,
    check_evidence,
    check_positive,
    check_rows,
    check_sample_weight,
    floating_buffer,
)
from pyro_vmonf.elbo import max_plate_nesting
from pyro_vmonf.guides import MarginalGuide, SoftmaxGuide
from pyro_vmonf.history import History
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.progress import progress_bar
from pyro_vmonf.scopes import evaluating, local_seed, training
from pyro_vmonf.sources import LoaderSource, Source, TensorSource
from pyro_vmonf.temperature import Cooling, Schedule, as_schedule, check_temperature
from pyro_vmonf.training import Guide, Trainer


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


class Sources(NamedTuple):
    """Where the rows of a run come from."""

    train: Source
    labelled: TensorSource | None
    held_out: TensorSource | None


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
            :func:`~pyro_vmonf.temperature.cooling`, from where the guide is to 0.1 in half the run.
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
        progress: show a progress bar.
        seed: seed of the order of the rows and of every draw; the global state is left alone.

    Returns:
        The history of the run.

    Raises:
        TypeError: if ``x`` or ``y`` have the wrong kind of numbers.
        ValueError: if data or options do not fit; the model is then as it was.
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
        clip_norm=clip_norm,
        temperature=temperature,
        sample_weight=sample_weight,
        pretrain_epochs=pretrain_epochs,
        held_out=held_out,
        patience=patience,
        keep=keep,
    )
    callbacks = [callbacks] if callable(callbacks) else callbacks
    generator = torch.Generator().manual_seed(
        int(torch.randint(2**62, ())) if seed is None else seed
    )
    sources = _sources(
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
    # Nothing was refused: from here on the pair may change.
    guide.bind_(model)
    if standardize and not model.bounded and not model.standardizer.fitted:
        model.standardize_(sources.train.all_rows())
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
        history = trainer.history
        best = Best(trainer.objective, keep == "best")
        total = None if epochs is None else pretrain_epochs + epochs
        epoch = -pretrain_epochs

        def done(epoch: int) -> bool:
            return epoch >= (epochs or 0) if steps is None else trainer.scheduled_steps >= steps

        with (
            training(model),
            training(guide),
            pyro.validation_enabled(False),  # the probe has paid for it; bad steps are caught below
            progress_bar(total, progress, "fit") as bar,
        ):
            while not done(epoch):
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
                    break
                if patience is not None and epoch - best.epoch >= patience:
                    history.stopped = f"no better held-out ELBO for {patience} epochs"
                    break
                epoch += 1
        best.restore()
        if best.state:
            history.kept = history.epoch.index(best.epoch)
    if history.rejected:
        trainer.report_rejected()
    history.seconds = time.perf_counter() - start
    return history


def check_options(
    model: FlowMixture,
    guide: Guide,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    clip_norm: float | None,
    temperature: float | Schedule | Cooling | None,
    sample_weight: Any,
    pretrain_epochs: int,
    held_out: float | Tensor,
    patience: int | None,
    keep: str,
) -> int | None:
    """Refuse what cannot be fitted; return the epochs, of which there are none if steps count.

    Raises:
        ValueError: if options do not fit one another.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs={epochs} and steps={steps} were both given; pass one of them")
    if epochs is None and steps is None:
        epochs = 100
    check_positive("epochs", 1 if epochs is None else epochs)
    check_positive("steps", 1 if steps is None else steps)
    check_positive("batch_size", batch_size)
    if keep not in ("last", "best"):
        raise ValueError(f"keep is {keep!r}; expected 'last' or 'best'")
    nothing_held_out = not isinstance(held_out, Tensor) and held_out == 0
    if patience is not None and nothing_held_out:
        raise ValueError("patience was given without held_out; pass the fraction to hold out")
    if temperature is not None and not isinstance(guide, SoftmaxGuide):
        raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")
    if not isinstance(temperature, (Cooling, NoneType)):
        check_temperature(as_schedule(temperature)(0))
    if sample_weight is not None and isinstance(guide, MarginalGuide):
        raise ValueError(
            "sample_weight needs a guide with its own c; Pyro sums c out of the model only under "
            "one common weight: use a SoftmaxGuide"
        )
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is {clip_norm}; it must be above zero")
    if pretrain_epochs < 0 or (patience is not None and patience < 1):
        raise ValueError(
            f"pretrain_epochs is {pretrain_epochs} and patience is {patience}; expected at least 0 "
            "and 1"
        )
    if guide.model is not None and guide.model is not model:
        raise ValueError("the guide is bound to another model; pass that one, or a new guide")
    return epochs


def schedule_of(
    guide: Guide, temperature: float | Schedule | Cooling | None, steps: int
) -> Schedule | None:
    """Return the temperature's schedule over a run; ``None`` if the guide has no temperature.

    Raises:
        ValueError: if it ends at no temperature.
    """
    if not isinstance(guide, SoftmaxGuide):
        return None
    schedule = as_schedule(
        Cooling() if temperature is None else temperature,
        steps=steps,
        initial=float(guide.temperature),
    )
    check_temperature(schedule(steps))
    return schedule


def check_data(
    model: FlowMixture, x: Any, y: Any, sample_weight: Any, given: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return rows, evidence, weights and context as tensors of the model's kind.

    Raises:
        TypeError: if they have the wrong kind of numbers.
        ValueError: if they do not fit, or there are fewer rows than components.
    """
    like = floating_buffer(model)
    x = check_rows(x, model.event_shape, like)
    if len(x) < model.num_components:
        raise ValueError(
            f"x has {len(x)} rows but the mixture has {model.num_components} components; "
            "pass at least one row for each component"
        )
    if y is not None:
        y = check_evidence(y, len(x), model.num_components, like)
    if sample_weight is not None:
        sample_weight = check_sample_weight(sample_weight, len(x), like)
    given = check_context_rows(given, len(x), model.context_features, like)
    return x, y, sample_weight, given


def _sources(
    model: FlowMixture,
    x: Any,
    y: Any,
    sample_weight: Any,
    given: Any,
    *,
    batch_size: int,
    held_out: float | Tensor,
    by_label: bool,
    interleave: bool,
    generator: torch.Generator,
) -> Sources:
    """Check the data and say where the rows of training, supervision and validation come from."""
    like = floating_buffer(model)
    if isinstance(x, DataLoader):
        nothing_held_out = not isinstance(held_out, Tensor) and held_out == 0
        in_memory = (y, sample_weight, given)
        if any(v is not None for v in in_memory) or not nothing_held_out or by_label:
            raise ValueError(
                "y, sample_weight, given, held_out, pretrain_epochs and interleave go with rows "
                "in memory; a DataLoader yields its labels as (x, y)"
            )
        check_context(None, model.context_features)
        return Sources(LoaderSource(x, model, like), None, None)
    x, y, sample_weight, given = check_data(model, x, y, sample_weight, given)
    positions = torch.arange(len(x), device=x.device)
    rows = TensorSource(x, y, sample_weight, batch_size, positions, given)
    train, held = rows.split(held_out, generator)
    if not by_label:
        return Sources(train, None, held)
    labelled, others = train.split_by_label()
    return Sources(others if interleave and others.size else train, labelled, held)
