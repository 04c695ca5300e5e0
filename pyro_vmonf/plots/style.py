"""One style for all figures, whose fonts grow with the figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes

from pyro_vmonf.plots.palette import PALETTE

PAGE = 6.4  # inches, the width of a page
POINTS = 10.0  # of the text at that width

P = ParamSpec("P")


@contextmanager
def style(width: float = PAGE) -> Iterator[None]:
    """Draw in the style of the library for a block; the settings of matplotlib come back after it.

    Text has 10 points in a figure of the width of a page, and more in proportion in a wider one,
    so that it reads the same once the figure is shrunk to the page. Functions that draw on axes
    take the size of the axes' own labels.

    Arguments:
        width: of the figures that the block opens, in inches.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> with style(12.8):
        ...     figure, axes = plt.subplots(1, 2)
        >>> axes[0].xaxis.label.get_size(), plt.rcParams["font.size"]
        (20.0, 10.0)
        >>> plt.close(figure)
    """
    chosen: Any = settings(width)  # typed as names of settings in newer versions
    # Its own settings only: a notebook's backend, which may wake up in the block, stays as it is.
    before: Any = {name: mpl.rcParams[name] for name in chosen}
    mpl.rcParams.update(chosen)
    try:
        yield
    finally:
        mpl.rcParams.update(before)


def settings(width: float = PAGE) -> dict[str, Any]:
    """Return the settings of matplotlib in the style of the library, for a notebook or a script.

    Arguments:
        width: of the figures, in inches; text has 10 points at the width of a page, 6.4 inches.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> plt.rcParams.update(settings())  # for the whole notebook; `style` is for a block
        >>> plt.rcdefaults()
    """
    share = width / PAGE
    points, line = POINTS * share, 0.8 * share
    sizes = ("axes.labelsize", "axes.titlesize", "xtick.labelsize", "ytick.labelsize")
    return {
        "font.size": points,
        **dict.fromkeys((*sizes, "legend.fontsize", "figure.titlesize"), points),
        "axes.linewidth": line,
        "xtick.major.width": line,
        "ytick.major.width": line,
        "lines.linewidth": 1.5 * share,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=PALETTE),
        "legend.frameon": False,
        "figure.figsize": (width, 0.66 * width),
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200.0,
    }


def styled(draw: Callable[P, Axes]) -> Callable[P, Axes]:
    """Let a function that draws on ``ax`` draw in the style, with text as large as its labels."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Axes:
        given: Any = kwargs.get("ax")
        points = POINTS if given is None else given.xaxis.label.get_size()
        with style(PAGE * points / POINTS):
            return draw(*args, **kwargs)

    return drawn
