"""The components of a table's mixture, whatever its number of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive, check_unconditional
from pyro_vmonf.contracts import Pair
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.density import plot_component_contours
from pyro_vmonf.plots.images import plot_component_grid
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import to_numpy

WIDEST = 3.0  # standard deviations at which the colours end


@styled
def plot_components(
    vmonf: Pair, *, num_samples: int = 2000, seed: int = 0, ax: Axes | None = None
) -> Axes:
    r"""Draw the components from samples of the mixture.

    Two features: contours of half and of 90 % of the mass of each component. Images: one row of
    samples for each component. Any other number of features: a table of the means of the
    components, in standard deviations of the mixture from its mean; the number in a cell is the
    mean in the feature's own unit.

    Arguments:
        vmonf: the pair.
        num_samples: samples of each component.
        seed: of the samples; the global state stays.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the mixture depends on a context, or the number is below one.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> ax = plot_components(VMoNF(FlowMixture(RealNVP(4, 3))), ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['0', '1', '2']
    """
    check_unconditional("plot_components", vmonf.model.context_features)
    check_positive("num_samples", num_samples)
    shape = tuple(vmonf.model.event_shape)
    if shape == (2,):
        ax = plot_component_contours(vmonf, num_samples=num_samples, seed=seed, ax=ax)
        ax.legend(title="component", loc="center left", bbox_to_anchor=(1.0, 0.5))
        return ax
    if len(shape) > 1:
        return plot_component_grid(vmonf, shape, seed=seed, ax=ax)
    return _means(vmonf, num_samples, seed, axes_or_new(ax))


def _means(vmonf: Pair, num_samples: int, seed: int, ax: Axes) -> Axes:
    """Draw the means of the components as a table."""
    count, width = vmonf.model.num_components, vmonf.model.event_shape[0]
    with local_seed(seed), evaluating(vmonf.model), torch.no_grad():
        points = vmonf.model.components().sample((num_samples,))
        share = to_numpy(vmonf.model.weights.log_mean().double().softmax(-1))
    each = to_numpy(points).astype(np.float64)  # (num_samples, K, D)
    means = each.mean(0).T
    middle = means @ share
    variance = ((each - middle) ** 2).mean(0).T @ share
    spread = np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny))
    scaled = (means - middle[:, None]) / spread[:, None]
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -WIDEST, "vmax": WIDEST, "aspect": "auto"}
    image = ax.imshow(scaled, **style)
    if count * width <= 200:
        for (row, column), value in np.ndenumerate(means):
            color = "white" if abs(scaled[row, column]) > 0.6 * WIDEST else "black"
            ax.text(
                column, row, f"{value:.3g}", color=color, ha="center", va="center", size="small"
            )
    names = vmonf.model.feature_names or [f"feature {i}" for i in range(width)]
    ax.set_yticks(range(width), [str(name) for name in names])
    ax.set_xticks(range(count), [str(c) for c in range(count)])
    for label, ink in zip(ax.get_xticklabels(), component_colors(count), strict=True):
        label.set(color=ink, fontweight="bold")
    ax.tick_params(length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xlabel("component")
    bar = ax.figure.colorbar(image, ax=ax, extend="both")
    bar.set_label("standard deviations")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return ax
