"""A guide over the most probable components, against sums written out, in float64."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO

from pyro_vmonf import FlowMixture, LearnedWeights, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.distributions import Selected, select
from pyro_vmonf.distributions.truncated import TopCategorical
from pyro_vmonf.nn import MLP

K, B, D = 5, 12, 2

pytestmark = pytest.mark.usefixtures("float64")


def labels(kind: str) -> torch.Tensor | None:
    return torch.arange(B) % (K + 1) - 1 if kind == "mixed" else None


@pytest.mark.parametrize("top", [1, 2, K])
@pytest.mark.parametrize("kind", ["unlabelled", "mixed"])
def test_the_elbo_is_the_sum_over_the_kept_components(top: int, kind: str) -> None:
    x, y = torch.randn(B, D), labels(kind)
    vmonf = VMoNF(
        FlowMixture(RealNVP(D, K, blocks=2), LearnedWeights(K, "gradient")),
        SoftmaxGuide(MLP(D, K), [], top=top),
    )
    loss = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)(x, y)
    joint = vmonf.model.weights() + vmonf.model.components().log_prob(x[:, None])
    kept_logits, kept = vmonf.guide.log_posterior(x, y).topk(top, -1)
    log_q = kept_logits.log_softmax(-1)
    q = log_q.exp()
    expected = (q * (joint.gather(-1, kept) - log_q.masked_fill(q == 0, 0.0))).sum()
    torch.testing.assert_close(loss, -expected, rtol=0, atol=1e-9)
    parameters = list(vmonf.parameters())
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(-expected, parameters, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("top", [1, 3, K, K + 3])
def test_it_is_a_bound_and_the_full_elbo_at_m_equal_k(top: int) -> None:
    x = torch.randn(B, D)
    model = FlowMixture(RealNVP(D, K, blocks=2))
    network = MLP(D, K)
    elbo = {
        m: -TraceEnum_ELBO(max_plate_nesting=1).loss(
            model, SoftmaxGuide(network, [], top=m, model=model), x
        )
        for m in (top, None)
    }
    assert elbo[top] <= model.mixture().log_prob(x).sum().item() + 1e-9
    if top >= K:
        assert elbo[top] == pytest.approx(elbo[None], abs=1e-9)


def test_only_the_densities_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    components = RealNVP(D, K, blocks=1)()
    rows: list[int] = []
    full = type(components).log_prob

    def counting(self: object, x: torch.Tensor) -> torch.Tensor:
        rows.append(x.shape[0])
        return full(self, x)  # type: ignore[arg-type]

    monkeypatch.setattr(type(components), "log_prob", counting)
    c = torch.arange(100) % K
    select(components, c).log_prob(torch.randn(100, D))
    assert rows == [100 // K]


@pytest.mark.parametrize("shape", [(B,), (2, B), (3, 1)])
def test_grouped_densities_are_those_of_a_table(shape: tuple[int, ...]) -> None:
    components = RealNVP(D, K, blocks=2)()
    x, c = torch.randn(B, D), torch.randint(K, shape)
    found = Selected(components, c).log_prob(x)
    table = components.log_prob(x[:, None]).expand(*found.shape, K)
    expected = table.gather(-1, c.expand(found.shape).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_it_is_a_distribution_on_what_it_keeps() -> None:
    logits = torch.randn(3, K)
    q = TopCategorical(logits, 2)
    every = torch.arange(K)[:, None].expand(K, 3)
    probs = q.log_prob(every).exp()
    torch.testing.assert_close(probs.sum(0), torch.ones(3))
    assert (probs > 0).sum(0).tolist() == [2, 2, 2]
    assert torch.equal(q.enumerate_support(), logits.topk(2, -1).indices.T)
    draws = q.sample((20_000,))
    frequency = torch.stack([(draws == k).double().mean(0) for k in range(K)])
    assert (frequency - probs).abs().max() < 0.02
    wide = q.expand((4, 3))
    assert torch.equal(wide.log_prob(every[:, None]), q.log_prob(every)[:, None].expand(K, 4, 3))
    assert wide.sample().shape == (4, 3)


def test_it_trains_under_svi_and_draws_without_enumeration() -> None:
    x = torch.randn(64, D)
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=2)), SoftmaxGuide(MLP(D, K), top=2))
    svi = SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO())
    losses = [svi.step(x) for _ in range(30)]
    assert losses[-1] < losses[0]
    with pytest.warns(UserWarning, match="enumerate"):
        assert Trace_ELBO().loss(vmonf.model, vmonf.guide, x) < float("inf")


def test_fewer_than_one_component_is_refused() -> None:
    with pytest.raises(ValueError, match="top is 0"):
        SoftmaxGuide(MLP(D, K), top=0)
