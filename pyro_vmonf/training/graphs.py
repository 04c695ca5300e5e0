"""The gradient of a training step as one compiled graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.graphs import Shapes, captured, compiled
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.gradients import Gradient, NotCaptured
from pyro_vmonf.training.objective import first_rows

MEASURED_CALLS = 15
Worth = Callable[[fx.GraphModule], bool]


class StepGraph:
    """The terms of a batch and their gradient as one graph; the optimiser moves the parameters.

    Arguments:
        gradient: of the objective.
        batch: the first batch.
        worth: function from a graph to whether it is compiled.
        others: numbers of rows of other batches, at most as many as this one has.

    Attributes:
        lengths: numbers of rows of the batches that the graph takes.

    Raises:
        NotCaptured: if it cannot be compiled, is not worth it, or has other values than the
            objective.
    """

    steps = 1  # of one call
    place = 0  # of the rows of a batch in an input

    def __init__(
        self, gradient: Gradient, batch: Arguments, worth: Worth, others: Sequence[int] = ()
    ) -> None:
        self.gradient = gradient
        start = time.perf_counter()
        inputs = self._inputs_of(batch)
        with gradient.running():
            try:
                shapes, self.graph = self._captured(inputs, bool(others))
            except Exception:  # of an operation that knows closed lengths alone
                shapes, self.graph = self._captured(inputs, False)
            if not worth(self.graph):
                raise NotCaptured("it would take longer than the steps to come")
            self.function = compiled(self._program(), shapes.inputs)
        reason = self.difference(batch)
        if reason:
            raise NotCaptured(reason)
        self.lengths = {len(batch["x"])}
        self.lengths.update(
            length
            for length in others
            if shapes.allow(length) and not self.difference(first_rows(batch, length))
        )
        self.seconds = time.perf_counter() - start

    def takes(self, batch: Arguments) -> bool:
        """Return whether the graph is made for such a batch."""
        return len(batch["x"]) in self.lengths and self.gradient.takes(batch)

    def changed(self, anywhere: bool = True) -> bool:
        """Return whether what the graph has as it was is another now: see ``Gradient.changed``."""
        return self.gradient.changed(anywhere)

    @torch.no_grad()
    def __call__(self, batch: Arguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the terms per row in their order, the gradients, and new counts."""
        terms, *others = self.function(*self._inputs_of(batch))
        count = len(self.gradient.parameters)
        return terms, others[:count], others[count:]

    def difference(self, batch: Arguments) -> str:
        """Return how the graph differs from the objective on a batch; empty if it does not."""
        inputs = self._inputs_of(batch)
        with self.gradient.running():
            mine = self._step(*inputs)
        with local_seed(0), torch.no_grad():
            theirs = self.function(*inputs)
        rounding = 1e3 * torch.finfo(self.gradient.dtype).eps
        for one, other in zip(*self._comparable(mine, theirs, inputs), strict=True):
            finite = one.isfinite() & other.isfinite()
            same = torch.allclose(one[~finite], other[~finite], equal_nan=True)
            gaps = (one - other)[finite].abs()
            gap = float(gaps.amax()) if len(gaps) else 0.0
            if not same or gap > rounding * float(one[finite].abs().amax() if len(gaps) else 0.0):
                gap = gap if same else float("inf")
                return f"the compiled step differs by {gap:.2g} from the step itself"
        return ""

    def pays(self, batch: Arguments) -> bool:
        """Return whether a step of the graph is faster than the objective and its gradient."""
        own: list[float] = []
        theirs: list[float] = []
        inputs = self._inputs_of(batch, self.steps)
        with self.gradient.running():
            for _ in range(MEASURED_CALLS):
                for times, function, steps in (
                    (own, self.function, self.steps), (theirs, self._step, 1)
                ):  # fmt: skip
                    start = time.perf_counter()
                    with torch.no_grad():
                        function(*inputs)
                    if not inputs[0].is_cpu:
                        torch.accelerator.synchronize(inputs[0].device)
                    times.append((time.perf_counter() - start) / steps)
        return min(own) < min(theirs)

    def _inputs_of(self, batch: Arguments, steps: int = 1) -> list[Tensor]:
        """Return the inputs of the graph for so many steps on one batch; its rows are the last."""
        gradient = self.gradient
        numbers = torch.tensor(gradient.numbers(), dtype=gradient.dtype)
        rows = [batch[name] for name in gradient.rows]
        return [*gradient.state, numbers.to(rows[0].device), *rows]

    def _captured(self, inputs: list[Tensor], open: bool) -> tuple[Shapes, fx.GraphModule]:
        """Return a step as a graph, for batches of one length or of any."""
        rows = len(self.gradient.rows)
        fixed: list[int | None] = [None] * (len(inputs) - rows)
        shapes = Shapes(inputs, fixed + [self.place if open else None] * rows)
        return shapes, captured(self._step, shapes.inputs)

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        count = len(self.gradient.names)
        numbers, rows = inputs[count].unbind(), inputs[count + 1 :]
        terms, gradients, counted = self.gradient(inputs[:count], numbers, rows)
        return [terms, *gradients, *counted]

    def _program(self) -> fx.GraphModule:
        """Return what is compiled, with the inputs of a step."""
        return self.graph

    def _comparable(
        self, mine: list[Tensor], theirs: list[Tensor], inputs: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what is compared: the outputs of a step, and those of the graph."""
        count = 1 + len(self.gradient.parameters)

        def together(values: list[Tensor]) -> list[Tensor]:
            """Rounding goes by the largest numbers of the gradient, as that of its norm does."""
            gradient = [value.flatten() for value in values[1:count]]
            return [values[0], *([torch.cat(gradient)] if gradient else []), *values[count:]]

        return together(mine), together(theirs)
