"""Several steps of Adam as one compiled graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.optim import Optimizer

from pyro_vmonf._utils.graphs import repeated
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.flat_adam import FlatAdam
from pyro_vmonf.training.gradients import Gradient, or_not_captured
from pyro_vmonf.training.graphs import StepGraph, Worth
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.unread import COUNTS, added

MOST_NUMBERS = 2_000_000  # parameters that a graph writes anew; more of them move in place
SCHEDULED = ("guide.temperature",)  # parts of the state of which each step has its own


class Moved(NamedTuple):
    """The state that steps move.

    Arguments:
        terms: of the last step, per row ``(T,)``.
        totals: of the terms over the rows of accepted steps ``(T,)``.
        values: parameters, as a vector.
        mean, square, steps: of Adam.
        counts: see :func:`~pyro_vmonf.training.unread.added`.
        counted: what the forward pass changes.
        last: vector of the parameters, and what the forward pass changes, before the last step
            whose loss was finite.
    """

    terms: Tensor
    totals: Tensor
    values: Tensor
    mean: Tensor
    square: Tensor
    steps: Tensor
    counts: Tensor
    counted: list[Tensor]
    last: list[Tensor]

    @classmethod
    def of(cls, flat: Sequence[Tensor]) -> Moved:
        """Return the state by the tensors of :meth:`flat`."""
        terms, totals, values, mean, square, steps, counts, *others = flat
        counted, last = others[: len(others) // 2], others[len(others) // 2 :]
        return cls(terms, totals, values, mean, square, steps, counts, counted, last)

    def flat(self) -> list[Tensor]:
        """Return all tensors in one list."""
        return [*self[:7], *self.counted, *self.last]


class Room(NamedTuple):
    """The batches of one length that wait.

    Arguments:
        waiting: scheduled parts of the state, and rows, of all steps in one tensor each.
        places: those of each step.
    """

    waiting: list[Tensor]
    places: list[tuple[Tensor, ...]]

    @classmethod
    def like(cls, values: Sequence[Tensor], steps: int) -> Room:
        """Return a room for the values of so many steps."""
        waiting = [value.new_zeros((steps, *value.shape)) for value in values]
        return cls(waiting, list(zip(*(value.unbind() for value in waiting), strict=True)))


class AdamGraph(StepGraph):
    r"""Several steps of Adam in one graph: a loop, whose body is one step.

    Batches wait in the graph until it runs. Rows, temperature and weights of the terms are those
    of each step. A step that is not finite moves nothing.

    Arguments:
        gradient: of the objective.
        batch: the first batch.
        worth: function from a graph to whether it is compiled.
        others: numbers of rows of other batches.
        adam: the state of the optimiser.
        steps: the most steps of one call; one of them needs no loop.

    Raises:
        NotCaptured: as for :class:`StepGraph`.
    """

    place = 1  # of the rows of a batch in an input

    def __init__(
        self,
        gradient: Gradient,
        batch: Arguments,
        worth: Worth,
        others: Sequence[int],
        adam: FlatAdam,
        steps: int,
    ) -> None:
        self.adam = adam
        self.steps = steps
        state = dict(zip(gradient.names, gradient.state, strict=True))
        self.scheduled = [name for name in SCHEDULED if name in state]
        self.current = [state[name] for name in self.scheduled]
        self.rooms: dict[int, Room] = {}
        self.numbers: list[list[float]] = []  # weights of the terms, of the steps that wait
        moving = {*gradient.given, *gradient.moved, *self.scheduled}
        self.constant = [name for name in gradient.names if name not in moving]
        self.count = 9 + 2 * len(gradient.moved)  # tensors of the state, and the number of a step
        super().__init__(gradient, batch, worth, others)

    def takes(self, batch: Arguments) -> bool:
        return self.adam.even and super().takes(batch)

    def changed(self, anywhere: bool = True) -> bool:
        return self.adam.changed() or super().changed(anywhere)

    def has_room(self, batch: Arguments) -> bool:
        """Return whether a batch can wait beside the others, which have one length."""
        return not self.numbers or self.room is self.rooms.get(len(batch["x"]))

    @property
    def full(self) -> bool:
        """``True`` if there is no place for another batch."""
        return len(self.numbers) == self.steps

    @torch.no_grad()
    def put_(self, batch: Arguments) -> None:
        """Let a batch wait, with temperature and weights of the terms as they are now."""
        own = [*self.current, *(batch[name] for name in self.gradient.rows)]
        length = len(batch["x"])
        if length not in self.rooms:
            self.rooms[length] = Room.like(own, self.steps)
        self.room = self.rooms[length]
        torch._foreach_copy_(self.room.places[len(self.numbers)], own)
        self.numbers.append(self.gradient.numbers())

    @torch.no_grad()
    def run(self, last: Sequence[Tensor], counts: Tensor) -> Moved:
        """Return the state after the steps that wait; they wait until :meth:`accept_`.

        Arguments:
            last: as in :class:`Moved`.
            counts: before the steps.
        """
        return Moved.of(self.function(*self._inputs(last, counts))[1:])

    @torch.no_grad()
    def accept_(self, moved: Moved) -> None:
        """Put parameters, optimiser and counts into a state; nothing waits any more."""
        self.adam.accept_(moved.values, moved.mean, moved.square, moved.steps)
        if moved.counted:
            torch._foreach_copy_(self.gradient.counted, moved.counted)
        self.numbers.clear()

    def _inputs(self, last: Sequence[Tensor], counts: Tensor) -> list[Tensor]:
        """Return the number of the next step and the state before it, and what stays."""
        gradient, device = self.gradient, counts.device
        state = dict(zip(gradient.names, gradient.state, strict=True))
        mean, square, steps, every, rates = self.adam.inputs()
        terms, totals = (mean.new_zeros(len(gradient.keys)) for _ in range(2))
        values, counted = self.adam.together(gradient.parameters), list(gradient.counted)
        moved = Moved(terms, totals, values, mean, square, steps, counts, counted, list(last))
        number = torch.zeros((), dtype=torch.int64, device=device)
        times = torch.full((), len(self.numbers), device=device)
        constant = [state[name] for name in self.constant]
        waiting = [*self.numbers, *self.numbers[:1] * (self.steps - len(self.numbers))]
        weights = torch.tensor(waiting, dtype=gradient.dtype).to(device, non_blocking=True)
        stays = [times, every, rates, *constant, weights, *self.room.waiting]
        return [number, *moved.flat(), *stays]

    def _inputs_of(self, batch: Arguments, steps: int = 1) -> list[Tensor]:
        for _ in range(steps):
            self.put_(batch)
        gradient = self.gradient
        last = [self.adam.together(gradient.parameters), *(v.clone() for v in gradient.counted)]
        inputs = self._inputs(last, torch.zeros(COUNTS, dtype=torch.int64, device=last[0].device))
        self.numbers.clear()
        return [value.detach() for value in inputs]

    def _step(self, *inputs: Tensor) -> list[Tensor]:
        """Return the number of the next step, and the state before it."""
        gradient, count = self.gradient, self.count
        number, before = inputs[0], Moved.of(inputs[1:count])
        _, every, rates, *others = inputs[count:]
        constant, others = others[: len(self.constant)], others[len(self.constant) :]
        weights, *now = (v.index_select(0, number.reshape(1)).squeeze(0) for v in others)
        scheduled, rows = now[: len(self.scheduled)], now[len(self.scheduled) :]
        state: dict[str, Tensor] = {
            **dict(zip(self.constant, constant, strict=True)),
            **dict(zip(gradient.given, self.adam.split(before.values), strict=True)),
            **dict(zip(gradient.moved, before.counted, strict=True)),
            **dict(zip(self.scheduled, scheduled, strict=True)),
        }
        own = [state[name] for name in gradient.names]
        terms, gradients, counted = gradient(own, weights.unbind(), rows)
        *adam, norm = self.adam.step(
            before.values, gradients, before.mean, before.square, before.steps, every, rates
        )
        loss = terms.sum()
        finite, taken = loss.isfinite(), (loss + norm).isfinite()

        def kept(flag: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
            return [torch.where(flag, a, b) for a, b in zip(new, old, strict=True)]

        batch = dict(zip(gradient.rows, rows, strict=True))
        x, weight = batch["x"], batch.get("sample_weight")
        totals, counts = added(before.totals, before.counts, terms, taken, x, weight)
        adam = kept(taken, adam, (before.values, before.mean, before.square))
        counted = kept(taken, counted, before.counted)
        last = kept(finite, (before.values, *before.counted), before.last)
        steps = before.steps + taken
        return [number + 1, terms, totals, *adam, steps, counts, *counted, *last]

    def _program(self) -> fx.GraphModule:
        return self.graph if self.steps == 1 else repeated(self.graph, self.count)

    def _comparable(
        self, mine: list[Tensor], theirs: list[Tensor], inputs: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        # A gradient of zero but for rounding may move either way.
        before, found, own = (Moved.of(v[1 : self.count]) for v in (inputs, theirs, mine))
        every, rates = inputs[self.count + 1 : self.count + 3]
        moments = (found.mean, found.square, before.steps)
        moved = self.adam.moved(before.values, *moments, every, rates)
        taken = own.steps[0] > before.steps[0]
        values = torch.where(taken, moved, before.values)
        return [mine[0], *own._replace(values=values).flat()], theirs


def step_graph(
    objective: Objective,
    parameters: Sequence[Tensor],
    batch: Arguments,
    optimizer: Optimizer,
    clip_norm: float,
    steps: int,
    worth: Worth,
    others: Sequence[int] = (),
) -> StepGraph:
    """Return the graph of the steps of a run.

    Arguments:
        objective: of the run, on its direct road.
        parameters: of the optimiser.
        batch: the first batch.
        optimizer: of the run.
        clip_norm: the largest norm of the gradient.
        steps: the most steps of one call.
        worth: function from a graph to whether it is compiled.
        others: numbers of rows of other batches.

    Raises:
        NotCaptured: if the step cannot be compiled, is not worth it, or has other values than the
            objective.
    """
    with or_not_captured():
        gradient = Gradient(objective, parameters, batch)
        own = gradient.parameters
        many = sum(parameter.numel() for parameter in own) > MOST_NUMBERS
        if many or not own or FlatAdam.refuses(optimizer, own):
            return StepGraph(gradient, batch, worth, others)
        adam = FlatAdam(optimizer, own, clip_norm)
        return AdamGraph(gradient, batch, worth, others, adam, steps)
