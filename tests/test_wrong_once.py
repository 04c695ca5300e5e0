"""Answers that were wrong without a word, each with the right value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    metrics,
)
from pyro_vmonf.datasets import Pinwheel
from pyro_vmonf.em import fit_em
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.terms import Balance, Classification

N = 400
HALF = torch.arange(N) // (N // 2)


def two_blobs(features: int = 2, apart: float = 9.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, features, generator=generator)
    return x + apart * HALF[:, None]


def pair(weights: Any = "uniform", bank: Any = None) -> VMoNF:
    bank = Gaussian(2, 2) if bank is None else bank
    return VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(2, 2)))


@pytest.mark.parametrize("frozen", [True, False])
def test_gaussians_that_were_set_are_no_start_of_a_fit(frozen: bool) -> None:
    x, vmonf = two_blobs(), pair()
    vmonf.model.standardize_(x)
    means = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    vmonf.model.bank.set_(means, torch.eye(2).expand(2, 2, 2))
    vmonf.model.bank.requires_grad_(not frozen)
    warm_start_(vmonf.guide, x, HALF, seed=0)
    vmonf.fit(x, steps=1, lr=1e-9, progress=False, seed=0)
    torch.testing.assert_close(vmonf.model.bank.loc.detach(), means, rtol=0, atol=1e-6)


def test_restarts_leave_frozen_parameters_alone() -> None:
    frozen = torch.nn.Linear(2, 8).requires_grad_(False)
    before = frozen.weight.clone()
    network = torch.nn.Sequential(frozen, torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model = FlowMixture(RealNVP(2, 2, blocks=2), "learned")
    model.weights.logits.data.copy_(torch.tensor([0.2, 0.8]).log())
    model.weights.requires_grad_(False)
    vmonf = VMoNF(model, SoftmaxGuide(network))
    vmonf.fit(two_blobs(), epochs=2, n_init=3, seed=1, progress=False)
    assert torch.equal(frozen.weight, before)
    assert vmonf.model.weights.log_mean().exp().tolist() == pytest.approx([0.2, 0.8])


def test_fit_predict_uses_the_labels() -> None:
    x, y = two_blobs().numpy(), 1 - HALF.numpy()
    estimator = FlowMixtureClustering(2, max_iter=4, use_labels=True, random_state=0)
    assert (estimator.fit_predict(x, y) == y).mean() > 0.99
    assert estimator.labels_used_
    estimator.set_params(use_labels=np.False_).fit(x, y)
    assert not estimator.labels_used_
    assert not hasattr(estimator, "classes_")
    with pytest.raises(ValueError, match="use_labels is 'no'; expected True, False or 'auto'"):
        estimator.set_params(use_labels="no").fit(x, y)


@pytest.mark.parametrize("weights", ["learned", "dirichlet"])
def test_interleaved_rows_count_once_each(weights: str) -> None:
    x = two_blobs()
    y = torch.full((N,), -1)
    y[:160], y[200:240] = 0, 1
    vmonf = pair(dist.Dirichlet(torch.ones(2)) if weights == "dirichlet" else weights)
    warm_start_(vmonf.guide, x, HALF, seed=0)
    vmonf.fit(x, y, epochs=5, batch_size=50, interleave=True, seed=0, progress=False)
    torch.testing.assert_close(
        vmonf.model.weights.log_mean().exp().detach(),
        vmonf.predict_proba(x, y).mean(0),
        rtol=0,
        atol=0.02,
    )
    torch.testing.assert_close(vmonf.model.standardizer.loc, x.mean(0))
    if weights == "dirichlet":
        total = vmonf.model.weights.posterior.log_concentration.detach().exp().sum()
        assert float(total) == pytest.approx(N + 2, rel=1e-3)


@pytest.mark.parametrize("particles", [1, 3])
def test_particles_of_a_step_count_its_rows_once(particles: int) -> None:
    x = two_blobs()
    model = FlowMixture(Gaussian(2, 2), dist.Dirichlet(torch.ones(2)))
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    elbo = pyro.infer.TraceEnum_ELBO(num_particles=particles, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), elbo)
    for index in [*torch.arange(N).split(100)] * 3:
        svi.step(x[index], index=index, size=N)
    counted = model.weights.posterior.log_concentration.exp()
    torch.testing.assert_close(counted.detach(), torch.full((2,), 201.0), rtol=1e-4, atol=1e-2)


def test_frozen_marginals_follow_edits_of_the_data_of_a_parameter() -> None:
    x, vmonf = two_blobs(), pair()
    vmonf.marginal(frozen=True).log_prob(x[:1])
    vmonf.model.bank.loc.data.add_(3.0)
    torch.testing.assert_close(
        vmonf.marginal(frozen=True).log_prob(x), vmonf.log_prob(x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(("wings", "rate"), [(3, 1.0), (1, 3.0), (2, 8.0)])
def test_pinwheels_of_a_high_rate_have_all_their_roots(wings: int, rate: float) -> None:
    """Against a dense grid, on the rows that are the least likely and on others."""
    truth = Pinwheel(wings, rate)
    x = truth.sample(300)[0].double()
    found = truth.log_prob(x)
    some = torch.cat((found.argsort()[:8], torch.arange(8)))
    torch.testing.assert_close(found[some], by_dense_grid(truth, x[some]), rtol=1e-5, atol=1e-5)
    assert found.median() > 0.5


def by_dense_grid(truth: Pinwheel, x: Tensor) -> Tensor:
    """The density from the sign changes on a grid of 400,000 points, refined by bisection."""
    reach = 6.5 * truth.radial_std
    r = torch.linspace(truth.radius - reach, truth.radius + reach, 400_001, dtype=torch.float64)
    result = []
    for v in 2 * x:
        total = torch.zeros((), dtype=torch.float64)
        for wing in range(truth.wings):
            a = 2 * math.pi * wing / truth.wings + truth.rate * r.exp()
            at = v[0] * a.cos() - v[1] * a.sin() - r
            left = ((at[:-1] <= 0) != (at[1:] <= 0)).nonzero()[:, 0]
            low, high, first = r[left], r[left + 1], at[left] <= 0
            for _ in range(60):
                q = (low + high) / 2
                a = 2 * math.pi * wing / truth.wings + truth.rate * q.exp()
                before = (v[0] * a.cos() - v[1] * a.sin() - q <= 0) == first
                low, high = torch.where(before, q, low), torch.where(before, high, q)
            a = 2 * math.pi * wing / truth.wings + truth.rate * q.exp()
            t = v[0] * a.sin() + v[1] * a.cos()
            log_p = dist.Normal(truth.radius, truth.radial_std).log_prob(q)
            log_p = log_p + dist.Normal(0.0, truth.tangential_std).log_prob(t)
            total += (log_p.exp() / (0.25 * (1 + t * truth.rate * q.exp()).abs())).sum()
        result.append((total / truth.wings).log())
    return torch.stack(result)


def test_gap_of_the_report_is_the_loss_of_the_elbo() -> None:
    x = two_blobs(features=32, apart=20.0)
    vmonf = VMoNF(FlowMixture(Gaussian(32, 2), "learned"), SoftmaxGuide(MLP(32, 2)))
    fit_em(vmonf.model, x, seed=0)
    loss = float((vmonf.log_prob(x) - vmonf.elbo(x)).mean())
    assert loss > 1000
    assert vmonf.report(x).gap == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("by", ["em", "start"])
def test_columns_of_a_frame_are_known_by_name_after_every_kind_of_fit(by: str) -> None:
    x = two_blobs() * torch.tensor([1.0, 0.1])
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    vmonf = pair("learned")
    if by == "em":
        fit_em(vmonf.model, frame, seed=0)
    else:
        warm_start_(vmonf.guide, frame, HALF, steps=20, seed=0)
    assert vmonf.model.feature_names == ("a", "b")
    assert torch.equal(vmonf.predict(frame), vmonf.predict(frame[["b", "a"]]))


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"lr": math.nan}, {"seed": "a"}, {"batch_size": 0}])
def test_refused_start_leaves_the_units_alone(bad: dict[str, Any]) -> None:
    vmonf = pair(bank=RealNVP(2, 2))
    with pytest.raises((ValueError, TypeError)):
        warm_start_(vmonf.guide, 1000 * two_blobs(), HALF, **bad)
    assert not vmonf.model.standardizer.fitted


def test_rows_of_a_loader_that_leaves_some_out_are_counted() -> None:
    x = two_blobs()
    x[::2] = math.nan

    def kept(rows: list[Tensor]) -> Tensor:
        return torch.stack([row for row in rows if row.isfinite().all()])

    vmonf = pair(dist.Dirichlet(torch.ones(2)))
    loader = DataLoader(x, batch_size=40, collate_fn=kept)  # type: ignore[arg-type]
    vmonf.fit(loader, epochs=3, progress=False, seed=0)
    total = vmonf.model.weights.posterior.log_concentration.detach().exp().sum()
    assert float(total) == pytest.approx(N / 2 + 2, rel=1e-3)


def test_groups_with_weights_of_their_own_are_not_counted_together() -> None:
    x = two_blobs().reshape(20, 20, 2)
    model = FlowMixture(Gaussian(2, 2), dist.Dirichlet(torch.ones(2)))
    guide = SoftmaxGuide(MLP(2, 2), model=model)
    before = model.weights.posterior.log_concentration.detach().clone()
    with pyro.plate("groups", 20, dim=-2):
        guide(x)
    assert torch.equal(model.weights.posterior.log_concentration, before)


def test_best_state_has_the_best_objective() -> None:
    torch.manual_seed(2)
    terms = [Balance(weight=5.0), Classification(weight=5.0)]
    guide = SoftmaxGuide(MLP(2, 2), terms, elbo_gradient=0.0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), guide)
    y = torch.where(torch.arange(N) % 10 == 0, HALF, -1)
    history = vmonf.fit(
        two_blobs(apart=2.0), y, epochs=15, held_out=0.3, keep="best", seed=0, progress=False
    )
    assert history.kept == int(np.argmax(history.objective))


def test_parts_of_different_support_each_have_their_own() -> None:
    def uniform(low: float, high: float) -> Any:
        return dist.Uniform(torch.tensor([low]), torch.tensor([high])).to_event(1)

    vmonf = VMoNF(FlowMixture([uniform(0.0, 1.0), uniform(2.0, 3.0)]))
    x = torch.tensor([[0.5], [2.5]])
    assert vmonf.predict(x).tolist() == [0, 1]
    torch.testing.assert_close(vmonf.predict_proba(x), torch.eye(2))
    with pytest.warns(RuntimeWarning, match="rows 0 lie outside"):
        assert vmonf.predict(torch.tensor([[1.5]])).tolist() == [-1]


def test_integer_posteriors_are_matched_to_soft_ones() -> None:
    soft = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1]])
    hard = torch.nn.functional.one_hot(torch.tensor([0, 0, 1]), 2)
    assert metrics.match_components(soft, hard).tolist() == [1, 0]


@pytest.mark.parametrize("shapes", [((5,), (5, 1)), ((5,), (1,)), ((0,), (0,))])
def test_log_densities_that_do_not_belong_together_are_refused(shapes: Any) -> None:
    with pytest.raises(ValueError, match="expected \\(N,\\) twice"):
        metrics.kl_to_truth(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="no log-density"):
        metrics.bits_per_dim(torch.zeros(0), 4)


def test_contexts_in_a_frame_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, context_features=2), context_features=2))
    given = pd.DataFrame(np.zeros((4, 2), np.float32), columns=["u", "v"])
    with pytest.raises(TypeError, match="the context is a frame"):
        vmonf.log_prob(torch.zeros(4, 2), given=given)


def test_posterior_at_the_smallest_temperature_is_certain() -> None:
    vmonf = pair()
    with torch.no_grad():
        for parameter in vmonf.guide.parameters():
            parameter.mul_(50)
    vmonf.guide.set_temperature_(1e-40)
    proba = vmonf.predict_proba(two_blobs())
    assert torch.equal(proba.amax(-1), torch.ones(N))


def test_restarts_say_that_they_lose_the_clusters_of_a_guide() -> None:
    x, vmonf = two_blobs(), pair()
    warm_start_(vmonf.guide, x, HALF, seed=0)
    with pytest.warns(RuntimeWarning, match="draws the guides of runs 2 to 3 anew"):
        vmonf.fit(x, epochs=1, n_init=3, seed=0, progress=False)
