"""Plate diagrams: nodes, edges, boxes, and their places."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pyro
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Ellipse, FancyBboxPatch
from pyro.distributions import Dirichlet, LogNormal, Normal
from torch import nn

from pyro_vmonf import (
    FlowMixture,
    RandomBank,
    RealNVP,
    VMoNF,
    plots,
)
from pyro_vmonf.plots.plate import Diagram

K = 3
CORNERS = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])


def nodes_of(ax: Axes) -> dict[str, Ellipse]:
    return {patch.get_label(): patch for patch in ax.patches if isinstance(patch, Ellipse)}


def boxes_of(ax: Axes) -> list[set[str]]:
    """Return the nodes whose centre each box holds."""
    boxes = [patch.get_bbox() for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    nodes = nodes_of(ax).items()
    return [{name for name, node in nodes if box.contains(*node.center)} for box in boxes]


def edges_of(ax: Axes) -> set[tuple[str, str]]:
    arrows = [text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None)]
    names = {node.center: name for name, node in nodes_of(ax).items()}
    return {(names[arrow.patchA.center], names[arrow.patchB.center]) for arrow in arrows}


def shaded(ax: Axes) -> set[str]:
    grey = to_rgba("0.8")
    return {name for name, node in nodes_of(ax).items() if node.get_facecolor() == grey}


PI, THETA = r"$\pi$", r"$\theta_k$"


@pytest.mark.parametrize(
    ("weights", "random_bank", "above"),
    [("uniform", False, PI), (Dirichlet(torch.ones(K)), True, "weights")],
)
def test_plate_of_a_mixture(weights: Any, random_bank: bool, above: str) -> None:
    bank: nn.Module = RealNVP(2, K, blocks=1, hidden=(3,))
    model = FlowMixture(RandomBank(bank) if random_bank else bank, weights)
    ax = plots.plot_plate(VMoNF(model))
    assert edges_of(ax) == {(above, "c"), ("c", "x"), (THETA, "x")}
    assert sorted(boxes_of(ax), key=len) == [{THETA}, {"c", "x"}]
    assert shaded(ax) == {"x"}
    dots = {name for name, node in nodes_of(ax).items() if node.width < 0.2}
    assert dots == (set() if random_bank else {PI, THETA})
    names = [text.get_text() for text in ax.texts]
    assert names.count("N") == names.count("K") == 1


def test_plate_of_a_larger_program() -> None:
    def program(x: torch.Tensor, y: torch.Tensor) -> None:
        intercept = pyro.sample("intercept", Normal(0, 1))
        scale = pyro.sample("scale", LogNormal(0, 1))
        with pyro.plate("groups", 3):
            slope = pyro.sample("slope", Normal(intercept, 1))
            with pyro.plate("rows", 4):
                pyro.sample("y", Normal(slope * x, scale), obs=y)

    ax = plots.plot_plate(program, (torch.zeros(4, 1),), {"y": torch.zeros(4, 3)})
    edges = {("intercept", "slope"), ("slope", "y"), ("scale", "y")}
    assert edges_of(ax) == edges
    assert sorted(boxes_of(ax), key=len) == [{"y"}, {"slope", "y"}]
    assert shaded(ax) == {"y"}


def test_plate_of_a_nested_mixture_has_the_names_of_its_sites() -> None:
    mixture = FlowMixture(RealNVP(2, K, blocks=2))

    def program(y: torch.Tensor) -> None:
        z = mixture(size=len(y))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", Normal(z[:, 0], 1.0), obs=y)

    ax = plots.plot_plate(program, (torch.zeros(5),))
    assert edges_of(ax) == {("c", "x"), ("x", "y")}
    assert sorted(boxes_of(ax), key=len) == [{"y"}, {"c", "x"}]


@pytest.mark.parametrize(
    "diagram",
    [
        # A node outside that depends on one inside; crossed plates, as Pyro splits them.
        Diagram({"a": [], "b": ["a"], "c": ["b"]}, {"p": {"a"}}),
        Diagram(
            {"a": [], "b": [], "c": ["a", "b"]}, {"p": {"a", "c"}, "q": {"c"}, "q__CLONE": {"b"}}
        ),
        Diagram({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, {"p": {"a", "d"}, "q": {"d"}}),
        Diagram({"a": [], "b": [], "c": [], "d": ["a", "b", "c"]}, {}),
    ],
)
def test_nodes_have_places_of_their_own_and_boxes_hold_no_others(diagram: Diagram) -> None:
    places = diagram.places()
    assert len(set(places.values())) == len(places)
    for node, parents in diagram.parents.items():
        assert all(places[node][1] > places[parent][1] for parent in parents)
    for held in diagram.plates.values():
        columns, rows = zip(*(places[node] for node in held), strict=True)
        for node in places.keys() - held:
            column, row = places[node]
            inside = min(columns) <= column <= max(columns) and min(rows) <= row <= max(rows)
            assert not inside, f"{node} is in the box of {held}"


def test_a_program_without_sites_has_no_diagram() -> None:
    with pytest.raises(ValueError, match="no sample sites"):
        plots.plot_plate(lambda: None)
    assert not plt.get_fignums()


def test_plate_leaves_pyros_store_alone() -> None:
    pyro.param("theirs", torch.tensor(1.0))
    plots.plot_plate(FlowMixture(RealNVP(2, K, blocks=2)))
    assert list(pyro.get_param_store().keys()) == ["theirs"]
