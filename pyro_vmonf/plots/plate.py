"""The plate diagram of a Pyro program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from matplotlib.patches import BoxStyle, Ellipse, FancyBboxPatch
from pyro.infer.inspect import get_model_relations
from torch import nn

from pyro_vmonf._utils.contexts import evaluating, own_store
from pyro_vmonf._utils.validation import floating_buffer
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.plots.axes import axes_or_new, points_per_unit
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import model_of

SHADED = "0.8"


@dataclass
class Diagram:
    """The nodes, edges and plates of a plate diagram.

    Attributes:
        parents: the parents of each node.
        plates: the nodes in each plate, by its name. Two plates are nested or disjoint: Pyro splits
            other plates and adds ``__CLONE`` to the name.
        observed: the nodes of data.
        fixed: the nodes of parameters and constants, drawn as dots.
    """

    parents: dict[str, list[str]]
    plates: dict[str, set[str]] = field(default_factory=dict)
    observed: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)

    def stack(self, node: str) -> tuple[str, ...]:
        """Return the plates that hold a node, the largest first."""
        found = [(-len(held), label) for label, held in self.plates.items() if node in held]
        return tuple(label for _, label in sorted(found))

    def _by_appearance(self) -> list[str]:
        """Return the plates in the order of their first nodes, outer ones first."""
        stacks = [self.stack(node) for node in self.parents]
        return list(dict.fromkeys(plate for stack in stacks for plate in stack))

    def places(self) -> dict[str, tuple[float, float]]:
        """Return column and row of each node; the box of a plate holds no other nodes."""
        stacks = {node: self.stack(node) for node in self.parents}
        outside = [node for node in stacks if not stacks[node]]
        inside = [node for node in stacks if stacks[node]]
        rows: dict[str, int] = {}
        # Nodes without a plate stand above all boxes, unless they depend on a node in a box.
        above = not any(stacks[parent] for node in outside for parent in self.parents[node])
        self._fill(rows, outside if above else list(stacks), 0)
        self._fill(rows, inside, 1 + max((rows[node] for node in outside), default=-1))
        columns: dict[str, float] = {}
        used = 0
        order = {plate: rank for rank, plate in enumerate(self._by_appearance())}
        for stack in sorted(
            {stacks[node] for node in (inside if above else rows)},
            key=lambda stack: [order[plate] for plate in stack],
        ):
            first, taken = used, set()
            for node in (node for node in rows if stacks[node] == stack):
                wanted = [int(columns[p]) for p in self.parents[node] if p in columns]
                column = next((c for c in wanted if c >= first), first)
                while (column, rows[node]) in taken:
                    column += 1
                taken.add((column, rows[node]))
                columns[node], used = column, max(used, column + 1)
        if above:
            self._place_above(outside, rows, columns)
        return {node: (columns[node], rows[node]) for node in self.parents}

    def _fill(self, rows: dict[str, int], nodes: list[str], least: int) -> None:
        """Put sorted nodes below their parents, at row ``least`` or lower."""
        for node in nodes:
            if node not in rows:
                depends = [rows[parent] for parent in self.parents[node] if parent in rows]
                rows[node] = max([least, *(row + 1 for row in depends)])

    def _place_above(
        self, nodes: list[str], rows: dict[str, int], columns: dict[str, float]
    ) -> None:
        """Give the nodes above all plates the mean column of their children."""
        taken: set[tuple[float, int]] = set()
        for node in sorted(nodes, key=lambda node: -rows[node]):
            below = [columns[n] for n, p in self.parents.items() if node in p and n in columns]
            column = sum(below) / len(below) if below else 0.0
            while any(abs(column - c) < 1 and rows[node] == r for c, r in taken):
                column += 1
            taken.add((column, rows[node]))
            columns[node] = column


def diagram_of(
    model: Callable[..., Any],
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
) -> Diagram:
    """Return the diagram of one run of a Pyro program, from the provenance of its values."""
    mode = evaluating(model) if isinstance(model, nn.Module) else nullcontext()
    with own_store(), mode:
        found = get_model_relations(model, model_args, dict(model_kwargs or {}))
    return Diagram(
        {name: list(parents) for name, parents in found["sample_sample"].items()},
        {name: set(held) for name, held in found["plate_sample"].items()},
        set(found["observed"]),
    )


def _diagram_of_mixture(model: FlowMixture) -> Diagram:
    """Return the diagram of a mixture of N rows with its parameters (thesis Figure 4.1)."""
    like = floating_buffer(model)
    x = like.new_zeros(2, *model.event_shape)
    given = like.new_zeros(2, model.context_features) if model.context_features else None
    diagram = diagram_of(model, (x,), {"given": given})
    name = model.site
    diagram.plates = {"N": diagram.plates[name("data")]}
    c, x_site = name("c"), name("x")
    # One node stands for all random parameters of a bank.
    random = [site for site in diagram.parents if site.startswith(f"{name('bank')}.")]
    for site in random:
        del diagram.parents[site]
    theta = r"$\theta_k$"
    del diagram.parents[x_site]
    diagram.parents |= {theta: [], x_site: [c, theta]}
    diagram.plates["K"] = {theta}
    if not random:
        diagram.fixed.add(theta)
    if not diagram.parents[c]:
        diagram.parents = {r"$\pi$": [], **diagram.parents, c: [r"$\pi$"]}
        diagram.fixed.add(r"$\pi$")
    return diagram


@styled
def plot_plate(
    model: Callable[..., Any],
    model_args: tuple[Any, ...] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the plate diagram of a Pyro program, such as thesis Figure 4.1 for a mixture.

    One run of the program gives the sites and their parents. Observed sites are grey, plates are
    boxes. The param store, the seeds and the gradients stay as they are. A mixture or a pair needs
    no arguments: its diagram has N rows, the parameters of K components and the weights. Dots mark
    those that are not random.

    Arguments:
        model: the program: a mixture, a pair, or any other.
        model_args: its arguments.
        model_kwargs: its keyword arguments.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the program has no sample sites.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> ax = plot_plate(FlowMixture(RealNVP(2, 3)), ax=Figure().subplots())
        >>> sorted(text.get_text() for text in ax.texts if text.get_text())
        ['$\\\\pi$', '$\\\\theta_k$', 'K', 'N', 'c', 'x']
    """
    model = model_of(model)
    if isinstance(model, FlowMixture) and not model_args and not model_kwargs:
        diagram = _diagram_of_mixture(model)
    else:
        diagram = diagram_of(model, model_args, model_kwargs)
    if not diagram.parents:
        raise ValueError("the program drew no sample sites; pass the arguments that it is run with")
    ax = axes_or_new(ax)
    _draw(ax, diagram)
    return ax


def _draw(ax: Axes, diagram: Diagram) -> None:
    """Draw nodes, edges and plates."""
    places = diagram.places()
    width = max([0.9, *(0.16 * len(node) + 0.3 for node in places if "$" not in node)])
    centres = {node: (column * (width + 0.7), -1.4 * row) for node, (column, row) in places.items()}
    boxes = _boxes(diagram, centres, width)
    across = [x + side * width for x, _ in centres.values() for side in (-0.6, 0.6)]
    up = [y + side for _, y in centres.values() for side in (-0.6, 0.6)]
    for left, bottom, right, top in boxes.values():
        across, up = [*across, left - 0.1, right + 0.1], [*up, bottom - 0.1, top + 0.1]
    ax.set(xlim=(min(across), max(across)), ylim=(min(up), max(up)), aspect="equal")
    ax.set_axis_off()
    unit = points_per_unit(ax, max(across) - min(across), max(up) - min(up))
    size = min(max(0.3 * unit, 6.0), 14.0)  # a letter is about a quarter of a unit high
    for plate, (left, bottom, right, top) in boxes.items():
        round_corners = BoxStyle("Round", pad=0, rounding_size=0.12)
        box = FancyBboxPatch((left, bottom), right - left, top - bottom, round_corners, zorder=1)
        box.set(fill=False, edgecolor="0.4")
        ax.add_patch(box)
        name = plate.split("__CLONE")[0]
        ax.text(right - 0.08, bottom + 0.06, name, ha="right", va="bottom", fontsize=size)
    shapes = {}
    for node, (x, y) in centres.items():
        if node in diagram.fixed:
            shape = Ellipse((x, y), 0.16, 0.16, color="black", zorder=3)
            ax.text(x + 0.16, y, node, ha="left", va="center", fontsize=size, zorder=4)
        else:
            face = SHADED if node in diagram.observed else "white"
            shape = Ellipse((x, y), width, 0.8, facecolor=face, edgecolor="black", zorder=3)
            ax.text(x, y, node, ha="center", va="center", fontsize=size, zorder=4)
        shapes[node] = ax.add_patch(shape)
        shape.set_label(node)
    for node, parents in diagram.parents.items():
        for parent in parents:
            style = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
            ends = {"patchA": shapes[parent], "patchB": shapes[node]}
            ax.annotate("", centres[node], centres[parent], arrowprops={**style, **ends}, zorder=2)


def _boxes(
    diagram: Diagram, centres: Mapping[str, tuple[float, float]], width: float
) -> dict[str, tuple[float, float, float, float]]:
    """Return left, bottom, right and top of each plate, around its nodes and inner plates."""
    boxes: dict[str, tuple[float, float, float, float]] = {}
    for plate, held in sorted(diagram.plates.items(), key=lambda item: len(item[1])):
        content = [boxes[other] for other in boxes if diagram.plates[other] <= held]
        for x, y in (centres[node] for node in held):
            content.append((x - width / 2, y - 0.4, x + width / 2, y + 0.4))
        left, bottom, right, top = zip(*content, strict=True)
        # The name of the plate stands at the bottom.
        boxes[plate] = (min(left) - 0.15, min(bottom) - 0.4, max(right) + 0.15, max(top) + 0.15)
    return boxes
