"""The contract of every transform: inverses, log-determinants against autograd, batches."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn

from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.transforms import (
    Affine,
    AffineAutoregressive,
    AffineCoupling,
    BatchNorm,
    FlowTransform,
    Logit,
    MixtureAutoregressive,
    MixtureOfGaussians,
    Permutation,
    PReLU,
    RationalQuadratic,
    ShiftAndScale,
    SplineAutoregressive,
    SplineCoupling,
    Standardize,
    alternating_mask,
    mixture_of_gaussians,
)

R, N, K, D = 2, 5, 3, 4
Make = Callable[..., FlowTransform]
Direction = Callable[[Tensor], tuple[Tensor, Tensor]]

BATCHED: dict[str, Make] = {
    "affine": lambda **k: Affine(D, **k),
    "affine-one": lambda **k: Affine(1, **k),
    "prelu": lambda **k: PReLU(D, **k),
    "batch_norm": lambda **k: BatchNorm(D, **k),
    "affine_coupling": lambda **k: AffineCoupling(D, hidden=(8,), activation="tanh", **k),
    "affine_coupling-mask": lambda **k: AffineCoupling(
        D, hidden=(), mask=[False, True, True, True], **k
    ),
    "affine_coupling-odd": lambda **k: AffineCoupling(5, hidden=(6, 7), **k),
    "affine_coupling-single": lambda **k: AffineCoupling(5, hidden=(8,), networks=1, **k),
    "spline_coupling": lambda **k: SplineCoupling(D, hidden=(8,), **k),
    "spline_coupling-two": lambda **k: SplineCoupling(2, hidden=(8,), bins=2, bound=2.0, **k),
    "affine_autoregressive": lambda **k: AffineAutoregressive(D, hidden=(8,), **k),
    "affine_autoregressive-order": lambda **k: AffineAutoregressive(
        D, hidden=(2,), order=(2, 0, 3, 1), activation="tanh", **k
    ),
    "affine_autoregressive-one": lambda **k: AffineAutoregressive(1, hidden=(8,), **k),
    "spline_autoregressive": lambda **k: SplineAutoregressive(
        D, hidden=(8, 8), order=torch.arange(D - 1, -1, -1), **k
    ),
    "spline_autoregressive-one": lambda **k: SplineAutoregressive(1, hidden=(8,), **k),
    "mixture_autoregressive": lambda **k: MixtureAutoregressive(
        D, hidden=(6,), mixtures=3, activation="tanh", **k
    ),
    "permutation": lambda **k: Permutation(D, **k),
    "standardize": lambda **k: Standardize((D,), **k),
    "logit": lambda **k: Logit(alpha=0.05, **k),
}
BATCH_SHAPES: dict[str, tuple[int, ...]] = {
    "one": (),
    "single-component": (1,),
    "components": (K,),
    "restarts": (R, 1, K),
}
CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    f"{name}-{b}": (BATCHED[name], BATCH_SHAPES[b]) for name in BATCHED for b in BATCH_SHAPES
}
WITHOUT_PARAMETERS = ("batch_norm", "permutation", "standardize", "logit")
WITH_PARAMETERS = [name for name in BATCHED if name not in WITHOUT_PARAMETERS]


def build(name: str) -> FlowTransform:
    make, batch_shape = CASES[name]
    return perturbed(make(batch_shape=batch_shape) if batch_shape else make())


@torch.no_grad()
def perturbed(transform: FlowTransform) -> FlowTransform:
    """Move a transform away from where it starts, and give it statistics where it keeps some."""
    for parameter in transform.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    if isinstance(transform, BatchNorm):
        transform.running_mean.normal_()
        transform.running_variance.uniform_(0.3, 3.0)
    if isinstance(transform, Standardize):
        transform.fit_(torch.randn(20, D) * torch.tensor([0.1, 1.0, 3.0, 20.0]) + 5)
        transform.loc.add_(torch.randn_like(transform.loc))
        transform.scale.mul_(torch.rand_like(transform.scale) + 0.5)
    return transform.eval()


def features_of(transform: FlowTransform) -> int:
    return getattr(transform, "features", D)


def points(transform: FlowTransform, *shape: int, data: bool = False) -> Tensor:
    shape = (*shape, features_of(transform))
    return torch.rand(shape) if data and isinstance(transform, Logit) else torch.randn(shape)


def directions(transform: FlowTransform) -> Iterator[tuple[Direction, Direction, bool]]:
    yield transform.forward_and_log_det, transform.inverse_and_log_det, False
    yield transform.inverse_and_log_det, transform.forward_and_log_det, True


def check_round_trip(name: str, tolerance: float) -> None:
    transform = build(name)
    for go, back, data in directions(transform):
        start = points(transform, N, 1, data=data)
        end, log_det = go(start)
        returned, log_det_back = back(end)
        torch.testing.assert_close(
            returned, start.expand_as(returned), rtol=tolerance, atol=tolerance
        )
        torch.testing.assert_close(log_det_back, -log_det, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_inverse_undoes_forward_in_float64(name: str) -> None:
    check_round_trip(name, 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_inverse_undoes_forward_in_float32(name: str) -> None:
    check_round_trip(name, 1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_log_determinants_are_those_of_the_jacobian(name: str) -> None:
    transform = build(name)
    shape = torch.broadcast_shapes((3, 1), transform.batch_shape)
    rows, features = math.prod(shape), features_of(transform)
    for go, _, data in directions(transform):
        start = points(transform, *shape, data=data)
        # Copy i of the rows gives row i of the Jacobian, all in one backward pass.
        copies = start.expand(rows * features, *start.shape).clone().requires_grad_()
        outputs = go(copies)[0].reshape(rows * features, rows * features)
        (jacobian,) = torch.autograd.grad(outputs.diagonal().sum(), copies)
        jacobian = jacobian.reshape(rows, features, rows, features)
        own = torch.eye(rows, dtype=torch.bool)[:, None, :, None].expand_as(jacobian)
        assert (jacobian[~own] == 0).all()
        blocks = jacobian[own].reshape(rows, features, features)
        expected = torch.linalg.slogdet(blocks).logabsdet.reshape(shape)
        torch.testing.assert_close(go(start)[1], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_value_and_log_determinant_have_the_full_batch_shape(name: str) -> None:
    transform = build(name)
    features = features_of(transform)
    for rows in [(), (N, 1), (N, K), (R, N, 1), (0, 1)]:
        shape = torch.broadcast_shapes(rows, transform.batch_shape)
        for go, _, data in directions(transform):
            value, log_det = go(points(transform, *rows, data=data))
            assert value.shape == (*shape, features)
            assert log_det.shape == shape


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_a_distribution_behind_the_transform_expands(name: str) -> None:
    transform = build(name)
    zeros = torch.zeros(*transform.batch_shape, features_of(transform))
    base = torch.distributions.Independent(torch.distributions.Normal(zeros, 1.0), 1)
    flow = FlowDistribution(base, [transform])
    shape = torch.broadcast_shapes((2, 1, N, K), flow.batch_shape)
    wide = flow.expand(shape)
    assert wide.batch_shape == shape
    x = points(transform, *shape, data=True)
    torch.testing.assert_close(wide.log_prob(x), flow.log_prob(x), rtol=1e-12, atol=1e-12)
    assert wide.sample((3,)).shape == (3, *shape, features_of(transform))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][1] == ()])
def test_a_shared_transform_equals_a_loop_over_rows(name: str) -> None:
    transform = build(name)
    for go, _, data in directions(transform):
        start = points(transform, N, K, data=data)
        value, log_det = go(start)
        for index in itertools.product(range(N), range(K)):
            one, log_det_one = go(start[index])
            torch.testing.assert_close(value[index], one, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(log_det[index], log_det_one, rtol=1e-12, atol=1e-12)


def component(transform: FlowTransform, make: Make, index: tuple[int, ...]) -> FlowTransform:
    """The transform at one index of the batch, alone."""
    alone = make()
    shapes = {key: value.shape for key, value in alone.state_dict().items()}
    state = transform.state_dict().items()
    alone.load_state_dict({k: v if v.shape == shapes[k] else v[index] for k, v in state})
    return alone.eval()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch", ["components", "restarts"])
@pytest.mark.parametrize("name", BATCHED)
def test_a_batch_equals_a_loop_over_components(name: str, batch: str) -> None:
    transform = build(f"{name}-{batch}")
    restarts: list[Any] = list(range(R)) if batch == "restarts" else [slice(None)]
    places = list(itertools.product(restarts, range(K)))
    indices = [(r, 0, k) if batch == "restarts" else (k,) for r, k in places]
    components = [component(transform, BATCHED[name], index) for index in indices]
    shapes: list[tuple[int, ...]] = [(R, N, K), (N, 1), (K,), ()]
    sides = ("forward_and_log_det", "inverse_and_log_det")
    for rows, side in itertools.product(shapes, sides):
        start = points(transform, *rows, data=side == "inverse_and_log_det")
        value, log_det = getattr(transform, side)(start)
        value, log_det = value.expand(R, N, K, -1), log_det.expand(R, N, K)
        start = start.expand(R, N, K, -1)
        for alone, (r, k) in zip(components, places, strict=True):
            found = getattr(alone, side)(start[r, :, k])
            whole = value[r, :, k], log_det[r, :, k]
            torch.testing.assert_close(whole, found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", ["forward_and_log_det", "inverse_and_log_det"])
@pytest.mark.parametrize("batch", BATCH_SHAPES)
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_every_parameter_of_every_component_receives_a_gradient(
    name: str, batch: str, side: str
) -> None:
    transform = build(f"{name}-{batch}")
    value, log_det = getattr(transform, side)(points(transform, 50, 1))
    ((value * torch.randn_like(value)).sum() + log_det.sum()).backward()
    for parameter_name, parameter in transform.named_parameters():
        # A single feature has none before it: only the last layer's bias says anything.
        silent = "autoregressive-one" in name and not parameter_name.endswith("1.bias")
        # One feature leaves the triangles of an affine map empty.
        silent |= name == "affine-one" and parameter_name in ("lower", "upper")
        if not silent:
            assert parameter.grad is not None, parameter_name
            reached = parameter.grad.reshape(transform.batch_shape.numel(), -1).any(-1)
            assert reached.all(), parameter_name


@pytest.mark.parametrize("name", CASES)
def test_state_dict_restores_the_transform(name: str) -> None:
    transform, other = build(name), build(name)
    start = points(transform, N, K)
    expected = transform.forward_and_log_det(start)
    other.load_state_dict(transform.state_dict())
    for one, wanted in zip(other.forward_and_log_det(start), expected, strict=True):
        assert one.equal(wanted)


CONFIGURATIONS: dict[str, tuple[Callable[[], FlowTransform], Callable[[], FlowTransform]]] = {
    "permutation": (
        lambda: Permutation(D, order=(1, 2, 3, 0)),
        lambda: Permutation(D),
    ),
    "affine_autoregressive": (
        lambda: AffineAutoregressive(D, hidden=(8,), order=(2, 0, 3, 1)),
        lambda: AffineAutoregressive(D, hidden=(8,)),
    ),
    "affine_coupling": (
        lambda: AffineCoupling(D, hidden=(8,), mask=alternating_mask(D, flip=True)),
        lambda: AffineCoupling(D, hidden=(8,)),
    ),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_state_brings_its_order_and_mask(name: str) -> None:
    make, make_other = CONFIGURATIONS[name]
    transform, other = perturbed(make()), make_other()
    other.load_state_dict(transform.state_dict())
    z = torch.randn(N, D)
    x, _ = transform.forward_and_log_det(z)
    torch.testing.assert_close(other.forward_and_log_det(z)[0], x)
    torch.testing.assert_close(other.inverse_and_log_det(x)[0], z)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("name", CASES)
def test_copies_are_equal_and_apart(
    name: str, clone: Callable[[FlowTransform], FlowTransform]
) -> None:
    transform = build(name)
    start = points(transform, N, K)
    expected = transform(start)
    _ = transform.inv(expected)
    other = clone(transform)
    assert other(start).equal(expected)
    with torch.no_grad():
        for tensor in itertools.chain(transform.parameters(), transform.buffers()):
            tensor.zero_()
    assert other(start).equal(expected)


@pytest.mark.parametrize("name", CASES)
def test_a_transform_is_a_module_among_modules(name: str) -> None:
    transform = build(name)
    assert {transform: name}[transform] == name
    held = nn.ModuleList([transform])
    assert set(map(id, held.parameters())) == set(map(id, transform.parameters()))
    assert type(transform).__name__ in repr(held)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_the_torch_interface_agrees(name: str) -> None:
    transform = build(name)
    z = points(transform, N, K)
    x, log_det = transform.forward_and_log_det(z)
    torch.testing.assert_close(transform(z), x)
    torch.testing.assert_close(transform.inv(x), transform.inverse_and_log_det(x)[0])
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), log_det, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        transform.inv.log_abs_det_jacobian(x, z), -log_det, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_no_value_outlives_a_change_of_the_parameters(name: str, cached: bool) -> None:
    transform = build(f"{name}-components")
    transform = transform.with_cache(1) if cached else transform
    x = points(transform, N, 1)
    z = transform(x)
    before = transform.inv(x), transform(x), transform.log_abs_det_jacobian(x, z)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.1)
    after = transform.inv(x), transform(x), transform.log_abs_det_jacobian(x, z)
    for one, other in zip(before[:2], after[:2], strict=True):
        assert not one.equal(other)
    torch.testing.assert_close(after[2], -transform.inverse_and_log_det(z)[1])


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_full_batch_training_goes_backward_at_every_step(name: str) -> None:
    transform = build(f"{name}-components")
    x = 2 * points(transform, 50, 1) + 1
    optimizer = torch.optim.SGD(transform.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        z = transform.inv(x)
        loss = (0.5 * z.square().sum(-1) + transform.log_abs_det_jacobian(z, x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.usefixtures("float64")
def test_an_affine_map_is_its_matrix() -> None:
    transform = perturbed(Affine(D, batch_shape=(K,)))
    z = torch.randn(N, 1, D)
    expected = torch.einsum("kij,nj->nki", transform.matrix(), z[:, 0]) + transform.shift
    torch.testing.assert_close(transform(z), expected)


@pytest.mark.usefixtures("float64")
def test_affine_maps_start_at_different_rotations() -> None:
    matrix = Affine(D, batch_shape=(K,)).matrix()
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(D).expand(K, D, D))
    assert not torch.isclose(matrix[0], matrix[1]).any()


def test_a_prelu_bends_below_zero() -> None:
    transform = PReLU(2, slope=0.25, batch_shape=(K,))
    x, log_det = transform.forward_and_log_det(torch.tensor([[-2.0, 3.0]]))
    torch.testing.assert_close(x, torch.tensor([-0.5, 3.0]).expand(K, 2))
    torch.testing.assert_close(log_det, torch.full((K,), math.log(0.25)))


def test_a_permutation_moves_features() -> None:
    transform = Permutation(3, order=(2, 0, 1))
    assert transform(torch.tensor([10.0, 20.0, 30.0])).tolist() == [30.0, 10.0, 20.0]
    assert sorted(Permutation(50).order.tolist()) == list(range(50))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("make", [AffineCoupling, SplineCoupling])
def test_a_coupling_leaves_the_masked_features(
    make: type[AffineCoupling | SplineCoupling], flip: bool
) -> None:
    mask = alternating_mask(D, flip)
    transform = perturbed(make(D, mask=mask, batch_shape=(K,)))
    z = torch.randn(N, 1, D)
    x = transform(z)
    assert (x[..., mask] == z[..., mask]).all()
    assert (x[..., ~mask] != z[..., ~mask]).all()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
@pytest.mark.parametrize("make", [AffineAutoregressive, SplineAutoregressive])
def test_an_autoregressive_map_is_triangular_in_its_order(
    make: type[AffineAutoregressive | SplineAutoregressive], order: tuple[int, ...]
) -> None:
    transform = perturbed(make(D, order=order))
    for go in (transform, transform.inv):
        jacobian = torch.autograd.functional.jacobian(go, torch.randn(D))
        jacobian = jacobian[list(order)][:, list(order)]
        assert (jacobian.triu(1) == 0).all()
        assert (jacobian.diagonal() > 0).all()
        assert jacobian.tril(-1).any()


def test_standardize_takes_mean_and_spread() -> None:
    x = torch.randn(200, 2, 3, 4) * torch.rand(2, 3, 4) + torch.randn(2, 3, 4)
    transform = Standardize((2, 3, 4))
    assert transform(x).equal(x)
    assert not transform.fitted
    transform.fit_(x)
    assert transform.fitted
    z, log_det = transform.inverse_and_log_det(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.ones(2, 3, 4))
    torch.testing.assert_close(log_det, -transform.scale.log().sum().expand(200))
    torch.testing.assert_close(transform(z), x)


@pytest.mark.parametrize("constant", [0.0, 7.0, 1e6, 0.1])
def test_standardize_leaves_a_constant_column_unscaled(constant: float) -> None:
    x = torch.stack((torch.full((1000,), constant), torch.randn(1000)), -1)
    transform = Standardize((2,))
    transform.fit_(x)
    assert transform.scale[0] == 1
    assert transform.scale[1] != 1


def test_standardize_takes_no_rounding_for_a_spread() -> None:
    x = torch.tensor([1e6, 1e6 + 0.0625] * 50).unsqueeze(1)
    transform = Standardize((1,))
    transform.fit_(x)
    assert transform.scale.item() == 1
    transform.fit_(x * torch.tensor([1.0, 1.001] * 50).unsqueeze(1))
    assert transform.scale.item() == pytest.approx(500, rel=1e-3)


def test_logit_covers_a_little_more_than_the_unit_interval() -> None:
    transform = Logit(alpha=0.05)
    ends, log_det = transform.inverse_and_log_det(torch.tensor([[0.0], [1.0]]))
    assert ends.isfinite().all()
    assert log_det.isfinite().all()
    assert transform.codomain.check(transform(torch.linspace(-8, 8, 50)[:, None])).all()
    assert not transform.codomain.check(torch.tensor([1.1]))


@pytest.mark.parametrize("rows", [(20, 1), (20, K)])
def test_batch_norm_normalises_each_component_in_training(rows: tuple[int, ...]) -> None:
    transform = BatchNorm(D, momentum=0.25, epsilon=1e-6, batch_shape=(K,)).train()
    x = torch.randn(*rows, D) * torch.arange(1.0, 1 + rows[1])[:, None] + 3
    z, log_det = transform.inverse_and_log_det(x)
    x = x.expand(20, K, D)
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    torch.testing.assert_close(z, (x - mean) / (variance + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)
    expected = -0.5 * (variance + 1e-6).log().sum(-1)
    torch.testing.assert_close(log_det, expected.expand(20, K))
    torch.testing.assert_close(transform.running_mean, 0.25 * mean)
    torch.testing.assert_close(transform.running_variance, 0.75 + 0.25 * variance)


def test_batch_norm_of_restarts_keeps_them_apart() -> None:
    transform = BatchNorm(D, momentum=1.0, batch_shape=(R, 1, K)).train()
    x = torch.randn(R, 20, K, D) * torch.rand(R, 1, K, D)
    transform.inverse_and_log_det(x)
    torch.testing.assert_close(transform.running_mean, x.mean(1, keepdim=True))
    variance = x.var(1, unbiased=False, keepdim=True)
    torch.testing.assert_close(transform.running_variance, variance)


def test_a_shared_batch_norm_pools_the_components() -> None:
    transform = BatchNorm(D, momentum=1.0).train()
    x = torch.randn(20, K, D)
    transform.inverse_and_log_det(x)
    torch.testing.assert_close(transform.running_mean, x.mean((0, 1)))
    variance = x.flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(transform.running_variance, variance)


def test_batch_norm_keeps_its_statistics_in_evaluation_and_towards_data() -> None:
    transform = BatchNorm(D, batch_shape=(K,)).eval()
    start = copy.deepcopy(transform.state_dict())
    x = torch.randn(20, 1, D) + 4
    transform.inverse_and_log_det(x)
    transform.train().forward_and_log_det(x)
    for key, value in transform.state_dict().items():
        assert value.equal(start[key]), key


@pytest.mark.usefixtures("float64")
def test_running_statistics_approach_those_of_the_data() -> None:
    transform = BatchNorm(1, momentum=0.5).train()
    x = torch.randn(100, 1) * 3 + 7
    for _ in range(60):
        transform.inverse_and_log_det(x)
    trained, _ = transform.inverse_and_log_det(x)
    evaluated, _ = transform.eval().inverse_and_log_det(x)
    torch.testing.assert_close(evaluated, trained)
    torch.testing.assert_close(transform(evaluated), x)


def spline_parameters(bins: int, spread: float, dtype: torch.dtype) -> Tensor:
    """Parameters of fifty splines."""
    return torch.randn(50, 3 * bins - 1, 1, dtype=dtype) * spread


def steepest_slope(theta: Tensor, bins: int) -> Tensor:
    """An upper bound of each spline's slope: twice that of a chord, or that of a knot."""
    widths, heights, slopes = theta.double().split((bins, bins, bins - 1), -2)
    width, height = (1e-3 + (1 - 1e-3 * bins) * raw.softmax(-2) for raw in (widths, heights))
    knots = torch.nn.functional.softplus(slopes + 1)
    return torch.maximum(2 * (height / width).amax(-2), knots.amax(-2))


SPREADS = [0.0, 1.0, 10.0, 100.0, 1e4]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bins", [1, 2, 8])
@pytest.mark.parametrize("spread", SPREADS)
def test_splines_are_the_identity_outside_their_box(spread: float, bins: int) -> None:
    spline = RationalQuadratic(bins, 3.0)
    theta = spline_parameters(bins, spread, torch.float64)
    outside = torch.tensor([-1e6, -3.5, -3.0, 3.0, 3.5, 1e6])
    for go in (spline.forward, spline.inverse):
        value, log_slope = go(outside, theta)
        assert (value == outside).all()
        assert (log_slope == 0).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("spread", SPREADS[:3])
def test_splines_and_their_slopes_are_continuous_at_the_edge(spread: float) -> None:
    spline = RationalQuadratic(8, 3.0)
    theta = spline_parameters(8, spread, torch.float64)
    near = torch.tensor([-3.0, 3.0]) * (1 - 1e-13)
    for go in (spline.forward, spline.inverse):
        value, log_slope = go(near, theta)
        torch.testing.assert_close(value, near.expand_as(value), rtol=0, atol=1e-9)
        torch.testing.assert_close(log_slope, torch.zeros_like(log_slope), rtol=0, atol=1e-6)


def test_a_spline_starts_as_the_identity() -> None:
    spline = RationalQuadratic(8, 3.0)
    z = torch.linspace(-4, 4, 101)
    x, log_slope = spline.forward(z, torch.zeros(23, 1))
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(log_slope, torch.zeros_like(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", SPREADS)
def test_extreme_splines_stay_finite_and_monotone(spread: float, dtype: torch.dtype) -> None:
    spline = RationalQuadratic(8, 5.0)
    theta = spline_parameters(8, spread, dtype).requires_grad_()
    line = torch.linspace(-6, 6, 1001, dtype=dtype, requires_grad=True)
    for go in (spline.forward, spline.inverse):
        value, log_slope = go(line, theta)
        assert value.isfinite().all()
        assert log_slope.isfinite().all()
        steepest = float(log_slope.detach().max().exp())
        rounding = 0.0 if spread <= 1 else 8 * torch.finfo(dtype).eps * 5 * (1 + steepest)
        assert (value.diff(dim=-1) >= -rounding).all()
        for gradient in torch.autograd.grad(value.sum() + log_slope.sum(), (theta, line)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0, 100.0])
def test_extreme_splines_stay_finite_next_to_their_knots(spread: float) -> None:
    spline = RationalQuadratic(8, 5.0)
    theta = torch.randn(5000, 23, 1) * spread
    share = 1e-3 + (1 - 8e-3) * theta[:, 8:16, 0].softmax(-1)
    knots = 10 * share.cumsum(-1) - 5
    near = torch.cat([knots + step * 2.0**-22 for step in range(-4, 5)], -1)
    for go in (spline.forward, spline.inverse):
        value, log_slope = go(near, theta)
        assert value.isfinite().all()
        assert log_slope.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", SPREADS)
def test_extreme_splines_return_to_the_data(spread: float, dtype: torch.dtype) -> None:
    spline = RationalQuadratic(8, 5.0)
    theta = spline_parameters(8, spread, dtype)
    x = torch.linspace(-6, 6, 1001, dtype=dtype).expand(50, -1)
    z, _ = spline.inverse(x, theta)
    returned, _ = spline.forward(z, theta)
    # A rounding of z moves x by the slope there.
    bound = 8 * torch.finfo(dtype).eps * 5 * (1 + steepest_slope(theta, 8))
    assert ((returned - x).abs() <= bound).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bound", [0.5, 5.0])
def test_the_log_scale_stays_within_its_bound(bound: float) -> None:
    raw = torch.tensor([[-1e6, -1.0, 0.0, 1.0, 1e6]])
    theta = torch.stack((raw, torch.randn(1, 5)), 1)
    univariate = ShiftAndScale(bound)
    x, log_slope = univariate.forward(torch.randn(1, 5), theta)
    torch.testing.assert_close(log_slope, bound * torch.tanh(raw / bound))
    assert (log_slope.abs() <= bound).all()
    assert (univariate.inverse(x, theta)[1].abs() <= bound).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("features", [2, 5])
def test_one_network_that_holds_both_is_two_networks(features: int) -> None:
    two = perturbed(AffineCoupling(features, hidden=(3, 4), batch_shape=(K,)))
    one = AffineCoupling(features, hidden=(6, 8), networks=1, batch_shape=(K,))
    with torch.no_grad():  # blocks on the diagonal; outputs of one feature are side by side
        for i, (layer, pair) in enumerate(zip(one.network.layers, two.network.layers, strict=True)):
            scale, shift = pair.weight.unbind(-3)
            weight = torch.stack(
                [torch.block_diag(*both) for both in zip(scale, shift, strict=True)]
            )
            weight = torch.cat((scale, shift), -2) if i == 0 else weight
            bias = pair.bias.flatten(-2)
            if i == len(one.network.layers) - 1:
                order = torch.arange(weight.shape[-2]).reshape(2, -1).T.flatten()
                weight, bias = weight[:, order], bias[:, order]
            layer.weight.copy_(weight.unsqueeze(1))
            layer.bias.copy_(bias.unsqueeze(1))
    start = torch.randn(N, K, features)
    for go in ("forward_and_log_det", "inverse_and_log_det"):
        for found, wanted in zip(getattr(one, go)(start), getattr(two, go)(start), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [AffineCoupling, AffineAutoregressive])
def test_a_row_far_from_the_data_keeps_a_finite_density(
    make: type[AffineCoupling | AffineAutoregressive],
) -> None:
    transform = perturbed(make(D, bound=2.0, batch_shape=(K,)))
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(100)
    for go, _, _ in directions(transform):
        value, log_det = go(1e6 * torch.randn(N, 1, D))
        assert value.isfinite().all()
        assert (log_det.abs() <= 2.0 * D).all()


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    **{
        f"{name}-{features}": (lambda make=make, f=features: make(f), f"features is {features}")
        for name, make in {
            "affine": Affine,
            "prelu": PReLU,
            "batch_norm": BatchNorm,
            "permutation": Permutation,
            "affine_coupling": AffineCoupling,
            "spline_coupling": SplineCoupling,
            "affine_autoregressive": AffineAutoregressive,
            "spline_autoregressive": SplineAutoregressive,
        }.items()
        for features in (0, -1, 1.5)
    },
    "affine_coupling-one": (lambda: AffineCoupling(1), "integer of at least 2"),
    "spline_coupling-one": (lambda: SplineCoupling(1), "integer of at least 2"),
    "networks-three": (lambda: AffineCoupling(2, networks=3), "networks is 3; expected a divisor"),
    "networks-zero": (lambda: AffineCoupling(2, networks=0), "networks is 0"),
    "slope-zero": (lambda: PReLU(2, slope=0.0), "slope is 0.0"),
    "slope-negative": (lambda: PReLU(2, slope=-0.5), "slope is -0.5"),
    "slope-nan": (lambda: PReLU(2, slope=math.nan), "slope is nan"),
    "mask-short": (lambda: AffineCoupling(3, mask=[True, False]), "expected 3 booleans"),
    "mask-all": (lambda: AffineCoupling(2, mask=[True, True]), "some true and some false"),
    "mask-none": (lambda: SplineCoupling(2, mask=[False, False]), "some true and some false"),
    "order-repeats": (lambda: Permutation(3, order=(0, 0, 1)), r"order is \[0, 0, 1\]"),
    "order-short": (lambda: Permutation(3, order=(0, 1)), "a permutation of 0 to 2"),
    "order-of-maf": (lambda: AffineAutoregressive(3, order=(1, 2, 3)), "permutation of 0 to 2"),
    "order-of-nsf": (lambda: SplineAutoregressive(2, order=(0,)), "permutation of 0 to 1"),
    "alpha-half": (lambda: Logit(alpha=0.5), "alpha is 0.5"),
    "alpha-negative": (lambda: Logit(alpha=-1e-6), "alpha is -1e-06"),
    "alpha-nan": (lambda: Logit(alpha=math.nan), "alpha is nan"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("float64")
def test_a_mixture_of_gaussians_has_the_mixture_s_density() -> None:
    univariate = MixtureOfGaussians(4, bound=3.0)
    theta = 0.5 * torch.randn(2, 12, 50)  # Gaussians that overlap: gaps have no exact quantile
    log_weight, mean, log_scale = (part.transpose(-1, -2) for part in univariate._unpack(theta))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weight),
        torch.distributions.Normal(mean, log_scale.exp()),
    )
    x = 3 * torch.randn(2, 50)
    z, log_slope = univariate.inverse(x, theta)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(normal.log_prob(z) + log_slope, mixture.log_prob(x))
    inside = z.abs() < 5  # beyond, one minus the distribution function is rounding
    torch.testing.assert_close(normal.cdf(z)[inside], mixture.cdf(x)[inside])
    returned, _ = univariate.forward(z[:, :5], theta[..., :5])
    torch.testing.assert_close(returned, x[:, :5], rtol=1e-8, atol=1e-8)


def test_a_mixture_of_gaussians_starts_with_mean_zero_and_variance_one() -> None:
    univariate = MixtureOfGaussians(5, bound=3.0)
    log_weight, mean, log_scale = univariate._unpack(torch.zeros(1, 15, 1))
    weight = log_weight.exp()
    centre = (weight * mean).sum()
    spread = (weight * (mean.square() + (2 * log_scale).exp())).sum()
    torch.testing.assert_close(torch.stack((centre, spread)), torch.tensor([0.0, 1.0]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("far", [-3000.0, 80.0, 1e5])
def test_a_mixture_of_gaussians_is_right_far_out(far: float) -> None:
    univariate = MixtureOfGaussians(2, bound=3.0)
    theta = torch.zeros(1, 6, 1)
    x = torch.tensor([[far]])
    z, log_slope = univariate.inverse(x, theta)
    log_weight, mean, log_scale = univariate._unpack(theta)
    parts = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x.unsqueeze(-2))
    expected = torch.logsumexp(log_weight + parts, -2)
    found = torch.distributions.Normal(0.0, 1.0).log_prob(z) + log_slope
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(univariate.forward(z, theta)[0], x)


@pytest.mark.usefixtures("float64")
def test_gradients_towards_data_are_those_of_the_inverse() -> None:
    univariate = MixtureOfGaussians(3, bound=3.0)
    theta, z = torch.randn(1, 9, 4), torch.randn(1, 4)

    def value(z: Tensor, theta: Tensor) -> Tensor:
        return univariate.forward(z, theta)[0]

    assert torch.autograd.gradcheck(
        value, (z.requires_grad_(), theta.requires_grad_()), eps=1e-6, atol=1e-6
    )


def test_tails_of_a_mixture_of_gaussians_keep_their_digits() -> None:
    """In float32 as in float64: density, and gradients of rows and parameters."""
    generator = torch.Generator().manual_seed(0)
    theta = 0.5 * torch.randn(1, 9, 1, generator=generator).double()
    theta[:, 6:] = -2.5  # narrow Gaussians, so that rows are hundreds of scales away
    x = torch.tensor([-60.0, -9.0, -2.0, -0.3, 0.0, 0.4, 3.0, 8.0, 40.0]).double()
    one = MixtureOfGaussians(3, bound=5.0)
    found = []
    for dtype in (torch.float64, torch.float32):
        row, parameters = x[None].to(dtype).requires_grad_(), theta.to(dtype).requires_grad_()
        z, log_slope = one.inverse(row, parameters)
        base = torch.distributions.StudentT(torch.tensor(3.0, dtype=dtype))
        log_prob = base.log_prob(z) + log_slope
        found.append((log_prob.detach(), *torch.autograd.grad(log_prob.sum(), (row, parameters))))
    for exact, single in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=5e-3, atol=5e-3)
    step = 1e-6
    ends = []
    for side in (-1, 1):
        z, log_slope = one.inverse((x + side * step)[None], theta)
        base = torch.distributions.StudentT(torch.tensor(3.0).double())
        ends.append(base.log_prob(z) + log_slope)
    torch.testing.assert_close(found[0][1], (ends[1] - ends[0]) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("u", [-3e4, -1e3, -61.0, -59.0, -13.0, -11.0, -1.1, -0.9, 0.0, 5.0])
def test_the_tail_of_a_normal_has_its_derivatives(u: float) -> None:
    """The first is the hazard h, the second -h (u + h)."""
    own = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    value, log_hazard = mixture_of_gaussians._tail(own)
    [first] = torch.autograd.grad(value, own, create_graph=True)
    [second] = torch.autograd.grad(first, own, retain_graph=True)
    [slope] = torch.autograd.grad(log_hazard, own)
    with mpmath.workdps(60):
        exact = mpmath.mpf(u)
        mass, density = mpmath.ncdf(exact), mpmath.npdf(exact)
        hazard = density / mass
        expected = [float(v) for v in (mpmath.log(mass), hazard, -hazard * (exact + hazard))]
    assert float(value.detach()) == pytest.approx(expected[0], rel=1e-12, abs=1e-15)
    assert float(first.detach()) == pytest.approx(expected[1], rel=1e-11)
    assert float(second) == pytest.approx(expected[2], rel=1e-9)
    assert float(log_hazard.detach()) == pytest.approx(float(mpmath.log(hazard)), rel=1e-12)
    assert float(slope) == pytest.approx(float(-(exact + hazard)), rel=1e-9)


@pytest.mark.parametrize("make", [AffineCoupling, AffineAutoregressive])
def test_a_bound_is_finite(make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"bound is inf; .* above zero, finite"):
        make(2, bound=math.inf)
