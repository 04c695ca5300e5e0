"""The estimator and fits of a whole table: right values where wrong ones were found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.mixture import GaussianMixture

from pyro_vmonf import VMoNF
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from tests.samples import (
    HALF,
    UNTRAINED,
    X,
    sixty_rows,
    three_numpy_blobs,
    two_blobs,
    two_numpy_blobs,
)


def test_fit_predict_uses_the_labels() -> None:
    x, y = two_blobs().numpy(), 1 - HALF.numpy()
    estimator = FlowMixtureClustering(2, max_iter=4, use_labels=True, random_state=0)
    assert (estimator.fit_predict(x, y) == y).mean() > 0.99
    assert estimator.labels_used_
    estimator.set_params(use_labels=np.False_).fit(x, y)
    assert not estimator.labels_used_
    assert not hasattr(estimator, "classes_")
    with pytest.raises(ValueError, match="use_labels is 'no'; expected True, False or 'auto'"):
        estimator.set_params(use_labels="no").fit(x, y)


def test_a_background_that_is_pruned_is_no_cluster() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate((draw.normal(size=(100, 2)), draw.normal(size=(100, 2)) + 8))
    found = FlowMixtureClustering(2, background=True, minutes=0.01, random_state=0).fit(x)
    assert set(found.predict(x)) == {0, 1}
    found.vmonf_.prune_(x)
    assert set(found.predict(x)) == {0, 1}
    assert "background" not in str(found.vmonf_.report())


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_labels_that_do_not_begin_at_zero_are_named() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat([1, 2], 30)
    x = draw.normal(size=(60, 2)) + 8 * y[:, None]
    with pytest.warns(UserWarning, match="labels go from 1 to 2, and no row has label 0"):
        VMoNF.from_data(x, y, components=3, seed=0, minutes=0.001, progress=False)


def test_one_gaussian_starts_at_the_moments() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate((draw.normal(size=(60, 2)), draw.normal(size=(60, 2)) + 7))
    found = FlowMixtureClustering(1, flow="gaussian", random_state=0).fit(x)
    assert found.score(x) == pytest.approx(GaussianMixture(1).fit(x).score(x), abs=0.01)


def test_very_small_weights_are_weights() -> None:
    options: dict[str, Any] = {"flow": "gaussian", "random_state": 0, "max_iter": 1}
    x = X.numpy()
    one = FlowMixtureClustering(3, **options).fit(x, sample_weight=np.ones(len(x)))
    small = FlowMixtureClustering(3, **options)
    with pytest.warns(UserWarning, match="divide sample_weight by its mean"):
        small.fit(x, sample_weight=np.full(len(x), 1e-20))
    assert one.score(x) == pytest.approx(small.score(x), abs=0.1)


@pytest.mark.parametrize("seed", [None, 2**40, -1])
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_every_seed_and_none_at_all_is_a_seed(seed: int | None) -> None:
    vmonf = VMoNF.from_data(X, components=3, seed=seed, minutes=1e-6, progress=False)
    assert VMoNF.from_data(X, seed=seed, minutes=1e-6, progress=False).predict(X).shape == (180,)
    assert vmonf.predict(X).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"max_iter": np.int64(100), "flow": np.str_("auto")}, False),
        ({"learning_rate": np.float64(3e-3), "hidden": [32, 32]}, False),
        ({"max_iter": np.int64(99)}, True),
        ({"hidden": (32, 31)}, True),
    ],
)
def test_equal_options_ask_for_equal_fits(options: dict[str, Any], by_hand: bool) -> None:
    assert FlowMixtureClustering(2, **options)._by_hand() == by_hand


@pytest.mark.parametrize("classes", [(2, 5), (1, 3), (5,), (0, 2)])
def test_labels_with_holes_are_no_number_of_components(classes: tuple[int, ...]) -> None:
    y = np.full(200, -1)
    y[: 100 * len(classes) : 10] = np.repeat(classes, 10)
    with pytest.raises(ValueError, match="numbers of components, and leaves out"):
        VMoNF.from_data(two_numpy_blobs(), y, **UNTRAINED)


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_labels_with_holes_are_taken_where_the_number_is_given() -> None:
    y = np.full(200, -1)
    y[::20] = np.repeat([0, 2], 5)
    assert (
        VMoNF.from_data(two_numpy_blobs(), y, components=3, **UNTRAINED).model.num_components == 3
    )


def test_the_bound_of_the_estimator_is_that_of_the_rows_that_count() -> None:
    x = np.concatenate((two_numpy_blobs(), np.full((20, 2), 1e6)))
    weight = np.repeat([1.0, 0.0], [200, 20])
    found = FlowMixtureClustering(2, minutes=1e-6, random_state=0).fit(x, sample_weight=weight)
    elbo = found.vmonf_.elbo(x[:200]).double().mean()
    assert found.lower_bound_ == pytest.approx(float(elbo), rel=1e-5)


def test_few_rows_are_named() -> None:
    with pytest.warns(UserWarning, match="x has 2 rows for 1 component: with fewer than 10 rows"):
        VMoNF.from_data(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), components=1, **UNTRAINED)


def test_drawn_rows_of_the_background_have_its_label() -> None:
    x = np.concatenate((three_numpy_blobs(), 1e4 * np.array([[1.0, 0], [0, -1], [2, 2]])))
    with pytest.warns(UserWarning, match="far from all others"):
        found = FlowMixtureClustering(3, background="auto", minutes=1e-6, random_state=0).fit(x)
    rows, labels = found.sample(2000)
    assert set(labels) == {-1, 0, 1, 2}
    assert (found.predict(rows)[labels == -1] == -1).mean() > 0.95


def test_the_background_has_the_share_of_its_weight() -> None:
    x = np.concatenate((three_numpy_blobs(120), [[200.0, 300.0], [-250.0, 400.0]]))
    weight = np.concatenate((np.full(120, 10.0), [1.0, 1.0]))
    options = {"components": 3, "background": True, **UNTRAINED}
    with pytest.warns(UserWarning, match="far from all others"):
        vmonf = VMoNF.from_data(x, sample_weight=weight, **options)
    share = vmonf.model.weights.log_mean().exp()[-1]
    assert float(share.detach()) == pytest.approx(2 / 1202, rel=1e-5)


def test_a_refused_fit_leaves_the_estimator_as_it_was() -> None:
    frame = pd.DataFrame(three_numpy_blobs(120), columns=[7, 5])
    options: dict[str, Any] = {"flow": "gaussian", "max_iter": 4, "random_state": 0}
    found = FlowMixtureClustering(3, use_labels=True, **options)
    found.fit(frame, np.where(np.arange(120) < 30, np.arange(120) % 3, -1))
    before = found.score_samples(frame), found.classes_.tolist()
    with pytest.raises(ValueError, match="minimum of 2"):
        found.fit(frame[[5, 7]][:1])
    with pytest.raises(ValueError, match="5 classes"):
        found.fit(frame, np.arange(120) % 5)
    assert np.array_equal(found.score_samples(frame), before[0])
    assert found.classes_.tolist() == before[1]
    assert found.labels_used_


def test_the_estimator_takes_rows_in_any_order_of_memory() -> None:
    x = three_numpy_blobs(60)
    for view in (x[::-1], x[:, ::-1]):
        found = FlowMixtureClustering(3, flow="gaussian", max_iter=2, random_state=0)
        again = FlowMixtureClustering(3, flow="gaussian", max_iter=2, random_state=0)
        assert np.array_equal(found.fit(view).labels_, again.fit(view.copy()).labels_)
    with pytest.raises(ValueError, match="n_samples=60 is below n_components=200"):
        FlowMixtureClustering(np.int64(200)).fit(x)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"y": pd.Series([0, 1, None] * 20, dtype="Int64")}, "y"),
        ({"y": np.array([0.0, 1.0, np.nan] * 20)}, "expected integer labels"),
        ({"sample_weight": np.eye(60)[3], "components": 1}, "1 rows have a sample_weight"),
        ({"x": np.zeros((50, 0)), "components": 2}, "without a column"),
    ],
)
def test_from_data_says_what_is_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        VMoNF.from_data(**{"x": sixty_rows(), "progress": False, **options})


def test_what_lies_under_a_mask_is_no_number() -> None:
    x = two_numpy_blobs()
    masked = np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) % 7 == 0)
    estimator = FlowMixtureClustering(2, flow="gaussian", max_iter=2, random_state=0)
    with pytest.raises(TypeError, match=r"x is a masked array .* x.filled\(numpy.nan\)"):
        estimator.fit(masked)
    estimator.fit(masked.filled(np.nan))
    for verb in (estimator.predict, estimator.score_samples, estimator.vmonf_.log_prob):
        with pytest.raises(TypeError, match="is a masked array with masked entries"):
            verb(masked)
    labels = np.ma.masked_array(np.arange(len(x)) % 2, mask=np.arange(len(x)) % 3 == 0)
    with pytest.raises(TypeError, match="y is a masked array"):
        FlowMixtureClustering(2, use_labels=True).fit(x, labels)
    with pytest.raises(TypeError, match="sample_weight is a masked array"):
        FlowMixtureClustering(2).fit(x, sample_weight=labels)
    whole = estimator.score_samples(np.ma.masked_array(x, mask=np.zeros(x.shape, dtype=bool)))
    np.testing.assert_array_equal(whole, estimator.score_samples(x))


def test_the_estimator_takes_tensors_and_columns_of_one_name() -> None:
    x = two_numpy_blobs().astype(np.float32)
    estimator = FlowMixtureClustering(2, flow="gaussian", max_iter=2, random_state=0).fit(x)
    scores = estimator.score_samples(x)
    frame = pd.DataFrame(x, columns=["a", "a"])
    for rows in (torch.tensor(x), torch.tensor(x, requires_grad=True), frame):
        np.testing.assert_array_equal(estimator.score_samples(rows), scores)
    narrow = torch.tensor(x).bfloat16()
    np.testing.assert_array_equal(
        estimator.predict(narrow), estimator.predict(narrow.float().numpy())
    )
    named = pd.DataFrame(x, columns=["a", "b"])  # and no warning of names
    fitted = FlowMixtureClustering(2, flow="gaussian", max_iter=2, random_state=0).fit(named)
    assert fitted.bic(named) == pytest.approx(estimator.bic(x))
    assert fitted.aic(named) == pytest.approx(estimator.aic(x))
