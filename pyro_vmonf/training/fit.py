"""``fit``: from rows and options to a fitted pair."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf._utils.contexts import local_seed, own_filters, own_store
from pyro_vmonf._utils.validation import floating_buffer
from pyro_vmonf.guides import BoundGuide, PyroGuide, as_guide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule
from pyro_vmonf.terms import Term
from pyro_vmonf.training import checkpoints
from pyro_vmonf.training.callbacks import Callback, Callbacks, Progress
from pyro_vmonf.training.compiling import Compiled, Compiling
from pyro_vmonf.training.data import Arguments, Sources, fingerprint, make_sources
from pyro_vmonf.training.endings import culprit, endings, warn
from pyro_vmonf.training.guard import Guard
from pyro_vmonf.training.history import OVER, History
from pyro_vmonf.training.knowledge import start_parts
from pyro_vmonf.training.losses import sums_weights
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.options import Compile, Keep, Options, seed_of
from pyro_vmonf.training.plan import Plan, Run
from pyro_vmonf.training.reading import Terms
from pyro_vmonf.training.selection import MEASURED_DRAWS, MEASURED_ROWS, Keeper
from pyro_vmonf.training.streams import Streams
from pyro_vmonf.training.trainer import Trainer

__all__ = ["Callback", "Progress", "fit"]


def fit(
    model: FlowMixture,
    guide: Any,
    x: Any,
    y: Any = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
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
    keep: Keep | None = None,
    standardize: bool = True,
    callbacks: Callback | Sequence[Callback] = (),
    max_rejected: int = 20,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int | None = None,
    fast: bool = True,
    compile: Compile = "auto",
    loss: ELBO | None = None,
) -> History:
    r"""Fit model and guide together: maximise the ELBO per row.

    The loop is ``TraceEnum_ELBO()(model, guide)`` and a torch optimiser, inside a param store of
    its own. Every term that it minimises is a site of the Pyro program, and plain ``SVI`` does the
    same. Pyro's stacks belong to the process: fits and verbs in several threads run one after the
    other.

    Arguments:
        model: the mixture.
        guide: its guide: one of this library, or any Pyro program, or a list of them, or ``None``;
            see :class:`~pyro_vmonf.PyroGuide`. Parameters of a plain function begin and end in
            Pyro's param store, where the function looks for them.
        x: rows ``(N, *event_shape)`` as a tensor or numpy array, in raw units; or a ``DataLoader``
            or ``Dataset`` that yields ``x``, ``(x, y)`` or ``(x, y, weight)``. In memory, NaN marks
            a missing entry: :mod:`pyro_vmonf.distributions.partial` sums it out.
        y: labels ``(N,)`` with −1 for unlabelled, or log-likelihoods log p(y|c) ``(N, K)``.
        epochs: passes through the data; 100 by default.
        steps: training steps, in place of epochs. Steps of the labelled rows alone, by
            ``pretrain_epochs`` and ``interleave``, come on top.
        minutes: the run stops after the step in which so many minutes are over (compiled ones: at
            most 15 later), and its last epoch is then a short one. Schedules are laid over epochs
            or steps and do not know of it.
        batch_size: rows of one step.
        lr, weight_decay: of the default optimiser, Adam.
        optimizer: function from the parameters to an optimiser, whose step needs no closure.
        scheduler: function from the optimiser to its schedule, moved once a step. A
            ``ReduceLROnPlateau`` is moved once an epoch, by ``history.objective`` where its mode is
            ``"max"``, and by minus that where it is ``"min"``.
        clip_norm: largest norm of the gradient.
        temperature: a number, or a schedule over the steps, whose last value stays; by default
            :func:`~pyro_vmonf.schedules.cooling`, from the guide's temperature to 0.1 in half the
            run.
        sample_weight: weights of the rows ``(N,)``, at least zero.
        given: the rows' context ``(N, H)``, where the mixture depends on one.
        pretrain_epochs: passes through the labelled rows alone, before anything else.
        interleave: each epoch goes through the labelled rows and then through the others.
        held_out: fraction of the rows kept for the held-out ELBO, or their positions.
        patience: epochs without a better held-out objective before the run stops.
        keep: the parameters that stay: ``"last"``, or ``"best"`` for the state with the best
            objective. By default the best where rows are held out, and the last otherwise. States
            are measured in ``eval()`` after each epoch and before the first, on the held-out rows,
            or else on a fixed sample of at most 4,096 training rows. A state that is not finite is
            never kept.
        standardize: standardise at the first fit; later ones keep what the first one found, and
            components on a bounded set (pixels behind a logit) are left as they are.
        callbacks: called after each epoch with :class:`Progress`; returning ``True`` stops the run.
            They run in the param store of the run, which has no entries of other programs.
        max_rejected: steps in a row with a non-finite loss before the run gives up. Where steps are
            compiled, or a device is not waited for, it looks after each epoch, and after 256 steps.
        checkpoint: file that the state of the run is written to, for ``resume``.
        every: epochs between two checkpoints; the last epoch always leaves one.
        resume: checkpoint of a run with the same options and data, which goes on from there. On
            the CPU the resumed run ends in the same state, to the bit. Generators and counters of a
            loader go on too; what callbacks remember does not. If it is the ``checkpoint`` too and
            does not exist yet, the run begins: one call starts and resumes.
        progress: show a progress bar in a terminal or a notebook: epoch, steps and their rate, the
            time that is left, objective, held-out ELBO and temperature. The logger ``pyro_vmonf``
            has the events of a run at the level ``INFO``, and each epoch at ``DEBUG``.
        fast: sum over c directly where this is the same as ``TraceEnum_ELBO``, which is checked at
            the start; ``False`` asks for ``TraceEnum_ELBO`` itself. ``history.road`` says which one
            ran.
        compile: run the steps as one compiled graph, Adam included, up to 16 steps
            at once. By default a run does so where the time of the steps to come is longer than the
            time to compile, and keeps the faster of the two; ``history.road`` says what ran.
            Results under a seed are the same to the bit on one road, which ``True`` and ``False``
            fix.
        loss: another objective of Pyro: ``TraceEnum_ELBO`` and its subclasses, such as
            :class:`~pyro_vmonf.training.losses.ImportanceWeightedELBO`; one that does not sum over
            discrete sites (``Trace_ELBO``, ``RenyiELBO``) where the guide draws all of them. The
            history lists it as the one term ``objective``.
        seed: seed of the order of the rows and of every draw; the global state is left alone.

    Returns:
        The history of the run. An interrupt or an error that ends the run after its first step
        has it as the attribute ``history``; the pair is then in its last accepted state, which
        is not the best one, whatever ``keep`` says.

    Warns:
        RuntimeWarning: if the run ends in a state that is not finite; and, after 100 steps or more,
            with collapsed components, all rows in one cluster, or a held-out objective that is
            worse than before training: see :func:`pyro_vmonf.training.endings.endings`.

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
    arguments = dict(locals())
    for name in ("model", "guide", "x", "y", "sample_weight", "given", "seed"):
        del arguments[name]
    options = Options(**arguments)
    own = as_guide(guide)
    history = _fit(model, own, (x, y, sample_weight, given), options, seed)
    if isinstance(own, PyroGuide) and own is not guide:
        own.publish_()
    return history


def _fit(
    model: FlowMixture, guide: BoundGuide, data: tuple[Any, ...], options: Options, seed: int | None
) -> History:
    options.check_pair(model, guide, data[2])
    past: dict[str, Any] = {}
    if options.resume is not None and not options.begins:
        past = checkpoints.read(options.resume, seed)
    seed = seed_of(past["seed"] if past else seed)
    generator = torch.Generator().manual_seed(seed)
    sources = make_sources(model, *data, **options.of_sources(), generator=generator)
    guide.build_(model, sources.first_batch())
    optimizer, scheduler = _movers(model, guide, sources, options)
    first = None if guide.temperature is None else float(guide.temperature)
    head: dict[str, Any] = {"seed": seed, "temperature": first}
    if options.checkpoint is not None or past:  # it goes through all rows
        own = {"batches": sources.train.batches, "dtype": str(floating_buffer(model).dtype)}
        head["run"] = fingerprint(sources, **options.fingerprint(optimizer, scheduler), **own)
    if past:
        checkpoints.check_same(past, head["run"])
        head["temperature"] = past["temperature"]
    schedule = options.schedule(guide, sources.train.batches, head["temperature"])
    with in_units(model, guide, sources, options.standardize) as settled, quiet_scope(generator):
        outside = _streams(model, guide, sources, schedule, past)
        probe = next(iter(sources.train.epoch(torch.Generator())))
        options.check_pair(model, guide, probe["sample_weight"])
        objective = Objective(model, guide, loss=options.loss)
        objective.prepare_(probe, options.fast)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        lanes = Compiled(objective, options.clip_norm, parameters, optimizer, scheduler)
        lanes.source = sources.train
        run = run_of(sources, generator, options)
        plan = plan_of(model, guide, options, schedule)
        trainer = Trainer(lanes, [run], optimizer, scheduler, plan, after_move=settled)
        if options.checkpoint is not None:
            writer = checkpoints.Writer(trainer, options.checkpoint, options.every, head, outside)
            trainer.at_epoch_end = writer  # type: ignore[method-assign]
        if past:
            checkpoints.go_on_(trainer, outside, past)
        else:
            start_parts(model, guide, probe)
            lanes.guard_()
        guard = Guard(objective, lanes, run.history)
        compiling = Compiling(lanes, run.history, options)
        if options.compile is True or past.get("compiled"):
            compiling.build_(trainer, probe, measured=past.get("measured"))
        over, callbacks = _time(options.minutes), Callbacks(options.callbacks, model, guide)
        trainer.after_epoch = [guard, compiling, over, callbacks, compiling.look_again]
        with pyro.validation_enabled(False):  # the probe has paid for it
            [history] = trainer.run()
        guide.settle_()
        rows = run.measured or (sources.whole or run.train).seen(MEASURED_ROWS)
        said = [*guard.said, *endings(model, guide, history, rows)]
    try:
        _conclude(trainer, said)
    except Exception as error:  # warnings may be errors
        history.kept_by(error)
        raise
    return history


def _movers(
    model: FlowMixture, guide: BoundGuide, sources: Sources, options: Options
) -> tuple[Optimizer, LRScheduler | None]:
    """Return the optimiser and the scheduler of the whole run."""
    # dict.fromkeys: a parameter that both own counts once, in a fixed order.
    shared = dict.fromkeys((*model.parameters(), *guide.parameters()))
    optimizer = options.optimizer_of([p for p in shared if p.requires_grad])
    labelled = 0 if sources.labelled is None else sources.labelled.batches
    return optimizer, options.scheduler_of(
        optimizer, options.moves(sources.train.batches, labelled)
    )


def _streams(
    model: FlowMixture, guide: BoundGuide, sources: Sources, schedule: Any, past: dict[str, Any]
) -> Streams:
    """Return the generators around the run, where it began."""
    loader = getattr(sources.train, "loader", None)
    streams = Streams(loader, nn.ModuleList([model, guide]), schedule)
    if past:
        streams.begin_(past["start"])
    return streams


def _conclude(trainer: Trainer, said: list[str]) -> None:
    """Say what went wrong in a run."""
    [run] = trainer.runs
    history = run.history
    if run.failure:
        raise FloatingPointError(run.failure)
    if history.stepped_back:
        warn(
            "the last step led to a state whose objective is not finite; the state before it was "
            "kept. Try a smaller lr, or clip_norm"
        )
    if history.rejected:
        warn(f"{trainer.rejected(run)} and were rolled back")
    warn(*said)


@contextmanager
def in_units(
    model: FlowMixture, guide: BoundGuide, sources: Sources, standardize: bool
) -> Iterator[Callable[[], None]]:
    """Bind the guide and standardise at the first fit; put the pair back if the run is refused.

    The block calls what it is given once nothing can be refused any more.
    """
    pair = nn.ModuleList([model, guide])
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    bound, names = guide.model, model.feature_names
    terms = [(part, part.current_weight) for part in guide.modules() if isinstance(part, Term)]
    try:
        guide.bind_(model)
        if standardize and not model.bounded and not model.standardizer.fitted:
            with local_seed(0):  # a loader draws its order, of which the units know nothing
                (sources.whole or sources.train).standardize(model)
        model.standardizer.fitted.fill_(True)  # the units are settled, also where they are raw
        model.feature_names = sources.names or names
        model.incomplete = sources.incomplete and not model.of_sequences
        yield before.clear
    except BaseException:
        if before:
            pair.load_state_dict(before)
            model.feature_names = names
            guide.bind_(bound)
            for term, weight in terms:
                term.current_weight = weight
        raise
    finally:
        model.incomplete = None


@contextmanager
def quiet_scope(generator: torch.Generator) -> Iterator[None]:
    """Run a block in a param store of its own, with local draws, without warnings of each step.

    One thread at a time is in such a block.
    """
    with (
        own_store(),
        local_seed(int(torch.randint(2**62, (), generator=generator))),
        own_filters(),
    ):
        # Losses that are not finite are counted; frozen parameters are the choice of the user.
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)")
        warnings.filterwarnings("ignore", ".*requires_grad=False")
        # A compiled step moves the parameters itself.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        yield


def run_of(sources: Sources, generator: torch.Generator, options: Options) -> Run:
    """Return one run of a fit: its rows, and those that its states are measured on."""
    measured = sources.held_out
    if measured is None and options.keeps_best:
        measured = (sources.whole or sources.train).sample(MEASURED_ROWS)
    if measured is not None and sums_weights(options.loss):
        measured = replace(measured, batch_size=measured.size)  # they are data of their own
    elif measured is not None and measured.whole is None:
        # What is paid once for the data, such as a divergence of the weights, is shared by the rows
        # that train, however many are measured.
        whole = (sources.whole or sources.train).size
        measured = replace(measured, whole=whole, batch_size=min(measured.batch_size, whole))
    return Run(
        sources.train,
        generator,
        sources.labelled,
        measured,
        held_out=sources.held_out is not None,
        keeper=Keeper(options.keeps_best),
    )


def plan_of(
    model: FlowMixture,
    guide: BoundGuide,
    options: Options,
    schedule: Schedule | None,
    title: str = "fit",
    words: Callable[[Terms, Arguments], str] | None = None,
) -> Plan:
    """Return the course of a fit; ``words`` name a fault."""
    return Plan(
        epochs=options.epochs,
        steps=options.steps,
        minutes=options.minutes,
        pretrain_epochs=options.pretrain_epochs,
        interleave=options.interleave,
        patience=options.patience,
        max_rejected=options.max_rejected,
        temperature=schedule,
        objective=guide.objective,
        culprit=words or (lambda terms, arguments: culprit(model, terms, arguments)),
        title=title if options.progress else "",
        draws=1 if model.sums_directly() else MEASURED_DRAWS,
        check_last=True,
    )


def _time(minutes: float | None) -> Callable[[Trainer, int], str | None]:
    """Return the hook that ends a run whose time is over."""

    def hook(trainer: Trainer, _: int) -> str | None:
        if minutes is None or trainer.seconds < 60 * minutes:
            return None
        return f"{minutes:g} {OVER}"

    return hook
