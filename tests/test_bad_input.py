"""Whatever comes in: a right answer, or an error of ours that says what was wrong; no harm done."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
    information_criteria,
    metrics,
)
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import spectral_clusters, warm_start_

K, D = 3, 2
EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
OURS = str(Path(__file__).parent.parent / "pyro_vmonf")

SHAPES = [(20, D), (3, D), (2, D), (1, D), (0, D), (20, 3), (20,), (20, 1), (20, D, 1), (), (D,)]
KINDS = ["float32", "float64", "float16", "int64", "uint8", "bool", "complex64", "str", "object"]
FORMS = [
    "tensor", "array", "list", "frame", "sparse", "masked", "strided", "backwards", "read-only",
    "fortran", "with gradient", "none", "number", "text", "set", "generator",
]  # fmt: skip
SPOILS = [
    "nothing", "nan", "inf", "one column nan", "constant", "one constant column", "repeated rows",
    "1e-12", "1e12", "shifted by 1e9", "1e38", "two values", "all zero",
]  # fmt: skip


def made(shape: tuple[int, ...], kind: str, form: str, spoil: str, seed: int) -> Any:
    """Return rows of a kind that may be anything."""
    x = np.random.default_rng(seed).normal(size=shape)
    flat = x.reshape(-1)
    if spoil in ("nan", "inf") and x.size:
        flat[0] = float(spoil)
    elif spoil == "one column nan" and x.ndim == 2 and x.size:
        x[:, 0] = np.nan
    elif spoil in ("constant", "all zero"):
        x[...] = 0.0 if spoil == "all zero" else 3.7
    elif spoil == "one constant column" and x.ndim == 2 and x.size:
        x[:, -1] = 1.5
    elif spoil == "repeated rows" and x.ndim == 2 and len(x):
        x[:] = x[:1]
    elif spoil in ("1e-12", "1e12", "1e38"):
        x = x * float(spoil)
    elif spoil == "shifted by 1e9":
        x = x + 1e9
    elif spoil == "two values":
        x = np.sign(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = np.asarray(x).astype(kind)
    return formed(x, form)


def formed(x: np.ndarray[Any, Any], form: str) -> Any:
    if form in ("tensor", "with gradient"):
        try:
            return torch.as_tensor(x).requires_grad_(form == "with gradient")
        except (TypeError, RuntimeError):
            return x
    if form == "list":
        return x.tolist()
    if form == "frame" and x.ndim <= 2:
        return pd.DataFrame(x) if x.ndim else x
    if form == "sparse" and x.ndim == 2 and x.dtype.kind == "f" and x.dtype != np.float16:
        return scipy.sparse.csr_matrix(x)
    if form == "masked":
        return np.ma.masked_array(x, mask=np.arange(x.size).reshape(x.shape) % 3 == 0)
    if form == "strided" and x.ndim:
        return np.repeat(x, 2, axis=0)[::2]
    if form == "backwards" and x.ndim:
        return x[::-1]
    if form == "read-only":
        x.flags.writeable = False
        return x
    if form == "fortran":
        return np.asfortranarray(x)
    return {
        "none": None, "number": 3.5, "text": "rows", "set": {1.0, 2.0}, "generator": iter([1.0]),
    }.get(form, x)  # fmt: skip


def pair(guide: object = "softmax") -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(RealNVP(D, K, blocks=1, hidden=(3,)))
    return VMoNF(model, SoftmaxGuide(MLP(D, K)) if guide == "softmax" else ExactGuide())


def gaussians() -> FlowMixture:
    torch.manual_seed(0)
    return FlowMixture(Gaussian(D, K), "learned")


GOOD = torch.randn(20, D, generator=torch.Generator().manual_seed(0))


def finite(value: Tensor, rows: Any) -> None:
    assert len(value) == len(rows)
    assert not value.isnan().any()  # a row a float's whole range away has a density of zero
    assert not (value == torch.inf).any()


def fits(x: Any) -> None:
    vmonf = pair()
    vmonf.fit(x, epochs=1, progress=False, seed=0)
    finite(vmonf.log_prob(x), x)
    assert all(p.isfinite().all() for p in vmonf.parameters())


def scored(x: Any) -> None:
    finite(pair().log_prob(x), x)


FUNCTIONS: dict[str, Callable[[Any], object]] = {
    "fit": fits,
    "fit, restarts": lambda x: pair().fit(x, epochs=1, n_init=2, progress=False, seed=0),
    "log_prob": scored,
    "predict": lambda x: finite(pair().predict(x), x),
    "predict_proba": lambda x: finite(pair().predict_proba(x), x),
    "exact": lambda x: finite(pair().predict_proba(x, exact=True), x),
    "component_log_prob": lambda x: finite(pair().component_log_prob(x), x),
    "elbo": lambda x: finite(pair().elbo(x), x),
    "report": lambda x: pair().report(x),
    "prune_": lambda x: pair().prune_(x, below=0.0),
    "standardize_": lambda x: pair().model.standardize_(x),
    "fit_em": lambda x: fit_em(gaussians(), x),
    "information_criteria": lambda x: information_criteria(gaussians(), x),
    "spectral_clusters": lambda x: spectral_clusters(x, K),
    "warm_start_": lambda x: warm_start_(pair().guide, x, steps=2),  # type: ignore[arg-type]
    "to_inference_data": lambda x: to_inference_data(pair(), x),
}
LABELS: dict[str, Callable[[Any], object]] = {
    "fit(y)": lambda y: pair().fit(GOOD, y, epochs=1, progress=False),
    "fit(sample_weight)": lambda w: pair().fit(GOOD, epochs=1, sample_weight=w, progress=False),
    "predict_proba(y)": lambda y: pair().predict_proba(GOOD, y),
    "warm_start_(clusters)": lambda y: warm_start_(pair().guide, GOOD, y, steps=2),  # type: ignore[arg-type]
    "align_": lambda y: pair().align_(y, GOOD),
    "accuracy": lambda y: metrics.accuracy(torch.zeros(20, dtype=torch.long), y),
    "nmi": lambda y: metrics.normalized_mutual_information(torch.zeros(20, dtype=torch.long), y),
    "contingency": lambda y: metrics.contingency(torch.zeros(20, dtype=torch.long), y),
}


def answers_or_says_why(action: Callable[[Any], object], value: Any) -> None:
    """Run an action; an error has to be one of ours, raised by us."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The answer to a step that is far too long.
            warnings.filterwarnings("ignore", "the last step led to a state whose objective")
            # Constant columns and repeated rows are named.
            warnings.filterwarnings("ignore", "(column|[0-9]+ of [0-9]+ rows repeat).*Remedies")
            # A pair without random parts exports a point.
            warnings.filterwarnings("ignore", "Nothing in the mixture is random")
            action(value)
    except (ValueError, TypeError, FloatingPointError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if not frame.filename.startswith(OURS) or len(str(error)) < 15:
            pytest.fail(f"{error!r} from {frame}")


SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows(name: str) -> None:
    @SETTINGS
    @given(
        shape=st.sampled_from(SHAPES) | st.just((20, D)),
        kind=st.sampled_from(KINDS) | st.just("float32"),
        form=st.sampled_from(FORMS) | st.just("array"),
        spoil=st.sampled_from(SPOILS),
        seed=st.integers(0, 9),
    )
    def run(shape: tuple[int, ...], kind: str, form: str, spoil: str, seed: int) -> None:
        answers_or_says_why(FUNCTIONS[name], made(shape, kind, form, spoil, seed))

    run()


@pytest.mark.parametrize("name", LABELS)
def test_labels_and_weights(name: str) -> None:
    @SETTINGS
    @given(
        shape=st.sampled_from([(20,), (19,), (20, K), (20, 1), (0,), ()]),
        kind=st.sampled_from(KINDS),
        form=st.sampled_from(FORMS),
        spoil=st.sampled_from(SPOILS),
        seed=st.integers(0, 9),
    )
    def run(shape: tuple[int, ...], kind: str, form: str, spoil: str, seed: int) -> None:
        answers_or_says_why(LABELS[name], made(shape, kind, form, spoil, seed))

    run()


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([None, "3", True, [2], ()]),
)
FIT = (
    "epochs", "batch_size", "clip_norm", "pretrain_epochs", "held_out", "patience", "keep",
    "temperature", "n_init", "every", "max_rejected", "lr",
)  # fmt: skip


def fit_with(name: str) -> Callable[[Any], object]:
    return lambda value: pair().fit(GOOD, progress=False, **({"epochs": 1} | {name: value}))


OPTIONS: dict[str, Callable[[Any], object]] = {name: fit_with(name) for name in FIT} | {
    "sample": lambda value: pair().sample(value),
    "component": lambda value: pair().sample(2, component=value),
    "chunk_size": lambda value: pair().log_prob(GOOD, chunk_size=value),
    "below": lambda value: pair().prune_(GOOD, below=value),
    "features": lambda value: RealNVP(value, K, blocks=2),
    "components": lambda value: RealNVP(D, value, blocks=2),
    "blocks": lambda value: RealNVP(D, K, blocks=value),
    "bound": lambda value: RealNVP(D, K, bound=value, blocks=2),
    "elbo_gradient": lambda value: SoftmaxGuide(MLP(D, K), elbo_gradient=value),
    "top": lambda value: SoftmaxGuide(MLP(D, K), top=value),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_numbers(name: str) -> None:
    @SETTINGS
    @given(value=NUMBERS)
    def run(value: Any) -> None:
        answers_or_says_why(OPTIONS[name], value)

    run()


@pytest.mark.parametrize("form", ["array", "tensor", "frame", "backwards", "read-only", "fortran"])
def test_every_form_of_the_same_rows_is_the_same(form: str) -> None:
    x = np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)
    vmonf = pair()
    expected = vmonf.log_prob(torch.tensor(x))
    found = vmonf.log_prob(formed(x.copy(), form))
    assert torch.equal(found, expected.flip(0) if form == "backwards" else expected)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("shift", [0.0, 1e9])
def test_extreme_units_are_standardised_away(scale: float, shift: float) -> None:
    if scale < 1 and shift:
        shift *= scale
    plain = torch.randn(200, D, generator=torch.Generator().manual_seed(0)).double()
    vmonf, other = pair().double(), pair().double()
    x = plain * scale + shift
    options = {"epochs": 3, "progress": False, "seed": 0}
    history, expected = vmonf.fit(x, **options), other.fit(plain, **options)  # type: ignore[arg-type]
    moved = -D * np.log(scale)
    tolerance = 1e-4 if shift else 1e-6
    assert history.elbo[-1] == pytest.approx(expected.elbo[-1] + moved, abs=tolerance)
    torch.testing.assert_close(
        vmonf.log_prob(x), other.log_prob(plain) + moved, rtol=0, atol=10 * tolerance
    )
    assert torch.equal(vmonf.predict(x), other.predict(plain))


def test_bad_rows_leave_the_pair_alone() -> None:
    vmonf, before = pair(), pair()
    for action in (
        lambda x: vmonf.fit(x, epochs=1, progress=False),
        lambda x: vmonf.model.standardize_(x),
        lambda x: vmonf.prune_(x),
    ):
        with pytest.raises(ValueError, match="infinite values"):
            action(made((20, D), "float32", "tensor", "inf", 0))
    for one, other in zip(vmonf.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(one, other)
