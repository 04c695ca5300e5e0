"""Answers that were wrong without a word, each with the right one: the seventh reader's."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Dirichlet
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.nn import MLP, Remembered, StartedNetwork
from pyro_vmonf.plots import plot_history
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.terms import Agreement, Batch, Consistency, CustomTerm, Term

K = 3


def rows(count: int = 60) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def still(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


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
        history = one.fit(rows(), callbacks=callbacks, **options)
        ends.append(history)
    together, in_turn = ends
    assert together.restarts == pytest.approx(in_turn.restarts, rel=1e-9)
    assert together.elbo == pytest.approx(in_turn.elbo, rel=1e-9)
    assert together.terms["parameters"] == pytest.approx(in_turn.terms["parameters"], rel=1e-9)
    assert together.terms["parameters"][0] < -1


def test_a_frozen_random_bank_stays_random_and_a_part_of_one_is_saved(tmp_path: Any) -> None:
    bank = RealNVP(2, K, blocks=2, hidden=(4,))
    first, _ = next(iter(bank.named_parameters()))
    bank.get_parameter(first).requires_grad_(False)
    one = VMoNF(FlowMixture(RandomBank(bank)))
    sites = poutine.trace(one.model.requires_grad_(False)).get_trace(size=3).stochastic_nodes
    names = {name for name, _ in bank.named_parameters()} - {first}
    assert {f"bank.{name}" for name in names} < set(sites)
    assert f"bank.{first}" not in sites
    one.save(tmp_path / "bank.pt")
    again = VMoNF.load(tmp_path / "bank.pt").model.bank
    assert isinstance(again, RandomBank)
    assert set(again.names) == names
    with pytest.raises(ValueError, match=r"has parameters .*, and names is \['none'\]"):
        RandomBank(bank, names=["none"])


@pytest.mark.parametrize("pretrain", [0, 1, 3])
@pytest.mark.parametrize("interleave", [False, True])
def test_weights_are_the_mean_responsibilities_after_labelled_epochs(
    pretrain: int, interleave: bool
) -> None:
    """Responsibilities stand still, so the weights have to be their mean to rounding."""
    x = rows(40)
    y = torch.randint(-1, K, (40,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one = VMoNF(FlowMixture(RealNVP(2, K), "learned"), SoftmaxGuide(MLP(2, K))).double()
    one.model.standardize_(x)
    right = one.predict_proba(x, y).mean(0)
    options: dict[str, Any] = {"optimizer": still, "temperature": 1.0, "seed": 0}
    options |= {"pretrain_epochs": pretrain, "interleave": interleave, "progress": False}
    one.fit(x, y, epochs=5, batch_size=7, **options)
    found = one.model.weights.log_mean().exp().detach()
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_each_labelled_epoch_has_its_held_out_objective() -> None:
    """Nothing moves, so that every state has the objective of the first."""
    y = torch.randint(-1, K, (60,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), SoftmaxGuide(MLP(2, K))).double()
    options: dict[str, Any] = {"optimizer": still, "temperature": 1.0, "progress": False}
    options |= {"held_out": torch.arange(45, 60), "standardize": False}
    history = one.fit(rows(), y, epochs=2, pretrain_epochs=2, compile=False, **options)
    assert history.epoch == [-2, -1, 0, 1]
    assert history.start is not None
    for found in (history.held_out, history.objective):
        assert len(found) == 4
    assert history.objective == pytest.approx([history.start] * 4, rel=1e-12)
    plot_history(history)


def test_a_step_of_a_sequence_has_no_position_of_its_own() -> None:
    x = torch.randn(20, 4, 2, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor | None] = []

    def term(batch: Batch) -> Tensor:
        seen.append(batch.index)
        return batch.log_q.exp().amax(-1)

    guide = SoftmaxGuide(MLP(2, K), [CustomTerm(term)])
    one = MarkovVMoNF(MarkovMixture(Gaussian(2, K)), guide)
    one.fit(x, epochs=2, progress=False)
    assert seen
    assert all(index is None for index in seen)
    walk = Consistency(RandomWalk(x.reshape(-1, 2), walks=3))
    one = MarkovVMoNF(MarkovMixture(Gaussian(2, K)), SoftmaxGuide(MLP(2, K), [walk]))
    with pytest.raises(ValueError, match="a step of a sequence has no"):
        one.fit(x, epochs=1, progress=False)


@pytest.mark.parametrize("groups", [1, 2])
def test_random_rows_of_a_chain_are_refused_inside_a_plate(groups: int) -> None:
    initial, moves = Dirichlet(torch.ones(K)), Dirichlet(torch.ones(K, K))
    model = MarkovMixture(Gaussian(2, K), initial, moves)
    x = torch.randn(groups, 3, 4, 2)
    with (
        pytest.raises(ValueError, match="rows of a chain are drawn once"),
        pyro.plate("g", groups, dim=-2),
    ):
        model(x)
    fixed = MarkovMixture(Gaussian(2, K)).double()
    with pyro.plate("g", groups, dim=-2):
        trace = poutine.trace(fixed).get_trace(x.double())
    trace.compute_log_prob()
    torch.testing.assert_close(
        trace.nodes["x"]["log_prob"], fixed.mixture().lasting(4).log_prob(x.double())
    )


class Counting(nn.Module):
    """A network that counts its steps in whole numbers, as batch normalisation does."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(2, K)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def reset_parameters(self) -> None:
        self.steps.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps.add_(1)
        logits: Tensor = self.network(x) * torch.exp(-0.2 * self.steps)
        return logits


def test_counters_go_back_with_the_state_that_starts_together_keep() -> None:
    ends = []
    for callbacks in ((), lambda progress: None):
        torch.manual_seed(7)
        guide = SoftmaxGuide(Counting(), [])
        one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), guide).double()
        held = torch.arange(10)
        options: dict[str, Any] = {"n_init": 2, "epochs": 4, "lr": 0.3, "batch_size": 16}
        options |= {"held_out": held, "progress": False, "temperature": 1.0, "compile": False}
        history = one.fit(2 * rows(), seed=0, callbacks=callbacks, **options)
        elbo = float(one.elbo(2 * rows()[held]).mean())
        assert history.final_objective == pytest.approx(elbo, rel=1e-12)
        ends.append(guide.network.steps.clone())  # type: ignore[operator, union-attr]
    assert torch.equal(*ends)


def test_a_rejected_step_takes_a_counter_back() -> None:
    def broken(batch: Batch) -> Tensor:
        return batch.log_q.sum(-1) * (float("nan") if batch.guide.network.steps == 2 else 0.0)

    torch.manual_seed(0)
    guide = SoftmaxGuide(Counting(), [CustomTerm(broken)])
    one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), guide).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = one.fit(rows(), epochs=5, batch_size=60, progress=False, compile=False)
    assert history.rejected == 4  # the second step is taken again and again
    assert int(guide.network.steps) == 1  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("features", [0, 1])
def test_an_untouched_guide_agrees_with_its_start(temperature: float, features: int) -> None:
    x, given = rows(9).float(), torch.linspace(-1, 1, 9).unsqueeze(-1)
    context = given if features else None
    if features:
        network: Any = Remembered(MLP(2 + features, K))
    else:
        network = StartedNetwork(2, K, 1)
        network.shift.normal_()
    guide = SoftmaxGuide(network, [Agreement()], temperature=temperature)
    bank = RealNVP(2, K, context_features=features)
    one = VMoNF(FlowMixture(bank, context_features=features), guide)
    batch = Batch(guide, x, guide.log_q(x, context), None, None, given=context)
    assert bool((Agreement()(batch).abs() < 1e-6).all())
    assert one.fit(x, given=context, epochs=1, progress=False).elbo


def test_a_mixture_inside_an_independent_is_no_bounded_component() -> None:
    torch.manual_seed(0)
    mixture = MixtureSameFamily(Categorical(torch.ones(2, 1, 3)), Normal(torch.randn(2, 1, 3), 1.0))
    one = VMoNF(FlowMixture(Independent(mixture, 1)))
    assert not one.model.bounded
    x = torch.randn(5, 1)
    right = (Independent(mixture, 1).log_prob(x.unsqueeze(1)) - torch.tensor(2.0).log()).logsumexp(
        -1
    )
    torch.testing.assert_close(one.log_prob(x), right)


def test_parts_that_do_not_fit_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"event_shape \(\), one number for each row"):
        FlowMixture(Normal(torch.zeros(3), 1.0))
    with pytest.raises(TypeError, match="transforms has a AffineTransform; expected modules"):
        Flow([torch.distributions.AffineTransform(1.0, 2.0, event_dim=1)], base=Gaussian(1, 2))  # type: ignore[list-item]


def test_the_mean_of_a_condition_is_its_probability() -> None:
    one = VMoNF(FlowMixture(Gaussian(1, 2)))
    found, error = one.marginal().mean_estimate(2000, 0, of=lambda x: x > 0.3)
    right = 1 - one.marginal().cdf(torch.tensor([0.3])).detach()
    assert bool(((found - right).abs() < 4 * error).all())


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
        ends.append(one.double().fit(rows(), callbacks=callbacks, **options))
    assert ends[0].terms["sly"] == pytest.approx(ends[1].terms["sly"], rel=1e-12)
    assert ends[0].restarts == pytest.approx(ends[1].restarts, rel=1e-12)


def test_a_schedule_over_no_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="steps is nan"):
        linear_decay(float("nan"))  # type: ignore[arg-type]
