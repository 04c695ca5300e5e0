"""Frames: columns in the order of the fit, and columns of every kind, for pair and estimator."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
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
    return FlowMixtureClustering(2, max_iter=1, random_state=0)


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
    with pytest.raises(ValueError, match="NaN or infinite"):
        vmonf.fit(FRAME.mask(FRAME > 1), **QUIET)
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
    "Int64 with gaps": (
        pd.array([None, *COUNTS[1:]], dtype="Int64"),
        r"column 'b' of x has missing values in rows 0; .*dropna\(subset=\['b'\]\)",
    ),
    "boolean with gaps": (
        pd.array([*FLAGS[:-1], None], dtype="boolean"),
        "column 'b' of x has missing values in rows 59;",
    ),
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
