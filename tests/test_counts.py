"""Weights in closed form: counts over the data, in `fit` and in plain SVI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Dirichlet
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    GroupWeights,
    LearnedWeights,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    StickBreaking,
    UpdatedWeights,
    VMoNF,
)
from pyro_vmonf.counts import Counts
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance

K, D = 3, 2
SIZES = torch.tensor([270, 27, 3])
SHARES = SIZES / SIZES.sum()


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(K).repeat_interleave(SIZES)
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 6.0]])
    return centres[y] + torch.randn(len(y), D, generator=generator), y


CLOSED: dict[str, Callable[[], Any]] = {
    "learned": lambda: "learned",
    "updated": lambda: "updated",
    "dirichlet": lambda: Dirichlet(torch.ones(K)),
    "sticks": lambda: StickBreaking(torch.ones(K - 1), torch.ones(K - 1)),
}


@pytest.mark.parametrize(("rows", "batch"), [(12, 12), (12, 4), (1000, 7), (11, 3)])
def test_counts_are_those_of_all_rows_after_each_pass(rows: int, batch: int) -> None:
    """Rows of the last pass stand in for those that are yet to come."""
    torch.manual_seed(0)
    counts = Counts(K).double()
    present = torch.tensor([0.2, 0.3, 0.5]).double()
    last = present * rows
    for _ in range(3):
        q = torch.rand(rows, K).double().softmax(-1)
        if last.sum() == rows and torch.equal(last, present * rows):  # the first pass has no other
            last = present * q[:batch].sum() / min(batch, rows) * rows
        for start in range(0, rows, batch):
            part = q[start : start + batch]
            counts.add_(part.sum(0), len(part) / rows, present)
            seen = start + len(part)
            expected = q[:seen].sum(0) + (1 - seen / rows) * last
            torch.testing.assert_close(counts.over_the_data(), expected, rtol=1e-9, atol=1e-9)
        last = q.sum(0)


@pytest.mark.parametrize("weights", CLOSED)
def test_labelled_rows_give_their_frequencies(weights: str) -> None:
    x, y = blobs()
    for seed in range(3):
        vmonf = VMoNF(
            FlowMixture(RealNVP(D, K, blocks=2), CLOSED[weights]()), SoftmaxGuide(MLP(D, K))
        )
        vmonf.fit(x, y, epochs=4, batch_size=64, seed=seed, progress=False)
        assert (vmonf.model.weights.log_mean().exp() - SHARES).abs().max() < 0.02


@pytest.mark.parametrize("weights", CLOSED)
def test_plain_svi_takes_the_same_step(weights: str) -> None:
    x, y = blobs()
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), CLOSED[weights]()), SoftmaxGuide(MLP(D, K)))
    svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO())
    for _ in range(2):
        for index in torch.randperm(len(x)).split(64):
            svi.step(x[index], y[index], index=index, size=len(x))
    assert (vmonf.model.weights.log_mean().exp() - SHARES).abs().max() < 0.02


@pytest.mark.filterwarnings("ignore:the fit ended with collapsed")
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_the_mean_responsibilities_of_all_rows(seed: int) -> None:
    x, _ = blobs()
    torch.manual_seed(seed)
    model = FlowMixture(RealNVP(D, K, blocks=2), "learned")
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D, K)))
    vmonf.fit(x, epochs=60, batch_size=100, seed=seed, progress=False)
    share = vmonf.predict_proba(x).mean(0)
    assert (vmonf.model.weights.log_mean().exp() - share).abs().max() < 0.03


def test_a_dirichlet_is_the_prior_and_the_counts() -> None:
    """Ten steps on the same batch are one conjugate step, and not ten."""
    x, y = blobs()
    prior = torch.tensor([0.5, 1.0, 2.0])
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), Dirichlet(prior)), SoftmaxGuide(MLP(D, K)))
    for _ in range(10):
        vmonf.guide(x, y)
    posterior = vmonf.model.weights.posterior
    torch.testing.assert_close(posterior.log_concentration.exp(), prior + SIZES)
    weights = torch.full((len(x),), 2.0)
    vmonf.guide(x, y, sample_weight=weights)
    torch.testing.assert_close(posterior.log_concentration.exp(), prior + 2 * SIZES)


def test_sticks_have_the_counts_of_each_piece_and_of_those_behind_it() -> None:
    x, y = blobs()
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    weights = RandomWeights(StickBreaking(a, b))
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), weights), SoftmaxGuide(MLP(D, K)))
    vmonf.guide(x, y)
    found = weights.posterior.log_sticks.exp()
    expected = torch.stack((a + SIZES[:2], b + torch.tensor([SIZES[1] + SIZES[2], SIZES[2]])))
    torch.testing.assert_close(found, expected)


def test_frozen_weights_and_those_by_gradient_are_not_counted() -> None:
    x, y = blobs()
    for weights in (LearnedWeights(K).requires_grad_(False), LearnedWeights(K, "gradient")):
        vmonf = VMoNF(FlowMixture(Gaussian(D, K), weights), SoftmaxGuide(MLP(D, K)))
        vmonf.guide(x, y)
        assert torch.equal(weights.logits, torch.zeros(K))


@pytest.mark.parametrize("weights", CLOSED)
def test_without_the_guide_of_the_library_they_have_a_gradient(weights: str) -> None:
    x, _ = blobs()
    model = FlowMixture(Gaussian(D, K), CLOSED[weights]())
    model.standardize_(x)
    loss = -model.marginal().log_prob(x).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.weights.parameters())


def test_a_fit_of_nothing_but_weights() -> None:
    x, y = blobs()
    model = FlowMixture(Gaussian(D, K), "learned")
    model.bank.requires_grad_(False)
    VMoNF(model, ExactGuide()).fit(x, y, epochs=1, progress=False, seed=0)
    torch.testing.assert_close(model.weights().exp(), SHARES, rtol=1e-5, atol=1e-5)


def test_updated_weights_of_earlier_files_are_read() -> None:
    weights = UpdatedWeights(K)
    state = {"probs": torch.tensor([0.2, 0.3, 0.5])}
    weights.load_state_dict(state)
    torch.testing.assert_close(weights().exp(), torch.tensor([0.2, 0.3, 0.5]))


@pytest.mark.parametrize("name", [*CLOSED, "groups"])
def test_a_term_of_the_guide_does_not_move_them(name: str) -> None:
    """In the program itself, the gradient of the weights is none."""
    torch.manual_seed(0)
    weights = GroupWeights(2, K) if name == "groups" else CLOSED[name]()
    context = int(name == "groups")
    model = FlowMixture(Gaussian(D, K), weights, context_features=context)
    pair = VMoNF(model, SoftmaxGuide(torch.nn.Linear(D + context, K), [Balance()]))
    given = torch.arange(20)[:, None] % 2.0 if context else None
    for _ in range(2):  # a posterior draws before it has counted for the first time
        pair.zero_grad()
        rows = torch.randn(20, D)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        elbo.differentiable_loss(pair.model, pair.guide, rows, size=40, given=given).backward()
    assert all(p.grad is None for p in pair.model.weights.parameters())
    assert all(p.grad is not None for p in pair.guide.parameters())
