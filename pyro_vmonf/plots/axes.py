"""The axes of a figure, and its scale."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the Axes given, or those of a new figure."""
    return plt.subplots()[1] if ax is None else ax


def points_per_unit(ax: Axes, width: float, height: float) -> float:
    """Return the points of one unit, if ``width`` by ``height`` units fit with equal aspect."""
    window = ax.get_window_extent()
    return min(window.width / width, window.height / height) / ax.figure.dpi * 72
