"""Curves of a training run."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.ticker import MaxNLocator

from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import PALETTE, UNLABELLED, component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.training.history import History


@styled
def plot_history(history: History, *, ax: Axes | None = None) -> Axes:
    """Draw the ELBO per row over the epochs, and the temperature on a second axis.

    The scale ignores the first tenth of the run, so a curve can begin below the axes.

    Arguments:
        history: the result of ``fit``.
        ax: the axes; by default those of a new figure.

    Example:
        >>> history = History(epoch=[0, 1], elbo=[-2.0, -1.0], temperature=[1.0, 0.9])
        >>> ax = plot_history(history, ax=Figure().subplots())
        >>> ax.get_ylabel()
        'ELBO, nats per row'
    """
    ax = axes_or_new(ax)
    lines = ax.plot(history.epoch, history.elbo, color=PALETTE[5], label="training")
    if history.held_out:
        lines += ax.plot(history.epoch, history.held_out, color=PALETTE[9], label="held out")
    ax.set_ylabel("ELBO, nats per row")
    _epoch_axis(ax, history)
    later = [v[len(v) // 10 :] for v in (history.elbo, history.held_out)]
    values = np.array([value for part in later for value in part if math.isfinite(value)])
    if len(values) > 10:
        margin = 0.05 * max(float(np.ptp(values)), 1e-6)
        ax.set_ylim(values.min() - margin, values.max() + margin)
    if history.rejected:
        text = f"{history.rejected} steps were not finite and were rolled back"
        ax.set_title(text, pad=2.2 * plt.rcParams["font.size"])
    if len(set(history.temperature)) > 1:
        right = ax.twinx()
        right.spines["right"].set_visible(True)
        lines += right.plot(
            history.epoch, history.temperature, color=UNLABELLED, ls="--", label="temperature"
        )
        right.set_ylabel("temperature")
        right.set_ylim(0, 1.05 * max(history.temperature))
        ax.figure.sca(ax)
    style: dict[str, Any] = {"ncols": len(lines), "handlelength": 1.5, "columnspacing": 1.0}
    ax.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), **style)
    return ax


@styled
def plot_terms(history: History, *, ax: Axes | None = None) -> Axes:
    """Draw the terms of the ELBO over the epochs, without terms that are always zero.

    Arguments:
        history: the result of ``fit``.
        ax: the axes; by default those of a new figure.

    Example:
        >>> terms = {"log_likelihood": [-2.0, -1.0], "entropy": [1.6, 1.2]}
        >>> ax = plot_terms(History(epoch=[0, 1], terms=terms), ax=Figure().subplots())
        >>> [line.get_label() for line in ax.get_lines()][1:]
        ['entropy', 'log likelihood']
    """
    ax = axes_or_new(ax)
    ax.axhline(0.0, color=UNLABELLED, linewidth=0.8)
    names = sorted(name for name, values in history.terms.items() if any(values))
    for color, name in zip(component_colors(len(names)), names, strict=True):
        ax.plot(history.epoch, history.terms[name], color=color, label=name.replace("_", " "))
    ax.set_ylabel("nats per row")
    _epoch_axis(ax, history)
    if names:  # a legend above the axes covers no line
        style: dict[str, Any] = {"ncols": 2, "fontsize": "small", "frameon": False}
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), **style)
    return ax


def _epoch_axis(ax: Axes, history: History) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if history.epoch and history.epoch[0] < 0:
        ax.axvspan(history.epoch[0], -0.5, color="0.92", zorder=-1)
        style = {"rotation": 90, "ha": "center", "va": "bottom", "color": "0.4"}
        middle = (history.epoch[0] - 0.5) / 2
        ax.text(middle, 0.03, "pretraining", style, transform=ax.get_xaxis_transform())
