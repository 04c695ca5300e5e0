"""The lane whose step is one compiled graph, and the decision for it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.flat_adam import FlatAdam
from pyro_vmonf.training.graphs import NotCaptured, StepGraph
from pyro_vmonf.training.history import History
from pyro_vmonf.training.lanes import Terms
from pyro_vmonf.training.trainer import Trainer
from pyro_vmonf.training.unread import Unread

MEASURED_STEPS = 50  # that "auto" sees before it decides
SHARE_SAVED = 0.6  # of a step, by a compiled one
FROM_CACHE = 4.0  # seconds to capture a step and to load its code
COLD, COLD_PER_NODE = 12.0, 0.02  # seconds to compile a graph that is new on this machine
MOST_NUMBERS = 2_000_000  # parameters above which products are the step, and a graph saves nothing


class Compiled(Unread):
    """One run, whose steps on batches of one shape are a graph once there is one.

    Batches of another shape, such as a short last one, take the step from Python.

    Arguments: as for :class:`~pyro_vmonf.training.unread.Unread`.
    """

    graph: StepGraph | None = None
    last_batch: Arguments | None = None  # batch that the graph took
    undo: Callable[[], dict[Tensor, Tensor]] | None = None  # values before that step
    seconds = 0.0  # of the steps from Python
    count = 0

    def build_(self, batch: Arguments, worth: Callable[[fx.GraphModule], bool]) -> StepGraph:
        """Compile the step for batches like this one.

        Arguments:
            batch: of the run.
            worth: function from a graph to whether it is compiled.

        Raises:
            NotCaptured: if it is not.
        """
        objective: Any = self.module
        self.graph = StepGraph(
            objective, self.parameters, batch, self.optimizer, self.clip_norm, self.waits, worth
        )
        return self.graph

    def step(
        self, batches: Sequence[Arguments], going: list[bool], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        graph, [batch] = self.graph, batches
        if graph is None or graph.adam is None or not graph.takes(batch):
            result = super().step(batches, going, move)
            if graph is not None and graph.adam is not None:
                graph.adam.look_()
            return result
        self.last_batch = batch
        take = self._take_and_read if self.waits else self._take
        return take(graph, batch, graph.adam, move)

    def _take(
        self, graph: StepGraph, batch: Arguments, adam: FlatAdam, _: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        start = self._start()
        terms, (new, mean, square, _old, flags), counted = graph(batch)
        try:
            adam.accept_(new, mean, square, flags[1])
            graph.count_(counted)
            finite, taken = flags.bool().unbind()
            self._keep_where(finite, taken)
        except BaseException:  # an interrupt may come in the middle
            self._take_back(start)
            raise
        named = graph.named(terms)
        self.add_(named, taken, len(batch["x"]))
        return named, []

    def _take_and_read(
        self, graph: StepGraph, batch: Arguments, adam: FlatAdam, move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        terms, (new, mean, square, old, flags), counted = graph(batch)
        loss_is_finite, finite = flags.tolist()
        now = dict(zip(graph.keys, terms.tolist(), strict=True))
        if loss_is_finite:
            self.undo = graph.before(old)
        if not finite:
            return now, [False]
        try:
            adam.accept_(new, mean, square, flags[1])
            graph.count_(counted)
            move(parameters=False)
        except BaseException:  # an interrupt may come in the middle
            self._take_back(self.last_finite)
            raise
        self._settle(accepted=True)
        return now, [True]

    @property
    def last_finite(self) -> list[Tensor]:
        """The parameters before the last step whose loss was finite."""
        if self.undo is not None:
            values, self.undo = self.undo(), None
            self._last_finite = [values.get(p, p).detach().clone() for p in self.kept]
        return self._last_finite

    @last_finite.setter
    def last_finite(self, values: list[Tensor]) -> None:
        self._last_finite, self.undo = values, None

    def _differentiate(self, batches: Sequence[Arguments]) -> tuple[Terms, Tensor]:
        [batch] = batches
        if self.graph is None or not self.graph.takes(batch):
            start = time.perf_counter()
            result = super()._differentiate(batches)
            self.seconds, self.count = self.seconds + time.perf_counter() - start, self.count + 1
            return result
        self.last_batch = batch
        terms, gradients, counted = self.graph(batch)
        for parameter, gradient in zip(self.graph.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.graph.count_(counted)
        return self.graph.named(terms), -terms.sum()

    def compare_(self) -> str:
        """Leave a graph that differs from the step on its last batch, and return how."""
        if self.graph is None or self.last_batch is None:
            return ""
        reason = self.graph.difference(self.last_batch)
        if reason:
            self.graph = None
        return reason


class Compiling:
    """The decision between epochs: a step is compiled where the steps to come are worth it.

    Steps from Python are timed first. The time to compile is estimated from the size of the graph;
    a graph that this machine has compiled before takes a few seconds. The faster of the two stays.

    Arguments:
        lanes: of the run.
        history: whose road says what was done.
    """

    def __init__(self, lanes: Compiled, history: History) -> None:
        self.lanes = lanes
        self.history = history
        self.decided = False

    def look_again(self, *_: object) -> None:
        """Leave the graph if a callback has changed what it was made of."""
        if self.lanes.graph is not None and self.lanes.graph.changed():
            self.lanes.graph = None
            self.history.road = "short, compiled until a part of the pair was changed"

    def __call__(self, trainer: Trainer, _: int) -> None:
        lanes = self.lanes
        if self.decided or lanes.graph is not None or lanes.count < MEASURED_STEPS:
            return
        if sum(parameter.numel() for parameter in lanes.parameters) > MOST_NUMBERS:
            self.decided = True
            return
        saved = SHARE_SAVED * trainer.steps_left() * lanes.seconds / lanes.count
        if saved < FROM_CACHE:
            return
        self.decided = True
        self.build_(trainer.batches[0], lambda graph: self._seconds(graph) < saved)

    def build_(
        self, batch: Arguments, worth: Callable[[fx.GraphModule], bool] | None = None
    ) -> None:
        """Compile the step, and say so.

        Arguments:
            batch: of the run.
            worth: function from a graph to whether it is compiled; the faster one then stays. By
                default it is compiled in any case.
        """
        road = self.history.road
        try:
            graph = self.lanes.build_(batch, worth or (lambda graph: True))
        except NotCaptured as error:
            self.history.road = f"{road}, not compiled: {error}"
            return
        marker = _marker(graph.graph)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        if worth is None or graph.pays(batch):
            self.history.road = f"{road}, compiled in {graph.seconds:.1f} s"
        else:
            self.lanes.graph = None
            self.history.road = f"{road}, not compiled: the graph is the slower one"

    @staticmethod
    def _seconds(graph: fx.GraphModule) -> float:
        """Return the seconds that compiling a graph takes, about."""
        cold = COLD + COLD_PER_NODE * len(graph.graph.nodes)
        return FROM_CACHE if _marker(graph).exists() else cold


def _marker(graph: fx.GraphModule) -> Path:
    """Return the file that says whether this machine has compiled a graph."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    shapes = [str(node.meta.get("tensor_meta")) for node in graph.graph.nodes]
    content = "\n".join((torch.__version__, graph.code, *shapes))
    return Path(cache_dir()) / "pyro_vmonf" / hashlib.sha256(content.encode()).hexdigest()
