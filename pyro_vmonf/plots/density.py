"""Densities over the plane: that of the mixture and those of its components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.plots import window
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.window import Extent, to_numpy
from pyro_vmonf.vmonf import VMoNF


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
    window.check(vmonf.model, "plot_density")
    ax = axes_or_new(ax)
    extent = window.choose_extent(vmonf, ax, extent)
    points = window.grid(extent, resolution)
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


def plot_component_contours(
    vmonf: VMoNF,
    *,
    mass: Sequence[float] = (0.5, 0.9),
    num_samples: int = 2000,
    seed: int | None = 0,
    extent: Extent | None = None,
    resolution: int = 200,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw, for each component, the lines inside which given shares of its mass lie.

    The line of a share *m* is where :math:`p(x|c)` has its (1 − *m*)-quantile under draws of the
    component: the boundary of the smallest region with that mass. ``ax.legend()`` names the
    components.

    Arguments:
        vmonf: the pair, with two features.
        mass: the shares, in (0, 1).
        num_samples: draws of each component that the quantiles are taken of.
        seed: seed of the draws; the global state is left alone.
        extent: left, right, bottom and top; by default those of what ``ax`` already shows, or
            else what holds the mixture's samples.
        resolution: grid points along each side.
        ax: where to draw.

    Raises:
        ValueError: if the mixture does not have two features, or a share is not in (0, 1).

    References:
        Hyndman (1996), Computing and Graphing Highest Density Regions.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_component_contours(vmonf, resolution=50, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.legend().get_texts()]
        ['0', '1', '2']
    """
    window.check(vmonf.model, "plot_component_contours")
    check_positive("num_samples", num_samples)
    shares = sorted(mass, reverse=True)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"mass is {tuple(mass)}; expected shares of the mass, in (0, 1)")
    ax = axes_or_new(ax)
    extent = window.choose_extent(vmonf, ax, extent)
    with local_seed(seed), evaluating(vmonf), torch.no_grad():
        components = vmonf.model.components()
        drawn = components.log_prob(components.sample((num_samples,)))
    levels = np.quantile(to_numpy(drawn), [1 - share for share in shares], axis=0)
    points = window.grid(extent, resolution)
    log_prob = vmonf.component_log_prob(points.flatten(0, 1))
    values = to_numpy(log_prob).reshape(resolution, resolution, -1)
    across, up = to_numpy(points[0, :, 0]), to_numpy(points[:, 0, 1])
    for k, color in enumerate(component_colors(values.shape[-1])):
        shown = values[..., k]
        inside = np.unique(levels[(levels[:, k] > shown.min()) & (levels[:, k] < shown.max()), k])
        if len(inside):  # of a component outside the extent there is nothing to see
            ax.contour(across, up, shown, inside, colors=[color], linewidths=1.5)
        ax.plot([], [], color=color, linewidth=1.5, label=str(k))
    left, right, bottom, top = extent
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    ax.locator_params(nbins=6)
    return ax
