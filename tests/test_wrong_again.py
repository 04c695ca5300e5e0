"""Answers that a third reader found wrong, and the right ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.distributions.transforms import affine_coupling
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    GroupWeights,
    MarkovMixture,
    MarkovVMoNF,
    RandomBank,
    RandomWeights,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
    fit_em,
)
from pyro_vmonf.dequantization import Dequantized
from pyro_vmonf.em import num_parameters
from pyro_vmonf.flows import AutoregressiveNSF, GaussianMixtures, Replicated, StandardNormal
from pyro_vmonf.guides import drawn
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.interop.sbc import simulation_based_calibration
from pyro_vmonf.interop.serving import export
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.metrics import bits_per_dim, kl_to_truth
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import AffineCoupling, BatchNorm, Logit
from pyro_vmonf.weights import GammaDirichlet, Weights

K, D = 3, 2
NO_EPOCHS: dict[str, Any] = {"epochs": 1, "progress": False, "seed": 0}


def rows(count: int = 60) -> Tensor:
    return torch.randn(count, D) + 4 * (torch.arange(count) % 3)[:, None]


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_an_end_of_the_interval_is_outside_of_it(alpha: float) -> None:
    layers = [AffineCoupling(2, batch_shape=(2,)), Logit(alpha=alpha)]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(2, 2))))
    margin = alpha / (1 - 2 * alpha)
    x = torch.tensor([[-margin, 0.5], [1 + margin, 0.5], [0.3, 0.2]])
    with pytest.warns(RuntimeWarning, match="rows 0, 1 lie outside"):
        log_prob = vmonf.log_prob(x)
    assert log_prob[:2].tolist() == [-torch.inf] * 2
    assert log_prob[2].isfinite()
    with pytest.warns(RuntimeWarning, match="rows 0, 1 lie outside"):
        assert vmonf.predict(x)[:2].tolist() == [-1, -1]


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    next(vmonf.guide.network.parameters()).data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="sum is nan"):
        vmonf.predict(rows())


def test_noise_alone_is_trained() -> None:
    class Noise(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            shape = 1 + super().forward(x / 256).exp()
            return dist.Beta(shape, torch.ones_like(x)).to_event(1)

    layers = [BatchNorm(4, batch_shape=(2,)), AffineCoupling(4, batch_shape=(2,)), Logit()]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(4, 2))))
    x, images = torch.rand(3, 4), torch.randint(256, (20, 4))
    before = vmonf.log_prob(x)
    dequantized = Dequantized(vmonf, Noise(4, 4))
    dequantized.fit(images, steps=3, seed=0, progress=False)
    assert torch.equal(vmonf.log_prob(x), before)
    assert all(p.grad is None and p.requires_grad for p in vmonf.parameters())
    dequantized.fit(images, steps=3, seed=0, progress=False, flows=True)
    assert not torch.equal(vmonf.log_prob(x), before)


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


@pytest.mark.filterwarnings("ignore")  # Lightning's own, as it is imported
def test_lightning_counts_labels_and_weights() -> None:
    from pyro_vmonf.interop.lightning import LightningMixture

    x, y, weight = rows(20), torch.arange(20) % K, torch.rand(20)
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    module = LightningMixture(vmonf)
    [batch] = DataLoader(TensorDataset(x, y, weight), 20)
    expected = module.loss(x, y, size=20, sample_weight=weight)
    assert torch.equal(module._loss(batch), expected)
    assert not torch.equal(module._loss([x, y]), expected)
    with pytest.raises(TypeError, match=r"expected x, \(x, y\) or"):
        module._loss((x, y, weight, weight))


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({"max_iter": np.int64(100), "flow": np.str_("auto")}, False),
        ({"learning_rate": np.float64(3e-3), "hidden": [32, 32]}, False),
        ({"max_iter": np.int64(99)}, True),
        ({"hidden": (32, 31)}, True),
    ],
)
def test_equal_options_ask_for_equal_fits(options: dict[str, Any], by_hand: bool) -> None:
    assert FlowMixtureClustering(2, **options)._by_hand() == by_hand


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


def test_calibration_wants_data_that_the_model_draws() -> None:
    model = FlowMixture(Gaussian(1, 2), dist.Dirichlet(torch.ones(2)))
    with pytest.raises(ValueError, match="'x' is observed"):
        simulation_based_calibration(
            partial(model, torch.zeros(5, 1)), lambda x: {}, replicates=2, progress=False
        )


@pytest.mark.parametrize("draw", [[2.0, 8.0], [-0.2, 1.2], [torch.nan, 0.8]])
def test_draws_of_the_weights_are_weights(draw: list[float]) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, 2), dist.Dirichlet(torch.ones(2))))
    with pytest.raises(ValueError, match="whose sum is 1"):
        to_inference_data(vmonf, rows(), posterior={"weights": torch.tensor([draw, draw])})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_responsibilities_have_a_row_with_something_in_it(value: float) -> None:
    model = FlowMixture(Gaussian(D, 2), "learned")
    with pytest.raises(ValueError, match="one of them positive"):
        fit_em(model, rows(), responsibilities=torch.full((60, 2), value))
    with pytest.raises(ValueError, match="tolerance is nan"):
        fit_em(model, rows(), tolerance=float("nan"))


def test_a_group_is_not_rounded_to_another_and_is_one_of_the_groups() -> None:
    model = FlowMixture(Gaussian(D, 2), GroupWeights(400, 2), context_features=1)
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D + 1, 2)))
    for group in (400.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="whole numbers from 0 to 399"):
            vmonf.predict(rows(1), given=torch.tensor([[group]]))
    with pytest.raises(ValueError, match="400 groups"):
        vmonf.bfloat16().sample(given=torch.tensor([[300.0]]))


def test_a_distribution_function_draws_nothing() -> None:
    marginal = FlowMixture(AutoregressiveNSF(1, 2)).marginal()
    before = torch.get_rng_state()
    marginal.icdf(marginal.cdf(torch.zeros(3, 1)).detach())
    assert torch.equal(torch.get_rng_state(), before)


def test_gaussians_side_by_side_have_a_distribution_function() -> None:
    parts = [Gaussian(1, 1).double(), Gaussian(1, 2).double()]
    marginal, x = FlowMixture(parts).marginal(), torch.linspace(-2, 2, 7, dtype=torch.float64)
    means = torch.cat([part.loc for part in parts])
    exact = torch.distributions.Normal(means.squeeze(-1), 1.0).cdf(x[:, None]).mean(1)
    torch.testing.assert_close(marginal.cdf(x[:, None]), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(marginal.icdf(exact).squeeze(-1), x, rtol=0, atol=1e-9)


def uniform(low: Any, high: Any) -> Any:
    return dist.Uniform(torch.tensor(low), torch.tensor(high)).to_event(1)


def test_bounded_components_of_a_list_are_fitted() -> None:
    vmonf = VMoNF(FlowMixture([uniform([0.0], [1.0]), uniform([0.5], [2.0])], "learned"))
    x = 2 * torch.rand(200, 1)
    vmonf.fit(x, epochs=100, lr=0.05, progress=False, seed=0)
    log_prob = vmonf.log_prob(x)
    assert log_prob.isfinite().all()
    assert float(log_prob.mean()) > float(VMoNF(FlowMixture(vmonf.model.bank)).log_prob(x).mean())


def test_the_support_of_a_mixture_is_that_of_any_component() -> None:
    alike = FlowMixture(uniform([[0.0], [0.0]], [[1.0], [1.0]])).marginal()
    apart = FlowMixture(uniform([[0.0], [2.0]], [[1.0], [3.0]])).marginal()
    x = torch.tensor([[0.5], [1.5], [2.5]])
    assert alike.support.check(x).tolist() == [True, False, False]  # type: ignore[union-attr]
    assert apart.support.check(x).tolist() == [True, False, True]  # type: ignore[union-attr]
    inner = torch.distributions.biject_to(apart.support)(torch.tensor([[-9.0], [9.0]]))
    assert ((inner > 0) & (inner < 3)).all()


def test_a_latent_of_a_bounded_mixture_has_its_shape_under_nuts() -> None:
    marginal = FlowMixture(uniform([[0.0] * 2] * K, [[1.0] * 2] * K)).marginal(frozen=True)

    def program() -> None:
        pyro.sample("z", marginal)

    mcmc = pyro.infer.MCMC(
        pyro.infer.NUTS(program), num_samples=5, warmup_steps=5, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (5, 2)
    assert ((draws > 0) & (draws < 1)).all()


@pytest.mark.parametrize(
    "weights", [np.array([0.2, 0.3, 0.5]), dist.Dirichlet(torch.ones(K, dtype=torch.float64))]
)
def test_weights_take_the_precision_of_the_bank(weights: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), weights), SoftmaxGuide(MLP(D, K)))
    vmonf.fit(rows(), epochs=2, progress=False, seed=0)
    assert vmonf.log_prob(rows()).dtype == torch.float32
    chain = MarkovMixture(Gaussian(D, K), weights, np.full((K, K), 1 / K))
    guide = SoftmaxGuide(MLP(D, K)) if isinstance(weights, np.ndarray) else None
    MarkovVMoNF(chain, guide).fit(rows().reshape(4, 15, D), **NO_EPOCHS)


def test_rows_may_all_have_gaps() -> None:
    broad = dist.StudentT(torch.tensor(3.0), torch.zeros(D), torch.ones(D)).to_event(1)
    vmonf = VMoNF(FlowMixture([Gaussian(D, 1), broad], "learned"))
    x = rows(10)
    x[:5, 1] = torch.nan
    together, alone = vmonf.predict_proba(x), vmonf.predict_proba(x[:5])
    torch.testing.assert_close(alone, together[:5])
    vmonf.fit(x, batch_size=2, **NO_EPOCHS)


def test_whole_numbers_have_no_density() -> None:
    with pytest.raises(ValueError, match="the components are discrete"):
        FlowMixture(dist.Poisson(torch.tensor([[1.0], [5.0]])).to_event(1))


def test_messages_of_chains_arrays_and_seeds() -> None:
    chain = MarkovVMoNF(MarkovMixture(Gaussian(D, 2)))
    with pytest.raises(TypeError, match=r"vmonf.alone\(\)"):
        export(chain)
    assert kl_to_truth(np.array([1.0, 2.0]), [0.5, 1.5]) == (0.5, 0.0)
    assert bits_per_dim(np.zeros(3), 784) == 8.0
    with pytest.raises(TypeError, match="whole number"):
        chain.sample(2, 3, seed=1.5)  # type: ignore[arg-type]


HIDING: dict[str, Callable[[FlowMixture], Any]] = {
    kind.__name__: lambda model, kind=kind: kind(poutine.block(model, hide=["c"]))  # type: ignore[misc]
    for kind in (
        *(AutoNormal, AutoDelta, AutoMultivariateNormal),
        *(AutoIAFNormal, AutoStructured, AutoGaussian),
    )
}
HIDING["function"] = lambda model: (
    lambda: pyro.sample(
        "weights",
        dist.Dirichlet(pyro.param("a", torch.ones(K), constraint=dist.constraints.positive)),
    )
)
HIDING["list"] = lambda model: [SoftmaxGuide(MLP(D, K)), HIDING["AutoNormal"](model)]


@pytest.mark.parametrize("name", HIDING)
def test_restarts_of_guides_that_build_themselves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "DRAWS", 8)
    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    vmonf = VMoNF(model, HIDING[name](model))
    for _ in range(2):  # before and after they are built
        history = vmonf.fit(rows(20), n_init=2, **NO_EPOCHS)
        assert len(history.restarts) == 2


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
    vmonf.fit(rows(), **NO_EPOCHS)
    assert vmonf.predict_proba(rows()).isfinite().all()


def test_a_partial_function_as_a_guide_is_saved_beside_its_program(tmp_path: Any) -> None:
    def program(scale: float) -> None:
        pyro.sample("weights", dist.Dirichlet(scale * torch.ones(K)))

    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    vmonf = VMoNF(model, partial(program, 2.0))
    vmonf.fit(rows(), **NO_EPOCHS)
    with pytest.warns(UserWarning, match="into=vmonf"):
        vmonf.save(tmp_path / "pair")


class Softmax(Weights):
    r"""Weights :math:`\mathrm{softmax}(z)` of a normal z."""

    in_program = True
    num_components = K

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(K))

    def forward(self, context: Tensor | None = None) -> Tensor:
        z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        return z.log_softmax(-1)

    def guide(self) -> None:
        pyro.sample("z", dist.Normal(self.loc, 0.1).to_event(1))

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.loc.log_softmax(-1)


@pytest.mark.parametrize("auto", [False, True])
def test_sites_of_ones_own_weights_are_observed(auto: bool) -> None:
    model = FlowMixture(Gaussian(D, K), Softmax())
    vmonf = VMoNF(model, HIDING["AutoNormal"](model) if auto else None)
    z = torch.tensor([0.0, 1.0, 2.0])
    known = vmonf.condition({"z": z})
    known.fit(rows(), **NO_EPOCHS)
    torch.testing.assert_close(known.model.weights.log_mean(), z.log_softmax(-1))
    site = poutine.trace(known.model).get_trace(rows()).nodes["z"]
    assert site["is_observed"]
    assert torch.equal(site["value"], z)
    x = rows(5)
    joint = z.log_softmax(-1) + known.component_log_prob(x)
    torch.testing.assert_close(known.log_prob(x), joint.logsumexp(-1))
    with pytest.raises(ValueError, match=r"weights draw \(z\)"):
        vmonf.condition({"weights": z})


def test_the_concentration_of_a_hierarchical_prior_is_observed(tmp_path: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), RandomWeights(GammaDirichlet(K))))
    known = vmonf.condition({"weights_concentration": torch.tensor(2.0)})
    known.fit(rows(), **NO_EPOCHS)
    nodes = poutine.trace(known.model).get_trace(rows()).nodes
    assert nodes["weights"]["fn"].concentration.tolist() == [2.0] * K
    drawn = poutine.trace(known.guide).get_trace(rows()).nodes
    assert "weights" in drawn
    assert "weights_concentration" not in drawn
    known.save(tmp_path / "pair")
    loaded = VMoNF.load(tmp_path / "pair")
    x = rows(5)
    assert torch.equal(loaded.predict_proba(x), known.predict_proba(x))
    both = {"weights_concentration": torch.tensor(2.0), "weights": torch.tensor([0.2, 0.3, 0.5])}
    exact = vmonf.condition(both).model.weights.log_mean().exp()
    torch.testing.assert_close(exact, both["weights"])
    with pytest.raises(ValueError, match="support of its prior"):
        vmonf.condition({"weights_concentration": torch.tensor(-2.0)})


def test_moments_without_a_closed_form_name_their_estimates() -> None:
    foreign = FlowMixture(Replicated(lambda: [affine_coupling(D)], K, features=D))
    own = FlowMixture(dist.Beta(torch.ones(K, 1), torch.ones(K, 1)).to_event(1))
    chain = MarkovMixture(Gaussian(D, K))
    for found in (foreign.marginal(), foreign.components()):
        for name in ("mean", "variance", "stddev"):
            with pytest.raises(NotImplementedError, match="mean_estimate"):
                getattr(found, name)
        with pytest.raises(NotImplementedError, match="entropy_estimate"):
            found.entropy()
    torch.testing.assert_close(own.components().entropy(), torch.zeros(K))
    with pytest.raises(NotImplementedError, match="mean_estimate"):
        own.marginal().cdf(torch.tensor([[0.3]]))
    with pytest.raises(NotImplementedError, match="entropy_estimate"):
        chain.marginal(steps=4).entropy()
    with pytest.raises(NotImplementedError, match=r"metrics.kl_divergence\(p, q"):
        torch.distributions.kl_divergence(foreign.marginal(), own.marginal())
    with pytest.raises(NotImplementedError, match="use probs, mode or entropy"):
        VMoNF(foreign).posterior(rows(3)).mean  # noqa: B018


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


@pytest.mark.parametrize("whole", [False, True])
def test_gaussians_of_torch_have_exact_gaps(whole: bool) -> None:
    loc, factor = (
        torch.randn(K, D).double(),
        torch.eye(D).double() + 0.3 * torch.ones(D, D).tril(-1),
    )
    normals = dist.Normal(loc, 1.0).to_event(1)
    correlated = dist.MultivariateNormal(loc, scale_tril=factor.expand(K, D, D))
    vmonf = VMoNF(FlowMixture(correlated if whole else normals)).double()
    x = torch.tensor([[torch.nan, 0.4], [0.4, torch.nan]]).double()
    found = vmonf.partial_log_prob(x)
    scale = torch.stack((factor[1].norm() if whole else torch.tensor(1.0).double(), factor[0, 0]))
    each = torch.distributions.Normal(loc.flip(1).T[:, None], scale[:, None, None])
    exact = each.log_prob(torch.tensor(0.4)).squeeze(1).logsumexp(-1) - torch.tensor(K).log()
    torch.testing.assert_close(found.log_prob, exact, rtol=1e-7, atol=0)
    assert (found.error == 0).all()


def joined(model: FlowMixture) -> AutoGuideList:
    def of_c(x: Tensor, **_: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(K) / K))

    guides = AutoGuideList(model)
    guides.append(HIDING["AutoNormal"](model))
    guides.append(of_c)
    return guides


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: AutoNormalMessenger(poutine.block(model, hide=["c"])), "runs the model"),
        (joined, r"pass a guide of c beside it: guide=\[SoftmaxGuide"),
        (lambda model: lambda data: None, "takes 'data'; expected arguments of the model: x, y"),
    ],
)
def test_guides_that_cannot_serve_say_why(make: Any, said: str) -> None:
    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    with pytest.raises((TypeError, ValueError), match=said):
        VMoNF(model, make(model)).fit(rows(), **NO_EPOCHS)


def test_a_function_may_take_what_there_is_none_of() -> None:
    def program(x: Tensor, y: Tensor | None) -> None:
        assert y is None
        pyro.sample("weights", dist.Dirichlet(torch.ones(K)))

    vmonf = VMoNF(FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K))), program)
    vmonf.fit(rows(), **NO_EPOCHS)


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


def test_a_bounded_part_of_a_list_has_no_density_outside_where_rows_have_gaps() -> None:
    box = dist.Uniform(torch.zeros(D), torch.ones(D), validate_args=True).to_event(1)
    normal = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    vmonf = VMoNF(FlowMixture([normal, box]))
    x = torch.tensor([[0.5, torch.nan], [3.0, torch.nan], [torch.nan, 0.2]])
    found = vmonf.component_log_prob(x)
    assert found[1, 1] == -torch.inf
    torch.testing.assert_close(found[[0, 2], 1], torch.zeros(2), rtol=0, atol=0.2)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor([0.5, 3.0, 0.2]))
    torch.testing.assert_close(found[:, 0], exact)
