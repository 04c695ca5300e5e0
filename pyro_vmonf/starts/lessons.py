"""A guide that learns the clusters from its terms alone, before any flow is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.evidence import check_evidence
from pyro_vmonf._utils.frames import Names, names_of
from pyro_vmonf._utils.validation import (
    check_alone,
    check_positive,
    check_unconditional,
    floating_buffer,
)
from pyro_vmonf.contracts import required
from pyro_vmonf.guides import BoundGuide, SoftmaxGuide
from pyro_vmonf.metrics import match
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import log_evidence
from pyro_vmonf.terms import Batch, Classification, CustomTerm, Term, penalty_of
from pyro_vmonf.training.lanes import Single
from pyro_vmonf.training.plan import Plan, Run
from pyro_vmonf.training.restarts import best_of_
from pyro_vmonf.training.trainer import Trainer

JUDGED = 8192  # rows on which starts are compared


class Lesson(nn.Module):
    """A loss of a guide alone, or of another network, as the objective of a trainer.

    Arguments:
        module: the guide, or the network.
        loss: function from positions of rows to the loss.
        terms: those whose weights follow schedules.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor], Tensor],
        terms: Sequence[Term] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.loss = loss
        self.terms = list(terms)

    def set_step_(self, step: int) -> None:
        """Move the terms along their schedules."""
        for term in self.terms:
            term.set_step_(step)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"lesson": -self.loss(x)}


@dataclass
class Draws:
    """Positions of rows, drawn with replacement: one batch an epoch.

    Arguments:
        size: number of rows.
        batch_size: rows of one step.
        known: positions of the rows that carry evidence.
        labelled: how many of these join each batch.
        device: of the positions.
    """

    size: int
    batch_size: int
    known: Tensor | None = None
    labelled: int = 0
    device: torch.device | None = None
    batches: int = 1
    generators: tuple[torch.Generator, ...] = ()

    def epoch(self, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Return one batch; the draws are those of the local seed."""
        index = torch.randint(self.size, (self.batch_size,), device=self.device)
        if self.known is not None and len(self.known):
            more = torch.randint(len(self.known), (self.labelled,), device=self.device)
            index = torch.cat((index, self.known[more]))
        yield {"x": index}


def teach(
    lesson: Lesson,
    rows: Draws,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    steps: int,
    title: str,
) -> None:
    """Take the steps of a lesson, which moves the parameters of the optimiser.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    every = (p for group in optimizer.param_groups for p in group["params"])
    parameters = [p for p in every if p.requires_grad]
    run = Run(rows, torch.Generator())  # type: ignore[arg-type]
    plan = Plan(steps=steps, max_rejected=1, title=title)
    Trainer(Single(lesson, parameters=parameters), [run], optimizer, scheduler, plan).run()
    if run.failure:
        raise FloatingPointError(
            f"the sum of the terms is not finite: {run.failure}; the network is as it was before"
        )


@contextmanager
def in_units(
    model: FlowMixture,
    x: Tensor,
    weight: Tensor | None,
    names: Names | None,
    terms: Sequence[Term] = (),
) -> Iterator[None]:
    """Take the units of rows where the model has none; put it back if the block is refused.

    Terms, which a lesson moves along their schedules, get their weights back in any case.
    """
    weights = [term.current_weight for term in terms]
    before = copy.deepcopy(model.standardizer.state_dict()), model.feature_names
    try:
        if not model.bounded and not model.standardizer.fitted:
            model.standardize_(x, weight)
        model.feature_names = names
        yield
    except BaseException:
        model.standardizer.load_state_dict(before[0])
        model.feature_names = before[1]
        raise
    finally:
        for term, own in zip(terms, weights, strict=True):
            term.current_weight = own


def pretrain_(
    guide: SoftmaxGuide,
    x: Any,
    y: Any = None,
    *,
    terms: Sequence[Term | Callable[[Batch], Tensor]] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    steps: int = 3000,
    batch_size: int = 256,
    labelled: int = 64,
    lr: float = 2e-3,
    n_init: int = 1,
    trial_steps: int = 400,
    seed: int | None = None,
    progress: bool = False,
) -> list[float]:
    r"""Let terms alone decide on the clusters, before any flow is trained.

    It minimises the mean of :math:`\sum_t w_t\, \mathrm{penalty}_t` over batches, by Adam with a
    cosine: what ``fit`` gives the network at ``elbo_gradient=0``, without the cost of the flows and
    with labelled rows in every batch. The sum says which of several starts found clusters: it is
    zero for clusters that are balanced, certain, and left alone by every distortion, and their
    likelihood does not enter.

    Arguments:
        guide: a guide that is bound to its model.
        x: rows ``(N, *event_shape)``.
        y: labels ``(N,)``, −1 for unlabelled, or log-likelihoods log p(y|c) ``(N, K)``.
        terms: what to minimise; the guide's own by default.
        augment: function from rows to distorted ones, whose log q the terms see in place of the
            rows' own; a :class:`~pyro_vmonf.terms.Consistency` then compares two distorted copies.
        steps, batch_size, lr: of Adam.
        labelled: rows with evidence that each step sees beside its batch, drawn with replacement,
            so that few labels count.
        n_init: short runs from different starts, of which the best is gone on with.
        trial_steps: length of each, with a cosine of its own.
        seed: seed of the order of the rows and of every draw.
        progress: show a progress bar.

    Returns:
        Minus the terms' sum at the end of each trial, larger is better; none without trials.

    Raises:
        ValueError: if the guide is bound to no model, there are no terms, data do not fit, or the
            network cannot be trained, or started anew.
        FloatingPointError: if the sum is not finite; the network is then as it was.
    """
    model, wanted = model_of(guide, "pretrain_"), _terms_of(guide, terms)
    _check_numbers(
        labelled, steps=steps, batch_size=batch_size, n_init=n_init, trial_steps=trial_steps
    )
    if not any(parameter.requires_grad for parameter in guide.network.parameters()):
        raise ValueError("the guide's network has no parameter that can be trained")
    like = floating_buffer(guide)
    names = model.feature_names or names_of(x)
    x = model.rows(x)
    evidence, known = _evidence(y, x, model, like)
    if not len(known) and all(isinstance(term, Classification) for term in wanted):
        raise ValueError("the terms learn from labels, and no row has one; pass y or other terms")

    def total(index: Tensor) -> Tensor:
        rows = x[index]
        log_q = guide.log_q(rows if augment is None else _augmented(augment, rows))
        batch = Batch(guide, rows, log_q, None if evidence is None else evidence[index], index)
        return torch.stack([penalty_of(type(t).__name__, t, batch).mean() for t in wanted]).sum()

    lesson = Lesson(guide, total, wanted)

    def train(count: int, title: str) -> None:
        rows = Draws(len(x), min(batch_size, len(x)), known, labelled, x.device)
        optimizer = torch.optim.Adam(guide.network.parameters(), lr=lr, fused=True)
        teach(lesson, rows, optimizer, CosineAnnealingLR(optimizer, count), count, title * progress)

    def trial(number: int) -> float:
        train(trial_steps, f"start {number + 1} of {n_init}")
        index = torch.randperm(len(x), device=x.device)[:JUDGED]
        lesson.set_step_(trial_steps)
        with torch.no_grad(), evaluating(guide):
            return -float(total(index))

    def whole(_: int) -> float:
        train(steps, "pretrain")
        return 0.0

    with in_units(model, x, None, names, wanted), local_seed(seed):
        first = int(torch.randint(2**31, ()))
        trials = best_of_([guide.network], trial, n_init, first) if n_init > 1 else []
        best_of_([guide.network], whole, 1, first)
    return trials


def _evidence(y: Any, x: Tensor, model: FlowMixture, like: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return log p(y|c) ``(N, K)``, and the rows of which it says something."""
    if y is None:
        return None, torch.zeros(0, dtype=torch.long, device=x.device)
    y = check_evidence(y, len(x), model.num_components, like)
    evidence = log_evidence(y, model.num_components, like.dtype)
    return evidence, (evidence != evidence[:, :1]).any(-1).nonzero().squeeze(1)


def _check_numbers(labelled: int, **positive: int) -> None:
    for name, value in positive.items():
        check_positive(name, value)
    check_positive("labelled", labelled, minimum=0)


def model_of(guide: BoundGuide, verb: str) -> FlowMixture:
    """Return the model of a guide that learns from rows alone."""
    if not isinstance(guide, BoundGuide):
        kind = type(guide).__name__
        raise TypeError(f"guide is a {kind}; expected the guide of a pair: pass vmonf.guide")
    if guide.model is None:
        raise ValueError("the guide is bound to no model; pass SoftmaxGuide(..., model=mixture)")
    check_unconditional(verb, guide.model.context_features)
    check_alone(verb, guide.model.of_sequences)
    return guide.model


def learning_parameters(guide: BoundGuide, verb: str) -> list[nn.Parameter]:
    """Return the parameters of a guide's ``log_q``, without those of its model.

    Raises:
        TypeError: if the guide is none of a pair, or has nothing to train.
        ValueError: if it is bound to no model.
    """
    of_model = set(model_of(guide, verb).parameters())
    learner = guide.learner()
    every = () if learner is None else learner.parameters()
    found = [p for p in every if p.requires_grad and p not in of_model]
    if not found:
        raise TypeError(
            f"{verb} trains the log_q of a guide, and the {type(guide).__name__} has none with "
            "parameters to train; take a SoftmaxGuide(network), or a module with log_q(x), alone "
            "or in a list of guides"
        )
    return found


def _terms_of(
    guide: SoftmaxGuide, terms: Sequence[Term | Callable[[Batch], Tensor]] | None
) -> list[Term]:
    """Return what is to be minimised: the guide's own terms by default."""
    required(guide, "network", "pretrain_")
    wanted: list[Term] = [
        term if isinstance(term, Term) else CustomTerm(term)  # type: ignore[arg-type]
        for term in (guide.terms if terms is None else terms)
    ]
    if not wanted:
        raise ValueError("there are no terms to learn from; pass terms, or give the guide some")
    return wanted


def _augmented(augment: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return the rows of a function of the user's.

    Raises:
        ValueError: if it returns another number of them.
    """
    found = augment(rows)
    if found.shape != rows.shape:
        shapes = f"shape {tuple(found.shape)} for rows of shape {tuple(rows.shape)}"
        raise ValueError(f"augment returns {shapes}; expected as many rows of the same shape")
    return found


def numbers_of(clusters: Tensor, y: Tensor, count: int) -> Tensor:
    """Return the number ``(K,)`` of each cluster that agrees best with labels or likelihoods."""
    if y.dim() > 1:  # a row that one component suits best counts as labelled by it
        y = y.argmax(-1).where((y != y[:, :1]).any(-1), -1)
    known = y >= 0
    if not known.any():
        return torch.arange(count, device=clusters.device)
    return match(y[known], clusters[known], count).to(clusters.device)


def named(clusters: Tensor, y: Tensor, count: int) -> Tensor:
    """Return clusters with the numbers that agree best with labels or log-likelihoods."""
    return numbers_of(clusters, y, count)[clusters]
