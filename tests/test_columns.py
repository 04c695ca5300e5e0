"""Columns and rows on which a density has no bound: one warning, and finite densities."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.columns import warn_of_columns
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_

N = 100
DRAW = torch.Generator().manual_seed(0)
REAL = torch.randn(N, 3, generator=DRAW)


def column(values: Tensor) -> Tensor:
    return torch.cat((REAL[:, :1], values.reshape(N, 1).float(), REAL[:, 1:2]), 1)


ROWS: dict[str, tuple[Tensor, str, str]] = {
    "constant": (column(torch.full((N,), 3.7)), "column 1 is constant", "drop constant"),
    "all zero": (column(torch.zeros(N)), "column 1 is constant", "drop constant"),
    "0/1": (column(torch.arange(N) % 2), "column 1 has two values only", "apart"),
    "-1/+1": (column(2 * (torch.arange(N) % 2) - 1), "column 1 has two values only", "apart"),
    "ages": (column(20 + torch.arange(N) % 40), "column 1 holds whole numbers", "torch.rand"),
    "repeated": (REAL[torch.arange(N) % 50], "50 of 100 rows repeat another one", "jitter"),
    "one row": (REAL[:1].expand(N, 3), "column 0, 1, 2 is constant; 99 of 100 rows", "jitter"),
}
FINE: dict[str, Tensor] = {
    "real": REAL,
    "seconds that differ": column(torch.arange(N) * 37),
    "one of a hundred repeats": torch.cat((REAL[:-1], REAL[:1])),
    "far off": REAL.double() * 1e-3 + 1.7e9,
}


def pair(dtype: torch.dtype = torch.float32) -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(RealNVP(3, 2, blocks=2, hidden=(4,)))
    return VMoNF(model, SoftmaxGuide(MLP(3, 2, hidden=(4,)))).to(dtype)


def told(action: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "Remedies" in str(w.message)]


@pytest.mark.parametrize("n_init", [1, 2])
@pytest.mark.parametrize("name", ROWS)
def test_a_fit_names_them_once_and_stays_finite(name: str, n_init: int) -> None:
    x, words, cure = ROWS[name]
    vmonf = pair()
    options: dict[str, Any] = {"epochs": 10, "lr": 0.01, "progress": False, "seed": 0}
    [message] = told(lambda: vmonf.fit(x, n_init=n_init, **options))
    assert words in message
    assert cure in message
    assert told(lambda: vmonf.fit(x, **options)) == []
    assert vmonf.log_prob(x).isfinite().all()
    assert vmonf.component_log_prob(x).isfinite().all()
    assert all(p.isfinite().all() for p in vmonf.parameters())


CALLS: dict[str, Any] = {
    "fit": lambda x: pair().fit(x, epochs=1, progress=False),
    "fit of a loader": lambda x: pair().fit(DataLoader(TensorDataset(x)), steps=1, progress=False),
    "several starts": lambda x: pair().fit(x, n_init=2, epochs=1, progress=False),
    "from_data": lambda x: VMoNF.from_data(x, components=2, minutes=0.01, seed=0, progress=False),
    "standardize_": lambda x: pair().model.standardize_(x),
    "warm_start_": lambda x: warm_start_(pair().guide, x, steps=1),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.parametrize("call", CALLS)
def test_the_warning_points_to_the_line_of_the_user(call: str) -> None:
    with pytest.warns(UserWarning, match="Remedies") as caught:
        CALLS[call](ROWS["ages"][0])
    assert {w.filename for w in caught if "Remedies" in str(w.message)} == {__file__}


@pytest.mark.parametrize("name", FINE)
def test_other_rows_pass_without_a_word(name: str) -> None:
    warn_of_columns(FINE[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_every_kind_is_counted_right(seed: int, dtype: torch.dtype) -> None:
    draw = np.random.default_rng(seed)
    rows, scale = int(draw.integers(40, 300)), 10.0 ** draw.integers(-6, 7)
    repeats = int(draw.integers(rows // 10, rows // 2))
    x = draw.normal(size=(rows, 4)) * scale
    x[rows - repeats :] = x[:repeats]
    x = torch.as_tensor(draw.permutation(x)).to(dtype)
    with pytest.warns(UserWarning, match=f"^{repeats} of {rows} rows repeat"):
        warn_of_columns(x)


def test_columns_have_the_names_of_the_frame() -> None:
    frame = pd.DataFrame(column(torch.arange(N) % 2).numpy(), columns=["age", "sex", "dose"])
    for action in (
        lambda: pair().fit(frame, epochs=1, progress=False),
        lambda: pair().model.standardize_(frame),
        lambda: FlowMixtureClustering(2, max_iter=4, n_init=2, random_state=0).fit(frame),
        lambda: FlowMixtureClustering(2, max_iter=4, init="random", random_state=0).fit(frame),
    ):
        [message] = told(action)
        assert message.startswith("column 'sex' has two values only.")
    vmonf = pair()
    assert len(told(lambda: warm_start_(vmonf.guide, frame, steps=1))) == 1  # type: ignore[arg-type]
    assert told(lambda: vmonf.fit(frame, epochs=1, progress=False)) == []


def test_rows_of_weight_zero_do_not_count() -> None:
    x = torch.cat((column(torch.arange(N) % 2), 5 * REAL))
    weight = (torch.arange(2 * N) < N).float()
    [message] = told(lambda: pair().fit(x, sample_weight=weight, epochs=1, progress=False))
    assert message.startswith("column 1 has two values only.")


@pytest.mark.parametrize(
    ("images", "levels"),
    [
        (torch.randint(17, (50, 1, 4, 4)) / 16, 17),
        (torch.randint(256, (50, 1, 4, 4)) / 255, 256),
        (torch.randint(200, (50, 1, 4, 4)).float(), 200),
        (torch.rand(50, 1, 4, 4), None),
        (torch.randn(50, 1, 4, 4), None),
    ],
)
def test_images_of_whole_levels_are_named(images: Tensor, levels: int | None) -> None:
    images[0].flatten()[:2] = torch.tensor([0.0, float(images.max())])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_columns(images)
    if levels is None:
        assert not said
    else:
        [one] = said
        assert f"have {levels} grey levels" in str(one.message) or levels == 200
        assert "add uniform noise" in str(one.message)
