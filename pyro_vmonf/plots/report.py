"""What became of each component, as a figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.patches import Patch

from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors, tint
from pyro_vmonf.plots.tables import draw_table, outline
from pyro_vmonf.plots.window import to_numpy
from pyro_vmonf.report import ComponentReport


def plot_report(report: ComponentReport, *, ax: Axes | None = None) -> Axes:
    """Draw what each component holds: by the guide, by Bayes' rule, and by the mixture's weights.

    For each component the upper bar is the share of the rows that the guide gives to it, the pale
    one below that by Bayes' rule, and the black mark its weight. Beside them stand the mean entropy
    of the guide and the mean log p(x|c) of its rows, in nats; then whether it is dead or doubled.

    Arguments:
        report: what ``vmonf.report(x)`` returned.
        ax: where to draw.

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


def plot_overlap(report: ComponentReport, *, ax: Axes | None = None) -> Axes:
    """Draw how much of each component's mass the others share; doubled pairs are outlined.

    Arguments:
        report: what ``vmonf.report(x)`` returned; row *i*, column *j* is the exact posterior of *j*
            at a row drawn from what *i* is responsible for.
        ax: where to draw.

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
