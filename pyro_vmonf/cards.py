"""What a notebook shows of a pair and of a training run: HTML of its own, without scripts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import pyro
import torch

if TYPE_CHECKING:
    from pyro_vmonf.history import History
    from pyro_vmonf.vmonf import VMoNF

MOST_WEIGHTS = 20  # components whose weights are listed


def sparkline(values: Sequence[float], *, width: int = 240, height: int = 40) -> str:
    """Return a line through numbers as an SVG, without those that are not finite.

    Example:
        >>> print(sparkline([1.0, 3.0, 2.0], width=22, height=12))  # doctest: +ELLIPSIS
        <svg ...><polyline points="1.0,11.0 11.0,1.0 21.0,6.0" .../></svg>
    """
    points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    low, high = min((v for _, v in points), default=0.0), max((v for _, v in points), default=0.0)
    across = (width - 2) / max(len(values) - 1, 1)
    up = (height - 2) / ((high - low) or 1.0)
    line = " ".join(f"{1 + across * i:.1f},{1 + up * (high - v):.1f}" for i, v in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def history_card(history: History) -> str:
    """Return the loss of a run as a line, and its last numbers as a table."""
    rows = [
        ("epochs", str(len(history.epoch))),
        ("steps", str(history.step[-1] if history.step else 0)),
        ("seconds", f"{history.seconds:.1f}"),
    ]
    if history.elbo:
        rows.append(("ELBO, nats per row", f"{history.elbo[-1]:.4f}"))
    if history.held_out:
        rows.append(("held out", f"{history.held_out[-1]:.4f}"))
    if history.temperature:
        rows.append(("temperature", f"{history.temperature[-1]:.3g}"))
    if history.rejected:
        rows.append(("steps rolled back", str(history.rejected)))
    if history.stopped:
        rows.append(("stopped", history.stopped))
    drawn = ""
    if history.elbo:
        drawn = f"<div>loss per row<br>{sparkline([-value for value in history.elbo])}</div>"
    return f"<div><strong>History</strong>{_table(rows)}{drawn}</div>"


@torch.no_grad()
def pair_card(vmonf: VMoNF) -> str:
    """Return what a pair is made of, its weights, and how its last fit went."""
    model, guide = vmonf.model, vmonf.guide
    parameters = list(vmonf.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    rows = [
        ("components K", str(model.num_components)),
        ("event shape", str(tuple(model.event_shape))),
        ("bank", type(model.bank).__name__),
        ("weights", f"{type(model.weights).__name__}: {_weights(vmonf)}"),
        ("guide", ", ".join(filter(None, (type(guide).__name__, guide.extra_repr())))),
        ("parameters", f"{trained:,}" + (f", and {frozen:,} frozen" if frozen else "")),
        ("fitted", "no" if vmonf.history is None else repr(vmonf.history)),
    ]
    if model.context_features:
        rows.insert(2, ("context features", str(model.context_features)))
    drawn = "" if vmonf.history is None else sparkline([-v for v in vmonf.history.elbo])
    return f"<div><strong>VMoNF</strong>{_table(rows)}{drawn}</div>"


def _weights(vmonf: VMoNF) -> str:
    """Return the mixture's weights as text."""
    with pyro.get_param_store().scope():
        try:
            weights = vmonf.model.weights.log_mean().exp().tolist()
        except ValueError:  # of gates
            return "depend on the rows' context"
    shown = ", ".join(f"{weight:.3f}" for weight in weights[:MOST_WEIGHTS])
    return shown + (f" and {len(weights) - MOST_WEIGHTS} more" * (len(weights) > MOST_WEIGHTS))


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table><tbody>{cells}</tbody></table>"
