"""Random weights in closed form end where variational Bayes, written by hand, ends."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    MarkovMixture,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.distributions.sticks import StickBreaking
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.guides.exact import MarginalGuide
from pyro_vmonf.nn import MLP

N, D, K = 100, 2, 6
SPARSE = 0.01
GUIDES = {"exact": ExactGuide, "none": MarginalGuide}


pytestmark = pytest.mark.usefixtures("float64")


def gaussians(rows: Tensor, seed: int = 0) -> Gaussian:
    """Return frozen components that start from rows."""
    torch.manual_seed(seed)
    bank = Gaussian(rows.shape[-1], K)
    bank.start_(rows, torch.rand(len(rows), K).pow(4))
    return bank.requires_grad_(False)


def blobs(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    far = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    return far.repeat_interleave(N // 2, 0) + torch.randn(N, D, generator=generator)


def run(model: FlowMixture, guide: BoundGuide, x: Tensor, steps: int) -> None:
    """Take steps of plain SVI, whose gradients move nothing here: the weights are counts."""
    svi = SVI(
        model,
        guide,
        pyro.optim.SGD({"lr": 0.0}),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    )
    for _ in range(steps):
        svi.step(x)


def bayes(table: Tensor, steps: int) -> Tensor:
    """Return the concentrations after steps of variational Bayes, from log p(x|c)."""
    concentration = torch.full((K,), SPARSE)
    for _ in range(steps):
        expected = concentration.digamma() - concentration.sum().digamma()
        concentration = SPARSE + (expected + table).softmax(-1).sum(0)
    return concentration


def bound(concentration: Tensor, table: Tensor) -> float:
    """Return the ELBO of the mean-field posterior at its best q(c|x)."""
    expected = concentration.digamma() - concentration.sum().digamma()
    divergence = kl_divergence(Dirichlet(concentration), Dirichlet(torch.full((K,), SPARSE)))
    return float((expected + table).logsumexp(-1).sum() - divergence)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", GUIDES)
def test_a_sparse_dirichlet_ends_at_the_fixed_point(kind: str, seed: int) -> None:
    x = blobs(seed)
    model = FlowMixture(gaussians(x, seed), Dirichlet(torch.full((K,), SPARSE)))
    run(model, GUIDES[kind](model), x, 60)
    table = model.bank().log_prob(x.unsqueeze(-2))
    posterior = model.weights.posterior()
    torch.testing.assert_close(posterior.concentration, bayes(table, 60), rtol=1e-9, atol=0)
    by_mean = torch.full((K,), SPARSE)
    for _ in range(60):
        by_mean = SPARSE + ((by_mean / by_mean.sum()).log() + table).softmax(-1).sum(0)
    assert bound(posterior.concentration.detach(), table) > bound(by_mean, table) + 1


@pytest.mark.parametrize("kind", GUIDES)
def test_sticks_end_at_the_fixed_point(kind: str) -> None:
    x = blobs()
    model = FlowMixture(gaussians(x), StickBreaking(torch.ones(K - 1), torch.full((K - 1,), 0.5)))
    run(model, GUIDES[kind](model), x, 60)
    table = model.bank().log_prob(x.unsqueeze(-2))
    a, b = torch.ones(K - 1), torch.full((K - 1,), 0.5)
    for _ in range(60):
        both = (a + b).digamma()
        taken = torch.cat((a.digamma() - both, torch.zeros(1)))
        left = torch.cat((torch.zeros(1), (b.digamma() - both).cumsum(-1)))
        counts = (taken + left + table).softmax(-1).sum(0)
        a, b = 1 + counts[:-1], 0.5 + counts.flip(-1).cumsum(-1).flip(-1)[1:]
    posterior = model.weights.posterior()
    torch.testing.assert_close(posterior.a, a, rtol=1e-9, atol=0)
    torch.testing.assert_close(posterior.b, b, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["exact", "none", "softmax"])
def test_rows_with_gaps_have_the_same_posterior(kind: str) -> None:
    x = blobs()
    x[:, 1] = torch.nan  # the first column alone decides
    model = FlowMixture(gaussians(blobs()), Dirichlet(torch.full((K,), SPARSE)))
    makers = {**GUIDES, "softmax": lambda model: SoftmaxGuide(MLP(D, K), model=model)}
    run(model, makers[kind](model), x, 20)
    bank = model.bank()
    first = torch.distributions.Normal(bank.mean[:, 0], bank.variance[:, 0].sqrt())
    expected = bayes(first.log_prob(x[:, :1]), 20)
    torch.testing.assert_close(model.weights.posterior().concentration, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", GUIDES)
def test_the_bound_of_rows_is_that_of_the_best_posterior(kind: str) -> None:
    x = blobs()
    vmonf = VMoNF(FlowMixture(gaussians(x), Dirichlet(torch.full((K,), 0.5))), GUIDES[kind]())
    run(vmonf.model, vmonf.guide, x, 5)
    expected = vmonf.model.weights.mean_log() + vmonf.model.bank().log_prob(x.unsqueeze(-2))
    torch.testing.assert_close(vmonf.elbo(x), expected.logsumexp(-1), rtol=1e-12, atol=0)


def paths_of(log_rows: Tensor, table: Tensor) -> Tensor:
    """Return the expected first components and moves of one sequence, path by path."""
    steps, count = table.shape
    counts, weights = [], []
    for path in itertools.product(range(count), repeat=steps):
        moves = torch.zeros(count + 1, count)
        moves[0, path[0]] += 1
        for before, after in itertools.pairwise(path):
            moves[1 + before, after] += 1
        counts.append(moves)
        weights.append((moves * log_rows).sum() + sum(table[t, c] for t, c in enumerate(path)))
    share = torch.stack(weights).softmax(-1)
    return (share[:, None, None] * torch.stack(counts)).sum(0)


def test_rows_of_a_chain_end_at_the_fixed_point() -> None:
    steps, count, prior = 4, 3, 0.05
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(5, steps, 1, generator=generator)
    x[0, 3:] = torch.nan  # a shorter sequence
    bank = Gaussian(1, count).requires_grad_(False)
    bank.start_(x[1:].flatten(0, 1), torch.rand(16, count, generator=generator))
    concentration = torch.full((count + 1, count), prior)
    model = MarkovMixture(bank, Dirichlet(concentration[0]), Dirichlet(concentration[1:]))
    run(model, MarginalGuide(model), x, 15)
    densities = bank().log_prob(x.unsqueeze(-2))
    for _ in range(15):
        of_bound = concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()
        found = [paths_of(of_bound, densities[s, : 3 if s == 0 else 4]) for s in range(len(x))]
        concentration = prior + torch.stack(found).sum(0)
    learned = torch.stack([row.posterior().concentration for row in model.weights.rows()])
    torch.testing.assert_close(learned, concentration, rtol=1e-8, atol=0)
