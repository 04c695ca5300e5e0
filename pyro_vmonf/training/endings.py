"""States that a run should not end in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf._utils.validation import listed
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import follows, unregistered
from pyro_vmonf.terms import Term
from pyro_vmonf.training.data import check_data
from pyro_vmonf.training.history import History
from pyro_vmonf.training.loaders import is_streamed
from pyro_vmonf.training.reading import Terms
from pyro_vmonf.training.rows import Arguments, TensorSource
from pyro_vmonf.training.selection import MEASURED_ROWS

__all__ = ["culprit", "endings", "endings_of_data", "warn"]

LEAST_STEPS = 100  # shorter runs have not had the time to end anywhere
FEW_WHOLE = 0.1  # share of rows without missing entries, below which a network learns little
LEAST_ROWS = 10  # for each component; fewer say nothing about its share
LEAST_LOSS = 0.01  # nats a row; less is the noise of the last steps


def endings(
    model: FlowMixture,
    guide: BoundGuide,
    history: History,
    rows: TensorSource | None,
) -> list[str]:
    """Return what is wrong with the state that a run ended in, in one sentence for each fault.

    A state that is not finite is always named. The rest needs a run of at least 100 steps, and ten
    rows for each component: a component is collapsed if its mean responsibility is below
    1/(10 K), and the held-out objective is worse if it lost more than .01 nats a row.

    Arguments:
        model, guide: the pair, as the run left it.
        history: of the run.
        rows: some rows, on which the guide is evaluated once; ``None`` looks at no clusters.
    """
    state = nn.ModuleDict({"model": model, "guide": guide}).state_dict()
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())]
    if bad:
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return [
            f"the fit ended in a state that is not finite ({len(bad)} of {len(state)} tensors: "
            f"{shown}); try a smaller lr, or clip_norm"
        ]
    said = [] if rows is None or guide.exact else _untaught(model, rows)
    if not history.step or history.step[-1] < LEAST_STEPS:
        return said
    said += _worse(history, guide)
    count = model.num_components
    trusted = not guide.exact or follows(model, "log_posterior", "mixture")
    if rows is not None and trusted and count > 1:
        x, weight = model.each_row(rows.x, rows.sample_weight)
        if len(x) >= LEAST_ROWS * count:
            [_, proba] = model.each_row(rows.x, _proba(guide, rows))
            said += [text + _units(model, guide) for text in _clusters(proba, weight)]
    return said


def _untaught(model: FlowMixture, rows: TensorSource) -> list[str]:
    """Return the words for a network that saw few rows, since the others have missing entries."""
    if not model.has_gaps(rows.x):
        return []
    whole = int((~rows.x.flatten(1).isnan().any(1)).sum())
    if FEW_WHOLE * len(rows.x) <= whole:
        return []
    return [
        f"the fit ended with a network of the guide that saw {whole} of {len(rows.x)} rows, those "
        "without missing entries: ask for predict(x, exact=True), or take an ExactGuide"
    ]


def _worse(history: History, guide: BoundGuide) -> list[str]:
    """Return the words for a held-out objective that is worse than before training."""
    moved = any(isinstance(part, Term) and callable(part.weight) for part in guide.modules())
    if moved or not history.held_out or history.start is None:  # other weights, other objective
        return []
    finite = [value for value in history.objective if math.isfinite(value)]
    best = max(finite, default=-math.inf)
    reached = best if history.kept is None else history.final_objective
    if not reached < history.start - LEAST_LOSS:
        return []
    if history.kept is None:
        return [
            f"the fit ended where it began: the held-out objective was {history.start:.4f} before "
            f"training and at best {reached:.4f} after an epoch, so the start was kept; try a "
            "smaller lr, or more epochs"
        ]
    return [
        f"the fit ended with a held-out objective of {reached:.4f}, and it was {history.start:.4f} "
        'before training; try keep="best", patience, or a smaller lr'
    ]


@torch.no_grad()
def _proba(guide: BoundGuide, rows: TensorSource) -> Tensor:
    """Return q(c|x, y) of the rows, ``(N, K)``."""
    bound = nn.ModuleList([guide, guide._bound_model()])
    with own_store(), evaluating(bound), local_seed(0), unregistered():
        parts = [guide.log_posterior(b["x"], b["y"], b["given"]) for b in rows.in_order()]
    return torch.cat(parts).exp()


def _clusters(proba: Tensor, sample_weight: Tensor | None) -> list[str]:
    """Return the words for clusters that are empty, from q(c|x, y) ``(N, K)``."""
    number, count = proba.shape
    strange = (~proba.isfinite().all(-1)).nonzero().squeeze(1)
    if len(strange):
        return [
            f"the fit ended with posteriors that are not finite, of {len(strange)} of {number} "
            "rows; try a smaller lr, or clip_norm"
        ]
    clusters = proba.argmax(-1).unique()
    if len(clusters) == 1:
        return [
            f"the fit ended with all of {number} rows in one cluster, component {int(clusters)} of "
            f"{count}; try n_init, or a start of pyro_vmonf.starts"
        ]
    weight = proba.new_ones(number) if sample_weight is None else sample_weight
    share = (weight / weight.sum()).to(proba) @ proba
    empty = (share < 1 / (10 * count)).nonzero().squeeze(1)
    if not len(empty):
        return []
    shares = ", ".join(f"{value:.2g}" for value in share[empty][:5].tolist())
    return [
        f"the fit ended with collapsed components: {listed(empty)}, whose shares of {number} rows "
        f"are {shares} (below 1/(10 K) = {1 / (10 * count):.2g}); vmonf.prune_(x) leaves them out, "
        "and n_init or a start of pyro_vmonf.starts may avoid them"
    ]


def _units(model: FlowMixture, guide: BoundGuide) -> str:
    """Return the words for a ``log_q`` of the user's own, which is given rows in raw units."""
    own, units = guide.learner(), model.standardizer
    of = getattr(getattr(type(own), "log_q", None), "__module__", __name__)
    if of.startswith(f"{__name__.partition('.')[0]}."):
        return ""
    if bool((units.loc == 0).all() and (units.scale == 1).all()):
        return ""
    return (
        f". The log_q of {type(own).__name__} is given rows in raw units, which may be the reason: "
        "model.standardizer.inv(x) standardises them"
    )


def endings_of_data(
    model: FlowMixture, guide: BoundGuide, history: History, x: Any, y: Any, options: dict[str, Any]
) -> list[str]:
    """Return :func:`endings` on rows, labels and options as ``fit`` takes them."""
    rows = None
    if not is_streamed(x):
        beside = options.get("sample_weight"), options.get("given")
        x, y, weight, given = check_data(model, x, y, *beside)
        positions = torch.arange(len(x), device=x.device)
        rows = TensorSource(x, y, weight, MEASURED_ROWS, positions, given)
        rows = rows.counting().sample(MEASURED_ROWS)
    return endings(model, guide, history, rows)


def culprit(model: FlowMixture, terms: Terms, arguments: Arguments) -> str:
    """Return the words that name the term, the component and the rows that are not finite."""
    names = [name for name, value in terms.items() if not bool(torch.as_tensor(value).isfinite())]
    said = [f"term {', '.join(names)}"] if names else ["all terms are finite, the gradient is not"]
    with torch.no_grad(), evaluating(model), unregistered():
        numbers = torch.arange(len(arguments["x"]), device=arguments["x"].device)
        index = arguments.get("index")
        x, numbers = model.each_row(arguments["x"], numbers if index is None else index)
        components = model.observed(model.components(arguments.get("given")), x)
        log_probs = components.log_prob(x.unsqueeze(-1 - len(model.event_shape)))
    bad = ~log_probs.isfinite()
    if bad.any():
        said.append(f"component {listed(bad.any(0).nonzero().squeeze(1))}")
        said.append(f"rows {listed(numbers[bad.any(1)])}")
    return "; ".join(said)
