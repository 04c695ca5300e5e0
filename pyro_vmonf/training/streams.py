"""Generators and counters outside of the pair, which a run draws from or counts with."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_vmonf.terms import Term

LONGEST = 1000  # items of a list or dictionary that is looked through
MOST = 10_000  # numbers of an array or list that is kept
DEEPEST = 20  # attributes on the way to what is looked for
_LEAVES = (
    *(Tensor, np.ndarray, np.generic, torch.Size, torch.dtype, torch.device),
    *(int, float, str, bytes, type, types.ModuleType, type(None)),
)
_FOREIGN = {"builtins", "abc", "typing", "enum"}
# The parameters, buffers and hooks of every module, which draw from nothing of their own.
_OF_MODULES = frozenset(vars(nn.Module())) - {"_modules"}


@functools.cache
def _generators() -> tuple[type, ...]:
    """Return the kinds of generators; those of NumPy are imported when they are asked for."""
    return torch.Generator, np.random.Generator, np.random.RandomState, random.Random


class _Cell(NamedTuple):
    """One state outside of the pair: how it is read and how it is set."""

    get: Callable[[], Any]
    put: Callable[[Any], None]


class Streams:
    """The generators and counters that objects of a user hold, such as a sampler or a term.

    Generators of torch, NumPy and Python count, also the global ones of NumPy and Python. The
    numbers, tensors and arrays among the attributes of samplers, data sets, schedules and the
    functions of terms count too. The state holds what moves in the run.

    Arguments:
        loader: a loader or data set.
        pair: model and guide.
        schedule: of the temperature.
        counts: look for numbers as well, and not for generators alone.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = torch.utils.data.RandomSampler(range(9), generator=generator)
        >>> streams = Streams(torch.utils.data.DataLoader(range(9), sampler=sampler))
        >>> streams.state_dict()
        {}
        >>> _ = torch.rand(1, generator=generator)
        >>> list(streams.state_dict())
        ['loader.sampler.generator']
    """

    def __init__(
        self,
        loader: Any = None,
        pair: nn.Module | None = None,
        schedule: Any = None,
        counts: bool = True,
    ) -> None:
        self.loader = loader
        self.pair = pair
        self.schedule = schedule
        self.counts = counts
        self.moving: set[str] = set()
        self.first = self._states()

    def state_dict(self) -> dict[str, Any]:
        """Return the states that differ from those at the start, by path."""
        now = self._states()
        return {
            path: state
            for path, state in now.items()
            if path in self.moving or path not in self.first or state != self.first[path]
        }

    def start_dict(self) -> dict[str, Any]:
        """Return where the run found that which has moved since."""
        return {path: self.first[path] for path in self.state_dict() if path in self.first}

    def begin_(self, start: dict[str, Any]) -> None:
        """Begin where another run began, of which :meth:`start_dict` is given.

        Raises:
            ValueError: if it is of objects that are not here.
        """
        self.load_state_dict(start)
        self.first |= start

    def _check(self, state: dict[str, Any]) -> None:
        missing = sorted(state.keys() - self.cells().keys())
        if missing:
            raise ValueError(
                f"the checkpoint holds the state of {', '.join(missing)}, which this run does not "
                "have; pass a loader and a pair that are built in the same way"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put every generator and counter where :meth:`state_dict` found it.

        Raises:
            ValueError: if the state is of objects that are not here.
        """
        self._check(state)
        cells = self.cells()
        for path, value in state.items():
            cells[path].put(value)
        self.moving |= state.keys()

    def _states(self) -> dict[str, Any]:
        return {path: cell.get() for path, cell in self.cells().items()}

    def cells(self) -> dict[str, _Cell]:
        """Return what is there now, by path."""
        cells = _of_the_process()
        seen: set[int] = set()
        cells.update(_found(self.loader, "loader", self.counts, seen))
        cells.update(_found(self.schedule, "temperature", self.counts, seen))
        if self.counts and self.pair is not None:
            for name, part in self.pair.named_modules():
                if isinstance(part, Term):  # numbers of other modules are settings
                    cells.update(_of_term(part, f"pair.{name}", seen))
        cells.update(_found(self.pair, "pair", False, seen))
        return cells


def _of_term(term: Term, path: str, seen: set[int]) -> Iterator[tuple[str, _Cell]]:
    """Yield what a term remembers outside of its state."""
    for inner, part in term.named_modules():
        for name in part._non_persistent_buffers_set:
            yield f"{path}.{inner}.{name}", _of_attribute(part, name)
    for name, value in vars(term).items():
        if name not in _OF_MODULES:
            yield from _found(value, f"{path}.{name}", True, seen)


def _of_the_process() -> dict[str, _Cell]:
    """Return the global generators of Python and NumPy."""
    return {
        "random": _Cell(random.getstate, random.setstate),
        "numpy.random": _Cell(
            lambda: _plain(np.random.get_state(legacy=False)),  # noqa: NPY002
            np.random.set_state,
        ),
    }


@contextmanager
def kept(pair: nn.Module) -> Iterator[Callable[[], None]]:
    """Run a block, and put the generators that a pair holds back to where they were.

    The block may call what it is given, which does so at once.
    """
    cells = dict(_found(pair, "pair", False, set())) | _of_the_process()
    states = {path: cell.get() for path, cell in cells.items()}

    def put_back() -> None:
        for path, state in states.items():
            cells[path].put(state)

    try:
        yield put_back
    finally:
        put_back()


def _found(value: Any, path: str, counts: bool, seen: set[int]) -> Iterator[tuple[str, _Cell]]:
    """Yield the generators, and counters where they count, that can be reached from a value."""
    if isinstance(value, _LEAVES) or id(value) in seen or path.count(".") > DEEPEST:
        return
    seen.add(id(value))
    if isinstance(value, _generators()):
        yield path, _of_generator(value)
        return
    own = getattr(value, "__dict__", {})
    counts = counts and not isinstance(value, nn.Module)
    if counts and not isinstance(value, DataLoader):  # its own numbers are options
        for name, held in _attributes(value).items():
            if _is_counter(held):
                yield f"{path}.{name}", _of_attribute(value, name)
    for name, part in _parts(value, own):
        if not isinstance(part, _LEAVES):  # most of them
            yield from _found(part, f"{path}.{name}".replace("._modules", ""), counts, seen)


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, of its slots, and those that its class begins with."""
    kinds = [kind for kind in type(value).__mro__[::-1] if kind.__module__ not in _FOREIGN]
    slots = {
        name: getattr(value, name)
        for kind in kinds
        for name in vars(kind).get("__slots__", ())
        if hasattr(value, name)
    }
    first = {name: held for kind in kinds for name, held in vars(kind).items() if _is_number(held)}
    closed = _closed(value) if isinstance(value, types.FunctionType) else {}
    cells = {name: cell.cell_contents for name, cell in closed.items() if name not in slots}
    own = {**first, **slots, **getattr(value, "__dict__", {}), **cells}
    return {name: held for name, held in own.items() if not name.startswith("__")}


def _closed(function: types.FunctionType) -> dict[str, types.CellType]:
    """Return the filled cells of a function's closure by name."""
    closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    return {name: cell for name, cell in closed if _is_filled(cell)}


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float)


def _is_counter(value: Any) -> bool:
    """Return whether a value is a number, or a short array or list of numbers."""
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not (value.is_complex() or value.requires_grad)
        return plain and value.numel() <= MOST
    if isinstance(value, np.ndarray):
        return value.size <= MOST and value.dtype.kind in "biuf"
    if type(value) is list:
        return 0 < len(value) <= MOST and all(map(_is_number, value))
    return _is_number(value)


def _parts(value: Any, own: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return what a value holds, by name."""
    if isinstance(value, (list, tuple)):
        return list(enumerate(value)) if len(value) <= LONGEST else []
    if isinstance(value, dict):
        return list(value.items()) if len(value) <= LONGEST else []
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, nn.Module):
        return [(name, part) for name, part in own.items() if name not in _OF_MODULES]
    if not isinstance(value, types.FunctionType):
        return list(own.items())
    named = [(name, cell.cell_contents) for name, cell in _closed(value).items()]
    read = {name: value.__globals__.get(name) for name in value.__code__.co_names}
    return [*named, *((k, v) for k, v in read.items() if isinstance(v, _generators()))]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_attribute(value: Any, name: str) -> _Cell:
    """Return the cell of a counter: a number, or an array, as numbers in lists."""
    closed = _closed(value) if isinstance(value, types.FunctionType) else {}

    def get() -> Any:
        held = closed[name].cell_contents if name in closed else getattr(value, name, None)
        if isinstance(held, (Tensor, np.ndarray)):
            return held.tolist()
        return list(held) if isinstance(held, list) else held

    def put(state: Any) -> None:
        held = closed[name].cell_contents if name in closed else getattr(value, name, None)
        if isinstance(held, Tensor):
            state = torch.tensor(state, dtype=held.dtype, device=held.device)
        elif isinstance(held, np.ndarray):
            state = np.array(state, dtype=held.dtype)
        elif isinstance(held, list):
            state = list(state)
        if name in closed:
            closed[name].cell_contents = state
        else:
            setattr(value, name, state)

    return _Cell(get, put)


def _of_generator(value: Any) -> _Cell:
    if isinstance(value, torch.Generator):
        return _Cell(
            lambda: value.get_state().tolist(),
            lambda state: _set(value, state),
        )
    if isinstance(value, random.Random):
        return _Cell(value.getstate, value.setstate)
    if isinstance(value, np.random.RandomState):
        return _Cell(lambda: _plain(value.get_state(legacy=False)), value.set_state)
    bits: Any = value.bit_generator
    return _Cell(lambda: _plain(bits.state), lambda state: setattr(bits, "state", state))


def _set(generator: torch.Generator, state: list[int]) -> None:
    generator.set_state(torch.tensor(state, dtype=torch.uint8))


def _plain(state: Any) -> Any:
    """Return NumPy's state of a generator as numbers and lists."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state
