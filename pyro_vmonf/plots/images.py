"""Images that the components draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.contracts import Pair
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import to_numpy


@styled
def plot_component_grid(
    vmonf: Pair,
    image_shape: Sequence[int],
    per_component: int = 10,
    seed: int | None = 0,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    ax: Axes | None = None,
) -> Axes:
    """Draw samples of each component as a row of images (thesis Figure 5.4).

    Arguments:
        vmonf: the pair.
        image_shape: ``(H, W)``, or ``(C, H, W)`` with one or three channels.
        per_component: images in a row.
        seed: seed of the samples; the global state stays.
        value_range: the values of black and white.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if a row of the components and an image differ in size.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(12, 5)))
        >>> ax = plot_component_grid(vmonf, (3, 4), per_component=7, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['0', '1', '2', '3', '4']
    """
    shape = tuple(image_shape)
    event_shape = tuple(vmonf.model.event_shape)
    fits = len(shape) in (2, 3) and math.prod(shape) == math.prod(event_shape)
    channels = shape[0] if len(shape) == 3 else 1
    if not fits or channels not in (1, 3):
        raise ValueError(
            f"image_shape is {shape} but the components' rows have shape {event_shape}; expected "
            "(H, W) or (C, H, W), with 1 or 3 channels and as many numbers in all"
        )
    check_positive("per_component", per_component)
    (height, width), count = shape[-2:], vmonf.model.num_components
    with local_seed(seed), evaluating(vmonf.model), torch.no_grad():
        images = vmonf.model.components().sample((per_component,))
    low, high = value_range
    pixels = to_numpy(images).reshape(per_component, count, channels, height, width)
    pixels = ((pixels - low) / (high - low)).clip(0, 1)
    # One white pixel separates the images.
    tiles = np.pad(pixels, [(0, 0)] * 3 + [(0, 1)] * 2, constant_values=1.0)
    rows, columns = count * (height + 1), per_component * (width + 1)
    tiled = tiles.transpose(1, 3, 0, 4, 2).reshape(rows, columns, channels)
    shown = np.broadcast_to(tiled, (*tiled.shape[:2], 3))[:-1, :-1]
    ax = axes_or_new(ax)
    ax.imshow(shown, interpolation="nearest")
    ax.set_xticks([])
    middles = [k * (height + 1) + (height - 1) / 2 for k in range(count)]
    ax.set_yticks(middles, map(str, range(count)))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_ylabel("component")
    return ax
