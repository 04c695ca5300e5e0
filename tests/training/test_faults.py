"""Faults in the middle of a run: never a corrupted state, never a silent skip."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Batch, Classification

K, D, N = 3, 2, 96
SEEDS = range(int(os.environ.get("FAULTS", "3")))
X = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
OPTIONS: dict[str, Any] = {"epochs": 8, "batch_size": 32, "progress": False, "seed": 0}


class Sometimes:
    """A term that is not finite at some of its calls."""

    def __init__(self, value: float, calls: set[int]) -> None:
        self.value, self.calls, self.count = value, calls, 0

    def __call__(self, batch: Batch) -> Tensor:
        self.count += torch.is_grad_enabled()
        penalty = batch.log_q.exp().square().sum(-1)
        return penalty * self.value if self.count in self.calls else penalty


def pair(term: Callable[[Batch], Tensor] | None = None) -> VMoNF:
    torch.manual_seed(0)
    terms = [Classification(), *([term] if term else [])]
    model = FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), "learned")
    return VMoNF(model, SoftmaxGuide(MLP(D, K), terms))


def finite(vmonf: VMoNF) -> None:
    assert all(value.isfinite().all() for value in vmonf.state_dict().values())
    assert vmonf.log_prob(X).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_term_that_is_not_finite_now_and_then(seed: int, value: float) -> None:
    calls = set(random.Random(seed).sample(range(2, 24), 4))
    vmonf = pair(Sometimes(value, calls))
    with pytest.warns(RuntimeWarning, match="4 of 24 steps .* rolled back"):
        history = vmonf.fit(X, **OPTIONS)
    assert history.rejected == 4
    finite(vmonf)
    assert torch.tensor(history.elbo).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gradient_that_is_not_finite_now_and_then(seed: int, value: float) -> None:
    """A step that is rolled back is as if it had not been: batches, moments and all."""
    draw = random.Random(seed)
    calls = set(draw.sample(range(24), 3))
    vmonf = pair()
    parameters = list(vmonf.parameters())
    chosen, count = draw.choice(parameters), 0
    before: list[list[Tensor]] = []
    start: list[Tensor] = []  # of the step, before the guide counts

    def remember(*_: Any) -> None:
        start[:] = [p.detach().clone() for p in parameters]

    vmonf.guide.network.register_forward_pre_hook(remember)

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count - 1 not in calls:
            return gradient
        before.append(list(start))
        gradient = gradient.clone()
        gradient.reshape(-1)[0] = value
        return gradient

    handle = chosen.register_hook(spoil)
    after: list[list[Tensor]] = []
    steps: list[int] = []

    def watch(progress: Any) -> None:
        steps.append(progress.step)
        after.append([p.detach().clone() for p in parameters])

    with pytest.warns(RuntimeWarning, match="3 of 24 steps"):
        history = vmonf.fit(X, callbacks=watch, **OPTIONS)
    handle.remove()
    assert history.rejected == 3
    finite(vmonf)
    for call, kept in zip(sorted(calls), before, strict=True):
        if (call + 1) % 3 == 0:  # the epoch's last step: nothing moved after it
            for one, other in zip(kept, after[call // 3], strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("where", ["bank", "network"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_parameter_that_is_spoilt(seed: int, where: str) -> None:
    """Nothing can be done about it but to give up, and to give the last good state back."""
    draw = random.Random(seed)
    vmonf = pair()
    part = vmonf.model.bank if where == "bank" else vmonf.guide.network
    chosen, epoch = draw.choice(list(part.parameters())), draw.randrange(6)
    good: list[Tensor] = []

    def spoil(progress: Any) -> None:
        if progress.epoch == epoch:
            good.extend(p.detach().clone() for p in vmonf.parameters())
            with torch.no_grad():
                chosen.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match=r"5 steps in a row .*step \d+: .*last good state"):
        vmonf.fit(X, callbacks=spoil, max_rejected=5, **OPTIONS)
    finite(vmonf)
    last = [p.detach() for p in vmonf.parameters()]  # one step before, where the loss was finite
    counted = next(vmonf.model.weights.parameters())  # moves in closed form, not by lr
    moved = max(
        float((a - b).abs().max())
        for a, b in zip(last, good, strict=True)
        if a.data_ptr() != counted.data_ptr()
    )
    assert moved < 0.01


def test_the_error_names_term_component_and_rows() -> None:
    vmonf = pair()
    with torch.no_grad():
        vmonf.model.bank.transforms[0].network.layers[-1].bias[1].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"log_likelihood.*component 1; rows .*lr"):
        vmonf.fit(X, max_rejected=3, **OPTIONS)
    vmonf = pair(lambda batch: batch.log_q[..., 0] * float("nan"))
    with pytest.raises(FloatingPointError, match="custom"):
        vmonf.fit(X, max_rejected=3, **OPTIONS)


def test_rows_that_are_not_finite_name_themselves() -> None:
    x = X.clone()
    x[[7, 11], 1] = float("inf")
    vmonf, before = pair(), pair()
    with pytest.raises(ValueError, match="2 of 96 rows: 7, 11"):
        vmonf.fit(x, **OPTIONS)
    loader: Any = torch.utils.data.DataLoader(x, batch_size=32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows: 7, 11"):
        vmonf.fit(loader, epochs=1, progress=False)
    for one, other in zip(vmonf.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("seed", SEEDS)
def test_restarts_that_fail_leave_the_others(seed: int) -> None:
    """One start of three is poisoned; the best of the others stays."""
    vmonf = pair()
    with torch.no_grad():
        vmonf.model.bank.transforms[0].network.layers[-1].bias.fill_(1e30)
    history = vmonf.fit(X, n_init=3, lr=1e-3, epochs=2, batch_size=32, progress=False, seed=seed)
    assert history.restarts[0] == -float("inf") or history.restarts[0] < max(history.restarts)
    finite(vmonf)
