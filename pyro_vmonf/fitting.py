"""``fit``: the loop over TraceEnum_ELBO."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from pyro_vmonf.checks import (
    check_evidence,
    check_positive,
    check_rows,
    check_sample_weight,
    floating_buffer,
    listed,
)
from pyro_vmonf.guides import MarginalGuide, SoftmaxGuide
from pyro_vmonf.history import History
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.seeding import local_seed
from pyro_vmonf.sources import Arguments, LoaderSource, Source, TensorSource
from pyro_vmonf.temperature import Schedule, as_schedule

Guide = SoftmaxGuide | MarginalGuide


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each epoch; it stops the run by returning ``True``."""

    epoch: int
    step: int
    model: FlowMixture
    guide: Guide
    history: History


Callback = Callable[[Progress], bool | None]


class RecordingELBO(TraceEnum_ELBO):
    """``TraceEnum_ELBO`` that keeps the traces of its last loss, to tell the terms apart."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        self.traces = super()._get_trace(model, guide, args, kwargs)
        return self.traces

    @torch.no_grad()
    def terms(self) -> dict[str, Tensor]:
        """Return the terms whose sum is the last ELBO, by name."""
        model_trace, guide_trace = self.traces
        sites = [
            (name.rsplit(".", 1)[-1], site, sign)
            for trace, sign in ((model_trace, 1), (guide_trace, -1))
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not _is_plate(site)
        ]
        enumerated = [s for _, s, _ in sites if s["infer"].get("_enumerate_dim") is not None]
        in_guide = any(name == "c" and sign < 0 for name, _, sign in sites)
        dim = enumerated[0]["infer"]["_enumerate_dim"]

        def spread(log_prob: Tensor) -> bool:
            return log_prob.dim() >= -dim and log_prob.shape[dim] > 1

        if in_guide:
            log_q = next(s["unscaled_log_prob"] for n, s, sign in sites if n == "c" and sign < 0)
            scale = next(s["scale"] for n, s, sign in sites if n == "c" and sign < 0)
        else:  # c is summed out: its exact posterior takes the place of q
            parts = [s for _, s, _ in sites if spread(s["log_prob"])]
            log_q = sum(s["unscaled_log_prob"] for s in parts).log_softmax(dim)  # type: ignore[union-attr]
            scale = parts[0]["scale"]
        q = log_q.exp()
        names = {"x": "log_likelihood", "c": "log_prior"}
        terms: dict[str, Tensor] = {}
        for name, site, sign in sites:
            value = site["log_prob"]
            if in_guide and sign < 0 and name == "c":
                continue
            if spread(value) or (in_guide and name == "c"):
                value = torch.where(q > 0, q * value, torch.zeros_like(q))
            key = names.get(name, name) if sign > 0 else name
            terms[key] = terms.get(key, 0.0) + sign * value.sum()
        entropy = torch.where(q > 0, -q * log_q, torch.zeros_like(q))
        terms["entropy"] = (entropy * scale).sum()
        return terms


def _is_plate(site: dict[str, Any]) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"


def max_plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], **arguments: Any
) -> int:
    """Return how deep the plates nest, from one run of each that draws nothing global."""
    with local_seed(0), torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(**arguments)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(**arguments)
    return max(
        -frame.dim  # type: ignore[operator]
        for trace in (guide_trace, model_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )


class Safeguard:
    """The state that a rejected step goes back to: buffers that the forward pass moves."""

    def __init__(self, module: nn.Module) -> None:
        self.buffers = [b for b in module.buffers() if b.is_floating_point()]
        self.copies = [b.clone() for b in self.buffers]
        self.versions = [b._version for b in self.buffers]

    @torch.no_grad()
    def accept(self) -> None:
        for i, buffer in enumerate(self.buffers):
            if buffer._version != self.versions[i]:
                self.copies[i].copy_(buffer)
                self.versions[i] = buffer._version

    @torch.no_grad()
    def roll_back(self) -> None:
        for i, buffer in enumerate(self.buffers):
            if buffer._version != self.versions[i]:
                buffer.copy_(self.copies[i])
                self.versions[i] = buffer._version


def _culprit(model: FlowMixture, terms: dict[str, Tensor], arguments: Arguments) -> str:
    """Say which term, component and rows are not finite."""
    names = [name for name, value in terms.items() if not bool(torch.as_tensor(value).isfinite())]
    said = [f"term {', '.join(names)}"] if names else ["all terms are finite, the gradient is not"]
    with torch.no_grad():
        x = arguments["x"]
        log_probs = model.components().log_prob(x.unsqueeze(-1 - len(model.event_shape)))
    bad = ~log_probs.isfinite()
    if bad.any():
        said.append(f"component {listed(bad.any(0).nonzero().squeeze(1))}")
        rows = bad.any(1).nonzero().squeeze(1)
        index = arguments.get("index")
        said.append(f"rows {listed(rows if index is None else index[rows])}")
    return "; ".join(said)


class Trainer:
    """One training run: the steps, their safety, and the record of them."""

    def __init__(
        self,
        model: FlowMixture,
        guide: Guide,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        *,
        clip_norm: float | None,
        max_rejected: int,
        temperature: Schedule | None,
        nesting: int,
    ) -> None:
        self.model = model
        self.guide = guide
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.max_rejected = max_rejected
        self.temperature = temperature
        self.history = History()
        self.elbo = RecordingELBO(max_plate_nesting=nesting)
        self.loss = self.elbo(model, guide)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.safeguard = Safeguard(self.loss)
        self.steps = 0
        self.scheduled_steps = 0
        self.rejected_in_a_row = 0
        self.open: list[dict[str, Tensor]] = []

    def set_temperature(self) -> None:
        if self.temperature is not None and isinstance(self.guide, SoftmaxGuide):
            self.guide.set_temperature_(self.temperature(self.scheduled_steps))
            self.safeguard.accept()

    def step(self, arguments: Arguments) -> dict[str, Tensor] | None:
        """Take one step; return the terms of the ELBO, or ``None`` if it was rolled back."""
        self.optimizer.zero_grad(set_to_none=True)
        size = arguments["size"]
        loss = self.loss(**arguments) / size
        finite = bool(loss.isfinite())
        if finite:
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
            finite = bool(norm.isfinite())
        terms = {name: value / size for name, value in self.elbo.terms().items()}
        self.steps += 1
        if finite:
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            self.safeguard.accept()
            self.rejected_in_a_row = 0
            return terms
        self.optimizer.zero_grad(set_to_none=True)
        self.safeguard.roll_back()
        self.history.rejected += 1
        self.rejected_in_a_row += 1
        if self.rejected_in_a_row >= self.max_rejected:
            culprit = _culprit(self.model, terms, arguments)
            raise FloatingPointError(
                f"{self.rejected_in_a_row} steps in a row had a loss or gradient that is not "
                f"finite (step {self.steps}: {culprit}); the last good state was kept. "
                "Try a smaller lr, clip_norm, or a smaller bound of the flows"
            )
        return None

    def epoch(self, batches: Iterable[Arguments], limit: int | None, scheduled: bool) -> None:
        """Go through the batches and add the mean of their terms to the history's open epoch."""
        for arguments in batches:
            if limit is not None and self.steps >= limit:
                return
            if scheduled:
                self.set_temperature()
            terms = self.step(arguments)
            if scheduled:
                self.scheduled_steps += 1
            if terms is not None:
                self.open.append(terms)

    def record(self, number: int) -> None:
        """Close the epoch."""
        history, count = self.history, max(len(self.open), 1)
        totals: dict[str, Tensor | float] = {}
        for terms in self.open:
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value
        means = {name: float(value) / count for name, value in totals.items()}
        for name in means.keys() | history.terms.keys():
            past = history.terms.setdefault(name, [0.0] * len(history.epoch))
            past.append(means.get(name, 0.0))
        history.epoch.append(number)
        history.step.append(self.steps)
        history.elbo.append(sum(means.values()) if means else math.nan)
        temperature = self.guide.temperature if isinstance(self.guide, SoftmaxGuide) else 1.0
        history.temperature.append(float(temperature))
        self.open = []

    @torch.no_grad()
    def score(self, source: TensorSource) -> float:
        """Return the ELBO per row of a source, in ``eval()``."""
        modes = [(m, m.training) for m in self.loss.modules()]
        self.loss.eval()
        total = 0.0
        for chosen in torch.arange(source.size, device=source.x.device).split(source.batch_size):
            arguments = source.arguments(chosen) | {"size": None, "index": None}
            total -= self.elbo.loss(self.model, self.guide, **arguments)
        for module, training in modes:
            module.training = training
        return total / source.size


def _bar(total: int | None, enabled: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.auto warns where ipywidgets is missing
        from tqdm.auto import tqdm
    return tqdm(total=total, disable=not enabled, desc="fit", leave=False, mininterval=0.2)


@torch.no_grad()
def _standardize(model: FlowMixture, source: Source) -> None:
    if isinstance(source, TensorSource):
        model.standardize_(source.x)
    else:
        rows = [batch["x"] for batch in source.epoch(torch.Generator())]
        model.standardize_(torch.cat(rows))


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
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    clip_norm: float | None = None,
    temperature: float | Schedule | None = None,
    sample_weight: Any = None,
    pretrain_epochs: int = 0,
    interleave: bool = False,
    held_out: float = 0.0,
    patience: int | None = None,
    keep: Literal["last", "best"] = "last",
    standardize: bool = True,
    callbacks: Sequence[Callback] = (),
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
        optimizer: function from parameter groups to an optimiser.
        scheduler: function from the optimiser to its schedule, moved once a step.
        clip_norm: largest norm of the gradient.
        temperature: a number, or a schedule over the steps; the last value stays.
        sample_weight: weights of the rows ``(N,)``, at least zero.
        pretrain_epochs: passes through the labelled rows alone, before anything else.
        interleave: each epoch goes through the labelled rows and then through the others.
        held_out: fraction of the rows kept for the held-out ELBO.
        patience: epochs without a better held-out ELBO before the run stops.
        keep: which parameters stay, the last or those with the best ELBO (held out, if any is).
        standardize: standardise at the first fit; later ones keep what the first one found.
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
    """
    like = floating_buffer(model)
    if (epochs is None) == (steps is None) and epochs is not None:
        raise ValueError(f"epochs={epochs} and steps={steps} were both given; pass one of them")
    epochs = 100 if epochs is None and steps is None else epochs
    check_positive("batch_size", batch_size)
    check_positive(*(("steps", steps) if epochs is None else ("epochs", epochs)))
    if temperature is not None and not isinstance(guide, SoftmaxGuide):
        raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")
    if keep not in ("last", "best"):
        raise ValueError(f"keep is {keep!r}; expected 'last' or 'best'")
    if patience is not None and held_out == 0:
        raise ValueError("patience was given without held_out; pass the fraction to hold out")
    schedule = None if temperature is None else as_schedule(temperature)
    if schedule is not None:
        schedule(0)

    generator = torch.Generator()
    generator.manual_seed(torch.seed() if seed is None else seed) if seed is not None else None
    if seed is None:
        generator.manual_seed(int(torch.randint(2**62, ())))
    held: TensorSource | None = None
    source: Source
    if isinstance(x, DataLoader):
        if y is not None or sample_weight is not None or held_out or pretrain_epochs or interleave:
            raise ValueError(
                "y, sample_weight, held_out, pretrain_epochs and interleave go with rows in "
                "memory; a DataLoader yields its labels as (x, y)"
            )
        source = LoaderSource(x, model, like)
    else:
        x = check_rows(x, model.event_shape, like)
        if len(x) < model.num_components:
            raise ValueError(
                f"x has {len(x)} rows but the mixture has {model.num_components} components; "
                "pass at least one row for each component"
            )
        y = None if y is None else check_evidence(y, len(x), model.num_components, like)
        if sample_weight is not None:
            if isinstance(guide, MarginalGuide):
                raise ValueError(
                    "sample_weight needs a guide with its own c; Pyro sums c out of the model only "
                    "under one common weight: use a SoftmaxGuide"
                )
            sample_weight = check_sample_weight(sample_weight, len(x), like)
        positions = torch.arange(len(x), device=x.device)
        rows = TensorSource(x, y, sample_weight, batch_size, positions)
        source, held = rows.split(held_out, generator)
    labelled: TensorSource | None = None
    if pretrain_epochs or interleave:
        assert isinstance(source, TensorSource)
        labelled, unlabelled = source.split_by_label()
        source = unlabelled if interleave and unlabelled.size else source

    if standardize and not model.standardizer.fitted:
        _standardize(model, rows if not isinstance(x, DataLoader) else source)
    parameters = [p for p in _unique(model, guide) if p.requires_grad]
    make = optimizer or (lambda groups: Adam(groups, lr=lr, weight_decay=weight_decay))
    made = make([{"params": parameters}])

    training = model.training, guide.training
    start = time.perf_counter()
    with (
        pyro.get_param_store().scope(),
        local_seed(int(torch.randint(2**62, (), generator=generator))),
        warnings.catch_warnings(),
    ):
        # Non-finite losses are counted and reported; frozen parameters are the user's choice.
        warnings.filterwarnings("ignore", "Encountered (NaN|[+-]?inf)")
        warnings.filterwarnings("ignore", ".*requires_grad=False")
        model.eval()
        guide.eval()
        probe = next(iter(source.epoch(torch.Generator())))
        nesting = max_plate_nesting(model, guide, **probe)
        model.train()
        guide.train()
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
        try:
            _run(
                trainer,
                source,
                labelled,
                held,
                generator,
                epochs=epochs,
                steps=steps,
                pretrain_epochs=pretrain_epochs,
                interleave=interleave,
                patience=patience,
                keep=keep,
                callbacks=callbacks,
                progress=progress,
            )
        finally:
            model.train(training[0])
            guide.train(training[1])
            trainer.history.seconds = time.perf_counter() - start
    return trainer.history


def _unique(*modules: nn.Module) -> Iterator[nn.Parameter]:
    seen: set[int] = set()
    for module in modules:
        for parameter in module.parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def _run(
    trainer: Trainer,
    source: Source,
    labelled: TensorSource | None,
    held: TensorSource | None,
    generator: torch.Generator,
    *,
    epochs: int | None,
    steps: int | None,
    pretrain_epochs: int,
    interleave: bool,
    patience: int | None,
    keep: str,
    callbacks: Sequence[Callback],
    progress: bool,
) -> None:
    """Go through pretraining and the epochs."""
    history = trainer.history
    trainer.set_temperature()
    best, best_epoch, best_state = -math.inf, 0, None
    number = -pretrain_epochs
    with _bar(None if epochs is None else pretrain_epochs + epochs, progress) as bar:
        while (number < epochs) if epochs is not None else (trainer.steps < (steps or 0)):
            if number < 0 or interleave:
                assert labelled is not None
                trainer.epoch(labelled.epoch(generator), steps, scheduled=False)
            if number >= 0:
                trainer.epoch(source.epoch(generator), steps, scheduled=True)
            trainer.record(number)
            if held is not None:
                history.held_out.append(trainer.score(held))
            bar.update()
            bar.set_postfix(
                elbo=f"{history.elbo[-1]:.3f}", T=f"{history.temperature[-1]:.3f}", refresh=False
            )
            objective = history.held_out[-1] if held is not None else history.elbo[-1]
            if number >= 0 and objective > best:
                best, best_epoch = objective, number
                if keep == "best":
                    best_state = copy.deepcopy(trainer.loss.state_dict())
            view = Progress(number, trainer.steps, trainer.model, trainer.guide, history)
            stops = [callback(view) for callback in callbacks]  # all of them see every epoch
            if any(stops):
                history.stopped = "a callback returned True"
            elif patience is not None and number - best_epoch >= patience:
                history.stopped = f"no better held-out ELBO for {patience} epochs"
            if history.stopped:
                break
            number += 1
    if best_state is not None:
        trainer.loss.load_state_dict(best_state)
