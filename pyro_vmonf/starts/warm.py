"""The clusters that a guide begins with, taught to it before any flow is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.frames import names_of
from pyro_vmonf._utils.validation import (
    as_tensor,
    check_number,
    check_positive,
    floating_buffer,
)
from pyro_vmonf.contracts import Start
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.starts.clusters import spectral_clusters
from pyro_vmonf.starts.lessons import (
    Draws,
    Lesson,
    in_units,
    learning_parameters,
    model_of,
    named,
    teach,
)


def warm_start_(
    guide: BoundGuide,
    x: Any,
    clusters: Tensor | Start | None = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    steps: int = 300,
    batch_size: int = 512,
    lr: float = 3e-3,
    seed: int | None = None,
) -> None:
    """Teach the ``log_q`` of a guide a first clustering, before any flow is trained.

    Arguments:
        guide: a guide that is bound to its model, as ``vmonf.guide`` is. Of a list of guides the
            one with a ``log_q`` learns.
        x: rows ``(N, *event_shape)``.
        clusters: cluster ``(N,)`` of each row, or a :class:`~pyro_vmonf.contracts.Start` that finds
            them; by default :func:`spectral_clusters`.
        y: labels ``(N,)``, −1 for unlabelled, or log-likelihoods ``(N, K)``; clusters take the
            numbers that agree best with them.
        sample_weight: how much each row counts ``(N,)``; those of weight zero take no part.
        steps, batch_size, lr: of Adam, on the cross-entropy.
        seed: seed of the order of the rows.

    Raises:
        TypeError: if no ``log_q`` of the guide has parameters to train.
        ValueError: if the guide is bound to no model, or clusters and labels do not fit the rows;
            nothing has then changed.
    """
    model, parameters = model_of(guide, "warm_start_"), learning_parameters(guide, "warm_start_")
    like = floating_buffer(model)
    names = model.feature_names or names_of(x)
    x = model.rows(x, weight=sample_weight)
    check_positive("steps", steps)
    check_positive("batch_size", batch_size)
    check_number("lr", lr)
    weight = None
    if y is not None:
        y = check_evidence(y, len(x), model.num_components, like)
    if clusters is not None and not callable(clusters):
        clusters = _checked(clusters, len(x), model)
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, len(x), like)
        if not weight.any():
            raise ValueError("sample_weight is zero for every row; some have to count")
        kept = (weight > 0).nonzero().squeeze(1)
        x, weight, y = x[kept], weight[kept], None if y is None else y[kept]
        clusters = clusters[kept] if isinstance(clusters, Tensor) else clusters
    if not isinstance(clusters, Tensor):
        find = spectral_clusters if clusters is None else clusters
        clusters = _checked(find(x, model.num_components), len(x), model)
    if y is not None:
        clusters = named(clusters, y, model.num_components)
    rows = Draws(len(x), min(batch_size, len(x)), device=x.device)

    def cross_entropy(index: Tensor) -> Tensor:
        loss = torch.nn.functional.nll_loss(
            guide.log_q(x[index]), clusters[index], reduction="none"
        )
        return loss.mean() if weight is None else (loss * weight[index]).mean() / weight.mean()

    with in_units(model, x, weight, names), local_seed(seed):
        optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
        before = copy.deepcopy(guide.state_dict())
        try:
            teach(Lesson(guide, cross_entropy), rows, optimizer, None, steps, "")
        except FloatingPointError:
            guide.load_state_dict(before)
            raise


def _checked(clusters: Any, rows: int, model: FlowMixture) -> Tensor:
    """Return clusters ``(N,)`` as integers.

    Raises:
        TypeError: if they are no integers.
        ValueError: if they do not fit the rows or the components.
    """
    clusters, count = as_tensor("clusters", clusters), model.num_components
    if clusters.is_floating_point() or clusters.is_complex() or clusters.dtype == torch.bool:
        raise TypeError(f"clusters have dtype {clusters.dtype}; expected integers from 0")
    if tuple(clusters.shape) != (rows,):
        raise ValueError(
            f"clusters have shape {tuple(clusters.shape)}; expected one number from 0 for each of "
            f"{rows} rows"
        )
    bad = ((clusters < 0) | (clusters >= count)).nonzero().squeeze(1)
    if len(bad):
        raise ValueError(
            f"clusters hold {int(clusters[bad[0]])} in row {int(bad[0])}; expected numbers "
            f"from 0 to {count - 1} ({len(bad)} such rows)"
        )
    return clusters.long().to(floating_buffer(model).device)
