"""The ready-made banks, alone and side by side."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, constraints

from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.flows import (
    MAF,
    NSF,
    AutoregressiveNSF,
    Flow,
    Gaussian,
    MAFMoG,
    RealNVP,
    StandardNormal,
)
from pyro_vmonf.flows.stack import Stack
from pyro_vmonf.flows.submixtures import GaussianMixtures
from pyro_vmonf.transforms import Affine, AffineCoupling, PReLU

N, K, D = 50, 3, 2

Make = Callable[..., nn.Module]
FLOWS: dict[str, Make] = {
    "realnvp": RealNVP,
    "maf": MAF,
    "nsf": NSF,
    "ansf": AutoregressiveNSF,
    "maf-mog": lambda d, k, **a: MAFMoG(d, k, **{"mixtures": 3, "blocks": 2, **a}),
}
BANKS: dict[str, Make] = {
    "standard_normal": StandardNormal,
    "gaussian": Gaussian,
    **FLOWS,
    "realnvp-deep": lambda d, k, **a: RealNVP(d, k, blocks=3, hidden=(4, 5), **a),
    "realnvp-single": lambda d, k, **a: RealNVP(d, k, blocks=2, networks=1, **a),
    "maf-narrow": lambda d, k, **a: MAF(d, k, blocks=2, hidden=(1,), activation="tanh", **a),
    "nsf-coarse": lambda d, k, **a: NSF(d, k, blocks=1, bins=2, bound=3.0, **a),
    "no-blocks": lambda d, k, **a: RealNVP(d, k, blocks=0, **a),
    "own": lambda d, k: Flow([PReLU(d), Affine(d, batch_shape=(k,))], base=StandardNormal(d, k)),
    "own-empty": lambda d, k: Flow([], base=Gaussian(d, k)),
    "stack": lambda d, k: Stack(
        [RealNVP(d, 1, blocks=2), *([Gaussian(d, k - 1)] if k > 1 else [])]
    ),
}
SINGLE = ["standard_normal", "gaussian", "maf", "maf-mog", "ansf", "maf-narrow", "own", "own-empty"]
SIZES = [
    *itertools.product(BANKS, [D, 5], [1, K]),
    *itertools.product(SINGLE, [1], [1, K]),
]


@torch.no_grad()
def perturbed(bank: Any) -> Any:
    for parameter in bank.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return bank


@pytest.mark.parametrize(("name", "features", "components"), SIZES)
def test_shapes(name: str, features: int, components: int) -> None:
    bank = BANKS[name](features, components)()
    assert bank.batch_shape == (components,)
    assert bank.event_shape == (features,)
    assert bank.log_prob(torch.randn(N, 1, features)).shape == (N, components)
    assert bank.log_prob(torch.randn(N, components, features)).shape == (N, components)
    assert bank.sample((7,)).shape == (7, components, features)
    assert bank.rsample((7,)).shape == (7, components, features)
    assert bank.log_prob(bank.sample((7,))).isfinite().all()
    assert bank.support.event_dim == 1
    assert bank.support.check(torch.randn(features))


@pytest.mark.parametrize(("name", "features", "components"), SIZES)
def test_a_new_bank_is_called_anew(name: str, features: int, components: int) -> None:
    module = BANKS[name](features, components)
    x = torch.randn(N, 1, features)
    before = module().log_prob(x)
    assert module().log_prob(x).equal(before)
    perturbed(module)
    if list(module.parameters()):
        assert not module().log_prob(x).equal(before)


@pytest.mark.parametrize(("name", "features", "components"), SIZES)
def test_every_parameter_of_every_component_receives_a_gradient(
    name: str, features: int, components: int
) -> None:
    module = perturbed(BANKS[name](features, components))
    log_prob = module().log_prob(torch.randn(N, 1, features))
    if log_prob.requires_grad:
        (log_prob * torch.randn_like(log_prob)).sum().backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        # A single feature has none before it, and no triangle.
        silent = features == 1 and not parameter_name.endswith(
            ("1.bias", "shift", "log_scale", "log_slope", "loc")
        )
        private = parameter.shape[0] == components and name != "stack"
        reached = parameter.grad.reshape(components if private else 1, -1).any(-1)
        assert reached.all() or silent, parameter_name


@pytest.mark.parametrize("name", BANKS)
def test_state_dict_restores_the_bank(name: str) -> None:
    module, other = BANKS[name](D, K), perturbed(BANKS[name](D, K))
    other.load_state_dict(perturbed(module).state_dict())
    x = torch.randn(N, 1, D)
    assert other().log_prob(x).equal(module().log_prob(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "features"),
    [
        *itertools.product(["gaussian", *FLOWS, "realnvp-deep", "maf-narrow", "stack"], [D, 5]),
        *itertools.product(["gaussian", "maf", "ansf"], [1]),
    ],
)
def test_components_start_apart(name: str, features: int) -> None:
    log_prob = BANKS[name](features, K)().log_prob(torch.randn(N, 1, features))
    for one, other in itertools.combinations(log_prob.unbind(-1), 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["gaussian", *FLOWS])
def test_a_component_does_not_see_the_others(name: str) -> None:
    bank = perturbed(BANKS[name](D, K))
    x = torch.randn(N, 1, D)
    before = bank().log_prob(x)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter[1] += torch.rand_like(parameter[1])
    changed = (bank().log_prob(x) != before).any(0)
    assert changed.tolist() == [False, True, False]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("features", [1, D])
def test_gaussians_are_multivariate_normals(features: int) -> None:
    bank = Gaussian(features, K)
    loc, root = torch.randn(K, features), torch.randn(K, features, features)
    covariance = root @ root.mT + 0.1 * torch.eye(features)
    bank.set_(loc, covariance)
    x = torch.randn(N, 1, features)
    expected = MultivariateNormal(loc, covariance).log_prob(x)
    torch.testing.assert_close(bank().log_prob(x), expected)
    torch.testing.assert_close(bank.scale_tril() @ bank.scale_tril().mT, covariance)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FLOWS)
def test_any_bank_is_a_base(name: str) -> None:
    base = perturbed(Gaussian(D, K))
    module = FLOWS[name](D, K, base=base)
    x = torch.randn(N, 1, D)
    expected = FlowDistribution(base(), list(module.transforms)).log_prob(x)
    torch.testing.assert_close(module().log_prob(x), expected)
    standard = copy.deepcopy(module)
    standard.base = StandardNormal(D, K)
    assert not torch.isclose(standard().log_prob(x), expected).any(1).all()
    module().log_prob(x).sum().backward()
    for parameter_name, parameter in base.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FLOWS)
def test_no_blocks_leave_the_base(name: str) -> None:
    base = perturbed(Gaussian(D, K))
    x = torch.randn(N, 1, D)
    assert FLOWS[name](D, K, blocks=0, base=base)().log_prob(x).equal(base().log_prob(x))


@pytest.mark.usefixtures("float64")
def test_affine_maps_of_normals_are_gaussians() -> None:
    transform = perturbed(Affine(D, batch_shape=(K,)))
    x = torch.randn(N, 1, D)
    matrix = transform.matrix()
    expected = MultivariateNormal(transform.shift, matrix @ matrix.mT).log_prob(x)
    bank = Flow([transform], base=StandardNormal(D, K))
    torch.testing.assert_close(bank().log_prob(x), expected)


@pytest.mark.usefixtures("float64")
def test_one_base_may_serve_all_components() -> None:
    bank = RealNVP(D, K, base=StandardNormal(D, 1), blocks=2)
    other = RealNVP(D, K, blocks=2)
    other.load_state_dict(bank.state_dict())
    x = torch.randn(N, 1, D)
    assert bank().batch_shape == (K,)
    torch.testing.assert_close(bank().log_prob(x), other().log_prob(x))
    draws = bank().sample((7,))
    assert draws.unique().numel() == 7 * K * D


def parts() -> list[nn.Module]:
    return [
        Gaussian(D, 2),
        RealNVP(D, 1, blocks=2),
        MAF(D, 3, blocks=2),
        NSF(D, 1, blocks=2),
        AutoregressiveNSF(D, 2),
    ]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [(), (N, 1), (N, 9), (4, N, 1)])
def test_a_stack_equals_its_parts(rows: tuple[int, ...]) -> None:
    bank = Stack([perturbed(part) for part in parts()])
    assert bank().batch_shape == (9,)
    x = torch.randn(*rows, D)
    found = bank().log_prob(x)
    x = x.expand(*found.shape, D)
    start = 0
    for part in bank.parts:
        stop = start + part.components
        expected = part().log_prob(x[..., start:stop, :])
        torch.testing.assert_close(found[..., start:stop], expected)
        start = stop
    assert start == 9


class OneComponent(nn.Module):
    """A user's module whose distribution has no batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(D))

    def forward(self, context: Tensor | None = None) -> MultivariateNormal:
        return MultivariateNormal(self.loc, torch.eye(D))


def test_a_part_without_batch_dimension_is_one_component() -> None:
    bank = Stack([OneComponent(), Gaussian(D, 2)])
    assert bank().batch_shape == (3,)
    assert bank().support is constraints.real_vector
    x = torch.randn(N, D)
    found = bank().log_prob(x.unsqueeze(1))[:, 0]
    torch.testing.assert_close(found, bank.parts[0]().log_prob(x))


def test_a_stack_of_stacks_is_a_stack() -> None:
    inner = [Gaussian(D, 2), RealNVP(D, 1, blocks=2)]
    one = Stack([Stack(inner), NSF(D, 1, blocks=2)])
    other = Stack([*inner, one.parts[1]])
    x = torch.randn(N, 1, D)
    assert one().log_prob(x).equal(other().log_prob(x))


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    **{
        f"{name}-{components}": (
            lambda make=BANKS[name], k=components: make(D, k),
            f"components is {components}; it must be an integer of at least 1",
        )
        for name in ("standard_normal", "gaussian", *FLOWS)
        for components in (0, -1, 1.5)
    },
    "realnvp-one-feature": (lambda: RealNVP(1, K, blocks=2), "features is 1; .* at least 2"),
    "nsf-one-feature": (lambda: NSF(1, K, blocks=2), "features is 1; .* at least 2"),
    "maf-no-features": (lambda: MAF(0, K, blocks=2), "features is 0; .* at least 1"),
    "gaussian-no-features": (lambda: Gaussian(0, K), "features is 0; .* at least 1"),
    "standard_normal-no-features": (lambda: StandardNormal(0, K), "features is 0; .* at least 1"),
    "unknown-activation": (
        lambda: RealNVP(D, K, activation="swish", blocks=2),
        "activation is 'swish'",
    ),
    "empty-stack": (lambda: Stack([]), "pass at least one bank"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [MAF, AutoregressiveNSF])
def test_orders_alternate(make: type[MAF | AutoregressiveNSF]) -> None:
    orders = [transform.order.tolist() for transform in make(3, K, blocks=3).transforms]
    assert orders == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("features", [2, 5])
@pytest.mark.parametrize("base", [StandardNormal, GaussianMixtures])
@pytest.mark.parametrize("name", FLOWS)
def test_columns_at_the_base_say_what_rows_say(
    name: str, base: Callable[[int, int], nn.Module], features: int
) -> None:
    bank = perturbed(FLOWS[name](features, K, base=base(features, K)))
    x = torch.randn(N, 1, features, requires_grad=True)
    z, total = x, torch.zeros(N, K)
    for transform in reversed(bank.transforms):
        z, log_det = transform.inverse_and_log_det(z)
        total = total + log_det
    found, wanted = bank().log_prob(x), bank.base().log_prob(z) + total
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    inputs = [x, *bank.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.sum(), inputs),
        torch.autograd.grad(wanted.sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-10)


def test_a_coupling_of_the_library_is_what_realnvp_is_made_of() -> None:
    bank = RealNVP(5, K, blocks=2, hidden=(7,), activation="silu", bound=1.5, networks=1)
    first, second = bank.transforms
    assert isinstance(first, AffineCoupling)
    assert first.mask.equal(~second.mask)
    assert (first.bound, first.hidden, first.activation) == (1.5, (7,), "silu")
    assert first.networks == second.networks == 1
    assert first.network.layers[-1].weight.shape == (K, 1, 2 * 2, 7)
