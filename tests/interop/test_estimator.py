"""The scikit-learn façade: its own checks, pipelines, searches, pandas."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_circles
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_clustering, parametrize_with_checks

from pyro_vmonf import Gaussian, UpdatedWeights
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.training import fit as training
from pyro_vmonf.vmonf import automatic

EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": "a weight of two is two rows in the loss, but "
    "not in how rows fall into shuffled minibatches: stochastic training is not equal to the bit",
}
RANDOM = {"check_clustering": "two passes from a random start find no clusters"}


@parametrize_with_checks(
    [
        FlowMixtureClustering(flow="gaussian", max_iter=2, init="random", random_state=0),
        FlowMixtureClustering(2, minutes=1e-4, random_state=0),  # the choice alone, untrained
    ],
    expected_failed_checks=lambda found: EXPECTED | (RANDOM if found.init == "random" else {}),
)
@pytest.mark.filterwarnings("ignore")
def test_sklearns_own_checks(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "BLOCKS", 1)
    monkeypatch.setattr(automatic, "HIDDEN", (8,))
    monkeypatch.setattr(automatic, "CANDIDATES", {})  # merged Gaussians alone are left
    check(estimator)


@pytest.fixture
def short_lesson(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teach the first clusters in a few steps, where no test asks how well a guide knows them."""
    monkeypatch.setattr("pyro_vmonf.interop.sklearn.warm_start_", partial(warm_start_, steps=10))


@pytest.mark.filterwarnings("ignore")
def test_sklearns_check_of_clusters() -> None:
    check_clustering("estimator", FlowMixtureClustering(max_iter=2, random_state=0))


def blobs(dtype: Any = np.float64) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    c = np.arange(300) % 3
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    return (centres[c] + draw.normal(size=(300, 2))).astype(dtype), c


def agreement(one: Any, other: Any) -> float:
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(one, other))


def test_it_finds_blobs_as_a_gaussian_mixture_does() -> None:
    X, c = blobs()
    found = FlowMixtureClustering(
        3, flow="gaussian", batch_size=64, max_iter=60, learning_rate=0.02, random_state=0
    )
    other = GaussianMixture(3, random_state=0).fit(X)
    found.fit(X)
    assert agreement(found.labels_, c) > 0.95
    assert found.score(X) == pytest.approx(other.score(X), abs=0.05)
    assert found.bic(X) == pytest.approx(other.bic(X), rel=0.03)
    assert found.aic(X) == pytest.approx(other.aic(X), rel=0.03)
    np.testing.assert_allclose(found.weights_.sum(), 1)
    x, component = found.sample(50)
    assert x.shape == (50, 2)
    assert component.shape == (50,)


def test_a_few_labels_name_the_clusters() -> None:
    x, wing = pinwheel(wings=3, per_wing=100, rate=0.25, seed=0)
    names = np.array([10, 20, 30])[wing.numpy()]
    y = np.where(np.arange(300) % 10 == 0, names, -1)
    with pytest.warns(UserWarning, match="y marks 270 of 300 rows as unlabelled"):
        found = FlowMixtureClustering(3, max_iter=60, random_state=0).fit(x.numpy(), y)
    assert found.labels_used_
    assert list(found.classes_) == [10, 20, 30]
    assert (found.classes_[found.predict(x.numpy())] == names).mean() > 0.9
    ignored = FlowMixtureClustering(3, max_iter=1, random_state=0).fit(x.numpy(), names)
    assert not hasattr(ignored, "classes_")
    assert not ignored.labels_used_
    with pytest.raises(ValueError, match="3 classes and the mixture 2"):
        FlowMixtureClustering(2, max_iter=1, use_labels=True).fit(x.numpy(), y)


@pytest.mark.usefixtures("short_lesson")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_keep_their_kind(dtype: Any) -> None:
    X, _ = blobs(dtype)
    found = FlowMixtureClustering(3, max_iter=1, random_state=0).fit(X)
    assert found.score_samples(X).dtype == dtype
    twin = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(twin.score_samples(X), found.score_samples(X))


@pytest.mark.usefixtures("short_lesson")
def test_the_same_seed_gives_the_same_fit_and_global_state_is_left_alone() -> None:
    X, _ = blobs()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = FlowMixtureClustering(3, max_iter=2, random_state=4).fit(X)
    other = clone(one).fit(X)
    np.testing.assert_array_equal(one.score_samples(X), other.score_samples(X))
    np.testing.assert_array_equal(one.sample(5)[0], other.sample(5)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.usefixtures("short_lesson")
def test_pipelines_searches_and_frames() -> None:
    X, _ = blobs()
    frame = pd.DataFrame(X, columns=["height", "weight"])
    pipe = make_pipeline(StandardScaler(), FlowMixtureClustering(3, max_iter=1, random_state=0))
    assert pipe.fit(frame).predict(frame).shape == (300,)
    found = FlowMixtureClustering(3, max_iter=1, random_state=0).fit(frame)
    assert list(found.feature_names_in_) == ["height", "weight"]
    search = GridSearchCV(
        FlowMixtureClustering(max_iter=1, random_state=0), {"n_components": [1, 3]}, cv=2
    )
    search.fit(X)
    assert search.best_params_["n_components"] in (1, 3)


@pytest.mark.usefixtures("short_lesson")
def test_weights_of_rows_and_banks_of_ones_own() -> None:
    X, c = blobs()
    bank = lambda features, components: Gaussian(features, components)  # noqa: E731
    found = FlowMixtureClustering(1, flow=bank, max_iter=150, learning_rate=0.05, random_state=0)
    found.fit(X, sample_weight=(c == 1).astype(float))
    assert np.abs(found.sample(2000)[0].mean(0) - [6, 0]).max() < 1.0
    one = FlowMixtureClustering(2, max_iter=1, random_state=0).fit(X[:, :1])
    assert one.sample(3)[0].shape == (3, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "nope"}, "flow is 'nope'"),
        ({"n_components": 400}, "n_samples=300 is below n_components=400"),
        ({"max_iter": 0}, "max_iter"),
        ({"n_init": 0}, "n_init"),
        ({"n_components": 3.0}, "n_components is 3.0; it must be an integer"),
        ({"n_components": "3"}, "n_components is '3'"),
        ({"n_components": True}, "n_components is True"),
        ({"n_init": 1.5}, "n_init is 1.5"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"batch_size": "64"}, "batch_size is '64'"),
        ({"max_iter": 2.0}, "max_iter is 2.0"),
        ({"hidden": 16}, "hidden is 16; expected the widths of layers"),
        ({"hidden": "16"}, "hidden is '16'"),
        ({"hidden": (2.5,)}, "width is 2.5"),
        ({"hidden": (0,)}, "width is 0"),
        ({"learning_rate": "1"}, "learning_rate is '1'"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMixtureClustering(**options).fit(blobs()[0])


@pytest.mark.usefixtures("short_lesson")
def test_a_fit_leaves_its_parameters_alone() -> None:
    X, _ = blobs()
    weights = UpdatedWeights(3)
    before = {name: value.clone() for name, value in weights.state_dict().items()}
    found = FlowMixtureClustering(3, weights=weights, max_iter=2, random_state=0).fit(X)
    assert all(torch.equal(value, before[name]) for name, value in weights.state_dict().items())
    assert found.vmonf_.model.weights is not weights
    few = FlowMixtureClustering(2, n_init=2, max_iter=1, random_state=0).fit(X[:4])
    assert len(few.history_.restarts) == 2
    with pytest.raises(ValueError, match="y contains NaN"):
        FlowMixtureClustering(2, use_labels=True).fit(X[:3], [0.0, 1.0, np.nan])


TEXT = ["left", "right", "middle"]
LABELS: dict[str, tuple[Any, int, bool, str]] = {
    "-1 and +1": ([-1, 1], 2, False, "-1 can be a class or the mark"),
    "-1, 0 and 1": ([-1, 0, 1], 3, False, "-1 can be a class or the mark"),
    "-1.0 and 1.0": ([-1.0, 1.0], 2, False, "-1 can be a class or the mark"),
    "-1 and 0": ([-1, 0], 2, False, "-1 can be a class or the mark"),
    "-1, 0, 1 of two": ([-1, 0, 1], 2, True, "rows as unlabelled"),
    "-1 and three": ([-1, 0, 1, 2], 4, True, "rows as unlabelled"),
    "text and -1": ([-1, *TEXT], 3, True, "rows as unlabelled"),
    "text and None": ([None, *TEXT], 3, True, "rows as unlabelled"),
    "text and '-1'": (["-1", *TEXT], 3, True, "rows as unlabelled"),
    "text and NA": ([pd.NA, *TEXT], 3, True, "rows as unlabelled"),
    "numbers and None": ([None, 0, 1, 2], 3, True, "rows as unlabelled"),
    "text": (TEXT, 3, False, ""),
    "0 and 1": ([0, 1], 2, False, ""),
    "bytes": ([np.uint8(0), np.uint8(1)], 2, False, ""),
    "booleans": ([True, False], 2, False, ""),
}


OTHER_FORMS = ["-1 and +1", "text and -1", "numbers and None", "booleans"]


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "array") for name in LABELS]
    + [(name, form) for name in OTHER_FORMS for form in ("list", "series")],
)
def test_labels_are_used_where_they_are_marked_beyond_doubt(name: str, form: str) -> None:
    values, components, used, words = LABELS[name]
    X, _ = blobs()
    y: Any = [values[i % len(values)] for i in range(60)]
    if form != "list":
        y = np.array(y, dtype=object if any(isinstance(v, str) for v in values) else None)
        y = pd.Series(y) if form == "series" else y
    options: dict[str, Any] = {
        "flow": "gaussian", "max_iter": 1, "init": "random", "random_state": 0
    }  # fmt: skip
    found = FlowMixtureClustering(components, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found.fit(X[:60], y)
    assert [words in str(w.message) for w in told] == [True] * bool(words)
    assert found.labels_used_ == used
    if used:
        known = [v for v in values if v is not None and v is not pd.NA and str(v) != "-1"]
        assert list(found.classes_) == sorted(known)
        chosen = FlowMixtureClustering(components, **options, use_labels=True)
        np.testing.assert_array_equal(chosen.fit(X[:60], y).labels_, found.labels_)
    else:
        plain = FlowMixtureClustering(components, **options).fit(X[:60])
        np.testing.assert_array_equal(plain.score_samples(X), found.score_samples(X))


@pytest.mark.parametrize(("init", "seed"), [("kmeans", 0), ("spectral", 1)])
def test_every_start_begins_with_the_clusters_that_were_asked_for(
    init: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, _ = blobs()
    begun: list[Any] = []

    def spy(model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        if len(begun) < 3:
            begun.append(guide.log_q(torch.as_tensor(X)).argmax(-1).numpy())
        return training.fit(model, guide, *args, **kwargs)

    monkeypatch.setattr("pyro_vmonf.interop.sklearn.fit", spy)
    options: dict[str, Any] = {"init": init, "max_iter": 8, "random_state": seed}
    found = FlowMixtureClustering(3, n_init=3, **options).fit(X)
    assert len(found.history_.restarts) == len(begun) == 3
    for clusters in begun:
        assert agreement(clusters, blobs()[1]) > 0.9
    assert agreement(found.labels_, blobs()[1]) > 0.9
    assert found.history_.objective[-1] == pytest.approx(max(found.history_.restarts))


@pytest.mark.parametrize("n_init", [1, 2])
def test_a_fit_by_hand_keeps_the_clusters_of_its_start(n_init: int) -> None:
    """The likelihood alone prefers halves of both circles."""
    X, c = make_circles(300, factor=0.4, noise=0.06, random_state=0)
    options: dict[str, Any] = {"init": "spectral", "max_iter": 40, "random_state": 0}
    found = FlowMixtureClustering(2, n_init=n_init, **options).fit(X)
    assert agreement(found.labels_, c) > 0.97
    assert agreement(found.vmonf_.predict(X, exact=True), c) > 0.97  # flows follow the guide


def test_the_bound_counts_no_row_of_weight_zero() -> None:
    X, _ = blobs()
    X[5], weight = 1e200, np.ones(300)
    weight[5] = 0.0
    found = FlowMixtureClustering(3, flow="gaussian", max_iter=2, random_state=0)
    found.fit(X, sample_weight=weight)
    counted = weight > 0
    assert found.lower_bound_ == pytest.approx(
        float(found.vmonf_.elbo(X[counted]).mean()), rel=1e-6
    )


@pytest.mark.usefixtures("short_lesson")
@pytest.mark.parametrize(
    ("init", "n_init"), [("kmeans", 1), ("spectral", 1), ("random", 1), ("kmeans", 2)]
)
def test_rows_of_weight_zero_take_no_part(init: Any, n_init: int) -> None:
    X, _ = blobs()
    far = 1e4 * np.random.default_rng(1).normal(size=(30, 2))
    # Of four epochs, one is that in which the flows fit the clusters of the start.
    options: dict[str, Any] = {"init": init, "n_init": n_init, "max_iter": 4, "random_state": 0}
    if init == "spectral":  # the first clusters are the claim; the others have flows
        options["flow"] = "gaussian"
    rows, weight = np.vstack([far, X]), np.r_[np.zeros(30), np.ones(300)]
    found = FlowMixtureClustering(3, **options).fit(rows, sample_weight=weight)
    expected = FlowMixtureClustering(3, **options).fit(X, sample_weight=np.ones(300))
    np.testing.assert_array_equal(found.score_samples(X), expected.score_samples(X))
    np.testing.assert_array_equal(found.labels_[30:], expected.labels_)
