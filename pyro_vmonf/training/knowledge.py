"""Before a run: the guide's knowledge of clusters, and parts that start from data."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import has_gaps
from pyro_vmonf.counts import forget_
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training.endings import warn
from pyro_vmonf.training.rows import Arguments

KNOWN_SHARE = 0.1  # of log K: what a guide that knows clusters tells about c, at least
JUDGED_ROWS = 1000  # by which a guide is asked


def knows_clusters(q: Tensor) -> bool:
    r"""Return whether a posterior ``(N, K)`` tells a tenth of :math:`\log K` about c, or more.

    A new network tells next to nothing, and its clusters are no start for anything.
    """
    mean = q.mean(0)
    told = torch.special.xlogy(q, q).sum(-1).mean() - torch.special.xlogy(mean, mean).sum()
    return bool(told > KNOWN_SHARE * math.log(q.shape[-1]))


def warn_of_lost_clusters(model: FlowMixture, guide: BoundGuide, x: Any, n_init: int) -> None:
    """Warn if a guide knows clusters that only the first of several runs begins with."""
    if not model.standardizer.fitted:  # nobody has taught the guide
        return
    rows = model.rows(x, missing=True)[:JUDGED_ROWS]
    q = guide.first_clusters(model.standardizer.filled(rows) if has_gaps(rows) else rows)
    if q is not None and knows_clusters(q):
        warn(
            f"the guide knows clusters, and n_init={n_init} draws the guides of runs 2 to {n_init} "
            "anew, without them; pass start=, a function that teaches them to each run"
        )


def start_parts(model: FlowMixture, guide: BoundGuide, probe: Arguments) -> None:
    """Start the parts of the bank that start from data, by the guide's clusters of some rows.

    Weights in closed form forget the rows of a former run.
    """
    forget_(model)
    x = model.standardizer.filled(probe["x"]) if model.has_gaps(probe["x"]) else probe["x"]
    x, weight, counts = model.each_row(x, guide.first_clusters(x), probe.get("sample_weight"))
    weight = weight if weight is not None and knows_clusters(weight) else None
    if counts is not None:
        each = counts.unsqueeze(-1).expand(-1, model.num_components)
        weight = each if weight is None else weight * each
    model.start_(x, weight)
