"""Terms of the guide against direct formulas, and the distortions they compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF, linear_decay
from pyro_vmonf.distortions import Adversarial, AffineImages, Jitter, RandomWalk
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Batch, Classification, Confidence, Consistency, Term

K, N, D = 3, 8, 2

pytestmark = pytest.mark.usefixtures("float64")


def pair(*terms: Term, elbo_gradient: float = 1.0) -> VMoNF:
    guide = SoftmaxGuide(MLP(D, K, hidden=(5,)), list(terms), elbo_gradient=elbo_gradient)
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), [0.2, 0.3, 0.5]), guide)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))
    return vmonf


def batch_of(guide: SoftmaxGuide, x: Tensor, evidence: Tensor | None = None) -> Batch:
    return Batch(guide, x, guide.log_q(x), evidence, torch.arange(len(x)))


def shifted(batch: Batch) -> Tensor:
    return batch.x + 0.5


def consistency(q: Tensor, moved: Tensor) -> Tensor:
    return torch.stack([-(q[i] * moved[i]).sum().log() for i in range(len(q))])


def balance(q: Tensor, moved: Tensor) -> Tensor:
    mean = q.sum(0) / len(q)
    return sum(m * (m / w).log() for m, w in zip(mean, (0.2, 0.3, 0.5), strict=True)).reshape(1)


def confidence(q: Tensor, moved: Tensor) -> Tensor:
    return torch.stack([-sum(p * p.log() for p in row) for row in q])


CASES: dict[str, tuple[Callable[[], Term], Callable[[Tensor, Tensor], Tensor]]] = {
    "consistency": (lambda: Consistency(shifted), consistency),
    "balance": (lambda: Balance(), balance),
    "confidence": (lambda: Confidence(), confidence),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_formula(case: str) -> None:
    make, formula = CASES[case]
    vmonf, x, term = pair(), torch.randn(N, D), make()
    guide = vmonf.guide
    found = term(batch_of(guide, x))
    q, moved = guide.network(x).softmax(-1), guide.network(x + 0.5).softmax(-1)
    expected = formula(q, moved)
    torch.testing.assert_close(found, expected)
    parameters = list(guide.network.parameters())
    for one, other in zip(
        torch.autograd.grad(found.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    assert (found >= 0).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weight", [0.0, 0.7, 3.0])
def test_a_factor_adds_its_weighted_penalty_to_the_loss(case: str, weight: float) -> None:
    make, _ = CASES[case]
    vmonf = pair(make())
    guide, x = vmonf.guide, torch.randn(N, D)
    guide.terms[0].weight = weight
    guide.set_step_(0)
    free = SoftmaxGuide(guide.network, [], model=vmonf.model)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    gap = elbo(vmonf.model, guide)(x, size=40) - elbo(vmonf.model, free)(x, size=40)
    penalty = make()(batch_of(guide, x)).expand(N).mean()
    torch.testing.assert_close(gap, 40 * weight * penalty)
    parameters = list(guide.network.parameters())
    found = torch.autograd.grad(gap, parameters)
    wanted = torch.autograd.grad(40 * weight * penalty, parameters)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_nothing_to_correct_costs_nothing() -> None:
    vmonf, x = pair(), torch.randn(N, D)
    sure = torch.full((N, K), -torch.inf)
    sure[torch.arange(N), torch.arange(N) % 2] = 0.0
    guide = vmonf.guide
    certain = Batch(guide, x, sure, None, torch.arange(N))
    assert torch.equal(Confidence()(certain), torch.zeros(N))
    assert torch.equal(Classification()(certain), torch.zeros(N))
    weights = vmonf.model.weights.probs.log().expand(N, K)
    balanced = Batch(guide, x, weights, None, torch.arange(N))
    torch.testing.assert_close(Balance()(balanced), torch.zeros(1))
    with torch.no_grad():
        guide.network.layers[-1].weight.zero_()
        guide.network.layers[-1].bias.copy_(torch.tensor([1e3, 0.0, 0.0]))
    same = Consistency(shifted)(batch_of(guide, x))
    torch.testing.assert_close(same, torch.zeros(N))


def test_balance_knows_the_rows_under_an_outer_plate() -> None:
    guide = pair().guide
    log_q = torch.randn(4, N, K).log_softmax(-1)
    left = Balance()(Batch(guide, None, log_q, None, None, dim=-1))  # type: ignore[arg-type]
    right = Balance()(Batch(guide, None, log_q.transpose(0, 1), None, None, dim=-2))  # type: ignore[arg-type]
    assert left.shape == (4, 1)
    assert right.shape == (1, 4)
    torch.testing.assert_close(left, right.T)
    one = Balance()(Batch(guide, None, log_q[2], None, None))  # type: ignore[arg-type]
    torch.testing.assert_close(left[2], one)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_elbo_gradient_reaches_the_network(share: float) -> None:
    vmonf, x = pair(elbo_gradient=share), torch.randn(N, D)
    y = torch.randint(-1, K, (N,))
    whole = SoftmaxGuide(vmonf.guide.network, [], model=vmonf.model)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    found, full = elbo(vmonf.model, vmonf.guide)(x, y), elbo(vmonf.model, whole)(x, y)
    torch.testing.assert_close(found, full)
    for module, factor in ((vmonf.guide.network, share), (vmonf.model.bank, 1.0)):
        parameters = list(module.parameters())
        for one, other in zip(
            torch.autograd.grad(found, parameters, retain_graph=True),
            torch.autograd.grad(full, parameters, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(one, factor * other)


def test_terms_reach_the_network_whatever_the_share() -> None:
    vmonf, x = pair(Confidence(weight=2.0), elbo_gradient=0.0), torch.randn(N, D)
    loss = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)(x)
    parameters = list(vmonf.guide.network.parameters())
    alone = 2 * Confidence()(batch_of(vmonf.guide, x)).sum()
    wanted = torch.autograd.grad(alone, parameters)
    for one, other in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_follow_their_schedule() -> None:
    term = Confidence(weight=linear_decay(steps=10, initial=2.0, final=1.0))
    vmonf = pair(term)
    assert term.current_weight == 2.0
    vmonf.guide.set_step_(5)
    assert term.current_weight == 1.5
    vmonf.fit(torch.randn(N, D), steps=4, progress=False)
    assert term.current_weight == pytest.approx(1.7)  # the last step is number 3


def test_terms_of_one_kind_have_names_of_their_own() -> None:
    names = [name for name, _ in pair(Confidence(), Balance(), Confidence()).guide.named_terms()]
    assert names == ["confidence", "balance", "confidence_2"]


class Entropy(Term):
    def forward(self, batch: Batch) -> Tensor:
        return torch.full(batch.x.shape[:-1], 10.0)


def test_terms_may_have_the_names_of_sites() -> None:
    vmonf, x = pair(Entropy()), torch.randn(N, D)
    history = vmonf.fit(x, epochs=1, progress=False)
    assert history.terms["entropy_term"] == [-10.0]
    assert history.elbo[0] == pytest.approx(sum(v[0] for v in history.terms.values()))


def test_walks_need_positions() -> None:
    vmonf, x = pair(Consistency(RandomWalk(torch.randn(40, D)))), torch.randn(N, D)
    with pytest.raises(ValueError, match="pass index and size"):
        vmonf.guide(x, size=40)


def test_a_walk_follows_links_and_stays_in_its_part() -> None:
    x = torch.cat((torch.randn(30, D), torch.randn(30, D) * torch.tensor([1.0, 3.0]) + 100))
    units = x / x.std(0, unbiased=False)
    near = torch.cdist(units, units).topk(5, largest=False).indices[:, 1:]
    linked = torch.zeros(60, 60, dtype=torch.bool)
    linked[torch.arange(60).repeat_interleave(4), near.flatten()] = True
    linked |= linked.T.clone()
    reached = torch.zeros(60, 60, dtype=torch.bool)
    single = RandomWalk(x, neighbors=4, length=1, walks=500)
    reached[torch.arange(60).repeat_interleave(500), single.ends.flatten()] = True
    assert torch.equal(reached, linked)  # every link, and nothing else
    long = RandomWalk(x, neighbors=4, length=20)
    assert torch.equal(long.ends >= 30, (torch.arange(60) >= 30)[:, None].expand(60, 64))
    assert not long.state_dict()
    index = torch.tensor([5, 40, 5])
    guide = pair().guide
    moved = long(Batch(guide, x[index], guide.log_q(x[index]), None, index))
    for row, start in zip(moved, index, strict=True):
        assert (row == x[long.ends[start]]).all(-1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"neighbors": 10}, "10 neighbours"), ({"neighbors": 0}, "neighbors"), ({"length": 0}, "len")],
)
def test_walks_that_cannot_be(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomWalk(torch.randn(10, D), **arguments)


def test_jitter_has_the_units_of_the_data() -> None:
    vmonf, x = pair(), torch.randn(50_000, D) * torch.tensor([1.0, 100.0])
    vmonf.model.standardize_(x)
    moved = Jitter(0.1)(batch_of(vmonf.guide, x)) - x
    torch.testing.assert_close(moved.std(0), torch.tensor([0.1, 10.0]), rtol=0.02, atol=0.0)


def test_adversarial_steps_change_the_answer_more_than_random_ones() -> None:
    vmonf, x = pair(), torch.randn(200, D)
    batch = batch_of(vmonf.guide, x)
    with torch.no_grad():  # evaluating a loss runs under no_grad
        moved = Adversarial(0.1, iterations=2)(batch)
    torch.testing.assert_close((moved - x).norm(dim=-1), torch.full((200,), 0.1))
    random = torch.randn_like(x)
    random = x + 0.1 * random / random.norm(dim=-1, keepdim=True)

    def change(to: Tensor) -> Tensor:
        return (batch.log_q.exp() * (batch.log_q - vmonf.guide.log_q(to))).sum(-1).mean()

    assert change(moved) > 1.3 * change(random)


def test_images_are_moved_by_the_map_that_was_asked_for() -> None:
    images = torch.zeros(6, 1, 9, 9)
    images[:, :, 4, 4] = 1.0
    still = AffineImages((9, 9), rotation=0, scale=0, shear=0, shift=0)
    torch.testing.assert_close(still.distorted(images.flatten(1)), images.flatten(1))
    moved = AffineImages((1, 9, 9), rotation=0, scale=0, shear=0, shift=0.4).distorted(images)
    grid = torch.arange(9.0)
    centre = (moved.squeeze(1).sum(1) * grid).sum(-1) / moved.sum((1, 2, 3))
    assert moved.shape == images.shape
    assert (centre - 4).abs().max() <= 0.4 * 4.5
    assert (centre - 4).abs().max() > 0.1
    # a quarter turn of a bar: only the angle is free, so its mass stays and its ends move
    bar = torch.zeros(200, 1, 9, 9)
    bar[:, :, 4, 2:7] = 1.0
    turned = AffineImages((9, 9), rotation=90, scale=0, shear=0, shift=0).distorted(bar)
    angles = turned.squeeze(1)[:, :, 4].sum(-1)  # the middle column fills as the bar turns
    assert angles.max() > 3.5
    assert angles.min() < 1.5
    assert math.isclose(float(turned.sum((1, 2, 3)).mean()), 5.0, rel_tol=0.05)


@pytest.mark.usefixtures("float64")
def test_balance_counts_rows_by_their_weights() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3), [Balance()]))
    x, weight = torch.randn(8, 2), torch.tensor([1.0, 2.0, 0.0, 0.5, 0.0, 1.0, 3.0, 0.0])
    q = vmonf.guide.log_q(x).exp()
    mean = (weight[:, None] * q).sum(0) / weight.sum()
    wanted = (mean * (mean * 3).log()).sum()
    batch = Batch(vmonf.guide, x, q.log(), None, None, sample_weight=weight)
    torch.testing.assert_close(Balance()(batch), wanted.expand(1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("term", [Balance(), Confidence()])
def test_components_that_are_ruled_out_leave_finite_gradients(term: Term) -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    log_q = (logits + torch.tensor([0.0, -torch.inf, 0.0])).log_softmax(-1)
    guide = SoftmaxGuide(MLP(2, 3))
    penalty = term(Batch(guide, torch.randn(6, 2), log_q, None, None)).sum()
    (gradient,) = torch.autograd.grad(penalty, logits)
    assert penalty.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("shape", [(7, 784), (7, 28, 14)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="flat ones of 196 pixels"):
        AffineImages((14, 14)).distorted(torch.rand(shape))


@pytest.mark.parametrize("shape", [(7, 196), (7, 14, 14), (2, 7, 1, 14, 14)])
def test_images_of_their_shape_keep_it(shape: tuple[int, ...]) -> None:
    assert AffineImages((14, 14)).distorted(torch.rand(shape)).shape == shape


@pytest.mark.parametrize(("shape", "dim"), [((20,), -1), ((4, 20), -1), ((20, 4), -2)])
def test_walks_start_from_their_rows_also_inside_other_plates(
    shape: tuple[int, ...], dim: int
) -> None:
    x = torch.cat((torch.randn(30, 2), torch.randn(30, 2) + 50))  # two islands
    walk = RandomWalk(x, neighbors=4)
    index = torch.randperm(60)[:20]
    rows = x[index].reshape(*((20, 1) if dim == -2 else (20,)), 2).expand(*shape, 2)
    guide = SoftmaxGuide(MLP(2, 2))
    ends = walk(Batch(guide, rows, torch.zeros(*shape, 2), None, index, dim))
    assert ends.shape == rows.shape
    assert ((ends > 25) == (rows > 25)).all()


@pytest.mark.parametrize(
    ("penalty", "kind", "said"),
    [
        (lambda batch: batch.x.square().sum(-1, keepdim=True), ValueError, r"shape \(20, 1\)"),
        (lambda batch: torch.ones(7), ValueError, r"shape \(7,\)"),
        (lambda batch: 1.0, TypeError, "a float"),
    ],
)
@pytest.mark.parametrize("fast", [True, False, None])
def test_a_term_of_ones_own_returns_a_penalty_of_each_row(
    fast: bool | None, penalty: Callable[[Batch], Tensor], kind: type[Exception], said: str
) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1)), SoftmaxGuide(MLP(2, 3), [penalty]))
    x = torch.randn(20, 2)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    run: dict[bool | None, Callable[[], Any]] = {
        None: lambda: elbo.loss(vmonf.model, vmonf.guide, x),
        True: lambda: vmonf.fit(x, epochs=1, progress=False),
        False: lambda: vmonf.fit(x, epochs=1, progress=False, fast=False),
    }
    with pytest.raises(kind, match=rf"the term customterm returns {said}; expected the penalty"):
        run[fast]()
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())
