"""Chains of components: right values where wrong ones were found."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.distributions import Dirichlet
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_vmonf import (
    ExactGuide,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    SoftmaxGuide,
    information_criteria,
)
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.em import num_parameters
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Batch, Confidence, Consistency, CustomTerm
from tests.samples import NO_EPOCHS

K = 3
D = 2


def test_single_steps_of_a_chain_have_gaps_that_are_summed_out() -> None:
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, K)))
    chain.model.bank.loc.data = torch.randn(K, 2)  # type: ignore[union-attr]
    x = torch.tensor([[0.5, torch.nan]])
    alone = chain.alone()
    found = alone.partial_log_prob(x)
    assert (found.error == 0).all()
    each = Normal(chain.model.bank.loc[:, 0], 1.0).log_prob(torch.tensor(0.5))  # type: ignore[index]
    exact = (alone.model.weights.log_mean() + each).logsumexp(-1)
    torch.testing.assert_close(alone.log_prob(x), exact[None], atol=1e-6, rtol=1e-6)


def test_a_chain_counts_once_for_each_place_of_a_plate() -> None:
    vmonf = MarkovVMoNF(MarkovMixture(Gaussian(D, K)))
    x = torch.randn(4, 5, D)

    def outer() -> None:
        with pyro.plate("outer", 3, dim=-2):
            vmonf.model(x)

    total = poutine.trace(outer).get_trace().log_prob_sum()
    torch.testing.assert_close(total, 3 * vmonf.log_prob(x).sum(), atol=1e-3, rtol=1e-5)
    assert vmonf.marginal(5).expand((3,)).log_prob(x[0]).shape == (3,)
    with pytest.raises(ValueError, match=r"\(\*, 3, 2\)"):
        vmonf.marginal(3).log_prob(x)


def test_moments_of_a_chain_are_those_of_its_draws() -> None:
    shares = torch.tensor([0.7, 0.2, 0.1])
    chain = MarkovMixture(Gaussian(1, K), shares, torch.eye(K).flip(0) * 0.7 + 0.1).marginal(
        steps=3
    )
    for moment, of in (
        (chain.mean, lambda x: x),
        (chain.variance, lambda x: (x - chain.mean) ** 2),
    ):
        found, error = chain.mean_estimate(20_000, seed=0, of=of)
        assert ((found - moment).abs() < 5 * error).all()


def test_a_chain_has_a_report_pictures_and_observed_rows() -> None:
    row = dist.Dirichlet(torch.ones(K))
    chain = MarkovVMoNF(MarkovMixture(Gaussian(D, K), row, row))
    x, lengths = torch.randn(4, 5, D), [5, 4, 3, 5]
    chain.fit(x, lengths, **NO_EPOCHS)
    report, steps = chain.report(x, lengths), chain.steps_of(x, lengths)
    assert torch.equal(report.usage, chain.alone().report(steps).usage)
    for draw in (chain.plot, chain.plot_report, chain.plot_uncertainty):
        assert draw(x, ax=Figure().subplots()) is not None
    values = {"weights.initial": [0.2, 0.3, 0.5], "weights.after_1": [0.1, 0.1, 0.8]}
    known = chain.condition({name: torch.tensor(value) for name, value in values.items()})
    known.fit(x, lengths, **NO_EPOCHS)
    rows_of_chain = known.model.weights.mean_rows().exp()
    torch.testing.assert_close(rows_of_chain[[0, 2]], torch.tensor([*values.values()]))
    nodes = poutine.trace(known.model).get_trace(x).nodes
    assert nodes["weights.initial"]["is_observed"]
    assert not nodes["weights.after_0"]["is_observed"]


class Near(nn.Module):
    """The exact logits of two components at 0 and 9."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((-x.square() / 2, -(x - 9).square() / 2), -1)


def test_a_bound_does_not_lead_over_missing_steps() -> None:
    rows = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    model = MarkovMixture(Gaussian(1, 2), torch.tensor([0.5, 0.5]), rows)
    x = torch.tensor([[[0.0], [math.nan], [math.nan], [0.0]]])
    with pytest.raises(ValueError, match="a step between two observed ones is missing"):
        Trace_ELBO().loss(model, SoftmaxGuide(Near(), model=model), x)
    exact = float(model.marginal(steps=4).log_prob(x).detach())
    assert -Trace_ELBO().loss(model, ExactGuide(model), x) == pytest.approx(exact)


@pytest.mark.parametrize("steps", [2, 3])
def test_the_support_of_a_chain_is_that_of_any_component(steps: int) -> None:
    lows = [torch.tensor([[low]]) for low in (0.0, 1.0)]
    uniforms = [torch.distributions.Uniform(low, low + 2) for low in lows]
    bank = [torch.distributions.Independent(each, 1) for each in uniforms]
    vmonf = MarkovVMoNF(MarkovMixture(bank, "uniform", "learned"))
    chain = vmonf.marginal(steps)
    x = chain.sample((500,))
    assert chain.support.check(x).all()
    assert chain.log_prob(x).isfinite().all()
    assert not chain.support.check(x + 5).any()
    assert vmonf.fit(x, epochs=1, progress=False, seed=0).elbo


def test_a_sequence_without_a_path_leaves_the_moves_of_others() -> None:
    never = -math.inf
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]).log()
    components = torch.distributions.Normal(torch.zeros(2, 1), 1.0)
    chain = HiddenChain(rows, torch.distributions.Independent(components, 1), 2)
    table = torch.tensor([[[0.0, never], [never, 0.0]], [[never, 0.0], [never, 0.0]]])
    for weight in (None, torch.tensor([1.0, 0.0])):
        found = chain.moves(table, torch.ones(2, 2, dtype=torch.bool), weight)
        assert found.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_a_step_of_a_sequence_has_no_position_of_its_own() -> None:
    x = torch.randn(20, 4, 2, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor | None] = []

    def term(batch: Batch) -> Tensor:
        seen.append(batch.index)
        return batch.log_q.exp().amax(-1)

    guide = SoftmaxGuide(MLP(2, K), [CustomTerm(term)])
    one = MarkovVMoNF(MarkovMixture(Gaussian(2, K)), guide)
    one.fit(x, epochs=2, progress=False)
    assert seen
    assert all(index is None for index in seen)
    walk = Consistency(RandomWalk(x.reshape(-1, 2), walks=3))
    one = MarkovVMoNF(MarkovMixture(Gaussian(2, K)), SoftmaxGuide(MLP(2, K), [walk]))
    with pytest.raises(ValueError, match="a step of a sequence has no"):
        one.fit(x, epochs=1, progress=False)


@pytest.mark.parametrize("groups", [1, 2])
def test_random_rows_of_a_chain_are_refused_inside_a_plate(groups: int) -> None:
    initial, moves = Dirichlet(torch.ones(K)), Dirichlet(torch.ones(K, K))
    model = MarkovMixture(Gaussian(2, K), initial, moves)
    x = torch.randn(groups, 3, 4, 2)
    with (
        pytest.raises(ValueError, match="rows of a chain are drawn once"),
        pyro.plate("g", groups, dim=-2),
    ):
        model(x)
    fixed = MarkovMixture(Gaussian(2, K)).double()
    with pyro.plate("g", groups, dim=-2):
        trace = poutine.trace(fixed).get_trace(x.double())
    trace.compute_log_prob()
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], fixed.mixture().lasting(4).log_prob(x.double())
    )


def test_criteria_of_a_chain_are_those_of_its_sequences() -> None:
    torch.manual_seed(0)
    model, x = MarkovMixture(Gaussian(2, 3), "learned"), torch.randn(6, 5, 2)
    found = information_criteria(model, x)
    total = float(MarkovVMoNF(model).log_prob(x).double().sum())
    free = num_parameters(model)
    assert found["aic"] == pytest.approx(2 * free - 2 * total, rel=1e-6)
    assert found["bic"] == pytest.approx(free * math.log(6) - 2 * total, rel=1e-6)


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("terms", [[], [Confidence(weight=2.0)]])
def test_a_chain_with_a_network_runs_inside_a_plate(terms: list[nn.Module]) -> None:
    """Six sequences in a plate of two groups are the six sequences on their own."""
    torch.manual_seed(0)
    x = rows(2, 3, 4, 2)
    x[1, 2, 3:] = torch.nan
    chain = MarkovMixture(Gaussian(2, 3), transition="learned")
    vmonf = MarkovVMoNF(chain, SoftmaxGuide(MLP(2, 3), terms)).eval()
    elbo = Trace_ELBO()  # nothing is left to enumerate

    def inside(part: Any) -> Any:
        def program(x: Tensor) -> None:
            with pyro.plate("groups", 2, dim=-2):
                part(x)

        return program

    found = elbo.loss(inside(vmonf.model), inside(vmonf.guide), x)
    alone = elbo.loss(vmonf.model, vmonf.guide, x.flatten(0, 1))
    assert found == pytest.approx(alone, rel=1e-12)
    if not terms:
        assert found == pytest.approx(-float(vmonf.elbo(x.flatten(0, 1)).sum()), rel=1e-12)


@pytest.mark.parametrize("first", ["chain", "alone"])
def test_single_steps_have_the_units_of_the_chain(first: str) -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(20, 6, D) + 100
    rows = x.reshape(-1, D)
    chain = MarkovVMoNF(MarkovMixture(Gaussian(D, 1)))
    alone = chain.alone()
    fitted: Any = chain if first == "chain" else alone
    fitted.fit(x if first == "chain" else rows, epochs=1, progress=False, seed=0)
    # With one component steps are independent.
    torch.testing.assert_close(alone.log_prob(rows).sum(), chain.log_prob(x).sum())
    assert float(alone.log_prob(rows).mean()) > -20
    chain.model.standardize_(2 * x)
    torch.testing.assert_close(alone.log_prob(rows).sum(), chain.log_prob(x).sum())
    wide = rows.double() + 1.7e9
    chain.model.standardizer.fit_(wide)
    assert alone.model.standardizer.loc.dtype == torch.float64
    gap = torch.tensor([[100.0, torch.nan]])
    assert alone.log_prob(gap).isfinite().all()
