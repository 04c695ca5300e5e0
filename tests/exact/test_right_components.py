"""Components that are given, shared or turned: right values where wrong ones were found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    Poisson,
    Uniform,
)

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    GroupWeights,
    MarkovMixture,
    MarkovVMoNF,
    MixtureComponent,
    RandomBank,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    select,
)
from pyro_vmonf.components import take_components_
from pyro_vmonf.flows import GaussianMixtures, StandardNormal
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import ContextAffine
from pyro_vmonf.weight_priors import NormalPosterior, SticksPosterior
from pyro_vmonf.weights import GammaDirichlet
from tests.samples import X, three_gaussians, two_blobs

K = 3


def small_pair(weights: Any = "uniform", bank: Any = None) -> VMoNF:
    bank = Gaussian(2, 2) if bank is None else bank
    return VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(2, 2)))


def test_frozen_marginals_follow_edits_of_the_data_of_a_parameter() -> None:
    x, vmonf = two_blobs(), small_pair()
    vmonf.marginal(frozen=True).log_prob(x[:1])
    vmonf.model.bank.loc.data.add_(3.0)
    torch.testing.assert_close(
        vmonf.marginal(frozen=True).log_prob(x), vmonf.log_prob(x), rtol=1e-6, atol=1e-6
    )


class Mine(BoundGuide):
    """A guide that does not say how its components lie in its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, K)

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.net(x).log_softmax(-1)

    def infer(self, rows: Any) -> None:
        with rows.plate(self.site("data"), (2,)):
            logits = self.log_q(rows.x)
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def sticks() -> RandomWeights:
    prior = dist.Dirichlet(torch.ones(K))
    return RandomWeights(prior, SticksPosterior(prior))


def normal() -> RandomWeights:
    prior = dist.Dirichlet(torch.ones(K))
    return RandomWeights(prior, NormalPosterior(prior))


REFUSED: dict[str, Callable[[], VMoNF]] = {
    "a guide of one's own": lambda: three_gaussians(guide=Mine()),
    "a Pyro guide": lambda: three_gaussians(
        dist.Dirichlet(torch.ones(K)),
        [SoftmaxGuide(MLP(2, K)), lambda x: pyro.sample("weights", dist.Dirichlet(torch.ones(K)))],
    ),
    "sticks": lambda: three_gaussians(sticks()),
    "a normal behind sticks": lambda: three_gaussians(normal()),
}


@pytest.mark.parametrize("index", [[2, 0, 1], [0, 1]], ids=["turned", "fewer"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_pair_that_cannot_be_turned_is_as_it_was(kind: str, index: list[int]) -> None:
    vmonf = REFUSED[kind]()
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="taken out or change places"):
        take_components_(vmonf, torch.tensor(index))
    after = vmonf.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("index", [[2, 0, 1], [0, 2]], ids=["turned", "fewer"])
def test_a_random_concentration_belongs_to_all_components(index: list[int]) -> None:
    vmonf = three_gaussians(RandomWeights(GammaDirichlet(K)))
    posterior = vmonf.model.weights.posterior
    posterior.log_concentration.data = torch.tensor([0.0, 1.0, 2.0])  # type: ignore[union-attr]
    before = vmonf.model.weights.log_mean().exp()
    joint = vmonf.component_log_prob(X)
    take_components_(vmonf, torch.tensor(index))
    torch.testing.assert_close(vmonf.component_log_prob(X), joint[:, index])
    wanted = before[index] / before[index].sum()
    torch.testing.assert_close(vmonf.model.weights.log_mean().exp(), wanted)


@pytest.mark.parametrize("groups", [2, K])
def test_weights_of_groups_turn_by_component(groups: int) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, K), GroupWeights(groups, K), context_features=1))
    vmonf.model.weights.logits.data = torch.randn(groups, K)  # type: ignore[union-attr]
    given = torch.zeros(len(X), 1)
    before = vmonf.log_prob(X, given=given)
    take_components_(vmonf, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(vmonf.log_prob(X, given=given), before)


def test_a_pair_that_shares_its_components_leaves_them() -> None:
    prior = torch.tensor([1.0, 2.0, 9.0])
    whole = three_gaussians(dist.Dirichlet(prior))
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, K)))
    for origin, part in (
        (whole, whole.condition({"weights": prior / 12})),
        (chain, chain.alone()),
    ):
        before = {name: value.clone() for name, value in origin.state_dict().items()}
        for act in (lambda p=part: p.align_((p.predict(X) + 1) % K, X), lambda p=part: p.prune_(X)):
            with pytest.raises(ValueError, match="shares its components"):
                act()
        for name, value in origin.state_dict().items():
            assert torch.equal(value, before[name]), name
        own = copy.deepcopy(part)
        scores = own.log_prob(X)
        own.align_((own.predict(X) + 1) % K, X)
        torch.testing.assert_close(own.log_prob(X), scores)
    del part, own
    whole.align_((whole.predict(X) + 1) % K, X)  # nobody shares them any more


BAD: dict[str, Any] = {
    "not finite": lambda: Gaussian(2, 2).set_(
        torch.full((2, 2), torch.nan), torch.eye(2).expand(2, 2, 2)
    ),
    "not symmetric": lambda: Gaussian(2, 2).set_(
        torch.zeros(2, 2), torch.tensor([[1.0, 0.9], [0.2, 1.0]]).expand(2, 2, 2)
    ),
    "positive definite": lambda: Gaussian(2, 2).set_(
        torch.zeros(2, 2), -torch.eye(2).expand(2, 2, 2)
    ),
    "whose sum is 1": lambda: sub([0.5, 0.9]),
    "component is -1": lambda: sub([0.5, 0.5], -1),
    "component is 3": lambda: sub([0.5, 0.5], 3),
}


def sub(weights: list[float], component: int = 0) -> None:
    bank = GaussianMixtures(2, 3, mixtures=2)
    bank.set_(component, torch.tensor(weights), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2))


@pytest.mark.parametrize("message", BAD)
def test_a_bank_takes_no_parameters_that_are_none(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def experts(count: int) -> Flow:
    affine = ContextAffine(2, 3, batch_shape=(count,))
    flow = Flow([affine], base=StandardNormal(2, count)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def test_a_mixture_with_a_context_is_one_component_of_each_row() -> None:
    torch.manual_seed(0)
    inner = FlowMixture(experts(2), context_features=3).double()
    outer = VMoNF(FlowMixture(MixtureComponent(inner), context_features=3).double())
    h, x = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    alone = VMoNF(inner).log_prob(x, given=h)
    torch.testing.assert_close(outer.log_prob(x, given=h), alone, rtol=1e-12, atol=0)
    assert outer.model.num_components == 1
    assert outer.predict_proba(x, given=h).shape == (4, 1)
    both = FlowMixture([MixtureComponent(inner), experts(3)], context_features=3).double()
    joint = VMoNF(both).component_log_prob(x, given=h)
    torch.testing.assert_close(joint[:, 0], alone, rtol=1e-12, atol=1e-12)


def test_a_bank_whose_components_are_the_rows_is_refused() -> None:
    class OfRows(nn.Module):
        def forward(self, context: Tensor) -> Distribution:
            return Independent(Normal(context[:, :2], 1.0), 1)

    with pytest.raises(ValueError, match=r"\(3,\).* for 3 rows of context; expected batch_shape"):
        FlowMixture(OfRows(), context_features=3)


def test_a_bank_of_another_number_of_components_is_refused() -> None:
    model = FlowMixture(Gaussian(2, 1))
    former = model.bank
    for bank in (Gaussian(2, 4), Gaussian(3, 1)):
        with pytest.raises(ValueError, match="build a new FlowMixture"):
            model.bank = bank
        assert model.bank is former
    counts = Independent(Poisson(torch.ones(1, 2)), 1)
    with pytest.raises(ValueError, match="components are discrete"):
        model.bank = counts  # type: ignore[assignment]
    assert model.bank is former
    model.bank = Independent(Uniform(torch.zeros(1, 2), 1.0), 1)  # type: ignore[assignment]
    assert model.bounded
    assert model.marginal().log_prob(torch.full((1, 2), 0.5)).item() == 0


def test_a_frozen_copy_follows_fixed_components_and_settings() -> None:
    def at(place: float) -> Distribution:
        return Independent(Normal(torch.full((2, 2), place), 1.0), 1)

    model = FlowMixture(at(0.0))
    model.marginal(frozen=True)
    model.bank = at(5.0)  # type: ignore[assignment]
    x = torch.zeros(1, 2)
    assert torch.equal(model.marginal(frozen=True).log_prob(x), model.marginal().log_prob(x))
    model = FlowMixture(RealNVP(2, 2, blocks=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    frozen = model.frozen()
    assert model.frozen() is frozen
    for transform in model.bank.transforms:  # type: ignore[union-attr]
        transform.univariate.bound = 0.1
    assert torch.equal(model.marginal(frozen=True).log_prob(x), model.marginal().log_prob(x))


def test_mixtures_of_torch_are_components() -> None:
    loc = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    inner = MixtureSameFamily(
        Categorical(torch.ones(2, 3).double()), Independent(Normal(loc, 1.0), 1)
    )
    x = torch.zeros(1, 2).double()
    expected = (inner.log_prob(x).logsumexp(-1) - np.log(2)).reshape(1)
    for bank in (inner, [inner]):
        model = FlowMixture(bank).double()
        assert not model.bounded
        torch.testing.assert_close(VMoNF(model).log_prob(x), expected, rtol=1e-12, atol=0)
    low = torch.arange(3.0).reshape(1, 3, 1).expand(2, 3, 2)
    box = MixtureSameFamily(Categorical(torch.ones(2, 3)), Independent(Uniform(low, 9.0), 1))
    with pytest.warns(RuntimeWarning, match="outside the support"):
        found = VMoNF(FlowMixture(box)).log_prob(torch.tensor([[5.0, 5.0], [-1.0, -1.0]]))
    exact = -2 * torch.tensor([9.0, 8.0, 7.0]).log()
    torch.testing.assert_close(found[0], exact.logsumexp(0) - np.log(3))
    assert found[1] == -torch.inf


def test_a_frozen_random_bank_stays_random_and_a_part_of_one_is_saved(tmp_path: Any) -> None:
    bank = RealNVP(2, K, blocks=2, hidden=(4,))
    first, _ = next(iter(bank.named_parameters()))
    bank.get_parameter(first).requires_grad_(False)
    one = VMoNF(FlowMixture(RandomBank(bank)))
    sites = poutine.trace(one.model.requires_grad_(False)).get_trace(size=3).stochastic_nodes
    names = {name for name, _ in bank.named_parameters()} - {first}
    assert {f"bank.{name}" for name in names} < set(sites)
    assert f"bank.{first}" not in sites
    one.save(tmp_path / "bank.pt")
    again = VMoNF.load(tmp_path / "bank.pt").model.bank
    assert isinstance(again, RandomBank)
    assert set(again.names) == names
    with pytest.raises(ValueError, match=r"has parameters .*, and names is \['none'\]"):
        RandomBank(bank, names=["none"])


def test_a_mixture_inside_an_independent_is_no_bounded_component() -> None:
    torch.manual_seed(0)
    mixture = MixtureSameFamily(Categorical(torch.ones(2, 1, 3)), Normal(torch.randn(2, 1, 3), 1.0))
    one = VMoNF(FlowMixture(Independent(mixture, 1)))
    assert not one.model.bounded
    x = torch.randn(5, 1)
    right = (Independent(mixture, 1).log_prob(x.unsqueeze(1)) - torch.tensor(2.0).log()).logsumexp(
        -1
    )
    torch.testing.assert_close(one.log_prob(x), right)


def test_parts_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"event_shape \(\), one number for each row"):
        FlowMixture(Normal(torch.zeros(3), 1.0))
    with pytest.raises(TypeError, match="transforms has a AffineTransform; expected modules"):
        Flow([torch.distributions.AffineTransform(1.0, 2.0, event_dim=1)], base=Gaussian(1, 2))  # type: ignore[list-item]


@pytest.mark.parametrize("c", [[0, -1], [0, 3], [0.0, 1.0]])
def test_numbers_of_no_component_are_refused(c: list[float]) -> None:
    components = Gaussian(2, 3)()
    with pytest.raises(ValueError, match=r"c has dtype .* numbers from .* to .*; expected whole"):
        select(components, torch.tensor(c)).log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="those of the components"):
        select(components, torch.tensor(c)).sample()
