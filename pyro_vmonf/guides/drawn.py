"""Rows that a model draws for a guide that needs some."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf.model import FlowMixture

ROWS = 2  # where nobody says how many


def rows_of(model: FlowMixture, prototype: Tensor) -> dict[str, Any]:
    """Return arguments of a call whose rows the model draws.

    Arguments:
        model: the mixture.
        prototype: rows, size of the whole, kind of evidence (0 none, 1 labels, 2 log-likelihoods)
            and whether there is a context; zeros for two rows without any.
    """
    rows, size, kind, _ = prototype.tolist() if prototype[0] else (ROWS, ROWS, 0, 0)
    arguments: dict[str, Any] = {"size": size}
    like = next(v for v in (*model.buffers(), *model.parameters()) if v.is_floating_point())
    if model.context_features:
        arguments["given"] = like.new_zeros(rows, model.context_features)
    with own_store(), evaluating(model), local_seed(0), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(**{**arguments, "size": rows})
    arguments["x"] = trace.nodes[model.site("x")]["value"]
    if rows < size:
        arguments["index"] = torch.arange(rows, device=like.device)
    if kind == 1:
        arguments["y"] = torch.full((rows,), -1, device=like.device)
    if kind == 2:
        arguments["y"] = like.new_zeros(rows, model.num_components)
    return arguments
