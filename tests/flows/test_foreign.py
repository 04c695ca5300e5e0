"""Flows of other libraries as components: one batched call equals K calls, or is not made."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
import zuko
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, Replicated, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.sameness import difference
from pyro_vmonf.nn import MLP

K, D = 3, 2
SMALL = {"transforms": 2, "hidden_features": (4,)}
ZUKO: dict[str, Callable[[], nn.Module]] = {
    "NICE": lambda: zuko.flows.NICE(D, **SMALL),
    "RealNVP": lambda: zuko.flows.RealNVP(D, **SMALL),
    "MAF": lambda: zuko.flows.MAF(D, **SMALL),
    "NSF": lambda: zuko.flows.NSF(D, bins=3, **SMALL),
    "NCSF": lambda: zuko.flows.NCSF(D, bins=3, **SMALL),
    "SOSPF": lambda: zuko.flows.SOSPF(D, **SMALL),
    "NAF": lambda: zuko.flows.NAF(D, **SMALL),
    "UNAF": lambda: zuko.flows.UNAF(D, **SMALL),
    "CNF": lambda: zuko.flows.CNF(D, freqs=1, hidden_features=(4,), atol=1e-5, rtol=1e-4),
    "GF": lambda: zuko.flows.GF(D, transforms=2),
    "BPF": lambda: zuko.flows.BPF(D, **SMALL),
    "GMM": lambda: zuko.flows.GMM(D),
}
ONE_CALL = {"NICE", "RealNVP", "MAF", "NSF", "NCSF"}
BOTH_WAYS: dict[str, Callable[[], Any]] = {
    "affine coupling": lambda: T.affine_coupling(D, hidden_dims=[4]),
    "a chain": lambda: [T.affine_coupling(D, hidden_dims=[4]), T.permute(D), T.householder(D)],
    "affine autoregressive": lambda: T.affine_autoregressive(D, hidden_dims=[4]),
    "spline": lambda: T.spline(D, count_bins=3),
    "spline coupling": lambda: T.spline_coupling(D, hidden_dims=[4], count_bins=3),
    "matrix exponential": lambda: T.matrix_exponential(D),
    "batch norm": lambda: T.batchnorm(D),
}
ONE_WAY: dict[str, Callable[[], Any]] = {
    "planar": lambda: T.planar(D),
    "radial": lambda: T.radial(D),
    "sylvester": lambda: T.sylvester(D),
    "polynomial": lambda: T.polynomial(D, hidden_dims=[4]),
    "neural autoregressive": lambda: T.neural_autoregressive(D, hidden_dims=[4]),
    "block autoregressive": lambda: T.block_autoregressive(D, hidden_factors=[4]),
}


def agrees_with_its_parts(bank: Replicated) -> None:
    """Value and gradients equal those of the components one by one, and both trains."""
    x = 0.4 * torch.randn(7, 1, D)
    direct = torch.stack([part().log_prob(x[:, 0]) for part in bank.parts], -1)
    torch.testing.assert_close(bank().log_prob(x), direct, rtol=1e-4, atol=1e-5)
    each = 0.4 * torch.randn(7, K, D)
    direct = torch.stack([part().log_prob(each[:, i]) for i, part in enumerate(bank.parts)], -1)
    torch.testing.assert_close(bank().log_prob(each), direct, rtol=1e-4, atol=1e-5)
    parameters = [p for p in bank.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(direct.sum(), parameters, allow_unused=True)
    found = torch.autograd.grad(bank().log_prob(each).sum(), parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        zero = torch.zeros(())
        one, other = zero if one is None else one, zero if other is None else other
        torch.testing.assert_close(one, other.expand_as(one), rtol=1e-3, atol=1e-4)


def mixes(bank: Replicated) -> None:
    vmonf = VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(D, K)))
    before = [p.detach().clone() for p in bank.parameters()]
    vmonf.fit(0.4 * torch.randn(20, D), epochs=1, progress=False, standardize=False)
    assert any(not torch.equal(p, q) for p, q in zip(bank.parameters(), before, strict=True))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(vmonf)))
    x = 0.4 * torch.randn(5, D)
    torch.testing.assert_close(twin.log_prob(x), vmonf.log_prob(x))


@pytest.mark.parametrize("name", ZUKO)
def test_zuko(name: str) -> None:
    torch.manual_seed(2)
    bank = Replicated(ZUKO[name], K)
    assert bank.vectorized == (name in ONE_CALL), bank.why_not
    agrees_with_its_parts(bank)
    mixes(bank)
    assert bank().sample((4,)).shape == (4, K, D)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_pyro_transforms(name: str) -> None:
    bank = Replicated(BOTH_WAYS[name], K, features=D)
    if name != "batch norm":  # in train() its rows depend on each other
        agrees_with_its_parts(bank)
        mixes(bank)
    assert bank().sample((4,)).shape == (4, K, D)


@pytest.mark.parametrize("name", [*ONE_WAY, "affine autoregressive", "affine coupling"])
def test_transforms_run_from_data_to_base(name: str) -> None:
    factory = (ONE_WAY | BOTH_WAYS)[name]
    bank = Replicated(factory, K, features=D, reverse=True)
    agrees_with_its_parts(bank)
    mixes(bank)
    x = 0.3 * torch.randn(5, D)
    transform = bank.parts[1].transforms[0]
    z = transform(x)
    log_det = transform.log_abs_det_jacobian(x, z)
    jacobian = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in x])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-4)
    base = dist.Normal(torch.zeros(D), 1.0).to_event(1)
    expected = base.log_prob(z) + log_det
    torch.testing.assert_close(bank().log_prob(x.unsqueeze(1))[:, 1], expected)


@pytest.mark.parametrize("name", ONE_WAY)
def test_what_cannot_score_data_is_refused_with_a_way_out(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot score data.*reverse=True.*RealNVP"):
        Replicated(ONE_WAY[name], K, features=D)
    bank = Replicated(ONE_WAY[name], K, features=D, reverse=True)
    with pytest.raises(NotImplementedError, match="cannot draw any"):
        bank().sample((2,))


def test_a_step_is_not_scored_by_values_from_before_it() -> None:
    for reverse in (False, True):
        bank = Replicated(BOTH_WAYS["affine coupling"], K, features=D, reverse=reverse)
        x = torch.randn(5, 1, D)
        before = bank().log_prob(x)
        with torch.no_grad():
            for parameter in bank.parameters():
                parameter.add_(0.3)
        assert not torch.allclose(bank().log_prob(x), before)
        for _ in range(2):  # the second time through the same rows
            bank().log_prob(x).sum().backward()


def test_transformed_distributions_bring_their_base() -> None:
    def make() -> dist.TransformedDistribution:
        base = dist.Laplace(torch.ones(D), 2 * torch.ones(D)).to_event(1)
        return dist.TransformedDistribution(base, [T.affine_coupling(D, hidden_dims=[4])])

    bank = Replicated(make, K)
    agrees_with_its_parts(bank)
    assert bank.double()().log_prob(torch.zeros(1, 1, D).double()).dtype == torch.float64


class Shaped(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(D))
        self.act = act

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.act(self.loc), torch.ones(D), validate_args=False).to_event(1)


def test_components_that_differ_are_called_one_by_one() -> None:
    acts = iter([torch.tanh, torch.sin, torch.cos])
    bank = Replicated(lambda: Shaped(next(acts)), K)
    assert not bank.vectorized
    assert "act" in str(bank.why_not)
    assert "one after the other" in repr(bank)
    agrees_with_its_parts(bank)
    bank = Replicated(Shaped, K)
    assert bank.vectorized
    assert "in one call" in repr(bank)
    assert not Replicated(Shaped, K, vectorize=False).vectorized
    agrees_with_its_parts(bank)


def test_tied_and_frozen_parameters_stay_so() -> None:
    shared = nn.Parameter(torch.randn(D))

    def make() -> Shaped:
        part = Shaped()
        part.loc = shared
        return part

    bank = Replicated(make, K)
    assert len(list(bank.parameters())) == 1
    agrees_with_its_parts(bank)
    bank = Replicated(Shaped, K)
    bank.parts[1].requires_grad_(False)
    bank().log_prob(torch.randn(4, 1, D)).sum().backward()
    assert bank.parts[1].loc.grad is None
    assert bank.parts[0].loc.grad is not None


def test_random_permutations_stay_apart_in_one_call() -> None:
    torch.manual_seed(0)
    five = 5
    bank = Replicated(lambda: [T.permute(five), T.affine_coupling(five)], 4, features=five)
    assert bank.vectorized
    orders = {tuple(part.tensor_0.tolist()) for part in bank.parts}  # type: ignore[operator, union-attr]
    assert len(orders) == 4
    x = torch.randn(6, 1, five)
    direct = torch.stack([part().log_prob(x[:, 0]) for part in bank.parts], -1)
    torch.testing.assert_close(bank().log_prob(x), direct)


@pytest.mark.parametrize("name", ["RealNVP", "NSF"])
def test_a_context_reaches_the_components(name: str) -> None:
    make = getattr(zuko.flows, name)
    bank = Replicated(lambda: make(D, context=4, **SMALL), K, context_features=4)
    context, x = torch.randn(7, 4), torch.randn(7, D)
    direct = torch.stack([part(context).log_prob(x) for part in bank.parts], -1)
    torch.testing.assert_close(bank(context).log_prob(x.unsqueeze(1)), direct)
    vmonf = VMoNF(FlowMixture(bank, context_features=4), SoftmaxGuide(MLP(D + 4, K)))
    vmonf.fit(x, given=context, epochs=1, progress=False)
    assert vmonf.sample(given=context)[0].shape == (7, D)


def test_pyros_conditional_transforms_take_the_context() -> None:
    bank = Replicated(
        lambda: [T.conditional_affine_coupling(D, 4)], K, features=D, context_features=4
    )
    context, x = torch.randn(7, 4), torch.randn(7, D)
    direct = torch.stack([part(context).log_prob(x) for part in bank.parts], -1)
    torch.testing.assert_close(bank(context).log_prob(x.unsqueeze(1)), direct)
    gradients = torch.autograd.grad(direct.sum(), list(bank.parameters()))
    assert len(gradients) > 3
    assert all(g.isfinite().all() for g in gradients)


def test_a_circle_keeps_its_units() -> None:
    circle = constraints.independent(constraints.interval(-math.pi, math.pi), 1)
    bank = Replicated(lambda: zuko.flows.NCSF(D, bins=3, **SMALL), K, support=circle)
    vmonf = VMoNF(FlowMixture(bank))
    assert vmonf.model.bounded
    x = (torch.rand(30, D) - 0.5) * 6
    vmonf.fit(x, epochs=1, progress=False)
    assert torch.equal(vmonf.model.standardizer.scale, torch.ones(D))
    assert (vmonf.sample(50)[0].abs() <= math.pi).all()


def test_a_background_catches_outliers() -> None:
    torch.manual_seed(0)
    x = torch.cat((torch.randn(180, D), 20 * (torch.rand(20, D) - 0.5)))
    background = dist.Normal(torch.zeros(D), 5 * torch.ones(D)).to_event(1)
    mixed = VMoNF(FlowMixture([Gaussian(D, 1), background], "learned"))
    mixed.fit(x, epochs=150, batch_size=200, lr=0.05, standardize=False, progress=False)
    far = x.norm(dim=-1) > 6
    assert far.sum() >= 8
    assert (mixed.predict(x)[far] == 1).all()
    assert mixed.predict(torch.zeros(1, D)) == 0
    alone = VMoNF(FlowMixture(Gaussian(D, 1)))
    alone.fit(x, epochs=150, batch_size=200, lr=0.05, standardize=False, progress=False)
    assert mixed.log_prob(x).mean() > alone.log_prob(x).mean() + 0.3


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a number": (lambda: Replicated(lambda: 3, K), TypeError, "the factory returned a int"),
    "no features": (
        lambda: Replicated(BOTH_WAYS["spline"], K),
        ValueError,
        "pass features=",
    ),
    "a bank": (lambda: Replicated(lambda: Gaussian(D, 2), K), ValueError, r"batch_shape \(2,\)"),
    "no distribution": (
        lambda: Replicated(lambda: nn.Identity(), K),
        TypeError,
        "forward",
    ),
    "trained tensors in a distribution": (
        lambda: FlowMixture([dist.Normal(nn.Parameter(torch.zeros(D)), 1.0).to_event(1)]),
        ValueError,
        "require a gradient",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    action, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        action()


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


def _adder(number: int) -> Callable[[int], int]:
    return lambda value: value + number


PAIRS: dict[str, tuple[Any, Any, bool]] = {
    "numbers": (1, 1, True),
    "other numbers": (Holder(1), Holder(2), False),
    "kinds": (Holder(1), Holder(1.0), False),
    "tensors": (Holder(torch.ones(2)), Holder(torch.ones(2)), True),
    "other tensors": (Holder(torch.ones(2)), Holder(torch.zeros(2)), False),
    "parameters": (nn.Linear(2, 2), nn.Linear(2, 2), True),
    "widths": (nn.Linear(2, 2), nn.Linear(2, 3), False),
    "closures": (_adder(1), _adder(1), True),
    "other closures": (_adder(1), _adder(2), False),
    "constants": (lambda v: v.clamp(*(-5.0, 5.0)), lambda v: v.clamp(*(-5.0, 50.0)), False),
    "the same code": (lambda v: [w + 1 for w in v], lambda v: [w + 1 for w in v], True),
    "functions in functions": (lambda v: [w + 1 for w in v], lambda v: [w + 2 for w in v], False),
    "partials": (functools.partial(max, 1), functools.partial(max, 2), False),
    "lists": ([1, 2], [1, 2, 3], False),
    "dicts": ({"a": 1}, {"b": 1}, False),
    "generators": (iter([1]), iter([1]), False),
}


@pytest.mark.parametrize("name", PAIRS)
def test_sameness(name: str) -> None:
    one, other, same = PAIRS[name]
    assert (difference(one, other) is None) == same


def test_a_cycle_ends() -> None:
    one, other = Holder(None), Holder(None)
    one.value, other.value = one, other
    assert difference(one, other) is None


def test_our_banks_are_components_too() -> None:
    bank = Replicated(lambda: FirstOf(RealNVP(D, 1, blocks=1)), K)
    agrees_with_its_parts(bank)


class FirstOf(nn.Module):
    """A bank of one as a single distribution."""

    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.bank = bank

    def forward(self) -> dist.TorchDistribution:
        return FlowMixture(self.bank).mixture()


@pytest.mark.parametrize("seed", range(3))
def test_circular_splines_keep_their_mass_on_the_torus(seed: int) -> None:
    """Standardised rows would put a share of the density outside, where nothing is."""
    torch.manual_seed(seed)
    vmonf = VMoNF(FlowMixture(Replicated(lambda: zuko.flows.NCSF(2, transforms=2), 2)))
    assert "rows keep their units" in repr(vmonf.model)
    vmonf.fit((2 * torch.rand(100, 2) - 1) * torch.pi, epochs=3, progress=False, seed=seed)
    grid = torch.linspace(-torch.pi, torch.pi, 101)[:-1] + torch.pi / 100
    mass = vmonf.log_prob(torch.cartesian_prod(grid, grid)).exp().mean() * (2 * torch.pi) ** 2
    assert mass == pytest.approx(1.0, abs=0.02)
    assert vmonf.sample(200, seed=seed)[0].abs().max() <= torch.pi
    with pytest.warns(RuntimeWarning, match="outside the support"):
        assert vmonf.log_prob(torch.tensor([[4.0, 0.0]])) == -torch.inf


@pytest.mark.parametrize("order", [(1.0, 2.0), (2.0, 1.0)])
def test_each_component_has_its_own_support(order: tuple[float, float]) -> None:
    sizes = iter(order)
    bank = Replicated(lambda: dist.Uniform(torch.zeros(2), next(sizes)).to_event(1), 2)
    vmonf = VMoNF(FlowMixture(bank))
    x = torch.tensor([[0.5, 0.5], [1.5, 0.2], [1.5, 1.5]])
    each = torch.stack([torch.where((x < size).all(-1), size**-2, 0.0) for size in order], -1)
    torch.testing.assert_close(vmonf.component_log_prob(x).exp(), each)
    torch.testing.assert_close(vmonf.log_prob(x).exp(), each.mean(-1))
    drawn, _ = vmonf.sample(200, seed=0)
    assert vmonf.log_prob(drawn).isfinite().all()
    assert vmonf.predict(x).tolist() == each.argmax(-1).tolist()
    with pytest.warns(RuntimeWarning, match="rows 1 lie outside the support of every component"):
        assert vmonf.predict(torch.tensor([[0.5, 0.5], [2.5, 0.5]])).tolist()[1] == -1


def test_a_bounded_map_stays_bounded_behind_others() -> None:
    """The last map alone does not say where a chain ends."""
    shifts = iter((5.0, 6.0))

    def chain() -> list[Any]:
        return [T.ExpTransform(), T.AffineTransform(next(shifts), 2.0)]

    vmonf = VMoNF(FlowMixture(Replicated(chain, 2, features=1), "learned"))
    assert vmonf.model.bounded
    x = torch.tensor([[7.0], [5.5], [4.0]])
    normal = dist.LogNormal(0.0, 1.0)
    each = torch.stack(
        [
            torch.where(x > low, normal.log_prob(((x - low) / 2).clamp_min(1e-9)), -torch.inf)
            for low in (5.0, 6.0)
        ],
        -1,
    )
    expected = each.squeeze(1) - math.log(2)
    with pytest.warns(RuntimeWarning, match="rows 2 lie outside the support"):
        torch.testing.assert_close(vmonf.component_log_prob(x), expected)
    with pytest.warns(RuntimeWarning, match="rows 2 lie outside the support"):
        assert vmonf.predict(x).tolist()[1:] == [0, -1]
    before = vmonf.component_log_prob(x[:2])
    vmonf.fit(7 + torch.rand(40, 1), epochs=1, progress=False)  # the rows keep their units
    torch.testing.assert_close(vmonf.component_log_prob(x[:2]), before)
