"""Densities over the plane: that of the mixture and those of its components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_number, check_positive
from pyro_vmonf.contracts import Pair
from pyro_vmonf.plots import window
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import Array, Extent, to_numpy


@styled
def plot_density(
    vmonf: Pair,
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
        extent: left, right, bottom and top. The default is the extent of the data in ``ax``; on
            empty axes it is that of samples of the mixture.
        depth: nats below the largest value at which the colours end.
        resolution: grid points along each side.
        colorbar: draw the scale beside ``ax``.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the mixture does not have two features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_density(vmonf, resolution=50, ax=Figure().subplots())
    """
    window.check(vmonf.model, "plot_density")
    check_number("depth", depth)
    ax = axes_or_new(ax)
    extent = window.choose_extent(vmonf, ax, extent)
    across, up, values = _over_grid(vmonf.log_prob, extent, resolution)
    values = values.astype(float)
    top = float(np.nanmax(values))
    values = values.clip(top - depth, top)
    image = ax.imshow(values, origin="lower", extent=extent, cmap="magma", interpolation="bilinear")
    levels = top - np.arange(2.0, depth, 2.0)[::-1]
    if len(levels) and values.min() < levels[-1]:
        style: dict[str, Any] = {"colors": "white", "linewidths": 0.5, "linestyles": "solid"}
        ax.contour(across, up, values, levels[levels > values.min()], alpha=0.5, **style)
    window.name_axes(ax, vmonf.model)
    window.tick(ax)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="log p(x), nats", extend="min")
    return ax


@styled
def plot_component_contours(
    vmonf: Pair,
    *,
    mass: Sequence[float] = (0.5, 0.9),
    num_samples: int = 2000,
    seed: int | None = 0,
    extent: Extent | None = None,
    resolution: int = 200,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw contours that hold given shares of the mass of each component.

    The contour of a share *m* is the level of :math:`p(x|c)` at its (1 − *m*)-quantile under draws
    of the component. It bounds the smallest region with that mass. ``ax.legend()`` names the
    components.

    Arguments:
        vmonf: the pair, with two features.
        mass: the shares, in (0, 1).
        num_samples: draws of each component, for the quantiles.
        seed: seed of the draws; the global state stays.
        extent, resolution, ax: as for :func:`plot_density`.

    Raises:
        ValueError: if the mixture does not have two features, or a share is not in (0, 1).

    References:
        Hyndman (1996), Computing and Graphing Highest Density Regions.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> ax = plot_component_contours(vmonf, resolution=50, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.legend().get_texts()]
        ['0', '1', '2']
    """
    window.check(vmonf.model, "plot_component_contours")
    check_positive("num_samples", num_samples)
    shares = tuple(mass)
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"mass is {shares}; expected shares of the mass, in (0, 1)")
    ax = axes_or_new(ax)
    extent = window.choose_extent(vmonf, ax, extent)
    with local_seed(seed), evaluating(vmonf.model), torch.no_grad():
        components = vmonf.model.components()
        drawn = to_numpy(components.log_prob(components.sample((num_samples,))))
    levels = np.quantile(drawn, [1 - share for share in shares], axis=0)
    across, up, values = _over_grid(vmonf.component_log_prob, extent, resolution)
    for k, color in enumerate(component_colors(values.shape[-1])):
        shown = values[..., k]
        inside = np.unique(levels[(levels[:, k] > shown.min()) & (levels[:, k] < shown.max()), k])
        if len(inside):  # a component outside the extent has no contour in it
            # Levels below zero would be dashed.
            style: dict[str, Any] = {"linewidths": 1.5, "linestyles": "solid"}
            ax.contour(across, up, shown, inside, colors=[color], **style)
        ax.plot([], [], color=color, linewidth=1.5, label=str(k))
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    window.name_axes(ax, vmonf.model)
    window.tick(ax)
    return ax


def _over_grid(
    function: Callable[[Tensor], Tensor], extent: Extent, resolution: int
) -> tuple[Array, Array, Array]:
    """Return x, y and the values ``(resolution, resolution, *)`` of a function on a grid."""
    points = window.grid(extent, resolution)
    values = to_numpy(function(points.flatten(0, 1)).unflatten(0, points.shape[:2]))
    return to_numpy(points[0, :, 0]), to_numpy(points[:, 0, 1]), values
