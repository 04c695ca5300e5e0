"""Limits on what a file may ask for: no more than the numbers that it holds can fill."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pyro_vmonf import schedules
from pyro_vmonf._utils.contexts import from_file
from pyro_vmonf.files.archive import tensors_in

DEPTH = 100  # of dictionaries and lists; a part takes two
SQUARES = ("eye", "diag", "indices", "combinations")  # operations whose results are squares
SCHEDULES = frozenset(n for n, v in vars(schedules).items() if dataclasses.is_dataclass(v))


class Limits:
    """The size of what a file holds, which bounds what its description may declare.

    Arguments:
        description: of the parts.
        state: their tensors by name.
    """

    def __init__(self, description: Any, state: dict[str, Tensor]) -> None:
        held = [*state.values(), *tensors_in(description)]
        self.entries = len(held)
        self.numbers = 64 + sum(tensor.numel() for tensor in held)
        self.shapes = Counter(tensor.shape for tensor in state.values())
        self.largest = 2**22 + 32 * max((tensor.numel() for tensor in held), default=0)
        self.operations = 2**14 + 64 * self.entries
        self._nodes = 0

    def check(self, value: Any, name: str = "", depth: int = 0, *, counts: bool = True) -> None:
        """Refuse a description that the file's own numbers could not fill.

        Arguments:
            value: the description.
            name: of the argument that it is.
            depth: of the parts around it.
            counts: whether whole numbers are sizes. Those of a schedule are steps, which may be
                more.

        Raises:
            ValueError: if it nests too deep, has too many values or declares too large a number.
        """
        self._nodes += 1
        if depth > DEPTH or self._nodes > 10_000 + self.numbers:
            raise ValueError("its description nests too deep, or has more values than its state")
        if isinstance(value, dict):
            counts = counts and value.get("part") not in SCHEDULES
            for key, item in value.items():
                self.check(item, str(key)[:40], depth + 1, counts=counts)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.check(item, name, depth + 1, counts=counts)
        elif counts and isinstance(value, int) and abs(value) > self.numbers:
            raise ValueError(f"it declares {name}={value:.3g}, and holds {self.numbers} numbers")


@contextmanager
def bounded(limits: Limits) -> Iterator[None]:
    """Run a block that makes no tensor larger, and no other parameters, than a file has.

    Raises:
        ValueError: if it does.
    """
    thread, left = threading.get_ident(), Counter(limits.shapes)

    def registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or threading.get_ident() != thread:
            return
        left[parameter.shape] -= 1
        if left[parameter.shape] < 0:
            raise ValueError(
                f"it declares a {name} of shape {list(parameter.shape)}, and holds "
                f"{limits.shapes[parameter.shape]} tensors of this shape"
            )

    hook = register_module_parameter_registration_hook(registered)
    token = from_file.set(True)
    try:
        with _Counted(limits):
            yield
    finally:
        from_file.reset(token)
        hook.remove()


class _Counted(TorchFunctionMode):  # a dispatch mode imports torch's compiler, which takes seconds
    """A block in which operations are counted, and their results measured before they are made."""

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.left = limits.operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.left -= 1
        if self.left < 0:
            raise ValueError("it declares more parts than it has numbers")
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute is no larger than its tensor
            return func(*args, **kwargs)
        power = 2 if any(word in name for word in SQUARES) else 1
        if (_bound(args) * _bound(kwargs)) ** power > self.limits.largest:
            for shape in _shapes(func, args, kwargs):
                if math.prod(shape) > self.limits.largest:
                    raise ValueError(f"it declares a tensor of shape {list(shape)}")
        return func(*args, **kwargs)


def _bound(arguments: Any) -> int:
    """Return a number that no result of an operation exceeds in size; long lists are numbers."""
    if len(arguments) > 32:
        return len(arguments)
    bound = 1
    for value in arguments.values() if isinstance(arguments, dict) else arguments:
        if isinstance(value, Tensor):
            bound *= max(1, value.numel())
        elif isinstance(value, (int, float)):
            bound *= max(1, math.ceil(abs(value))) if math.isfinite(value) else 1
        elif isinstance(value, (dict, list, tuple)):
            bound *= _bound(value)
    return bound


def _shapes(func: Any, args: Any, kwargs: Any) -> list[torch.Size]:
    """Return the shapes of an operation's results, without their numbers."""

    if func is F.linear:  # a network is tried: torch's own answer imports its compiler
        return [torch.Size((*args[0].shape[:-1], args[1].shape[0]))]

    def bare(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    given = pytree.tree_leaves((args, kwargs))
    from_numbers = not any(isinstance(value, Tensor) for value in given)
    args, kwargs = pytree.tree_map(bare, (args, kwargs))
    if "device" in kwargs or from_numbers:
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        made = func(*args, **kwargs)
    except Exception as error:  # what depends on numbers fails in many ways
        if from_numbers:
            raise ValueError(f"it declares a tensor that cannot be made: {error}") from error
        return []  # a result whose size depends on numbers is no larger than the arguments
    return [value.shape for value in pytree.tree_leaves(made) if isinstance(value, Tensor)]
