"""The terms of a plain pair and their gradient as one function of tensors, fit for a graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vmonf._utils.contexts import evaluating, local_seed, training
from pyro_vmonf._utils.processes import several_processes
from pyro_vmonf.program import unregistered
from pyro_vmonf.terms import Term
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.lanes import is_watched
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.streams import Streams, kept


class NotCaptured(RuntimeError):
    """The step runs from Python, for the reason that the error names."""


@contextmanager
def or_not_captured() -> Iterator[None]:
    """Take an error in a block, of the compiler for example, as a reason not to compile.

    Raises:
        NotCaptured: in place of any other error.
    """
    try:
        yield
    except NotCaptured:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise NotCaptured(f"{type(error).__name__}: {said}") from error


class Gradient:
    r"""The terms of the ELBO and their gradient, for batches that have the same parts.

    State, rows, temperature and the weights of the guide's terms are inputs, so that schedules go
    on. Counts of the forward pass are an output.

    Arguments:
        objective: of the run, on its direct road.
        parameters: of the optimiser.
        batch: the first batch.

    Attributes:
        names: of the state, in the order of the inputs.
        parameters: those that have a gradient; ``given`` are their names.
        counted: what the forward pass changes; ``moved`` are its names.

    Raises:
        NotCaptured: if no graph could follow the objective.
    """

    mode: Callable[[nn.Module], AbstractContextManager[None]] = staticmethod(training)

    def __init__(
        self, objective: Objective, parameters: Sequence[Tensor], batch: Arguments
    ) -> None:
        _check(objective, parameters)
        self.objective = objective
        # Frozen parameters stay constants: a forward pass leaves those of a frozen part alone.
        free = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        state = {**free, **dict(objective.named_buffers())}
        self.names, self.state = list(state), list(state.values())
        own = {id(parameter) for parameter in parameters}
        self.trained = [name for name, value in state.items() if id(value) in own]
        self.terms = [part for part in objective.guide.modules() if isinstance(part, Term)]
        self.rows = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        self.fixed = {name: value for name, value in batch.items() if name not in self.rows}
        self.kinds = {name: (v.shape[1:], v.dtype) for name, v in self.rows.items()}
        self.keys: list[str] = []
        self.moved = list(self.names)  # copies of everything
        with self.running():
            stacked, before, leaves, gradients = self._tried()
        self.dtype = stacked.dtype
        self.given = list(gradients)
        self.moved = [  # batch normalisation moves its buffers without a new version
            name
            for name, value in leaves.items()
            if value._version or not torch.equal(value, before[name])
        ]
        self.parameters = [self.of(name, self.state) for name in self.given]
        self.counted = [self.of(name, self.state) for name in self.moved]
        self.settings = _settings(objective)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the objective as a step does, with draws of its own."""
        # Checks of data would become a part of the graph.
        unchecked = pyro.validation_enabled(False)
        with self.mode(self.objective), local_seed(0), unregistered(), unchecked, torch.no_grad():
            yield

    def takes(self, batch: Arguments) -> bool:
        """Return whether a batch has the shape of the first one, but for the number of rows."""
        return batch.keys() == self.rows.keys() | self.fixed.keys() and all(
            isinstance(value, Tensor) and self.kinds[name] == (value.shape[1:], value.dtype)
            if name in self.kinds
            else value == self.fixed[name]
            for name, value in batch.items()
        )

    def changed(self, anywhere: bool = True) -> bool:
        """Return whether a part or a setting, which a graph has as it was, is another one now.

        Arguments:
            anywhere: look at all parts; else at those of the user, which may change themselves.
        """
        settings = (s for s in self.settings if anywhere or not s[1])
        return any(_values(own, ours) != kept for own, ours, kept in settings) or any(
            is_watched(parameter) for parameter in self.parameters if anywhere
        )

    def numbers(self) -> list[float]:
        """Return the current weights of the guide's terms."""
        return [term.current_weight for term in self.terms]

    def named(self, terms: Tensor) -> dict[str, Tensor]:
        """Return the terms by name."""
        return dict(zip(self.keys, terms.unbind(), strict=True))

    def of(self, name: str, state: Sequence[Tensor]) -> Tensor:
        """Return the part of a state that has a name."""
        return state[self.names.index(name)]

    def __call__(
        self, state: Sequence[Tensor], weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the terms per row ``(T,)``, gradients of ``parameters``, and new ``counted``."""
        stacked, leaves, gradients = self._differentiated(state, weights, rows)
        moved = [leaves[name].detach() for name in self.moved]
        return stacked.detach(), list(gradients.values()), moved

    def _differentiated(
        self, state: Sequence[Tensor], weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms per row, the state afterwards, and the gradients that exist."""
        with torch.enable_grad():
            stacked, leaves = self._forward(state, weights, rows)
            wanted = [leaves[name] for name in self.trained]
            found = torch.autograd.grad(-stacked.sum(), wanted, allow_unused=True)
        pairs = zip(self.trained, found, strict=True)
        return stacked, leaves, {name: value for name, value in pairs if value is not None}

    def _forward(
        self, state: Sequence[Tensor], weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the terms per row ``(T,)``, and the state that they are computed from."""
        moved, trained = set(self.moved), set(self.trained)
        leaves = {
            name: (value.clone() if name in moved else value).detach()
            for name, value in zip(self.names, state, strict=True)
        }
        for name in trained:
            leaves[name].requires_grad_()
        before = self.numbers()
        try:
            for term, weight in zip(self.terms, weights, strict=True):
                term.current_weight = weight  # type: ignore[assignment]
            arguments = {**self.fixed, **dict(zip(self.rows, rows, strict=True))}
            terms = functional_call(self.objective, leaves, kwargs=arguments)
        finally:
            for term, own in zip(self.terms, before, strict=True):
                term.current_weight = own
        self.keys = list(terms)
        size = self.fixed.get("size") or 1
        return torch.stack([value / size for value in terms.values()]), leaves

    def _tried(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms of the first batch, the state before and after, and the gradients.

        The rows stay rows that nobody has counted.
        """
        state = [value.detach().clone() for value in self.state]
        rows = [value.clone() for value in self.rows.values()]
        weights = torch.tensor(self.numbers(), dtype=rows[0].dtype, device=rows[0].device)
        streams = Streams(None, self.objective, counts=False)
        with kept(self.objective):
            stacked, leaves, gradients = self._differentiated(state, weights.unbind(), rows)
            drawn = list(streams.state_dict())
        if drawn:
            raise NotCaptured(f"{drawn[0]} is a generator of its own")
        return stacked, dict(zip(self.names, state, strict=True)), leaves, gradients


class Value(Gradient):
    """The terms of measured rows as one function: in ``eval()``, without a gradient.

    Arguments: as for :class:`Gradient`.
    """

    mode = staticmethod(evaluating)

    def _differentiated(
        self, state: Sequence[Tensor], weights: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        return *self._forward(state, weights, rows), {}


Values = tuple[object, ...]
KINDS = (bool, int, float, str, Tensor)  # of what a function closes over
# What each module has; schedules of terms are inputs of the graph.
PRIVATE = {*vars(PyroModule()), "current_weight"} - {"training"}
MOST_ENTRIES = 50  # of a list in a list; none below


def _settings(objective: Objective) -> list[tuple[dict[str, Any], bool, Values]]:
    """Return the attributes of each part, whether it is no part of the user's, and its settings."""
    found = []
    for part in objective.modules():
        # What a part of this library, or of torch, remembers under a private name is no setting.
        ours = type(part).__module__.partition(".")[0] in ("pyro_vmonf", "torch", "pyro")
        found.append((vars(part), ours, _values(vars(part), ours)))
    return found


def _values(own: dict[str, Any], ours: bool) -> Values:
    """Return the settings of a part, its children, and which of its parameters are trained."""
    parameters = [p for p in own["_parameters"].values() if p is not None]
    return (
        *(
            (name, _value(value))
            for name, value in own.items()
            if name not in PRIVATE and not (ours and name[0] == "_")
        ),
        *map(id, own["_modules"].values()),
        *map(id, own["_buffers"].values()),
        *own["_forward_hooks"],
        *own["_forward_pre_hooks"],
        *map(id, parameters),
        *(parameter.requires_grad for parameter in parameters),
    )


def _value(value: Any, depth: int = 3) -> object:
    """Return a number as it is, and of anything else what tells it from another one.

    Arguments:
        value: the value.
        depth: of the lists and objects that are looked into.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    entries: Any = ()
    if isinstance(value, dict):
        entries = itertools.chain(*value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        entries = value
    elif not callable(value):
        entries = itertools.chain(*getattr(value, "__dict__", {}).items())
    else:
        cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        return id(value), *(v if isinstance(v, KINDS) else id(v) for v in cells)
    inner = [_value(entry, depth - 1) for entry in itertools.islice(entries, MOST_ENTRIES * depth)]
    return type(value), len(inner), *inner


def _check(objective: Objective, parameters: Sequence[Tensor]) -> None:
    """Refuse what the graph could not follow.

    Raises:
        NotCaptured: with the reason.
    """
    model: Any = objective.model
    if model.of_sequences:
        raise NotCaptured("the number of rows differs between batches of sequences")
    if model.incomplete:
        raise NotCaptured("the missing entries differ between batches")
    if not objective.direct:
        raise NotCaptured("the sum over c goes through the sites of the program")
    if several_processes():
        raise NotCaptured("several processes share the step")
    if any(is_watched(parameter) for parameter in objective.parameters()):
        raise NotCaptured("a parameter has hooks on its gradient")
    own = {id(parameter) for parameter in objective.parameters()}
    if any(id(parameter) not in own for parameter in parameters):
        raise NotCaptured("the optimizer moves a parameter that is not the pair's")
