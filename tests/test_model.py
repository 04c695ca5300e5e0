"""The model among Pyro's own tools, alone, nested, and under other plates."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    MarginalGuide,
    RealNVP,
    SoftmaxGuide,
    Stack,
    VMoNF,
)
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import Affine, Logit

K, D = 3, 2


def separated(weights: object = "uniform") -> FlowMixture:
    """Three Gaussians far from each other."""
    bank = Gaussian(D, K)
    bank.set_(torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]]), torch.eye(D).expand(K, D, D))
    return FlowMixture(bank, weights)


def pair(weights: object = "uniform") -> VMoNF:
    return VMoNF(
        FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), weights), SoftmaxGuide(MLP(D, K))
    )


def test_generates_rows_from_their_components() -> None:
    model = separated()
    trace = poutine.trace(model).get_trace(size=50)
    x, c = trace.nodes["x"]["value"], trace.nodes["c"]["value"]
    assert x.shape == (50, D)
    assert ((x - model.bank.loc[c]).norm(dim=-1) < 6).all()


@pytest.mark.parametrize("parallel", [True, False])
def test_predictive_generates(parallel: bool) -> None:
    model = separated(dist.Dirichlet(torch.ones(K)))
    drawn = Predictive(model, num_samples=4, parallel=parallel)(size=6)
    assert drawn["x"].shape == (4, 6, D)
    assert drawn["weights"].shape[0] == 4
    assert drawn["weights"].shape[-1] == K
    near = model.bank.loc[drawn["c"].reshape(4, 6)]
    assert ((drawn["x"] - near).norm(dim=-1) < 6).all()


def test_predictive_with_a_guide() -> None:
    vmonf = pair(dist.Dirichlet(torch.ones(K)))
    x = torch.randn(6, D)
    drawn = Predictive(vmonf.model, guide=vmonf.guide, num_samples=4, return_sites=("c",))(x)
    assert drawn["c"].shape == (4, 6)


def test_condition_fixes_component_and_rows() -> None:
    model = separated()
    fixed = poutine.condition(model, {"c": torch.full((8,), 2)})
    assert (fixed(size=8)[:, 1] > 10).all()
    x = torch.randn(8, D)
    trace = poutine.trace(poutine.condition(model, {"x": x})).get_trace(size=8)
    assert trace.nodes["x"]["is_observed"]
    weighted = separated(dist.Dirichlet(torch.ones(K)))
    probs = torch.tensor([0.0, 1.0, 0.0]).clamp_min(1e-6)
    drawn = poutine.condition(weighted, {"weights": probs / probs.sum()})(size=20)
    assert (drawn[:, 0] > 10).all()


def test_infer_discrete_finds_the_component() -> None:
    model = separated()
    truth = torch.tensor([0, 1, 2, 2, 1, 0])
    x = model.bank.loc.detach()[truth] + torch.randn(6, D)
    for temperature in (0, 1):
        posterior = infer_discrete(model, first_available_dim=-2, temperature=temperature)
        assert torch.equal(poutine.trace(posterior).get_trace(x).nodes["c"]["value"], truth)


def test_render_model_shows_the_sites() -> None:
    graph = pyro.render_model(separated(dist.Dirichlet(torch.ones(K))), (torch.randn(4, D),))
    for site in ("weights", "c", "x", "data"):
        assert site in graph.source


@pytest.mark.parametrize("guided", [True, False])
def test_an_outer_plate_on_the_left(guided: bool) -> None:
    vmonf = pair()
    guide = vmonf.guide if guided else MarginalGuide(vmonf.model)

    def left(program: Callable[..., object]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("outer", 5, dim=-2):
                program(x)

        return run

    x = torch.randn(5, 7, D)
    whole = TraceEnum_ELBO(max_plate_nesting=2).loss(left(vmonf.model), left(guide), x)
    parts = [TraceEnum_ELBO(max_plate_nesting=1).loss(vmonf.model, guide, row) for row in x]
    assert whole == pytest.approx(sum(parts), rel=1e-5)


@pytest.mark.parametrize("guided", [True, False])
def test_an_outer_plate_on_the_right(guided: bool) -> None:
    vmonf = pair()
    guide = vmonf.guide if guided else MarginalGuide(vmonf.model)

    def right(program: Callable[..., object]) -> Callable[[Tensor], None]:
        def run(x: Tensor) -> None:
            with pyro.plate("outer", 5, dim=-1):
                program(x, size=21)

        return run

    x = torch.randn(7, 5, D)
    whole = TraceEnum_ELBO(max_plate_nesting=2).loss(right(vmonf.model), right(guide), x)
    parts = [
        TraceEnum_ELBO(max_plate_nesting=1).loss(vmonf.model, guide, x[:, i], size=21)
        for i in range(5)
    ]
    assert whole == pytest.approx(sum(parts), rel=1e-5)


class Two(PyroModule):
    """Two mixtures in one module, and both guides in another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pair()
        self.second = pair(dist.Dirichlet(torch.ones(K)))

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.second.model(y)  # random weights are global: Pyro wants them before any enumerated c
        self.first.model(x)


class TwoGuides(PyroModule):
    def __init__(self, two: Two) -> None:
        super().__init__()
        self.one = SoftmaxGuide(MLP(D, K), model=two.first.model)
        self.other = SoftmaxGuide(MLP(D, K), model=two.second.model)

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.other(y)
        self.one(x)


def test_two_pairs_nest_and_train() -> None:
    two = Two()
    guide = TwoGuides(two)
    x, y = torch.randn(12, D), torch.randn(9, D)
    trace = poutine.trace(two).get_trace(x, y)
    names = {"first.c", "first.x", "second.c", "second.x", "second.weights"}
    assert names <= set(trace.nodes)
    svi = SVI(two, guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1))
    before = {n: p.detach().clone() for n, p in two.named_parameters()}
    before |= {n: p.detach().clone() for n, p in guide.named_parameters()}
    for _ in range(3):
        svi.step(x, y)
    for name, parameter in [*two.named_parameters(), *guide.named_parameters()]:
        if not name.startswith(("first.guide", "second.guide")):
            assert not torch.equal(parameter, before[name]), name


class Prior(PyroModule):
    """A larger program that holds a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.prior = pair()

    def forward(self, x: Tensor) -> None:
        self.prior.model(x)


def test_a_nested_pair_names_its_sites_after_itself() -> None:
    larger = Prior()
    x = torch.randn(6, D)
    larger(x)
    guide_trace = poutine.trace(larger.prior.guide).get_trace(x)
    model_trace = poutine.trace(larger).get_trace(x)
    assert "prior.c" in guide_trace.nodes
    assert "prior.data" in guide_trace.nodes
    assert "prior.x" in model_trace.nodes
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(larger, larger.prior.guide, x)
    alone = pair()
    alone.load_state_dict(larger.prior.state_dict())
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(alone.model, alone.guide, x)
    assert loss == pytest.approx(expected)


def test_format_shapes_is_as_documented() -> None:
    trace = poutine.trace(separated()).get_trace(torch.randn(6, D))
    trace.compute_log_prob()
    lines = [" ".join(line.split()) for line in trace.format_shapes().splitlines()]
    start = lines.index("c dist 6 |")
    assert lines[start : start + 6] == [
        "c dist 6 |",
        "value 6 |",
        "log_prob 6 |",
        "x dist 6 | 2",
        "value 6 | 2",
        "log_prob 6 |",
    ]


def test_marginal_is_a_prior_for_autoguides_and_nuts() -> None:
    mixture = separated().marginal(frozen=True)

    def model() -> None:
        z = pyro.sample("z", mixture)
        pyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=torch.tensor([20.0, 0.5]))

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    for _ in range(3):
        assert svi.step() < float("inf")
    kernel = NUTS(model, jit_compile=False)
    mcmc = MCMC(kernel, num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    z = mcmc.get_samples()["z"]
    assert (z - torch.tensor([20.0, 0.5])).abs().max() < 2


def test_nuts_over_the_weights_with_the_flows_fixed() -> None:
    model = separated(dist.Dirichlet(torch.ones(K))).requires_grad_(False).eval()
    truth = torch.tensor([0] * 30 + [1] * 15 + [2] * 5)
    x = model.bank.loc[truth] + torch.randn(50, D)
    mcmc = MCMC(NUTS(model), num_samples=60, warmup_steps=40, disable_progbar=True)
    mcmc.run(x)
    mean = mcmc.get_samples()["weights"].mean(0).squeeze()
    expected = (torch.bincount(truth) + 1) / 53  # the conjugate posterior's mean
    assert (mean - expected).abs().max() < 0.08


@pytest.mark.parametrize("frozen", [True, False])
def test_the_marginal_trains_unless_frozen(frozen: bool) -> None:
    vmonf = pair("learned")
    z = torch.randn(4, D, requires_grad=True)
    vmonf.marginal(frozen=frozen).log_prob(z).sum().backward()
    assert z.grad is not None
    trained = [name for name, p in vmonf.model.named_parameters() if p.grad is not None]
    assert bool(trained) != frozen


@pytest.mark.parametrize("action", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_whole_and_separate(action: Callable[[VMoNF], VMoNF]) -> None:
    vmonf = pair(dist.Dirichlet(torch.ones(K)))
    x = torch.randn(5, D)
    TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)(x)
    twin = action(vmonf)
    assert twin.guide.model is twin.model
    assert torch.equal(twin.log_prob(x), vmonf.log_prob(x))
    with torch.no_grad():
        next(twin.model.parameters()).add_(1)
    assert not torch.equal(twin.log_prob(x), vmonf.log_prob(x))


def test_moving_to_float64_moves_everything() -> None:
    vmonf = pair(dist.Dirichlet(torch.ones(K))).double()
    x = torch.randn(5, D, dtype=torch.float64)
    assert vmonf.fit(x, epochs=1, progress=False).elbo
    assert vmonf.log_prob(x).dtype == torch.float64
    assert vmonf.predict_proba(x).dtype == torch.float64
    assert vmonf.sample(3)[0].dtype == torch.float64


def test_components_permuted_permute_the_outputs() -> None:
    vmonf = pair(torch.tensor([0.2, 0.3, 0.5]))
    x, order = torch.randn(6, D), torch.tensor([2, 0, 1])
    state = {
        k: v[order] if k.startswith(("bank", "weights")) and v.shape[:1] == (K,) else v
        for k, v in vmonf.model.state_dict().items()
    }
    twin = pair(torch.tensor([0.2, 0.3, 0.5]))
    twin.model.load_state_dict(state)
    torch.testing.assert_close(twin.component_log_prob(x), vmonf.component_log_prob(x)[:, order])
    torch.testing.assert_close(twin.log_prob(x), vmonf.log_prob(x))


def test_one_component_is_the_flow() -> None:
    model = FlowMixture(RealNVP(D, 1, blocks=2, hidden=(4,)))
    x = torch.randn(6, D)
    flow = model.bank().log_prob(x.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(model.marginal().log_prob(x), flow)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, MarginalGuide(model), x)
    assert loss == pytest.approx(-flow.sum().item(), rel=1e-5)
    assert model(size=4).shape == (4, D)


def test_standardisation_is_a_change_of_units() -> None:
    vmonf = pair()
    x = 100 + 7 * torch.randn(50, D)
    units = (x - x.mean(0)) / x.std(0, unbiased=False)
    plain = vmonf.log_prob(units) - x.std(0, unbiased=False).log().sum()
    q = vmonf.predict_proba(units)
    vmonf.model.standardize_(x)
    torch.testing.assert_close(vmonf.log_prob(x), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vmonf.predict_proba(x), q, rtol=1e-4, atol=1e-4)


class Single(nn.Module):
    def forward(self, context: Tensor | None = None) -> torch.distributions.Distribution:
        return dist.Normal(torch.zeros(D), 1.0).to_event(1)


class HeavyTails(nn.Module):
    def forward(self, context: Tensor | None = None) -> torch.distributions.Distribution:
        return dist.StudentT(5.0, torch.zeros(K, D), 2.0).to_event(1)


def test_a_users_module_is_a_bank() -> None:
    vmonf = VMoNF(
        FlowMixture(Stack([HeavyTails(), RealNVP(D, 2, blocks=1)])), SoftmaxGuide(MLP(D, 5))
    )
    x = torch.randn(20, D)
    vmonf.fit(x, epochs=1, progress=False)
    assert vmonf.predict_proba(x).shape == (20, 5)


def test_a_list_of_distributions_is_a_bank() -> None:
    parts = [
        dist.Normal(torch.zeros(D), 1.0).to_event(1),
        dist.Laplace(torch.ones(D), 2.0).to_event(1),
    ]
    model, x = FlowMixture(parts), torch.randn(5, D)
    expected = torch.stack([part.log_prob(x) for part in parts], -1)
    torch.testing.assert_close(model.components().log_prob(x.unsqueeze(1)), expected)
    vmonf = VMoNF(
        FlowMixture([*parts, RealNVP(D, 1, base=parts[1], blocks=2)]), SoftmaxGuide(MLP(D, 3))
    )
    vmonf.fit(torch.randn(20, D), epochs=1, progress=False)
    assert vmonf.sample(4)[0].shape == (4, D)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "bank without K": (lambda: FlowMixture(Single()), r"batch_shape \(\)"),
    "base of another D": (
        lambda: RealNVP(D, K, base=dist.Normal(torch.zeros(K, 3), 1.0).to_event(1), blocks=2),
        "base has batch_shape",
    ),
    "too many weights": (lambda: separated(torch.ones(4)), "4 weights.*3 components"),
    "negative weight": (lambda: separated(torch.tensor([1.0, -1.0, 1.0])), "positive"),
    "unknown weights": (lambda: separated("flat"), "uniform"),
    "unknown prior": (lambda: separated(dist.Normal(0.0, 1.0)), "Dirichlet"),
    "network of another K": (lambda: VMoNF(separated(), SoftmaxGuide(MLP(D, 4))), "one logit"),
    "network of another D": (lambda: VMoNF(separated(), SoftmaxGuide(MLP(5, K))), "rows of shape"),
    "wrong rows": (lambda: separated()(torch.randn(4, 3)), r"shape \(4, 3\)"),
    "nothing to generate": (lambda: separated()(), "size"),
    "index without size": (
        lambda: separated()(torch.randn(4, D), index=torch.arange(4)),
        "without size",
    ),
    "wrong log-likelihoods": (lambda: separated()(torch.randn(4, D), torch.randn(4, 2)), "3"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_wrong(case: str) -> None:
    action, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_bounded_components_keep_their_units() -> None:
    layers = [Affine(D, batch_shape=(K,)), Logit(alpha=0.0)]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(D, K))), SoftmaxGuide(MLP(D, K)))
    x = torch.rand(30, D)
    vmonf.fit(x, epochs=1, progress=False)
    assert torch.equal(vmonf.model.standardizer.scale, torch.ones(D))
    with pytest.raises(ValueError, match="bounded"):
        vmonf.model.standardize_(x)
    z = torch.distributions.biject_to(vmonf.marginal().support)(torch.randn(100, D))
    assert ((z > 0) & (z < 1)).all()
    assert vmonf.log_prob(z).isfinite().all()


def test_scores_leave_the_param_store_alone() -> None:
    vmonf = pair(dist.Dirichlet(torch.ones(K)))
    x = torch.randn(5, D)
    for verb in (vmonf.log_prob, vmonf.predict, vmonf.elbo, vmonf.component_log_prob):
        verb(x)
    vmonf.predict(x, exact=True)
    vmonf.sample(3)
    assert not pyro.get_param_store().keys()


class WithPrior(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.prior = VMoNF(FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), "learned"))

    def forward(self) -> None:
        z = pyro.sample("z", self.prior.marginal())
        pyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=torch.ones(D))


def test_a_second_instance_of_a_larger_model_trains_the_marginal() -> None:
    for _ in range(2):  # a re-run cell, without clearing the param store
        model = WithPrior()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        guide = AutoNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
        for _ in range(3):
            svi.step()
        for name, parameter in model.named_parameters():
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("weights", ["learned", "random"])
def test_a_frozen_marginal_trains_nothing_and_can_be_used_again(weights: str) -> None:
    vmonf = pair(dist.Dirichlet(torch.ones(K)) if weights == "random" else weights)
    mixture = vmonf.marginal(frozen=True)

    def model() -> None:
        z = pyro.sample("z", mixture)
        pyro.sample("y", dist.Normal(z, 0.1).to_event(1), obs=torch.ones(D))

    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
    for _ in range(3):
        svi.step()
    assert not [k for k in pyro.get_param_store().keys() if not k.startswith("AutoNormal")]  # noqa: SIM118


def test_halves_are_swapped_and_used_ones_are_wrapped() -> None:
    vmonf, x = pair(), torch.randn(20, D)
    vmonf.fit(x, epochs=1, progress=False)
    vmonf.guide = SoftmaxGuide(MLP(D, K, hidden=(7,)))
    vmonf.fit(x, epochs=1, progress=False)
    vmonf.model = FlowMixture(Gaussian(D, K), "learned")
    assert vmonf.guide.model is vmonf.model
    vmonf.fit(x, epochs=1, progress=False)
    again = VMoNF(vmonf.model, SoftmaxGuide(MLP(D, K)))  # the model has run
    again.fit(x, epochs=1, progress=False)
    larger = Prior()
    larger.prior = again  # and so has the pair
    assert "prior.c" in poutine.trace(larger).get_trace(x).nodes
    with pytest.raises(ValueError, match="one logit"):
        again.guide = SoftmaxGuide(MLP(D, 9))
    with pytest.raises(TypeError, match="FlowMixture"):
        VMoNF(RealNVP(D, K, blocks=2))
    with pytest.raises(TypeError, match="SoftmaxGuide"):
        VMoNF(FlowMixture(RealNVP(D, K, blocks=2)), MLP(D, K))


def test_a_size_below_the_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 3 but x has 4 rows"):
        separated()(torch.randn(4, D), size=3)
