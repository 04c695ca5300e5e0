"""Objects keep the arguments of their constructors, and show them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vmonf._utils.plain import plain

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
LARGEST_LIST = 10  # numbers of a tensor that are shown one by one


def arguments_of(thing: Any, *, always: Sequence[str] = ()) -> str:
    """Return the constructor's arguments as ``name=value``, but for those at their default.

    Modules are left out, since they are shown below the one that holds them.

    Arguments:
        thing: any object that keeps its arguments under their names.
        always: arguments that are shown also where they have their default.

    Example:
        >>> from pyro_vmonf.transforms import PReLU
        >>> arguments_of(PReLU(2, batch_shape=(5,)))
        'features=2, batch_shape=(5,)'
    """
    # Not getattr: a Pyro module would register what it is asked for.
    held = {**vars(thing).get("_buffers", {}), **vars(thing)}
    shown = []
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        value = held.get(name)
        if value is None or isinstance(value, nn.Module):
            continue
        text = _text(value)
        if name in always or text != _text(parameter.default):
            shown.append(f"{name}={text}")
    return ", ".join(shown)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() > LARGEST_LIST:
            return f"tensor of shape {tuple(value.shape)}"
        numbers = value.tolist()
        return repr(_rounded(numbers) if value.is_floating_point() else numbers)
    if isinstance(value, torch.Size):
        return repr(tuple(value))
    name = getattr(value, "__name__", None)
    return name if callable(value) and name else repr(value)


def _rounded(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_rounded(number) for number in numbers]
    return float(f"{numbers:.4g}")


class Recorded:
    """A class that keeps the arguments of its constructor under their names.

    The constructor runs first, with Python's own numbers in place of NumPy's. The plain arguments
    that it leaves out become attributes afterwards: numbers, strings, ``None``, and sequences of
    these as tuples. A class keeps tensors, modules and functions itself, because their place
    decides how they move and where they are saved.

    A constructor may end in ``**options: Unpack[...]`` and pass the options on to its base class.
    Its signature then shows the keyword arguments of the base class in their place.

    Example:
        >>> class Grid(Recorded):
        ...     def __init__(self, width: int, *, sizes: Sequence[int] = (1, 2)) -> None:
        ...         self.area = width**2
        >>> grid = Grid(3, sizes=[4])
        >>> grid.width, grid.sizes
        (3, (4,))
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        init = vars(cls).get("__init__")
        if inspect.isfunction(init):
            cls.__init__ = _recording(cls, init)  # type: ignore[method-assign]


def _recording(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor that calls ``init`` and then records its arguments."""
    own = inspect.signature(init)
    shown = _with_options(cls, own)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if shown is not own:
            try:
                shown.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{init.__qualname__}() {error}") from None
        args, kwargs = plain((args, kwargs), arrays=False)
        try:
            given = own.bind(self, *args, **kwargs)
        except TypeError:
            return init(self, *args, **kwargs)  # raises the error of Python itself
        given.apply_defaults()
        names = [n for n, p in own.parameters.items() if p.kind not in VARIABLE][1:]
        # The outermost call comes first: a base class records what the subclass was called with.
        outermost = "_given" not in vars(self)
        calls = vars(self).setdefault("_given", {})
        for name in names:
            calls.setdefault(name, given.arguments[name])
        init(self, *args, **kwargs)
        for name in names:
            value = _plain(calls[name])
            if value is not NotPlain and not _holds(self, name):
                setattr(self, name, value)
        if outermost:
            del vars(self)["_given"]

    __init__.__signature__ = shown  # type: ignore[attr-defined]
    return __init__


def _with_options(cls: type, own: inspect.Signature) -> inspect.Signature:
    """Return a signature in which the base class's arguments stand for typed ``**options``."""
    last = list(own.parameters.values())[-1]
    if last.kind is not last.VAR_KEYWORD or "Unpack[" not in str(last.annotation):
        return own
    base = inspect.signature(super(cls, cls).__init__)  # type: ignore[arg-type]
    passed = [p for p in base.parameters.values() if p.kind is p.KEYWORD_ONLY]
    kept = [p for p in own.parameters.values() if p is not last]
    return own.replace(parameters=kept + [p for p in passed if p.name not in own.parameters])


def _holds(thing: Any, name: str) -> bool:
    # Not hasattr: a Pyro module would register what it is asked for.
    held = vars(thing)
    kinds = ("_parameters", "_buffers", "_modules")
    return name in held or hasattr(type(thing), name) or any(name in held.get(k, ()) for k in kinds)


class NotPlain:
    """Stands for a value that is not recorded."""


def _plain(value: Any) -> Any:
    """Return plain data with sequences as tuples, or ``NotPlain``; a tensor () is a number."""
    is_number = isinstance(value, Tensor) and not (value.dim() or value.requires_grad)
    if is_number or isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, float, str, torch.Size)):
        return value
    if isinstance(value, (list, tuple, range)):
        items = tuple(_plain(item) for item in value)
        return NotPlain if NotPlain in items else items
    return NotPlain


class ShownModule(Recorded, nn.Module):
    """A module whose ``repr`` has its arguments."""

    def extra_repr(self) -> str:
        return arguments_of(self)


class ShownDistribution(TorchDistribution):
    """A distribution whose ``repr`` has its shapes, and its components where no shape has them."""

    def __repr__(self) -> str:
        shapes = f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}"
        components = getattr(self, "components", None)
        if components is not None:
            shapes = f"components={components.batch_shape[-1]}, {shapes}"
        return f"{type(self).__name__}({shapes})"
