"""A guide of other programs and its model: questions before a run, draws after it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf._utils.validation import floating_buffer
from pyro_vmonf.contracts import required
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import FunctionProgram, accepted, drawn_sites

ROWS = 2  # where nobody says how many
DRAWS = 256  # of the random parts, for the moments that the verbs use


def refuse_networks(parts: Sequence[nn.Module], model: FlowMixture) -> None:
    """Refuse a network among the members of a guide.

    Raises:
        TypeError: if there is one.
    """
    for part in parts:
        if _is_network(part, model):
            kind = type(part).__name__
            raise TypeError(
                f"guide is a {kind}, a network that draws nothing; pass SoftmaxGuide({kind}(...))"
            )


def _is_network(part: nn.Module, model: FlowMixture) -> bool:
    """Return whether a member of a guide is a network, which returns numbers and draws nothing."""
    if isinstance(part, PyroModule | FunctionProgram):
        return False
    like = floating_buffer(model)
    row = torch.zeros(1, *model.event_shape, dtype=like.dtype, device=like.device)
    with own_store(), local_seed(0), torch.no_grad(), poutine.block():
        try:
            trace = poutine.trace(part).get_trace(row)
        except Exception:  # a program of a user may want other arguments
            return False
    nodes: dict[str, Any] = trace.nodes
    drawn = any(site["type"] == "sample" for site in nodes.values())
    return not drawn and isinstance(nodes["_RETURN"]["value"], Tensor)


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
        steps = {"steps": 1} if model.of_sequences else {}
        trace = poutine.trace(model).get_trace(**{**arguments, "size": rows, **steps})
    arguments["x"] = trace.nodes[model.site("x")]["value"]
    if rows < size:
        arguments["index"] = torch.arange(rows, device=like.device)
    if kind == 1:
        arguments["y"] = torch.full((rows,), -1, device=like.device)
    if kind == 2:
        arguments["y"] = like.new_zeros(rows, model.num_components)
    return arguments


def same_values(state: Sequence[Tensor], kept: Sequence[Tensor] | None) -> bool:
    """Return whether tensors have the values that were kept, in the precision of these."""
    return (
        kept is not None
        and [value.shape for value in state] == [value.shape for value in kept]
        and all(torch.equal(a.to(b), b) for a, b in zip(state, kept, strict=True))
    )


def take_draws_(
    model: FlowMixture,
    parts: Sequence[tuple[nn.Module, dict[str, Any]]],
    bank: Collection[str],
    rows: dict[str, Any],
    left: Collection[str],
) -> None:
    """Give the random parts of a model the draws of programs that are their posterior.

    Arguments:
        model: the mixture.
        parts: the programs and their arguments.
        bank: their sites of the bank's parameters.
        rows: arguments of a call of the model; empty where they do not draw the weights.
        left: sites of the weights that they do not draw.
    """
    values: dict[str, list[Tensor]] = {name: [] for name in bank}
    weights: list[Tensor] = []
    for _ in range(DRAWS):
        with poutine.trace() as trace:
            for part, taken in parts:
                part(**taken)
            if left:
                with poutine.block(expose=sorted(left)):
                    model.weights.guide()
        nodes: dict[str, Any] = trace.trace.nodes
        for name in bank:
            values[name].append(nodes[name]["value"])
        if rows:
            with poutine.replay(trace=trace.trace):
                weights.append(model.weights(rows.get("given")).exp())
    if weights:
        model.weights.take_draws_(torch.stack(weights))
    if values:
        found = {name: torch.stack(draws) for name, draws in values.items()}
        required(model.bank, "take_draws_", "a guide of the bank's parameters")(found)


def hidden_with(
    parts: Sequence[nn.Module], arguments: dict[str, Any], observed: Collection[str]
) -> set[str]:
    """Return the sites that members leave out where some are observed: these and their stand-ins.

    An autoguide draws a value without bounds for each site, whose entropy would stay in the ELBO.

    Arguments:
        parts: the members.
        arguments: of a call of the model.
        observed: the observed sites.

    Raises:
        ValueError: if a member draws one together with sites that are not observed.
    """
    hidden = set(observed)
    for part in parts:
        with own_store(), local_seed(0), torch.no_grad():
            sites = drawn_sites(part, accepted(part, arguments))
        stands_in = {n for n, site in sites.items() if site["infer"].get("is_auxiliary")}
        gone, left = hidden & sites.keys(), sites.keys() - hidden - stands_in
        own = {f"{name}_unconstrained" for name in gone}  # of AutoNormal
        others = stands_in - own - {f"{name}_unconstrained" for name in left}
        if gone and left and others:
            raise ValueError(
                f"{type(part).__name__} draws {', '.join(sorted(gone))} together with "
                f"{', '.join(sorted(left))}, by {', '.join(sorted(others))}, and what it says of "
                "the latter would be wrong where the former are observed; expected a guide that "
                "draws each by itself, such as AutoNormal: put the conditioned model into a new "
                "VMoNF with a guide of its own"
            )
        if gone:
            hidden |= (stands_in & own) | (set() if left else others)
    return hidden
