"""Guides and weights of a user's own: the verbs know what the guide has learnt of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.nn import MLP
from pyro_vmonf.weights import Weights

LOC = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
SHARES = torch.tensor([0.6, 0.3, 0.1])


def rows(count: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    c = torch.arange(count) * 10 // count
    return LOC[torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])[c]] + torch.randn(
        count, 2, generator=generator
    )


def bank() -> Gaussian:
    """Return the Gaussians that the rows come from; training leaves them alone."""
    found = Gaussian(2, 3)
    with torch.no_grad():
        found.loc.copy_(LOC)  # type: ignore[operator]
    return found.requires_grad_(False)


class Own(Weights):
    """Weights with a random concentration, in sites of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.num_components = 3
        self.mean = torch.nn.Parameter(torch.full((3,), 1 / 3), requires_grad=False)

    def forward(self, context: Tensor | None = None) -> Tensor:
        alpha = pyro.sample("weights.alpha", dist.LogNormal(torch.zeros(()), torch.ones(())))
        pi: Tensor = pyro.sample("weights.pi", dist.Dirichlet(alpha * torch.ones(3)))
        return pi.log()

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.mean.log()


class Taking(Own):
    """The same, which take the draws of another guide."""

    def take_draws_(self, draws: Tensor) -> None:
        self.mean.data.copy_(draws.mean(0))


class Centroids(PyroModule):
    """q(c|x) by the nearest centroid, and the posterior of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.centroid = torch.nn.Parameter(LOC.clone())
        self.a = PyroParam(torch.full((3,), 20.0), constraints.positive)
        self.alpha = torch.nn.Parameter(torch.zeros(2))

    def log_q(self, x: Tensor) -> Tensor:
        return (-0.5 * (x.unsqueeze(-2) - self.centroid).square().sum(-1)).log_softmax(-1)

    def forward(self, x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:
        pyro.sample("weights.alpha", dist.LogNormal(self.alpha[0], self.alpha[1].exp()))
        pyro.sample("weights.pi", dist.Dirichlet(self.a))  # type: ignore[arg-type]
        with pyro.plate("data", size or len(x), subsample=index):
            logits = self.log_q(x)
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def by_fit(vmonf: VMoNF, x: Tensor) -> None:
    vmonf.fit(x, epochs=60, lr=0.05, standardize=False, progress=False, seed=0)


def by_svi(vmonf: VMoNF, x: Tensor) -> None:
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(vmonf.model, vmonf.guide, Adam({"lr": 0.05}), loss)
    for _ in range(60):
        svi.step(x)


@pytest.mark.parametrize("train", [by_fit, by_svi])
def test_the_verbs_have_the_weights_of_the_guide(train: Callable[[VMoNF, Tensor], None]) -> None:
    x = rows()
    vmonf = VMoNF(FlowMixture(bank(), Taking()), Centroids())
    train(vmonf, x)
    log_prob = vmonf.log_prob(x)
    learnt = vmonf.guide.members[0].a.detach()  # type: ignore[union-attr]
    learnt = learnt / learnt.sum()
    assert (learnt - SHARES).abs().max() < 0.1 < (1 / 3 - SHARES).abs().max()
    # The mean of 256 draws has a standard error of about .004.
    torch.testing.assert_close(vmonf.model.weights.log_mean().exp(), learnt, atol=0.02, rtol=0)
    normal = -0.5 * (x.unsqueeze(-2) - LOC).square().sum(-1) - torch.tensor(2 * torch.pi).log()
    by_hand = (vmonf.model.weights.log_mean() + normal).logsumexp(-1)
    torch.testing.assert_close(log_prob, by_hand, atol=1e-5, rtol=1e-5)


class Fixed(PyroModule):
    """A posterior of the weights with nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.tensor([90.0, 5.0, 5.0]))

    def forward(self, x: Tensor | None = None) -> None:
        pyro.sample("weights", dist.Dirichlet(self.a))  # type: ignore[arg-type]


def fixed(x: Tensor | None = None) -> None:
    pyro.sample("weights", dist.Dirichlet(torch.tensor([90.0, 5.0, 5.0])))


@pytest.mark.parametrize("guide", [Fixed(), fixed], ids=["module", "function"])
def test_a_guide_without_parameters_tells_its_weights_to_every_model(guide: Any) -> None:
    wanted = torch.tensor([0.9, 0.05, 0.05])
    first = VMoNF(FlowMixture(bank(), dist.Dirichlet(torch.ones(3))), guide)
    first.fit(rows(), epochs=1, progress=False)
    torch.testing.assert_close(first.model.weights.log_mean().exp(), wanted, atol=0.02, rtol=0)
    taken = copy.deepcopy(first.guide)
    taken.bind_(None)
    second = VMoNF(FlowMixture(bank(), dist.Dirichlet(torch.ones(3))), taken).eval()
    torch.testing.assert_close(second.model.weights.log_mean().exp(), wanted, atol=0.02, rtol=0)


def test_a_pickle_of_an_earlier_version_is_built_again() -> None:
    vmonf = VMoNF(FlowMixture(bank(), Taking()), Centroids())
    vmonf.fit(rows(), epochs=1, standardize=False, progress=False)
    state = vmonf.guide.__getstate__()
    for name in ("_of_weights", "_settled"):
        del state[name]
    vmonf.guide.__setstate__(state)  # type: ignore[attr-defined]
    scores = vmonf.eval().log_prob(rows())
    assert scores.isfinite().all()
    vmonf.fit(rows(), epochs=1, progress=False)


def test_weights_that_cannot_learn_of_a_guide_are_refused_before_training() -> None:
    vmonf = VMoNF(FlowMixture(bank(), Own()), Centroids())
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(TypeError, match=r"write Own\.take_draws_, from draws \(S, K\)"):
        vmonf.fit(rows(), epochs=1, progress=False)
    for name, value in vmonf.state_dict().items():
        assert torch.equal(value, before[name]), name


class OfRows(Weights):
    """Weights of each row, by a random slope in its context."""

    num_components = 3
    taken = 0

    def forward(self, context: Tensor | None = None) -> Tensor:
        slope = pyro.sample("weights.slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        return slope if context is None else (context * slope).log_softmax(-1)

    def take_draws_(self, draws: Tensor) -> None:
        self.taken += 1


def test_draws_of_weights_of_each_row_are_refused_before_training() -> None:
    model = FlowMixture(bank(), OfRows(), context_features=1)
    vmonf = VMoNF(model, AutoNormal(pyro.poutine.block(model, hide=["c"])))
    x = rows(20)
    with pytest.raises(ValueError, match=r"OfRows, whose weights have shape \(20, 3\) and depend"):
        vmonf.fit(x, given=torch.ones(20, 1), epochs=1, progress=False)
    vmonf.eval()
    assert not model.weights.taken


@pytest.mark.parametrize("turned", [False, True])
def test_the_first_step_of_svi_builds_an_autoguide_beside_a_network(turned: bool) -> None:
    x = rows()
    model = FlowMixture(Gaussian(2, 3), dist.Dirichlet(torch.ones(3)))
    guides: list[Any] = [
        SoftmaxGuide(MLP(2, 3)),
        AutoNormal(pyro.poutine.block(model, hide=["c"])),
    ]
    vmonf = VMoNF(model, guides[::-1] if turned else guides)
    network = next(part for part in vmonf.guide.members if isinstance(part, SoftmaxGuide)).network
    before = [p.detach().clone() for p in network.parameters()]
    svi = SVI(model, vmonf.guide, Adam({"lr": 0.1}), TraceEnum_ELBO(max_plate_nesting=1))
    svi.step(x)
    for one, other in zip(network.parameters(), before, strict=True):
        assert not torch.equal(one, other)


def test_a_log_q_that_is_not_normalised_is_refused() -> None:
    class Off(Centroids):
        def log_q(self, x: Tensor) -> Tensor:
            return super().log_q(x) + 3

    vmonf = VMoNF(FlowMixture(bank(), Taking()), Off())
    vmonf.fit(rows(), epochs=1, standardize=False, progress=False)
    with pytest.raises(ValueError, match=r"the log_q of Off .* whose sum is 20\.09; .*log_softmax"):
        vmonf.predict_proba(rows())


class Drawn(Own):
    """The same weights, with a posterior of their own."""

    concentration = torch.tensor([6.0, 3.0, 1.0])

    def guide(self) -> None:
        pyro.sample("weights.alpha", dist.LogNormal(torch.zeros(()), torch.ones(())))
        pyro.sample("weights.pi", dist.Dirichlet(self.concentration))

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return (self.concentration / 10).log()


def test_the_mean_of_the_logs_is_that_of_the_draws() -> None:
    a = Drawn.concentration
    exact = a.digamma() - a.sum().digamma()
    error = (torch.polygamma(1, a) - torch.polygamma(1, a.sum())).sqrt() / 16  # of 256 draws
    found = Drawn().mean_log()
    assert ((found - exact).abs() < 4 * error).all()
    with pytest.raises(TypeError, match=r"write Taking\.mean_log"):
        Taking().mean_log()


def test_arviz_has_the_draws_of_own_weights() -> None:
    vmonf = VMoNF(FlowMixture(bank(), Drawn()))
    found = to_inference_data(vmonf, rows(20), draws=50, seed=0)["posterior"]
    drawn = torch.as_tensor(found["weights"].values)
    torch.testing.assert_close(drawn, torch.as_tensor(found["weights.pi"].values))
    assert drawn.std(1).min() > 0.03


@pytest.mark.filterwarnings("ignore:.*rows repeat another one")
@pytest.mark.parametrize("update", ["counts", "gradient"])
def test_the_divergence_of_the_weights_is_shared_by_the_rows_that_train(update: str) -> None:
    """However many copies of a row are held out, the held-out objective is the same."""
    from pyro_vmonf import RandomWeights
    from pyro_vmonf.weight_priors import DirichletPosterior

    prior = torch.ones(3)
    found = []
    for copies in (2, 8):  # of one batch, and so of the same draws
        weights = RandomWeights(prior, DirichletPosterior(prior, update))  # type: ignore[arg-type]
        vmonf = VMoNF(FlowMixture(bank(), weights))
        x = torch.cat([rows(40), LOC[:1].expand(copies, 2)])
        history = vmonf.fit(
            x,
            epochs=3,
            batch_size=8,
            held_out=torch.arange(40, 40 + copies),
            standardize=False,
            progress=False,
            seed=0,
        )
        found.append(history.held_out)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
