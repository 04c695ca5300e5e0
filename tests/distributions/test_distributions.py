"""Banks as distributions: densities, draws, the choice of a component, the marginal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import Categorical, MultivariateNormal
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    ExpTransform,
    Independent,
    IndependentTransform,
    Laplace,
    LogNormal,
    Normal,
    Transform,
    biject_to,
    constraints,
)

from pyro_vmonf.distributions import (
    FlowDistribution,
    Marginal,
    Selected,
    StackedDistribution,
    select,
    stacked,
)
from pyro_vmonf.flows import MAF, NSF, AutoregressiveNSF, Gaussian, RealNVP
from pyro_vmonf.transforms import (
    Affine,
    AffineAutoregressive,
    AffineCoupling,
    FlowTransform,
    Logit,
    PReLU,
    SplineCoupling,
    Standardize,
)

R, N, K, D = 2, 5, 3, 2

pytestmark = pytest.mark.usefixtures("float64")


def normals(*batch_shape: int, features: int = D) -> Independent:
    shape = (*batch_shape, features)
    return Independent(Normal(torch.randn(shape), torch.rand(shape) + 0.5), 1)


@torch.no_grad()
def perturbed(module: Any, by: float = 0.1) -> Any:
    for parameter in module.parameters():
        parameter.add_(by * torch.randn_like(parameter))
    return module


CHAINS: dict[str, Callable[[], list[FlowTransform]]] = {
    "empty": lambda: [],
    "private": lambda: [Affine(D, batch_shape=(K,)), AffineCoupling(D, batch_shape=(K,))],
    "shared": lambda: [PReLU(D), SplineCoupling(D, hidden=(8,))],
    "shared-at-the-data-end": lambda: [AffineAutoregressive(D, batch_shape=(K,)), Affine(D)],
    "shared-at-the-base-end": lambda: [Affine(D), AffineCoupling(D, batch_shape=(K,))],
    "mixed": lambda: [PReLU(D), Affine(D, batch_shape=(K,)), PReLU(D), Affine(D)],
}
ROWS: dict[str, tuple[int, ...]] = {
    "point": (),
    "rows": (N, 1),
    "rows-for-each": (N, K),
    "restarts": (R, N, 1),
}


def change_of_variables(base: Distribution, chain: list[FlowTransform], x: Tensor) -> Tensor:
    """The density at a single point, with the log-determinant of the whole chain's Jacobian."""

    def to_base(x: Tensor) -> Tensor:
        for transform in reversed(chain):
            x = transform.inv(x)
        return x.expand(K, D)

    jacobian = torch.autograd.functional.jacobian(to_base, x)
    return base.log_prob(to_base(x)) + torch.linalg.slogdet(jacobian).logabsdet


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", CHAINS)
def test_density_is_a_change_of_variables(name: str, rows: str) -> None:
    chain = [perturbed(transform) for transform in CHAINS[name]()]
    base = normals(K)
    x = torch.randn(*ROWS[rows], D)
    found = FlowDistribution(base, chain).log_prob(x)
    assert found.shape == torch.broadcast_shapes(ROWS[rows], (K,))
    x = x.expand(*found.shape, D)
    for index in itertools.product(*map(range, found.shape)):
        expected = change_of_variables(base, chain, x[index])[index[-1]]
        torch.testing.assert_close(found[index], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("base_shape", [(), (1,), (K,)])
@pytest.mark.parametrize("name", CHAINS)
def test_shapes_of_draws(name: str, base_shape: tuple[int, ...]) -> None:
    chain = CHAINS[name]()
    flows = FlowDistribution(normals(*base_shape), chain)
    shape = torch.broadcast_shapes(base_shape, *(t.batch_shape for t in chain))
    assert flows.batch_shape == shape
    assert flows.event_shape == (D,)
    for sample_shape in [(), (7,), (4, 7)]:
        draws = flows.sample(sample_shape)
        assert draws.shape == (*sample_shape, *shape, D)
        assert not draws.requires_grad
        assert flows.rsample(sample_shape).shape == draws.shape
        assert flows.log_prob(draws).shape == draws.shape[:-1]
        assert draws.reshape(-1, D).unique(dim=0).shape[0] == draws.shape[:-1].numel()


@pytest.mark.parametrize("name", CHAINS)
def test_expanding_repeats_the_density_and_not_the_draws(name: str) -> None:
    flows = FlowDistribution(normals(K), [perturbed(t) for t in CHAINS[name]()])
    expanded = flows.expand((R, N, K))
    assert expanded.batch_shape == (R, N, K)
    x = torch.randn(D)
    torch.testing.assert_close(expanded.log_prob(x), flows.log_prob(x).expand(R, N, K))
    draws = expanded.sample((4,))
    assert draws.shape == (4, R, N, K, D)
    assert draws.reshape(-1, D).unique(dim=0).shape[0] == 4 * R * N * K
    torch.testing.assert_close(expanded.log_prob(draws), flows.log_prob(draws))


def test_reparametrised_draws_carry_gradients() -> None:
    transform = Affine(D, batch_shape=(K,))
    flows = FlowDistribution(normals(K), [transform])
    assert flows.has_rsample
    flows.rsample((7,)).sum().backward()
    torch.testing.assert_close(transform.shift.grad, torch.full((K, D), 7.0))


def test_draws_follow_the_density() -> None:
    bank = perturbed(Affine(D, batch_shape=(K,)))
    base = Independent(Normal(torch.zeros(K, D), 1.0), 1)
    draws = FlowDistribution(base, [bank]).sample((20_000,))
    matrix = bank.matrix()
    covariance = matrix @ matrix.mT
    for k in range(K):
        torch.testing.assert_close(draws[:, k].mean(0), bank.shift[k], rtol=0, atol=0.05)
        torch.testing.assert_close(draws[:, k].T.cov(), covariance[k], rtol=0, atol=0.08)


class Spy(FlowTransform):
    """The identity that remembers the shapes that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(x.shape)
        return x, x.new_zeros(x.shape[:-1])


def test_a_shared_transform_at_the_data_end_sees_each_point_once() -> None:
    spy = Spy()
    flows = FlowDistribution(normals(K), [Affine(D, batch_shape=(K,)), spy])
    x = torch.randn(N, D)
    flows.log_prob(x.unsqueeze(1))
    select(flows, torch.zeros(N, dtype=torch.long)).log_prob(x)
    Marginal(torch.zeros(K), flows).log_prob(x)
    assert spy.shapes == [(N, 1, D)] * 3


FLOWS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "realnvp": (lambda: RealNVP(2, 2, blocks=3, hidden=(6,)), 14.0),
    "maf": (lambda: MAF(2, 2, blocks=3, hidden=(8,), activation="tanh"), 14.0),
    "nsf": (lambda: NSF(2, 2, blocks=2, hidden=(8,), bins=4), 7.0),
    "autoregressive_nsf": (
        lambda: AutoregressiveNSF(2, 2, blocks=2, hidden=(8,), bins=4),
        7.0,
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_density_in_the_plane_integrates_to_one(name: str) -> None:
    make, reach = FLOWS[name]
    flows, step = perturbed(make(), by=0.2)(), reach / 200
    axis = torch.arange(-reach, reach, step) + step / 2
    with torch.no_grad():
        log_prob = flows.log_prob(torch.cartesian_prod(axis, axis).unsqueeze(1))
    total = log_prob.exp().sum(0) * step**2
    torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=1e-3)


FOREIGN: dict[str, Callable[[], Transform]] = {
    "scalar": lambda: AffineTransform(1.0, -2.0),
    "vector": lambda: AffineTransform(torch.randn(D), torch.rand(D) + 0.5, event_dim=1),
    "vector-elementwise": lambda: AffineTransform(torch.randn(D), torch.rand(D) + 0.5),
    "components": lambda: AffineTransform(torch.randn(K, D), torch.rand(K, D) + 0.5),
    "restarts": lambda: AffineTransform(torch.randn(R, 1, K, D), torch.rand(R, 1, K, D) + 0.5),
    "independent": lambda: IndependentTransform(ExpTransform(), 1),
    "composed": lambda: ComposeTransform([AffineTransform(0.3, 0.7), ExpTransform()]),
    "composed-mixed": lambda: ComposeTransform(
        [AffineTransform(torch.randn(D), torch.rand(D), event_dim=1), ExpTransform()]
    ),
    "inverse": lambda: AffineTransform(torch.randn(D), 3.0).inv,
}


@pytest.mark.parametrize("rows", [(), (1,), (N, 1), (N, K), (K, 1), (R, N, K)])
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_transforms_count_like_torch_does(name: str, rows: tuple[int, ...]) -> None:
    own, foreign = perturbed(Affine(D, batch_shape=(K,))), FOREIGN[name]()
    base = normals(K)
    flows = FlowDistribution(base, [own, foreign, FOREIGN["scalar"]()])
    x = -2.0 * torch.rand(*rows, D) - 0.5
    found = flows.log_prob(x)

    y = (x - 1) / -2
    z = foreign.inv(y)
    log_det = foreign.log_abs_det_jacobian(z, y.expand_as(z))
    log_det = log_det.sum(-1) if log_det.dim() == z.dim() else log_det
    z, log_det_own = own.inverse_and_log_det(z)
    expected = base.log_prob(z) + log_det_own - log_det - D * math.log(2)
    assert found.shape == torch.broadcast_shapes(expected.shape, rows)
    torch.testing.assert_close(found, expected)


def test_a_foreign_chain_is_the_distribution_it_names() -> None:
    loc, scale = torch.randn(K), torch.rand(K) + 0.5
    flows = FlowDistribution(
        Normal(torch.zeros(K), 1.0), [AffineTransform(loc, scale), ExpTransform()]
    )
    x = torch.rand(N, 1) + 0.1
    torch.testing.assert_close(flows.log_prob(x), LogNormal(loc, scale).log_prob(x))
    assert flows.event_shape == ()
    assert (flows.sample((7,)) > 0).all()


def mixed_parts() -> list[Distribution]:
    return [
        normals(2),
        normals(),
        Independent(Laplace(torch.randn(1, D), torch.ones(1, D)), 1),
        FlowDistribution(normals(2), [Affine(D, batch_shape=(2,))]),
    ]


@pytest.mark.parametrize("rows", [(), (1,), (N, 1), (N, 6), (R, N, 1), (R, N, 6)])
def test_a_stack_equals_each_part(rows: tuple[int, ...]) -> None:
    parts = mixed_parts()
    bank = stacked(parts)
    assert isinstance(bank, StackedDistribution)
    assert bank.batch_shape == (6,)
    x = torch.randn(*rows, D)
    found = bank.log_prob(x)
    assert found.shape == torch.broadcast_shapes(rows, (6,))
    x = x.expand(*found.shape, D)
    owners = [(0, 0), (0, 1), (1, None), (2, 0), (3, 0), (3, 1)]
    for k, (number, inner) in enumerate(owners):
        expected = parts[number].log_prob(x[..., k, :].unsqueeze(-2))
        torch.testing.assert_close(found[..., k], expected[..., inner or 0])


def test_a_stack_of_rows_broadcasts_its_parts() -> None:
    bank = stacked([normals(N, 2), normals(1), normals()])
    assert bank.batch_shape == (N, 4)
    for draws in (bank.sample((7,)), bank.rsample((7,))):
        assert draws.shape == (7, N, 4, D)
        assert draws.unique().numel() == draws.numel()
    x = torch.randn(N, 1, D)
    found = bank.log_prob(x)
    for number, log_prob in enumerate(part.log_prob(x) for part in bank.parts):
        start = sum(bank.sizes[:number])
        expected = log_prob.expand(N, bank.sizes[number])
        torch.testing.assert_close(found[:, start : start + bank.sizes[number]], expected)


def test_a_stack_draws_from_each_part() -> None:
    loc = torch.tensor([-100.0, 0.0, 100.0])
    parts = [
        Independent(Normal(loc[:2, None].expand(2, D), 1.0), 1),
        Independent(Laplace(loc[2].expand(D), 1.0), 1),
    ]
    bank = stacked(parts)
    for draws in (bank.sample((50,)), bank.rsample((50,)), bank.expand((50, K)).sample()):
        assert draws.shape == (50, K, D)
        assert ((draws - loc[:, None]).abs() < 40).all()
        assert draws.unique().numel() == draws.numel()
    assert bank.has_rsample
    assert not stacked([*parts, Marginal(torch.zeros(1), normals(1))]).has_rsample


def test_stacks_of_nothing_or_of_unequal_events_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one distribution"):
        stacked([])
    with pytest.raises(ValueError, match=r"event shapes \[\(2,\), \(3,\)\]"):
        stacked([normals(1), normals(features=3)])


def enumerated(count: int, plates: int, spare: int = 0) -> Tensor:
    """All values of c as Pyro lays them out, left of the plates and of ``spare`` other dims."""
    prior = Categorical(torch.ones(count) / count).expand([N] * plates)
    value = prior.enumerate_support(expand=False)
    value = value.reshape(count, *[1] * (plates + spare))
    value._pyro_categorical_support = id(prior)
    return value


@pytest.mark.parametrize("count", [1, K])
@pytest.mark.parametrize("shape", [(N,), (R, N), (1,), (K,)])
def test_select_takes_the_density_of_c(shape: tuple[int, ...], count: int) -> None:
    bank, x = normals(count), torch.randn(*shape, D)
    c = torch.randint(count, shape)
    table = bank.log_prob(x.unsqueeze(-2))
    found = select(bank, c).log_prob(x)
    assert found.shape == shape
    for index in itertools.product(*map(range, shape)):
        assert found[index] == table[(*index, int(c[index]))]


@pytest.mark.parametrize("spare", [0, 1])
@pytest.mark.parametrize("count", [1, K, N])
@pytest.mark.parametrize("shape", [(), (N,), (R, N)])
def test_select_takes_every_density_of_an_enumerated_c(
    shape: tuple[int, ...], count: int, spare: int
) -> None:
    bank, x = normals(count), torch.randn(*shape, D)
    table = bank.log_prob(x.unsqueeze(-2))
    found = select(bank, enumerated(count, len(shape), spare)).log_prob(x)
    assert found.shape == (count, *[1] * spare, *shape)
    for c in range(count):
        assert found[c].reshape(shape).equal(table[..., c])


@pytest.mark.parametrize("batch", [(R, 1, K), (N, K), (1, K), (R, N, K)])
def test_select_among_components_of_each_row(batch: tuple[int, ...]) -> None:
    bank, x = normals(*batch), torch.randn(R, N, D)
    table = bank.log_prob(x.unsqueeze(-2))
    c = torch.randint(K, (R, N))
    expected = table.gather(-1, c.unsqueeze(-1)).squeeze(-1)
    assert select(bank, c).log_prob(x).equal(expected)
    every = select(bank, enumerated(K, 2)).log_prob(x)
    assert every.equal(table.movedim(-1, 0))


def test_select_broadcasts_one_c_over_rows() -> None:
    bank, x = normals(K), torch.randn(N, D)
    table = bank.log_prob(x.unsqueeze(1))
    assert select(bank, torch.tensor(2)).log_prob(x).equal(table[:, 2])
    chosen = select(bank, torch.tensor([2])).expand((N,))
    assert chosen.batch_shape == (N,)
    assert chosen.log_prob(x).equal(table[:, 2])


@pytest.mark.parametrize("kind", ["observed", "enumerated"])
def test_gradients_through_select_are_those_of_gather(kind: str) -> None:
    bank, x = RealNVP(D, K, blocks=2), torch.randn(N, D)
    table = bank().log_prob(x.unsqueeze(1))
    if kind == "observed":
        c = torch.tensor([0, 2, 0, 0, 2])
        found, wanted = select(bank(), c).log_prob(x), table.gather(1, c[:, None]).squeeze(1)
    else:
        found, wanted = select(bank(), enumerated(K, 1)).log_prob(x), table.T
    weight = torch.randn_like(wanted)
    one = torch.autograd.grad((found * weight).sum(), list(bank.parameters()))
    other = torch.autograd.grad((wanted * weight).sum(), list(bank.parameters()))
    for name, a, b in zip(dict(bank.named_parameters()), one, other, strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")
        if kind == "observed":
            assert not a[1].any(), name


class ByIndex(nn.Module):
    """A mixture by fancy indexing of the parameters, as Pyro's tutorial writes it."""

    def forward(self, x: Tensor, loc: Tensor, scale: Tensor, outer: int) -> None:
        with pyro.plate("outer", outer, dim=-2), pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(torch.ones(K) / K), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[c], scale[c]).to_event(1), obs=x)


class BySelect(nn.Module):
    """The same mixture with select."""

    def forward(self, x: Tensor, loc: Tensor, scale: Tensor, outer: int) -> None:
        with pyro.plate("outer", outer, dim=-2), pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", Categorical(torch.ones(K) / K), infer={"enumerate": "parallel"})
            pyro.sample("x", select(dist.Normal(loc, scale).to_event(1), c), obs=x)


def test_select_reads_like_indexing_in_a_pyro_model() -> None:
    x = torch.randn(N, D)
    loc = torch.randn(K, D, requires_grad=True)
    scale = (torch.rand(K, D) + 0.5).requires_grad_()
    losses = [
        pyro.infer.TraceEnum_ELBO(max_plate_nesting=2).differentiable_loss(
            model, lambda *arguments: None, x, loc, scale, R
        )
        for model in (ByIndex(), BySelect())
    ]
    torch.testing.assert_close(losses[1], losses[0])
    for one, other in zip(
        *(torch.autograd.grad(loss, (loc, scale)) for loss in losses), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_select_refuses_a_distribution_without_components() -> None:
    with pytest.raises(ValueError, match=r"batch_shape \(\) and event_shape \(2,\)"):
        select(normals(), torch.tensor(0))


def far_apart(*batch_shape: int) -> Independent:
    """Components around 100 times their number, standard deviation one."""
    loc = 100.0 * torch.arange(batch_shape[-1])
    return Independent(Normal(loc[:, None].expand(*batch_shape, D), 1.0), 1)


DRAWN_FROM: dict[str, Callable[[], Distribution]] = {
    "components": lambda: far_apart(K),
    "rows": lambda: far_apart(N, K),
    "restarts": lambda: far_apart(R, 1, K),
    "stack": lambda: stacked([far_apart(2), Independent(Normal(torch.full((D,), 200.0), 1.0), 1)]),
    "stack-of-rows": lambda: stacked(
        [far_apart(N, 2), Independent(Normal(torch.full((1, D), 200.0), 1.0), 1)]
    ),
    "flow": lambda: FlowDistribution(far_apart(K), [PReLU(D, slope=1.0)]),
    "flow-of-restarts": lambda: FlowDistribution(
        far_apart(K), [PReLU(D, slope=1.0, batch_shape=(R, 1, K))]
    ),
    "gaussians": lambda: MultivariateNormal(
        100.0 * torch.arange(K)[:, None].expand(K, D), torch.eye(D).expand(K, D, D)
    ),
}


@pytest.mark.parametrize("sample_shape", [(), (7,), (4, 7)])
@pytest.mark.parametrize("name", DRAWN_FROM)
def test_draws_come_from_the_chosen_component(name: str, sample_shape: tuple[int, ...]) -> None:
    c = torch.randint(K, (R, N))
    chosen = select(DRAWN_FROM[name](), c)
    assert chosen.batch_shape == (R, N)
    for draws in (chosen.sample(sample_shape), chosen.rsample(sample_shape)):
        assert draws.shape == (*sample_shape, R, N, D)
        assert ((draws - 100.0 * c[..., None]).abs() < 8).all()
        assert draws.unique().numel() == draws.numel()


def test_draws_of_one_c_for_many_rows_are_independent() -> None:
    expanded = select(far_apart(K), torch.tensor([2])).expand((N,))
    of_restarts = select(far_apart(R, 1, K), torch.full((N,), 2))
    for chosen, shape in ((expanded, (N,)), (of_restarts, (R, N))):
        for draws in (chosen.sample((7,)), chosen.rsample((7,))):
            assert draws.shape == (7, *shape, D)
            assert ((draws - 200).abs() < 8).all()
            assert draws.unique().numel() == draws.numel()


def test_no_rows_draw_nothing() -> None:
    c = torch.zeros(0, dtype=torch.long)
    assert select(far_apart(K), c).sample((4,)).shape == (4, 0, D)


def test_reparametrised_draws_reach_the_chosen_component_only() -> None:
    loc = torch.zeros(K, D, requires_grad=True)
    chosen = select(Independent(Normal(loc, 1.0), 1), torch.tensor([2, 2, 0]))
    assert chosen.has_rsample
    chosen.rsample().sum().backward()
    assert loc.grad is not None
    assert loc.grad[:, 0].tolist() == [1.0, 0.0, 2.0]


WEIGHTS: dict[str, tuple[int, ...]] = {"shared": (K,), "rows": (N, K)}


@pytest.mark.parametrize("batch", [(K,), (N, K), (1, K)])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_marginal_sums_over_components(weights: str, batch: tuple[int, ...]) -> None:
    log_weights = torch.randn(WEIGHTS[weights]).log_softmax(-1)
    mixture, x = Marginal(log_weights, normals(*batch)), torch.randn(N, D)
    joint = log_weights.exp() * mixture.components.log_prob(x.unsqueeze(1)).exp()
    torch.testing.assert_close(mixture.log_prob(x), joint.sum(-1).log())
    torch.testing.assert_close(mixture.joint_log_prob(x), joint.log())


def test_the_marginal_survives_densities_too_small_to_exponentiate() -> None:
    mixture = Marginal(torch.tensor([0.25, 0.75, 0.0]).log(), far_apart(K))
    x = torch.full((1, D), 1e4)
    expected = math.log(0.75) + mixture.components.log_prob(x)[1]
    torch.testing.assert_close(mixture.log_prob(x)[0], expected)


def test_the_marginal_of_one_component_is_that_component() -> None:
    bank, x = normals(1), torch.randn(N, D)
    assert Marginal(torch.zeros(1), bank).log_prob(x).equal(bank.log_prob(x))


def test_permuting_components_permutes_outputs() -> None:
    loc, log_weights, order = torch.randn(K, D), torch.randn(K).log_softmax(0), [2, 0, 1]
    x = torch.randn(N, D)

    def mixture(order: list[int]) -> Marginal:
        return Marginal(log_weights[order], Independent(Normal(loc[order], 1.0), 1))

    one, other = mixture([0, 1, 2]), mixture(order)
    torch.testing.assert_close(other.joint_log_prob(x), one.joint_log_prob(x)[:, order])
    torch.testing.assert_close(other.log_prob(x), one.log_prob(x))


def test_an_expanded_marginal_repeats() -> None:
    mixture, x = Marginal(torch.randn(K).log_softmax(0), normals(K)), torch.randn(N, D)
    expanded = mixture.expand((R, N))
    assert expanded.batch_shape == (R, N)
    assert expanded.log_prob(x).equal(mixture.log_prob(x).expand(R, N))
    assert expanded.sample((4,)).shape == (4, R, N, D)


@pytest.mark.parametrize("name", DRAWN_FROM)
def test_the_marginal_draws_components_as_often_as_their_weights(name: str) -> None:
    weights = torch.tensor([0.2, 0.0, 0.8])
    mixture = Marginal(weights.log(), DRAWN_FROM[name]())
    count = 4000
    draws, c = mixture.sample_with_component((count,))
    assert c.shape == (count, *mixture.batch_shape)
    assert ((draws - 100.0 * c[..., None]).abs() < 8).all()
    share = c.flatten().bincount(minlength=K) / c.numel()
    deviation = (weights * (1 - weights) / c.numel()).sqrt()
    assert ((share - weights).abs() <= 4.5 * deviation).all()
    assert mixture.sample((7,)).shape == (7, *mixture.batch_shape, D)


def test_weights_of_each_row_are_drawn_from() -> None:
    weights = torch.eye(K)[[2, 0, 1, 1, 0]]
    _, c = Marginal(weights.log(), normals(K)).sample_with_component((50,))
    assert c.equal(torch.tensor([2, 0, 1, 1, 0]).expand(50, N))


SUPPORTS: dict[str, tuple[Callable[[], Distribution], constraints.Constraint]] = {
    "gaussian": (lambda: Gaussian(D, K)(), constraints.real_vector),
    "flow": (lambda: RealNVP(D, K, blocks=2)(), constraints.real_vector),
    "standardised": (
        lambda: FlowDistribution(NSF(D, K, blocks=2)(), [Standardize((D,))]),
        constraints.real_vector,
    ),
    "logit": (
        lambda: FlowDistribution(normals(K), [Logit(alpha=0.0)]),
        constraints.independent(constraints.unit_interval, 1),
    ),
    "foreign": (
        lambda: FlowDistribution(normals(K), [IndependentTransform(ExpTransform(), 1)]),
        constraints.independent(constraints.positive, 1),
    ),
    "stack": (lambda: stacked([normals(2), normals()]), constraints.real_vector),
}


@pytest.mark.parametrize("kind", ["bank", "selected", "marginal"])
@pytest.mark.parametrize("name", SUPPORTS)
def test_supports_are_those_of_the_components(name: str, kind: str) -> None:
    make, expected = SUPPORTS[name]
    bank = make()
    distribution = {
        "bank": lambda: bank,
        "selected": lambda: Selected(bank, torch.tensor(0)),
        "marginal": lambda: Marginal(torch.zeros(K), bank),
    }[kind]()
    assert distribution.support.event_dim == expected.event_dim == 1
    free = torch.randn(N, D)
    value = biject_to(distribution.support)(free)
    torch.testing.assert_close(value, biject_to(expected)(free))
    assert distribution.support.check(value).all()
    torch.testing.assert_close(biject_to(distribution.support).inv(value), free)


def _chain(*masks: list[int]) -> list[AffineCoupling]:
    layers = [
        AffineCoupling(4, mask=[bool(m) for m in mask], hidden=(5,), batch_shape=(3,))
        for mask in masks
    ]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    return layers


COUPLINGS = {
    "one mask and its complement": _chain([1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]),
    "halves that change": _chain([1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]),
    "halves of other sizes": _chain([1, 1, 1, 0], [0, 0, 0, 1]),
}


@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_that_hand_on_their_halves_are_those_one_by_one(name: str) -> None:
    layers = [layer.double() for layer in COUPLINGS[name]]
    base = Independent(Normal(torch.zeros(3, 4).double(), 1.0), 1)
    x = torch.randn(7, 1, 4, dtype=torch.float64)
    z, log_det = x, torch.zeros(7, 3, dtype=torch.float64)
    for layer in reversed(layers):
        z, more = layer.inverse_and_log_det(z)
        log_det = log_det + more
    expected = base.log_prob(z) + log_det
    flow = FlowDistribution(base, layers)
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    grown = x.expand(7, 3, 4).reshape(1, 7, 3, 4)
    torch.testing.assert_close(flow.log_prob(grown)[0], expected, rtol=1e-12, atol=1e-12)


def test_a_coupling_with_an_inverse_of_its_own_keeps_it() -> None:
    class Shifted(AffineCoupling):
        def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z, log_det = super().inverse_and_log_det(x)
            return z + 1, log_det

    own = Shifted(4, batch_shape=(3,))
    plain = AffineCoupling(4, batch_shape=(3,), mask=[False, True, False, True])
    base = Independent(Normal(torch.zeros(3, 4), 1.0), 1)
    x = torch.randn(7, 1, 4)
    z, first = own.inverse_and_log_det(x)
    z, second = plain.inverse_and_log_det(z)
    expected = base.log_prob(z) + first + second
    torch.testing.assert_close(FlowDistribution(base, [plain, own]).log_prob(x), expected)
