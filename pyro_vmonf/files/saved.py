"""Saved pairs: description, state and history, and how the state was set."""

from __future__ import annotations

import dataclasses
import os
import reprlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import alone
from pyro_vmonf._utils.sameness import alike
from pyro_vmonf._utils.validation import floating_buffer
from pyro_vmonf.files.archive import read, write
from pyro_vmonf.files.description import agrees, build, describe
from pyro_vmonf.files.limits import Limits, bounded
from pyro_vmonf.files.settings import difference, settings_of

KIND = "fitted mixture"


def save(vmonf: Any, path: str | os.PathLike[str]) -> None:
    """Write a pair, with the history of its last fit, to ``path``, all or nothing.

    Raises:
        ValueError: if there is no such folder, or it cannot be written to.
        OSError: if the file cannot be written; one that was there before is then untouched.
    """
    try:
        known: list[nn.Module] = []
        description: Any = {
            name: describe(getattr(vmonf, name), known) for name in ("model", "guide")
        }
    except TypeError as error:
        description = None  # the state alone, to be loaded into a built pair
        warnings.warn(f"{error}; load the file with VMoNF.load(path, into=vmonf)", stacklevel=3)
    state = vmonf.state_dict()
    content = {
        "kind": KIND,
        "description": description,
        "state": state,
        "not finite": not_finite(state),
        "frozen": [name for name, p in vmonf.named_parameters() if not p.requires_grad],
        "in eval": [name for name, part in vmonf.named_modules() if not part.training],
        "device": str(floating_buffer(vmonf).device),
        "columns": vmonf.model.feature_names,
        "settings": settings_of(vmonf, terms=False),
        "history": None if vmonf.history is None else dataclasses.asdict(vmonf.history),
    }
    changed = description and _changed(vmonf, Saved(content))
    if changed:
        content["description"] = None
        warnings.warn(
            f"{changed}, which a file does not hold; change a pair in the same way and load the "
            "file with VMoNF.load(path, into=vmonf)",
            stacklevel=3,
        )
    write(content, path)


def _changed(vmonf: Any, saved: Saved) -> str:
    """Return what makes a pair another one than a file would give back; empty if nothing does."""
    built = saved.build(type(vmonf))
    built.model.feature_names = vmonf.model.feature_names  # which a file holds beside the parts
    made, mine = (dict(pair.named_modules(remove_duplicate=False)) for pair in (built, vmonf))
    other = sorted(made.keys() ^ mine.keys()) or (
        name for name, part in mine.items() if not alike(part, made[name], False)
    )
    if changed := next(iter(other), ""):
        return f"{changed} of the pair was changed after it was built"
    ties, again = _ties(vmonf), _ties(built)
    for name, first in sorted(ties ^ again):
        what = "are one" if (name, first) in ties else "are no longer one"
        return f"{first} and {name} of the pair {what}"
    return ""


def _ties(pair: nn.Module) -> set[tuple[str, str]]:
    """Return each further name of a parameter or buffer, with its first one."""
    first: dict[int, str] = {}
    named = (pair.named_parameters, pair.named_buffers)
    values = (pair for names in named for pair in names(remove_duplicate=False))
    found = {(name, first.setdefault(id(value), name)) for name, value in values}
    return {(name, one) for name, one in found if name != one}


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors whose numbers are not all finite."""

    def is_finite(value: Tensor) -> bool:
        small = value.is_floating_point() and value.element_size() == 1  # knows no such question
        return bool((value.float() if small else value).isfinite().all())

    return [name for name, value in state.items() if not is_finite(value)]


def load(
    path: str | os.PathLike[str],
    pair: Callable[[Any, Any], Any],
    history: Callable[..., Any],
    *,
    into: Any = None,
) -> Any:
    """Return the pair that ``path`` holds, or ``into`` filled from it.

    Arguments:
        path: the file.
        pair: the class of the pair, called with model and guide.
        history: the class of its history, called with the fields.
        into: a built pair to fill.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not such a file, or does not fit ``into``, which is then as it
            was.
    """
    content, name = read(path, KIND), os.fspath(path)
    if into is None and content.get("description") is None:
        raise ValueError(
            f"{name} holds modules that are not pyro_vmonf's; build the pair and pass it: "
            "VMoNF.load(path, into=vmonf)"
        )
    try:
        saved = Saved(content)
        recorded = saved.history(history)
        made = saved.build(pair) if into is None else into
    except Exception as error:  # what a file declares can fail anywhere in a constructor
        raise ValueError(f"{name} describes no pair that could be built: {error}") from error
    try:
        saved.fill_(made, put_back=into is not None)
    except Exception as error:
        raise ValueError(f"{name} does not fit the pair: {error}") from error
    if saved.not_finite:
        warnings.warn(
            f"{name} was saved with numbers that are not finite: {', '.join(saved.not_finite)}",
            RuntimeWarning,
            stacklevel=3,
        )
    made.history = recorded
    made.model.feature_names = saved.columns
    return made


class Saved:
    """The content of a file, checked.

    Arguments:
        content: what the file holds.

    Raises:
        ValueError: if it is not what :func:`save` writes.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.state: dict[str, Tensor] = content["state"]
        wrong = not isinstance(self.state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor)
            for name, value in self.state.items()
        )
        if wrong:
            raise ValueError("its state is no dictionary of tensors")
        for key in ("not finite", "frozen", "in eval"):
            names = content.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"its {key!r} is no list of names")
        columns = content.get("columns")
        if not isinstance(columns, tuple | list | None) or not all(
            type(name) in (str, int) for name in columns or ()
        ):
            raise ValueError("its 'columns' are no names")
        self.columns = None if columns is None else tuple(columns)
        self.not_finite = not_finite(self.state)
        if self.not_finite != content.get("not finite", self.not_finite):
            raise ValueError(f"its numbers are not finite: {', '.join(self.not_finite)}")
        self.dtype = next((v.dtype for v in self.state.values() if v.is_floating_point()), None)

    def build(self, pair: Callable[[Any, Any], Any]) -> Any:
        """Return the pair that is described, with fresh numbers."""
        description = self.content["description"]
        limits = Limits(description, self.state)
        limits.check(description)
        with alone(), torch.random.fork_rng(devices=[]), bounded(limits):
            parts: list[nn.Module] = []
            made = pair(*(build(description[name], parts) for name in ("model", "guide")))
        known: list[nn.Module] = []
        for name, part in (("model", made.model), ("guide", made.guide)):
            if not agrees(describe(part, known), description[name]):
                raise ValueError(f"its {name} has arguments of another kind than it takes")
        device = torch.device(self.content.get("device", "cpu"))
        there = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
        return made.to(device=device if there else "cpu", dtype=self.dtype)

    def history(self, history: Callable[..., Any]) -> Any:
        """Return the history of the last fit, of numbers where it has numbers."""
        past = self.content["history"]
        if past is None:
            return None
        empty = history()
        for name, value in past.items():
            free = name == "choice" and is_plain_choice(value)
            if not free and not _alike(getattr(empty, name), value):
                raise ValueError(f"its history has {name}={reprlib.repr(value)}")
        return history(**past)

    def fill_(self, made: nn.Module, *, put_back: bool) -> None:
        """Give a pair the numbers, their kinds, and how they were set.

        Arguments:
            made: the pair.
            put_back: leave it as it was where the numbers do not fit.
        """
        state = made.state_dict() if put_back else {}
        before = {name: value.clone() for name, value in state.items()}
        kinds = {name: value.dtype for name, value in before.items()}
        try:
            _cast_(made, {name: value.dtype for name, value in self.state.items()})
            made.load_state_dict(self.state)
            self._check_units(made)
            own = settings_of(made, terms=False)
            if differs := difference(own, self.content.get("settings", {})):
                raise ValueError(f"{differs}; build the pair as it was")
        except Exception:
            if put_back:
                _cast_(made, kinds)
                made.load_state_dict(before)
            raise
        if "frozen" in self.content:
            for name, parameter in made.named_parameters():
                parameter.requires_grad_(name not in self.content["frozen"])
        if "in eval" in self.content:
            for name, part in made.named_modules():
                part.training = name not in self.content["in eval"]

    def _check_units(self, made: Any) -> None:
        """Refuse numbers that are finite and make no density: units and temperatures of zero."""
        temperature = made.guide.temperature
        for name, value in (("scale", made.model.standardizer.scale), ("temperature", temperature)):
            if value is not None and name not in ", ".join(self.not_finite) and (value <= 0).any():
                raise ValueError(
                    f"its {name} is {reprlib.repr(value.tolist())}, which is not above 0"
                )


def is_plain_choice(value: Any) -> bool:
    """Return whether a value is a dictionary of plain values, as ``history.choice`` is one.

    Plain are texts, numbers, and dictionaries of numbers or of lists of texts.
    """

    def is_plain(item: Any) -> bool:
        if isinstance(item, list):
            return all(isinstance(name, str) for name in item)
        return isinstance(item, (int, float))

    return isinstance(value, dict) and all(
        isinstance(key, str)
        and (
            isinstance(v, (str, int, float))
            or (isinstance(v, dict) and all(isinstance(k, str) and is_plain(v[k]) for k in v))
        )
        for key, v in value.items()
    )


def _cast_(module: nn.Module, kinds: Mapping[str, torch.dtype]) -> None:
    """Give parameters and buffers of these names their kinds of numbers."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.dtype != kinds.get(name, value.dtype):
            value.data = value.data.to(kinds[name])


def _alike(example: Any, value: Any) -> bool:
    """Return whether a value is of the kind of an example in a history."""
    if isinstance(example, dict):
        return isinstance(value, dict) and all(
            isinstance(name, str) and _alike([], numbers) for name, numbers in value.items()
        )
    if isinstance(example, list):
        is_list = isinstance(value, list)
        return is_list and all(_alike(0.0, one) for one in value if type(one) is not float)
    if isinstance(example, (str, bool)):
        return isinstance(value, type(example))
    is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return is_number or (value is None and not isinstance(example, float))
