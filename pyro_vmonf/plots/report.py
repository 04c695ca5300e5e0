"""The state of each component as a figure."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.patches import Patch
from torch import Tensor

from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors, tint
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.tables import draw_table, outline
from pyro_vmonf.plots.window import to_numpy


class Report(Protocol):
    """The members of :class:`~pyro_vmonf.report.ComponentReport` that the figures show."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def usage(self) -> Tensor: ...
    @property
    def usage_exact(self) -> Tensor: ...
    @property
    def entropy(self) -> Tensor: ...
    @property
    def log_prob(self) -> Tensor: ...
    @property
    def overlap(self) -> Tensor: ...
    def dead(self) -> Tensor: ...
    def doubled(self) -> list[tuple[int, int]]: ...


@styled
def plot_report(report: Report, *, ax: Axes | None = None) -> Axes:
    """Draw the share of the rows and the weight of each component.

    The upper bar is the share by the guide, the pale bar below it the share by Bayes' rule. The
    black mark is the weight. The numbers are the mean entropy of the guide and the mean log p(x|c)
    of the rows of the component, in nats. A word marks dead and doubled components.

    Arguments:
        report: the result of ``vmonf.report(x)``.
        ax: the axes; by default those of a new figure.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> report = VMoNF(FlowMixture(RealNVP(2, 3))).report(torch.randn(100, 2))
        >>> ax = plot_report(report, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0', '1', '2']
    """
    ax = axes_or_new(ax)
    usage, exact = to_numpy(report.usage), to_numpy(report.usage_exact)
    weight, count = to_numpy(report.weight), len(report.usage)
    colors, places = component_colors(count), np.arange(count)
    ax.barh(places - 0.18, usage, 0.34, color=colors)
    pale = [tint(color, 0.45) for color in colors]
    ax.barh(places + 0.18, exact, 0.34, color=pale)
    style: dict[str, Any] = {"color": "black", "linewidth": 1.5, "label": "weight"}
    mark = ax.vlines(weight, places - 0.42, places + 0.42, **style)
    largest = float(np.nanmax([usage, exact, weight]))
    dead, doubled = report.dead().tolist(), report.doubled()
    ax.text(1.06 * largest, -0.62, "entropy, log p(x|c)", color="0.3", va="center", size="small")
    for k in range(count):
        numbers = [float(report.entropy[k]), float(report.log_prob[k])]
        text = ", ".join("–" if math.isnan(number) else f"{number:.2f}" for number in numbers)
        twins = [str(j if i == k else i) for i, j in doubled if k in (i, j)]
        text += "  dead" if k in dead else ""
        text += f"  doubles {', '.join(twins)}" if twins else ""
        ax.text(1.06 * largest, k, text, va="center", size="small")
    ax.set(xlabel="share of the rows", ylabel="component", xlim=(0, 1.75 * largest))
    ax.set_ylim(count - 0.4, -0.9)
    ax.set_yticks(places, map(str, range(count)))
    ax.set_xticks([tick for tick in ax.get_xticks() if 0 <= tick <= 1.05 * largest])
    ax.spines[["top", "right"]].set_visible(False)
    # One entry a kind, in grey: its bars have a colour for each component.
    kinds = [Patch(color="0.35", label="guide"), Patch(color="0.75", label="Bayes' rule"), mark]
    style = {"ncols": 3, "fontsize": "small", "frameon": False, "handlelength": 1.2}
    ax.legend(handles=kinds, loc="lower center", bbox_to_anchor=(0.5, 1.0), **style)
    return ax


@styled
def plot_overlap(report: Report, *, ax: Axes | None = None) -> Axes:
    """Draw the overlap of the components as a table, with doubled pairs outlined.

    Arguments:
        report: the result of ``vmonf.report(x)``. The cell in row *i* and column *j* is the mean
            exact posterior of *j* over the mass of *i*.
        ax: the axes; by default those of a new figure.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> report = VMoNF(FlowMixture(RealNVP(2, 3))).report(torch.randn(100, 2))
        >>> len(plot_overlap(report, ax=Figure().subplots()).texts)
        9
    """
    ax = axes_or_new(ax)
    overlap = to_numpy(report.overlap)
    draw_table(ax, overlap, [[f"{share:.2f}" for share in row] for row in overlap])
    pairs = report.doubled()
    outline(ax, [*pairs, *[(j, i) for i, j in pairs]])
    ax.set(xlabel="also that of component", ylabel="mass of component")
    return ax
