"""Figures and the animation: what they draw, and what they leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from pyro_vmonf import (
    AutoregressiveNSF,
    FlowMixture,
    Gaussian,
    History,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import (
    plot_clusters,
    plot_component_contours,
    plot_component_grid,
    plot_components,
    plot_contingency,
    plot_data,
    plot_density,
    plot_fit,
    plot_history,
    plot_memberships,
    plot_overlap,
    plot_plate,
    plot_regions,
    plot_report,
    plot_responsibilities,
    plot_roc,
    plot_samples,
    plot_terms,
    plot_transform_grid,
    plot_transform_samples,
    plot_uncertainty,
    style,
    window,
)
from pyro_vmonf.plots.palette import PALETTE, UNLABELLED, component_colors, tint

K = 3


def pair(features: int = 2, components: int = K) -> VMoNF:
    """A pair whose modules are in ``train()``, and draw random numbers there."""
    network = nn.Sequential(nn.Dropout(0.5), MLP(features, components))
    bank: Any = RealNVP if features > 1 else AutoregressiveNSF
    bank = bank(features, components, blocks=2, hidden=(4,))
    return VMoNF(FlowMixture(bank), SoftmaxGuide(network)).train()


def three_gaussians() -> VMoNF:
    """Components around the corners of a triangle, with no guide: the posterior is exact."""
    vmonf = VMoNF(FlowMixture(Gaussian(2, K)))
    corners = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    vmonf.model.bank.set_(corners, torch.eye(2).expand(K, 2, 2))
    return vmonf


def course(epochs: int = 30, **more: Any) -> History:
    falling = [math.exp(-epoch / 10) for epoch in range(epochs)]
    return History(
        epoch=list(range(epochs)),
        step=list(range(epochs)),
        elbo=[-value for value in falling],
        terms={"log_likelihood": [-v for v in falling], "entropy": falling},
        temperature=falling,
        **more,
    )


# Each builds what is drawn, and returns the function that draws it.
PLOTS: dict[str, Callable[[], Callable[..., Axes]]] = {
    "data": lambda: partial(plot_data, torch.randn(20, 2)),
    "labels": lambda: partial(plot_data, torch.randn(20, 2), torch.arange(20) % 4 - 1),
    "regions": lambda: partial(plot_regions, pair(), resolution=20),
    "exact regions": lambda: partial(plot_regions, pair(), exact=True, resolution=20),
    "clusters": lambda: partial(plot_clusters, pair(), torch.randn(20, 2)),
    "samples": lambda: partial(plot_samples, pair(), 50),
    "density": lambda: partial(plot_density, pair(), resolution=20),
    "component grid": lambda: partial(plot_component_grid, pair(12), (3, 4)),
    "history": lambda: partial(plot_history, course(held_out=[-1.0] * 30)),
    "terms": lambda: partial(plot_terms, course()),
    "contingency": lambda: partial(plot_contingency, [0, 1, 1], [1, 0, 1]),
    "component contours": lambda: partial(plot_component_contours, pair(), resolution=20),
    "responsibilities": lambda: partial(plot_responsibilities, pair(), torch.randn(20, 2)),
    "transform grid": lambda: partial(plot_transform_grid, pair(), resolution=10),
    "transform samples": lambda: partial(plot_transform_samples, pair(), 50),
    "plate": lambda: partial(plot_plate, pair()),
    "roc": lambda: partial(plot_roc, [0.0, 1.0], [2.0]),
    "line": lambda: partial(plot_fit, pair(1), torch.randn(20, 1)),
    "plane": lambda: partial(plot_fit, pair(), torch.randn(20, 2)),
    "pairs": lambda: partial(plot_fit, pair(3), torch.randn(20, 3)),
    "samples of pairs": lambda: partial(plot_fit, pair(3)),
    "components": lambda: partial(plot_components, pair(), num_samples=50),
    "means": lambda: partial(plot_components, pair(3), num_samples=50),
    "memberships": lambda: partial(plot_memberships, pair(3), torch.randn(20, 3)),
    "uncertainty": lambda: partial(plot_uncertainty, pair(3), torch.randn(20, 3)),
    "report": lambda: partial(plot_report, pair().report(torch.randn(50, 2))),
    "overlap": lambda: partial(plot_overlap, pair().report(torch.randn(50, 2))),
}


@pytest.mark.parametrize("name", PLOTS)
def test_draws_on_the_axes_given_and_on_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    figure, (other, ax) = plt.subplots(1, 2)
    assert PLOTS[name]()(ax=ax) is ax
    drawn = ax.has_data() or any(child.has_data() for child in ax.child_axes)
    assert drawn, f"{name} drew nothing"
    assert not other.has_data()
    assert plt.get_fignums() == [figure.number]
    assert plt.gca() is ax, f"{name} left Axes of its own as the current ones"
    figure.canvas.draw()


@pytest.mark.parametrize("name", PLOTS)
def test_opens_one_figure_without_axes(name: str) -> None:
    ax = PLOTS[name]()()
    assert [plt.figure(number) for number in plt.get_fignums()] == [ax.figure]


@pytest.mark.parametrize("name", PLOTS)
def test_leaves_random_state_and_settings_alone(
    name: str, global_state: Callable[[], list[Any]]
) -> None:
    draw, ax = PLOTS[name](), Figure().subplots()
    before = global_state()
    draw(ax=ax)
    assert global_state() == before


def test_a_backend_that_wakes_up_in_a_figure_stays_awake() -> None:
    """A notebook shows figures only while matplotlib is interactive."""
    before = mpl.rcParams["interactive"]
    try:
        with style():
            mpl.rcParams["interactive"] = not before
        assert mpl.rcParams["interactive"] is not before
    finally:
        mpl.rcParams["interactive"] = before


OF_A_PAIR = [
    *("regions", "clusters", "samples", "density", "component grid", "component contours"),
    *("responsibilities", "transform grid", "transform samples", "plate", "line", "plane", "pairs"),
    *("components", "means", "memberships", "uncertainty"),
]


@pytest.mark.parametrize("name", OF_A_PAIR)
def test_leaves_the_modes_and_the_gradients_alone(name: str) -> None:
    draw = PLOTS[name]()
    vmonf = draw.args[0]  # type: ignore[attr-defined]
    draw(ax=Figure().subplots())
    assert all(module.training for module in vmonf.modules())
    assert all(parameter.grad is None for parameter in vmonf.parameters())


@pytest.mark.parametrize(
    "name",
    [
        *("samples", "component grid", "regions", "component contours", "transform samples"),
        *("pairs", "means"),
    ],
)
def test_a_figure_is_the_same_twice(name: str) -> None:
    draw = PLOTS[name]()

    def pixels() -> np.ndarray[Any, Any]:
        figure = Figure(figsize=(2, 2))
        draw(ax=figure.subplots())
        file = BytesIO()
        figure.savefig(file, format="png")
        return np.asarray(Image.open(file))

    np.testing.assert_array_equal(pixels(), pixels())


@pytest.mark.parametrize(
    "draw",
    [
        lambda vmonf: plot_regions(vmonf),
        lambda vmonf: plot_clusters(vmonf, torch.randn(5, 3)),
        lambda vmonf: plot_samples(vmonf),
        lambda vmonf: plot_density(vmonf),
        lambda vmonf: plot_component_contours(vmonf),
        lambda vmonf: plot_responsibilities(vmonf, torch.randn(5, 3)),
        lambda _: plot_data(torch.randn(5, 3)),
    ],
    ids=["regions", "clusters", "samples", "density", "contours", "responsibilities", "data"],
)
def test_three_features_are_refused_with_advice(draw: Callable[[VMoNF], Axes]) -> None:
    with pytest.raises(ValueError, match=r"3.*(\[:, :2\]|fit a mixture of two columns)"):
        draw(pair(features=3))
    assert not plt.get_fignums(), "a refused figure was opened"


def test_data_colours_labelled_points_and_greys_the_others() -> None:
    x, labels = torch.randn(6, 2), torch.tensor([-1, -1, -1, 0, 2, 2])
    ax = plot_data(x, labels)
    grey, *labelled = ax.collections
    np.testing.assert_allclose(grey.get_offsets(), x[:3])
    assert tuple(grey.get_facecolor()[0]) == to_rgba(UNLABELLED)
    for artist, label in zip(labelled, (0, 2), strict=True):
        np.testing.assert_allclose(artist.get_offsets(), x[labels == label])
        assert tuple(artist.get_facecolor()[0]) == to_rgba(PALETTE[label])
        assert artist.get_sizes() > grey.get_sizes()
    assert [text.get_text() for text in ax.legend().get_texts()] == ["unlabelled", "0", "2"]
    assert ax.get_aspect() == 1


@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0, 0.5]], ids=["length", "kind"])
def test_labels_that_do_not_fit_are_refused(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match="one integer for each of the 3 points"):
        plot_data(torch.randn(3, 2), labels)


def test_regions_tint_the_plane_by_the_posterior() -> None:
    vmonf = three_gaussians()
    ax = plot_regions(vmonf, extent=(-6.0, 6.0, -3.0, 9.0), resolution=24)
    (image,) = ax.get_images()
    colors = image.get_array()
    for (across, up), color in zip([(-4, 0), (4, 0), (0, 6)], component_colors(K), strict=True):
        pixel = colors[round((up + 3) * 2), round((across + 6) * 2)]
        np.testing.assert_allclose(pixel, tint(color))
    assert image.get_zorder() < 0


def test_regions_of_guide_and_exact_posterior_differ() -> None:
    vmonf = three_gaussians()
    guided = VMoNF(vmonf.model, SoftmaxGuide(MLP(2, K)))
    extent = (-6.0, 6.0, -3.0, 9.0)

    def colors(pair: VMoNF, exact: bool) -> np.ndarray[Any, Any]:
        ax = plot_regions(pair, exact=exact, extent=extent, resolution=20, ax=Figure().subplots())
        return np.asarray(ax.get_images()[0].get_array())

    np.testing.assert_array_equal(colors(guided, True), colors(vmonf, False))
    assert (colors(guided, False) != colors(guided, True)).any()


def test_regions_keep_what_the_axes_show() -> None:
    ax = plot_data(torch.tensor([[0.0, 0.0], [1.0, 3.0]]))
    before = ax.get_xlim(), ax.get_ylim()
    plot_regions(pair(), resolution=10, ax=ax)
    assert (ax.get_xlim(), ax.get_ylim()) == before


@pytest.mark.parametrize("draw", [plot_regions, plot_density])
def test_an_empty_extent_is_refused(draw: Callable[..., Axes]) -> None:
    with pytest.raises(ValueError, match="left < right and bottom < top"):
        draw(pair(), extent=(1.0, -1.0, 0.0, 1.0))


def test_clusters_have_the_colour_of_their_component() -> None:
    vmonf, x = three_gaussians(), torch.tensor([[0.0, 6.0], [-4.0, 0.0], [0.1, 6.0]])
    first, last = plot_clusters(vmonf, x).collections
    np.testing.assert_allclose(first.get_offsets(), x[1:2])
    assert tuple(first.get_facecolor()[0]) == to_rgba(PALETTE[0])
    np.testing.assert_allclose(last.get_offsets(), x[[0, 2]])
    assert tuple(last.get_facecolor()[0]) == to_rgba(PALETTE[2])


def test_samples_have_the_colour_of_their_component() -> None:
    vmonf = three_gaussians()
    x, c = vmonf.sample(60, seed=4)
    ax = plot_samples(vmonf, 60, seed=4)
    for k, artist in enumerate(ax.collections):
        np.testing.assert_allclose(artist.get_offsets(), x[c == k])
        assert tuple(artist.get_facecolor()[0]) == to_rgba(PALETTE[k])
    assert len(ax.get_images()) == 1


def test_density_is_the_log_density() -> None:
    vmonf = three_gaussians()
    ax = plot_density(vmonf, extent=(-6.0, 6.0, -3.0, 9.0), depth=5.0, resolution=24)
    (image,) = ax.get_images()
    values = np.asarray(image.get_array())
    point = torch.tensor([[-4.0 + 0.25, 0.25]])  # the centre of pixel (6, 4)
    np.testing.assert_allclose(values[6, 4], float(vmonf.log_prob(point)), rtol=1e-5)
    np.testing.assert_allclose(np.ptp(values), 5.0)
    assert len(ax.figure.axes) == 2
    bare = plot_density(vmonf, colorbar=False, resolution=10, ax=Figure().subplots())
    assert len(bare.figure.axes) == 1


def test_component_grid_has_a_row_for_each_component() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(6, K)))
    # Component k is grey at k/2, nearly without noise.
    greys = torch.tensor([0.0, 0.5, 1.0])[:, None].expand(K, 6)
    vmonf.model.bank.set_(greys, 1e-6 * torch.eye(6).expand(K, 6, 6))
    ax = plot_component_grid(vmonf, (2, 3), per_component=4)
    pixels = np.asarray(ax.get_images()[0].get_array())
    assert pixels.shape == (K * 3 - 1, 4 * 4 - 1, 3)
    for k in range(K):
        np.testing.assert_allclose(pixels[3 * k : 3 * k + 2, 4:7], k / 2, atol=0.02)
    assert (pixels[2] == 1).all()
    assert (pixels[:, 3] == 1).all()


def test_component_grid_in_colour_keeps_the_channels_apart() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(12, 1)))
    red = torch.tensor([[255.0] * 4 + [0.0] * 8])  # (C, H, W), flattened
    vmonf.model.bank.set_(red, 1e-6 * torch.eye(12).expand(1, 12, 12))
    ax = plot_component_grid(vmonf, (3, 2, 2), 1, value_range=(0.0, 255.0))
    pixels = np.asarray(ax.get_images()[0].get_array())
    np.testing.assert_allclose(pixels, np.broadcast_to([1.0, 0.0, 0.0], (2, 2, 3)), atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 3), (12,), (2, 2, 3), (1, 1, 3, 4)])
def test_image_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"rows have shape \(12,\); expected \(H, W\)"):
        plot_component_grid(pair(12), shape)


def test_history_draws_what_was_recorded() -> None:
    history = course(held_out=[-0.5] * 30, rejected=2)
    ax = plot_history(history)
    training, held_out = ax.get_lines()
    np.testing.assert_array_equal(training.get_ydata(), history.elbo)
    np.testing.assert_array_equal(held_out.get_ydata(), history.held_out)
    _, right = ax.figure.axes
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), history.temperature)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["training", "held out", "temperature"]
    assert "2 steps" in ax.get_title()


def test_history_of_odd_runs() -> None:
    """Nothing recorded; one epoch; a NaN epoch; pretraining; a constant temperature."""
    for history in (
        History(),
        History(epoch=[0], elbo=[1.0], temperature=[1.0]),
        History(epoch=[-1, 0, 1], elbo=[-9.0, math.nan, -1.0], temperature=[0.5] * 3),
    ):
        ax = plot_history(history, ax=Figure().subplots())
        assert len(ax.figure.axes) == 1, "a constant temperature needs no axis"
        ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.texts] == ["pretraining"]


def test_terms_have_a_line_each() -> None:
    history = course()
    history.terms["classification"] = [0.0] * 30  # no labels, no line
    _, *lines = plot_terms(history).get_lines()
    for line, name in zip(lines, ("entropy", "log_likelihood"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), history.terms[name])


@pytest.mark.parametrize(
    ("normalize", "expected"), [(True, "0.33 0.67 1.00 0.00"), (False, "1 2 4 0")]
)
def test_contingency_writes_shares_or_counts(normalize: bool, expected: str) -> None:
    ax = plot_contingency([0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 0], normalize=normalize)
    assert " ".join(text.get_text() for text in ax.texts) == expected
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("label", "cluster")


def test_ten_colours_differ_and_twenty_follow() -> None:
    assert len(set(component_colors(20))) == 20
    assert component_colors(23)[20:] == component_colors(3)


# Verbs of the pair, and the style.


@pytest.mark.parametrize("features", [1, 2, 3])
def test_each_verb_draws_on_the_axes_given(features: int) -> None:
    vmonf, x = pair(features), torch.randn(30, features)
    vmonf.history = course()
    axes = Figure().subplots(2, 3).ravel()
    calls: list[Callable[..., Axes]] = [
        partial(vmonf.plot, x),
        partial(vmonf.plot_report, x),
        vmonf.plot_history,
        partial(vmonf.plot_responsibilities, x),
        vmonf.plot_components,
        partial(vmonf.plot_uncertainty, x),
    ]
    for draw, ax in zip(calls, axes, strict=True):
        assert draw(ax=ax) is ax
    assert not plt.get_fignums()


def test_verbs_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no epoch of training to draw; call fit first"):
        pair().plot_history()
    with pytest.raises(ValueError, match=r"features is \[0, 3\]; expected .* 0 to 2"):
        pair(3).plot(torch.randn(9, 3), features=[0, 3])
    with pytest.raises(ValueError, match="x has no rows"):
        pair(3).plot(torch.randn(0, 3))
    normal = torch.distributions.Normal(torch.zeros(2, 1, 4, 4), 1.0)
    images = VMoNF(FlowMixture(torch.distributions.Independent(normal, 3)))
    with pytest.raises(ValueError, match="plot_component_grid draws images"):
        images.plot()
    assert images.plot_components(ax=Figure().subplots()).images
    plt.close("all")


def test_text_grows_with_the_figure() -> None:
    """At the width of a page each figure has text of 10 points."""
    for width in (6.4, 12.8):
        with style(width):
            ax = plt.subplots(figsize=(width, 4))[1]
        plot_history(course(held_out=[-1.0] * 30), ax=ax)
        legend = ax.get_legend()
        assert legend is not None
        texts = [ax.xaxis.label, *ax.get_xticklabels(), *legend.get_texts()]
        assert {text.get_fontsize() * 6.4 / width for text in texts} == {10.0}


def test_the_density_over_a_line_is_that_of_the_mixture() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(1, 2)))
    vmonf.model.bank.set_(torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1, 1))
    ax = plot_fit(vmonf, torch.tensor([[-4.0], [-3.0], [3.0], [4.0]]))
    *parts, whole = ax.get_lines()
    at = torch.as_tensor(whole.get_xdata())
    expected = vmonf.log_prob(at.unsqueeze(1)).exp()
    np.testing.assert_allclose(whole.get_ydata(), expected, rtol=1e-5)
    np.testing.assert_allclose(sum(part.get_ydata() for part in parts), expected, rtol=1e-5)


def test_the_ellipses_are_two_standard_deviations() -> None:
    """The rows of a cluster are the corners of a box, whose axes the ellipse has."""
    vmonf = VMoNF(FlowMixture(Gaussian(3, 1)))
    box = torch.tensor([[a, b, c] for a in (-1.0, 1.0) for b in (-3.0, 3.0) for c in (-9.0, 9.0)])
    ax = plot_fit(vmonf, box)
    [ellipse] = ax.child_axes[3].patches  # the second row, the first column: 1 over 0
    lengths = sorted([ellipse.width, ellipse.height])
    np.testing.assert_allclose(lengths, [4 * s * math.sqrt(8 / 7) for s in (1, 3)], rtol=1e-6)


def test_pairs_are_of_the_features_that_part_the_clusters() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(7, 2)))
    centres = torch.zeros(2, 7)
    centres[1, [1, 2, 3, 5, 6]] = 20.0
    vmonf.model.bank.set_(centres, torch.eye(7).expand(2, 7, 7))
    x, _ = vmonf.sample(60, seed=0)
    ax = plot_fit(vmonf, x)
    shown = [part.get_xlabel() for part in ax.child_axes[-5:]]
    assert shown == [f"feature {i}" for i in (1, 2, 3, 5, 6)]


def test_means_are_those_of_the_components() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(3, 2)))
    centres = torch.tensor([[100.0, 0.0, 2.0], [300.0, 0.0, 4.0]])
    vmonf.model.bank.set_(centres, 1e-6 * torch.eye(3).expand(2, 3, 3))
    ax = plot_components(vmonf)
    texts = [text.get_text() for text in ax.texts]
    assert [texts[i] for i in (0, 1, 4, 5)] == ["100", "300", "2", "4"]
    scaled = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(scaled[[0, 2]], [[-1, 1], [-1, 1]], atol=1e-3)


def test_uncertainty_is_the_share_below_a_probability() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [math.log(4.0), 0.0]])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(nn.Identity()))
    exact, guide = plot_uncertainty(vmonf, logits).get_lines()
    np.testing.assert_allclose(guide.get_xdata(), [0.5, 0.75, 0.8], rtol=1e-6)
    np.testing.assert_allclose(guide.get_ydata(), [1 / 3, 2 / 3, 1])
    assert exact.get_label() == "Bayes' rule"


@pytest.mark.parametrize(
    "draw", [plot_density, plot_regions, plot_component_contours, plot_samples]
)
def test_other_axes_than_those_of_the_pair_are_refused(draw: Callable[..., Axes]) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    vmonf.model.feature_names = ("a", "b")
    ax = Figure().subplots()
    ax.set_xscale("log")
    with pytest.raises(ValueError, match=r"scales log, linear; .* pass axes with linear scales"):
        draw(vmonf, ax=ax)
    assert not ax.has_data()
    turned = Figure().subplots()
    turned.set(xlabel="b", ylabel="a")
    with pytest.raises(ValueError, match=r"axes b, a and the pair the columns a, b; .*'a', 'b'"):
        draw(vmonf, ax=turned)
    assert not turned.has_data()
    for labels in (("a", "b"), ("a, cm", "b, cm"), ("", "")):
        named = Figure().subplots()
        named.set(xlabel=labels[0], ylabel=labels[1])
        draw(vmonf, ax=named)


def test_dots_lie_on_logarithmic_axes_too() -> None:
    ax = Figure().subplots()
    ax.set(xscale="log", yscale="log")
    plot_data(torch.rand(5, 2) + 0.1, ax=ax)
    assert len(ax.collections) == 1


def test_no_region_lies_outside_of_every_support() -> None:
    """There ``predict`` says −1."""
    side = torch.tensor([1.0, 2.0])
    boxes = [dist.Uniform(low * side, (low + 1) * side).to_event(1) for low in (0.0, 1.0)]
    vmonf = VMoNF(FlowMixture(boxes))
    extent = (-1.0, 3.0, -1.0, 5.0)
    ax = plot_regions(vmonf, extent=extent, resolution=12, ax=Figure().subplots())
    colors = np.asarray(ax.get_images()[0].get_array()).reshape(-1, 3)
    with pytest.warns(RuntimeWarning, match="outside the support"):
        found = vmonf.predict(window.grid(extent, 12).flatten(0, 1))
    assert set(found.tolist()) == {-1, 0, 1}
    tints = np.array([*(tint(color) for color in component_colors(2)), (1.0, 1.0, 1.0)])
    np.testing.assert_allclose(colors, tints[found.numpy()])
