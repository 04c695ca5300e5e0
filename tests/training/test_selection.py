"""States of a run are compared by one objective, whatever the schedules of the terms do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.terms import Balance, CustomTerm

X = torch.randn(96, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.5])
OPTIONS: dict[str, Any] = {"batch_size": 32, "lr": 0.02, "seed": 0, "progress": False}


def pair(*terms: Any, bank: Any = None) -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(bank or RealNVP(2, 2, blocks=1, hidden=(4,)))
    return VMoNF(model, SoftmaxGuide(MLP(2, 2), terms))


def constant(initial: float, final: float) -> CustomTerm:
    """A penalty of one, which has no gradient and a weight that moves."""
    weight = linear_decay(18, initial=initial, final=final)
    return CustomTerm(lambda batch: batch.log_q.new_ones(len(batch.log_q)), weight=weight)


@pytest.mark.parametrize("held_out", [0.0, 0.25])
@pytest.mark.parametrize("weights", [(0.0, 5.0), (5.0, 0.0)])
def test_a_weight_that_moves_prefers_no_epoch(
    weights: tuple[float, float], held_out: float
) -> None:
    options = {**OPTIONS, "epochs": 6, "held_out": held_out, "keep": "best", "patience": None}
    plain, moved = pair(), pair(constant(*weights))
    first, second = plain.fit(X, **options), moved.fit(X, **options)
    assert first.kept == second.kept
    assert torch.equal(plain.log_prob(X), moved.log_prob(X))
    last = moved.guide.terms[0].current_weight
    shift = [a - b for a, b in zip(first.held_out, second.held_out, strict=True)]
    assert shift == pytest.approx([last] * len(shift), abs=1e-5)


def test_a_weight_that_rises_ends_no_run() -> None:
    options = {**OPTIONS, "epochs": 6, "held_out": 0.25, "patience": 2}
    plain, moved = pair(), pair(constant(0.0, 5.0))
    assert len(plain.fit(X, **options).epoch) == len(moved.fit(X, **options).epoch)


@pytest.mark.parametrize("in_turn", [True, False])
def test_the_terms_have_the_weights_of_the_run_that_stayed(in_turn: bool) -> None:
    """The runs stop after different numbers of epochs."""
    one = pair(Balance(weight=linear_decay(200, initial=1.0)), bank=Gaussian(2, 2))
    more: dict[str, Any] = {"callbacks": lambda progress: False} if in_turn else {}
    options = {**OPTIONS, "lr": 0.3, "epochs": 40, "held_out": 0.25, "patience": 1}
    history = one.fit(X, n_init=4, **options, **more)
    weight = one.guide.terms[0].current_weight
    assert weight == pytest.approx(linear_decay(200, initial=1.0)(history.step[-1] - 1))
    assert len(history.restarts) == 4
