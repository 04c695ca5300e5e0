"""The entries of Pyro's param store: one name for each parameter, as long as its module lives."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import pyro
from pyro.nn import PyroModule
from pyro.nn.module import _is_module_local_param_enabled
from pyro.params import param_with_module_name
from pyro.poutine.runtime import am_i_wrapped, effectful
from torch import nn
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_modules: Any = WeakIdKeyDictionary()  # module: its name in the store
_parameters: Any = WeakIdKeyDictionary()  # parameter: its name in the store
_numbers: dict[str, Iterator[int]] = {}

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def unregistered() -> Iterator[None]:
    """Run a block in which parameters stay out of Pyro's store.

    Gradients flow as ever, and random parameters stay sites; only ``SVI`` would find nothing to
    train.
    """
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Return whether a block of :func:`unregistered` runs."""
    return _quiet.get()


@contextmanager
def registered() -> Iterator[None]:
    """Run a block of :func:`unregistered` in which parameters are declared after all."""
    token = _quiet.set(False)
    try:
        yield
    finally:
        _quiet.reset(token)


def recording() -> bool:
    """Return whether a Pyro program runs that wants to know of parameters."""
    return not _quiet.get() and am_i_wrapped()


def register(module: nn.Module, root: nn.Module | None = None) -> None:
    """Declare the trained parameters of a module to the Pyro program that runs, if one does.

    Each parameter has one name, ``FlowMixture_1.bank.…``: class and number of the module that
    declares it first, and its path. The entries leave the store when that module is deleted. A copy
    has names of its own.

    Arguments:
        module: what the value of the program depends on.
        root: the module that gives the names; ``module`` by default.
    """
    if not recording():
        return
    root = module if root is None else root
    wanted = {id(p) for p in module.parameters()}
    for name, parameter in _named(root):
        if id(parameter) in wanted and parameter.requires_grad:
            _declare(name, parameter)


def declares(method: Method) -> Method:
    """Let a method of a module declare all of the module's parameters before it runs."""

    @wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        register(self)
        with unregistered():
            return method(self, *args, **kwargs)

    return run  # type: ignore[return-value]


class Registered(nn.Module):
    """A module whose call declares its parameters, also in a plain Pyro function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        register(self)
        return super().__call__(*args, **kwargs)


def _named(root: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters below a module with their names in the store."""
    own = _name_of(root)
    foreign = _take_foreign(root, own)
    for path, parameter in root.named_parameters():
        if path.endswith("_unconstrained") or not isinstance(parameter, nn.Parameter):
            continue  # Pyro declares the former; the latter are draws in place of parameters
        if not any(path.startswith(f"{part}.") for part in foreign):
            yield _parameters.setdefault(parameter, f"{own}.{path}"), parameter


def _name_of(module: nn.Module) -> str:
    name: str | None = _modules.get(module)
    if name is None:
        kind = type(module).__name__
        name = f"{kind}_{next(_numbers.setdefault(kind, itertools.count(1)))}"
        _modules[module] = name
        weakref.finalize(module, _forget, f"{name}.").atexit = False
    return name


def remove_(name: str) -> None:
    """Take an entry out of Pyro's store, also where its tensor has another name beside this one."""
    store = pyro.get_param_store()
    value = store._params.pop(name)
    store._constraints.pop(name, None)
    if store._param_to_name.get(value) == name:
        del store._param_to_name[value]


def _forget(prefix: str) -> None:
    store = pyro.get_param_store()
    for name in [name for name in store.keys() if name.startswith(prefix)]:  # noqa: SIM118
        remove_(name)


def _declare(name: str, parameter: nn.Parameter) -> None:
    if _is_module_local_param_enabled():  # a statement without the store, as Pyro has it
        statement = effectful(type="param")(lambda *_, **__: parameter)
        statement(name, parameter, constraint=constraints.real, name=name)
        return
    store = pyro.get_param_store()
    if name in store and store._params[name] is not parameter:  # of a file that was read
        remove_(name)
    pyro.param(name, parameter)


def name_foreign_(root: nn.Module) -> None:
    """Give the Pyro modules of a user below a module names of their own, before they run."""
    _take_foreign(root, _name_of(root))


def _take_foreign(root: nn.Module, own: str) -> list[str]:
    """Give names to the Pyro modules of a user below a module; return their paths.

    They declare their parameters themselves, under the name from which that of their sites comes.
    One with random attributes keeps it; an entry that another module left there goes.
    """
    found: list[str] = []
    for path, part in root.named_modules():
        if not isinstance(part, PyroModule) or hasattr(part, "declares_itself"):
            continue
        found.append(path)
        if any(m._pyro_samples for m in part.modules() if isinstance(m, PyroModule)):
            _claim(part)
        elif not part._pyro_name.startswith(own):
            rename(part, f"{own}.{path}", part._pyro_context)
    return found


def rename(module: nn.Module, name: str, context: Any) -> None:
    """Give a Pyro module and those below it the names that follow from ``name``."""
    if isinstance(module, PyroModule):
        module._pyro_name = name
        module._pyro_context = context
        own = getattr(type(module), "halves", ())  # these carry the name of the module
        for key, child in module.named_children():
            path = f"{name}.{key}" if name else key
            rename(child, name if key in own else path, context)


def _claim(module: PyroModule) -> None:
    store = pyro.get_param_store()
    for name, parameter in _site_names(module):
        if name in store and store._params[name] is not parameter:
            remove_(name)


def _site_names(module: PyroModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters below a Pyro module under the names that Pyro gives them."""
    prefix = f"{module._pyro_name}." if module._pyro_name else ""
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name.removesuffix("_unconstrained"), parameter
    for key, child in module.named_children():
        if isinstance(child, PyroModule):
            yield from _site_names(child)
        else:
            for name, parameter in child.named_parameters():
                yield param_with_module_name(prefix + key, name), parameter
