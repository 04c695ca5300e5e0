"""Tables of shares as heat maps with their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pyro_vmonf.plots.axes import points_per_unit
from pyro_vmonf.plots.window import Array


def draw_table(ax: Axes, shares: Array, texts: Sequence[Sequence[str]]) -> None:
    """Draw a table of numbers from 0 to 1, with a text in each cell."""
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # A digit is about two thirds of the font size wide; a text stays inside its cell.
    longest = max(len(str(text)) for row in texts for text in row)
    cell = points_per_unit(ax, shares.shape[1], shares.shape[0])
    size = min(cell / (0.75 * max(longest, 3)), 10.0)
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.6 else "black"
        style = {"ha": "center", "va": "center", "color": color, "fontsize": size}
        ax.text(column, row, texts[row][column], style)
    ax.set_xticks(range(shares.shape[1]))
    ax.set_yticks(range(shares.shape[0]))


def outline(ax: Axes, cells: Iterable[tuple[int, int]]) -> None:
    """Draw a frame around cells ``(row, column)``."""
    for row, column in cells:
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#EE3377", linewidth=2))
