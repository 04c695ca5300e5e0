"""Starts of ``from_data``: mixtures of many Gaussians, spanning trees, labels, and the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pyro_vmonf.starts.choice import choose, densities_of, links_of, scored
from pyro_vmonf.starts.gaussians import (
    GaussianFit,
    fit_gaussians,
    merged,
    merged_responsibilities,
)
from pyro_vmonf.starts.labels import (
    along_tree,
    by_gaussians,
    by_labels,
    left_out,
    surely_better,
    to_nearest,
)
from pyro_vmonf.starts.number import by_overlap, clusterings
from pyro_vmonf.starts.tree import cut_tree, spanning_tree

Array = np.ndarray[Any, Any]


def blobs(seed: int, each: int = 40, apart: float = 9.0) -> tuple[Array, Array]:
    c = np.repeat(np.arange(3), each)
    x = np.random.default_rng(seed).normal(size=(3 * each, 2)) + apart * np.eye(3)[c][:, :2]
    return x / x.std(0), c


def rings(seed: int, each: int = 100) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    c = np.repeat([0, 1], each)
    radius = np.where(c, 0.4, 1.0) + 0.03 * generator.normal(size=2 * each)
    angle = 2 * np.pi * generator.random(2 * each)
    return radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1), c


def test_density_of_gaussians_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(2, 3, 3))
    fit = GaussianFit(
        np.array([0.3, 0.7]), generator.normal(size=(2, 3)), factor @ factor.transpose(0, 2, 1), 0
    )
    x = generator.normal(size=(5, 3))
    parts = [
        w * multivariate_normal(m, s).pdf(x)
        for w, m, s in zip(fit.weights, fit.means, fit.covariances, strict=True)
    ]
    np.testing.assert_allclose(fit.log_prob(x), np.log(sum(parts)), rtol=1e-9)
    np.testing.assert_allclose(
        fit.responsibilities(x), np.stack(parts, 1) / sum(parts)[:, None], rtol=1e-9
    )


def test_a_number_of_gaussians_is_kept_where_rows_allow_it() -> None:
    x = np.random.default_rng(0).normal(size=(200, 2))
    assert [len(fit_gaussians(rows, 10, least=10).weights) for rows in (x, x[:20])] == [10, 3]
    clusters = np.arange(200) % 2
    assert [len(d.weights) for d in densities_of(x, clusters, sizes=[4, 2])] == [4, 2]


@pytest.mark.parametrize("width", [3, 8])
def test_wide_tables_have_shrunk_covariances(width: int) -> None:
    x = np.random.default_rng(0).normal(size=(width + 3, width))
    fit = fit_gaussians(x, 5)
    condition = np.linalg.cond(fit.covariances[0])
    assert (condition < 20) == (width > 4)


@pytest.mark.parametrize("seed", range(3))
def test_columns_that_depend_on_each_other_keep_their_small_variances(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(600, 1)) + 0.1 * generator.normal(size=(600, 6))
    train, test = x[:400], x[400:]
    found = fit_gaussians(train, 1)
    plain = multivariate_normal(train.mean(0), np.cov(train.T)).logpdf(test).mean()
    assert found.log_prob(test).mean() > plain - 0.05


def test_components_that_are_mistaken_for_each_other_are_merged() -> None:
    r = np.array([[0.6, 0.4, 0.0], [0.4, 0.6, 0.0], [0.0, 0.1, 0.9], [0.0, 0.0, 1.0]])
    assert merged(r, 3).tolist() == [0, 1, 2, 2]
    assert merged(r, 2).tolist() == [0, 0, 1, 1]
    assert merged(r, 1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_spanning_tree_has_the_length_of_scipys(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(40, 3))
    order, parent, length = spanning_tree(x)
    assert sorted(order.tolist()) == list(range(40))
    assert parent[order[0]] == -1
    core = NearestNeighbors(n_neighbors=5).fit(x).kneighbors()[0][:, -1]
    away = np.linalg.norm(x[:, None] - x, axis=-1)
    reach = np.maximum(np.maximum(away, core), core[:, None])
    np.fill_diagonal(reach, 0.0)
    assert length.sum() == pytest.approx(minimum_spanning_tree(csr_matrix(reach)).sum(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_tree_is_cut_where_both_sides_are_large(seed: int) -> None:
    x, c = rings(seed)
    far = np.array([[9.0, 9.0], [-9.0, 9.0]])  # outliers, at the end of the longest edges
    clusters = cut_tree(*spanning_tree(np.concatenate((x, far))), 2)
    assert adjusted_rand_score(c, clusters[: len(x)]) == 1.0


@pytest.mark.parametrize("seed", range(2))
def test_criterion_prefers_the_true_clusters(seed: int) -> None:
    for x, c in (blobs(seed), rings(seed)):
        links, generator = links_of(x), np.random.default_rng(seed)
        true = scored("true", x, c, links)
        turned = np.where(generator.random(len(c)) < 0.1, (c + 1) % (c.max() + 1), c)
        assert true.score > scored("spoilt", x, turned, links).score + 0.1
        best = choose(x, int(c.max()) + 1)[0]
        assert adjusted_rand_score(c, best.clusters) > 0.99
        agreed = best.responsibilities(x).argmax(1) == best.clusters
        assert agreed.mean() > 0.99


def test_score_is_the_formula() -> None:
    x, c = blobs(0)
    found = scored("x", x, c, links_of(x))
    total = sum(
        found.densities[k].log_prob(x[c == k]).sum() + (c == k).sum() * np.log((c == k).mean())
        for k in range(3)
    )
    free = sum(d.free for d in found.densities) + 2
    cut = np.mean(c[links_of(x)] != c[:, None])
    expected = (total - 0.5 * free * np.log(len(x))) / len(x) - 10 * cut - found.valleys
    assert found.score == pytest.approx(expected, rel=1e-9)


def test_candidate_without_enough_clusters_comes_last() -> None:
    x, _ = blobs(0)
    found = choose(x, 2, {"one": lambda rows, k: torch.zeros(len(rows)).long(), "two": halves})
    assert [len(s.densities) for s in found] == [2, 1]
    with pytest.raises(ValueError, match="x has 2 rows; expected at least 3"):
        choose(x[:2], 3)


def halves(x: Tensor, num_clusters: int) -> Tensor:
    return (x[:, 0] > x[:, 0].median()).long()


def test_components_that_are_never_mistaken_are_joined_all_the_same() -> None:
    certain = np.eye(4)[np.arange(20) % 4]
    for count in (3, 2, 1):
        found = merged_responsibilities(certain, count)
        assert found.shape == (20, count)
        np.testing.assert_array_equal(found.sum(1), np.ones(20))


@pytest.mark.parametrize("seed", range(2))
def test_number_of_clear_clusters_is_found(seed: int) -> None:
    x, _ = blobs(seed)
    assert [len(found.densities) for found in clusterings(x, seed=seed)] == [3, 3]
    one = np.random.default_rng(seed).normal(size=(200, 2))
    large = fit_gaussians(one, 40)
    assert len(by_overlap(one, large)) == 200
    assert set(by_overlap(one, large)) == {0}


@pytest.mark.parametrize("seed", range(2))
def test_few_labels_reach_all_rows(seed: int) -> None:
    x, c = rings(seed)
    labels = np.full(len(c), -1)
    labels[[0, 40, 100, 150]] = [0, 0, 1, 1]
    along = along_tree(x)
    assert (along(labels) == c).all()
    for spread in (along, to_nearest(x), by_gaussians(x)):
        found = spread(labels)
        assert (found[labels >= 0] == labels[labels >= 0]).all()
        assert set(found) == {0, 1}
    assert left_out(along, c).mean() == 1.0
    assert left_out(lambda some: np.zeros(len(some), int), c).mean() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("won", "lost", "sure"),
    [(1, 0, False), (2, 0, True), (5, 2, True), (5, 3, False), (0, 4, False)],
)
def test_labels_have_to_prefer_another_start_beyond_chance(won: int, lost: int, sure: bool) -> None:
    right = np.array([True] * won + [False] * lost + [True, False])
    other = np.array([False] * won + [True] * lost + [True, False])
    assert surely_better(right, other) == sure


def test_few_labels_do_not_change_a_good_start() -> None:
    """One label is wrong: spreads follow it, and the clusters without labels stay."""
    generator = np.random.default_rng(0)
    c = np.arange(120) % 2
    z = generator.normal(size=(120, 2)) + 8 * c[:, None]
    labels = np.full(120, -1)
    labels[:12] = c[:12]
    labels[0] = 1
    candidates = choose(z, 2)
    first, *_ = by_labels(z, labels, 2, candidates, 0)
    assert first.name == candidates[0].name
    assert (first.clusters == c).all()


def test_labels_that_contradict_a_start_replace_it() -> None:
    """Classes that are halves of one cluster are found by their labels alone."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(300, 2)) * [3.0, 1.0]
    z[:, 1] += 8 * (np.arange(300) % 2)
    c = (z[:, 0] > 0).astype(int)
    labels = np.where(np.arange(300) % 6 == 0, c, -1)
    candidates = choose(z, 2)
    first, *_ = by_labels(z, labels, 2, candidates, 0)
    assert first.name not in {candidate.name for candidate in candidates}
    assert (first.clusters == c).mean() > 0.9
