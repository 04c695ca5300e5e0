"""Programs that are not of this library: functions with parameters, and Pyro's autoguides."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vmonf._utils.contexts import own_store
from pyro_vmonf.program.traces import is_plate

_owned: Any = WeakIdKeyDictionary()  # parameters that were made here, and their names


ARGUMENTS = ("x", "y", "index", "size", "sample_weight", "given")


def accepted(program: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of the arguments that a program takes.

    Example:
        >>> accepted(lambda x, size=None: x, {"x": 1, "size": 2, "index": 3})
        {'x': 1, 'size': 2}

    Raises:
        TypeError: if the program wants something else.
    """
    if isinstance(program, FunctionProgram):
        program = program.function
    called = program.forward if isinstance(program, nn.Module) else program
    taken = inspect.signature(called).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken):
        return arguments
    names = {p.name for p in taken}
    wanted = {p.name for p in taken if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    unknown = wanted - set(ARGUMENTS) - arguments.keys()
    if unknown:
        raise TypeError(
            f"the guide takes {', '.join(map(repr, sorted(unknown)))}; expected arguments of the "
            f"model: {', '.join(ARGUMENTS)}"
        )
    nothing = dict.fromkeys(wanted - arguments.keys())  # it is asked for, and there is none
    return {name: value for name, value in arguments.items() if name in names} | nothing


def drawn_sites(program: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a program on its own and return the latent sites that it draws."""
    with poutine.block():
        nodes: dict[str, Any] = poutine.trace(program).get_trace(**arguments).nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
    }


class FunctionProgram(nn.Module):
    """A Pyro function as a module that owns the parameters of its ``pyro.param`` statements.

    Two of them may use the same names: each call shows Pyro's store its own parameters.

    Arguments:
        function: the function; its parameters begin where the store has them, or where it says.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.names: list[str] = []
        self.constraints: dict[str, Any] = {}

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def prepare_(self, arguments: dict[str, Any]) -> None:
        """Run the function once and take the parameters that it declares."""
        for name, (value, constraint) in self._declared(arguments, fresh=False).items():
            of_module = isinstance(value, nn.Parameter)
            own = value if of_module else nn.Parameter(value.detach().clone())
            if not of_module:
                _owned[own] = name
            self.constraints[name] = constraint
            setattr(self, f"parameter_{len(self.names)}", own)
            self.names.append(name)

    @torch.no_grad()
    def reset_(self, arguments: dict[str, Any]) -> None:
        """Begin anew where the function says.

        Raises:
            ValueError: if it holds a module of its own.
        """
        fresh = self._declared(arguments, fresh=True)
        for name, own in self._own():
            if fresh[name][0] is own:
                raise ValueError(
                    f"the function {self.extra_repr()} holds the module of {name!r}, which it does "
                    "not draw anew: write the guide as a module with reset_parameters(), or use a "
                    "single start"
                )
            own.copy_(fresh[name][0])

    def _declared(self, arguments: dict[str, Any], fresh: bool) -> dict[str, tuple[Tensor, Any]]:
        before = pyro.get_param_store().get_state()
        with own_store():
            store = pyro.get_param_store()
            if not fresh:  # what another module owns is no start
                own = {name for name, p in before["params"].items() if p in _owned}
                for values in before.values():  # copies
                    for name in own:
                        del values[name]  # type: ignore[attr-defined]
                store.set_state(before)
            with poutine.block(), poutine.trace(param_only=True) as trace:
                self.function(**arguments)
            names = [n for n, site in trace.trace.nodes.items() if site["type"] == "param"]
            return {name: (store._params[name], store._constraints[name]) for name in names}

    def _own(self) -> Iterator[tuple[str, nn.Parameter]]:
        for i, name in enumerate(self.names):
            yield name, getattr(self, f"parameter_{i}")

    def declare_(self) -> None:
        """Put the parameters into Pyro's store, in place of others of their names."""
        store = pyro.get_param_store()
        for name, own in self._own():
            other = store._params.get(name)
            if other is not own:
                store._param_to_name.pop(other, None)  # type: ignore[arg-type]
            store._params[name] = own
            store._param_to_name[own] = name
            store._constraints[name] = self.constraints[name]

    def publish_(self) -> None:
        """Leave copies in Pyro's store, where the function looks for them on its own."""
        store = pyro.get_param_store()
        for name, own in self._own():
            store._params.pop(name, None)
            store._constraints.pop(name, None)
            constraint = self.constraints[name]
            free = own.detach().clone() if own in _owned else own
            store.setdefault(name, transform_to(constraint)(free), constraint)

    def forward(self, **arguments: Any) -> Any:
        self.declare_()
        return self.function(**arguments)


def name_in_words(part: nn.Module) -> str:
    """Return the class of a program, or the name of the function that it runs."""
    of_function = isinstance(part, FunctionProgram)
    return f"the function {part.extra_repr()}" if of_function else type(part).__name__


@contextmanager
def explained(part: nn.Module) -> Iterator[None]:
    """Say what an autoguide needs where Pyro refuses a discrete site."""
    try:
        yield
    except (NotImplementedError, ValueError, RuntimeError) as error:
        by_list = isinstance(part, AutoGuideList)  # whose members may clash
        if not isinstance(part, AutoGuide) or (type(error) is RuntimeError and not by_list):
            raise
        kind = type(part).__name__
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{kind} could not be built: {said}\nAn autoguide has no posterior for a discrete "
            f'site. Hide c, which is summed over: {kind}(poutine.block(model, hide=["c"])), and '
            "pass a guide of c beside it: guide=[SoftmaxGuide(...), ...]"
        ) from error


def check_member(member: Any) -> None:
    """Refuse a guide that is no program, or that runs the model itself.

    Raises:
        TypeError: if it is one of these.
    """
    kind = type(member).__name__
    if not callable(member):
        raise TypeError(f"a guide is a {kind}; expected a Pyro program")
    if isinstance(member, GuideMessenger):
        raise TypeError(
            f"{kind} runs the model itself, which Pyro's TraceEnum_ELBO does not support; take "
            "AutoNormal, or another autoguide without Messenger"
        )


def check_autoguide(part: AutoGuide, c: str, data: str) -> None:
    """Refuse an autoguide that has run, if it draws c or numbers the rows on its own.

    Raises:
        ValueError: if it does.
    """
    kind = type(part).__name__
    parts = [p for p in part.modules() if isinstance(p, AutoGuide)]
    drawn = {
        name
        for p in parts
        if not isinstance(p, AutoGuideList) and p.prototype_trace is not None
        for name, site in p.prototype_trace.nodes.items()
        # AutoStructured puts dependencies beside the sites
        if site.get("type") == "sample" and not site["is_observed"]
    }
    if c in drawn:
        raise ValueError(
            f"{kind} draws {c!r}, in a plate {data!r} of its own, which clashes with that of the "
            f'mixture; hide it, {kind}(poutine.block(model, hide=["{c}"])), and pass a guide of '
            "c beside it: guide=[SoftmaxGuide(...), ...]"
        )
    own = [p for p in parts if data in p._prototype_frames]
    if any(p.create_plates is None and p.master is None for p in own):
        local = ", ".join(sorted(drawn)) or "no site"
        raise ValueError(
            f"{kind} makes a plate {data!r} of its own (it draws {local}), which does not know the "
            f"order of the rows; hide c from its model, poutine.block(model, hide=[{c!r}]), and "
            "where a latent of each row remains, pass create_plates=lambda x, y=None, *, "
            f"index=None, size=None, **_: pyro.plate({data!r}, size or len(x), subsample=index, "
            "dim=-1)"
        )


def autoguides(module: nn.Module) -> list[AutoGuide]:
    """Return the autoguides in a module."""
    return [part for part in module.modules() if isinstance(part, AutoGuide)]


def models_of(module: nn.Module) -> list[Any]:
    """Return the models of the autoguides in a module; ``None`` for those of a copy."""
    return [part._model for part in autoguides(module)]


def give_models_(module: nn.Module, models: list[Any]) -> None:
    """Give the autoguides in a module the models that Pyro's copies and pickles lose."""
    for part, model in zip(autoguides(module), models, strict=False):
        if part._model is None:
            part._model = model


def reset_autoguide_(part: AutoGuide, arguments: dict[str, Any]) -> None:
    """Begin anew where the autoguide's strategy says."""
    before = dict(part.named_parameters())
    with own_store():
        for each in autoguides(part):  # itself first
            if getattr(each, "_original_model", ()) is None:  # read once, and then let go
                each._original_model = each._model  # a tuple, as Pyro keeps it
            each._setup_prototype(**arguments)
    with torch.no_grad():
        for name, fresh in list(part.named_parameters()):
            own = before[name]
            own.copy_(fresh)
            holder, _, last = name.rpartition(".")
            part.get_submodule(holder)._parameters[last] = own
