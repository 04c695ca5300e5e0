"""Enumerated traces and the contraction of Pyro."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor


class Enumerate(EnumMessenger):
    """Pyro's enumeration, which reads the shapes of values and not the values.

    Under ``torch.vmap`` a value has a shape and no data.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is not None:
            value = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample({**msg, "value": value})  # type: ignore[arg-type]


def enumerated_dim(site: dict[str, Any]) -> int | None:
    """Return the dimension on which a traced site is enumerated; ``None`` if it is not."""
    dim: int | None = site["infer"].get("_enumerate_dim")
    return dim


def is_enumerated(value: Tensor, count: int) -> bool:
    """Return whether a value holds all of 0 to K - 1 on a dimension of its own."""
    marked = hasattr(value, "_pyro_categorical_support")
    return marked and value.numel() == count == value.shape[0]


def is_plate(site: dict[str, Any]) -> bool:
    """Return whether a traced site is the subsample of a plate."""
    return isinstance(site["fn"], _Subsample)


def _times(packed: Tensor, factor: Tensor) -> Tensor:
    """Multiply a packed log-density, but for what is impossible."""
    possible = packed > -torch.inf
    safe = torch.where(possible, packed, torch.zeros_like(packed)) * factor
    result = torch.where(possible, safe, packed)
    result._pyro_dims = packed._pyro_dims  # type: ignore[attr-defined]
    return result


Factors = list[tuple[str, dict[str, Any], int, Tensor]]


def _contractions(
    elbo: TraceEnum_ELBO, model: Any, guide: Any, arguments: dict[str, Any]
) -> Iterator[tuple[Any, Factors]]:
    """Yield the ELBO of each particle, and a factor of one in front of each log-density."""
    for model_trace, guide_trace in elbo._get_traces(model, guide, (), arguments):
        found: Factors = []
        for trace, sign in ((model_trace, 1), (guide_trace, -1)):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or is_plate(site):
                    continue
                if sign < 0 and enumerated_dim(site) is not None:
                    continue
                factor = site["log_prob"].new_ones((), requires_grad=True)
                for key in ("log_prob", "unscaled_log_prob"):
                    site["packed"][key] = _times(site["packed"][key], factor)
                found.append((name, site, sign, factor))
        yield _compute_dice_elbo(model_trace, guide_trace), found


def total_of(elbo: TraceEnum_ELBO, model: Any, guide: Any, arguments: dict[str, Any]) -> Tensor:
    """Return the ELBO of :func:`contracted` alone."""
    with torch.enable_grad():
        total: Tensor = sum(value for value, _ in _contractions(elbo, model, guide, arguments))
    return total if torch.is_grad_enabled() else total.detach()


def contracted(
    elbo: TraceEnum_ELBO, model: Any, guide: Any, arguments: dict[str, Any]
) -> tuple[Tensor, Factors]:
    """Return the ELBO of ``TraceEnum_ELBO``, and the part of it that each site contributes.

    The part of a site is the derivative of the ELBO by a factor in front of its log-density: the
    expectation of the log-density under the posterior of everything that is enumerated.

    Returns:
        The ELBO, and for each site its name, the site, 1 for the model or −1 for the guide, and its
        expected log-density. Sites that the guide enumerates are left out.
    """
    total: Any = 0.0
    parts: Factors = []
    with torch.enable_grad():
        for value, found in _contractions(elbo, model, guide, arguments):
            total = total + value
            if found and value.requires_grad:
                derivatives = torch.autograd.grad(
                    value, [f for *_, f in found], retain_graph=True, allow_unused=True
                )
                for (name, site, sign, _), derivative in zip(found, derivatives, strict=True):
                    part = value.new_zeros(()) if derivative is None else sign * derivative
                    parts.append((name, site, sign, part))
    return (total if torch.is_grad_enabled() else total.detach()), parts
