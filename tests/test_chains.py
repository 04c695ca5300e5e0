"""Mixtures whose components follow a Markov chain, against sums over all paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.chains import fitted
from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    LearnedWeights,
    MarginalGuide,
    MarkovMixture,
    MarkovVMoNF,
    RandomBank,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    select,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Term
from pyro_vmonf.weight_priors import PointPosterior

K, D, S, T = 3, 2, 5, 4
LENGTHS = [4, 2, 1, 4, 3]
ROWS = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])


@pytest.fixture(autouse=True)
def _float64(float64: None) -> None:
    """Compare in float64."""


def chain(bank: Any = None, initial: Any = None, transition: Any = None) -> MarkovMixture:
    """A chain with random parameters, which the gradient moves unless others are given."""
    bank = RealNVP(D, K, blocks=2) if bank is None else bank
    count = bank().batch_shape[-1]
    rows = [LearnedWeights(count, "gradient") for _ in range(count + 1)]
    initial = rows[0] if initial is None else initial
    model = MarkovMixture(bank, initial, rows[1:] if transition is None else transition)
    return randomised(model)


def randomised(module: Any) -> Any:
    """Move each parameter somewhere, the same way each time."""
    with torch.no_grad(), local_seed(1):
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


def sequences(count: int = S, steps: int = T) -> Tensor:
    with local_seed(2):
        return torch.randn(count, steps, D)


def log_rows(model: MarkovMixture) -> Tensor:
    return torch.stack([row() for row in (model.initial, *model.transition)])


def paths(model: MarkovMixture, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return all paths ``(K^T, T)`` of one sequence ``(T, D)`` and their log p(x, c)."""
    rows, table = log_rows(model), model.components().log_prob(x.unsqueeze(1))
    every = torch.tensor(list(itertools.product(range(model.num_components), repeat=len(x))))
    joint = rows[0, every[:, 0]] + table[torch.arange(len(x)), every].sum(1)
    return every, joint + rows[1:][every[:, :-1], every[:, 1:]].sum(1)


def summed(model: MarkovMixture, x: Tensor, lengths: list[int]) -> Tensor:
    """Return log p ``(S,)`` as sums over all paths."""
    each = zip(x, lengths, strict=True)
    return torch.stack([paths(model, row[:end])[1].logsumexp(0) for row, end in each])


def mean_field(model: MarkovMixture, guide: SoftmaxGuide, x: Tensor, lengths: list[int]) -> Tensor:
    """Return the mean of log p(x, c) - log q(c) over all paths, ``(S,)``."""
    bounds = []
    for row, end in zip(x, lengths, strict=True):
        every, joint = paths(model, row[:end])
        log_q = guide.log_q(row[:end])[torch.arange(end), every].sum(1)
        bounds.append((log_q.exp() * (joint - log_q)).sum())
    return torch.stack(bounds)


def gradients(value: Tensor, *modules: nn.Module) -> list[Tensor]:
    trained = [p for module in modules for p in module.parameters()]
    found = torch.autograd.grad(value, trained, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]


def assert_same(mine: Tensor, exact: Tensor, *modules: nn.Module, atol: float = 1e-9) -> None:
    """Compare value and gradient."""
    torch.testing.assert_close(mine, exact, rtol=0, atol=atol)
    for a, b in zip(gradients(mine, *modules), gradients(exact, *modules), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


ELBOS: dict[str, Callable[[], Any]] = {
    "Trace_ELBO": Trace_ELBO,
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
}


@pytest.mark.parametrize("elbo", ELBOS)
def test_without_a_guide_it_is_the_sum_over_all_paths(elbo: str) -> None:
    model = chain()
    x = model.padded(sequences(), LENGTHS)
    value = -ELBOS[elbo]().differentiable_loss(model, MarginalGuide(model), x)
    assert_same(torch.as_tensor(value), summed(model, x, LENGTHS).sum(), model)


@pytest.mark.parametrize("elbo", ELBOS)
def test_with_a_network_it_is_the_mean_field_bound(elbo: str) -> None:
    model = chain()
    guide = randomised(SoftmaxGuide(MLP(D, K, hidden=(5,)), temperature=0.7, model=model))
    x = model.padded(sequences(), LENGTHS)
    value = -ELBOS[elbo]().differentiable_loss(model, guide, x)
    assert_same(torch.as_tensor(value), mean_field(model, guide, x, LENGTHS).sum(), model, guide)
    each = MarkovVMoNF(model, guide).elbo(x)
    torch.testing.assert_close(each, mean_field(model, guide, x, LENGTHS).detach())
    assert bool((each < summed(model, x, LENGTHS)).all())


@pytest.mark.parametrize("network", [False, True])
def test_batches_are_unbiased(network: bool) -> None:
    model = chain()
    guide = SoftmaxGuide(MLP(D, K), model=model) if network else MarginalGuide(model)
    x, elbo = model.padded(sequences(), LENGTHS), Trace_ELBO()
    whole = elbo.loss(model, guide, x)
    each = [
        elbo.loss(model, guide, x[i : i + 1], index=torch.tensor([i]), size=S) for i in range(S)
    ]
    assert whole == pytest.approx(sum(each) / S, abs=1e-9)
    weight = torch.tensor([0.0, 2.0, 1.0, 0.5, 1.0])
    weighted = elbo.loss(model, guide, x, sample_weight=weight)
    assert weighted == pytest.approx(float(weight @ torch.tensor(each)) / S, abs=1e-9)


def test_padding_has_no_influence() -> None:
    model = chain()
    guide = randomised(SoftmaxGuide(MLP(D, K), model=model))
    x, elbo = sequences(), Trace_ELBO()
    vmonf = MarkovVMoNF(model, guide)
    wild = torch.where(model.padded(x, LENGTHS).isnan(), 1e30, x)
    for verb in (vmonf.log_prob, vmonf.predict, vmonf.predict_proba, vmonf.elbo):
        assert torch.equal(verb(wild, LENGTHS), verb(x, LENGTHS))
        assert torch.equal(verb(model.padded(x, LENGTHS)), verb(x, LENGTHS))
    # More padding is the same to the last bits of sums in another order.
    padded = model.padded(x, LENGTHS)
    longer = torch.cat((padded, padded.new_full((S, 3, D), torch.nan)), 1)

    def loss(other: BoundGuide, rows: Tensor) -> Tensor:
        return torch.as_tensor(elbo.differentiable_loss(model, other, rows))

    for other in (MarginalGuide(model), guide):
        assert_same(loss(other, padded), loss(other, longer), model, other, atol=1e-12)
        alone = [loss(other, x[i : i + 1, :end]) for i, end in enumerate(LENGTHS)]
        assert_same(loss(other, padded), torch.stack(alone).sum(), model, other, atol=1e-12)


def test_the_posterior_is_that_of_all_paths() -> None:
    vmonf = MarkovVMoNF(chain())
    x = sequences()
    proba, path = vmonf.predict_proba(x, LENGTHS), vmonf.predict(x, LENGTHS)
    for s, end in enumerate(LENGTHS):
        every, joint = paths(vmonf.model, x[s, :end])
        for k in range(K):
            share = (joint.softmax(0).unsqueeze(1) * (every == k)).sum(0)
            torch.testing.assert_close(proba[s, :end, k], share.detach(), rtol=0, atol=1e-12)
        assert torch.equal(path[s, :end], every[joint.argmax()])
        assert bool((path[s, end:] == -1).all() and (proba[s, end:] == 0).all())


def test_the_posterior_of_the_paths_is_a_distribution() -> None:
    vmonf = MarkovVMoNF(chain())
    x = sequences()
    posterior = vmonf.posterior(x, LENGTHS)
    assert (posterior.batch_shape, posterior.event_shape) == ((S,), (T,))
    for s, end in enumerate(LENGTHS):
        every, joint = paths(vmonf.model, x[s, :end])
        log_prob = joint.log_softmax(0).detach()
        whole = torch.full((len(every), T), -1)
        whole[:, :end] = every
        found = posterior.log_prob(whole.unsqueeze(1))
        assert found.shape == (len(every), S)
        torch.testing.assert_close(found[:, s], log_prob, rtol=0, atol=1e-12)
        entropy = -(log_prob.exp() * log_prob).sum()
        torch.testing.assert_close(posterior.entropy()[s], entropy, rtol=0, atol=1e-12)
        if end < T:  # a path goes on after the end, or ends before it
            for t, value in ((end, 0), (end - 1, -1)):
                other = whole[0].clone()
                other[t] = value
                assert posterior.log_prob(other)[s] == -torch.inf
        assert posterior.log_prob(whole[0].masked_fill(whole[0] == 0, K))[s] == -torch.inf
    proba, path = vmonf.predict_proba(x, LENGTHS), vmonf.predict(x, LENGTHS)
    torch.testing.assert_close(posterior.marginals, proba, rtol=0, atol=1e-12)
    assert torch.equal(posterior.mode, path)
    with pytest.raises(ValueError, match="one point has shape"):
        posterior.log_prob(path[:, :2])


def test_draws_of_paths_have_the_posterior() -> None:
    vmonf = MarkovVMoNF(chain())
    posterior = vmonf.posterior(sequences(), LENGTHS).expand((2, S))
    with local_seed(0):
        drawn = posterior.sample((20_000,))
    assert drawn.shape == (20_000, 2, S, T)
    assert posterior.log_prob(drawn).isfinite().all()
    shares = torch.stack([(drawn == k).double().mean(0) for k in range(K)], -1)
    torch.testing.assert_close(shares, posterior.marginals, rtol=0, atol=0.02)  # 5 deviations
    surprise = -posterior.log_prob(drawn)
    error = surprise.std(0) / math.sqrt(len(drawn))
    assert bool(((surprise.mean(0) - posterior.entropy()).abs() <= 5 * error + 1e-12).all())


def test_the_path_is_that_of_pyro() -> None:
    vmonf = MarkovVMoNF(chain())
    x, rows = sequences(20, 6), log_rows(vmonf.model).detach()

    def program() -> None:
        with pyro.plate("sequences", len(x), dim=-1):
            row = rows[0]
            for t in pyro.markov(range(x.shape[1])):
                state = dist.Categorical(logits=row)
                c = pyro.sample(f"c{t}", state, infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", select(vmonf.model.components(), c), obs=x[:, t])
                row = rows[1:][c]

    best = infer_discrete(program, first_available_dim=-2, temperature=0)
    nodes = poutine.trace(best).get_trace().nodes
    expected = torch.stack([nodes[f"c{t}"]["value"] for t in range(x.shape[1])], 1)
    assert torch.equal(vmonf.predict(x), expected)


def forward(initial: Any, transition: Any, table: Any) -> float:
    """The forward recursion in numpy."""
    alpha = initial * np.exp(table[0])
    total = np.log(alpha.sum())
    for row in table[1:]:
        alpha = (alpha / alpha.sum()) @ transition * np.exp(row)
        total += np.log(alpha.sum())
    return float(total)


def gaussian_chain() -> tuple[MarkovVMoNF, Tensor]:
    """A chain of Gaussians, and sequences of it."""
    initial = torch.tensor([0.5, 0.3, 0.2])
    vmonf = MarkovVMoNF(MarkovMixture(randomised(Gaussian(D, K)), initial, ROWS.double()))
    return vmonf, vmonf.sample(7, 50, seed=0)[0]


def test_gaussians_are_a_hidden_markov_model_by_a_recursion() -> None:
    vmonf, x = gaussian_chain()
    table = vmonf.model.bank().log_prob(x.unsqueeze(2)).detach().numpy()
    initial = np.array([0.5, 0.3, 0.2])
    expected = [forward(initial, ROWS.double().numpy(), rows) for rows in table]
    np.testing.assert_allclose(vmonf.log_prob(x).numpy(), expected, rtol=0, atol=1e-6)


def test_gaussians_are_the_hidden_markov_model_of_hmmlearn() -> None:
    hmm = pytest.importorskip("hmmlearn.hmm")
    vmonf, x = gaussian_chain()
    components = vmonf.model.bank()
    other = hmm.GaussianHMM(K, covariance_type="full")
    other.startprob_, other.transmat_ = np.array([0.5, 0.3, 0.2]), ROWS.double().numpy()
    other.means_ = components.mean.detach().numpy()
    other.covars_ = components.covariance_matrix.detach().numpy()
    expected = [other.score(rows) for rows in x.numpy()]
    np.testing.assert_allclose(vmonf.log_prob(x).numpy(), expected, rtol=0, atol=1e-6)
    for rows, path, proba in zip(x, vmonf.predict(x), vmonf.predict_proba(x), strict=True):
        assert np.array_equal(other.predict(rows.numpy()), path.numpy())
        np.testing.assert_allclose(other.predict_proba(rows.numpy()), proba, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_beats_the_mixture_where_states_last(seed: int) -> None:
    """The flows of a fitted mixture go on in a chain."""
    torch.set_default_dtype(torch.float32)
    found = fitted(seed)
    assert found["chain"] > 0.97
    assert 0.8 < found["mixture"] < 0.9


CENTRES = torch.tensor([[-20.0, 0.0], [0.0, 20.0], [20.0, 0.0]])


def known_states() -> tuple[Gaussian, Tensor, Tensor, Tensor]:
    """Frozen components far apart, sequences of a chain, and the counts of its rows."""
    bank = Gaussian(D, K)
    bank.loc.data.copy_(CENTRES)
    truth = MarkovVMoNF(MarkovMixture(bank, torch.tensor([0.6, 0.3, 0.1]), ROWS.double()))
    x, c = truth.sample(40, 8, seed=0)
    moves = torch.zeros(K, K).index_put((c[:, :-1], c[:, 1:]), torch.ones(()), accumulate=True)
    return bank.requires_grad_(False), x, c[:, 0].bincount(minlength=K).double(), moves


def expected_moves(model: MarkovMixture, x: Tensor, lengths: list[int], weight: Tensor) -> Tensor:
    """Return the expected first components and moves ``(K + 1, K)`` by sums over all paths."""
    counts = torch.zeros(K + 1, K)
    for row, end, each in zip(x, lengths, weight, strict=True):
        every, joint = paths(model, row[:end])
        share = each * joint.softmax(0).detach()
        counts[0].index_add_(0, every[:, 0], share)
        for t in range(1, end):
            places = (every[:, t - 1] + 1, every[:, t])
            counts.index_put_(places, share, accumulate=True)
    return counts


@pytest.mark.parametrize("weighted", [False, True])
def test_moves_are_those_of_all_paths(weighted: bool) -> None:
    model = chain()
    x = sequences()
    weight = torch.tensor([0.0, 2.0, 0.5, 1.0, 3.0]) if weighted else None
    expected = expected_moves(model, x, LENGTHS, torch.ones(S) if weight is None else weight)
    mixture, padded = model.mixture(), model.padded(x, LENGTHS)
    table, seen = mixture.table(padded), mixture.observed(padded)
    torch.testing.assert_close(mixture.moves(table, seen, weight), expected, rtol=0, atol=1e-12)
    # of independent steps
    log_q = torch.randn(S, T, K).log_softmax(-1)
    found = mixture.moves_of(log_q, seen, weight)
    apart = torch.where(seen.unsqueeze(-1), log_q.exp(), 0.0)
    each = apart if weight is None else apart * weight[:, None, None]
    torch.testing.assert_close(found[0], each[:, 0].sum(0), rtol=0, atol=1e-12)
    pairs = torch.einsum("stk,stj->kj", each[:, :-1], apart[:, 1:])
    torch.testing.assert_close(found[1:], pairs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_learned_rows_are_those_of_baum_and_welch(plain: bool, weighted: bool) -> None:
    """A step without a rate, with all sequences in it, is a step of EM; nothing is lost in it."""
    model = chain(initial="learned", transition="learned")
    x = model.padded(sequences(), LENGTHS)
    weight = torch.tensor([0.5, 2.0, 0.5, 1.0, 3.0]) if weighted else None
    for _ in range(3):
        each = torch.ones(S) if weight is None else weight
        counts = expected_moves(model, sequences(), LENGTHS, each)
        if plain:
            svi = SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
            svi.step(x, sample_weight=weight)
        else:
            options: dict[str, Any] = {"steps": 1, "lr": 1e-12, "standardize": False, "seed": 0}
            vmonf = MarkovVMoNF(model, ExactGuide())
            vmonf.fit(x, sample_weight=weight, progress=False, keep="last", **options)
            assert vmonf.history is not None
            assert vmonf.history.road == "short"
        shares = counts / counts.sum(-1, keepdim=True)
        torch.testing.assert_close(log_rows(model).exp().detach(), shares, rtol=0, atol=1e-9)


@pytest.mark.parametrize("prior", ["learned", "random"])
@pytest.mark.parametrize("network", [False, True])
def test_rows_move_at_the_defaults(network: bool, prior: str) -> None:
    """Where the states are known, a fit with no options ends at the shares of the counts."""
    if network and prior == "random":
        pytest.skip("the mean-field bound takes no random rows")
    bank, x, first, moves = known_states()
    added = 0.0 if prior == "learned" else 1.0
    rows = (
        (prior, prior) if not added else (dist.Dirichlet(torch.ones(K)), dist.Dirichlet(ROWS * 3))
    )
    model = MarkovMixture(bank, *rows)
    guide = SoftmaxGuide(Known(), model=model) if network else None
    vmonf = MarkovVMoNF(model, guide)
    options = {"temperature": 1.0} if network else {}
    vmonf.fit(x, batch_size=20, standardize=False, progress=False, seed=0, **options)
    wanted = torch.cat((first[None] + added, moves + added * 3 * ROWS))
    wanted = wanted / wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(vmonf.model.weights.mean_rows().exp(), wanted, rtol=0, atol=1e-6)


class Known(nn.Module):
    """The logits of the components of :func:`known_states`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(-2) - CENTRES).square().sum(-1) * self.scale


def test_particles_and_batches_in_one_buffer_count_once() -> None:
    bank, x, first, _ = known_states()
    model = MarkovMixture(bank, "learned", "learned")
    loss = Trace_ELBO(num_particles=2)
    svi = SVI(model, MarginalGuide(model), pyro.optim.Adam({"lr": 0.0}), loss)
    buffer = torch.empty(10, *x.shape[1:])
    for _ in range(4):
        for index in torch.arange(len(x)).split(10):
            buffer.copy_(x[index])
            svi.step(buffer, index=index, size=len(x))
    found = model.initial().exp().detach()
    torch.testing.assert_close(found, first / first.sum(), rtol=0, atol=1e-6)


def test_rows_are_learned() -> None:
    """Where the states are known, the most likely rows are the shares of the counts."""
    bank, x, first, moves = known_states()
    vmonf = MarkovVMoNF(MarkovMixture(bank, "learned", "learned"))
    history = vmonf.fit(x, epochs=150, lr=0.05, standardize=False, progress=False, seed=0)
    rows = log_rows(vmonf.model).exp()
    torch.testing.assert_close(rows[0], first / first.sum(), rtol=0, atol=1e-3)
    torch.testing.assert_close(rows[1:], moves / moves.sum(1, keepdim=True), rtol=0, atol=1e-3)
    assert history.road == "short"
    torch.testing.assert_close(float(vmonf.log_prob(x).mean()), history.elbo[-1], atol=1e-6, rtol=0)


def test_plain_svi_takes_the_same_steps() -> None:
    x = sequences(20, 6)
    rows = []
    for plain in (False, True):
        torch.manual_seed(0)
        model = chain()
        guide = randomised(SoftmaxGuide(MLP(D, K, hidden=(5,)), model=model))
        if plain:
            svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-2 / len(x)}), Trace_ELBO())
            for _ in range(3):
                svi.step(x)
        else:
            sgd: Any = lambda parameters: torch.optim.SGD(parameters, lr=1e-2)  # noqa: E731
            options: dict[str, Any] = {"standardize": False, "temperature": 1.0, "optimizer": sgd}
            MarkovVMoNF(model, guide).fit(x, steps=3, progress=False, seed=0, **options)
        rows.append(
            torch.cat([p.detach().flatten() for p in (*model.parameters(), *guide.parameters())])
        )
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-10)


def test_rows_with_a_dirichlet_prior() -> None:
    """The most probable rows of known states are the prior's mode with the counts."""
    bank, x, _, moves = known_states()
    prior = 1 + torch.arange(1.0, 10.0).reshape(K, K)
    points = [RandomWeights(row, PointPosterior(row)) for row in prior]
    vmonf = MarkovVMoNF(MarkovMixture(bank, torch.ones(K), points))
    vmonf.fit(x, epochs=120, lr=0.1, standardize=False, progress=False, seed=0)
    found = vmonf.model.weights.mean_rows().exp()
    expected = moves + prior - 1
    torch.testing.assert_close(found[0], torch.full((K,), 1 / K))
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(found[1:], expected, rtol=0, atol=2e-3)


def test_the_road_of_random_rows_says_that_nothing_is_left_to_enumerate() -> None:
    vmonf = MarkovVMoNF(chain(transition=dist.Dirichlet(torch.ones(K, K))))
    road = vmonf.fit(sequences(), LENGTHS, epochs=1, progress=False).road
    assert road.startswith("TraceEnum_ELBO: nothing is left to enumerate, ")


def test_random_rows_are_sites() -> None:
    model = MarkovMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)), dist.Dirichlet(2 * ROWS))
    vmonf, x = MarkovVMoNF(model), sequences()
    nodes = poutine.trace(vmonf.model).get_trace(x).nodes
    assert {"weights.initial", *(f"weights.after_{k}" for k in range(K)), "x"} <= set(nodes)
    history = vmonf.fit(x, LENGTHS, epochs=2, progress=False, seed=0)
    assert {"log_likelihood", "initial", "after_2"} <= set(history.terms)
    auto = AutoNormal(poutine.block(model, hide=["x"]))
    assert math.isfinite(MarkovVMoNF(model, auto).fit(x, epochs=2, progress=False).elbo[-1])
    bank = RandomBank(Gaussian(D, K), dist.Normal(0.0, 1.0), scale=0.01)
    assert math.isfinite(MarkovVMoNF(chain(bank)).fit(x, epochs=2, progress=False).elbo[-1])


class Lean(Term):
    """A penalty of one component."""

    def forward(self, batch: Any) -> Tensor:
        return batch.log_q.exp()[..., 0]


def test_terms_of_the_guide_are_factors_and_run_on_the_short_road() -> None:
    """The road is short only where it has value and gradient of the program."""
    guide = SoftmaxGuide(MLP(D, K), [Lean(weight=0.5), Balance()], elbo_gradient=0.5)
    vmonf = MarkovVMoNF(chain(), guide)
    history = vmonf.fit(sequences(), LENGTHS, epochs=2, batch_size=2, progress=False, seed=0)
    assert history.road == "short"
    assert set(history.terms) == {"log_likelihood", "gap", "lean", "balance"}
    trace = poutine.trace(guide).get_trace(vmonf.model.padded(sequences(), LENGTHS))
    penalty = guide.log_q(sequences()).exp()[..., 0] * 0.5
    inside = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    own = -trace.nodes["lean"]["fn"].log_factor
    torch.testing.assert_close(own.abs(), (penalty * inside).sum(1))


SIZES = [(1, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)]


@pytest.mark.parametrize(("count", "steps", "states"), SIZES)
@pytest.mark.parametrize("network", [False, True])
def test_shapes(count: int, steps: int, states: int, network: bool) -> None:
    model = chain(RealNVP(D, states, blocks=2))
    vmonf = MarkovVMoNF(model, SoftmaxGuide(MLP(D, states)) if network else None)
    x = sequences(count, max(steps, states))
    vmonf.fit(x, epochs=2, progress=False, seed=0)
    x = x[:, :steps]
    assert vmonf.predict(x).shape == (count, steps)
    assert vmonf.predict_proba(x).shape == (count, steps, states)
    assert vmonf.component_log_prob(x).shape == (count, steps, states)
    assert vmonf.log_prob(x).shape == vmonf.elbo(x).shape == (count,)
    torch.testing.assert_close(vmonf.predict_proba(x).sum(-1), torch.ones(count, steps))
    torch.testing.assert_close(vmonf.log_prob(x[0]), vmonf.log_prob(x)[:1])
    torch.testing.assert_close(vmonf.log_prob(x, chunk_size=1), vmonf.log_prob(x))
    drawn, c = vmonf.sample(count, steps, seed=0)
    assert drawn.shape == (count, steps, D)
    assert c.shape == (count, steps)
    assert vmonf.model(size=count, steps=steps).shape == (count, steps, D)


def test_rows_without_memory_are_the_mixture() -> None:
    weights = torch.tensor([0.5, 0.3, 0.2])
    model = chain(initial=weights, transition=weights.expand(K, K))
    model.standardizer.fit_(sequences(20, 6))
    vmonf, x = MarkovVMoNF(model), sequences()
    plain = vmonf.alone()
    torch.testing.assert_close(plain.model.weights().exp(), weights)
    each = plain.log_prob(x.flatten(0, 1)).reshape(S, T)
    torch.testing.assert_close(vmonf.log_prob(x), each.sum(1))
    proba = plain.predict_proba(x.flatten(0, 1)).reshape(S, T, K)
    torch.testing.assert_close(vmonf.predict_proba(x), proba)
    assert torch.equal(vmonf.predict(x), proba.argmax(-1))


def test_paths_that_cannot_be_are_not_taken() -> None:
    """From left to right: a component that was left does not come back."""
    left_to_right = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    vmonf = MarkovVMoNF(chain(initial=torch.tensor([1.0, 0.0, 0.0]), transition=left_to_right))
    _, c = vmonf.sample(50, 10, seed=0)
    assert bool((c.diff(dim=1) >= 0).all() and (c[:, 0] == 0).all())
    path = vmonf.predict(sequences(20, 10))
    assert bool((path.diff(dim=1) >= 0).all() and (path[:, 0] == 0).all())
    loss = Trace_ELBO().differentiable_loss(
        vmonf.model, vmonf.guide, vmonf.model.padded(sequences(), LENGTHS)
    )
    assert all(bool(g.isfinite().all()) for g in gradients(torch.as_tensor(loss), vmonf.model.bank))


def test_draws_have_the_shares_of_the_rows() -> None:
    vmonf = MarkovVMoNF(chain(initial=torch.tensor([0.6, 0.3, 0.1]), transition=ROWS))
    _, c = vmonf.sample(4000, 8, seed=0)
    moves = torch.zeros(K, K).index_put((c[:, :-1], c[:, 1:]), torch.ones(()), accumulate=True)
    shares = moves / moves.sum(1, keepdim=True)
    torch.testing.assert_close(shares, ROWS.double(), rtol=0, atol=0.02)
    share, total = torch.tensor([0.6, 0.3, 0.1]).double(), torch.zeros(K)
    for _ in range(1024):
        total, share = total + share / 1024, share @ ROWS.double()
    mean = vmonf.model.weights.log_mean().exp()
    torch.testing.assert_close(mean, total, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["plot", "plot_report", "plot_responsibilities", "plot_uncertainty"]
)
def test_pictures_take_lengths(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vmonf, x = MarkovVMoNF(chain(Gaussian(D, K))), sequences()
    seen, drawn = [], MarkovVMoNF._drawn

    def spy(self: MarkovVMoNF, rows: Any) -> Any:
        seen.append(drawn(self, rows)[1])
        return drawn(self, rows)

    monkeypatch.setattr(MarkovVMoNF, "_drawn", spy)
    for given in ((x, LENGTHS), (vmonf.model.padded(x, LENGTHS),), (vmonf.steps_of(x, LENGTHS),)):
        assert getattr(vmonf, name)(*given) is not None
    wanted = torch.cat([row[:end] for row, end in zip(x, LENGTHS, strict=True)])
    assert all(torch.equal(rows, wanted) for rows in seen)


GENERATED: dict[str, Callable[[MarkovMixture], Any]] = {
    "none": lambda model: None,
    "exact": lambda model: ExactGuide(),
    "function": lambda model: lambda x=None: None,
    "autoguide": AutoNormal,
}


@pytest.mark.parametrize("name", GENERATED)
def test_predictive_generates_with_the_guide(name: str) -> None:
    model = chain(Gaussian(D, K), initial=dist.Dirichlet(torch.ones(K)))
    vmonf = MarkovVMoNF(model, GENERATED[name](model))
    drawn = Predictive(vmonf.model, guide=vmonf.guide, num_samples=3)(size=7, steps=5)
    assert drawn["x"].shape == (3, 7, 5, D)
    assert drawn["weights.initial"].squeeze(1).shape == (3, K)


def test_inside_a_larger_model() -> None:
    class Larger(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (MarkovVMoNF(chain(), SoftmaxGuide(MLP(D, K))) for _ in range(2))

        def forward(self, x: Tensor) -> None:
            self.one(x)
            self.two(x)

        def guide(self, x: Tensor) -> None:
            self.one.guide(x)
            self.two.guide(x)

    larger, x = Larger(), sequences()
    assert {"one.x", "two.x"} <= set(poutine.trace(larger).get_trace(x).nodes)
    assert {"one.gap", "two.gap"} <= set(poutine.trace(larger.guide).get_trace(x).nodes)
    bounds = [float(vmonf.elbo(x).sum()) for vmonf in (larger.one, larger.two)]
    assert Trace_ELBO().loss(larger, larger.guide, x) == pytest.approx(-sum(bounds))

    def latent() -> None:
        pyro.sample("z", larger.one.marginal(T))

    assert poutine.trace(latent).get_trace().nodes["z"]["value"].shape == (T, D)


@pytest.mark.parametrize("network", [False, True])
def test_files_hold_the_chain(network: bool, tmp_path: Path) -> None:
    model = chain(initial=dist.Dirichlet(torch.ones(K)), transition=["learned", ROWS[1], "uniform"])
    model = model if not network else chain()
    vmonf = MarkovVMoNF(model, SoftmaxGuide(MLP(D, K)) if network else None)
    history = vmonf.fit(sequences(), LENGTHS, epochs=2, progress=False)
    vmonf.save(tmp_path / "chain.pt")
    loaded = MarkovVMoNF.load(tmp_path / "chain.pt")
    x = sequences()
    assert torch.equal(loaded.log_prob(x, LENGTHS), vmonf.log_prob(x, LENGTHS))
    assert torch.equal(loaded.predict(x, LENGTHS), vmonf.predict(x, LENGTHS))
    assert repr(loaded) == repr(vmonf)
    assert loaded.history is not None
    assert loaded.history.elbo == history.elbo
    with pytest.raises(ValueError, match="put it into a MarkovVMoNF"):
        VMoNF.load(tmp_path / "chain.pt")


def test_held_out_sequences_and_a_run_that_goes_on(tmp_path: Path) -> None:
    path, x = tmp_path / "run.pt", sequences(12, 5)
    lengths = [5, 3] * 6
    options: dict[str, Any] = {"held_out": 0.25, "progress": False, "seed": 0, "batch_size": 4}

    def fresh() -> MarkovVMoNF:
        torch.manual_seed(0)
        return MarkovVMoNF(chain())

    whole = fresh()
    history = whole.fit(x, lengths, epochs=4, **options)
    assert len(history.held_out) == 4

    def interrupt(progress: Any) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh().fit(x, lengths, epochs=4, checkpoint=path, callbacks=interrupt, **options)
    resumed = fresh()
    resumed.fit(x, lengths, epochs=4, resume=path, **options)
    assert torch.equal(resumed.log_prob(x, lengths), whole.log_prob(x, lengths))


def test_the_best_of_several_starts_stays() -> None:
    vmonf, x = MarkovVMoNF(chain()), sequences(12, 5)
    options: dict[str, Any] = {"epochs": 2, "progress": False, "seed": 0, "held_out": 0.25}
    history = vmonf.fit(x, [5, 3] * 6, n_init=3, **options)
    assert history.held_out
    assert vmonf.log_prob(x, [5, 3] * 6).isfinite().all()
    history = vmonf.fit(x, [5, 3] * 6, compile=True, **options)
    assert "not compiled: the number of rows differs" in history.road


def test_units_are_those_of_the_steps_that_count() -> None:
    vmonf, x = MarkovVMoNF(chain()), 1e3 + 50 * sequences()
    vmonf.fit(x, LENGTHS, epochs=1, progress=False)
    rows = vmonf.steps_of(x, LENGTHS)
    assert len(rows) == sum(LENGTHS)
    torch.testing.assert_close(vmonf.model.standardizer.loc, rows.mean(0))
    exact = summed(vmonf.model, x, LENGTHS).detach()
    torch.testing.assert_close(vmonf.log_prob(x, LENGTHS), exact)
    axes = vmonf.alone().plot(rows)
    assert axes.figure is not None
    assert vmonf.plot_components() is not None


GOOD = sequences().double()
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rows": (
        lambda: MarkovVMoNF(chain()).log_prob(torch.zeros(4, 3, 2, 5)),
        ValueError,
        r"x has shape \(4, 3, 2, 5\); expected sequences \(S, T, 2\)",
    ),
    "features": (
        lambda: MarkovVMoNF(chain()).fit(torch.zeros(4, 3, 5)),
        ValueError,
        r"x has shape \(4, 3, 5\); expected sequences \(S, T, 2\)",
    ),
    "no steps": (
        lambda: MarkovVMoNF(chain()).predict(torch.zeros(4, 0, 2)),
        ValueError,
        r"shape \(4, 0, 2\)",
    ),
    "whole numbers": (
        lambda: MarkovVMoNF(chain()).predict(torch.zeros(4, 3, 2).long()),
        TypeError,
        "x has dtype torch.int64",
    ),
    "a hole": (
        lambda: MarkovVMoNF(chain()).fit(
            GOOD.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.nan))
        ),
        ValueError,
        "sequence 1 of x is not finite at step 2, before its end at 4; remove or impute",
    ),
    "lengths too long": (
        lambda: MarkovVMoNF(chain()).log_prob(GOOD, [4, 5, 1, 1, 1]),
        ValueError,
        r"lengths is 4, 5, 1, 1, 1, of shape \(5,\); expected \(5,\), each from 1 to 4",
    ),
    "lengths of none": (
        lambda: MarkovVMoNF(chain()).log_prob(GOOD, [4, 0, 1, 1, 1]),
        ValueError,
        "each from 1 to 4",
    ),
    "too few lengths": (
        lambda: MarkovVMoNF(chain()).log_prob(GOOD, [4]),
        ValueError,
        r"of shape \(1,\); expected \(5,\)",
    ),
    "lengths of parts": (
        lambda: MarkovVMoNF(chain()).log_prob(GOOD, torch.full((5,), 1.5)),
        TypeError,
        "lengths has dtype torch.float64; expected whole numbers",
    ),
    "transition": (
        lambda: chain(transition=torch.ones(2, 3)),
        ValueError,
        r"transition has shape \(2, 3\); expected \(3, 3\)",
    ),
    "a row": (
        lambda: chain(transition=["learned", "learnt", "learned"]),
        ValueError,
        "row 1 of transition does not fit: weights is 'learnt'",
    ),
    "initial": (
        lambda: chain(initial=torch.ones(4)),
        ValueError,
        "initial does not fit: there are 4 weights but the bank has 3 components",
    ),
    "a batch of priors": (
        lambda: chain(transition=dist.LogisticNormal(torch.zeros(K, K - 1), torch.ones(K, K - 1))),
        ValueError,
        r"LogisticNormal of batch_shape \(3,\).*; expected a list of 3 distributions",
    ),
    "one module": (
        lambda: chain(transition=LearnedWeights(K)),
        TypeError,
        "transition is one LearnedWeights; expected a list of 3",
    ),
    "labels": (
        lambda: MarkovVMoNF(chain()).fit(GOOD, y=torch.zeros(5).long(), progress=False),
        ValueError,
        "y was passed to the fit of a chain, and it has no labels",
    ),
    "labels of steps": (
        lambda: MarkovVMoNF(chain()).fit(GOOD, y=torch.zeros(5, 4).long(), progress=False),
        ValueError,
        "y was passed to the fit of a chain",
    ),
    "a context": (
        lambda: MarkovVMoNF(chain()).fit(GOOD, given=GOOD, progress=False),
        ValueError,
        "given was passed to the fit of a chain",
    ),
    "a pair of rows": (
        lambda: VMoNF(chain()),
        TypeError,
        "model is a MarkovMixture of sequences; put it into a MarkovVMoNF",
    ),
    "a mixture of rows": (
        lambda: MarkovVMoNF(FlowMixture(Gaussian(D, K))),  # type: ignore[arg-type]
        TypeError,
        "model is a FlowMixture of rows; put it into a VMoNF",
    ),
    "the top components": (
        lambda: MarkovVMoNF(chain(), SoftmaxGuide(MLP(D, K), top=2)).fit(GOOD, progress=False),
        ValueError,
        "leave out top=",
    ),
    "random rows with a network": (
        lambda: MarkovVMoNF(
            chain(initial=dist.Dirichlet(torch.ones(K))), SoftmaxGuide(MLP(D, K))
        ).fit(GOOD, progress=False),
        ValueError,
        "pass None as the guide",
    ),
    "zeros with a network": (
        lambda: MarkovVMoNF(chain(transition=torch.eye(K)), SoftmaxGuide(MLP(D, K))).fit(GOOD),
        ValueError,
        "initial or transition has zeros",
    ),
    "a loader": (
        lambda: MarkovVMoNF(chain()).fit(DataLoader(TensorDataset(GOOD)), progress=False),
        TypeError,
        r"x is a DataLoader; expected sequences \(S, T, ...\) as one array",
    ),
    "a data set": (
        lambda: MarkovVMoNF(chain()).log_prob(TensorDataset(GOOD)),
        TypeError,
        "x is a TensorDataset; expected sequences",
    ),
    "no rows and no steps": (lambda: chain()(size=3), ValueError, "pass size and steps"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused(what: str) -> None:
    call, kind, said = WRONG[what]
    with pytest.raises(kind, match=said):
        call()


def test_the_exact_posterior_has_no_gap() -> None:
    model = chain()
    x = model.padded(sequences(), LENGTHS)
    values = [Trace_ELBO().loss(model, guide(model), x) for guide in (ExactGuide, MarginalGuide)]
    assert values[0] == values[1]


def test_a_row_that_no_component_has_says_nothing() -> None:
    box = dist.Uniform(torch.zeros(K, D), torch.tensor([[1.0], [2.0], [3.0]]).expand(K, D))
    vmonf = MarkovVMoNF(MarkovMixture(box.to_event(1), transition=ROWS))
    x = torch.tensor([[[0.5, 0.5], [9.0, 9.0], [2.5, 2.5]]])
    with pytest.warns(RuntimeWarning, match="sequences 0 have steps outside the support"):
        assert float(vmonf.log_prob(x)) == -math.inf
    with pytest.warns(RuntimeWarning, match="outside the support"):
        assert vmonf.predict_proba(x).isfinite().all()
    with pytest.warns(RuntimeWarning, match="outside the support"):
        assert vmonf.predict(x)[0, 2] == 2
    with pytest.warns(RuntimeWarning, match="outside the support"):
        assert vmonf.posterior(x).log_prob(torch.tensor([[2, 0, 2]])).isfinite().all()
    with pytest.raises(ValueError, match="outside the support"):
        vmonf.fit(x.expand(4, 3, D), progress=False)


def test_an_outlier_takes_no_digits_of_the_others() -> None:
    chain = MarkovVMoNF(MarkovMixture(Gaussian(1, 2), "uniform", 0.8 * torch.eye(2) + 0.1))
    chain.model.bank.loc.data.copy_(torch.tensor([[-1.0], [1.0]]))
    x, _ = chain.sample(2, 40, seed=3)
    x[0, 20] = 1e5
    found, path = chain.predict_proba(x), chain.predict(x)
    with torch.inference_mode():
        assert torch.equal(chain.predict_proba(x), found)
    exact = chain.double()
    torch.testing.assert_close(found.double(), exact.predict_proba(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 40))
    assert torch.equal(path, exact.predict(x))


def test_a_sequence_without_a_path_is_said() -> None:
    box = dist.Uniform(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [3.0]])).to_event(1)
    chain = MarkovVMoNF(MarkovMixture(box, transition=torch.eye(2)))
    x = torch.tensor([[[0.5], [2.5]], [[2.5], [2.6]]])
    with pytest.warns(RuntimeWarning, match="sequences 0 .1 of 2."):
        assert chain.predict(x).tolist() == [[-1, -1], [1, 1]]
    assert chain.log_prob(x)[0] == -torch.inf
    assert chain.predict_proba(x).tolist() == [[[0.5, 0.5]] * 2, [[0.0, 1.0]] * 2]
    with pytest.warns(RuntimeWarning, match="sequences 0 .1 of 2."):
        posterior = chain.posterior(x)
    assert posterior.marginals.tolist() == [[[0.5, 0.5]] * 2, [[0.0, 1.0]] * 2]
    assert posterior.log_prob(torch.tensor([1, 1])).exp().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("form", ["initial", "transition"])
def test_rows_of_none_are_refused(form: str) -> None:
    with pytest.raises(TypeError, match=form):
        MarkovMixture(Gaussian(1, 2), **{"initial": "learned", "transition": "learned", form: None})


def test_the_bound_of_random_rows_is_a_mean_over_their_draws() -> None:
    vmonf = MarkovVMoNF(chain(transition=dist.Dirichlet(3 * ROWS)))
    x = vmonf.model.padded(sequences(), LENGTHS)
    with torch.no_grad():
        draws = vmonf.model.weights.row_draws()
        chains = [HiddenChain(rows, vmonf.model.components(), T) for rows in draws]
        expected = torch.stack([one.log_prob(x) for one in chains]).mean(0)
    assert draws.shape == (256, K + 1, K)
    assert float(draws[:, 1].std(0).min()) > 0.1
    torch.testing.assert_close(vmonf.elbo(x), expected, rtol=0, atol=1e-9)
    assert bool(vmonf.elbo(x).mean() < vmonf.log_prob(x).mean())
