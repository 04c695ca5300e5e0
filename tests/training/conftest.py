"""A graph that is captured once."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from torch import Tensor

from pyro_vmonf.training.adam_graph import AdamGraph
from pyro_vmonf.training.graphs import StepGraph

CAPTURED: dict[Any, Any] = {}
LOOPS: dict[Any, Any] = {}  # of the captured graphs


def _parts(graph: StepGraph) -> tuple[Any, ...]:
    """Return the types of the parts of an objective, with the functions that they call."""
    found: list[Any] = []
    for part in graph.gradient.objective.modules():
        found += [type(part), *filter(inspect.isfunction, vars(part).values())]
    return tuple(found)


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give runs of one kind one graph: to capture a step takes longer than the steps.

    Parameters, rows and settings of the optimiser are inputs of a graph. The library compares each
    graph with the steps of its run, so a wrong one would not be taken.
    """
    own, looped = StepGraph._captured, AdamGraph._program

    def captured(self: StepGraph, inputs: list[Tensor], open: bool) -> Any:
        gradient, adam = self.gradient, getattr(self, "adam", None)
        kinds = tuple((value.shape, value.dtype, value.is_cpu) for value in inputs)
        texts = (repr(gradient.objective), repr(gradient.fixed), repr(gradient.trained))
        clipped = getattr(adam, "clip_norm", None)
        key = (type(self), open, kinds, texts, clipped, type(gradient), _parts(self))
        if key not in CAPTURED:
            CAPTURED[key] = own(self, inputs, open)
        return CAPTURED[key]

    def program(self: AdamGraph) -> Any:
        key = self.graph, self.steps == 1
        if key not in LOOPS:
            LOOPS[key] = looped(self)
        return LOOPS[key]

    monkeypatch.setattr(StepGraph, "_captured", captured)
    monkeypatch.setattr(AdamGraph, "_program", program)
