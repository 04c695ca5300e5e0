"""Starts as objects, and the ways in which they reach a pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.contracts import Start
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import (
    GaussianMixture,
    KMeans,
    MergedGaussians,
    SpanningTree,
    Spectral,
    warm_start_,
)
from pyro_vmonf.starts.choice import choose
from pyro_vmonf.starts.gaussians import gaussians_of_size
from pyro_vmonf.starts.responsibilities import as_responsibilities

Make = Callable[[], Start]
STARTS: list[Make] = [
    GaussianMixture,
    MergedGaussians,
    SpanningTree,
    Spectral,
    KMeans,
]


def blobs(seed: int = 0, each: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    c = torch.arange(3).repeat_interleave(each)
    x = torch.randn(3 * each, 2, generator=generator)
    return x + 9 * torch.eye(3)[c][:, :2], c


def by_truth(x: Tensor, num_clusters: int) -> Tensor:
    return torch.arange(num_clusters).repeat_interleave(len(x) // num_clusters)


@pytest.mark.parametrize("make", STARTS)
@pytest.mark.parametrize("points", [3, 5])
def test_equal_rows_have_one_cluster(make: Make, points: int) -> None:
    x = torch.randn(points, 2)[torch.arange(60) % points]
    found = make()(x, 5)
    assert found.count_nonzero() == 60
    assert len(found.unique(dim=0)) == points
    torch.testing.assert_close(found, found[:points].repeat(60 // points, 1))


@pytest.mark.parametrize("make", STARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_start_gives_responsibilities(make: Make, dtype: torch.dtype) -> None:
    x, c = blobs()
    found = make()(x.to(dtype), 3)
    assert found.shape == (120, 3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.sum(1), torch.ones(120, dtype=dtype))
    assert accuracy(c, found.argmax(1)) == 1.0
    assert make() == make()


@pytest.mark.parametrize("make", STARTS)
def test_a_start_refuses_what_it_cannot_cluster(make: Make) -> None:
    x, _ = blobs()
    with pytest.raises(ValueError, match="2 rows; expected at least 3"):
        make()(x[:2], 3)
    with pytest.raises(ValueError, match="finite"):
        make()(x.where(x < 5, torch.inf), 3)
    with pytest.raises(TypeError, match="floating"):
        make()(x.long(), 3)


@pytest.mark.parametrize("make", [GaussianMixture, MergedGaussians, KMeans])
def test_units_of_the_columns_do_not_matter(make: Make) -> None:
    x, c = blobs()
    found = make()(x.double() * torch.tensor([1e-5, 1e3]).double(), 3)
    assert accuracy(c, found.argmax(1)) == 1.0


@pytest.mark.parametrize("make", [SpanningTree, Spectral, KMeans])
def test_options_that_are_no_counts_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="n_init" if make is KMeans else "neighbors"):
        make(**{"n_init" if make is KMeans else "neighbors": 0})


def test_rows_without_columns_are_refused() -> None:
    for x in (torch.zeros(9), torch.zeros(9, 0)):
        with pytest.raises(ValueError, match="expected rows"):
            KMeans()(x, 3)


def spoiling(x: Tensor, num_clusters: int) -> Tensor:
    found = KMeans()(x, num_clusters)
    x.zero_()
    return found


def test_a_start_that_works_in_place_spoils_nothing() -> None:
    x, _ = blobs()
    before, rows = x.clone(), x.double().numpy()
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    warm_start_(vmonf.guide, x, spoiling, steps=2, seed=0)
    assert torch.equal(x, before)
    alone = choose(rows, 3, {"tree": SpanningTree()})[0].score
    found = {s.name: s.score for s in choose(rows, 3, {"own": spoiling, "tree": SpanningTree()})}
    assert found["tree"] == alone == pytest.approx(found["own"], abs=0.2)
    FlowMixtureClustering(3, init=spoiling, max_iter=1, random_state=0).fit(rows)
    assert np.array_equal(rows, before.double().numpy())


def test_a_start_with_too_few_clusters_says_so() -> None:
    x, _ = blobs()
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    with pytest.warns(RuntimeWarning, match="the start found 1 clusters, and the mixture has 3"):
        warm_start_(vmonf.guide, x, lambda x, k: torch.zeros(len(x)).long(), steps=2, seed=0)


def test_responsibilities_of_gaussians_are_their_posterior() -> None:
    x, _ = blobs()
    rows = x.double() / 4  # that overlap
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    found = GaussianMixture(seed=3)(rows, 3)
    exact = gaussians_of_size(rows.numpy(), 3, seed=3).responsibilities(rows.numpy())
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-9)
    merged = MergedGaussians(large=gaussians_of_size(rows.numpy(), 5))(rows, 3)
    assert merged.shape == (120, 3)
    torch.testing.assert_close(merged.sum(1), torch.ones(120).double())


@pytest.mark.parametrize(
    ("found", "error", "words"),
    [
        (torch.zeros(3), TypeError, "dtype torch.float32; expected integers"),
        (torch.zeros(3).bool(), TypeError, "dtype torch.bool"),
        (torch.zeros(4).long(), ValueError, r"shape \(4,\); expected one number from 0 for each"),
        (torch.tensor([0, 1, 2]), ValueError, "hold 2 in row 2; expected numbers from 0 to 1"),
        (torch.ones(3, 3) / 3, ValueError, r"or responsibilities of shape \(3, 2\)"),
        (torch.tensor([[1.0, 0], [1, 1], [0, 1]]), ValueError, r"row 1 are \[1.0, 1.0\]"),
        (torch.tensor([[1.0, 0], [2, -1], [0, 1]]), ValueError, r"row 1 are \[2.0, -1.0\]"),
    ],
)
def test_what_is_no_clustering_is_refused(found: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        as_responsibilities(found, 3, 2, torch.zeros(()))


def test_a_guide_learns_responsibilities() -> None:
    """The cross-entropy is least where the guide has the responsibilities themselves."""
    x, c = blobs()
    target = torch.full((120, 3), 0.1).scatter_(1, c.unsqueeze(1), 0.8)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    warm_start_(vmonf.guide, x, target, steps=600, lr=1e-2, seed=0)
    assert (vmonf.predict_proba(x) - target).abs().mean() < 0.02


def test_labels_name_the_clusters_of_responsibilities() -> None:
    x, c = blobs()
    y = torch.where(torch.arange(120) % 10 == 0, (c + 1) % 3, -1)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    warm_start_(vmonf.guide, x, KMeans(), y, steps=200, seed=0)
    assert torch.equal(vmonf.predict(x), (c + 1) % 3)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_pair_is_built_of_the_starts_that_are_given(as_dict: bool) -> None:
    x, c = blobs()
    starts: Any = [KMeans(), by_truth]
    if as_dict:
        starts = {"means": KMeans(), "truth": by_truth, "thirds": KMeans(seed=1)}
    vmonf = VMoNF.from_data(x, components=3, starts=starts, seed=0, minutes=0.02, progress=False)
    choice = vmonf.history.choice  # type: ignore[union-attr]
    names = {"means", "truth", "thirds"} if as_dict else {"KMeans", "by_truth"}
    assert set(choice["candidates"]) == names
    assert choice["start"] in names
    assert accuracy(c, vmonf.predict(x)) == 1.0


def test_starts_that_are_given_are_the_only_ones_where_the_number_is_found() -> None:
    x, _ = blobs()
    vmonf = VMoNF.from_data(x, starts=[KMeans()], seed=0, minutes=0.02, progress=False)
    choice = vmonf.history.choice  # type: ignore[union-attr]
    assert list(choice["candidates"]) == ["KMeans"]
    assert choice["components"] == 3


def wrong(x: Tensor, num_clusters: int) -> Tensor:
    return x[:, 0]


@pytest.mark.parametrize(
    ("starts", "error", "words"),
    [
        ([], ValueError, "starts is empty"),
        (KMeans(), TypeError, "starts is KMeans.*; expected a list"),
        ([KMeans], TypeError, r"expected an object such as KMeans\(\)"),
        ([KMeans(), KMeans(seed=1)], ValueError, "pass a dict with a name for each"),
        ("spectral", TypeError, "starts is 'spectral'; expected a list"),
        ([wrong], TypeError, "the start 'wrong' failed: clusters have dtype torch.float64"),
    ],
)
def test_starts_that_are_none_are_refused(starts: Any, error: Any, words: str) -> None:
    x, _ = blobs(each=10)
    with pytest.raises(error, match=words):
        VMoNF.from_data(x, components=3, starts=starts, progress=False)


def test_images_take_no_starts() -> None:
    with pytest.raises(ValueError, match="nor starts"):
        VMoNF.from_data(torch.rand(20, 1, 4, 4), components=2, starts=[KMeans()])


def test_the_estimator_begins_at_a_start() -> None:
    x, c = blobs()
    found = FlowMixtureClustering(3, init=by_truth, max_iter=8, random_state=0).fit(x.numpy())
    assert accuracy(c, torch.as_tensor(found.labels_)) == 1.0
