"""One training step of a plain pair as one compiled graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, fx
from torch.func import functional_call
from torch.optim import Optimizer

from pyro_vmonf._utils.contexts import local_seed, training
from pyro_vmonf._utils.graphs import captured, compiled
from pyro_vmonf._utils.processes import several_processes
from pyro_vmonf.program import unregistered
from pyro_vmonf.terms import Term
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.flat_adam import FlatAdam
from pyro_vmonf.training.lanes import is_watched
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.streams import Streams, kept

MEASURED_CALLS = 15


class NotCaptured(RuntimeError):
    """The step runs from Python, for the reason that the error names."""


class StepGraph:
    r"""The terms of the ELBO, their gradient and the step of Adam, for batches of one shape.

    State, rows, temperature, rates and the weights of the guide's terms are inputs, so that
    schedules go on. Everything that a step moves is an output: the parameters, the moments, and
    what the forward pass counts. A step that is not finite returns all of them as they were. With
    another optimiser the gradients are the outputs, and it moves the parameters.

    Arguments:
        objective: of the run, on its direct road.
        parameters: of the optimiser.
        batch: the first batch.
        optimizer: of the run.
        clip_norm: the largest norm of the gradient.
        waits: the host reads what each step returns.
        worth: function from a graph to whether it is compiled.

    Raises:
        NotCaptured: if the step cannot be compiled, is not worth it, or has other values than the
            objective.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Sequence[Tensor],
        batch: Arguments,
        optimizer: Optimizer,
        clip_norm: float,
        waits: bool = True,
        worth: Callable[[fx.GraphModule], bool] = lambda graph: True,
    ) -> None:
        _check(objective, parameters)
        self.objective = objective
        start = time.perf_counter()
        # Frozen parameters stay constants: a forward pass leaves those of a frozen part alone.
        free = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        state = {**free, **dict(objective.named_buffers())}
        self.names, self.state = list(state), list(state.values())
        own = {id(parameter) for parameter in parameters}
        self.trained = [name for name, value in state.items() if id(value) in own]
        self.terms = [part for part in objective.guide.modules() if isinstance(part, Term)]
        self.rows = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        self.fixed = {name: value for name, value in batch.items() if name not in self.rows}
        self.kinds = {name: (value.shape, value.dtype) for name, value in self.rows.items()}
        self.keys: list[str] = []
        self.given: list[str] = []  # names of what has a gradient
        self.moved: list[str] = []  # names of what the forward pass changes
        self.current: list[float] | None = None  # weights of the terms, and as a tensor
        self.weights = torch.zeros(0)
        self.adam: FlatAdam | None = None
        # Checks of data would become a part of the graph.
        unchecked = pyro.validation_enabled(False)
        with training(objective), local_seed(0), unregistered(), unchecked:
            try:
                self._find_moved(self._inputs(batch))
                self.parameters = [self._of(name) for name in self.given]
                self.counted = [self._of(name) for name in self.moved]
                if self.parameters and not FlatAdam.refuses(optimizer, self.parameters):
                    self.adam = FlatAdam(optimizer, self.parameters, clip_norm, waits)
                inputs = [value.detach() for value in self._inputs(batch)]
                self.graph = captured(self._step, inputs)
                if not worth(self.graph):
                    raise NotCaptured("it would take longer than the steps to come")
                self.function = compiled(self.graph, inputs)
            except NotCaptured:
                raise
            except Exception as error:  # of the compiler, which has many
                said = str(error).strip().partition("\n")[0]
                raise NotCaptured(f"{type(error).__name__}: {said}") from error
            reason = self.difference(batch)
            self.settings = _settings(objective)
        if reason:
            raise NotCaptured(reason)
        self.seconds = time.perf_counter() - start

    def takes(self, batch: Arguments) -> bool:
        """Return whether a batch has the shape of the first one, and Adam one number of steps."""
        even = self.adam is None or self.adam.even
        return (
            even
            and batch.keys() == self.rows.keys() | self.fixed.keys()
            and all(
                isinstance(value, Tensor) and self.kinds[name] == (value.shape, value.dtype)
                if name in self.kinds
                else value == self.fixed[name]
                for name, value in batch.items()
            )
        )

    def changed(self) -> bool:
        """Return whether a part or a setting, which the graph has as it was, is another one now."""
        replaced = self.adam is not None and self.adam.changed()
        return replaced or any(_values(own, names) != kept for own, names, kept in self.settings)

    @torch.no_grad()
    def __call__(self, batch: Arguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the terms per row in the order of ``keys``, the step, and new ``counted``.

        The step is what :meth:`FlatAdam.step` returns, with two flags in place of the norm: loss
        and gradient are finite. With another optimiser it is the gradients of ``parameters``.
        """
        terms, *others = self.function(*self._inputs(batch))
        count = len(others) - len(self.moved)
        return terms, others[:count], others[count:]

    def named(self, terms: Tensor) -> dict[str, Tensor]:
        """Return the terms by name."""
        return dict(zip(self.keys, terms.unbind(), strict=True))

    @torch.no_grad()
    def count_(self, values: list[Tensor]) -> None:
        """Set what the forward pass moves."""
        if values:
            torch._foreach_copy_(self.counted, values)

    def before(self, parameters: Tensor) -> Callable[[], dict[Tensor, Tensor]]:
        """Return a function to what a step moves, and its values before the step.

        Arguments:
            parameters: their vector before the step.
        """
        counts = [value.detach().clone() for value in self.counted]

        def values() -> dict[Tensor, Tensor]:
            own = [] if self.adam is None else self.adam.split(parameters)
            return dict(zip([*self.parameters, *self.counted], [*own, *counts], strict=True))

        return values

    def difference(self, batch: Arguments) -> str:
        """Return how the graph differs from the objective on a batch; empty if it does not."""
        with training(self.objective), local_seed(0), unregistered():
            terms, *others = self._step(*self._inputs(batch))
        with local_seed(0), torch.no_grad():
            found, *theirs = self.function(*self._inputs(batch))
        if self.adam is not None:  # a gradient of zero but for rounding may move either way
            others[0] = self.adam.moved(theirs[3], theirs[1], theirs[2], *self.adam.inputs()[2:])
        rounding = 1e3 * torch.finfo(terms.dtype).eps
        for mine, other in zip([terms, *others], [found, *theirs], strict=True):
            scale = float(mine.abs().amax()) if mine.numel() else 0.0
            if not torch.allclose(mine, other, rtol=0, atol=rounding * scale, equal_nan=True):
                gap = float((mine - other).abs().amax())
                return f"the compiled step differs by {gap:.2g} from the step itself"
        return ""

    def pays(self, batch: Arguments) -> bool:
        """Return whether the graph is faster than the objective and its gradient."""
        own: list[float] = []
        theirs: list[float] = []
        with training(self.objective), local_seed(0), unregistered():
            inputs = self._inputs(batch)
            for _ in range(MEASURED_CALLS):
                for times, function in ((own, self.function), (theirs, self._step)):
                    start = time.perf_counter()
                    with torch.no_grad():
                        function(*inputs)
                    if not inputs[0].is_cpu:
                        torch.accelerator.synchronize(inputs[0].device)
                    times.append(time.perf_counter() - start)
        return min(own) < min(theirs)

    def _inputs(self, batch: Arguments) -> list[Tensor]:
        x = self.rows["x"]
        current = [term.current_weight for term in self.terms]
        if current != self.current:  # to make a tensor takes as long as a small kernel
            self.current = current
            self.weights = torch.tensor(current, dtype=x.dtype).to(x.device, non_blocking=True)
        rows = (batch[name] for name in self.rows)
        moments = [] if self.adam is None else self.adam.inputs()
        return [*self.state, self.weights, *rows, *moments]

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        stacked, leaves, gradients = self._differentiated(inputs)
        found = list(gradients.values())
        moved = [leaves[name].detach() for name in self.moved]
        if self.adam is not None:
            before = [leaves[name].detach() for name in gradients]
            *new, old, norm = self.adam.step(before, found, *inputs[-4:])
            loss = stacked.detach().sum()
            flags = torch.stack([loss, loss + norm]).isfinite()
            state = [inputs[self.names.index(name)].detach() for name in self.moved]
            new, moved = (
                [torch.where(flags[1], a, b) for a, b in zip(after, start, strict=True)]
                for after, start in ((new, [old, *inputs[-4:-2]]), (moved, state))
            )
            found = [*new, old, flags.to(loss.dtype)]
        return [stacked.detach(), *found, *moved]

    def _differentiated(
        self, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms per row ``(T,)``, the state afterwards, and the gradients that exist."""
        count = len(self.names)
        state = dict(zip(self.names, inputs[:count], strict=True))
        rows = dict(zip(self.rows, inputs[count + 1 :], strict=False))
        with torch.enable_grad():
            stacked, leaves = self._forward(state, inputs[count], rows)
            wanted = [leaves[name] for name in self.trained]
            found = torch.autograd.grad(-stacked.sum(), wanted, allow_unused=True)
        pairs = zip(self.trained, found, strict=True)
        return stacked, leaves, {name: value for name, value in pairs if value is not None}

    def _forward(
        self, state: dict[str, Tensor], weights: Tensor, rows: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the terms per row ``(T,)``, and the state that they are computed from."""
        moved, trained = set(self.moved), set(self.trained)
        leaves = {
            name: (value.clone() if name in moved else value).detach()
            for name, value in state.items()
        }
        for name in trained:
            leaves[name].requires_grad_()
        before = [term.current_weight for term in self.terms]
        try:
            for term, weight in zip(self.terms, weights.unbind(), strict=True):
                term.current_weight = weight  # type: ignore[assignment]
            arguments = {**self.fixed, **rows}
            terms = functional_call(self.objective, leaves, kwargs=arguments)
        finally:
            for term, own in zip(self.terms, before, strict=True):
                term.current_weight = own
        self.keys = list(terms)
        size = self.fixed.get("size") or 1
        return torch.stack([value / size for value in terms.values()]), leaves

    def _find_moved(self, inputs: list[Tensor]) -> None:
        """Find what has a gradient, and what the forward pass changes in place."""
        self.moved = list(self.names)  # copies of everything
        # New rows, which the guide has not counted.
        copies = [value.clone() for value in inputs]
        streams = Streams(None, self.objective)
        with kept(self.objective):
            _, leaves, gradients = self._differentiated(copies)
            drawn = list(streams.state_dict())
        if drawn:
            raise NotCaptured(f"{drawn[0]} is a generator of its own")
        self.given = list(gradients)
        self.moved = [name for name, value in leaves.items() if value._version]

    def _of(self, name: str) -> Tensor:
        return self.state[self.names.index(name)]


Values = tuple[object, ...]


def _settings(objective: Objective) -> list[tuple[dict[str, Any], list[str], Values]]:
    """Return the attributes of each part, names of those that are numbers, and their values."""
    found = []
    for part in objective.modules():
        own = vars(part)
        names = [
            name
            for name, value in own.items()
            if isinstance(value, bool | int | float | str) and name[0] != "_"
        ]
        # Schedules of terms are inputs of the graph.
        names = [name for name in names if name != "current_weight"]
        found.append((own, names, _values(own, names)))
    return found


def _values(own: dict[str, Any], names: list[str]) -> Values:
    """Return the numbers of a part, its children, and which of its parameters are trained."""
    parameters = [p for p in own["_parameters"].values() if p is not None]
    return (
        *map(own.get, names),
        *map(id, own["_modules"].values()),
        *own["_forward_hooks"],
        *own["_forward_pre_hooks"],
        *map(id, parameters),
        *(parameter.requires_grad for parameter in parameters),
    )


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
