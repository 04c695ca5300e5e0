"""Digits far from zero and in small or large units: right values where wrong ones were found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    MarkovMixture,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf.flows import Flow, StandardNormal
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts.means import k_means
from pyro_vmonf.transforms import ActNorm, ContextAffine, Logit
from pyro_vmonf.vmonf.table import rows_of
from tests.samples import UNTRAINED, X, normal_rows, sixty_rows, three_numpy_blobs

FAR = 1.7e9  # seconds since 1970


@pytest.mark.filterwarnings("ignore:column 0 holds whole numbers")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_whole_numbers_keep_their_digits() -> None:
    draw = np.random.default_rng(0)
    x = np.c_[np.repeat([0, 1], 100) * 90 + draw.normal(0, 12, 200), draw.normal(0, 1e5, 200)]
    x = (x + 1.7e9).round().astype(np.int64)
    options: dict[str, Any] = {"components": 2, "seed": 0, "minutes": 1e-6, "progress": False}
    whole, real = (VMoNF.from_data(rows, **options) for rows in (x, x.astype(float)))
    x = x.astype(float)
    np.testing.assert_allclose(whole.log_prob(x), real.log_prob(x), atol=1e-4)
    gappy = X.clone()
    gappy[0, 0] = torch.nan
    assert rows_of(gappy, None, None, None, 0).x.dtype == torch.float32


@pytest.mark.parametrize("offset", [0.0, 1e6, 1.7e9])
def test_moments_far_from_zero_keep_their_digits(offset: float) -> None:
    x = torch.cat((torch.randn(200, 1), torch.randn(200, 1) + 6)).double() + offset
    model = FlowMixture(Gaussian(1, 2), "learned")
    fit_em(model, x, seed=0)
    marginal = VMoNF(model.requires_grad_(False)).marginal()
    assert float(marginal.variance) == pytest.approx(float(x.var(correction=0)), rel=1e-3)
    assert float(marginal.mean) - offset == pytest.approx(float(x.mean()) - offset, abs=1e-2)


@pytest.mark.parametrize("weighted", [False, True])
def test_small_units_are_units(weighted: bool) -> None:
    x = np.concatenate((three_numpy_blobs(60)[:, :1], three_numpy_blobs(60)[:, :1] + 8))
    weight = np.where(np.arange(120) % 2, 1.0, 2.0) if weighted else None
    known = VMoNF(FlowMixture(Gaussian(1, 2))).double()
    known.model.standardize_(x, weight)
    for size in (1e-30, 1e-170):
        vmonf = VMoNF(FlowMixture(Gaussian(1, 2))).double()
        vmonf.model.standardize_(x * size, weight)
        scale = vmonf.model.standardizer.scale / size
        torch.testing.assert_close(scale, known.model.standardizer.scale, rtol=1e-12, atol=0)
    for size in (1e-46, 1e-170):
        with pytest.raises(ValueError, match=r"below the numbers of torch\.float32"):
            VMoNF(FlowMixture(Gaussian(1, 2))).fit(x * size, epochs=1, progress=False)
        with pytest.raises(ValueError, match=r"below the numbers of torch\.float32"):
            VMoNF.from_data(x * size, components=2, **UNTRAINED)


@pytest.mark.parametrize("verb", ["predict_proba", "fit"])
@pytest.mark.parametrize("constant", [-1e6, -1e8, -1e39])
def test_log_likelihoods_that_lose_their_digits_are_refused(constant: float, verb: str) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    y = torch.tensor([0.0, 0.33, -torch.inf], dtype=torch.float64).expand(30, 3)
    options: dict[str, Any] = {"epochs": 1, "progress": False} if verb == "fit" else {}
    with pytest.raises(ValueError, match="take off the largest of each row"):
        getattr(vmonf, verb)(sixty_rows(30), y + constant, **options)
    double = vmonf.double()
    if constant > -1e7:
        found = double.predict_proba(sixty_rows(30).double(), y + constant)
        torch.testing.assert_close(found, double.predict_proba(sixty_rows(30).double(), y))


@pytest.mark.parametrize("weight", [1e-46, 1e38])
@pytest.mark.parametrize("verb", ["fit", "from_data"])
def test_weights_that_a_dtype_cannot_hold_are_named(verb: str, weight: float) -> None:
    options: dict[str, Any] = {"sample_weight": np.full(60, weight), "progress": False}
    owner = VMoNF if verb == "from_data" else VMoNF(FlowMixture(Gaussian(2, 2)), ExactGuide())
    options |= {"components": 2} if verb == "from_data" else {}
    with pytest.raises(ValueError, match="divide them by their mean"):
        getattr(owner, verb)(sixty_rows(), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gaussians_need_their_digits(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="keep them in float32"):
        VMoNF(FlowMixture(Gaussian(2, 2))).to(dtype).log_prob(normal_rows(5, 2))


def fitted(x: Tensor, count: int = 3) -> VMoNF:
    torch.manual_seed(1)
    vmonf = VMoNF(FlowMixture(Gaussian(x.shape[1], count), "learned"))
    fit_em(vmonf.model, x, seed=0)
    return vmonf


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_imputed_means_keep_their_digits_far_from_zero(scale: float) -> None:
    x = normal_rows(300, 2).double() + 2 * torch.arange(300).remainder(2)[:, None]
    gap = x[:200].clone()
    gap[:, 0] = torch.nan
    shift = torch.tensor([FAR, 0.0], dtype=torch.float64)
    near = fitted(x * scale).impute(gap * scale).x / scale
    far = fitted(x + shift).impute(gap + shift).x - shift
    torch.testing.assert_close(far.double(), near.double(), rtol=0, atol=1e-5)


def test_moments_of_a_chain_far_from_zero() -> None:
    x = normal_rows(20, 10, 1).double()
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
    x = unit * normal_rows(400, 1).double() + shift
    ax = fitted(x, 2).plot(x, ax=Figure().subplots())
    line = ax.lines[-1].get_xydata()
    assert len(np.unique(line[:, 0])) == 500
    assert np.trapezoid(line[:, 1], line[:, 0] - shift) == pytest.approx(1.0, abs=0.03)
    assert sum(bar.get_height() > 0 for bar in ax.patches) > 25


@pytest.mark.parametrize("width", [2, 3])
def test_windows_follow_the_units(width: int) -> None:
    x = normal_rows(300, width).double()
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


@pytest.mark.parametrize("unit", [1e-13, 1e-9, 1.0, 1e9])
def test_k_means_is_of_standardised_columns(unit: float) -> None:
    c = torch.arange(400).remainder(2)
    x = torch.stack((8 * c + normal_rows(400), normal_rows(400, seed=1)), 1).double()
    found = k_means(x * torch.tensor([unit, 1.0]).double(), 2, seed=0)
    assert accuracy(c, found) > 0.99


@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e-12])
def test_the_error_of_an_inversion_is_in_standard_deviations(unit: float) -> None:
    x = unit * normal_rows(200, 2).double()
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=2)))
    vmonf.fit(x, epochs=1, seed=0, progress=False)
    assert 1e-8 < max(vmonf.report(x).inversion_error) < 1e-5


def test_small_and_large_sample_weights_warn() -> None:
    vmonf, x = (
        VMoNF(FlowMixture(RealNVP(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2))),
        normal_rows(60, 2),
    )
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
    x = 1e-7 * normal_rows(50, 2, 4, 4)
    layer.start_(x)
    z = layer.inverse_and_log_det(x)[0]
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=1e-2, atol=0)
