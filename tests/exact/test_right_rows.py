"""Rows with gaps and of other kinds: right values where wrong ones were found."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF, fit_em
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.distributions.partial import observe
from pyro_vmonf.flows.functional import WithParameters
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from tests.samples import (
    HALF,
    NO_EPOCHS,
    clustered_rows,
    normal_rows,
    sixty_rows,
    three_numpy_blobs,
    two_blobs,
    two_gaussians,
)

K = 3
D = 2


@pytest.mark.parametrize("by", ["em", "start"])
def test_columns_of_a_frame_are_known_by_name_after_every_kind_of_fit(by: str) -> None:
    x = two_blobs() * torch.tensor([1.0, 0.1])
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    vmonf = two_gaussians("learned")
    if by == "em":
        fit_em(vmonf.model, frame, seed=0)
    else:
        warm_start_(vmonf.guide, frame, HALF, steps=20, seed=0)
    assert vmonf.model.feature_names == ("a", "b")
    assert torch.equal(vmonf.predict(frame), vmonf.predict(frame[["b", "a"]]))


def test_contexts_in_a_frame_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, context_features=2, blocks=2), context_features=2))
    given = pd.DataFrame(np.zeros((4, 2), np.float32), columns=["u", "v"])
    with pytest.raises(TypeError, match="the context is a frame"):
        vmonf.log_prob(torch.zeros(4, 2), given=given)


def test_rows_may_all_have_gaps() -> None:
    broad = dist.StudentT(torch.tensor(3.0), torch.zeros(D), torch.ones(D)).to_event(1)
    vmonf = VMoNF(FlowMixture([Gaussian(D, 1), broad], "learned"))
    x = clustered_rows(10)
    x[:5, 1] = torch.nan
    together, alone = vmonf.predict_proba(x), vmonf.predict_proba(x[:5])
    torch.testing.assert_close(alone, together[:5])
    vmonf.fit(x, batch_size=2, **NO_EPOCHS)


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


def test_a_bank_with_other_parameters_is_exact_where_the_bank_is() -> None:
    torch.manual_seed(0)
    bank, loc = Gaussian(2, 3), torch.randn(3, 2)
    x = torch.randn(6, 1, 2)
    x[..., 1] = torch.nan
    found = observe(WithParameters(bank, {"loc": loc}), x, draws=4)
    with torch.no_grad():
        bank.loc.copy_(loc)
    known = observe(bank(), x, draws=4)
    assert torch.equal(found.log_prob, known.log_prob)
    assert torch.equal(found.mean(), known.mean())
    assert not found.error.any()
    assert torch.equal(WithParameters(bank, {"loc": loc + 1}).mean, loc + 1)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_unsigned_numbers_are_numbers(kind: type) -> None:
    y = (np.arange(60) % 2).astype(kind)
    assert accuracy(y, y) == 1.0
    model = FlowMixture(Gaussian(2, 2), "learned")
    fit_em(model, three_numpy_blobs(60), sample_weight=y + kind(1), seed=0, max_iter=2)
    with pytest.raises(ValueError, match=r"beyond the largest of torch\.int64"):
        accuracy(np.full(60, 2**64 - 1, dtype=np.uint64), y)


def of_factor(slope: float, spread: float) -> VMoNF:
    """Return two components of :math:`x_2 = a x_1 + s z`, and an independent :math:`x_3`."""
    factor = torch.eye(3)
    factor[1, :2] = torch.tensor([slope, spread])
    return VMoNF(
        FlowMixture(MultivariateNormal(torch.zeros(2, 3), scale_tril=factor.expand(2, 3, 3)))
    )


def test_a_covariance_that_is_singular_to_rounding_is_named() -> None:
    near = torch.tensor([[0.5, torch.nan, 1.0]])
    assert of_factor(1.0, 1e-4).impute(near).x[0, 1] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="singular to rounding"):
        of_factor(1.0, 1e-9).impute(near)


def normal(z: Tensor, scale: float) -> Tensor:
    return -0.5 * (z / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 3e-4, 1e-5])
def test_columns_that_nearly_follow_from_others_keep_their_digits(
    spread: float, dtype: torch.dtype
) -> None:
    bank = Gaussian(3, 1)
    with torch.no_grad():
        bank.loc.zero_()
        bank.lower.zero_()
        bank.lower[0, 1, 0] = 1.0
        bank.log_scale.copy_(torch.tensor([[0.0, math.log(spread), 0.0]]))
    vmonf = VMoNF(FlowMixture(bank)).to(dtype)
    first, noise = sixty_rows(500, 1), sixty_rows(500, 1, seed=1)
    x = torch.cat((first, first + spread * noise, sixty_rows(500, 1, seed=2)), 1).to(dtype)
    gap = x.clone()
    gap[:, 2] = torch.nan
    one, two = x.double()[:, 0], x.double()[:, 1]
    expected = normal(one, 1.0) + normal(two - one, spread)
    found = vmonf.partial_log_prob(gap)
    torch.testing.assert_close(found.log_prob.double(), expected, rtol=0, atol=2e-5)
    gap = x.clone()
    gap[:, 0] = torch.nan  # the others say what it is
    shown = vmonf.impute(gap).x[:, 0].double()
    torch.testing.assert_close(shown, two / (1 + spread**2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["flows", "list"])
def test_a_row_without_an_entry_has_the_weights_and_no_density(kind: str) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.2, 0.8])
    heavy = dist.StudentT(torch.tensor(2.0), torch.zeros(2), 5 * torch.ones(2)).to_event(1)
    bank = [Gaussian(2, 1), heavy] if kind == "list" else RealNVP(2, 2, blocks=2)
    vmonf = VMoNF(FlowMixture(bank, weights))
    empty = torch.full((3, 2), torch.nan)
    found = vmonf.partial_log_prob(empty)
    torch.testing.assert_close(found.log_prob, torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.error, torch.zeros(3))
    torch.testing.assert_close(vmonf.predict_proba(empty, exact=True), weights.expand(3, 2))


@pytest.mark.parametrize("shape", [(33, 99), (99, 33), (51, 51)])
def test_rotations_keep_distances(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up, across = (side // 2 for side in shape)
    image = torch.zeros(50, 1, *shape)
    image[..., up - 1 : up + 2, across + 11 : across + 14] = 1.0
    turned = AffineImages((1, *shape), rotation=90.0, scale=0.0, shear=0.0, shift=0.0).distorted(
        image
    )
    rows_of, columns_of = torch.meshgrid(
        torch.arange(shape[0]) - up, torch.arange(shape[1]) - across, indexing="ij"
    )
    mass = turned.sum((1, 2, 3))
    y, x = ((turned[:, 0] * place).sum((1, 2)) / mass for place in (rows_of, columns_of))
    torch.testing.assert_close(
        (x.square() + y.square()).sqrt(), torch.full((50,), 12.0), rtol=0, atol=0.1
    )


def test_sparse_rows_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    x = normal_rows(20, 2).to_sparse()
    for verb in (vmonf.log_prob, vmonf.predict, lambda x: vmonf.fit(x, epochs=1, progress=False)):
        with pytest.raises(TypeError, match=r"sparse tensor; pass x.to_dense\(\)"):
            verb(x)


def test_a_marginal_takes_whole_numbers() -> None:
    marginal = FlowMixture(Gaussian(2, 3)).marginal()
    x = torch.tensor([[1, 2], [0, -3]])
    assert marginal.log_prob(x).equal(marginal.log_prob(x.float()))


def test_columns_that_follow_from_others_are_named() -> None:
    x = normal_rows(200, 2).double()
    both = torch.cat((x, 1.8 * x[:, :1] + 32, x @ torch.tensor([[2.0], [-1.0]]).double()), 1)
    for kind in (torch.float64, torch.float32):
        with pytest.warns(UserWarning, match="column 2, 3 follows from the columns before it"):
            VMoNF(FlowMixture(Gaussian(4, 2))).fit(both.to(kind), epochs=1, progress=False)
    near = torch.cat((x, x[:, :1] + 1e-3 * normal_rows(200, 1, seed=3).double()), 1)
    VMoNF(FlowMixture(Gaussian(3, 2))).fit(near, epochs=1, progress=False)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [3, 4])
def test_the_program_takes_no_dimension_more_than_that_of_the_rows(count: int, rows: int) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, count)), SoftmaxGuide(MLP(2, count)))
    elbo, x = TraceEnum_ELBO(max_plate_nesting=1), normal_rows(rows, 2)
    weight, y = torch.rand(rows), torch.zeros(rows, dtype=torch.long)
    for name, value in (
        ("sample_weight", weight[:, None]),
        ("y", y[:, None]),
        ("y", torch.zeros(rows, 1, count)),
    ):
        with pytest.raises(ValueError, match=rf"{name} has shape .*, more dimensions"):
            elbo.loss(vmonf.model, vmonf.guide, x, **{name: value})
    expected = elbo.loss(vmonf.model, vmonf.guide, x, y=y)
    for kind in (torch.uint8, torch.int8, torch.int32):
        assert elbo.loss(vmonf.model, vmonf.guide, x, y=y.to(kind)) == expected
    with pytest.raises(TypeError, match=r"y has dtype torch.bool; .* y.long\(\)"):
        elbo.loss(vmonf.model, vmonf.guide, x, y=y.bool())


def test_weights_of_outer_plates_lie_on_their_dimensions() -> None:
    model, x = FlowMixture(Gaussian(2, 3)), normal_rows(5, 4, 2)
    weight = torch.rand(5, 1)

    def program() -> None:
        with pyro.plate("outer", 5, dim=-2):
            model(x, sample_weight=weight)

    trace = poutine.trace(program).get_trace()
    site = trace.nodes[model.site("x")]
    assert torch.equal(site["scale"], weight)
