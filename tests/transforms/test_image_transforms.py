"""The contract of the transforms of images: inverses, log-determinants, batches, gradients."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.nn.convolutions import Convolution, to_maps
from pyro_vmonf.transforms import (
    ActNorm,
    AffineImageAutoregressive,
    AffineImageCoupling,
    FlowTransform,
    InvertibleConvolution,
    Logit,
    SplineImageAutoregressive,
    SplineImageCoupling,
    Split,
    Squeezed,
    squeeze,
    unsqueeze,
)

R, N, K = 2, 3, 3
Make = Callable[..., FlowTransform]
Shape = tuple[int, ...]
ONE, TWO, FOUR = (1, 4, 4), (2, 4, 2), (4, 2, 2)

# Name: the shape of an image, and the transform for a batch shape.
MAKES: dict[str, tuple[Shape, Make]] = {
    "actnorm": (TWO, lambda **k: ActNorm(2, **k)),
    "invertible_convolution": (FOUR, lambda **k: InvertibleConvolution(4, **k)),
    "affine-channels": (FOUR, lambda **k: AffineImageCoupling(FOUR, channels=4, **k)),
    "affine-channels-odd": (
        (3, 2, 2),
        lambda **k: AffineImageCoupling((3, 2, 2), channels=4, flip=True, **k),
    ),
    "affine-checkerboard": (
        ONE,
        lambda **k: AffineImageCoupling(ONE, pattern="checkerboard", channels=4, blocks=0, **k),
    ),
    "spline-channels": (TWO, lambda **k: SplineImageCoupling(TWO, channels=4, bins=3, **k)),
    "spline-checkerboard": (
        TWO,
        lambda **k: SplineImageCoupling(
            TWO, pattern="checkerboard", flip=True, channels=4, bins=3, **k
        ),
    ),
    "affine-autoregressive": (
        ONE,
        lambda **k: AffineImageAutoregressive(ONE, channels=4, blocks=1, first=5, **k),
    ),
    "spline-autoregressive": (
        TWO,
        lambda **k: SplineImageAutoregressive(
            TWO, backwards=True, channels=5, blocks=2, first=3, bins=3, **k
        ),
    ),
    "spline-trunk": (
        ONE,
        lambda **k: SplineImageAutoregressive(
            ONE, channels=4, blocks=1, first=3, bins=2, shared_trunk=True, **k
        ),
    ),
    "squeezed": (
        ONE,
        lambda **k: Squeezed(
            [AffineImageCoupling(FOUR, channels=4, **k), InvertibleConvolution(4, **k)]
        ),
    ),
    "split": (
        FOUR,
        lambda **k: Squeezed(
            [Split([InvertibleConvolution(8, **k)]), AffineImageCoupling((16, 1, 1), **k)]
        ),
    ),
    "logit": (TWO, lambda **k: Logit(alpha=0.05, event_dim=3, **k)),
}
BATCH_SHAPES: dict[str, Shape] = {
    "one": (),
    "single-component": (1,),
    "components": (K,),
    "restarts": (R, 1, K),
}
CASES = [f"{name}/{batch}" for name in MAKES for batch in BATCH_SHAPES]
WITH_PARAMETERS = [case for case in CASES if not case.startswith("logit")]


def build(case: str) -> tuple[FlowTransform, Shape]:
    name, batch = case.split("/")
    shape, make = MAKES[name]
    transform = make(batch_shape=BATCH_SHAPES[batch])
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return transform.eval(), shape


def images(case: str, *batch: int, data: bool = False) -> Tensor:
    shape = (*batch, *MAKES[case.split("/")[0]][0])
    return torch.rand(shape) if data and case.startswith("logit") else torch.randn(shape)


SIDES = [
    ("forward_and_log_det", "inverse_and_log_det"),
    ("inverse_and_log_det", "forward_and_log_det"),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_inverse_undoes_forward(case: str) -> None:
    transform, _ = build(case)
    for there, back in SIDES:
        start = images(case, N, 1, data=there.startswith("inverse"))
        end, log_det = getattr(transform, there)(start)
        returned, log_det_back = getattr(transform, back)(end)
        torch.testing.assert_close(returned, start.expand_as(returned), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(log_det_back, -log_det, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_inverse_undoes_forward_in_float32(case: str) -> None:
    transform, _ = build(case)
    start = images(case, N, 1)
    end, _ = transform.forward_and_log_det(start)
    returned, _ = transform.inverse_and_log_det(end)
    torch.testing.assert_close(returned, start.expand_as(returned), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_log_determinants_are_those_of_the_jacobian(case: str) -> None:
    transform, event_shape = build(case)
    shape = torch.broadcast_shapes((2, 1), transform.batch_shape)
    rows, numbers = math.prod(shape), math.prod(event_shape)
    for there, _ in SIDES:
        go = getattr(transform, there)
        start = images(case, *shape, data=there.startswith("inverse"))
        # Copy i of the images gives row i of the Jacobian, all in one backward pass.
        copies = start.expand(rows * numbers, *start.shape).clone().requires_grad_()
        outputs = go(copies)[0].reshape(rows * numbers, rows * numbers)
        (jacobian,) = torch.autograd.grad(outputs.diagonal().sum(), copies)
        jacobian = jacobian.reshape(rows, numbers, rows, numbers)
        own = torch.eye(rows, dtype=torch.bool)[:, None, :, None].expand_as(jacobian)
        assert (jacobian[~own] == 0).all()
        blocks = jacobian[own].reshape(rows, numbers, numbers)
        expected = torch.linalg.slogdet(blocks).logabsdet.reshape(shape)
        torch.testing.assert_close(go(start)[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_value_and_log_determinant_have_the_full_batch_shape(case: str) -> None:
    transform, event_shape = build(case)
    for rows in [(), (N, 1), (N, K), (R, N, 1)]:
        shape = torch.broadcast_shapes(rows, transform.batch_shape)
        for there, _ in SIDES:
            start = images(case, *rows, data=there.startswith("inverse"))
            value, log_det = getattr(transform, there)(start)
            assert value.shape == (*shape, *event_shape)
            assert log_det.shape == shape


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch", ["components", "restarts"])
@pytest.mark.parametrize("name", MAKES)
def test_a_batch_equals_a_loop_over_components(name: str, batch: str) -> None:
    case = f"{name}/{batch}"
    transform, event_shape = build(case)
    restarts: list[Any] = list(range(R)) if batch == "restarts" else [slice(None)]
    places, state = list(itertools.product(restarts, range(K))), transform.state_dict().items()
    components = []
    for r, k in places:
        alone = MAKES[name][1](batch_shape=())
        index = (r, 0, k) if batch == "restarts" else (k,)
        shapes = {key: held.shape for key, held in alone.state_dict().items()}
        alone.load_state_dict({key: v if v.shape == shapes[key] else v[index] for key, v in state})
        components.append(alone)
    every: list[Shape] = [(R, N, K), (N, 1), (K,), ()]
    for rows, (there, _) in itertools.product(every, SIDES):
        start = images(case, *rows, data=there.startswith("inverse"))
        value, log_det = getattr(transform, there)(start)
        value, log_det = value.expand(R, N, K, *event_shape), log_det.expand(R, N, K)
        start = start.expand(R, N, K, *event_shape)
        for alone, (r, k) in zip(components, places, strict=True):
            found = getattr(alone, there)(start[r, :, k])
            whole = value[r, :, k], log_det[r, :, k]
            torch.testing.assert_close(whole, found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("there", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("case", WITH_PARAMETERS)
def test_every_parameter_of_every_component_receives_a_gradient(case: str, there: str) -> None:
    transform, _ = build(case)
    value, log_det = getattr(transform, there)(images(case, 20, 1))
    ((value * torch.randn_like(value)).sum() + log_det.sum()).backward()
    for name, parameter in transform.named_parameters():
        assert parameter.grad is not None, name
        private = parameter.shape[: len(transform.batch_shape)] == transform.batch_shape
        count = transform.batch_shape.numel() if private else 1
        reached = parameter.grad.reshape(count, -1).any(-1)
        assert reached.all(), name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", ["affine-checkerboard", "spline-channels", "spline-autoregressive"]
)
def test_a_loop_over_components_equals_grouped_convolutions(name: str) -> None:
    _, make = MAKES[name]
    grouped, loop = make(batch_shape=(K,)), make(batch_shape=(K,), way="loop")
    loop.load_state_dict(grouped.state_dict())
    x = images(f"{name}/components", N, 1)
    for one, other in zip(grouped.inverse_and_log_det(x), loop.inverse_and_log_det(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("components")])
def test_copies_are_equal_and_apart(
    case: str, clone: Callable[[FlowTransform], FlowTransform]
) -> None:
    transform, _ = build(case)
    x = images(case, N, 1, data=True)
    expected = transform.inv(x)
    other = clone(transform)
    with torch.no_grad():
        for tensor in transform.parameters():
            tensor.zero_()
    assert other.inv(x).equal(expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("components")])
def test_the_density_behind_it_is_the_change_of_variables(case: str) -> None:
    transform, shape = build(case)
    normal = torch.distributions.Normal(torch.zeros(K, *shape), 1.0)
    flow = FlowDistribution(torch.distributions.Independent(normal, 3), [transform])
    x = images(case, N, 1, data=True)
    z, log_det = transform.inverse_and_log_det(x)
    assert flow.event_shape == shape
    assert flow.batch_shape == (K,)
    expected = normal.log_prob(z).flatten(-3).sum(-1) + log_det
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), -log_det, rtol=1e-9, atol=1e-9)
    assert flow.sample((2,)).shape == (2, K, *shape)


@pytest.mark.usefixtures("float64")
def test_convolutions_are_torch_s_own() -> None:
    for size in (1, 3, 5):
        ours = Convolution(3, 2, size=size, batch_shape=(K,))
        x = torch.randn(N, K, 3, 4, 5)
        for k in range(K):
            theirs = torch.nn.Conv2d(3, 2, size, padding=size // 2)
            theirs.weight.data, theirs.bias.data = ours.weight.data[k], ours.bias.data[k]
            torch.testing.assert_close(ours(x)[:, k], theirs(x[:, k]), rtol=1e-12, atol=1e-12)


def test_maps_go_there_and_back() -> None:
    for batch_shape in [(), (K,), (R, 1, K), (1,)]:
        x = torch.randn(R, N, K, 2, 3, 4)
        maps, restore = to_maps(x, batch_shape)
        assert maps.shape == (
            x[..., 0, 0, 0].numel() // math.prod(batch_shape),
            2 * math.prod(batch_shape),
            3,
            4,
        )
        assert restore(maps).equal(x)


def test_one_dimension_of_components_is_laid_out_without_a_copy() -> None:
    x = torch.randn(N, K, 2, 4, 4)
    maps, restore = to_maps(x, (K,))
    assert maps.data_ptr() == x.data_ptr()
    assert restore(maps).data_ptr() == x.data_ptr()


def test_squeeze_takes_squares_apart() -> None:
    x = torch.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    y = squeeze(x)
    assert y.shape == (8, 2, 2)
    assert y[:4, 0, 1].tolist() == [x[0, 0, 2], x[0, 0, 3], x[0, 1, 2], x[0, 1, 3]]
    assert unsqueeze(y).equal(x)
    with pytest.raises(ValueError, match="an even height and width are needed"):
        squeeze(torch.zeros(1, 3, 4))


def test_a_split_leaves_half_of_the_channels_alone() -> None:
    x = torch.randn(N, 4, 2, 2)
    z, _ = Split([InvertibleConvolution(2)]).inverse_and_log_det(x)
    assert z[:, 2:].equal(x[:, 2:])
    assert not z[:, :2].equal(x[:, :2])
    with pytest.raises(ValueError, match="3 channels; a split needs an even number"):
        Split([ActNorm(1)])(torch.zeros(3, 2, 2))


@pytest.mark.usefixtures("float64")
def test_a_pixel_depends_on_those_before_it_and_on_no_other() -> None:
    for backwards in (False, True):
        transform = SplineImageAutoregressive(ONE, channels=8, blocks=2, backwards=backwards)
        with torch.no_grad():
            for parameter in transform.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        jacobian = torch.autograd.functional.jacobian(transform.inv, torch.randn(ONE))
        jacobian = jacobian.reshape(16, 16)
        upper = jacobian.tril(-1) if backwards else jacobian.triu(1)
        assert (upper == 0).all()
        # With kernels this wide for images this small every pixel sees all before it.
        lower = jacobian.T if backwards else jacobian
        assert (lower[torch.ones(16, 16).tril(-1).bool()] != 0).all()


@pytest.mark.usefixtures("float64")
def test_channels_of_a_pixel_depend_on_those_before_them() -> None:
    transform = AffineImageAutoregressive(TWO, channels=6, blocks=1, first=3)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    jacobian = torch.autograd.functional.jacobian(transform.inv, torch.randn(TWO))
    in_order = jacobian.reshape(2, 8, 2, 8).permute(1, 0, 3, 2).reshape(16, 16)  # pixel, channel
    assert (in_order.triu(1) == 0).all()
    assert (in_order.reshape(8, 2, 8, 2)[range(8), 1, range(8), 0] != 0).all()


@pytest.mark.usefixtures("float64")
def test_actnorm_starts_from_each_component_s_own_rows() -> None:
    norm = ActNorm(2, batch_shape=(K,))
    x = torch.randn(200, 2, 3, 3) * torch.tensor([2.0, 0.1])[:, None, None] + 5
    x[100:] += 3
    weight = torch.zeros(200, K)
    weight[:100, 0], weight[100:, 1], weight[:, 2] = 1, 1, 0.5
    z = norm.start_(x.unsqueeze(1), weight)
    for k, rows in enumerate((slice(0, 100), slice(100, 200), slice(0, 200))):
        own = z[rows, k].transpose(0, 1).flatten(1)
        torch.testing.assert_close(own.mean(1), torch.zeros(2), atol=1e-12, rtol=0)
        torch.testing.assert_close(own.var(1, unbiased=False), torch.ones(2), atol=1e-9, rtol=0)
    before = norm.shift.clone()
    norm.start_(torch.randn(7, 1, 2, 3, 3))
    assert norm.shift.equal(before), "it started twice"
    norm.reset_parameters()
    assert not norm.started
    assert norm.shift.eq(0).all()


def test_a_constant_channel_keeps_its_scale() -> None:
    norm = ActNorm(1)
    assert norm.start_(torch.full((5, 1, 2, 2), 3.0)).eq(0).all()
    assert norm.log_scale.item() == 0


@pytest.mark.parametrize("name", ["affine-channels", "spline-autoregressive"])
def test_only_networks_that_train_compute_in_lower_precision(name: str) -> None:
    shape, make = MAKES[name]
    exact, low = make(batch_shape=(K,)), make(batch_shape=(K,), precision="bfloat16")
    low.load_state_dict(exact.state_dict())
    x = torch.randn(N, 1, *shape)
    expected, _ = exact.inverse_and_log_det(x)
    rough, log_det = low.train().inverse_and_log_det(x)
    assert rough.dtype == log_det.dtype == torch.float32
    assert 0 < (rough - expected).abs().max() < 0.02
    assert low.eval().inverse_and_log_det(x)[0].equal(expected)


@pytest.mark.usefixtures("float64")
def test_a_coupling_sees_the_image_that_it_is_conditioned_on() -> None:
    coupling = AffineImageCoupling(FOUR, channels=4, context_channels=2, batch_shape=(K,))
    context, x = torch.randn(N, 1, 2, 2, 2), torch.randn(N, 1, *FOUR)
    value, log_det = coupling.condition(context).inverse_and_log_det(x)
    assert value.shape == (N, K, *FOUR)
    other = context.clone()
    other[0] += 1
    changed, _ = coupling.condition(other).inverse_and_log_det(x)
    assert not changed[0].equal(value[0])
    assert changed[1:].equal(value[1:])
    returned, back = coupling.condition(context).forward_and_log_det(value)
    torch.testing.assert_close(returned, x.expand_as(returned), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, -log_det, rtol=1e-9, atol=1e-9)


def test_a_coupling_without_a_context_stays_itself() -> None:
    coupling = AffineImageCoupling(FOUR)
    assert coupling.condition(torch.randn(5, 3)) is coupling


def test_a_context_that_lacks_or_does_not_fit_gets_a_reason() -> None:
    coupling = AffineImageCoupling(FOUR, context_channels=2)
    with pytest.raises(ValueError, match=r"call condition\(images\) first"):
        coupling(torch.zeros(FOUR))
    with pytest.raises(ValueError, match="takes images of 2 channels"):
        coupling.condition(torch.zeros(3, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AffineImageCoupling(ONE), "a channel-wise coupling needs two channels"),
        (lambda: AffineImageCoupling(TWO, pattern="stripes"), "pattern is 'stripes'"),  # type: ignore[arg-type]
        (lambda: Convolution(1, 1, size=2), "kernels have an odd height and width"),
        (lambda: Convolution(1, 1, way="fast"), "expected 'grouped' or 'loop'"),  # type: ignore[arg-type]
        (lambda: SplineImageAutoregressive(ONE, first=4), "kernels have an odd width"),
        (lambda: SplineImageAutoregressive(TWO, channels=1), "at least the image's 2"),
        (lambda: ActNorm(0), "channels"),
        (lambda: AffineImageCoupling(TWO, precision="half"), "precision is 'half'"),  # type: ignore[arg-type]
    ],
)
def test_refuses_with_a_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
