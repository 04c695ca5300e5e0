"""Answers that a fifth reader found wrong, and the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.nn import MLP

UNTRAINED: dict[str, Any] = {"seed": 0, "minutes": 1e-6, "progress": False}


def blobs(rows: int = 300, seed: int = 0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, 2)) + 9 * np.eye(3)[np.arange(rows) % 3][:, :2]


@pytest.mark.parametrize("n_init", [1, 2])
def test_a_short_batch_counts_by_its_rows(n_init: int) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3))).double()
    x = torch.as_tensor(blobs(110))
    options: dict[str, Any] = {"n_init": n_init, "lr": 1e-30, "temperature": 1.0, "held_out": 0.0}
    history = vmonf.fit(x, epochs=2, batch_size=50, seed=0, progress=False, **options)
    assert history.elbo[-1] == pytest.approx(float(vmonf.elbo(x).mean()), rel=1e-9)


def test_few_rows_are_named() -> None:
    with pytest.warns(UserWarning, match="x has 2 rows for 1 component: with fewer than 10 rows"):
        VMoNF.from_data(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), components=1, **UNTRAINED)


def test_drawn_rows_of_the_background_have_its_label() -> None:
    x = np.concatenate((blobs(), 1e4 * np.array([[1.0, 0], [0, -1], [2, 2]])))
    with pytest.warns(UserWarning, match="far from all others"):
        found = FlowMixtureClustering(3, background="auto", minutes=1e-6, random_state=0).fit(x)
    rows, labels = found.sample(2000)
    assert set(labels) == {-1, 0, 1, 2}
    assert (found.predict(rows)[labels == -1] == -1).mean() > 0.95
