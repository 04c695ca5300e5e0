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
from pyro_vmonf.contracts import no_draws, required
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import (
    FunctionProgram,
    accepted,
    autoguides,
    check_autoguide,
    drawn_sites,
    explained,
    name_in_words,
)

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


def sites_of_members(
    parts: Sequence[nn.Module], arguments: dict[str, Any], model: FlowMixture
) -> tuple[list[tuple[set[str], set[str]]], dict[str, str]]:
    """Run each member of a guide once.

    Arguments:
        parts: the members.
        arguments: of a call of the model.
        model: the mixture.

    Returns:
        The sites of each member, all and those of rows; and the member of each site, in words.

    Raises:
        ValueError: if two members draw the same site, or an autoguide draws ``c``.
    """
    by: dict[str, str] = {}
    found: list[tuple[set[str], set[str]]] = []
    data = model.site("data")
    for part in parts:
        name, taken = name_in_words(part), accepted(part, arguments)
        if isinstance(part, FunctionProgram):
            part.prepare_(taken)
        with explained(part), own_store():
            sites = drawn_sites(part, taken)
        for auto in autoguides(part):
            check_autoguide(auto, model.site("c"), data)
        for site in sites:
            if site in by:
                raise ValueError(
                    f"two members of the guide, {by[site]} and {name}, draw {site!r}; hide it "
                    "from one of them by poutine.block"
                )
            by[site] = name
        stacks = {key: value["cond_indep_stack"] for key, value in sites.items()}
        local = {key for key, stack in stacks.items() if data in {f.name for f in stack}}
        found.append((set(sites), local))
    return found, by


def require_log_q(part: nn.Module) -> None:
    """Refuse a member of a guide that draws ``c`` and has no ``log_q``.

    Raises:
        TypeError: always but for a member that has one.
    """
    if isinstance(part, FunctionProgram):
        raise TypeError(
            f"elbo needs log_q, which {name_in_words(part)} does not have; write the guide as a "
            "module, pyro.nn.PyroModule, with log_q(x) beside forward"
        )
    required(part, "log_q", "elbo")


def require_take(parts: Sequence[nn.Module]) -> None:
    """Refuse members of a guide that do not say how components lie in them.

    Raises:
        ValueError: if one has no ``take_``.
    """
    for part in parts:
        if not hasattr(part, "take_"):
            raise ValueError(
                f"the guide has {name_in_words(part)}, whose components cannot be taken out or "
                "change places; write take_(index) in a module of your own, after which component "
                "i is what index[i] was"
            )


def check_takes_draws(model: FlowMixture, given: Tensor | None) -> None:
    """Refuse weights that cannot take draws of another guide.

    Arguments:
        model: the mixture.
        given: context of some rows ``(N, H)``, if there is one.

    Raises:
        TypeError: if they have no ``take_draws_``.
        ValueError: if each row has weights of its own: draws of them would score no other row.
    """
    weights, kind = model.weights, type(model.weights).__name__
    if given is not None:
        with poutine.block():
            shape = tuple(weights(given).shape)
        if len(shape) > 1:
            raise ValueError(
                f"a guide of your own draws the sites of {kind}, whose weights have shape {shape} "
                f"and depend on the rows; expected ({model.num_components},), since draws of them "
                f"score no other row: write {kind}.guide and {kind}.log_mean, and hide the sites "
                "from your guide"
            )
    if not weights.takes_draws:
        raise TypeError(no_draws(weights))


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
