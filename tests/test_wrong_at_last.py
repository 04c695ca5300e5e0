"""Right values, and words, where a fourteenth reader found wrong ones or none.

More of them are with the tests of tables, of files, of distributed runs and of the choice of
states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Normal
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.datasets import Pinwheel, random_mixture
from pyro_vmonf.interop.sbc import Calibration, simulation_based_calibration
from pyro_vmonf.metrics import contingency, match
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import exponential_decay, linear_decay
from pyro_vmonf.starts import merge_linked, pretrain_, warm_start_
from pyro_vmonf.terms import Balance, Confidence

K, N = 2, 40
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
CLUSTERS = torch.arange(N) % K


def pair(*terms: Any) -> VMoNF:
    torch.manual_seed(0)
    return VMoNF(FlowMixture(Gaussian(2, K)), SoftmaxGuide(MLP(2, K), terms or None))


def changed(at: int, value: int) -> Tensor:
    clusters = CLUSTERS.clone()
    clusters[at] = value
    return clusters


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "lessons of labels without labels": (
        lambda: pretrain_(SoftmaxGuide(MLP(2, K), model=pair().model), X, steps=5),
        "no row has one; pass y or other terms",
    ),
    "a distortion that loses rows": (
        lambda: pretrain_(pair().guide, X, terms=[Confidence()], augment=lambda x: x[1:], steps=2),
        r"augment returns shape \(39, 2\) for rows of shape \(40, 2\)",
    ),
    "a cluster too many": (
        lambda: warm_start_(pair().guide, X, changed(3, 5)),
        "clusters hold 5 in row 3; expected numbers from 0 to 1",
    ),
    "a row without a cluster": (
        lambda: warm_start_(pair().guide, X, changed(3, -1)),
        "clusters hold -1 in row 3",
    ),
    "clusters of some rows": (
        lambda: warm_start_(pair().guide, X, CLUSTERS[:3]),
        r"clusters have shape \(3,\)",
    ),
    "held-out position": (
        lambda: pair().fit(X, held_out=torch.tensor([0, N]), progress=False),
        f"held_out has the position {N}; expected 0 to {N - 1}",
    ),
    "held-out rows twice": (
        lambda: pair().fit(X, held_out=torch.tensor([1, 1]), progress=False),
        "has a position twice",
    ),
    "all rows held out": (
        lambda: pair().fit(X, held_out=torch.arange(N), progress=False),
        f"held_out has all {N} rows; leave some",
    ),
    "a weight of text": (lambda: Balance(weight="a"), "weight is 'a'; it must be a finite"),  # type: ignore[arg-type]
    "an infinite weight": (lambda: Balance(weight=math.inf), "weight is inf"),
    "a weight of none": (lambda: Balance(weight=lambda step: None), "weight is None"),  # type: ignore[arg-type, return-value]
    "steps of text": (lambda: linear_decay("3"), "steps is '3'"),  # type: ignore[arg-type]
    "steps of truth": (lambda: linear_decay(True), "steps is True"),
    "no first value": (lambda: linear_decay(10, initial=None), "initial is None"),  # type: ignore[arg-type]
    "a rate of text": (lambda: exponential_decay("1"), "rate is '1'"),  # type: ignore[arg-type]
    "a rate without end": (lambda: Pinwheel(rate=math.inf), "rate is inf"),
    "chunks of nothing": (lambda: Pinwheel().log_prob(X, chunk_size=0), "chunk_size"),
    "a seed below zero": (lambda: random_mixture(seed=-1), "seed is -1"),
    "ends below zero": (
        lambda: merge_linked(CLUSTERS, torch.full((N, 2), -1)),
        f"ends hold other numbers than those of rows, 0 to {N - 1}",
    ),
    "no clusters": (lambda: merge_linked(CLUSTERS[:0], CLUSTERS[:0, None]), "expected"),
    "half a cluster": (lambda: contingency([0, 1], [0, 1], 2.5), "num_clusters"),  # type: ignore[arg-type]
    "ranks beyond the draws": (
        lambda: Calibration({"a": torch.tensor([-1, 5])}, 9),
        "ranks of 'a': expected whole numbers, 0 to 9",
    ),
    "no ranks": (lambda: Calibration({}, 9), "ranks are of no site"),
    "half a bin": (
        lambda: Calibration({"a": torch.arange(5)}, 9).p_values(2.5),  # type: ignore[arg-type]
        "bins",
    ),
    "a level in per cent": (
        lambda: Calibration({"a": torch.arange(5)}, 9).plot(level=95),
        "level is 95; expected a probability",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_clusters_of_another_kind_are_named() -> None:
    with pytest.raises(TypeError, match=r"clusters have dtype .*float32; expected integers"):
        warm_start_(pair().guide, X, CLUSTERS.float())


def test_draws_of_whole_numbers_are_not_cut() -> None:
    def model() -> None:
        c = pyro.sample("c", Categorical(torch.ones(3)))
        pyro.sample("x", Normal(c.float(), 1.0))

    def infer(x: Tensor) -> dict[str, Tensor]:
        return {"c": 3 * torch.rand(9)}

    with pytest.raises(ValueError, match=r"infer returned 'c' as .*float32"):
        simulation_based_calibration(model, infer, replicates=3, progress=False)


def test_a_point_without_end_has_no_density() -> None:
    x = torch.tensor([[math.inf, 0.0], [0.3, 0.2], [math.nan, 0.0]])
    found = Pinwheel().log_prob(x)
    assert found[0] == -math.inf
    assert found[1] == Pinwheel().log_prob(x[1:2])[0]
    assert found[2].isnan()


def test_all_clusters_get_a_label() -> None:
    assert sorted(match([0], [3], 2).tolist()) == [0, 1, 2, 3]


def test_numbers_of_numpy_are_weights() -> None:
    assert Balance(weight=np.float32(0.5)).current_weight == 0.5
    assert Balance(weight=lambda step: torch.tensor(0.25)).current_weight == 0.25  # type: ignore[arg-type, return-value]
