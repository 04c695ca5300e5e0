"""Random mixtures: seeds, sizes, separation and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from pyro_vmonf.datasets import random_mixture
from pyro_vmonf.datasets.mixtures import SHAPES


def test_seed_gives_the_same_set_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    one, other, third = random_mixture(3), random_mixture(3), random_mixture(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape != third[0].shape
    torch.manual_seed(0)
    assert random_mixture()[0].shape != random_mixture()[0].shape


@pytest.mark.parametrize("seed", range(12))
def test_components_without_overlap_are_apart(seed: int) -> None:
    x, c = (v.numpy() for v in random_mixture(seed, rows=600, overlap=0.0, noise=0.0))
    assert len(x) == len(c) == 600
    assert np.bincount(c).min() >= 15
    near = cKDTree(x).query(x, k=2)[0][:, 1]
    for k in range(c.max() + 1):
        spacing = np.median(cKDTree(x[c == k]).query(x[c == k], k=2)[0][:, 1])
        away = cKDTree(x[c != k]).query(x[c == k])[0].min()
        assert away > min(1.5 * spacing, 1.0) - 1e-4
    assert (near > 0).all()


def test_overlap_and_noise_are_those_asked_for() -> None:
    x, c = random_mixture(0, rows=1000, features=3, components=4, overlap=0.3, noise=0.2)
    assert x.shape == (1000, 3)
    assert int((c < 0).sum()) == 200
    apart = random_mixture(0, rows=1000, features=3, components=4, overlap=0.0, noise=0.0)

    def mixed(x: torch.Tensor, c: torch.Tensor) -> float:
        x, c = x[c >= 0], c[c >= 0]
        near = cKDTree(x.numpy()).query(x.numpy(), k=2)[1][:, 1]
        return float((c[near] != c).double().mean())

    assert mixed(*apart) < 0.02 < 0.05 < mixed(x, c)  # tails are sparser than the gap is wide


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_every_width(shape: str, width: int) -> None:
    x, c = random_mixture(1, rows=90, features=width, components=3, shapes=[shape])
    assert x.shape == (90, width)
    assert x.isfinite().all()
    assert c.unique()[-3:].tolist() == [0, 1, 2]


def test_shapes_are_what_they_are_called() -> None:
    ring, _ = random_mixture(0, rows=2000, features=2, components=1, shapes=["ring"], noise=0.0)
    singular = torch.linalg.svd(ring - ring.mean(0), full_matrices=False)
    round_ring = singular.U * (len(ring) / 2) ** 0.5 * 2**0.5  # unit variance: a circle of √2
    assert round_ring.norm(dim=1).std() < 0.15
    shells, c = random_mixture(
        5, rows=2000, features=4, components=2, shapes=["nested"], overlap=0.0, noise=0.0
    )
    inner, outer = shells[c == 0], shells[c == 1]
    radius = (outer - outer.mean(0)).norm(dim=1)
    assert radius.std() / radius.mean() < 0.15
    assert (inner - outer.mean(0)).norm(dim=1).max() < radius.min()


BAD: dict[str, dict[str, Any]] = {
    "shapes are": {"shapes": ["blob", "star"]},
    "overlap is": {"overlap": 1.0},
    "noise is": {"noise": -0.1},
    "rows is 20; expected at least 30": {"rows": 20, "components": 2, "noise": 0.0},
    "components is 0": {"components": 0},
    "features is": {"features": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_mixture(0, **BAD[message])
