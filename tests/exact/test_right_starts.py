"""Starts, lessons and restarts: right values where wrong ones were found."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.nn import MLP, Remembered, StartedNetwork
from pyro_vmonf.starts import Reseed, warm_start_
from pyro_vmonf.starts.images import image_clusters
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.terms import Agreement, Batch, Term
from tests.samples import HALF, double_rows, sixty_rows, two_blobs, two_gaussians, two_numpy_blobs

K = 3


@pytest.mark.parametrize("frozen", [True, False])
def test_gaussians_that_were_set_are_no_start_of_a_fit(frozen: bool) -> None:
    x, vmonf = two_blobs(), two_gaussians()
    vmonf.model.standardize_(x)
    means = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    vmonf.model.bank.set_(means, torch.eye(2).expand(2, 2, 2))
    vmonf.model.bank.requires_grad_(not frozen)
    warm_start_(vmonf.guide, x, HALF, seed=0)
    vmonf.fit(x, steps=1, lr=1e-9, progress=False, seed=0)
    torch.testing.assert_close(vmonf.model.bank.loc.detach(), means, rtol=0, atol=1e-6)


def test_restarts_leave_frozen_parameters_alone() -> None:
    frozen = torch.nn.Linear(2, 8).requires_grad_(False)
    before = frozen.weight.clone()
    network = torch.nn.Sequential(frozen, torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model = FlowMixture(RealNVP(2, 2, blocks=2), "learned")
    model.weights.logits.data.copy_(torch.tensor([0.2, 0.8]).log())
    model.weights.requires_grad_(False)
    vmonf = VMoNF(model, SoftmaxGuide(network))
    vmonf.fit(two_blobs(), epochs=2, n_init=3, seed=1, progress=False)
    assert torch.equal(frozen.weight, before)
    assert vmonf.model.weights.log_mean().exp().tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"lr": math.nan}, {"seed": "a"}, {"batch_size": 0}])
def test_refused_start_leaves_the_units_alone(bad: dict[str, Any]) -> None:
    vmonf = two_gaussians(bank=RealNVP(2, 2, blocks=2))
    with pytest.raises((ValueError, TypeError)):
        warm_start_(vmonf.guide, 1000 * two_blobs(), HALF, **bad)
    assert not vmonf.model.standardizer.fitted


def test_restarts_say_that_they_lose_the_clusters_of_a_guide() -> None:
    x, vmonf = two_blobs(), two_gaussians()
    warm_start_(vmonf.guide, x, HALF, seed=0)
    with pytest.warns(RuntimeWarning, match="draws the guides of runs 2 to 3 anew"):
        vmonf.fit(x, epochs=1, n_init=3, seed=0, progress=False)


def test_a_warm_start_that_fails_leaves_the_guide_as_it_was() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    before = copy.deepcopy(vmonf.state_dict())
    x = torch.as_tensor(two_numpy_blobs()).float()
    calls = []

    def later(module: nn.Module, given: Any, found: Tensor) -> Tensor:
        calls.append(1)
        return found * (torch.nan if len(calls) > 20 else 1.0)

    hook = vmonf.guide.network.register_forward_hook(later)
    with pytest.raises(FloatingPointError, match="as it was before"):
        warm_start_(vmonf.guide, x, torch.arange(200) // 100, seed=0)
    hook.remove()
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())


@pytest.mark.parametrize("weights", ["uniform", "learned"])
def test_starts_that_run_together_keep_the_prior_of_a_random_bank(weights: str) -> None:
    """Under vmap no parameter requires a gradient; the sites are those of the construction."""
    ends = []
    for callbacks in ((), lambda progress: None):  # with a callback the runs go in turn
        torch.manual_seed(7)
        bank = RandomBank(Gaussian(2, K))
        one = VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(2, K), terms=[])).double()
        options: dict[str, Any] = {"n_init": 2, "epochs": 1, "lr": 1e-9, "temperature": 1.0}
        options |= {"held_out": torch.arange(10), "progress": False, "seed": 0}
        history = one.fit(double_rows(), callbacks=callbacks, **options)
        ends.append(history)
    together, in_turn = ends
    assert together.restarts == pytest.approx(in_turn.restarts, rel=1e-9)
    assert together.elbo == pytest.approx(in_turn.elbo, rel=1e-9)
    assert together.terms["parameters"] == pytest.approx(in_turn.terms["parameters"], rel=1e-9)
    assert together.terms["parameters"][0] < -1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("features", [0, 1])
def test_an_untouched_guide_agrees_with_its_start(temperature: float, features: int) -> None:
    x, given = double_rows(9).float(), torch.linspace(-1, 1, 9).unsqueeze(-1)
    context = given if features else None
    if features:
        network: Any = Remembered(MLP(2 + features, K))
    else:
        network = StartedNetwork(2, K, 1)
        network.shift.normal_()
    guide = SoftmaxGuide(network, [Agreement()], temperature=temperature)
    bank = RealNVP(2, K, context_features=features, blocks=2)
    one = VMoNF(FlowMixture(bank, context_features=features), guide)
    batch = Batch(guide, x, guide.log_q(x, context), None, None, given=context)
    assert bool((Agreement()(batch).abs() < 1e-6).all())
    assert one.fit(x, given=context, epochs=1, progress=False).elbo


class Sly(Term):
    """A term that does something else where its parameter is none, as under ``torch.vmap``."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.level)

    def forward(self, batch: Batch) -> Tensor:
        return self.level.square().expand(len(batch.x)) * (1 if self.level.requires_grad else 9)


def test_starts_whose_terms_differ_together_run_in_turn() -> None:
    ends = []
    for callbacks in ((), lambda progress: None):
        torch.manual_seed(7)
        one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), SoftmaxGuide(MLP(2, K), [Sly()]))
        options: dict[str, Any] = {"n_init": 2, "epochs": 2, "progress": False, "seed": 0}
        ends.append(one.double().fit(double_rows(), callbacks=callbacks, **options))
    assert ends[0].terms["sly"] == pytest.approx(ends[1].terms["sly"], rel=1e-12)
    assert ends[0].restarts == pytest.approx(ends[1].restarts, rel=1e-12)


def gated() -> VMoNF:
    return VMoNF(
        FlowMixture(RealNVP(2, 3, blocks=2), "learned", context_features=1), SoftmaxGuide(MLP(3, 3))
    )


def chain() -> MarkovVMoNF:
    return MarkovVMoNF(MarkovMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))


@pytest.mark.parametrize(
    ("pair", "kind", "said"),
    [(gated, ValueError, "depend on a context"), (chain, TypeError, "of sequences")],
)
def test_lessons_of_rows_refuse_other_pairs(pair: Any, kind: type[Exception], said: str) -> None:
    vmonf = pair()
    with pytest.raises(kind, match=said):
        warm_start_(vmonf.guide, sixty_rows(), torch.arange(60) % 3)
    with pytest.raises(kind, match=said):
        pretrain_(vmonf.guide, sixty_rows(), terms=[lambda batch: batch.log_q.sum(-1)])
    x, options = (sixty_rows(20).reshape(4, 5, 2), {})
    if pair is gated:
        x, options = sixty_rows(), {"given": sixty_rows(60, 1)}
    with pytest.raises(kind, match=said):
        vmonf.fit(x, epochs=3, callbacks=Reseed(x), progress=False, **options)
    assert len(vmonf.history.epoch) == 1  # at once, and not after the first ten epochs


def test_restarts_without_a_gradient_run() -> None:
    bank = Gaussian(2, 2).requires_grad_(False)
    vmonf = VMoNF(FlowMixture(bank, "learned"))
    history = vmonf.fit(sixty_rows(), epochs=2, n_init=2, seed=0, progress=False)
    assert len(history.restarts) == 2
    assert all(map(math.isfinite, history.restarts))


@pytest.mark.parametrize("count", [40, 90, 120])
def test_few_images_have_the_clusters_that_are_asked_for(count: int) -> None:
    features = np.eye(10)[np.arange(count) % 10] + 0.05 * np.random.default_rng(0).normal(
        size=(count, 10)
    )
    found, _ = image_clusters(features.astype(np.float32), 10)
    assert len(np.unique(found)) == 10
