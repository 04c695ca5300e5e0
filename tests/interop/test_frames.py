"""Frames: columns in the order of the fit, and columns of every kind, for pair and estimator."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pyro_vmonf import ExactGuide, FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.metrics import match_components
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_

N = 60
DRAW = np.random.default_rng(0)
VALUES = DRAW.normal(size=(N, 3))
FRAME = pd.DataFrame(VALUES, columns=["a", "b", "c"])
ORDERS = list(itertools.permutations("abc"))
QUIET: dict[str, Any] = {"epochs": 1, "progress": False, "seed": 0}


def pair(features: int = 3) -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(RealNVP(features, 2, blocks=2, hidden=(4,)))
    return VMoNF(model, SoftmaxGuide(MLP(features, 2, hidden=(4,)))).double()


def estimator() -> FlowMixtureClustering:
    return FlowMixtureClustering(2, init="random", max_iter=1, random_state=0)


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_columns_are_put_in_the_order_of_the_fit(order: tuple[str, ...], tmp_path: Path) -> None:
    vmonf = pair()
    assert not hasattr(vmonf, "feature_names_in_")
    vmonf.fit(FRAME, **QUIET)
    assert list(vmonf.feature_names_in_) == ["a", "b", "c"]
    mixed = FRAME[list(order)]
    expected = vmonf.log_prob(VALUES)
    for rows in (FRAME, mixed):
        assert torch.equal(vmonf.log_prob(rows), expected)
    assert torch.equal(vmonf.predict_proba(mixed), vmonf.predict_proba(VALUES))
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert list(loaded.feature_names_in_) == ["a", "b", "c"]
    assert torch.equal(loaded.log_prob(mixed), expected)
    again, other = pair(), pair()
    for one, rows in ((again, FRAME), (other, mixed)):
        one.fit(FRAME, **QUIET)
        one.fit(rows, n_init=2, **QUIET)
    assert torch.equal(again.log_prob(VALUES), other.log_prob(VALUES))


@pytest.mark.parametrize("n_init", [1, 2])
def test_columns_that_are_missing_or_new_are_named(n_init: int) -> None:
    vmonf = pair()
    vmonf.fit(FRAME, n_init=n_init, **QUIET)
    before = vmonf.log_prob(VALUES)
    other = FRAME.rename(columns={"b": "z"})
    for action in (
        vmonf.log_prob,
        vmonf.predict,
        vmonf.report,
        vmonf.model.standardize_,
        lambda x: vmonf.fit(x, **QUIET),
        lambda x: warm_start_(vmonf.guide, x, steps=1),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"lacks the columns \['b'\] and has .* \['z'\]"):
            action(other)
        with pytest.raises(ValueError, match=r"lacks the columns \['c'\]"):
            action(FRAME[["b", "a"]])
        with pytest.raises(ValueError, match=r"has the columns \['d'\]"):
            action(FRAME.assign(d=1.0))
    assert torch.equal(vmonf.log_prob(VALUES), before)
    assert list(vmonf.feature_names_in_) == ["a", "b", "c"]


def test_names_are_those_of_the_fit_that_succeeds() -> None:
    vmonf = pair()
    with pytest.raises(ValueError, match="infinite values"):
        vmonf.fit(FRAME.mask(FRAME > 1, np.inf), **QUIET)
    assert not hasattr(vmonf, "feature_names_in_")
    vmonf.fit(pd.DataFrame(VALUES), **QUIET)  # numbers are no names
    assert not hasattr(vmonf, "feature_names_in_")
    vmonf.fit(FRAME, **QUIET)
    assert torch.isfinite(vmonf.log_prob(VALUES)).all()  # rows without names keep their order


COUNTS = DRAW.integers(0, 40, N)
FLAGS = DRAW.random(N) > 0.5
KINDS: dict[str, Any] = {
    "float32": VALUES[:, 0].astype(np.float32),
    "int64": COUNTS,
    "uint8": COUNTS.astype(np.uint8),
    "bool": FLAGS,
    "Int64": pd.array(COUNTS, dtype="Int64"),
    "Float64": pd.array(VALUES[:, 0], dtype="Float64"),
    "boolean": pd.array(FLAGS, dtype="boolean"),
    "Sparse": pd.arrays.SparseArray(COUNTS.astype(float)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*column")
def test_columns_of_numbers_are_used(kind: str) -> None:
    frame = pd.DataFrame({"a": VALUES[:, 1], "b": KINDS[kind]})
    plain = np.column_stack([VALUES[:, 1], np.asarray(KINDS[kind], dtype=float)])
    one, other = pair(2), pair(2)
    one.fit(frame, **QUIET)
    other.fit(plain, **QUIET)
    torch.testing.assert_close(one.log_prob(frame), other.log_prob(plain), rtol=1e-9, atol=1e-9)
    mine, theirs = estimator().fit(frame), estimator().fit(plain)
    np.testing.assert_allclose(mine.score_samples(frame), theirs.score_samples(plain), rtol=1e-9)
    assert list(mine.feature_names_in_) == ["a", "b"]
    only = pd.DataFrame({"a": KINDS[kind], "b": KINDS[kind]})
    assert torch.isfinite(pair(2).log_prob(only)).all()


REFUSED: dict[str, tuple[Any, str]] = {
    "text": (["x"] * N, r"column 'b' of x has dtype \w+; .*get_dummies\(frame, columns=\['b'\]"),
    "object": (np.array([1.5] * N, dtype=object), r"column 'b' .* object; .*astype\(float\)"),
    "category": (pd.Categorical(["u", "v"] * (N // 2)), r"column 'b' .* category; .*get_dummies"),
    "datetime": (pd.date_range("2020", periods=N), r"column 'b' .* datetime64.*total_seconds\(\)"),
    "timedelta": (pd.to_timedelta(range(N), "s"), r"column 'b' .* timedelta.*total_seconds\(\)"),
    "complex": (VALUES[:, 0] * 1j, r"column 'b' of x has dtype complex128; .*real and .imag"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_columns_are_refused_by_name(kind: str) -> None:
    values, message = REFUSED[kind]
    frame = pd.DataFrame({"a": VALUES[:, 1], "b": values})
    vmonf, fitted = pair(2), estimator().fit(VALUES[:, :2])
    for action in (
        lambda: vmonf.fit(frame, **QUIET),
        lambda: vmonf.log_prob(frame),
        lambda: estimator().fit(frame),
        lambda: fitted.predict(frame),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            action()
    assert not vmonf.model.standardizer.fitted


def test_gaps_of_nullable_columns_are_missing_entries() -> None:
    gaps = FRAME.assign(a=FRAME["a"].mask(FRAME["a"] > 1))
    nullable = gaps.astype("Float64")
    assert str(nullable["a"].dtype) == "Float64"
    vmonf, other = pair(), pair()
    vmonf.fit(nullable, **QUIET)
    other.fit(gaps, **QUIET)
    assert torch.equal(vmonf.log_prob(nullable), other.log_prob(gaps))


LABELS: dict[str, list[Any]] = {
    "years": [2019, 2021, 2020],
    "NumPy's numbers": list(np.array([7, 3, 5])),
    "mixed": [1, "b", 0],
    "two levels": [("u", "a"), ("u", "b"), ("v", "a")],
    "dates": list(pd.date_range("2020", periods=3)),
    "numbers with fractions": [0.5, 0.25, 1.0],
}


@pytest.mark.parametrize("kind", LABELS)
def test_columns_of_any_label_are_put_in_order(kind: str, tmp_path: Path) -> None:
    labels = pd.MultiIndex.from_tuples(LABELS[kind]) if kind == "two levels" else LABELS[kind]
    frame = pd.DataFrame(VALUES, columns=labels)
    vmonf = pair()
    vmonf.fit(frame, **QUIET)
    expected = vmonf.log_prob(VALUES)
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    for places in itertools.permutations(range(3)):
        mixed = frame.iloc[:, list(places)]
        assert torch.equal(vmonf.log_prob(mixed), expected)
        assert torch.equal(loaded.log_prob(mixed), expected)
    with pytest.raises(ValueError, match="lacks the columns"):
        vmonf.log_prob(pd.DataFrame(VALUES, columns=[*frame.columns[:2], "other"]))


@pytest.mark.parametrize("fitted_on", ["array", "frame", "names"])
def test_columns_that_are_numbered_are_put_in_the_order_of_their_numbers(fitted_on: str) -> None:
    numbered = pd.DataFrame(VALUES)
    rows = {"array": VALUES, "frame": numbered[[1, 2, 0]], "names": FRAME}[fitted_on]
    vmonf, plain = pair(), pair()
    vmonf.fit(rows, **QUIET)
    plain.fit(VALUES, **QUIET)
    expected = plain.log_prob(VALUES)
    for order in itertools.permutations(range(3)):
        assert torch.equal(vmonf.log_prob(numbered[list(order)]), expected)


def test_estimator_and_from_data_put_numbered_columns_in_order() -> None:
    years = pd.DataFrame(VALUES, columns=[2019, 2021, 2020])
    fitted = estimator().fit(years)
    expected = fitted.score_samples(VALUES)
    np.testing.assert_array_equal(fitted.score_samples(years[[2021, 2020, 2019]]), expected)
    numbered = pd.DataFrame(VALUES)[[2, 0, 1]]
    found = VMoNF.from_data(numbered, components=2, seed=0, minutes=0.02).model.standardizer.loc
    mean = torch.tensor(VALUES.mean(0)).to(found)
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)


def test_a_part_of_numbered_columns_is_known_by_its_numbers() -> None:
    numbered = pd.DataFrame(np.column_stack([VALUES, VALUES[:, 0] ** 2]))
    vmonf, plain = pair(), pair()
    vmonf.fit(numbered[[3, 1, 0]], **QUIET)
    plain.fit(numbered[[3, 1, 0]].to_numpy(), **QUIET)
    expected = plain.log_prob(numbered[[3, 1, 0]].to_numpy())
    assert torch.equal(vmonf.log_prob(numbered[[0, 3, 1]]), expected)
    with pytest.raises(ValueError, match=r"has the columns \[2\]"):
        vmonf.log_prob(numbered)
    with pytest.raises(ValueError, match=r"lacks the columns \[3\] and has the columns \[2\]"):
        vmonf.log_prob(numbered[[0, 1, 2]])


def test_the_estimator_gives_frames_to_a_pipeline(tmp_path: Path) -> None:
    frame = FRAME.set_index(np.arange(100, 100 + N))
    pipe = make_pipeline(StandardScaler(), estimator()).set_output(transform="pandas")
    found = pipe.fit(frame).transform(frame)
    assert list(found.columns) == ["cluster0", "cluster1"]
    assert list(found.index) == list(frame.index)
    expected = pipe.predict_proba(frame)
    np.testing.assert_array_equal(found, expected)
    joblib.dump(pipe, tmp_path / "pipe.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "pipe.joblib").transform(frame), expected)


class ArrowTable:
    """What a table of pyarrow has of a frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.column_names = list(frame.columns)

    def to_pandas(self) -> pd.DataFrame:
        return self._frame

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self._frame.to_numpy()


class Kind:
    """A dtype of polars."""

    def __init__(self, name: str, numeric: bool) -> None:
        self.name, self.numeric = name, numeric

    def is_numeric(self) -> bool:
        return self.numeric

    def __str__(self) -> str:
        return self.name


class PolarsFrame:
    """What a frame of polars has: columns by name, and no positions of rows."""

    def __init__(self, columns: dict[str, Any], kinds: list[Kind]) -> None:
        self.held, self.dtypes = columns, kinds

    @property
    def columns(self) -> list[str]:
        return list(self.held)

    def to_numpy(self) -> Any:
        return np.stack(list(self.held.values()), 1)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.to_numpy()

    def __len__(self) -> int:
        return len(next(iter(self.held.values())))

    def cast(self, kinds: dict[str, type]) -> PolarsFrame:
        held = {k: v.astype(kinds.get(k, v.dtype)) for k, v in self.held.items()}
        return PolarsFrame(held, [Kind("Float64", True)] * len(held))


FLOAT = Kind("Float64", True)


def test_tables_of_arrow_have_names() -> None:
    vmonf, other = pair(), pair()
    vmonf.fit(FRAME, **QUIET)
    other.fit(ArrowTable(FRAME), **QUIET)
    mixed = FRAME[["c", "a", "b"]]
    for one in (vmonf, other):
        assert list(one.feature_names_in_) == ["a", "b", "c"]
        for rows in (mixed, ArrowTable(mixed)):
            assert torch.equal(one.log_prob(rows), vmonf.log_prob(VALUES))
    with pytest.raises(ValueError, match="lacks the columns"):
        vmonf.log_prob(ArrowTable(FRAME[["a", "b"]]))


def test_labelled_arrays_have_names() -> None:
    xarray = pytest.importorskip("xarray")
    vmonf = pair()
    vmonf.fit(FRAME, **QUIET)
    mixed = FRAME[["c", "a", "b"]]
    table = xarray.DataArray(
        mixed.to_numpy(), dims=("row", "column"), coords={"column": list(mixed.columns)}
    )
    assert torch.equal(vmonf.log_prob(table), vmonf.log_prob(VALUES))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Datetime(time_unit='us', time_zone=None)", r"dt\.epoch"),
        ("Date", r"dt\.epoch"),
        ("Duration(time_unit='us')", r"dt\.total_seconds"),
        ("Time", "drop it"),
        ("String", "drop it"),
    ],
)
def test_times_of_polars_are_no_numbers(kind: str, said: str) -> None:
    frame = PolarsFrame({"a": VALUES[:, 0], "when": np.arange(N)}, [FLOAT, Kind(kind, False)])
    with pytest.raises(TypeError, match=f"column 'when' of x has dtype .*{said}"):
        pair(2).fit(frame, **QUIET)


def test_numbers_of_polars_are_floats() -> None:
    flags = VALUES[:, 1] > 0
    columns = {"a": VALUES[:, 0], "flag": flags, "count": np.arange(N)}
    frame = PolarsFrame(columns, [FLOAT, Kind("Boolean", False), Kind("Int128", True)])
    vmonf, other = pair(), pair()
    with pytest.warns(UserWarning, match="flag"):
        vmonf.fit(frame, **QUIET)
    with pytest.warns(UserWarning, match="flag"):
        other.fit(pd.DataFrame(columns), **QUIET)
    assert torch.equal(vmonf.log_prob(frame), other.log_prob(pd.DataFrame(columns)))


def test_a_lazy_frame_is_named() -> None:
    class LazyFrame:
        def collect(self) -> None: ...

        def collect_schema(self) -> None: ...

    with pytest.raises(TypeError, match="a LazyFrame has no rows yet; pass what its collect"):
        pair().log_prob(LazyFrame())


def test_evidence_in_numbered_columns_follows_their_numbers() -> None:
    vmonf = pair()
    vmonf.fit(VALUES, **QUIET)
    y = pd.DataFrame({0: np.zeros(N), 1: np.full(N, -9.0)})
    assert torch.equal(vmonf.predict_proba(VALUES, y), vmonf.predict_proba(VALUES, y[[1, 0]]))


def test_whole_numbers_that_lose_digits_are_named() -> None:
    times = 1_700_000_000_000_000_000 + np.arange(N)
    vmonf = pair(2)
    with pytest.warns(RuntimeWarning, match="column 'time' of x has whole numbers beyond 2"):
        vmonf.model.rows(pd.DataFrame({"a": VALUES[:, 0], "time": times}))


def test_responsibilities_in_numbered_columns_follow_their_numbers() -> None:
    shares = pd.DataFrame(DRAW.dirichlet(np.ones(2), N))
    assert match_components(shares, shares[[1, 0]]).tolist() == [0, 1]
    ends = []
    for rows in (shares, shares[[1, 0]]):
        vmonf = pair()
        warm_start_(vmonf.guide, VALUES, rows, steps=3)
        ends.append(vmonf.guide.log_q(torch.as_tensor(VALUES)))
    assert torch.equal(*ends)


def test_a_table_of_arrow_is_no_context() -> None:
    model = FlowMixture(RealNVP(2, 2, context_features=2, blocks=2), context_features=2)
    table = ArrowTable(pd.DataFrame(VALUES[:, :2], columns=["a", "b"]))
    with pytest.raises(TypeError, match="the context is a frame"):
        VMoNF(model, ExactGuide()).log_prob(torch.zeros(N, 2), given=table)
