"""Figures of fits, transforms and programs: what their artists say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyBboxPatch, Rectangle
from pyro.distributions import Dirichlet, LogNormal, Normal
from torch import nn
from torch.distributions import AffineTransform

from pyro_vmonf import (
    NSF,
    FlowMixture,
    Gaussian,
    RandomBank,
    RealNVP,
    RotatedRealNVP,
    SoftmaxGuide,
    VMoNF,
    plots,
)
from pyro_vmonf.plots.palette import component_colors, tint
from pyro_vmonf.plots.plate import Diagram
from pyro_vmonf.report import ComponentReport
from pyro_vmonf.transforms import Affine, BatchNorm, PReLU, Rotation

K = 3
CORNERS = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def three_gaussians(variance: float = 1.0) -> VMoNF:
    """Components around the corners of a triangle, with no guide: the posterior is exact."""
    vmonf = VMoNF(FlowMixture(Gaussian(2, K)))
    vmonf.model.bank.set_(CORNERS, variance * torch.eye(2).expand(K, 2, 2))
    return vmonf


class Ramp(nn.Module):
    """Two logits that are a row's two features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# Responsibilities.


def test_responsibilities_fade_and_grow_with_the_entropy() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(Ramp()))
    x = torch.tensor([[0.5, 0.0], [90.0, 0.0], [0.0, 0.0], [0.0, 90.0]])
    first, last = plots.plot_responsibilities(vmonf, x, size=10.0).collections
    # A tie goes to the first; the least certain rows are drawn last.
    np.testing.assert_allclose(first.get_offsets(), x[[1, 0, 2]])
    np.testing.assert_allclose(last.get_offsets(), x[3:])
    p = 1 / (1 + math.exp(-0.5))
    doubt = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)
    np.testing.assert_allclose(first.get_sizes(), [10, 10 + 30 * doubt, 40], rtol=1e-5)
    blue, red = component_colors(2)
    expected = [blue, tint(blue, 1 - 0.8 * doubt), tint(blue, 0.2)]
    np.testing.assert_allclose(first.get_facecolor()[:, :3], expected, rtol=1e-5)
    np.testing.assert_allclose(last.get_facecolor()[:, :3], [red])
    np.testing.assert_allclose(first.get_edgecolor(), [to_rgba(blue)])


def test_responsibilities_may_be_exact() -> None:
    vmonf = VMoNF(three_gaussians().model, SoftmaxGuide(nn.Linear(2, K)))
    ax = plots.plot_responsibilities(vmonf, CORNERS, exact=True)
    for k, artist in enumerate(ax.collections):
        np.testing.assert_allclose(artist.get_offsets(), CORNERS[k : k + 1])
        assert artist.get_label() == str(k)


def test_one_component_is_certain() -> None:
    ax = plots.plot_responsibilities(VMoNF(FlowMixture(Gaussian(2, 1))), torch.randn(5, 2))
    assert set(ax.collections[0].get_sizes()) == {6.0}


# Contours of the components.


def test_component_contours_enclose_the_mass_that_they_are_said_to() -> None:
    """Of a Gaussian of variance 4 they are circles: r² = −8 log(1 − mass)."""
    vmonf = three_gaussians(variance=4.0)
    ax = plots.plot_component_contours(
        vmonf, mass=(0.9, 0.5), num_samples=20000, extent=(-12.0, 12.0, -8.0, 14.0)
    )
    assert len(ax.collections) == K
    for k, contours in enumerate(ax.collections):
        np.testing.assert_allclose(contours.get_edgecolor()[0], to_rgba(component_colors(K)[k]))
        outer, inner = contours.get_paths()
        for mass, path in ((0.9, outer), (0.5, inner)):
            distance = np.linalg.norm(path.vertices - CORNERS[k].numpy(), axis=1)
            np.testing.assert_allclose(distance, math.sqrt(-8 * math.log(1 - mass)), rtol=0.03)
    assert [text.get_text() for text in ax.legend().get_texts()] == ["0", "1", "2"]
    assert (*ax.get_xlim(), *ax.get_ylim()) == (-12.0, 12.0, -8.0, 14.0)


def test_component_contours_lie_over_the_density() -> None:
    vmonf = three_gaussians()
    ax = plots.plot_density(vmonf, extent=(-6.0, 6.0, -3.0, 9.0), resolution=30)
    plots.plot_component_contours(vmonf, resolution=30, ax=ax)
    assert (*ax.get_xlim(), *ax.get_ylim()) == (-6.0, 6.0, -3.0, 9.0)


def test_a_component_outside_the_extent_has_no_contour() -> None:
    extent = (3.0, 5.0, -1.0, 1.0)
    ax = plots.plot_component_contours(three_gaussians(), mass=[0.3], extent=extent, resolution=40)
    (contours,) = ax.collections
    np.testing.assert_allclose(contours.get_edgecolor()[0], to_rgba(component_colors(K)[1]))


@pytest.mark.parametrize("mass", [(), (0.5, 1.0), (0.0,)])
def test_shares_of_the_mass_are_checked(mass: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected shares of the mass, in \(0, 1\)"):
        plots.plot_component_contours(three_gaussians(), mass=mass)


# Transforms.


def mesh_of(ax: Axes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the corners ``(R + 1, R + 1, 2)`` and the numbers ``(R, R)`` of the coloured cells."""
    mesh = ax.collections[0]
    return np.asarray(mesh.get_coordinates()), np.asarray(mesh.get_array()).squeeze()


@pytest.mark.parametrize("image", [False, True])
def test_prelu_shrinks_three_quadrants(image: bool) -> None:
    ax = plots.plot_transform_grid(PReLU(2, slope=0.5), image=image, lines=3, resolution=4)
    corners, log_det = mesh_of(ax)
    expected = np.zeros((4, 4))
    expected[:2] -= math.log(2)
    expected[:, :2] -= math.log(2)
    np.testing.assert_allclose(log_det, expected, atol=1e-6)
    low = -1.5 if image else -3.0
    np.testing.assert_allclose(corners[0, 0], [low, low])
    np.testing.assert_allclose(corners[-1, -1], [3.0, 3.0])
    upright = ax.collections[1].get_segments()[0]
    np.testing.assert_allclose(upright[:, 0], low)
    assert len(ax.collections[1].get_segments()) == 6
    assert ax.get_xlabel() == ("$x_1$" if image else "$z_1$")


def flows() -> dict[str, tuple[Any, Callable[[torch.Tensor, int], torch.Tensor]]]:
    """What can be drawn, with the map of a component of it."""
    loc, scale = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -3.0])
    private = Affine(2, batch_shape=(K,))
    shared = PReLU(2, slope=0.3)
    bank = RealNVP(2, K, blocks=2, hidden=(4,))
    mixture = FlowMixture([Gaussian(2, 1), NSF(2, 1, blocks=1), RealNVP(2, 2, blocks=1)])
    raw = VMoNF(FlowMixture(RotatedRealNVP(K, blocks=1)))
    raw.model.standardize_(torch.randn(50, 2) * 3 + 1)
    with torch.no_grad():
        for module in (private, bank, mixture, raw):
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def chain(*transforms: Any) -> Callable[[torch.Tensor, int], torch.Tensor]:
        def push(z: torch.Tensor, component: int) -> torch.Tensor:
            z = z.expand(K, 2)
            for transform in transforms:
                z = transform(z)
            return z[component]

        return push

    def inner(z: torch.Tensor, component: int) -> torch.Tensor:
        part, place = [(None, 0), (1, 0), (2, 0), (2, 1)][component]
        for transform in mixture.bank.parts[part].transforms:
            z = transform(z.expand(2, 2) if part == 2 else z[None])[place]
        return z

    return {
        "shared": (shared, chain(shared)),
        "private": (private, chain(private)),
        "chain": ([shared, private], chain(shared, private)),
        "torch's": (AffineTransform(loc, scale), lambda z, _: loc + scale * z),
        "bank": (bank, chain(*bank.transforms)),
        "distribution": (bank(), chain(*bank.transforms)),
        "stacked": (mixture, inner),
        "raw units": (raw, chain(*raw.model.bank.transforms, raw.model.standardizer)),
    }


@pytest.mark.parametrize("component", [0, 1, 2])
@pytest.mark.parametrize(
    "name",
    [
        *("shared", "private", "chain", "torch's"),
        *("bank", "distribution", "stacked", "raw units"),
    ],
)
def test_grids_are_the_map_and_its_jacobian(name: str, component: int, float64: None) -> None:
    flow, push = flows()[name]
    if name == "stacked":
        component += 1  # the first is no flow
    ax = plots.plot_transform_grid(flow, component=component, extent=(-1, 2, -2, 1), resolution=3)
    corners, log_det = mesh_of(ax)
    for row in range(3):
        for column in range(3):
            corner = torch.tensor([-1.0 + column, -2.0 + row])
            expected = push(corner, component).detach()
            np.testing.assert_allclose(corners[row, column], expected, rtol=1e-5, atol=1e-6)
            centre = corner + 0.5
            jacobian = torch.autograd.functional.jacobian(lambda z: push(z, component), centre)
            expected = torch.linalg.slogdet(jacobian).logabsdet
            np.testing.assert_allclose(log_det[row, column], expected, rtol=1e-5, atol=1e-6)


def test_a_grid_and_its_image_have_the_same_colours() -> None:
    bank = RealNVP(2, K)
    one, other = (plots.plot_transform_grid(bank, image=image) for image in (False, True))
    np.testing.assert_array_equal(mesh_of(one)[1], mesh_of(other)[1])
    limits = [ax.collections[0].get_clim() for ax in (one, other)]
    assert limits[0] == limits[1]
    assert limits[0][0] == -limits[0][1]


def test_a_map_that_keeps_volumes_is_white() -> None:
    ax = plots.plot_transform_grid(Rotation(2), colorbar=False, resolution=5)
    assert ax.collections[0].get_clim() == (-1.0, 1.0)
    assert len(ax.figure.axes) == 1


@pytest.mark.parametrize("image", [False, True])
def test_samples_keep_the_colour_of_their_quadrant(image: bool) -> None:
    """PReLU maps each quadrant into itself, so the colours tell the signs in both."""
    ax = plots.plot_transform_samples(PReLU(2, slope=0.1), 400, image=image)
    signs = []
    for artist in ax.collections:
        points = np.asarray(artist.get_offsets())
        (sign,) = {tuple(row) for row in (points < 0).tolist()}
        signs.append(sign)
        assert (points.min() < -1) == (True in sign and not image)
    assert signs == [(False, False), (True, False), (False, True), (True, True)]
    colors = {tuple(artist.get_facecolor()[0]) for artist in ax.collections}
    assert len(colors) == 4
    assert not colors & {to_rgba(color) for color in component_colors(K)}


def test_samples_of_a_flow_are_those_of_its_base() -> None:
    base = torch.distributions.Independent(Normal(CORNERS, 0.01), 1)
    bank = RealNVP(2, K, blocks=0, base=base)
    model = FlowMixture(bank)
    model.standardize_(2 * torch.randn(1000, 2))
    ax = plots.plot_transform_samples(model, 200, component=2)
    points = np.concatenate([artist.get_offsets() for artist in ax.collections])
    expected = model.standardizer(CORNERS[2])
    np.testing.assert_allclose(points.mean(0), expected, atol=0.02)


def test_modules_keep_their_modes_and_their_statistics() -> None:
    norm = BatchNorm(2).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    plots.plot_transform_grid(norm, resolution=5)
    assert norm.training
    assert all(value.equal(before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    ("flow", "component", "message"),
    [
        (RealNVP(2, K), 3, "component is 3 of a distribution of batch_shape"),
        (Affine(2, batch_shape=(K,)), -1, "component is -1; expected 0 to 2"),
        (RealNVP(3, K), 0, r"expected one of \(K,\), and event_shape \(2,\)"),
        (PReLU(3), 0, "PReLU has 3 features"),
        (Gaussian(2, K), 1, "MultivariateNormal without transforms"),
    ],
)
def test_what_has_no_grid_is_refused(flow: Any, component: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_transform_grid(flow, component=component)
    assert not plt.get_fignums(), "a refused figure was opened"


# Scores.


def outlined(ax: Axes) -> set[tuple[int, int]]:
    """Return the cells, as row and column, that have a frame."""
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return {(round(f.get_y() + 0.5), round(f.get_x() + 0.5)) for f in frames}


LABELS = torch.tensor([0] * 4 + [1] * 4 + [2] * 2)
CLUSTERS = torch.tensor([2, 2, 2, 3, 0, 0, 1, 0, 3, 3])


def test_contingency_outlines_the_best_matching() -> None:
    ax = plots.plot_contingency(LABELS, CLUSTERS)
    assert outlined(ax) == {(0, 2), (1, 0), (2, 3)}  # cluster 1 has no label left
    assert ax.get_title() == "best matching: 0.800"
    bare = plots.plot_contingency(LABELS, CLUSTERS, matching=False, ax=Figure().subplots())
    assert not outlined(bare)
    assert not bare.get_title()


def test_ordered_clusters_lie_on_the_diagonal_under_their_own_names() -> None:
    ax = plots.plot_contingency(LABELS, CLUSTERS, ordered=True, normalize=False, num_clusters=5)
    assert outlined(ax) == {(0, 0), (1, 1), (2, 2)}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "0", "3", "1", "4"]
    texts = np.array([text.get_text() for text in ax.texts]).reshape(3, 5)
    assert texts.tolist() == [list("30100"), list("03010"), list("00200")]


@pytest.mark.parametrize("size", [2.0, 6.0])
def test_numbers_of_a_table_do_not_overlap(size: float) -> None:
    labels = torch.arange(12).repeat(50)
    for normalize in (True, False):
        ax = Figure(figsize=(size, size)).subplots()
        plots.plot_contingency(labels, labels.flip(0), normalize=normalize, ax=ax)
        ax.figure.canvas.draw()
        cell = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
        assert all(text.get_window_extent().width < cell for text in ax.texts)


def test_roc_draws_a_curve_a_call() -> None:
    ax = plots.plot_roc([0.0, 1.0, 2.0], [1.5, 3.0], label="one")
    plots.plot_roc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]), ax=ax)
    _, one, other = ax.get_lines()
    np.testing.assert_allclose(one.get_xdata(), [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(one.get_ydata(), [0, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_allclose(other.get_xdata(), other.get_ydata())
    assert one.get_color() != other.get_color()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["one: AUC 0.833", "AUC 0.500"]


# The report.


def a_report() -> ComponentReport:
    return ComponentReport(
        weight=torch.tensor([0.3, 0.3, 0.4]),
        usage=torch.tensor([0.5, 0.495, 0.005]),
        usage_exact=torch.tensor([0.45, 0.5, 0.05]),
        entropy=torch.tensor([0.1, 0.2, math.nan]),
        log_prob=torch.tensor([-1.0, -2.0, math.nan]),
        overlap=torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.0, 0.1, 0.9]]),
        gap=0.1,
        inversion_error=torch.zeros(3),
    )


def test_report_draws_shares_and_names_what_is_wrong() -> None:
    ax = plots.plot_report(a_report())
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(
        [bar.get_width() for bar in bars], [0.5, 0.495, 0.005, 0.45, 0.5, 0.05], rtol=1e-6
    )
    colors = component_colors(3)
    assert [bar.get_facecolor()[:3] for bar in bars[:3]] == colors
    (marks,) = ax.collections
    np.testing.assert_allclose([line[0, 0] for line in marks.get_segments()], [0.3, 0.3, 0.4])
    texts = [text.get_text() for text in ax.texts][1:]
    assert texts == ["0.10, -1.00  doubles 1", "0.20, -2.00  doubles 0", "–, –  dead"]
    kinds = [text.get_text() for text in ax.get_legend().get_texts()]
    assert kinds == ["guide", "Bayes' rule", "weight"]


def test_overlap_outlines_doubled_pairs() -> None:
    ax = plots.plot_overlap(a_report())
    assert outlined(ax) == {(0, 1), (1, 0)}
    assert [text.get_text() for text in ax.texts][:3] == ["0.60", "0.40", "0.00"]
    alone = dataclasses.replace(a_report(), overlap=torch.eye(3))
    assert not outlined(plots.plot_overlap(alone, ax=Figure().subplots()))


# The plate diagram.


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
    mixture = FlowMixture(RealNVP(2, K))

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
    plots.plot_plate(FlowMixture(RealNVP(2, K)))
    assert list(pyro.get_param_store().keys()) == ["theirs"]
