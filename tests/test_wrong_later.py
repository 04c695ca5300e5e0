"""Answers that a fourth reader found wrong, and the right ones."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Dirichlet
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vmonf import (
    AutoregressiveNSF,
    ExactGuide,
    FixedWeights,
    FlowMixture,
    GatedWeights,
    Gaussian,
    MAFMoG,
    MarkovMixture,
    MarkovVMoNF,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.em import num_parameters
from pyro_vmonf.flows import GaussianMixtures
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.interop.tables import read_table
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.terms import Consistency
from pyro_vmonf.weights import GammaDirichlet

UNTRAINED: dict[str, Any] = {"seed": 0, "minutes": 1e-6, "progress": False}


def two_blobs(count: int = 100, apart: float = 7.0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, count, 2))
    return np.concatenate((first, second + apart))


@pytest.mark.parametrize("classes", [(2, 5), (1, 3), (5,), (0, 2)])
def test_labels_with_holes_are_no_number_of_components(classes: tuple[int, ...]) -> None:
    y = np.full(200, -1)
    y[: 100 * len(classes) : 10] = np.repeat(classes, 10)
    with pytest.raises(ValueError, match="numbers of components, and leaves out"):
        VMoNF.from_data(two_blobs(), y, **UNTRAINED)


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_labels_with_holes_are_taken_where_the_number_is_given() -> None:
    y = np.full(200, -1)
    y[::20] = np.repeat([0, 2], 5)
    assert VMoNF.from_data(two_blobs(), y, components=3, **UNTRAINED).model.num_components == 3


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("weights", ["learned", Dirichlet(torch.ones(2))], ids=["learned", "prior"])
def test_batches_in_one_buffer_are_different_batches(weights: Any, with_index: bool) -> None:
    x = torch.cat((torch.randn(100, 2), torch.randn(300, 2) + 9))
    order = torch.arange(400) if with_index else torch.randperm(400)
    model = FlowMixture(Gaussian(2, 2), weights)
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    svi = SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), TraceEnum_ELBO())
    buffer = torch.empty(100, 2)
    for _ in range(3):
        for rows in order.split(100):
            buffer.copy_(x[rows])
            svi.step(buffer, size=400, **({"index": rows} if with_index else {}))
    prior = 0 if weights == "learned" else 1
    wanted = torch.tensor([100.0 + prior, 300 + prior])
    torch.testing.assert_close(model.weights.log_mean().exp(), wanted / wanted.sum())


def test_the_same_batch_once_more_counts_in_place_of_itself() -> None:
    x = torch.cat((torch.randn(100, 2), torch.randn(300, 2) + 9))
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    loss = TraceEnum_ELBO(num_particles=3)
    svi = SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), loss)
    for _ in range(2):
        for rows in torch.arange(400).split(100):
            batch = x[rows]
            svi.step(batch, index=rows, size=400)
    torch.testing.assert_close(model.weights.log_mean().exp(), torch.tensor([0.25, 0.75]))


def one_feature() -> FlowMixture:
    model = FlowMixture(Gaussian(1, 2))
    model.bank.set_(torch.tensor([[0.0], [5.0]]), torch.ones(2, 1, 1))
    return model


def test_the_distribution_function_takes_rows_alone(float64: None) -> None:
    flow = FlowMixture(AutoregressiveNSF(1, 2)).components()
    for mixture in (one_feature().marginal(), flow):
        for x in (torch.tensor([0.0, 5.0]), torch.zeros(3, 2)):
            with pytest.raises(ValueError, match="one point has shape"):
                mixture.cdf(x)
    x = torch.tensor([[0.0], [5.0]])
    wanted = 0.5 * (torch.special.ndtr(x) + torch.special.ndtr(x - 5)).squeeze(-1)
    torch.testing.assert_close(one_feature().marginal().cdf(x), wanted, rtol=0, atol=1e-12)


def test_functions_of_an_expanded_mixture_have_its_shape(float64: None) -> None:
    mixture = one_feature().marginal()
    wide = mixture.expand((3,))
    assert wide.cdf(torch.zeros(1)).shape == (3,)
    assert wide.icdf(torch.tensor(0.3)).shape == (3, 1)
    assert torch.equal(wide.icdf(torch.tensor(0.3))[1], mixture.icdf(torch.tensor(0.3)))


def test_quantiles_of_small_shares_are_finite() -> None:
    mixture = one_feature().requires_grad_(False).marginal()
    for share in (1e-30, 1e-10, 0.5):
        found = mixture.icdf(torch.tensor(share))
        torch.testing.assert_close(float(mixture.cdf(found)), share, rtol=1e-3, atol=0)
    assert mixture.icdf(torch.tensor(0.0)) == -math.inf
    assert mixture.icdf(torch.tensor(1.0)) == math.inf


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.parametrize("weighted", [False, True])
def test_unsure_rows_are_rows_of_the_table(weighted: bool) -> None:
    x = two_blobs(6000 if not weighted else 300, apart=2.5)
    weight = np.repeat([0.01, 5.0], 300) if weighted else None
    vmonf = VMoNF.from_data(x, components=2, sample_weight=weight, **UNTRAINED)
    unsure = int((vmonf.predict_proba(x).amax(1) < 0.9).sum())
    assert f"{unsure} of {len(x)} rows unsure" in vmonf.report().summary()


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


def test_a_first_row_beside_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    path.write_text("5.1,3.5,setosa\n4.9,3.0,setosa\n6.1,2.5,virginica\n")
    assert any("is taken as the names of the columns" in said for said in read_table(path).said)


def test_columns_and_marks_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,kind\n1,2,x\n3,4,-1\n5,6, \n7,8,y\n")
    with pytest.raises(ValueError, match="names a twice"):
        read_table(path, columns=["a", "a"])
    table = read_table(path, label="kind")
    assert table.names == ["x", "y"]
    assert table.y is not None
    assert table.y.tolist() == [0, -1, -1, 1]
    path.write_text("a,kind\n1,1\n2,-1\n3,1\n")  # of outliers: −1 is a class
    assert read_table(path, label="kind").names == ["-1", "1"]


def test_the_bound_of_the_estimator_is_that_of_the_rows_that_count() -> None:
    x = np.concatenate((two_blobs(), np.full((20, 2), 1e6)))
    weight = np.repeat([1.0, 0.0], [200, 20])
    found = FlowMixtureClustering(2, minutes=1e-6, random_state=0).fit(x, sample_weight=weight)
    elbo = found.vmonf_.elbo(x[:200]).double().mean()
    assert found.lower_bound_ == pytest.approx(float(elbo), rel=1e-5)


EYES = torch.eye(2).expand(2, 2, 2)
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


def test_far_away_is_minus_infinity_for_mixtures_of_gaussians() -> None:
    with local_seed(0), torch.no_grad():
        bank = MAFMoG(2, 2)
        for parameter in bank.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for far in (1e10, 1e19, 1e22, 1e30):
        x = torch.tensor([[far, 0.0], [0.0, -far], [far, far]])
        found = FlowMixture(bank).marginal().log_prob(x).double()
        exact = FlowMixture(bank).double().marginal().log_prob(x.double())
        bank.float()
        assert not found.isnan().any()
        finite = found.isfinite()
        torch.testing.assert_close(found[finite], exact[finite], rtol=1e-4, atol=0)
        assert bool((exact[~finite] < -1e30).all())


def two_sets() -> tuple[Tensor, Tensor]:
    """10,000 rows of which a tenth is in the second cluster, and 400 of which nine tenths are."""
    many = torch.cat((torch.randn(9000, 2), torch.randn(1000, 2) + 9))
    few = torch.cat((torch.randn(40, 2), torch.randn(360, 2) + 9))
    return many[torch.randperm(10_000)], few[torch.randperm(400)]


def test_a_fit_does_not_count_the_rows_of_the_last_one() -> None:
    many, few = two_sets()
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    vmonf = VMoNF(model)
    options: dict[str, Any] = {"progress": False, "seed": 0, "standardize": False, "lr": 1e-9}
    vmonf.fit(many, steps=15, batch_size=500, **options)
    vmonf.fit(few, epochs=1, batch_size=100, **options)
    torch.testing.assert_close(model.weights.log_mean().exp(), torch.tensor([0.1, 0.9]))


def test_em_is_not_undone_by_counts_of_other_rows() -> None:
    many, few = two_sets()
    model = FlowMixture(Gaussian(2, 2), "learned")
    fit_em(model, many, seed=0)
    VMoNF(model).fit(many, epochs=1, progress=False, seed=0)
    fit_em(model, few, seed=0)
    before = model.weights.log_mean().exp()
    VMoNF(model).fit(few, steps=3, batch_size=100, progress=False, seed=0, lr=1e-9)
    torch.testing.assert_close(model.weights.log_mean().exp(), before, rtol=0, atol=0.03)


@pytest.mark.parametrize("options", [{"compile": True}, {"n_init": 2}], ids=["compiled", "starts"])
def test_hooks_on_gradients_are_heard(options: dict[str, Any]) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=1), "learned"), SoftmaxGuide(MLP(2, 2)))
    heard = []
    parameter = next(vmonf.guide.parameters())
    parameter.register_hook(lambda gradient: heard.append(1))
    vmonf.fit(torch.randn(64, 2), epochs=4, batch_size=32, progress=False, seed=0, **options)
    assert len(heard) >= 8
    assert "compiled in" not in vmonf.history.road


CHANGES: dict[str, Any] = {
    "forward hook": lambda vmonf, _: vmonf.guide.network.register_forward_hook(
        lambda module, given, found: 2 * found
    ),
    "step hook": lambda _, optimizer: optimizer.register_step_post_hook(
        lambda *_: [p.data.mul_(0.9) for p in optimizer.param_groups[0]["params"]]
    ),
    "maximize": lambda _, optimizer: optimizer.param_groups[0].update(maximize=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_ends_the_graph(change: str, float64: None) -> None:
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=1)), SoftmaxGuide(MLP(2, 2, hidden=(4,))))
        made: list[Any] = []

        def adam(parameters: Any, made: list[Any] = made) -> torch.optim.Adam:
            made.append(torch.optim.Adam(parameters, lr=1e-3))
            return made[0]

        def watch(progress: Any, vmonf: VMoNF = vmonf, made: list[Any] = made) -> None:
            if progress.epoch == 2:
                CHANGES[change](vmonf, made[0])

        data: dict[str, Any] = {"epochs": 5, "batch_size": 32, "progress": False, "seed": 0}
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        vmonf.fit(x, optimizer=adam, callbacks=[watch], compile=compiled, keep="last", **data)
        states.append(torch.cat([p.detach().flatten() for p in vmonf.parameters()]))
    torch.testing.assert_close(*states, rtol=0, atol=1e-9)


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


def test_a_warm_start_that_fails_leaves_the_guide_as_it_was() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    before = copy.deepcopy(vmonf.state_dict())
    x = torch.as_tensor(two_blobs()).float()
    calls = []

    def later(module: nn.Module, given: Any, found: Tensor) -> Tensor:
        calls.append(1)
        return found * (torch.nan if len(calls) > 20 else 1.0)

    hook = vmonf.guide.network.register_forward_hook(later)
    with pytest.raises(FloatingPointError, match="as it was before"):
        warm_start_(vmonf.guide, x, torch.arange(200) // 100, seed=0)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())


def test_a_walk_on_other_rows_is_refused() -> None:
    x = torch.randn(100, 2)
    for rows in (x.flip(0), x[:50] + 1, torch.cat((x, x + 1))):
        terms = [Consistency(RandomWalk(x, neighbors=5))]
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2), terms))
        before = copy.deepcopy(vmonf.state_dict())
        with pytest.raises(ValueError, match="built of 100 other rows"):
            vmonf.fit(rows, epochs=1, progress=False)
        after = vmonf.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        vmonf.fit(x, epochs=1, progress=False)


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


def test_a_sequence_without_a_path_leaves_the_moves_of_others() -> None:
    never = -math.inf
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]).log()
    components = torch.distributions.Normal(torch.zeros(2, 1), 1.0)
    chain = HiddenChain(rows, torch.distributions.Independent(components, 1), 2)
    table = torch.tensor([[[0.0, never], [never, 0.0]], [[never, 0.0], [never, 0.0]]])
    for weight in (None, torch.tensor([1.0, 0.0])):
        found = chain.moves(table, torch.ones(2, 2, dtype=torch.bool), weight)
        assert found.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
