"""The steps of a training run: their loss, their safety, and the record of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf._utils.validation import listed
from pyro_vmonf.guides import ExactGuide, MarginalGuide, SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import Program, unregistered
from pyro_vmonf.schedules import Schedule
from pyro_vmonf.training.data import Arguments, TensorSource
from pyro_vmonf.training.history import History
from pyro_vmonf.training.objective import Objective

Guide = SoftmaxGuide | ExactGuide | MarginalGuide


def objective_of(guide: Guide, terms: dict[str, float]) -> float:
    """Return what of the ELBO's terms the guide is trained on."""
    if not isinstance(guide, SoftmaxGuide):
        return sum(terms.values())
    penalties = sum(terms.get(name, 0.0) for name, _ in guide.named_terms())
    return guide.elbo_gradient * (sum(terms.values()) - penalties) + penalties


class Safeguard:
    """The state that a rejected step goes back to: buffers that the forward pass moves."""

    def __init__(self, module: nn.Module) -> None:
        self.buffers = [b for b in module.buffers() if b.is_floating_point()]
        self.copies = [b.clone() for b in self.buffers]
        self.versions = [b._version for b in self.buffers]
        self.parameters: list[Tensor] = []

    @torch.no_grad()
    def remember(self, parameters: list[Tensor]) -> None:
        """Keep parameters whose loss is finite."""
        if self.parameters:
            torch._foreach_copy_(self.parameters, parameters)
        else:
            self.parameters = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: list[Tensor]) -> None:
        """Go back to the last parameters whose loss was finite."""
        if self.parameters:
            torch._foreach_copy_(parameters, self.parameters)

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
    with torch.no_grad(), evaluating(model):
        x = arguments["x"]
        components = model.components(arguments.get("given"))
        log_probs = components.log_prob(x.unsqueeze(-1 - len(model.event_shape)))
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
        self.objective = Objective(model, guide, nesting)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.programs = [p for p in self.objective.modules() if isinstance(p, Program)]
        self.safeguard = Safeguard(self.objective)
        self.steps = 0
        self.scheduled_steps = 0
        self.rejected_in_a_row = 0
        self.open: list[dict[str, Tensor]] = []

    def start_guarding(self, last_finite: list[Tensor]) -> None:
        """Take the state as it is now for one to go back to, and parameters that were good."""
        self.safeguard = Safeguard(self.objective)
        if last_finite:
            self.safeguard.remember(last_finite)

    def anneal(self) -> None:
        """Move temperature and terms along their schedules."""
        if isinstance(self.guide, SoftmaxGuide):
            self.guide.set_step_(self.scheduled_steps)
            if self.temperature is not None:
                self.guide.set_temperature_(self.temperature(self.scheduled_steps))
                self.safeguard.accept()

    def step(self, arguments: Arguments) -> dict[str, Tensor] | None:
        """Take one step; return the terms of the ELBO, or ``None`` if it was rolled back."""
        self.optimizer.zero_grad(set_to_none=True)
        size = arguments["size"]
        with unregistered(*self.programs):
            terms = {name: value / size for name, value in self.objective(**arguments).items()}
        loss = -torch.stack(list(terms.values())).sum()
        terms = {name: value.detach() for name, value in terms.items()}
        finite = bool(loss.isfinite())
        if finite:
            self.safeguard.remember(self.parameters)
            loss.backward()
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            finite = bool(norm.isfinite())
            if finite and norm > self.clip_norm:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
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
            self.safeguard.restore(self.parameters)
            raise FloatingPointError(
                f"{self.rejected_in_a_row} steps in a row had a loss or gradient that is not "
                f"finite (step {self.steps}: {culprit}); the last good state was kept. "
                "Try a smaller lr, clip_norm, or a smaller bound of the flows"
            )
        return None

    def report_rejected(self) -> None:
        """Say how many steps were rolled back; a run of nothing else is an error."""
        count = f"{self.history.rejected} of {self.steps} steps"
        if self.history.rejected == self.steps:
            raise FloatingPointError(f"{count} had a loss or gradient that is not finite")
        message = f"{count} had a loss or gradient that is not finite and were rolled back"
        warnings.warn(message, RuntimeWarning, stacklevel=3)

    def epoch(self, batches: Iterable[Arguments], limit: int | None, scheduled: bool) -> None:
        """Go through the batches and add the mean of their terms to the history's open epoch."""
        for arguments in batches:
            if scheduled and limit is not None and self.scheduled_steps >= limit:
                return
            if scheduled:
                self.anneal()
            terms = self.step(arguments)
            if scheduled:
                self.scheduled_steps += 1
            if terms is not None:
                self.open.append(terms)

    def record(self, number: int) -> None:
        """Close the epoch."""
        count = max(len(self.open), 1)
        totals: dict[str, Tensor | float] = {}
        for terms in self.open:
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value
        means = {name: float(value) / count for name, value in totals.items()}
        temperature = self.guide.temperature if isinstance(self.guide, SoftmaxGuide) else 1.0
        self.history.record(
            number, self.steps, means, float(temperature), objective_of(self.guide, means)
        )
        self.open = []

    @torch.no_grad()
    def score(self, source: TensorSource) -> None:
        """Record ELBO and objective per row of a source, in ``eval()``."""
        totals: dict[str, float] = {}
        with evaluating(self.objective):
            rows = torch.arange(source.size, device=source.x.device)
            for chosen in rows.split(source.batch_size):
                for name, value in self.objective(**source.arguments(chosen)).items():
                    share = len(chosen) / source.size**2  # of a batch scaled to the whole
                    totals[name] = totals.get(name, 0.0) + float(value) * share
        self.history.held_out.append(sum(totals.values()))
        self.history.objective[-1] = objective_of(self.guide, totals)
