"""Comparison of two modules apart from the values of their parameters and buffers."""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type, type(...),
)  # fmt: skip

_HELD = (*_PLAIN, Tensor)  # in private attributes, what a module may compute with
_OF_MODULES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def difference(a: Any, b: Any) -> str | None:
    """Say where two objects differ, or ``None`` if they do the same to equal tensors.

    Parameters and buffers count by their shapes; whatever else is reachable counts by its value,
    functions by their code and their closures. Things that cannot be compared count as different.

    Example:
        >>> difference(nn.Linear(2, 3), nn.Linear(2, 3)) is None
        True
        >>> difference(nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh()))
        '_modules.0: ReLU and Tanh'
    """
    return _difference(a, b, "", set())


def _difference(a: Any, b: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    if a is b or (id(a), id(b)) in seen:
        return None
    seen.add((id(a), id(b)))
    where = path.removeprefix(".")
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, Tensor):
        held = path.split(".")[-2:-1] in (["_parameters"], ["_buffers"])
        if a.shape != b.shape or a.dtype != b.dtype or (not held and not torch.equal(a, b)):
            return f"{where}: tensors that differ"
        return None
    if isinstance(a, _PLAIN):
        return None if a == b else f"{where}: {a!r} and {b!r}"
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"{where}: keys {sorted(map(str, set(a) ^ set(b)))}"
        pairs: list[tuple[str, Any, Any]] = [(str(key), a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        pairs = [(str(i), one, other) for i, (one, other) in enumerate(zip(a, b, strict=True))]
    else:
        parts = _parts(a), _parts(b)
        if parts[0] is None or parts[1] is None:
            return f"{where}: a {type(a).__name__}, which cannot be compared"
        return _difference(*parts, path, seen)
    for name, one, other in pairs:
        found = _difference(one, other, f"{path}.{name}", seen)
        if found is not None:
            return found
    return None


def _parts(value: Any) -> dict[str, Any] | None:
    """Return what an object consists of, or ``None`` if nobody can say."""
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return {
            "code": value.__code__,
            "closure": cells,
            "defaults": value.__defaults__,
            "keywords": value.__kwdefaults__,
        }
    if isinstance(value, types.CodeType):
        return {"code": value.co_code, "names": value.co_names, "constants": value.co_consts}
    if isinstance(value, types.MethodType):
        return {"function": value.__func__, "self": value.__self__}
    if isinstance(value, functools.partial):
        return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
    if isinstance(value, nn.Module):
        hooks = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
        return {k: v for k, v in vars(value).items() if not k.endswith(hooks)}
    if isinstance(value, Distribution):  # without what it has computed
        kind = type(value)
        own = vars(value).items()
        return {k: v for k, v in own if not isinstance(getattr(kind, k, None), lazy_property)}
    if isinstance(value, (set, frozenset)):
        return {"entries": sorted(value, key=repr)}
    if hasattr(value, "__dict__") and not isinstance(value, types.ModuleType):
        return vars(value)
    return None


def same_now(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two modules compute the same: tensors, parts, attributes and hooks."""
    mine, theirs = _tensors(one), _tensors(other)
    return (
        mine.keys() == theirs.keys()
        and all(
            value.dtype == theirs[name].dtype
            and value.device == theirs[name].device
            and torch.equal(value, theirs[name])
            for name, value in mine.items()
        )
        and all(map(alike, one.modules(), other.modules()))
        and all(map(_alike_within, one.modules(), other.modules()))
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, those that no file holds too."""
    return dict((*module.named_parameters(), *module.named_buffers()))


def _alike_within(a: nn.Module, b: nn.Module) -> bool:
    """Return whether modules have the same attributes, plain private ones and hooks."""
    mine, theirs = vars(a), vars(b)
    for name in (mine.keys() | theirs.keys()) - _OF_MODULES:
        one, other = mine.get(name, NotImplemented), theirs.get(name, NotImplemented)
        if name[0] != "_":
            differ = one is NotImplemented or other is NotImplemented
        else:
            held = isinstance(one, _HELD) or isinstance(other, _HELD)
            held = held and not name.startswith("_pyro")
            differ = held and one is not other and difference(one, other) is not None
        if differ:
            return False
    return all(list(mine[name].values()) == list(theirs[name].values()) for name in _HOOKS)


def alike(a: nn.Module, b: nn.Module, numbers: bool = True) -> bool:
    """Return whether modules are of one class and have the same public attributes.

    Parameters, buffers and modules in them do not count; without ``numbers``, neither do tensors
    and distributions.
    """
    left_out = (nn.Module,) if numbers else (nn.Module, Tensor, Distribution)
    theirs = vars(b)
    for name, value in vars(a).items():
        if name[0] == "_" or name == "training" or isinstance(value, left_out):
            continue
        other = theirs.get(name)
        plain = isinstance(value, _PLAIN) and isinstance(other, _PLAIN)
        if value is not other and (value != other if plain else difference(value, other)):
            return False
    return type(a) is type(b)
