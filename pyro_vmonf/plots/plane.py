"""Figures of data, fitted mixtures and training runs, those of the thesis among them.

Every function draws on ``ax`` and returns it; without one it opens a figure. None shows the figure,
and none changes matplotlib's settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.ticker import MaxNLocator

from pyro_vmonf import plane
from pyro_vmonf.checks import check_positive
from pyro_vmonf.history import History
from pyro_vmonf.metrics import contingency
from pyro_vmonf.palette import PALETTE, UNLABELLED, component_colors
from pyro_vmonf.plane import Extent, to_numpy
from pyro_vmonf.scopes import evaluating, local_seed
from pyro_vmonf.vmonf import VMoNF


def plot_data(x: Any, labels: Any = None, *, size: float = 6.0, ax: Axes | None = None) -> Axes:
    """Draw points of the plane, unlabelled ones grey, labelled ones coloured (and larger).

    Each label is an artist of its own, so that ``ax.legend()`` names them.

    Arguments:
        x: points ``(N, 2)``.
        labels: integers ``(N,)``, −1 for unlabelled; ``None`` for no labels at all.
        size: area of a dot; labelled ones have six times as much where others are unlabelled.
        ax: where to draw.

    Raises:
        ValueError: if the points do not have two features, or the labels do not fit them.

    Example:
        >>> x, labels = torch.randn(5, 2), torch.tensor([-1, -1, 0, -1, 2])
        >>> ax = plot_data(x, labels, ax=Figure().subplots())
        >>> [artist.get_label() for artist in ax.collections]
        ['unlabelled', '0', '2']
    """
    points = to_numpy(x)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(
            f"x has shape {points.shape}; expected points (N, 2) of the plane: select two columns, "
            "such as x[:, :2]"
        )
    classes = np.full(len(points), -1) if labels is None else to_numpy(labels)
    if classes.shape != (len(points),) or classes.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {classes.shape} and dtype {classes.dtype}; expected one integer "
            f"for each of the {len(points)} points, -1 for unlabelled"
        )
    ax = _axes(ax)
    none = classes < 0
    if none.any():
        across, up = points[none].T
        name = "data" if labels is None else "unlabelled"
        ax.scatter(across, up, s=size, color=UNLABELLED, linewidths=0, label=name)
    colors = component_colors(int(classes.max(initial=-1)) + 1)
    style = {"s": 6 * size, "edgecolors": "white"} if none.any() else {"s": size, "linewidths": 0}
    for k in np.unique(classes[~none]).tolist():
        ax.scatter(*points[classes == k].T, color=colors[k], label=str(k), **style)
    ax.set_aspect("equal")
    ax.locator_params(nbins=6)
    return ax


def plot_regions(
    vmonf: VMoNF,
    *,
    exact: bool = False,
    extent: Extent | None = None,
    resolution: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Tint the plane by the component that the guide holds most probable there.

    Arguments:
        vmonf: the pair, with two features.
        exact: by Bayes' rule, in place of the guide.
        extent: left, right, bottom and top; by default those of what ``ax`` already shows, or
            else what holds the mixture's samples.
        resolution: grid points along each side.
        ax: where to draw.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_regions(vmonf, extent=(-1, 1, -2, 2), resolution=50, ax=Figure().subplots())
        >>> [float(limit) for limit in (*ax.get_xlim(), *ax.get_ylim())]
        [-1.0, 1.0, -2.0, 2.0]
    """
    plane.check(vmonf.model, "plot_regions")
    ax = _axes(ax)
    extent = plane.choose_extent(vmonf, ax, extent)
    regions = plane.regions_of(vmonf.model, vmonf.guide, extent, resolution, exact=exact)
    plane.draw_regions(ax, regions, vmonf.model.num_components, extent)
    ax.locator_params(nbins=6)
    return ax


def plot_clusters(
    vmonf: VMoNF, x: Any, *, exact: bool = False, size: float = 6.0, ax: Axes | None = None
) -> Axes:
    """Draw points of the plane in the colour of their most probable component.

    Arguments:
        vmonf: the pair, with two features.
        x: points ``(N, 2)``.
        exact: by Bayes' rule, in place of the guide.
        size: area of a dot.
        ax: where to draw.

    Raises:
        ValueError: if mixture or points do not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_clusters(vmonf, torch.randn(100, 2), ax=Figure().subplots())
    """
    plane.check(
        vmonf.model, "plot_clusters", "plot_data(x[:, :2], vmonf.predict(x)) draws a projection"
    )
    return plot_data(x, vmonf.predict(x, exact=exact), size=size, ax=ax)


def plot_samples(
    vmonf: VMoNF,
    num_samples: int = 2000,
    *,
    seed: int | None = 0,
    exact: bool = False,
    extent: Extent | None = None,
    size: float = 6.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw samples in the colour of their component, over the regions (thesis Figure 5.1b).

    A dot whose colour is not that of the ground came from one component and is assigned to another.

    Arguments:
        vmonf: the pair, with two features.
        num_samples: how many.
        seed: seed of the samples; the global state is left alone.
        exact: regions by Bayes' rule, in place of the guide.
        extent: left, right, bottom and top; by default those of what ``ax`` already shows, or
            else what holds the mixture's samples but for the farthest 1 % on each side.
        size: area of a dot.
        ax: where to draw.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_samples(vmonf, 100, ax=Figure().subplots())
    """
    advice = "with x, c = vmonf.sample(1000), plot_data(x[:, :2], c) draws a projection"
    plane.check(vmonf.model, "plot_samples", advice)
    x, c = vmonf.sample(num_samples, seed=seed)
    ax = plot_regions(vmonf, exact=exact, extent=extent, ax=ax)
    limits = ax.get_xlim(), ax.get_ylim()
    plot_data(x, c, size=size, ax=ax)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


def plot_density(
    vmonf: VMoNF,
    *,
    extent: Extent | None = None,
    depth: float = 10.0,
    resolution: int = 200,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw log p(x) over the plane as a heat map, with contours two nats apart.

    Arguments:
        vmonf: the pair, with two features.
        extent: left, right, bottom and top; by default those of what ``ax`` already shows, or
            else what holds the mixture's samples.
        depth: nats below the largest value at which the colours end.
        resolution: grid points along each side.
        colorbar: draw the scale beside ``ax``.
        ax: where to draw.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_density(vmonf, resolution=50, ax=Figure().subplots())
    """
    plane.check(vmonf.model, "plot_density")
    ax = _axes(ax)
    extent = plane.choose_extent(vmonf, ax, extent)
    points = plane.grid(extent, resolution)
    log_prob = vmonf.log_prob(points.flatten(0, 1)).reshape(resolution, resolution)
    values = to_numpy(log_prob).astype(float)
    top = float(np.nanmax(values))
    values = values.clip(top - depth, top)
    image = ax.imshow(values, origin="lower", extent=extent, cmap="magma", interpolation="bilinear")
    levels = top - np.arange(2.0, depth, 2.0)[::-1]
    if values.min() < levels[-1]:
        across, up = to_numpy(points[0, :, 0]), to_numpy(points[:, 0, 1])
        style: dict[str, Any] = {"colors": "white", "linewidths": 0.5, "linestyles": "solid"}
        ax.contour(across, up, values, levels[levels > values.min()], alpha=0.5, **style)
    ax.locator_params(nbins=6)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="log p(x), nats", extend="min")
    return ax


def plot_component_grid(
    vmonf: VMoNF,
    image_shape: Sequence[int],
    per_component: int = 10,
    seed: int | None = 0,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw images sampled from each component, a row for each (thesis Figure 5.4).

    Arguments:
        vmonf: the pair.
        image_shape: ``(H, W)``, or ``(C, H, W)`` with one or three channels.
        per_component: images in a row.
        seed: seed of the samples; the global state is left alone.
        value_range: the values of black and of white.
        ax: where to draw.

    Raises:
        ValueError: if the components' rows do not have as many numbers as an image.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(12, 5)))
        >>> ax = plot_component_grid(vmonf, (3, 4), per_component=7, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0', '1', '2', '3', '4']
    """
    shape = tuple(image_shape)
    channels, height, width = (1, *shape) if len(shape) == 2 else (*shape, 0, 0, 0)[:3]
    event_shape = tuple(vmonf.model.event_shape)
    fits = len(shape) in (2, 3) and math.prod(shape) == math.prod(event_shape)
    if not fits or channels not in (1, 3):
        raise ValueError(
            f"image_shape is {shape} but the components' rows have shape {event_shape}; expected "
            "(H, W) or (C, H, W), with 1 or 3 channels and as many numbers in all"
        )
    check_positive("per_component", per_component)
    count = vmonf.model.num_components
    with local_seed(seed), evaluating(vmonf), torch.no_grad():
        images = vmonf.model.components().sample((per_component,))
    low, high = value_range
    pixels = to_numpy(images).reshape(per_component, count, channels, height, width)
    pixels = ((pixels - low) / (high - low)).clip(0, 1)
    # One pixel of white between the images.
    tiles = np.pad(pixels, [(0, 0)] * 3 + [(0, 1)] * 2, constant_values=1.0)
    tiled = tiles.transpose(1, 3, 0, 4, 2).reshape(
        count * (height + 1), per_component * (width + 1), channels
    )
    shown = np.broadcast_to(tiled, (*tiled.shape[:2], 3))[:-1, :-1]
    ax = _axes(ax)
    ax.imshow(shown, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks(
        [k * (height + 1) + (height - 1) / 2 for k in range(count)], map(str, range(count))
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("component")
    return ax


def plot_history(history: History, *, ax: Axes | None = None) -> Axes:
    """Draw the ELBO per row over the epochs, and the temperature on an axis at the right.

    The first tenth of the run does not set the scale: it may begin far below the axis.

    Arguments:
        history: what ``fit`` returned.
        ax: where to draw.

    Example:
        >>> history = History(epoch=[0, 1], elbo=[-2.0, -1.0], temperature=[1.0, 0.9])
        >>> ax = plot_history(history, ax=Figure().subplots())
        >>> ax.get_ylabel()
        'ELBO, nats per row'
    """
    ax = _axes(ax)
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
        ax.set_title(f"{history.rejected} steps were not finite and were rolled back")
    if len(set(history.temperature)) > 1:
        right = ax.twinx()
        lines += right.plot(
            history.epoch, history.temperature, color=UNLABELLED, ls="--", label="temperature"
        )
        right.set_ylabel("temperature")
        right.set_ylim(0, 1.05 * max(history.temperature))
        ax.figure.sca(ax)
    ax.legend(handles=lines, loc="center right")
    return ax


def plot_terms(history: History, *, ax: Axes | None = None) -> Axes:
    """Draw what the ELBO is the sum of, over the epochs, but for what is zero throughout.

    Arguments:
        history: what ``fit`` returned.
        ax: where to draw.

    Example:
        >>> terms = {"log_likelihood": [-2.0, -1.0], "entropy": [1.6, 1.2]}
        >>> ax = plot_terms(History(epoch=[0, 1], terms=terms), ax=Figure().subplots())
        >>> [line.get_label() for line in ax.get_lines()][1:]
        ['entropy', 'log likelihood']
    """
    ax = _axes(ax)
    ax.axhline(0.0, color=UNLABELLED, linewidth=0.8)
    names = sorted(name for name, values in history.terms.items() if any(values))
    for color, name in zip(component_colors(len(names)), names, strict=True):
        ax.plot(history.epoch, history.terms[name], color=color, label=name.replace("_", " "))
    ax.set_ylabel("nats per row")
    _epoch_axis(ax, history)
    if names:  # above the axes, where it covers no line
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return ax


def plot_contingency(
    labels: Any, clusters: Any, *, normalize: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw how the labels (rows) fall into clusters (columns), as in thesis Table 5.1.

    Arguments:
        labels: integers ``(N,)`` of at least 0.
        clusters: integers ``(N,)`` of at least 0.
        normalize: divide each row by its sum, or show the counts.
        ax: where to draw.

    Example:
        >>> ax = plot_contingency([0, 0, 1], [1, 1, 0], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts]
        ['0.00', '1.00', '1.00', '0.00']
    """
    counts = to_numpy(contingency(labels, clusters))
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    ax = _axes(ax)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{share:.2f}" if normalize else str(counts[row, column])
        color = "white" if share > 0.6 else "black"
        ax.text(column, row, text, ha="center", va="center", color=color)
    ax.set_xticks(range(shares.shape[1]))
    ax.set_yticks(range(shares.shape[0]))
    ax.set(xlabel="cluster", ylabel="label")
    return ax


def _epoch_axis(ax: Axes, history: History) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if history.epoch and history.epoch[0] < 0:
        ax.axvspan(history.epoch[0], -0.5, color="0.92", zorder=-1)
        style = {"rotation": 90, "ha": "center", "va": "bottom", "color": "0.4"}
        middle = (history.epoch[0] - 0.5) / 2
        ax.text(middle, 0.03, "pretraining", style, transform=ax.get_xaxis_transform())


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax
