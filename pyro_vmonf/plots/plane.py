"""Points of the plane: data, clusters, samples and responsibilities; and regions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf._utils.frames import names_of
from pyro_vmonf.contracts import Pair
from pyro_vmonf.plots import window
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import UNLABELLED, component_colors, tint
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import Extent, to_numpy


@styled
def plot_data(x: Any, labels: Any = None, *, size: float = 6.0, ax: Axes | None = None) -> Axes:
    """Draw points of the plane: unlabelled ones in grey, labelled ones in colour.

    ``ax.legend()`` names the labels.

    Arguments:
        x: points ``(N, 2)``.
        labels: integers ``(N,)``, −1 for unlabelled; ``None`` for no labels.
        size: area of a dot. Beside unlabelled points, labelled ones have six times the area.
        ax: the axes; by default those of a new figure.

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
    ax = axes_or_new(ax)
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
    window.tick(ax)
    window.label_axes(ax, names_of(x))
    return ax


@styled
def plot_regions(
    vmonf: Pair,
    *,
    exact: bool = False,
    extent: Extent | None = None,
    resolution: int = 300,
    ax: Axes | None = None,
) -> Axes:
    """Colour the plane by the component that is most probable under the guide.

    Arguments:
        vmonf: the pair, with two features.
        exact: use Bayes' rule in place of the guide.
        extent: left, right, bottom and top. The default is the extent of the data in ``ax``; on
            empty axes it is that of samples of the mixture.
        resolution: grid points along each side.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_regions(vmonf, extent=(-1, 1, -2, 2), resolution=50, ax=Figure().subplots())
        >>> [float(limit) for limit in (*ax.get_xlim(), *ax.get_ylim())]
        [-1.0, 1.0, -2.0, 2.0]
    """
    window.check(vmonf.model, "plot_regions")
    ax = axes_or_new(ax)
    extent = window.choose_extent(vmonf, ax, extent)
    regions = window.regions_of(vmonf.model, vmonf.guide, extent, resolution, exact=exact)
    window.draw_regions(ax, regions, vmonf.model.num_components, extent)
    window.name_axes(ax, vmonf.model)
    window.tick(ax)
    return ax


@styled
def plot_clusters(
    vmonf: Pair, x: Any, *, exact: bool = False, size: float = 6.0, ax: Axes | None = None
) -> Axes:
    """Draw points of the plane in the colour of their most probable component.

    Arguments:
        vmonf: the pair, with two features.
        x: points ``(N, 2)``.
        exact: use Bayes' rule in place of the guide.
        size: area of a dot.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if mixture or points do not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_clusters(vmonf, torch.randn(100, 2), ax=Figure().subplots())
    """
    window.check(
        vmonf.model, "plot_clusters", "plot_data(x[:, :2], vmonf.predict(x)) draws a projection"
    )
    ax = axes_or_new(ax)
    window.check_axes(ax, vmonf.model)
    plot_data(vmonf.model.rows(x), vmonf.predict(x, exact=exact), size=size, ax=ax)
    window.name_axes(ax, vmonf.model)
    return ax


@styled
def plot_samples(
    vmonf: Pair,
    num_samples: int = 2000,
    *,
    seed: int | None = 0,
    exact: bool = False,
    extent: Extent | None = None,
    size: float = 6.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw samples in the colour of their component, over the regions (thesis Figure 5.1b).

    A dot differs in colour from its region if the guide assigns it to another component.

    Arguments:
        vmonf: the pair, with two features.
        num_samples: number of points.
        seed: seed of the samples; the global state stays.
        exact: find the regions by Bayes' rule in place of the guide.
        extent: as for :func:`plot_regions`.
        size: area of a dot.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_samples(vmonf, 100, ax=Figure().subplots())
    """
    advice = "with x, c = vmonf.sample(1000), plot_data(x[:, :2], c) draws a projection"
    window.check(vmonf.model, "plot_samples", advice)
    x, c = vmonf.sample(num_samples, seed=seed)
    ax = plot_regions(vmonf, exact=exact, extent=extent, ax=ax)
    limits = ax.get_xlim(), ax.get_ylim()
    plot_data(x, c, size=size, ax=ax)
    ax.set(xlim=limits[0], ylim=limits[1])
    return ax


@styled
def plot_responsibilities(
    vmonf: Pair, x: Any, *, exact: bool = False, size: float = 6.0, ax: Axes | None = None
) -> Axes:
    r"""Draw points in the colour of their most probable component, uncertain ones pale and large.

    The entropy is :math:`H = -\sum_c q(c|x) \log q(c|x)`. A dot has its full colour at
    :math:`H = 0`. At :math:`H = \log K` it has a fifth of its colour and four times the area.
    Uncertain points lie over the others.

    Arguments:
        vmonf: the pair, with two features.
        x: points ``(N, 2)``.
        exact: use Bayes' rule in place of the guide.
        size: area of a dot that is certain.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if mixture or points do not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_responsibilities(vmonf, torch.randn(100, 2), ax=Figure().subplots())
    """
    window.check(vmonf.model, "plot_responsibilities")
    q = vmonf.predict_proba(x, exact=exact)
    entropy = to_numpy(torch.special.entr(q).sum(-1))
    doubt = (entropy / max(math.log(q.shape[-1]), 1e-12)).clip(0, 1)
    points, best = to_numpy(vmonf.model.rows(x)), to_numpy(q.argmax(-1))
    ax = axes_or_new(ax)
    window.check_axes(ax, vmonf.model)
    for k, color in enumerate(component_colors(q.shape[-1])):
        rows = np.flatnonzero(best == k)
        rows = rows[doubt[rows].argsort(kind="stable")]
        across, up = points[rows].T
        ax.scatter(
            across,
            up,
            s=size * (1 + 3 * doubt[rows]),
            facecolors=[tint(color, 1 - 0.8 * share) for share in doubt[rows].tolist()],
            edgecolors=[color],
            linewidths=0.5,
            label=str(k),
            zorder=2,
        )
    window.name_axes(ax, vmonf.model)
    ax.set_aspect("equal")
    window.tick(ax)
    return ax
