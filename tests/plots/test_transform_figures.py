"""Figures of transforms: the map, its Jacobian, and the colours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from pyro.distributions import Normal
from torch.distributions import AffineTransform

from pyro_vmonf import (
    NSF,
    FlowMixture,
    Gaussian,
    RealNVP,
    RotatedRealNVP,
    VMoNF,
    plots,
)
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.transforms import Affine, BatchNorm, PReLU, Rotation

K = 3
CORNERS = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])


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
    bank = RealNVP(2, K, blocks=2)
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
        (RealNVP(2, K, blocks=2), 3, "component is 3 of a distribution of batch_shape"),
        (Affine(2, batch_shape=(K,)), -1, "component is -1; expected 0 to 2"),
        (RealNVP(3, K, blocks=2), 0, r"expected one of \(K,\), and event_shape \(2,\)"),
        (PReLU(3), 0, "PReLU has 3 features"),
        (Gaussian(2, K), 1, "Normals without transforms"),
    ],
)
def test_what_has_no_grid_is_refused(flow: Any, component: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.plot_transform_grid(flow, component=component)
    assert not plt.get_fignums(), "a refused figure was opened"
