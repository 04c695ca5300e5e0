"""Weights and their priors: right values where wrong ones were found."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import Dirichlet
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import Beta

from pyro_vmonf import (
    FixedWeights,
    FlowMixture,
    GatedWeights,
    Gaussian,
    GroupWeights,
    LearnedWeights,
    MarkovMixture,
    MarkovVMoNF,
    RandomBank,
    RandomWeights,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
)
from pyro_vmonf.em import num_parameters
from pyro_vmonf.flows import GaussianMixtures
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.nn import MLP
from pyro_vmonf.weights import GammaDirichlet
from tests.samples import NO_EPOCHS, clustered_rows, normal_rows, one_feature, sixty_rows

K = 3
D = 2


def test_the_free_weights_of_chains_and_groups_are_counted() -> None:
    gaussians = K * (2 + 3)
    rows = K * (K - 1)
    chain = MarkovMixture(Gaussian(2, K), "learned", "learned")
    assert num_parameters(chain) == gaussians + K - 1 + rows
    assert num_parameters(MarkovMixture(Gaussian(2, K), "uniform", "learned")) == gaussians + rows
    groups = FlowMixture(Gaussian(2, K), GroupWeights(4, K), context_features=1)
    assert num_parameters(groups) == gaussians + 4 * (K - 1)


def test_sticks_have_a_density_on_the_edge_and_none_off_the_simplex() -> None:
    a = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    sticks = StickBreaking(a[:2], a.flip(0).cumsum(0).flip(0)[1:])
    same = dist.Dirichlet(a)
    for point in ([0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]):
        value = torch.tensor(point, dtype=torch.float64)
        torch.testing.assert_close(sticks.log_prob(value), same.log_prob(value), rtol=1e-12, atol=0)
    for point in ([0.2, 0.3, 0.9], [-0.2, 0.7, 0.5]):
        with pytest.raises(ValueError, match="whose sum is 1"):
            sticks.log_prob(torch.tensor(point, dtype=torch.float64))


def test_free_parameters_are_those_of_the_gaussians_wherever_they_are() -> None:
    each = D + D * (D + 1) // 2
    for bank, free in (
        (Gaussian(D, 2), 2 * each),
        ([Gaussian(D, 1), Gaussian(D, 1)], 2 * each),
        (RandomBank(Gaussian(D, 2)), 2 * each),
        (GaussianMixtures(D, 2, 1), 2 * each),
        (GaussianMixtures(D, 2, 3), 6 * each + 4),
    ):
        assert num_parameters(FlowMixture(bank, "learned")) == free + 1  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [[2.0, 8.0], [-0.2, 1.2], [torch.nan, 0.8]])
def test_draws_of_the_weights_are_weights(draw: list[float]) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, 2), dist.Dirichlet(torch.ones(2))))
    with pytest.raises(ValueError, match="whose sum is 1"):
        to_inference_data(
            vmonf, clustered_rows(), posterior={"weights": torch.tensor([draw, draw])}
        )


def test_a_group_is_not_rounded_to_another_and_is_one_of_the_groups() -> None:
    model = FlowMixture(Gaussian(D, 2), GroupWeights(400, 2), context_features=1)
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D + 1, 2)))
    for group in (400.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="whole numbers from 0 to 399"):
            vmonf.predict(clustered_rows(1), given=torch.tensor([[group]]))
    with pytest.raises(ValueError, match="400 groups"):
        vmonf.bfloat16().sample(given=torch.tensor([[300.0]]))


@pytest.mark.parametrize(
    "weights", [np.array([0.2, 0.3, 0.5]), dist.Dirichlet(torch.ones(K, dtype=torch.float64))]
)
def test_weights_take_the_precision_of_the_bank(weights: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), weights), SoftmaxGuide(MLP(D, K)))
    vmonf.fit(clustered_rows(), epochs=2, progress=False, seed=0)
    assert vmonf.log_prob(clustered_rows()).dtype == torch.float32
    chain = MarkovMixture(Gaussian(D, K), weights, np.full((K, K), 1 / K))
    guide = SoftmaxGuide(MLP(D, K)) if isinstance(weights, np.ndarray) else None
    MarkovVMoNF(chain, guide).fit(clustered_rows().reshape(4, 15, D), **NO_EPOCHS)


@pytest.mark.parametrize(
    "prior",
    [
        torch.distributions.LogisticNormal(torch.zeros(K - 1), torch.ones(K - 1)),
        torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(K) / K),
    ],
    ids=lambda prior: type(prior).__name__,
)
def test_priors_of_torch_are_sites(prior: Any) -> None:
    model = FlowMixture(Gaussian(D, K), prior)
    drawn = poutine.trace(model).get_trace(size=4).nodes["weights"]["value"]
    assert drawn.shape == (K,)
    vmonf = VMoNF(model, AutoNormal(poutine.block(model, hide=["c"])))
    vmonf.fit(clustered_rows(), **NO_EPOCHS)
    assert vmonf.predict_proba(clustered_rows()).isfinite().all()


def test_the_concentration_of_a_hierarchical_prior_is_observed(tmp_path: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), RandomWeights(GammaDirichlet(K))))
    known = vmonf.condition({"weights_concentration": torch.tensor(2.0)})
    known.fit(clustered_rows(), **NO_EPOCHS)
    nodes = poutine.trace(known.model).get_trace(clustered_rows()).nodes
    assert nodes["weights"]["fn"].concentration.tolist() == [2.0] * K
    drawn = poutine.trace(known.guide).get_trace(clustered_rows()).nodes
    assert "weights" in drawn
    assert "weights_concentration" not in drawn
    known.save(tmp_path / "pair")
    loaded = VMoNF.load(tmp_path / "pair")
    x = clustered_rows(5)
    assert torch.equal(loaded.predict_proba(x), known.predict_proba(x))
    both = {"weights_concentration": torch.tensor(2.0), "weights": torch.tensor([0.2, 0.3, 0.5])}
    exact = vmonf.condition(both).model.weights.log_mean().exp()
    torch.testing.assert_close(exact, both["weights"])
    with pytest.raises(ValueError, match="support of its prior"):
        vmonf.condition({"weights_concentration": torch.tensor(-2.0)})


def test_weights_that_are_assigned_have_the_components_of_the_bank() -> None:
    model = one_feature()
    for count in (1, 3):
        with pytest.raises(ValueError, match="one weight for each component"):
            model.weights = FixedWeights(torch.ones(count))
    model.weights = FixedWeights(torch.tensor([1.0, 3.0]))
    shares = model.marginal().log_weights.exp()
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.75]))


def test_the_numbers_of_a_gate_count() -> None:
    gate = GatedWeights(nn.Linear(3, 5), 5)
    model = FlowMixture(Gaussian(2, 5), gate, context_features=3)
    assert num_parameters(model) == 5 * (2 + 3) + 5 * 3 + 5


@pytest.mark.filterwarnings("ignore:Nothing in the mixture is random")
def test_a_conditioned_pair_goes_to_arviz() -> None:
    known, x = torch.tensor([0.3, 0.7]), torch.randn(20, 2)
    prior = RandomWeights(GammaDirichlet(2, shape=2.0, rate=1.0))
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), prior)).condition({"weights": known})
    data = to_inference_data(vmonf, x, draws=5)
    assert set(data.posterior.data_vars) == {"weights", "weights_concentration"}
    np.testing.assert_allclose(data.posterior["weights"], known.expand(1, 5, 2), rtol=1e-5)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), Dirichlet(torch.ones(2))))
    data = to_inference_data(vmonf.condition({"weights": known}), x)
    np.testing.assert_allclose(data.posterior["weights"][0, 0], known, rtol=1e-5)
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, 2), Dirichlet(torch.ones(2)), "learned"))
    data = to_inference_data(chain.condition({"weights.initial": known}), x.reshape(5, 4, 2))
    np.testing.assert_allclose(data.posterior["initial"][0, 0], known, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [40, 7])
@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
def test_a_group_without_rows_keeps_its_weights(pseudo_count: float, batch_size: int) -> None:
    torch.manual_seed(0)
    weights = GroupWeights(3, 3, pseudo_count=pseudo_count)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), weights, context_features=1))
    own = torch.tensor([0.2, 0.3, 0.5]).log()
    with torch.no_grad():
        weights.logits[2] = own
    group = torch.arange(40).remainder(2).float().unsqueeze(1)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 0, "progress": False}
    vmonf.fit(normal_rows(40, 2), given=group, epochs=3, **options)
    assert weights.logits[2].equal(own)
    assert not weights.logits[:2].any(0).logical_not().any()


def test_rows_that_do_not_count_leave_weights_alone() -> None:
    own = torch.tensor([0.2, 0.3, 0.5]).log()
    for weights in (LearnedWeights(3, pseudo_count=2.0), LearnedWeights(3, rate=0.5)):
        with torch.no_grad():
            weights.logits.copy_(own)
        weights.update_(lambda: normal_rows(4, 3).log_softmax(-1), torch.zeros(4), 1.0)
        torch.testing.assert_close(weights.logits, own, rtol=0, atol=0)
        weights.update_(lambda: normal_rows(4, 3).log_softmax(-1), torch.ones(4), 1.0)
        assert not weights.logits.equal(own)


def test_weights_with_a_gradient_are_refused() -> None:
    given = torch.tensor([0.3, 0.7], requires_grad=True)
    with pytest.raises(ValueError, match="LearnedWeights"):
        FlowMixture(Gaussian(2, 2), given)
    assert FixedWeights(given.detach()).num_components == 2


def test_whole_numbers_are_concentrations() -> None:
    for whole, real in (
        (RandomWeights(torch.tensor([1, 2])), RandomWeights(torch.tensor([1.0, 2.0]))),
        (
            RandomWeights(StickBreaking(torch.tensor([1, 2]), torch.tensor([1, 3]))),
            RandomWeights(StickBreaking(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))),
        ),
    ):
        assert whole.log_mean().equal(real.log_mean())


@pytest.mark.usefixtures("float64")
def test_sticks_have_a_variance_and_an_entropy() -> None:
    torch.manual_seed(0)
    sticks = StickBreaking(torch.tensor([1.5, 2.0, 0.8]), torch.tensor([2.5, 1.2, 1.0]))
    drawn = sticks.sample((200_000,))
    error = 5 / len(drawn) ** 0.5
    torch.testing.assert_close(sticks.variance, drawn.var(0), rtol=3 * error, atol=error / 10)
    log_prob = -sticks.log_prob(drawn)
    assert abs(float(log_prob.mean() - sticks.entropy())) < error * float(log_prob.std())
    # With b the sum of the later a, sticks are the Dirichlet, whose values are known.
    a = torch.tensor([1.5, 2.0, 0.8])
    known = torch.distributions.Dirichlet(a)
    same = StickBreaking(a[:-1], a.flip(0).cumsum(0).flip(0)[1:])
    torch.testing.assert_close(same.variance, known.variance)
    torch.testing.assert_close(same.entropy(), known.entropy())
    one = StickBreaking(torch.tensor([2.0]), torch.tensor([3.0]))
    torch.testing.assert_close(one.entropy(), Beta(2.0, 3.0).entropy())


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_the_variance_of_sticks_keeps_its_digits(size: float) -> None:
    a, b = torch.tensor([size, size]), torch.tensor([size, size / 2])
    exact = StickBreaking(a.double(), b.double())
    torch.testing.assert_close(
        StickBreaking(a, b).variance.double(), exact.variance, rtol=1e-5, atol=0
    )
    second = exact.a * (exact.a + 1) / ((exact.a + exact.b) * (exact.a + exact.b + 1))
    first = float(second[0] - (exact.a / (exact.a + exact.b))[0] ** 2)
    assert float(exact.variance[0]) == pytest.approx(first, rel=1e-8)


def test_pairs_of_one_bank_have_the_columns_in_common() -> None:
    x = 10 * sixty_rows().numpy() + np.array([0.0, 100.0])
    frame = pd.DataFrame(x, columns=["a", "b"])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), dist.Dirichlet(torch.ones(2))))
    observed = vmonf.condition({"weights": torch.tensor([0.5, 0.5])})
    observed.fit(frame, epochs=1, progress=False, seed=0)
    assert vmonf.model.feature_names == ("a", "b")
    turned = frame[["b", "a"]]
    torch.testing.assert_close(vmonf.log_prob(turned), vmonf.log_prob(frame))
    other = copy.deepcopy(vmonf)
    other.model.feature_names = None
    assert vmonf.model.feature_names == ("a", "b")


def test_a_pair_with_an_observed_bank_is_saved(tmp_path: Path) -> None:
    bank = RandomBank(Gaussian(2, 2), dist.Normal(0.0, 1.0))
    vmonf = VMoNF(FlowMixture(bank, dist.Dirichlet(torch.ones(2))))
    observed = vmonf.condition({"bank.loc": torch.tensor([[1.0, 1.0], [-1.0, -1.0]])})
    observed.save(tmp_path / "pair")
    loaded, x = VMoNF.load(tmp_path / "pair"), sixty_rows()
    assert torch.equal(loaded.log_prob(x), observed.log_prob(x))
    loaded.fit(x, epochs=1, progress=False, seed=0)
    observed.fit(x, epochs=1, progress=False, seed=0)
    assert torch.equal(loaded.log_prob(x), observed.log_prob(x))
