"""Figures of fits: what their artists say."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    SoftmaxGuide,
    VMoNF,
    plots,
)
from pyro_vmonf.plots.palette import component_colors, tint
from pyro_vmonf.report import ComponentReport

K = 3
CORNERS = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])


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
        confidence=0.9,
        confidence_exact=0.8,
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
