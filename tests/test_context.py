"""Conditional mixtures: p(x|c, context), π(context), against rows taken one by one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO
from torch import nn

from pyro_vmonf import (
    MAF,
    NSF,
    AutoregressiveNSF,
    ExactGuide,
    Flow,
    FlowMixture,
    GatedWeights,
    Gaussian,
    MarginalGuide,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Consistency
from pyro_vmonf.transforms import (
    Affine,
    AffineAutoregressive,
    AffineCoupling,
    ContextAffine,
    FlowTransform,
    SplineAutoregressive,
    SplineCoupling,
)

K, D, H, N = 3, 4, 2, 7

TRANSFORMS: dict[str, Callable[..., FlowTransform]] = {
    "affine coupling": AffineCoupling,
    "another mask": lambda *a, **k: AffineCoupling(*a, mask=[True, True, False, False], **k),
    "spline coupling": SplineCoupling,
    "affine autoregressive": AffineAutoregressive,
    "deep": lambda *a, **k: AffineAutoregressive(*a, **(k | {"hidden": (5, 6)})),
    "shallow": lambda *a, **k: AffineAutoregressive(*a, **(k | {"hidden": ()})),
    "backwards": lambda *a, **k: AffineAutoregressive(*a, order=[3, 2, 1, 0], **k),
    "spline autoregressive": SplineAutoregressive,
    "context affine": lambda d, **k: ContextAffine(d, k.pop("context_features"), **k),
}


def made(name: str, batch_shape: tuple[int, ...]) -> FlowTransform:
    transform = TRANSFORMS[name](D, context_features=H, hidden=(5,), batch_shape=batch_shape)
    for parameter in transform.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return transform.double()


@pytest.mark.parametrize("batch_shape", [(), (K,)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_see_their_own_rows_context(name: str, batch_shape: tuple[int, ...]) -> None:
    transform = made(name, batch_shape)
    z = torch.randn(N, 1, D, dtype=torch.float64)
    context = torch.randn(N, 1, H, dtype=torch.float64)
    bound = transform.condition(context)
    x, log_det = bound.forward_and_log_det(z)
    assert x.shape == (N, *(batch_shape or (1,)), D)
    back, back_log_det = bound.inverse_and_log_det(x)
    torch.testing.assert_close(back, z.expand_as(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back_log_det, -log_det, rtol=1e-8, atol=1e-8)
    for n in range(N):
        alone, _ = transform.condition(context[n]).forward_and_log_det(z[n])
        torch.testing.assert_close(alone, x[n])
    other = transform.condition(context + 1)(z)
    assert not torch.allclose(other[..., -1], x[..., -1])
    grown = transform.condition(context[:1])(z)  # one context for all rows
    torch.testing.assert_close(grown[0], x[0])
    many = transform.condition(context)(z[:1])  # one row under all contexts
    torch.testing.assert_close(many[0], x[0])
    assert transform.condition(context) is not transform
    assert transform.context is None


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_log_determinant_is_autograds(name: str) -> None:
    transform = made(name, ())
    z, context = torch.randn(D, dtype=torch.float64), torch.randn(H, dtype=torch.float64)
    bound = transform.condition(context)
    jacobian = torch.autograd.functional.jacobian(bound, z)
    found = bound.forward_and_log_det(z)[1]
    torch.testing.assert_close(found, torch.linalg.slogdet(jacobian)[1], rtol=1e-8, atol=1e-8)
    bound.forward_and_log_det(z)[0].sum().backward()
    assert all(p.grad is not None for p in transform.parameters())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_context_that_lacks_or_does_not_fit_is_told(name: str) -> None:
    transform = made(name, (K,))
    with pytest.raises(ValueError, match="takes a context of 2 features"):
        transform(torch.randn(N, 1, D, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(7, 3\); this .* takes \(\*, 2\)"):
        transform.condition(torch.randn(N, 3, dtype=torch.float64))


def test_one_feature_depends_on_its_context() -> None:
    bank = AutoregressiveNSF(1, K, context_features=H)
    x = torch.zeros(N, 1, 1)
    context = torch.randn(N, H)
    log_prob = bank(context).log_prob(x)
    assert log_prob.shape == (N, K)
    assert log_prob.std(0).min() > 0


def experts() -> Flow:
    """A linear regression at the data end, with residuals of their own shape."""
    layers = [
        AffineCoupling(D, hidden=(4,), batch_shape=(K,)),
        Affine(D),
        ContextAffine(D, H, batch_shape=(K,)),
    ]
    return Flow(layers, base=StandardNormal(D, K))


BANKS: dict[str, Callable[[], nn.Module]] = {
    "RealNVP": lambda: RealNVP(D, K, blocks=2, hidden=(4,), context_features=H),
    "MAF": lambda: MAF(D, K, blocks=2, hidden=(4,), context_features=H),
    "NSF": lambda: NSF(D, K, blocks=2, hidden=(4,), context_features=H),
    "experts": experts,
    "shared": lambda: RealNVP(D, K, blocks=2, hidden=(4,), context_features=H, shared=1),
}
WEIGHTS: dict[str, Callable[[], Any]] = {
    "uniform": lambda: "uniform",
    "learned": lambda: "learned",
    "gated": lambda: GatedWeights(MLP(H, K, hidden=(4,)), K),
    "Dirichlet": lambda: dist.Dirichlet(torch.ones(K)),
}
GUIDES: dict[str, Callable[[], Any]] = {
    "softmax": lambda: SoftmaxGuide(MLP(D + H, K), [Consistency(lambda b: b.x + 0.1), Balance()]),
    "top": lambda: SoftmaxGuide(MLP(D + H, K), top=2),
    "exact": ExactGuide,
    "none": lambda: None,
}


def pair(bank: str, weights: str, guide: str) -> VMoNF:
    model = FlowMixture(BANKS[bank](), WEIGHTS[weights](), context_features=H)
    for parameter in model.bank.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return VMoNF(model, GUIDES[guide]())


# Each bank with all weights, and each guide with each bank and with all weights; ``make matrix``
# sets ``WHOLE_MATRIX`` and tests all triples.
WHOLE = list(itertools.product(BANKS, WEIGHTS, GUIDES))
PAIRED = [
    (bank, weights, list(GUIDES)[(i + j) % len(GUIDES)])
    for i, bank in enumerate(BANKS)
    for j, weights in enumerate(WEIGHTS)
]


@pytest.mark.parametrize(
    ("bank", "weights", "guide"), WHOLE if os.environ.get("WHOLE_MATRIX") else PAIRED
)
def test_conditional_mixtures(bank: str, weights: str, guide: str) -> None:
    vmonf = pair(bank, weights, guide)
    x, h = torch.randn(N, D), torch.randn(N, H)
    # every verb: a row's score is that of the row alone, whatever the chunks
    for verb in (vmonf.log_prob, vmonf.predict_proba, vmonf.component_log_prob, vmonf.elbo):
        whole = verb(x, given=h)
        alone = torch.cat([verb(x[n : n + 1], given=h[n : n + 1]) for n in range(N)])
        torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(verb(x, given=h, chunk_size=3), whole, rtol=1e-4, atol=1e-4)
    joint = vmonf.model.weights.log_mean(h).detach() + vmonf.component_log_prob(x, given=h)
    torch.testing.assert_close(vmonf.log_prob(x, given=h), joint.logsumexp(-1))
    torch.testing.assert_close(
        vmonf.marginal(given=h).log_prob(x).detach(), vmonf.log_prob(x, given=h)
    )
    # the program
    trace = poutine.trace(vmonf.model).get_trace(x, given=h)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (N,)
    assert Predictive(vmonf.model, num_samples=2)(given=h)["x"].shape == (2, N, D)
    drawn, c = vmonf.sample(given=h, seed=0)
    assert drawn.shape == (N, D)
    assert c.shape == (N,)
    assert (vmonf.sample(given=h, component=1)[1] == 1).all()
    # training, by plain SVI and by fit, with labels and weights of rows
    y = torch.tensor([0, 1, 2, -1, -1, -1, -1])
    svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({}), TraceEnum_ELBO(max_plate_nesting=1))
    assert svi.step(x, y, given=h) < float("inf")
    weight = None if guide == "none" else torch.rand(N)
    history = vmonf.fit(
        x, y, given=h, epochs=1, batch_size=4, sample_weight=weight, progress=False, seed=0
    )
    assert torch.tensor(history.elbo).isfinite().all()


@pytest.mark.parametrize("guide", ["softmax", "none"])
def test_an_outer_plate_keeps_rows_and_context_together(guide: str) -> None:
    vmonf = pair("RealNVP", "gated", guide)
    vmonf.guide.terms = nn.ModuleList() if guide == "softmax" else None
    x, h = torch.randn(2, N, D), torch.randn(2, N, H)

    def left(program: Any) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("outer", 2, dim=-2):
                program(x, given=h)

        return run

    whole = TraceEnum_ELBO(max_plate_nesting=2).loss(left(vmonf.model), left(vmonf.guide))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    parts = [elbo.loss(vmonf.model, vmonf.guide, x[i], given=h[i]) for i in range(2)]
    assert whole == pytest.approx(sum(parts), rel=1e-4)


def test_restarts_carry_the_context() -> None:
    vmonf = pair("RealNVP", "gated", "softmax")
    x, h = torch.randn(40, D), torch.randn(40, H)
    history = vmonf.fit(x, given=h, epochs=2, n_init=2, progress=False, seed=0)
    assert len(history.restarts) == 2


def test_the_gradient_is_that_of_the_formula() -> None:
    model = FlowMixture(experts(), GatedWeights(MLP(H, K), K), context_features=H).double()
    x, h = torch.randn(N, D).double(), torch.randn(N, H).double()
    loss = TraceEnum_ELBO(max_plate_nesting=1)(model, MarginalGuide(model))(x, given=h)
    log_pi = model.weights.network(h).log_softmax(-1)
    direct = -(log_pi + model.bank(h).log_prob(x.unsqueeze(1))).logsumexp(-1).sum()
    torch.testing.assert_close(loss, direct)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(direct, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def plain() -> VMoNF:
    return VMoNF(FlowMixture(RealNVP(D, K, context_features=H, blocks=2), context_features=H))


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "no context": (lambda: plain().log_prob(torch.zeros(N, D)), "pass given="),
    "rows": (
        lambda: plain().log_prob(torch.zeros(N, D), given=torch.zeros(N - 1, H)),
        "the context has 6 rows but x has 7",
    ),
    "features": (
        lambda: plain().fit(torch.zeros(N, D), given=torch.zeros(N, H + 1), progress=False),
        "the context does not fit",
    ),
    "nan": (
        lambda: plain().log_prob(torch.zeros(N, D), given=torch.full((N, H), torch.nan)),
        "the context does not fit: .*NaN",
    ),
    "a context nobody takes": (
        lambda: VMoNF(FlowMixture(RealNVP(D, K, blocks=2))).predict(
            torch.zeros(N, D), given=torch.ones(N)
        ),
        "takes none",
    ),
    "a number and a context": (
        lambda: plain().sample(3, given=torch.zeros(N, H)),
        "num_samples is 3 but the context has 7 rows",
    ),
    "a network of rows alone": (
        lambda: VMoNF(plain().model, SoftmaxGuide(MLP(D, K))),
        "features and context",
    ),
    "no features": (lambda: ContextAffine(2, 0), "context_features"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    action, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_experts_find_two_lines() -> None:
    torch.manual_seed(0)
    h = 4 * torch.rand(400, 1) - 2
    branch = torch.arange(400) % 2
    y = torch.where(branch == 0, 1.5 * h[:, 0], -1.5 * h[:, 0])[:, None] + 0.1 * torch.randn(400, 1)
    layers = [ContextAffine(1, 1, batch_shape=(2,))]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(1, 2)), context_features=1))
    with torch.no_grad():
        layers[0].network.layers[0].weight[:, 1, 0] = torch.tensor([0.5, -0.5])
    vmonf.fit(y, given=h, epochs=60, lr=0.05, batch_size=100, progress=False, seed=0)
    clear = h[:, 0].abs() > 0.5
    found = vmonf.predict(y, given=h)[clear] == branch[clear]
    assert max(found.float().mean(), 1 - found.float().mean()) > 0.99
    spread = -0.5 * torch.tensor(2 * torch.pi * torch.e * 0.01).log()
    expected = spread + torch.tensor(0.5).log()  # of a row on one of two lines, far apart
    assert vmonf.log_prob(y, given=h)[clear].mean() == pytest.approx(float(expected), abs=0.15)


def test_a_context_may_come_as_an_array() -> None:
    vmonf = plain()
    x, h = torch.randn(N, D), torch.randn(N, H)
    assert torch.equal(vmonf.log_prob(x.numpy(), given=h.numpy()), vmonf.log_prob(x, given=h))


def test_a_lone_context_that_loses_its_digits_is_named() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, context_features=1, blocks=2), context_features=1))
    x, given = torch.zeros(3, 2), torch.full((3, 1), 20_000_001.0, dtype=torch.float64)
    for rows in (1, 3):  # alike
        with pytest.warns(RuntimeWarning, match="column 0 of the context, about 20000001, loses"):
            vmonf.log_prob(x[:rows], given=given[:rows])
    vmonf.log_prob(x, given=given - 20_000_000)
    vmonf.double().log_prob(x.double(), given=given)


def test_a_context_that_no_part_reads_has_its_rows() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), context_features=1))
    given, x = torch.randn(4, 1), torch.randn(4, 2)
    assert vmonf.marginal(given=given).batch_shape == (4,)
    assert vmonf.marginal(given=given).sample((5,)).shape == (5, 4, 2)
    draws, c = vmonf.sample(given=given)
    assert draws.shape == (4, 2)
    assert c.shape == (4,)
    expected = VMoNF(FlowMixture(vmonf.model.bank)).log_prob(x)
    torch.testing.assert_close(vmonf.log_prob(x, given=given), expected)
