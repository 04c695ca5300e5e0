"""The clusters that a guide begins with, taught to it before any flow is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.frames import names_of
from pyro_vmonf._utils.validation import check_number, check_positive, floating_buffer
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.contracts import Start
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.starts.clusters import spectral_clusters
from pyro_vmonf.starts.lessons import (
    Draws,
    Lesson,
    in_units,
    learning_parameters,
    model_of,
    numbers_of,
    teach,
)
from pyro_vmonf.starts.responsibilities import as_responsibilities, check_start


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
        clusters: cluster ``(N,)`` or responsibilities ``(N, K)`` of each row, or a
            :class:`~pyro_vmonf.contracts.Start` that finds them; by default
            :func:`spectral_clusters`.
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
    count = model.num_components
    if clusters is not None and not callable(clusters):
        clusters = as_responsibilities(clusters, len(x), count, like)
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, len(x), like)
        if not weight.any():
            raise ValueError("sample_weight is zero for every row; some have to count")
        kept = (weight > 0).nonzero().squeeze(1)
        x, weight, y = x[kept], weight[kept], None if y is None else y[kept]
        clusters = clusters[kept] if isinstance(clusters, Tensor) else clusters
    if not isinstance(clusters, Tensor):
        find = spectral_clusters if clusters is None else clusters
        check_start("clusters", find)
        clusters = as_responsibilities(find(x.clone(), count), len(x), count, like)
        if (some := len(clusters.argmax(1).unique())) < count:
            warn(f"the start found {some} clusters, and the mixture has {count} components")
    if y is not None:
        numbers = numbers_of(clusters.argmax(1), y, count)
        clusters = clusters[:, numbers.argsort()]
    rows = Draws(len(x), min(batch_size, len(x)), device=x.device)

    def cross_entropy(index: Tensor) -> Tensor:
        log_q, target = guide.log_q(x[index]), clusters[index]
        loss = -(target * log_q.where(target > 0, 0.0)).sum(-1)
        return loss.mean() if weight is None else (loss * weight[index]).mean() / weight.mean()

    with in_units(model, x, weight, names), local_seed(seed):
        optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
        before = copy.deepcopy(guide.state_dict())
        try:
            teach(Lesson(guide, cross_entropy), rows, optimizer, None, steps, "")
        except BaseException:
            guide.load_state_dict(before)
            raise
