"""Rows far from zero, such as seconds since 1970: what differences of squares and float32 lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.em import fit_em
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import window
from pyro_vmonf.starts import pretrain_, warm_start_
from pyro_vmonf.starts.copies import relearn_
from pyro_vmonf.starts.ready_made import (
    GaussianMixture,
    KMeans,
    MergedGaussians,
    SpanningTree,
    Spectral,
)

FAR = 1.7e9
PLACE = torch.arange(120) % 2
BLOBS = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).double()
BLOBS += 9 * PLACE[:, None]
STARTS = [GaussianMixture(), KMeans(), MergedGaussians(), SpanningTree(), Spectral()]
by_name = {"ids": lambda start: type(start).__name__}


def share_right(found: Tensor) -> float:
    right = float((found.argmax(-1) == PLACE).double().mean())
    return max(right, 1 - right)


@pytest.mark.parametrize("start", STARTS, **by_name)
@pytest.mark.parametrize(("offset", "scale"), [(FAR, 1.0), (0.0, 1e160), (0.0, 1e-200)])
def test_starts_find_blobs_in_any_units(start: Any, offset: float, scale: float) -> None:
    assert share_right(start(BLOBS * scale + offset, 2)) == 1.0


def test_em_draws_starts_far_from_zero() -> None:
    model = FlowMixture(Gaussian(2, 2), "learned").double()
    fit_em(model, BLOBS + FAR, n_init=1, standardize=False, ridge=1e-3, seed=0)
    assert share_right(model.log_posterior(BLOBS + FAR).exp()) == 1.0


def pair(x: Tensor) -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(2, 2))
    model.standardize_(x)
    return VMoNF(model, SoftmaxGuide(MLP(2, 2, hidden=(4,)), model=model))


def test_regions_are_those_of_predict() -> None:
    x = BLOBS + FAR
    vmonf = pair(x)
    extent = (FAR - 3, FAR + 12, FAR - 3, FAR + 12)
    found = window.regions_of(vmonf.model, vmonf.guide, extent, 30)
    expected = vmonf.predict(window.grid(extent, 30).flatten(0, 1)).reshape(30, 30).numpy()
    assert (found == expected).all()
    assert len(set(expected.flatten().tolist())) == 2


def test_walks_on_rows_in_another_order_are_refused() -> None:
    x = BLOBS + FAR
    walk = RandomWalk(x, walks=2, length=2, neighbors=3)
    index = torch.arange(len(x))
    walk.check_rows(x, index)
    walk.check_rows(x.float(), index)  # but for rounding the same
    RandomWalk(x.float(), walks=2, length=2, neighbors=3).check_rows(x, index)
    with pytest.raises(ValueError, match="in another order"):
        walk.check_rows(x.flip(0), index)


def failing_at(guide: SoftmaxGuide, number: int) -> None:
    """Let the network fail at its so-manieth call in training."""
    calls = []

    def hook(*_: Any) -> None:
        calls.append(0)
        if len(calls) == number:
            raise KeyboardInterrupt

    guide.network.register_forward_hook(hook)


@pytest.mark.parametrize("teach", [warm_start_, pretrain_])
def test_an_interrupted_lesson_leaves_the_pair_as_it_was(teach: Callable[..., Any]) -> None:
    vmonf = pair(BLOBS)
    vmonf.model.standardizer.fitted.fill_(False)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    failing_at(vmonf.guide, 5)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        teach(vmonf.guide, BLOBS.float(), PLACE, steps=9)
    after = vmonf.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_distortion_in_place_leaves_the_rows_alone() -> None:
    vmonf = pair(BLOBS)
    x = BLOBS.float()
    seen: list[float] = []

    def augment(rows: Tensor) -> Tensor:
        seen.append(float((rows - x[: len(rows)]).abs().max()) if len(rows) == len(x) else 0.0)
        return rows.add_(0.5)

    relearn_(vmonf.guide, x, augment=augment, rounds=1, copies=3, steps=2, progress=False)
    assert torch.equal(x, BLOBS.float())
    assert seen[:3] == [0.0] * 3  # each copy is of the rows themselves
