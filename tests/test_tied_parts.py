"""Parts and parameters that a pair has in two places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vmonf import Flow, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.components import take_components_
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP, Remembered
from pyro_vmonf.terms import Agreement, Batch, Classification, Term
from pyro_vmonf.training.objective import Objective

X = torch.cat((torch.randn(30, 2), torch.randn(30, 2) + 4, torch.randn(30, 2) - 4))


class ByBank(nn.Module):
    """The logits of a guide by the densities of the bank."""

    def __init__(self, bank: Gaussian) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.bank().log_prob(x.unsqueeze(-2))
        return logits


class WithWeights(nn.Module):
    """A network whose logits begin at the weights of the mixture."""

    def __init__(self, logits: nn.Parameter) -> None:
        super().__init__()
        self.network = MLP(2, 3, hidden=(4,))
        self.logits = logits

    def reset_parameters(self) -> None:
        """The layers draw their own, and the weights theirs."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x) + self.logits
        return logits


def by_bank() -> VMoNF:
    bank = Gaussian(2, 3)
    return VMoNF(FlowMixture(bank), SoftmaxGuide(ByBank(bank), terms=[]))


def with_weights() -> VMoNF:
    model = FlowMixture(RealNVP(2, 3, blocks=1), "learned")
    return VMoNF(model, SoftmaxGuide(WithWeights(model.weights.logits)))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [by_bank, with_weights])
@pytest.mark.parametrize("index", [[1, 2, 0], [2, 1], [1, 0]])
def test_outputs_that_follow_by_themselves_are_not_moved_twice(
    make: Callable[[], VMoNF], index: list[int]
) -> None:
    vmonf = make()
    before = copy.deepcopy(vmonf.state_dict())
    q = vmonf.predict_proba(X)
    with pytest.raises(ValueError, match=r"the guide has the .* as well"):
        take_components_(vmonf, torch.tensor(index))
    assert vmonf.state_dict().keys() == before.keys()
    torch.testing.assert_close(vmonf.predict_proba(X), q, rtol=0, atol=0)


def repeated_layers() -> VMoNF:
    one, other = list(RealNVP(2, 3, blocks=2).transforms)
    bank = Flow([one, other, one, other], base=StandardNormal(2, 3))
    return VMoNF(FlowMixture(bank, "learned"), SoftmaxGuide(MLP(2, 3)))


def repeated_components() -> VMoNF:
    bank = Gaussian(2, 1)
    return VMoNF(FlowMixture([bank, bank], "learned"))


def names(vmonf: VMoNF) -> list[str]:
    return [name for name, _ in vmonf.named_parameters()]


@pytest.mark.parametrize("make", [repeated_layers, repeated_components])
def test_a_file_keeps_a_part_that_comes_twice_one(
    make: Callable[[], VMoNF], tmp_path: Path
) -> None:
    vmonf = make()
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert names(loaded) == names(vmonf)
    torch.testing.assert_close(loaded.log_prob(X), vmonf.log_prob(X), rtol=0, atol=0)
    for one in (vmonf, loaded):
        one.fit(X, epochs=2, batch_size=30, seed=0, progress=False)
    torch.testing.assert_close(loaded.log_prob(X), vmonf.log_prob(X), rtol=0, atol=0)


def test_prior_and_posterior_of_a_file_share_their_concentration(tmp_path: Path) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1), dist.Dirichlet(torch.ones(3))))
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    for one in (vmonf, loaded):
        assert one.model.weights.posterior.prior is one.model.weights.prior


def test_a_tie_that_no_constructor_makes_is_said(tmp_path: Path) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=1)), SoftmaxGuide(MLP(2, 2, hidden=(2,))))
    layers = vmonf.guide.network.layers
    layers[0].bias = layers[1].bias
    with pytest.warns(UserWarning, match=r"layers\.0\.bias and .*layers\.1\.bias .* are one"):
        vmonf.save(tmp_path / "pair.pt")
    with pytest.raises(ValueError, match="into="):
        VMoNF.load(tmp_path / "pair.pt")


def test_a_tie_that_is_broken_is_said(tmp_path: Path) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1), dist.Dirichlet(torch.ones(3))))
    weights = vmonf.model.weights
    weights.posterior.prior = copy.deepcopy(weights.prior)
    vmonf.save(tmp_path / "pair.pt")  # two parts, as a constructor takes them
    loaded = VMoNF.load(tmp_path / "pair.pt").model.weights
    assert loaded.posterior.prior is not loaded.prior


@pytest.mark.parametrize("make", [by_bank, with_weights, repeated_layers, repeated_components])
def test_starts_of_tied_parts_run_in_turn(make: Callable[[], VMoNF]) -> None:
    vmonf = make()
    own = names(vmonf)
    history = vmonf.fit(X, epochs=2, n_init=2, seed=0, progress=False)
    assert len(history.objective) == 2
    assert names(vmonf) == own
    assert vmonf.log_prob(X).isfinite().all()


class Target(Term):
    """A term that knows the components."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("target", torch.tensor([0.2, 0.3, 0.5]))

    def forward(self, batch: Batch) -> Tensor:
        return (batch.log_q.exp() - self.target).square().sum(-1)

    def take_(self, index: Tensor) -> None:
        self.target = self.target[index]


def test_a_term_that_knows_the_components_follows_them() -> None:
    guide = SoftmaxGuide(MLP(2, 3), [Target()])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), guide)
    loss = Objective(vmonf.model, vmonf.guide)(x=X, size=len(X))["target"]
    for _ in range(2):
        take_components_(vmonf, torch.tensor([2, 0, 1]))
        found = Objective(vmonf.model, vmonf.guide)(x=X, size=len(X))["target"]
        torch.testing.assert_close(found, loss)


def test_an_aligned_guide_knows_its_start() -> None:
    network = Remembered(MLP(2, 3, hidden=(8,)))
    guide = SoftmaxGuide(network, [Agreement(), Classification()])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), guide)
    vmonf.fit(X, epochs=2, seed=0, progress=False)
    q, start = vmonf.predict_proba(X), network.start(X)
    take_components_(vmonf, torch.tensor([2, 0]))
    torch.testing.assert_close(vmonf.guide.network.start(X), start[:, [2, 0]], rtol=0, atol=0)
    found = vmonf.predict_proba(X)
    torch.testing.assert_close(found, q[:, [2, 0]] / q[:, [2, 0]].sum(1, keepdim=True))
    vmonf.fit(X, epochs=2, seed=0, progress=False)
    vmonf.guide.network.remember_()
    torch.testing.assert_close(vmonf.guide.network.start(X), vmonf.guide.network(X))
    vmonf.fit(X, epochs=1, n_init=2, seed=0, progress=False)
