"""Progress bars, where somebody looks."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

SECONDS = "{desc}{percentage:3.0f}%|{bar}| {n:.0f} of at most {total:.0f} s{postfix}"


def is_watched() -> bool:
    """Return whether standard error is a terminal, or the process is the kernel of a notebook.

    Example:
        >>> is_watched() in (True, False)
        True
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__module__.startswith("ipykernel"):
        return True
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(total: float | None, enabled: bool, title: str, unit: str = "step") -> Any:
    """Return tqdm's bar for so many units, or one that shows nothing.

    Arguments:
        total: number of units.
        enabled: show it, in a terminal or a notebook; a pipe or a file stays clean.
        title: of the bar.
        unit: ``"step"`` shows the rate and the time that is left, ``"s"`` counts seconds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.auto warns where ipywidgets is missing
        from tqdm.auto import tqdm
    more = {"bar_format": SECONDS} if unit == "s" else {}
    return tqdm(
        total=total,
        disable=not (enabled and is_watched()),
        desc=f"{title}: ",
        leave=False,
        mininterval=0.2,
        unit=unit,
        dynamic_ncols=True,
        **more,
    )


@contextmanager
def parts(names: Sequence[str], title: str, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Show the parts of a piece of work that has no clock, by their names and their number.

    Arguments:
        names: of the parts, in their order.
        title: of the work.
        enabled: show it, in a terminal or a notebook.

    Yields:
        A function to call at the end of each part.

    Example:
        >>> with parts(["clusters", "densities"], "score") as done:
        ...     done()
        ...     done()
    """
    bar = progress_bar(len(names), enabled, title, "part")
    waiting = iter((*names[1:], ""))
    bar.set_description(f"{title}, {names[0]}")

    def done() -> None:
        bar.update()
        bar.set_description(f"{title}, {next(waiting)}")

    try:
        yield done
    finally:
        bar.close()


class Stages:
    """A bar over the seconds of a piece of work, which names what runs.

    Arguments:
        seconds: that the work takes at most.
        enabled: show it, in a terminal or a notebook.
        title: of the work.

    Example:
        >>> stages = Stages(60.0, False, "fit")
        >>> stages.enter("start")
        >>> stages.show({"objective": "-1.0"})
        >>> stages.close()
    """

    def __init__(self, seconds: float, enabled: bool, title: str) -> None:
        self.begun, self.seconds, self.title = time.perf_counter(), seconds, title
        self.bar = progress_bar(seconds, enabled, title, "s")

    def enter(self, name: str) -> None:
        """Name the stage that begins."""
        self.bar.set_description(f"{self.title}, {name}", refresh=False)
        self.show({})

    def show(self, values: Mapping[str, str]) -> None:
        """Move the bar to now, with some values beside it."""
        elapsed = min(time.perf_counter() - self.begun, self.seconds)
        self.bar.set_postfix(values, refresh=False)
        self.bar.update(elapsed - self.bar.n)
        self.bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()
