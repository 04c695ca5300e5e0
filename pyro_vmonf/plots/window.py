"""A window on the plane: its extent, the points of its pixels, the regions of the components."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf._utils.frames import Names
from pyro_vmonf._utils.validation import check_positive, check_unconditional
from pyro_vmonf.contracts import Pair
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.plots.palette import component_colors, tint

Array = np.ndarray[Any, Any]
Extent = tuple[float, float, float, float]
NUMBERED = ("feature 0", "feature 1")


@torch.no_grad()
def regions_of(
    model: FlowMixture,
    guide: BoundGuide,
    extent: Extent,
    resolution: int,
    *,
    exact: bool = False,
) -> Array:
    """Return the most probable component of each point of a grid, ``(resolution, resolution)``.

    A point outside of the support of every component has none, −1.
    """
    log_posterior = model.log_posterior if exact else guide.log_posterior
    rows = model.rows(grid(extent, resolution).flatten(0, 1))
    with evaluating(model), evaluating(guide):
        best = torch.cat([log_posterior(part).argmax(-1) for part in rows.split(8192)])
        best = best.masked_fill(model.is_outside(rows), -1)
    return to_numpy(best).reshape(resolution, resolution)


def draw_regions(ax: Axes, regions: Array, count: int, extent: Extent) -> AxesImage:
    """Draw the regions of ``count`` components behind everything else."""
    return ax.imshow(
        tints(count)[regions], origin="lower", extent=extent, zorder=-1, interpolation="nearest"
    )


def tints(count: int) -> Array:
    """Return the background colours ``(count + 1, 3)`` of the regions; the last one is of none."""
    return np.array([*(tint(color) for color in component_colors(count)), (1.0, 1.0, 1.0)])


def model_of(part: Any) -> Any:
    """Return the mixture of a pair, and anything else as it is."""
    model = getattr(part, "model", None)
    return model if isinstance(model, FlowMixture) and hasattr(part, "guide") else part


def check(model: FlowMixture, name: str, advice: str = "") -> None:
    """Raise ``ValueError`` unless the mixture has two features; the message ends with advice."""
    check_unconditional(name, model.context_features)
    if tuple(model.event_shape) != (2,):
        raise ValueError(
            f"{name} draws the plane but the components have event_shape "
            f"{tuple(model.event_shape)}; " + (advice or "fit a mixture of two columns of the data")
        )


def name_axes(ax: Axes, model: FlowMixture) -> None:
    """Write the names of two features beside axes that have none."""
    label_axes(ax, model.feature_names)


def label_axes(ax: Axes, names: Names | None) -> None:
    """Write two names beside axes that have none, or only their numbers."""
    if (ax.get_xlabel(), ax.get_ylabel()) in (("", ""), NUMBERED):
        across, up = names or NUMBERED
        ax.set(xlabel=across, ylabel=up)


def check_axes(ax: Axes, model: FlowMixture) -> None:
    """Refuse axes that have the columns of the fit in another order.

    Raises:
        ValueError: if they have.
    """
    names = tuple(map(str, model.feature_names or ()))
    labels = ax.get_xlabel(), ax.get_ylabel()
    if names != labels and all(label in names for label in labels):
        raise ValueError(
            f"ax has the axes {', '.join(labels)} and the pair the columns {', '.join(names)}; "
            f"draw the data in that order: plot_data(x[{list(names)}])"
        )


def check_extent(extent: Extent) -> Extent:
    """Return the extent, and raise ``ValueError`` if it is empty."""
    ends = tuple(extent)
    if len(ends) != 4 or not (ends[0] < ends[1] and ends[2] < ends[3]):
        raise ValueError(
            f"extent is {extent}; expected (left, right, bottom, top) with left < right and "
            "bottom < top"
        )
    return extent


def widths(low: Any, high: Any) -> Any:
    """Return the widths of intervals; an empty one has a small part of its place.

    Example:
        >>> widths(np.array([0.0, 2.0, 0.0]), np.array([1e-9, 2.0, 0.0])).tolist()
        [1e-09, 2e-06, 1e-06]
    """
    width, place = np.subtract(high, low), 1e-6 * np.abs(high)
    return np.where(width > 0, width, np.where(place > 0, place, 1e-6))


def find_extent(points: Array) -> Extent:
    """Return left, right, bottom and top around most of the points ``(N, 2)``."""
    low, high = np.quantile(points, (0.01, 0.99), axis=0)
    margin = 0.2 * widths(low, high)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


def choose_extent(vmonf: Pair, ax: Axes, extent: Extent | None) -> Extent:
    """Return the extent given, the limits of axes with data, or the extent of samples.

    Raises:
        ValueError: if the axes have the columns in another order, or a scale that is not linear, as
            the grid of the picture is.
    """
    check_axes(ax, vmonf.model)
    scales = ax.get_xscale(), ax.get_yscale()
    if scales != ("linear", "linear"):
        raise ValueError(
            f"ax has the scales {', '.join(scales)}; the picture has a linear grid: pass axes with "
            "linear scales, or fit the logarithms of the columns"
        )
    if extent is not None:
        return check_extent(extent)
    if ax.has_data():
        return *ax.get_xlim(), *ax.get_ylim()
    return find_extent(to_numpy(vmonf.sample(2000, seed=0)[0]))


def tick(ax: Axes) -> None:
    """Let each linear axis choose the number of its ticks by its length."""
    for axis in (ax.xaxis, ax.yaxis):
        locator = axis.get_major_locator()
        if isinstance(locator, MaxNLocator):
            locator.set_params(nbins="auto")


def grid(extent: Extent, resolution: int) -> Tensor:
    """Return the centres ``(resolution, resolution, 2)`` of the pixels, the lowest row first."""
    check_positive("resolution", resolution)
    share = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    left, right, bottom, top = extent
    up, across = torch.meshgrid(
        bottom + (top - bottom) * share, left + (right - left) * share, indexing="ij"
    )
    return torch.stack((across, up), -1)


def to_numpy(x: Any) -> Array:
    """Return a tensor, an array or a list as a numpy array."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
