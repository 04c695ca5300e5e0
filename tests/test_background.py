"""The broad component of ``from_data`` for rows that are far from all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from pyro_vmonf import VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.starts.background import broad_gaussian, far_rows
from pyro_vmonf.starts.choice import Scored, choose, densities_of
from pyro_vmonf.vmonf import automatic, table

Array = np.ndarray[Any, Any]


def blobs(rows: int = 300, seed: int = 0) -> tuple[Array, Array]:
    draw, c = np.random.default_rng(seed), np.arange(rows) % 3
    return draw.normal(size=(rows, 2)) + 9 * np.eye(3)[c][:, :2], c


def with_outliers(x: Array, share: float = 0.01, seed: int = 1) -> Array:
    draw = np.random.default_rng(seed)
    far = 1e3 * x.std() * draw.normal(size=(round(share * len(x)), x.shape[1]))
    return np.concatenate((x, far))


def test_outliers_cost_the_others_nothing_but_their_share() -> None:
    x, c = blobs(48)
    rows = with_outliers(x, 0.04)
    alone = VMoNF.from_data(x, components=3, seed=0)
    assert alone.model.num_components == 3
    with pytest.warns(UserWarning, match="2 of 50 rows are far from all others"):
        vmonf = VMoNF.from_data(rows, components=3, seed=0, background="auto")
    assert vmonf.model.num_components == 4
    for exact in (False, True):
        assert (vmonf.predict(rows, exact=exact)[48:] == 3).all()
        assert torch.equal(vmonf.predict(x, exact=exact), alone.predict(x, exact=exact))
    assert adjusted_rand_score(c, vmonf.predict(x)) > 0.95
    lost = alone.log_prob(x) - vmonf.log_prob(x)
    torch.testing.assert_close(lost, torch.full_like(lost, -np.log(48 / 50)), rtol=0, atol=1e-4)
    assert vmonf.model.weights.log_mean()[3].item() == pytest.approx(np.log(2 / 50), rel=1e-5)
    assert vmonf.history is not None
    assert vmonf.history.choice["background"] == 2


def test_trained_components_stay_what_they_are() -> None:
    x, _ = blobs(48)
    rows = table.rows_of(x, None, None, 3, 0)
    found = choose(rows.z, 3)[0]
    best = automatic.Start.of(found, rows.z, found.clusters, 0.0, 0)
    model, guide = automatic._pair(rows, best)
    with torch.no_grad(), local_seed(0):
        for parameter in (*model.parameters(), *guide.network.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    far = torch.tensor([[1e3, 0.0], [0.0, -1e4]], dtype=torch.float64)
    every = table.rows_of(np.concatenate((x, far.numpy())), None, None, 3, 0)
    mask = np.arange(50) >= 48
    larger = VMoNF(*automatic._with_background(rows, model, guide, best, every, mask))
    some, smaller = torch.as_tensor(x), VMoNF(model, guide)
    torch.testing.assert_close(
        larger.component_log_prob(some)[:, :3], smaller.component_log_prob(some)
    )
    torch.testing.assert_close(
        larger.predict_proba(some)[:, :3],
        smaller.predict_proba(some),
        rtol=0,
        atol=1e-5,
    )
    assert larger.predict(far).tolist() == [3, 3]


def test_a_fit_that_goes_on_may_have_fewer_gaussians_than_the_start_on_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def smaller(lessons: Any, z: Array, clusters: Array, best: Scored, *_: Any) -> Any:
        assert max(len(density.weights) for density in best.densities) > 1
        densities = densities_of(z, clusters, seed=0, sizes=[1, 1, 1])
        part = Scored("part", clusters, densities, 0.0)
        # The bank may have more Gaussians than the guide.
        base = densities_of(z, clusters, seed=0, sizes=[3, 3, 3])
        start = automatic.Start(densities, base, part.log_shares())
        pairs.append(automatic._pair(lessons.rows, start))
        return *pairs[0], automatic.Length(0, 0, out_of_time=True), start

    pairs: list[Any] = []
    monkeypatch.setattr(automatic, "_tried", smaller)
    x, _ = pinwheel(wings=3, per_wing=60, seed=0)
    vmonf = VMoNF.from_data(x, components=3, seed=0, background=True)
    assert vmonf.model.num_components == 4
    found = vmonf.component_log_prob(x)[:, :3]
    torch.testing.assert_close(found, VMoNF(*pairs[0]).component_log_prob(x))


def test_background_is_there_when_asked_for() -> None:
    x, _ = blobs(48)
    always = VMoNF.from_data(x, components=3, seed=0, background=True)
    assert always.model.num_components == 4
    assert always.predict(np.array([[1e4, 0.0]])).tolist() == [3]
    assert (always.predict(x) < 3).all()
    with pytest.raises(ValueError, match="background is 'no'"):
        VMoNF.from_data(x, background="no")  # type: ignore[arg-type]


def test_estimator_labels_them_minus_one() -> None:
    x, _ = blobs(48)
    with pytest.warns(UserWarning, match="far from all others"):
        found = FlowMixtureClustering(3, background="auto", random_state=0).fit(
            with_outliers(x, 0.05)
        )
    assert (found.labels_[48:] == -1).all()
    assert set(found.labels_[:48]) == {0, 1, 2}
    assert (found.predict(x) >= 0).all()


def test_labelled_rows_are_not_far() -> None:
    x, _ = blobs(150)
    labels = np.full(153, -1)
    labels[150] = 2
    given = table.rows_of(with_outliers(x, 0.02), labels, None, 3, 0)
    with pytest.warns(UserWarning, match="2 of 153 rows are far"):
        rows, far = table.without_far(given, "auto")
    assert far is not None
    assert far.nonzero()[0].tolist() == [151, 152]
    assert torch.equal(rows.x, given.x[:151])
    with pytest.warns(UserWarning, match='2 of 153 rows .* background="auto"'):
        assert table.without_far(given, False) == (given, None)


def test_a_small_cluster_far_away_is_a_cluster() -> None:
    x, _ = blobs()
    cluster = 1e4 + np.random.default_rng(0).normal(size=(12, 2))
    assert not far_rows(np.concatenate((x, cluster))).any()
    assert not far_rows(np.random.default_rng(0).standard_t(3, size=(2000, 2))).any()
    far = far_rows(with_outliers(x))
    assert far.tolist() == [False] * 300 + [True] * 3
    assert not far_rows(with_outliers(x)[-40:]).any()  # too few rows


def test_column_that_is_constant_but_for_a_few_rows_has_no_far_rows() -> None:
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[:, 1] = np.where(np.arange(300) % 60 == 0, 0.7, 0.1)
    assert not far_rows(x).any()
    assert not far_rows(np.asfortranarray(x - x.mean(0))).any()


def test_broad_gaussian_is_as_wide_as_the_far_rows() -> None:
    far = np.array([[300.0, 1.0], [-400.0, 2.0]])
    found = broad_gaussian(far, 2)
    truth = multivariate_normal(np.zeros(2), np.diag([125_000.0, 100.0]))
    np.testing.assert_allclose(found.log_prob(far), truth.logpdf(far), rtol=1e-12)
    assert broad_gaussian(np.empty((0, 2)), 2).covariances[0].tolist() == [[100, 0], [0, 100]]
