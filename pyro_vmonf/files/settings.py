"""The plain arguments of the parts of a pair, which its state does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_vmonf.files.description import arguments_of, parts
from pyro_vmonf.terms import Term

PLAIN = (bool, int, float, str, type(None))
Settings = dict[str, dict[str, Any]]


def settings_of(module: nn.Module, terms: bool = True) -> Settings:
    """Return the numbers and texts that each part of the library was built with, by its name.

    Arguments:
        module: the pair.
        terms: those of the guide's terms too.
    """
    found: Settings = {}
    for name, part in module.named_modules():
        kind = type(part)
        if parts().get(kind.__name__) is not kind or (isinstance(part, Term) and not terms):
            continue
        own = {key: getattr(part, key, None) for key in arguments_of(kind)}
        plain = {key: value for key, value in own.items() if isinstance(value, PLAIN)}
        found[name] = {"part": kind.__name__, **plain}
    return found


def difference(mine: Settings, theirs: Any) -> str:
    """Return the first setting that differs from those of a file; empty if none does.

    Raises:
        ValueError: if those of the file are no settings.
    """
    if not isinstance(theirs, Mapping) or not all(
        isinstance(own, Mapping) and all(isinstance(v, PLAIN) for v in own.values())
        for own in theirs.values()
    ):
        raise ValueError("its 'settings' are no settings of parts")
    for name, own in mine.items():
        other = theirs.get(name, {})
        for key in own.keys() & other.keys():
            if own[key] != other[key]:
                return f"{name or 'it'} has {key}={own[key]!r} and the file has {other[key]!r}"
    return ""
