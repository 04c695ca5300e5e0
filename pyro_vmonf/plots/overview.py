"""The default picture of a fit: a curve, a plane, or a plane for each pair of features."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from pyro_vmonf._utils.validation import check_unconditional, has_gaps
from pyro_vmonf.contracts import Pair, required
from pyro_vmonf.plots import window
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.density import plot_component_contours
from pyro_vmonf.plots.palette import UNLABELLED, component_colors, tint
from pyro_vmonf.plots.plane import plot_data, plot_regions
from pyro_vmonf.plots.style import PAGE, styled
from pyro_vmonf.plots.window import Array, to_numpy

MOST_DOTS = 3000  # more would hide each other
MOST_FEATURES = 5
SAMPLES = 20_000
CELLS = 48  # of a projected region, along each side
CORE = 0.95  # of the mass is coloured
Names = Sequence[str]


@styled
def plot_fit(
    vmonf: Pair,
    x: Any = None,
    *,
    features: Sequence[int] | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw rows in the colour of their cluster, over what the mixture says of the plane.

    One feature: the histogram of the rows, :math:`p(x)` and each :math:`\pi_c\,p(x|c)`. Two
    features: the rows over the regions of the guide, with the contour of 90 % of the mass of each
    component. More: a plane for each pair of features. Below the diagonal stand the rows with an
    ellipse of two standard deviations around each cluster. Above it each place has the colour of
    the component that most samples of the mixture have there. The diagonal has the densities.

    Arguments:
        vmonf: the pair.
        x: rows ``(N, D)``; by default samples of the mixture. At most 3,000 are drawn. A missing
            entry stands at its mean given the others.
        features: the features of the pair plot; by default the five that part the clusters best.
        seed: of the samples and of the choice of rows; the global state stays.
        ax: the axes; by default those of a new figure. A pair plot stands inside them.

    Raises:
        ValueError: if the mixture is one of images or depends on a context, or features or rows do
            not fit.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(3, 2)))
        >>> ax = plot_fit(vmonf, torch.randn(50, 3), ax=Figure().subplots())
        >>> len(ax.child_axes)
        9
    """
    model = vmonf.model
    check_unconditional("plot", model.context_features)
    if len(model.event_shape) != 1:
        raise ValueError(
            f"plot draws tables but the components have event_shape {tuple(model.event_shape)}; "
            "plot_component_grid draws images"
        )
    width = model.event_shape[0]
    rows = vmonf.sample(MOST_DOTS, seed=seed)[0] if x is None else model.rows(x, missing=True)
    if not len(rows):
        raise ValueError("x has no rows; pass some, or leave it out for samples of the mixture")
    if len(rows) > MOST_DOTS:
        chosen = np.random.default_rng(seed).permutation(len(rows))[:MOST_DOTS]
        rows = rows[torch.as_tensor(np.sort(chosen), device=rows.device)]
    clusters = vmonf.predict(rows)
    rows = required(vmonf, "impute", "plot")(rows).x if has_gaps(rows) else rows
    wanted = None if features is None else _checked(features, width)
    names = model.feature_names or tuple(f"feature {i}" for i in range(width))
    if width == 1:
        return _curve(vmonf, rows, clusters, names[0], axes_or_new(ax))
    if width == 2:
        return _plane(vmonf, rows, clusters, axes_or_new(ax))
    shown = wanted or _parting(to_numpy(rows), to_numpy(clusters), width)
    square = plt.subplots(figsize=(PAGE, 0.92 * PAGE))[1] if ax is None else ax
    return _pairs(vmonf, to_numpy(rows), to_numpy(clusters), names, shown, seed, square)


def _checked(features: Sequence[int], width: int) -> list[int]:
    """Return the features to draw.

    Raises:
        ValueError: if they are none of the pair plot; one and two features are drawn as they are.
    """
    chosen = list(features)
    numbers = all(isinstance(i, Integral) and 0 <= i < width for i in chosen)
    if width < 3 and chosen != list(range(width)):
        raise ValueError(f"features is {chosen}; a mixture of {width} features is drawn whole")
    if width > 2 and (len(chosen) < 2 or not numbers):
        raise ValueError(
            f"features is {chosen}; expected two or more numbers from 0 to {width - 1}"
        )
    return [int(i) for i in chosen]


def _parting(x: Array, clusters: Array, width: int) -> list[int]:
    """Return the features that part the clusters best."""
    within = np.zeros(width)
    for c in np.unique(clusters):
        own = x[clusters == c]
        within += len(own) / len(x) * own.var(0)
    share = within / np.maximum(x.var(0), np.finfo(np.float64).tiny)
    return sorted(share.argsort(kind="stable")[:MOST_FEATURES].tolist())


def _legend(ax: Axes, count: int, clusters: Array, **more: Any) -> None:
    """Name the components that have rows, outside of the axes."""
    colors, held = component_colors(count), [c for c in np.unique(clusters).tolist() if c >= 0]
    if len(held) > 12:
        return
    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 6}
    handles = [Line2D([], [], color=colors[c], label=str(c), **style) for c in held]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} | more
    ax.legend(handles=handles, title="cluster", handletextpad=0.1, **place)


def _curve(vmonf: Pair, rows: Any, clusters: Any, name: str, ax: Axes) -> Axes:
    """Draw the density over a line."""
    x = to_numpy(rows)[:, 0]
    low, high = np.quantile(x, (0.001, 0.999))
    margin = 0.1 * float(window.widths(low, high))
    at = torch.linspace(low - margin, high + margin, 500, dtype=torch.float64).to(rows)
    with torch.no_grad():
        weights = to_numpy(vmonf.model.weights.log_mean().exp())
    each = weights * np.exp(to_numpy(vmonf.component_log_prob(at.unsqueeze(1))))
    bins = np.linspace(low - margin, high + margin, 41)
    ax.hist(x, bins=bins.tolist(), density=True, color=tint((0.54, 0.54, 0.54), 0.35))
    line = to_numpy(at)
    for c, color in enumerate(component_colors(each.shape[1])):
        ax.fill_between(line, each[:, c], color=color, alpha=0.25, linewidth=0)
        ax.plot(line, each[:, c], color=color)
    ax.plot(line, each.sum(1), color="black")
    ax.set(xlabel=name, ylabel="density", xlim=(line[0], line[-1]))
    ax.set_ylim(bottom=0)
    _legend(ax, each.shape[1], to_numpy(clusters))
    return ax


def _plane(vmonf: Pair, rows: Any, clusters: Any, ax: Axes) -> Axes:
    """Draw the plane of two features."""
    extent = window.find_extent(to_numpy(rows))
    plot_regions(vmonf, extent=extent, ax=ax)
    plot_data(rows, clusters, ax=ax)
    plot_component_contours(vmonf, mass=(0.9,), extent=extent, ax=ax)
    low, high = np.array(extent[::2]), np.array(extent[1::2])
    ratio = (high - low).max() / (high - low).min()
    # Features of other units have no common scale.
    ax.set_aspect("equal" if ratio < 4 else "auto")
    _legend(ax, vmonf.model.num_components, to_numpy(clusters))
    return ax


def _pairs(
    vmonf: Pair,
    x: Array,
    clusters: Array,
    names: Names,
    shown: list[int],
    seed: int,
    ax: Axes,
) -> Axes:
    """Draw a plane for each pair of features, inside of axes that are not seen themselves."""
    count, size = vmonf.model.num_components, len(shown)
    colors = component_colors(count)
    points, c = (to_numpy(part) for part in vmonf.sample(SAMPLES, seed=seed))
    limits = [_limits(x[:, i]) for i in shown]
    ax.set_axis_off()
    gap = 0.12 / size
    side = (1 - (size - 1) * gap) / size
    for row, i in enumerate(shown):
        for column, j in enumerate(shown):
            box = (column * (side + gap), 1 - (row + 1) * side - row * gap, side, side)
            part = ax.inset_axes(box)
            across, up = limits[column], limits[row]
            if row == column:
                _densities(part, points[:, i], c, across, colors)
            elif row > column:
                _dots(part, x[:, [j, i]], clusters, colors)
                part.set_ylim(up)
            else:
                _projected(part, points[:, [j, i]], c, (*across, *up), count)
            part.set_xlim(across)
            below, left = row == size - 1, column == 0 and row > 0
            part.tick_params(bottom=below, labelbottom=below, left=left, labelleft=left)
            part.tick_params(labelsize="small")
            part.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
            if row != column:
                part.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
            if row == size - 1:
                part.set_xlabel(_wrapped(names[j]), fontsize="small", verticalalignment="top")
            if column == 0:
                part.set_ylabel(_wrapped(names[i]), fontsize="small")
    _legend(ax, count, clusters, bbox_to_anchor=(1.02, 0.5))
    return ax


def _wrapped(name: str) -> str:
    """Return a name in lines that fit beside a small plane."""
    return textwrap.fill(name.replace("_", " "), 13, max_lines=3, placeholder="…")


def _limits(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, (0.002, 0.998)).tolist()
    margin = 0.08 * float(window.widths(low, high))
    return low - margin, high + margin


def _densities(
    ax: Axes, values: Array, c: Array, across: tuple[float, float], colors: list[Any]
) -> None:
    """Draw the density of a feature, that of each component upon it."""
    edges = np.linspace(*across, 61)
    middle = (edges[1:] + edges[:-1]) / 2
    for k in np.unique(c).tolist():
        height = gaussian_filter(np.histogram(values[c == k], edges)[0].astype(float), 1.5)
        ax.fill_between(middle, height, color=colors[k], alpha=0.35, linewidth=0)
        ax.plot(middle, height, color=colors[k], linewidth=1.0)
    ax.set_ylim(bottom=0)
    ax.set_yticks([])


def _dots(ax: Axes, points: Array, clusters: Array, colors: list[Any]) -> None:
    """Draw rows and an ellipse of two standard deviations around each cluster."""
    none = clusters < 0
    if none.any():
        ax.scatter(points[none, 0], points[none, 1], s=3, color=UNLABELLED, linewidths=0)
    for k in np.unique(clusters[~none]).tolist():
        own = points[clusters == k]
        ax.scatter(own[:, 0], own[:, 1], s=3, color=colors[k], linewidths=0, alpha=0.6)
        if len(own) > 2:
            lengths, turns = np.linalg.eigh(np.cov(own.T))
            width, height = 4 * np.sqrt(lengths.clip(0))
            angle = float(np.degrees(np.arctan2(turns[1, 0], turns[0, 0])))
            style: dict[str, Any] = {"fill": False, "edgecolor": colors[k], "linewidth": 1.2}
            ax.add_patch(Ellipse(tuple(own.mean(0)), width, height, angle=angle, **style))


def _projected(ax: Axes, points: Array, c: Array, extent: window.Extent, count: int) -> None:
    """Colour each place by the component that most samples have there; sparse places stay white."""
    edges = [np.linspace(*limits, CELLS + 1) for limits in (extent[:2], extent[2:])]
    places = [points[c == k] for k in range(count)]
    mass = np.stack(
        [gaussian_filter(np.histogramdd(own, edges)[0], 1.2) for own in places]  # type: ignore[arg-type]
    )
    total = mass.sum(0)
    ranked = np.sort(total.ravel())[::-1]
    level = ranked[np.searchsorted(ranked.cumsum(), CORE * ranked.sum()).clip(0, total.size - 1)]
    picture = np.array([tint(color, 0.45) for color in component_colors(count)])[mass.argmax(0)]
    picture[total < level] = 1.0
    shown = picture.swapaxes(0, 1)
    ax.imshow(shown, origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
