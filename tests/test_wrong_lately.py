"""Right values where a twelfth and a thirteenth reader found wrong ones.

More of the twelfth are with the tests of objectives and of dequantised images.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Beta

from pyro_vmonf import (
    MAF,
    FlowMixture,
    Gaussian,
    GroupWeights,
    LearnedWeights,
    MarkovMixture,
    MarkovVMoNF,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
    fit_em,
)
from pyro_vmonf.datasets import Pinwheel, TwoCircles
from pyro_vmonf.flows import Flow, GaussianMixtures, StandardNormal
from pyro_vmonf.interop.serving import Scores
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots.window import widths
from pyro_vmonf.report import touching
from pyro_vmonf.starts.images import image_clusters
from pyro_vmonf.starts.means import k_means
from pyro_vmonf.terms import Confidence
from pyro_vmonf.transforms import ActNorm, ContextAffine, Logit
from pyro_vmonf.weights import FixedWeights


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Weights.


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
    vmonf.fit(rows(40, 2), given=group, epochs=3, **options)
    assert weights.logits[2].equal(own)
    assert not weights.logits[:2].any(0).logical_not().any()


def test_rows_that_do_not_count_leave_weights_alone() -> None:
    own = torch.tensor([0.2, 0.3, 0.5]).log()
    for weights in (LearnedWeights(3, pseudo_count=2.0), LearnedWeights(3, rate=0.5)):
        with torch.no_grad():
            weights.logits.copy_(own)
        weights.update_(lambda: rows(4, 3).log_softmax(-1), torch.zeros(4), 1.0)
        torch.testing.assert_close(weights.logits, own, rtol=0, atol=0)
        weights.update_(lambda: rows(4, 3).log_softmax(-1), torch.ones(4), 1.0)
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


# Exact densities of the data sets.


@pytest.mark.parametrize("density", [Pinwheel(), Pinwheel(3, -0.4), TwoCircles()])
def test_whole_numbers_are_points(density: Pinwheel | TwoCircles) -> None:
    x = torch.tensor([[0, 1], [1, 0], [-1, 2]])
    assert density.log_prob(x).equal(density.log_prob(x.double()))
    if isinstance(density, Pinwheel):
        posterior = density.posterior(x)
        torch.testing.assert_close(posterior.sum(-1), torch.ones(3).double())
        assert density.posterior(torch.tensor([[torch.nan, 0.0]])).isnan().all()
    found = density.log_prob(torch.tensor([[torch.nan, 0.0], [0.3, 0.5]]))
    assert found.isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"expected points \(N, 2\)"):
        density.log_prob(torch.zeros(3, 3))


def test_wings_are_whole() -> None:
    with pytest.raises(ValueError, match="wings"):
        Pinwheel(2.5)  # type: ignore[arg-type]


# Posteriors.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_keeps_small_probabilities(dtype: torch.dtype) -> None:
    model = FlowMixture(Gaussian(1, 2))
    model.bank.set_(torch.tensor([[-8.0], [8.0]]), torch.ones(2, 1, 1))  # type: ignore[operator]
    vmonf = VMoNF(model, SoftmaxGuide(nn.Linear(1, 2))).to(dtype)
    with torch.no_grad():
        for parameter in vmonf.guide.parameters():
            parameter.zero_()
    x = torch.tensor([[7.0]]).to(dtype)
    exact = vmonf.posterior(x, exact=True)
    assert float(exact.log_prob(torch.tensor([0]))) == pytest.approx(-112, rel=1e-6)
    divergence = torch.distributions.kl_divergence(vmonf.posterior(x), exact)
    assert float(divergence) == pytest.approx(56 - math.log(2), rel=1e-6)
    proba = vmonf.predict_proba(x, exact=True)
    assert proba.equal(exact.logits.exp())


# Programs.


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


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", [RealNVP, MAF])
def test_mixtures_of_gaussians_are_a_base_of_flows_with_a_context(kind: Any) -> None:
    torch.manual_seed(0)
    bank = kind(2, 3, base=GaussianMixtures(2, 3, 2), context_features=1)
    vmonf = VMoNF(FlowMixture(bank, context_features=1))
    x, given = rows(5, 2).double(), rows(5, 1, seed=1).double()
    found = vmonf.log_prob(x, given=given)
    each = [vmonf.log_prob(x[i : i + 1], given=given[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(found, torch.cat(each), rtol=1e-12, atol=1e-12)
    line = torch.linspace(-12, 12, 401).double()
    grid = torch.cartesian_prod(line, line)
    mass = vmonf.log_prob(grid, given=given[:1].expand(len(grid), 1)).exp().sum()
    assert float(mass) * (24 / 400) ** 2 == pytest.approx(1.0, abs=1e-3)
    drawn, _ = vmonf.sample(5, given=given)
    assert drawn.shape == (5, 2)
    wide = GaussianMixtures(2, 3, 2)().expand((5, 3))
    assert wide.sample((4,)).shape == (4, 5, 3, 2)
    assert wide.mean.shape == wide.variance.shape == (5, 3, 2)
    assert wide.log_prob(x.unsqueeze(1)).shape == (5, 3)
    with pytest.raises(ValueError, match="the components last"):
        wide.expand((3, 5))


# Kinds of rows.


def test_sparse_rows_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    x = rows(20, 2).to_sparse()
    for verb in (vmonf.log_prob, vmonf.predict, lambda x: vmonf.fit(x, epochs=1, progress=False)):
        with pytest.raises(TypeError, match=r"sparse tensor; pass x.to_dense\(\)"):
            verb(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gaussians_need_their_digits(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="keep them in float32"):
        VMoNF(FlowMixture(Gaussian(2, 2))).to(dtype).log_prob(rows(5, 2))


def test_a_marginal_takes_whole_numbers() -> None:
    marginal = FlowMixture(Gaussian(2, 3)).marginal()
    x = torch.tensor([[1, 2], [0, -3]])
    assert marginal.log_prob(x).equal(marginal.log_prob(x.float()))


# Columns far from zero, and in small units.

FAR = 1.7e9  # seconds since 1970


def fitted(x: Tensor, count: int = 3) -> VMoNF:
    torch.manual_seed(1)
    vmonf = VMoNF(FlowMixture(Gaussian(x.shape[1], count), "learned"))
    fit_em(vmonf.model, x, seed=0)
    return vmonf


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_imputed_means_keep_their_digits_far_from_zero(scale: float) -> None:
    x = rows(300, 2).double() + 2 * torch.arange(300).remainder(2)[:, None]
    gap = x[:200].clone()
    gap[:, 0] = torch.nan
    shift = torch.tensor([FAR, 0.0], dtype=torch.float64)
    near = fitted(x * scale).impute(gap * scale).x / scale
    far = fitted(x + shift).impute(gap + shift).x - shift
    torch.testing.assert_close(far.double(), near.double(), rtol=0, atol=1e-5)


def test_moments_of_a_chain_far_from_zero() -> None:
    x = rows(20, 10, 1).double()
    found = []
    for shift in (0.0, FAR):
        torch.manual_seed(0)
        chain = MarkovMixture(Gaussian(1, 3), "learned", "learned")
        chain.standardize_(x + shift)
        whole = chain.mixture().lasting(5)
        found.append((whole.mean - shift, whole.variance))
    for near, far in zip(*found, strict=True):
        torch.testing.assert_close(far.double(), near.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_context_keeps_its_digits_or_is_refused(kind: torch.dtype) -> None:
    day = torch.arange(20240101, 20240129, dtype=torch.float64)[:, None]
    bank = Flow([ContextAffine(1, 1, batch_shape=(2,))], base=StandardNormal(1, 2))
    vmonf = VMoNF(FlowMixture(bank, context_features=1)).to(kind)
    x = torch.zeros(28, 1)
    assert vmonf.log_prob(x, given=day - 20240115).unique().numel() == 28
    vmonf.log_prob(x, given=torch.full((28, 1), 0.1).double())  # which float32 rounds, as any other
    if kind == torch.float64:
        assert vmonf.log_prob(x, given=day).unique().numel() == 28
        return
    for verb in (vmonf.log_prob, lambda x, given: vmonf.fit(x, given=given, epochs=1)):
        with pytest.raises(ValueError, match=r"20240114\.5, loses its digits in torch\.float32"):
            verb(x, given=day)


@pytest.mark.parametrize(("unit", "shift"), [(1.0, 0.0), (1e-9, 0.0), (20.0, FAR)])
def test_the_picture_of_one_feature_is_that_of_the_density(unit: float, shift: float) -> None:
    x = unit * rows(400, 1).double() + shift
    ax = fitted(x, 2).plot(x, ax=Figure().subplots())
    line = ax.lines[-1].get_xydata()
    assert len(np.unique(line[:, 0])) == 500
    assert np.trapezoid(line[:, 1], line[:, 0] - shift) == pytest.approx(1.0, abs=0.03)
    assert sum(bar.get_height() > 0 for bar in ax.patches) > 25


@pytest.mark.parametrize("width", [2, 3])
def test_windows_follow_the_units(width: int) -> None:
    x = rows(300, width).double()
    spans = []
    for unit in (1.0, 1e-9):
        figure = Figure()
        fitted(unit * x, 2).plot(unit * x, ax=figure.subplots())
        axes: list[Any] = figure.findobj(Axes)
        spans.append(np.array([np.ptp(ax.get_xlim()) / unit for ax in axes]))
    follows = np.isclose(*spans, rtol=0.05)
    stays = np.isclose(spans[0], 1e-9 * spans[1])  # axes without a feature
    assert follows.any()
    assert (follows | stays).all()


def test_empty_intervals_have_a_width() -> None:
    assert widths(np.array([2.0, 0.0, 1.0]), np.array([2.0, 0.0, 4.0])).tolist() == [2e-6, 1e-6, 3]


@pytest.mark.parametrize("unit", [1e-13, 1e-9, 1.0, 1e9])
def test_k_means_is_of_standardised_columns(unit: float) -> None:
    c = torch.arange(400).remainder(2)
    x = torch.stack((8 * c + rows(400), rows(400, seed=1)), 1).double()
    found = k_means(x * torch.tensor([unit, 1.0]).double(), 2, seed=0)
    assert accuracy(c, found) > 0.99


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e-12])
def test_the_error_of_an_inversion_is_in_standard_deviations(unit: float) -> None:
    x = unit * rows(200, 2).double()
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2)))
    vmonf.fit(x, epochs=1, seed=0, progress=False)
    assert 1e-8 < max(vmonf.report(x).inversion_error) < 1e-5


def test_small_and_large_sample_weights_warn() -> None:
    vmonf, x = VMoNF(FlowMixture(RealNVP(2, 2)), SoftmaxGuide(MLP(2, 2))), rows(60, 2)
    options: dict[str, Any] = {"epochs": 1, "seed": 0, "progress": False}
    with pytest.warns(UserWarning, match="a mean weight of 1e-07: gradients of this size vanish"):
        vmonf.fit(x, sample_weight=torch.full((60,), 1e-7), **options)
    with (
        pytest.warns(UserWarning, match=r"a mean weight of 1e\+30: gradients of this size have"),
        pytest.raises(FloatingPointError),
    ):
        vmonf.fit(x, sample_weight=torch.full((60,), 1e30), **options)
    zero = torch.ones(60)
    zero[::2] = 0
    vmonf.fit(x, sample_weight=zero, **options)


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


@pytest.mark.parametrize("alpha", [1e-6, 0.05])
def test_a_logit_keeps_the_digits_of_light_pixels(alpha: float) -> None:
    x = torch.tensor([[1.0], [0.999999], [0.5], [1e-6], [0.0]])
    logit = Logit(alpha=alpha)
    for mine, exact in zip(
        logit.inverse_and_log_det(x), logit.inverse_and_log_det(x.double()), strict=True
    ):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-6, atol=1e-6)
    z = logit.inverse_and_log_det(x)[0]
    torch.testing.assert_close(z[0], -z[-1])


def test_actnorm_takes_the_units_of_small_maps() -> None:
    layer = ActNorm(2)
    x = 1e-7 * rows(50, 2, 4, 4)
    layer.start_(x)
    z = layer.inverse_and_log_det(x)[0]
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=1e-2, atol=0)


# Starts and reports.


@pytest.mark.parametrize("count", [40, 90, 120])
def test_few_images_have_the_clusters_that_are_asked_for(count: int) -> None:
    features = np.eye(10)[np.arange(count) % 10] + 0.05 * np.random.default_rng(0).normal(
        size=(count, 10)
    )
    found, _ = image_clusters(features.astype(np.float32), 10)
    assert len(np.unique(found)) == 10


def test_columns_that_follow_from_others_are_named() -> None:
    x = rows(200, 2).double()
    both = torch.cat((x, 1.8 * x[:, :1] + 32, x @ torch.tensor([[2.0], [-1.0]]).double()), 1)
    for kind in (torch.float64, torch.float32):
        with pytest.warns(UserWarning, match="column 2, 3 follows from the columns before it"):
            VMoNF(FlowMixture(Gaussian(4, 2))).fit(both.to(kind), epochs=1, progress=False)
    near = torch.cat((x, x[:, :1] + 1e-3 * rows(200, 1, seed=3).double()), 1)
    VMoNF(FlowMixture(Gaussian(3, 2))).fit(near, epochs=1, progress=False)


def test_touching_clusters_do_not_depend_on_the_scale_of_weights() -> None:
    q = torch.tensor([[0.6, 0.4], [0.45, 0.55], [0.9, 0.1], [0.1, 0.9]])
    one, small = (touching(q, scale * torch.ones(4)) for scale in (1.0, 1e-20))
    assert one["touching"] == small["touching"]
    assert one["touching"]


def test_scores_of_a_row_with_a_gap_are_nan() -> None:
    torch.manual_seed(0)
    scores = Scores(VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3))))
    x = rows(3, 2)
    x[1, 0] = torch.nan
    before = torch.get_rng_state()
    log_prob, q = scores(x)
    assert log_prob.isnan().tolist() == [False, True, False]
    assert q.isnan().all(1).tolist() == [False, True, False]
    assert torch.get_rng_state().equal(before)
    whole, _ = scores(x[::2])
    torch.testing.assert_close(log_prob[::2], whole)
