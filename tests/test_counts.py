"""Weights in closed form: counts over the data, in `fit` and in plain SVI."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Dirichlet
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    GammaDirichlet,
    Gaussian,
    GroupWeights,
    LearnedWeights,
    MarkovMixture,
    MarkovVMoNF,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    StickBreaking,
    UpdatedWeights,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.counts import Counts
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.nn import MLP
from pyro_vmonf.program import Rows
from pyro_vmonf.terms import Balance
from pyro_vmonf.weight_priors import DirichletPosterior, Posterior

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


class OwnGuide(BoundGuide):
    """A guide of a user, which does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(D, K)

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.network(x).log_softmax(-1)

    def infer(self, rows: Rows) -> None:
        with rows.plate(self.site("data"), (D,)):
            q = pyro.distributions.Categorical(logits=self.log_q(rows.x))
            pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})


@pytest.mark.parametrize("name", ["dirichlet", "sticks"])
def test_the_optimiser_moves_them_where_nobody_counts(name: str) -> None:
    """After a fit by a guide that counts, with a guide that does not, and in a plate of groups."""
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(D, K), CLOSED[name]())
    pair = VMoNF(model, SoftmaxGuide(torch.nn.Linear(D, K)))
    pair.fit(torch.randn(30, D), epochs=2, progress=False)
    [parameter] = model.weights.parameters()
    loss = TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss
    own = OwnGuide()
    own.bind_(model)

    def groups(program: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor) -> None:
            with pyro.plate("groups", 4):
                program(x)

        return run

    rows = torch.randn(15, 4, D)
    for programs in ((model, own, rows[:, 0]), (groups(model), groups(pair.guide), rows)):
        parameter.grad = None
        loss(*programs).backward()
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).any())


def test_a_term_moves_weights_of_the_optimiser() -> None:
    """Rows say nothing of a hierarchical prior's posterior; a balance does."""
    torch.manual_seed(0)
    model = FlowMixture(Gaussian(D, K), RandomWeights(GammaDirichlet(K)))
    guide = SoftmaxGuide(torch.nn.Linear(D, K), [Balance()])
    pair, rows, found = VMoNF(model, guide), torch.randn(20, D), []
    for weight in (0.0, 1000.0):
        pair.zero_grad()
        guide.terms[0].current_weight = weight  # type: ignore[assignment]
        with local_seed(0):
            TraceEnum_ELBO().differentiable_loss(pair.model, pair.guide, rows).backward()
        found.append(model.weights.posterior.log_concentration.grad.clone())
    assert float((found[1] - found[0]).abs().max()) > 1


def test_a_term_does_not_move_the_rows_of_a_chain() -> None:
    torch.manual_seed(0)
    chain = MarkovMixture(Gaussian(D, K), "learned", "learned")
    pair = MarkovVMoNF(chain, SoftmaxGuide(torch.nn.Linear(D, K), [Balance()]))
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    elbo.differentiable_loss(pair.model, pair.guide, torch.randn(5, 6, D)).backward()
    assert all(p.grad is None or not p.grad.any() for p in chain.weights.parameters())


def test_the_marginal_has_their_gradient_after_a_guide_alone() -> None:
    for name in CLOSED:
        torch.manual_seed(0)
        model = FlowMixture(Gaussian(D, K), CLOSED[name]())
        pair, rows = VMoNF(model, SoftmaxGuide(torch.nn.Linear(D, K))), torch.randn(20, D)
        pair.guide(rows)
        pair.marginal().log_prob(rows).sum().backward()
        assert all(p.grad is not None for p in model.weights.parameters())


def test_batches_that_numpy_writes_into_one_buffer_count_each() -> None:
    torch.manual_seed(0)
    table, ends = torch.randn(60, D), []
    for buffered in (False, True):
        torch.manual_seed(1)
        model = FlowMixture(Gaussian(D, K), "learned")
        pair, buffer = VMoNF(model, SoftmaxGuide(torch.nn.Linear(D, K))), np.empty((20, D), "f4")
        shared = torch.from_numpy(buffer)
        for batch in table.split(20):
            buffer[:] = batch.numpy()
            pair.guide(shared if buffered else batch, size=60)
            pair.model(None, size=1)
        ends.append(model.weights.counts.passes.clone())
    assert torch.equal(*ends)


def test_two_mixtures_of_one_program_do_not_share_counts() -> None:
    torch.manual_seed(0)
    weights = LearnedWeights(K)
    pairs = [VMoNF(FlowMixture(Gaussian(D, K), weights), ExactGuide()) for _ in range(2)]
    pairs[0].guide(torch.randn(20, D))
    with pytest.raises(ValueError, match="two mixtures of one program share a LearnedWeights"):
        pairs[1].guide(torch.randn(20, D))


def test_a_posterior_of_a_user_counts() -> None:
    class Own(DirichletPosterior):
        """It knows its prior by itself."""

        conjugate = Posterior.conjugate

        def update_(self, *batch: Any) -> None:
            self.count_(self.log_concentration, lambda n: 1 + n, *batch)

    torch.manual_seed(0)
    own = Own(torch.ones(K))
    pair = VMoNF(FlowMixture(Gaussian(D, K), RandomWeights(torch.ones(K), own)), ExactGuide())
    rows = torch.randn(20, D)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    for _ in range(2):
        elbo.differentiable_loss(pair.model, pair.guide, rows).backward()
    assert own.log_concentration.grad is None
    assert float(own.log_concentration.detach().exp().sum()) == pytest.approx(K + 20, rel=1e-5)


def test_a_posterior_of_another_prior_is_refused() -> None:
    with pytest.raises(ValueError, match="the posterior has the prior Dirichlet"):
        RandomWeights(torch.tensor([2.0, 2.0]), DirichletPosterior(torch.tensor([50.0, 50.0])))
    RandomWeights(torch.tensor([2.0, 2.0]), DirichletPosterior(torch.tensor([2.0, 2.0])))


@pytest.mark.parametrize("name", ["mask", "scale"])
def test_a_balance_is_over_the_rows_that_count(name: str) -> None:
    torch.manual_seed(0)
    pair = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(torch.nn.Linear(D, K), [Balance()]))
    rows, each = torch.randn(12, D), torch.rand(12)
    each = (each > 0.5).float() if name == "mask" else each
    handler: Any = partial(poutine.mask, mask=each > 0) if name == "mask" else partial(
        poutine.scale, scale=each
    )  # fmt: skip
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    found = elbo.loss(handler(pair.model), handler(pair.guide), rows)
    wanted = elbo.loss(pair.model, pair.guide, rows, sample_weight=each)
    assert found == pytest.approx(wanted, rel=1e-6)
