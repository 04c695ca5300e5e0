"""The lane whose step is one compiled graph, and the decision for it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vmonf.training.adam_graph import MOST_NUMBERS, AdamGraph, step_graph
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.gradients import NotCaptured, Value, or_not_captured
from pyro_vmonf.training.graphs import StepGraph, Worth
from pyro_vmonf.training.history import History
from pyro_vmonf.training.options import Options
from pyro_vmonf.training.reading import Reading, Terms
from pyro_vmonf.training.rows import Source, TensorSource
from pyro_vmonf.training.trainer import Trainer
from pyro_vmonf.training.unread import Unread

MOST_AT_ONCE = 16  # steps of one call
MOST_WORK = 100_000_000  # rows by parameters of one call, so that an interrupt is soon heard
MOST_BATCHES = 50  # of an epoch whose short one is worth a graph that takes longer to compile
MEASURED_STEPS = 50  # that "auto" sees before it decides
SHARE_SAVED = 0.6  # of a step, by a compiled one
FROM_CACHE = 4.0  # seconds to capture a step and to load its code
COLD, COLD_PER_NODE = 12.0, 0.02  # seconds to compile a graph that is new, at least
CAPTURES = 18.0  # times that it takes to capture it: a busy machine takes longer
SAVED_PER_NODE = 1e-5  # seconds that a graph saves each time for measured rows, of each operation


class Compiled(Unread):
    """One run, whose steps are a graph once there is one.

    Steps of Adam wait until the graph takes several of them at once, until somebody reads, or
    until a batch of another length comes. Batches that the graph does not take, such as those of
    labelled rows alone, take the step from Python.

    Arguments: as for :class:`~pyro_vmonf.training.unread.Unread`.
    """

    source: Source | None = None  # of the rows
    graph: StepGraph | None = None
    measured: StepGraph | None = None  # of the rows that states are measured on
    last_batch: Arguments | None = None  # batch that the graph took
    last_measured: Arguments | None = None  # measured rows that their graph took
    undo: list[Tensor] | None = None  # state before the last step of the graph: see Moved.last
    seconds = 0.0  # of the steps from Python
    count = 0

    def build_(self, batch: Arguments, worth: Worth) -> StepGraph:
        """Compile the step for batches like this one.

        Arguments:
            batch: of the run.
            worth: function from a graph to whether it is compiled.

        Raises:
            NotCaptured: if it is not.
        """
        objective: Any = self.module
        numbers = sum(parameter.numel() for parameter in self.parameters)
        short = MOST_WORK // (numbers * len(batch["x"]) + 1)
        alone = self.scheduled or not self.counts.is_cpu  # the loop of a device asks the host
        batches = MOST_AT_ONCE if self.source is None else self.source.batches
        steps = 1 if alone else max(min(batches, MOST_AT_ONCE, short), 1)
        open = self.counts.is_cpu and batches <= MOST_BATCHES
        lengths = getattr(self.source, "lengths", ()) if open else ()
        others = [length for length in lengths if length < len(batch["x"])]
        self.graph = step_graph(
            objective, self.parameters, batch, self.optimizer, self.clip_norm, steps, worth, others
        )
        return self.graph

    def build_measured_(self, rows: TensorSource, worth: Worth) -> None:
        """Compile the terms of measured rows, in ``eval()``.

        Arguments:
            rows: of the run.
            worth: function from a graph to whether it is compiled.

        Raises:
            NotCaptured: if they are not.
        """
        objective: Any = self.module
        batch, rest = next(rows.in_order()), rows.size % rows.batch_size
        others = [rest] if 0 < rest < len(batch["x"]) else []
        with or_not_captured():
            value = Value(objective, self.parameters, batch)
            self.measured = StepGraph(value, batch, worth, others)

    def measured_terms(self, batches: Sequence[Arguments]) -> Terms:
        graph, [batch] = self.measured, batches
        if graph is None or not graph.takes(batch):
            return super().measured_terms(batches)
        self.last_measured = batch
        terms, *_ = graph(batch)
        return graph.gradient.named(terms)

    def step(
        self, batches: Sequence[Arguments], going: list[bool], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        graph, [batch] = self.graph, batches
        if not isinstance(graph, AdamGraph) or not graph.takes(batch):
            self._run_()
            self._last_finite = self.last_finite
            result = super().step(batches, going, move)
            if isinstance(graph, AdamGraph):
                graph.adam.look_()
            return result
        self.last_batch = batch
        if not graph.has_room(batch):
            self._run_()
        graph.put_(batch)
        if graph.full:
            self._run_()
        found = self.read() if self.scheduled else None
        if found is None:
            return {}, []
        if not found.rejected:
            move(parameters=False)
        return found.terms, [not found.rejected]

    def read(self) -> Reading | None:
        self._run_()
        return super().read()

    def _run_(self) -> None:
        """Take the steps that wait."""
        graph = self.graph
        if not isinstance(graph, AdamGraph) or not graph.numbers:
            return
        moved = graph.run(self._last_of(graph), self.counts)
        names, steps = tuple(graph.gradient.keys), self.steps + len(graph.numbers)
        totals = moved.totals + self.totals.get(names, 0.0)

        def take_over() -> None:
            graph.accept_(moved)
            self.undo, self.counts, self.totals[names] = moved.last, moved.counts, totals
            self.steps = steps
            self.last_terms = graph.gradient.named(moved.terms)
            self._settle(accepted=True)

        try:
            take_over()
        except BaseException:  # an interrupt may come in the middle
            take_over()
            raise

    def _last_of(self, graph: AdamGraph) -> list[Tensor]:
        """Return the last state whose loss was finite, as the graph has it."""
        if self.undo is not None:
            return self.undo
        known = dict(zip(self.kept, self._last_finite or self.kept, strict=True))
        gradient = graph.gradient
        parameters = [known.get(value, value) for value in gradient.parameters]
        counted = [known.get(value, value).detach().clone() for value in gradient.counted]
        return [graph.adam.together(parameters), *counted]

    @property
    def last_finite(self) -> list[Tensor]:
        """The parameters before the last step whose loss was finite."""
        if self.undo is not None and isinstance(self.graph, AdamGraph):
            graph, [vector, *counted] = self.graph, self.undo
            names = (*graph.gradient.parameters, *graph.gradient.counted)
            known = dict(zip(names, (*graph.adam.split(vector), *counted), strict=True))
            values = [known.get(value, value).detach() for value in self.kept]
            if not self._last_finite:
                self._last_finite = [torch.empty_like(value) for value in values]
            torch._foreach_copy_(self._last_finite, values)
            self.undo = None
        return self._last_finite

    @last_finite.setter
    def last_finite(self, values: list[Tensor]) -> None:
        self._last_finite, self.undo = values, None

    def _differentiate(self, batches: Sequence[Arguments]) -> tuple[Terms, Tensor]:
        graph, [batch] = self.graph, batches
        if graph is None or isinstance(graph, AdamGraph) or not graph.takes(batch):
            start = time.perf_counter()
            result = super()._differentiate(batches)
            self.seconds, self.count = self.seconds + time.perf_counter() - start, self.count + 1
            return result
        self.last_batch = batch
        terms, gradients, counted = graph(batch)
        for parameter, gradient in zip(graph.gradient.parameters, gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            if counted:
                torch._foreach_copy_(graph.gradient.counted, counted)
        return graph.gradient.named(terms), -terms.sum()

    def compare_(self) -> str:
        """Leave a graph that differs from the step on its last batch, and return how."""
        if self.graph is None or self.last_batch is None:
            return ""
        reason = self.graph.difference(self.last_batch)
        if not reason and self.measured is not None and self.last_measured is not None:
            reason = self.measured.difference(self.last_measured)
        if reason:
            self.leave_()
        return reason

    def leave_(self) -> None:
        """Take the steps to come from Python."""
        self._run_()
        self._last_finite = self.last_finite
        self.graph = self.measured = None


class Compiling:
    """The decision between epochs: a step is compiled where the steps to come are worth it.

    Steps from Python are timed first. The time to compile is estimated from the size of the graph;
    a graph that this machine has compiled before takes a few seconds. The faster of the two stays.

    Arguments:
        lanes: of the run.
        history: whose road says what was done.
        options: of the fit.
    """

    def __init__(self, lanes: Compiled, history: History, options: Options) -> None:
        self.lanes = lanes
        self.history = history
        self.decided = options.compile != "auto"
        self.watched = bool(options.callbacks)  # they see the pair, and may change any part
        self.seen: bool | None = None  # whether this machine has compiled such a pair

    def look_again(self, *_: object) -> None:
        """Leave the graph if what it was made of has changed."""
        if self.lanes.graph is not None and self.lanes.graph.changed(self.watched):
            self.lanes.leave_()
            self.history.road = "short, compiled until a part of the pair was changed"

    def __call__(self, trainer: Trainer, _: int) -> None:
        lanes = self.lanes
        if self.decided or lanes.graph is not None or lanes.count < MEASURED_STEPS:
            return
        if sum(parameter.numel() for parameter in lanes.parameters) > MOST_NUMBERS:
            self.decided = True  # products are the step, and a graph saves nothing
            return
        saved = SHARE_SAVED * trainer.steps_left() * lanes.seconds / lanes.count
        if saved < FROM_CACHE:
            return
        if self.seen is None:
            self.seen = _marker(*_signature(lanes, trainer.batches[0])).exists()
        if saved < COLD and not self.seen:  # to capture a step would be a loss already
            return
        self.decided = True
        begun = time.perf_counter()

        def worth(graph: fx.GraphModule) -> bool:
            return self._seconds(graph, time.perf_counter() - begun) < saved

        self.build_(trainer, trainer.batches[0], worth)

    def build_(
        self,
        trainer: Trainer,
        batch: Arguments,
        worth: Worth | None = None,
        measured: bool | None = None,
    ) -> None:
        """Compile the step, and say so.

        Arguments:
            trainer: of the run.
            batch: of the run.
            worth: function from a graph to whether it is compiled; the faster one then stays. By
                default it is compiled in any case.
            measured: compile the terms of measured rows too; by default where it pays.
        """
        road = self.history.road
        try:
            graph = self.lanes.build_(batch, worth or (lambda graph: True))
        except NotCaptured as error:
            self.history.road = f"{road}, not compiled: {error}"
            return
        for content in (_content(graph.graph), _signature(self.lanes, batch)):
            marker = _marker(*content)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        if worth is None or graph.pays(batch):
            self.history.road = f"{road}, compiled in {graph.seconds:.1f} s"
            self._build_measured_(trainer, measured)
        else:
            self.lanes.leave_()
            self.history.road = f"{road}, not compiled: the graph is the slower one"

    def _build_measured_(self, trainer: Trainer, wanted: bool | None) -> None:
        """Compile the terms of measured rows, where that pays by the time on any machine.

        The decision is no measurement, since it moves the last digits of what states are chosen by.
        """
        [run], plan = trainer.runs, trainer.plan
        times = (plan.steps or 0) // run.train.batches if plan.epochs is None else plan.epochs
        times = 0 if plan.minutes else times - trainer.epoch

        def worth(graph: fx.GraphModule) -> bool:
            nodes = len(graph.graph.nodes)
            return bool(wanted) or times * SAVED_PER_NODE * nodes > COLD + COLD_PER_NODE * nodes

        few = times * SAVED_PER_NODE < COLD_PER_NODE  # for a graph of any size
        if run.measured is None or wanted is False or (wanted is None and few):
            return
        with suppress(NotCaptured):
            self.lanes.build_measured_(run.measured, worth)
            self.history.road += ", measured rows too"

    @staticmethod
    def _seconds(graph: fx.GraphModule, captured: float) -> float:
        """Return the seconds that compiling a graph takes, about.

        Arguments:
            graph: that was captured.
            captured: seconds that this took.
        """
        if _marker(*_content(graph)).exists():
            return FROM_CACHE
        return max(COLD + COLD_PER_NODE * len(graph.graph.nodes), CAPTURES * captured)


def _content(graph: fx.GraphModule) -> list[str]:
    """Return what tells a graph from others."""
    return [graph.code, *(str(node.meta.get("tensor_meta")) for node in graph.graph.nodes)]


def _signature(lanes: Compiled, batch: Arguments) -> list[str]:
    """Return what tells the step of a pair from most others, before it is captured."""
    state = lanes.module.state_dict()
    rows = {name: getattr(value, "shape", None) for name, value in batch.items()}
    shapes = [f"{name}: {tuple(value.shape)}" for name, value in state.items()]
    return [repr(lanes.module), repr(type(lanes.optimizer)), *shapes, repr(rows)]


def _marker(*content: str) -> Path:
    """Return the file that says whether this machine has compiled something."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    text = "\n".join((torch.__version__, *content))
    return Path(cache_dir()) / "pyro_vmonf" / hashlib.sha256(text.encode()).hexdigest()
