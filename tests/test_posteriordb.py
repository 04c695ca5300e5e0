"""Two posteriors of posteriordb: the programs, and their means by importance sampling."""

from __future__ import annotations

import itertools

import pytest
import torch
from pyro import poutine
from pyro.distributions import Beta, Dirichlet, HalfNormal, Normal
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.posteriordb import REFERENCE, by_importance, data, gaussians, log_evidence, problem
from pyro_vmonf import Gaussian, MarkovMixture, MarkovVMoNF, RandomBank
from pyro_vmonf._utils.contexts import local_seed, own_store

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("length", [2, 3, 5, 6])
def test_the_evidence_of_a_chain_is_the_sum_over_its_paths(length: int) -> None:
    transition, emission = torch.randn(3, 3).log_softmax(-1), torch.randn(length, 3)
    paths = [
        emission[range(length), path].sum()
        + sum(transition[i, j] for i, j in itertools.pairwise(path))
        for path in itertools.product(range(3), repeat=length)
    ]
    expected = torch.stack(paths).logsumexp(0)
    torch.testing.assert_close(log_evidence(transition, emission), expected)


def test_the_mixture_has_the_density_of_the_program_in_stan() -> None:
    model, y = gaussians().double(), data("low_dim_gauss_mix").double()
    mu, sigma, theta = torch.tensor([-2.0, 2.5]), torch.tensor([0.9, 1.2]), torch.tensor(0.6)
    values = {
        "bank.loc": mu[:, None],
        "bank.log_scale": sigma.log()[:, None],
        "weights": torch.stack((theta, 1 - theta)),
    }
    conditioned = poutine.condition(config_enumerate(model), values)
    trace = poutine.trace(poutine.enum(conditioned, first_available_dim=-2)).get_trace(y[:, None])
    found = TraceEinsumEvaluator(trace, True, 1).log_prob(trace)
    parts = Normal(mu, sigma).log_prob(y[:, None]) + values["weights"].log()
    expected = parts.logsumexp(-1).sum() + Normal(0.0, 2.0).log_prob(mu).sum()
    expected = expected + HalfNormal(2.0).log_prob(sigma).sum() + Beta(5.0, 5.0).log_prob(theta)
    # The site is the logarithm of sigma.
    torch.testing.assert_close(found, expected + sigma.log().sum())


@pytest.mark.parametrize("name", REFERENCE)
def test_means_are_those_of_the_reference(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    with own_store(), local_seed(0):
        found = by_importance(problem(name), draws=300)
    for parameter, (mean, own_error, spread) in REFERENCE[name].items():
        value, error, deviation = found[parameter]
        assert error < spread / 4
        assert abs(value - mean) < 4 * (error**2 + own_error**2) ** 0.5
        assert deviation == pytest.approx(spread, rel=0.3)


def test_a_chain_of_the_library_has_the_posterior_of_hmm_example() -> None:
    """Rows in closed form, means by a normal, against the reference draws."""
    y = data("hmm_example")
    bank = Gaussian(1, 2)
    bank.loc.data.copy_(torch.tensor([[3.0], [9.0]]))
    for frozen in (bank.log_scale, bank.lower):
        frozen.requires_grad_(False)
    prior = Normal(torch.tensor([[3.0], [10.0]]), 1.0)
    model = MarkovMixture(
        RandomBank(bank, lambda name, value: prior, scale=0.1),
        "uniform",
        Dirichlet(torch.ones(2, 2)),
    )
    MarkovVMoNF(model).fit(
        y[None, :, None],
        steps=140,
        lr=0.04,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 140),
        standardize=False,
        progress=False,
        seed=0,
    )
    rows = model.weights.mean_rows().exp()[1:, 0].detach()
    torch.testing.assert_close(rows, torch.tensor([0.6666, 0.0731]), rtol=0, atol=2e-3)
    loc = bank.loc.detach().flatten()
    torch.testing.assert_close(loc, torch.tensor([3.0215, 8.8273]), rtol=0, atol=0.1)
