"""Valleys inside clusters, against connected components level by level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from pyro_vmonf.starts.choice import Scored, links_of, rank, scored
from pyro_vmonf.starts.number import clusterings
from pyro_vmonf.starts.valleys import DEEPEST, PART, valleys

Array = np.ndarray[Any, Any]


def by_levels(x: Array, links: Array) -> float:
    """The deepest valley of one cluster: the hills above each row, before and after it enters."""
    count = len(x)
    height = -x.shape[1] * np.log(np.linalg.norm(x - x[links[:, -1]], axis=1))
    rows = np.repeat(np.arange(count), links.shape[1])
    graph = csr_matrix((np.ones(links.size), (rows, links.ravel())), (count, count))
    graph = (graph + graph.T).toarray()
    depth = 0.0
    for row in range(count):
        above = np.flatnonzero(height > height[row])
        _, part = connected_components(graph[np.ix_(above, above)], directed=False)
        near = {int(p) for p in part[graph[row, above] > 0]}
        large = [p for p in near if (part == p).sum() >= PART * count]
        tops = sorted(height[above][part == p].max() for p in large)
        if len(tops) > 1:
            depth = max(depth, tops[-2] - height[row])
    _, part = connected_components(graph, directed=False)
    tops = sorted(height[part == p].max() for p in set(part) if (part == p).sum() >= PART * count)
    if len(tops) > 1:
        depth = max(depth, tops[-2] - height.min())
    return depth


@pytest.mark.parametrize("apart", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_depth_is_that_of_the_levels(seed: int, apart: float) -> None:
    x = np.random.default_rng(seed).normal(size=(70, 2))
    x[:30, 0] += apart
    links = links_of(x)
    expected = by_levels(x, links)
    found = valleys(x, links, np.zeros(70, dtype=int))
    np.testing.assert_allclose(found, [min(expected, DEEPEST)], rtol=1e-12)
    assert (apart < 20) or found[0] > 1


def test_each_cluster_has_its_own_and_equal_rows_have_none() -> None:
    x = np.random.default_rng(0).normal(size=(120, 2)) + 20 * (np.arange(120) % 4 // 2)[:, None]
    joined, links = np.arange(120) % 2, links_of(x)
    assert (valleys(x, links, joined) > 1).all()
    assert (valleys(x, links, np.arange(120) % 4 // 2) < 1).all()
    equal = np.zeros((40, 2))
    assert valleys(equal, links_of(equal), np.zeros(40, dtype=int)).tolist() == [0.0]


def test_score_charges_a_tenth() -> None:
    x = np.random.default_rng(0).normal(size=(120, 2)) + 20 * (np.arange(120) % 2)[:, None]
    links, one = links_of(x), np.zeros(120, dtype=int)
    found = scored("one", x, one, links)
    assert found.valleys == pytest.approx(0.1 * valleys(x, links, one)[0])
    ranked = clusterings(x)
    assert ranked == sorted(ranked, key=lambda s: -s.score)
    deep = Scored("deep", one, found.densities, found.score - 1.0, 1.0)
    assert min([deep, found], key=rank(1)) is found
