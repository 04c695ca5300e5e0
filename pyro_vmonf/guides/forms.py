"""Short forms of guides."""

from __future__ import annotations

from typing import Any

from pyro_vmonf.guides.base import BoundGuide
from pyro_vmonf.guides.exact import MarginalGuide
from pyro_vmonf.guides.programs import PyroGuide


def as_guide(guide: Any) -> BoundGuide:
    """Return the guide that a user's form stands for.

    Arguments:
        guide: a guide of this library, which comes back itself; any other Pyro program; a list of
            both; ``None`` to sum c out in the model.

    Raises:
        TypeError: if it is no program.
        ValueError: if the list is empty.
    """
    if guide is None:
        return MarginalGuide()
    if isinstance(guide, BoundGuide):
        return guide
    if isinstance(guide, list | tuple):
        if not guide:
            raise ValueError("the list of guides is empty; pass None to sum c out in the model")
        return as_guide(guide[0]) if len(guide) == 1 else PyroGuide(guide)
    if isinstance(guide, type) or not callable(guide):
        kind = guide.__name__ if isinstance(guide, type) else type(guide).__name__
        raise TypeError(
            f"guide is {kind}; expected a Pyro program, such as a SoftmaxGuide of a network, an "
            "autoguide or a function, a list of them, or None"
        )
    return PyroGuide([guide])
