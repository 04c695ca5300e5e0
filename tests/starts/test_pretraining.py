"""A guide taught by its terms alone, restarts and their objective, and what labels may say."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from pyro_vmonf import MAF, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.datasets import pinwheel, two_circles
from pyro_vmonf.distortions import Jitter, RandomWalk
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import cooling
from pyro_vmonf.starts import merge_linked, relearn_, spectral_clusters, warm_start_
from pyro_vmonf.starts.copies import _agreed
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.terms import Balance, Batch, Classification, Confidence, Consistency, Term
from pyro_vmonf.training.restarts import best_of_, reset_parameters_
from pyro_vmonf.transforms import Affine, AffineCoupling, BatchNorm, PReLU


def blobs(rows: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.arange(rows) % 3
    centres = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 8.0]])
    return centres[clusters] + 0.5 * torch.randn(rows, 2, generator=generator), clusters


def pair(terms: list[Term], components: int = 3, **options: float) -> VMoNF:
    guide = SoftmaxGuide(MLP(2, components), terms, **options)  # type: ignore[arg-type]
    return VMoNF(FlowMixture(RealNVP(2, components, blocks=2, hidden=(8,))), guide)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("labelled", [False, True])
def test_it_descends_what_fit_descends_without_the_elbo(labelled: bool) -> None:
    """One full batch: the network moves as under ``fit`` at ``elbo_gradient=0``."""
    x, clusters = blobs(30)
    y = torch.where(torch.arange(30) < 6, clusters, -1) if labelled else None

    class Shift(nn.Module):
        def forward(self, batch: Batch) -> torch.Tensor:
            return batch.x + 0.3

    taught = pair([Classification(), Consistency(Shift()), Balance(weight=2.0)], elbo_gradient=0.0)
    fitted = pair([Classification(), Consistency(Shift()), Balance(weight=2.0)], elbo_gradient=0.0)
    fitted.load_state_dict(taught.state_dict())
    gradients = {}

    def keep(name: str) -> object:
        def make(parameters: object) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.0)  # type: ignore[arg-type]

        return make

    fitted.fit(x, y, epochs=1, batch_size=30, optimizer=keep("fit"), progress=False)
    gradients["fit"] = [p.grad.clone() for p in fitted.guide.network.parameters()]
    taught.model.standardize_(x)
    log_q = taught.guide.log_q(x)
    evidence = None
    if y is not None:
        evidence = torch.zeros(30, 3).masked_fill(
            (y[:, None] >= 0) & (y[:, None] != torch.arange(3)), -math.inf
        )
    batch = Batch(taught.guide, x, log_q, evidence, torch.arange(30))
    loss = sum(t.current_weight * t(batch).mean() for t in taught.guide.terms)
    direct = torch.autograd.grad(loss, list(taught.guide.network.parameters()))
    for one, other in zip(gradients["fit"], direct, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_terms_alone_find_separate_clusters(seed: int) -> None:
    x, clusters = blobs(seed=seed)
    torch.manual_seed(seed)
    vmonf = pair([Consistency(RandomWalk(x, length=32)), Balance(weight=2.0)])
    flows = state(vmonf.model.bank)
    trials = pretrain_(vmonf.guide, x, steps=100, n_init=4, trial_steps=50, lr=5e-3, seed=seed)
    assert len(trials) == 4
    assert accuracy(clusters, vmonf.predict(x)) > 0.99
    assert all(torch.equal(v, flows[k]) for k, v in vmonf.model.bank.state_dict().items())


def test_few_labels_name_the_clusters() -> None:
    x, clusters = blobs()
    y = torch.full((300,), -1)
    y[:3] = (clusters[:3] + 1) % 3
    vmonf = pair([Classification(), Consistency(RandomWalk(x)), Balance(weight=2.0)])
    before = torch.get_rng_state()
    pretrain_(vmonf.guide, x, y, steps=150, lr=5e-3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (vmonf.predict(x) == (clusters + 1) % 3).double().mean() > 0.99


def test_augmented_rows_are_what_the_terms_see() -> None:
    x, _ = blobs(20)
    seen: list[torch.Tensor] = []

    class Spy(Term):
        def forward(self, batch: Batch) -> torch.Tensor:
            seen.append(batch.log_q - batch.guide.log_q(batch.x + 1.0))
            return batch.log_q.square().mean(-1)

    pretrain_(pair([]).guide, x, terms=[Spy()], augment=lambda rows: rows + 1.0, steps=2)
    assert len(seen) == 2
    assert all(difference.abs().max() < 1e-6 for difference in seen)


def test_a_bad_start_leaves_the_network_as_it_was() -> None:
    x, _ = blobs(20)

    class Bad(Term):
        def forward(self, batch: Batch) -> torch.Tensor:
            return batch.log_q.sum(-1) * (torch.nan if len(calls) > 3 else 1.0)

    calls: list[int] = []
    vmonf = pair([])
    before = state(vmonf.guide.network)
    with pytest.raises(FloatingPointError, match=r"the sum of the terms is not finite: .*step 4"):
        pretrain_(
            vmonf.guide, x, terms=[Bad()], augment=lambda r: calls.append(1) or r, steps=9, lr=0.1
        )
    assert all(torch.equal(v, before[k]) for k, v in vmonf.guide.network.state_dict().items())
    with pytest.raises(ValueError, match="no terms to learn from"):
        pretrain_(pair([]).guide, x)
    with pytest.raises(ValueError, match="bound to no model"):
        pretrain_(SoftmaxGuide(MLP(2, 3)), x)


PARTS = {
    "realnvp": lambda: RealNVP(2, 3, blocks=2),
    "maf": lambda: MAF(2, 3, blocks=2),
    "gaussian": lambda: Gaussian(2, 3),
    "affine": lambda: Affine(3, batch_shape=(2,)),
    "prelu": lambda: PReLU(3),
    "batch_norm": lambda: BatchNorm(3),
    "network": lambda: nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_started_anew_is_like_a_new_one(name: str) -> None:
    torch.manual_seed(1)
    fresh = PARTS[name]()
    used = PARTS[name]()
    with torch.no_grad():
        for parameter in used.parameters():
            parameter.add_(3.0)
    reset_parameters_(used)
    for (key, one), other in zip(used.named_parameters(), fresh.parameters(), strict=True):
        assert (one.abs().mean() - other.abs().mean()).abs() < 0.5, key
    if name == "affine":
        identity = used.matrix() @ used.matrix().mT
        torch.testing.assert_close(identity, torch.eye(3).expand(2, 3, 3), atol=1e-5, rtol=0)
    coupling = AffineCoupling(2)
    reset_parameters_(coupling)
    last = coupling.network.layers[-1]
    assert last.weight.abs().max() <= 0.1 / math.sqrt(last.in_features)


def test_what_cannot_be_started_anew_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free = nn.Parameter(torch.ones(2))
            self.layer = nn.Linear(2, 2)

    own = Own()
    before = state(own)
    with pytest.raises(ValueError, match="is a Own without reset_parameters"):
        reset_parameters_(own)
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())


def test_the_best_run_is_kept_and_a_failure_undoes_all() -> None:
    layer = nn.Linear(2, 2)
    first = state(layer)
    found: list[dict[str, torch.Tensor]] = []

    def run(number: int) -> float:
        found.append(state(layer))
        return [0.0, 5.0, math.nan, 3.0][number]

    objectives = best_of_([layer], run, 4, seed=0)
    assert objectives[:2] == [0.0, 5.0]
    assert torch.equal(found[0]["weight"], first["weight"])
    assert torch.equal(layer.weight, found[1]["weight"])
    assert len({float(f["weight"].sum()) for f in found}) == 4
    kept = state(layer)
    with pytest.raises(ZeroDivisionError):
        best_of_([layer], lambda number: 1 / (1 - number), 3, seed=0)
    with pytest.raises(ValueError, match="no best one"):
        best_of_([layer], lambda number: math.nan, 2, seed=0)
    assert torch.equal(layer.weight, kept["weight"])


def test_restarts_of_a_fit_are_compared_on_held_out_rows() -> None:
    x, _ = blobs()
    vmonf = pair([Consistency(Jitter(0.3)), Balance()])
    before = torch.get_rng_state()
    history = vmonf.fit(x, n_init=3, epochs=3, seed=5, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(history.restarts) == 3
    assert history.objective[-1] == max(history.restarts)
    assert len(set(history.restarts)) == 3
    assert len(history.held_out) == 3
    with pytest.raises(ValueError, match="n_init"):
        vmonf.fit(x, n_init=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_objective_is_what_the_guide_is_trained_on(share: float) -> None:
    x, _ = blobs(60)
    vmonf = pair([Consistency(lambda b: b.x + 0.2), Balance(weight=2.0)], elbo_gradient=share)
    history = vmonf.fit(x, epochs=1, batch_size=60, lr=0.0, temperature=1.0, progress=False)
    log_q = vmonf.guide.log_q(x)
    batch = Batch(vmonf.guide, x, log_q, None, None)
    penalties = sum(t.current_weight * t(batch).mean().item() for t in vmonf.guide.terms)
    expected = share * vmonf.elbo(x).mean().item() - penalties
    assert history.objective[-1] == pytest.approx(expected, abs=1e-4)
    assert history.elbo[-1] == pytest.approx(vmonf.elbo(x).mean().item() - penalties, abs=1e-4)


def test_one_diverging_restart_is_left_out() -> None:
    x, _ = blobs(60)
    calls: list[int] = []

    def bad_at_first(batch: Batch) -> torch.Tensor:
        if torch.is_grad_enabled() and batch.x.dtype == torch.get_default_dtype():
            calls.append(1)  # a step, and no check at the start of a run
        return batch.log_q.sum(-1) * (torch.nan if 1 <= len(calls) <= 4 else 0.0)

    vmonf = pair([bad_at_first])  # type: ignore[list-item]
    history = vmonf.fit(
        x,
        n_init=2,
        epochs=4,
        batch_size=60,
        max_rejected=4,
        held_out=0.2,
        callbacks=[],  # one run after the other
        progress=False,
    )
    assert history.restarts[0] == -math.inf
    assert math.isfinite(history.restarts[1])


def test_cooling_suits_the_run() -> None:
    for epochs in (4, 40):
        vmonf = pair([])
        temperatures = vmonf.fit(
            blobs(64)[0], epochs=epochs, batch_size=32, progress=False
        ).temperature
        assert temperatures[-1] == pytest.approx(0.1)
        assert temperatures[epochs // 2 - 1] == pytest.approx(
            0.1 ** ((epochs - 1) / epochs), rel=1e-4
        )
        again = vmonf.fit(blobs(64)[0], epochs=1, progress=False)  # a cool guide stays as it is
        assert again.temperature == pytest.approx([0.1])
    with pytest.raises(ValueError, match="share is 0"):
        cooling(share=0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("data", "count"),
    [
        (lambda s: pinwheel(wings=5, per_wing=256, rate=0.25, seed=s), 5),
        (lambda s: two_circles(per_circle=512, seed=s), 2),
    ],
)
def test_linked_clusters_are_joined_to_as_many_as_there_are(
    data: object, count: int, seed: int
) -> None:
    x, _ = data(seed)  # type: ignore[operator]
    walks = RandomWalk(x, length=64)
    joined = merge_linked(spectral_clusters(x, 10), walks.ends)
    assert joined.unique().tolist() == list(range(count))


def semi_supervised(y: torch.Tensor, x: torch.Tensor, components: int, seed: int) -> VMoNF:
    torch.manual_seed(seed)
    walks = Consistency(RandomWalk(x, length=32))
    vmonf = pair([Classification(), walks, Balance(weight=2.0)], components)
    pretrain_(vmonf.guide, x, y, steps=100, lr=5e-3, seed=seed)
    vmonf.fit(x, y, steps=20, lr=3e-3, seed=seed, progress=False)
    return vmonf


@pytest.mark.parametrize("seed", range(2))
def test_a_class_without_labels_gets_the_component_that_is_left(seed: int) -> None:
    x, clusters = blobs(seed=seed)
    y = torch.full((300,), -1)
    y[:30] = torch.where(clusters[:30] < 2, clusters[:30], -1)  # none of class 2
    vmonf = semi_supervised(y, x, 3, seed)
    assert (vmonf.predict(x) == clusters).double().mean() > 0.98


@pytest.mark.parametrize("seed", range(2))
def test_more_components_than_classes(seed: int) -> None:
    """Four components for three classes: each labelled class keeps its own number."""
    x, clusters = blobs(seed=seed)
    y = torch.full((300,), -1)
    y[:60] = clusters[:60]
    vmonf = semi_supervised(y, x, 4, seed)
    found = vmonf.predict(x)
    assert ((found == clusters) | (found == 3)).double().mean() > 0.98
    assert (vmonf.predict(x[:60]) == clusters[:60]).double().mean() > 0.5


@pytest.mark.parametrize("seed", range(2))
def test_partial_labels_rule_components_out(seed: int) -> None:
    """Each of sixty rows says only which cluster it is not in."""
    x, clusters = blobs(seed=seed)
    y = torch.zeros(300, 3)
    y[torch.arange(60), (clusters[:60] + 1 + torch.arange(60) // 3 % 2) % 3] = -torch.inf
    vmonf = semi_supervised(y, x, 3, seed)
    assert (vmonf.predict(x) == clusters).double().mean() > 0.98


@pytest.mark.parametrize("seed", range(2))
def test_noisy_labels_are_outvoted(seed: int) -> None:
    """A fifth of sixty labels is wrong, and log p(y|c) says so."""
    x, clusters = blobs(seed=seed)
    said = clusters[:60].clone()
    said[::5] = (said[::5] + 1) % 3
    y = torch.zeros(300, 3)
    noise = torch.full((3, 3), 0.1).fill_diagonal_(0.8)
    y[:60] = noise.log()[:, said].T
    vmonf = semi_supervised(y, x, 3, seed)
    assert (vmonf.predict(x) == clusters).double().mean() > 0.98


@pytest.mark.usefixtures("float64")
def test_its_gradient_is_that_of_the_terms_on_the_distorted_rows() -> None:
    row = torch.tensor([0.3, -0.7])
    x = row.expand(16, 2)  # every batch is the same
    terms = [Confidence(weight=0.5), Consistency(lambda batch: batch.x - 0.2, weight=2.0)]
    vmonf = pair([]).double()
    vmonf.model.standardizer.fitted.fill_(True)
    log_q = vmonf.guide.log_q(row + 0.1)
    q, other = log_q.exp(), vmonf.guide.log_q(row - 0.2).exp()
    loss = -0.5 * (q * log_q).sum() - 2.0 * (q * other).sum().log()
    wanted = torch.autograd.grad(loss, list(vmonf.guide.network.parameters()))
    found: list[torch.Tensor] = []
    for parameter in vmonf.guide.network.parameters():
        parameter.register_hook(lambda g: found.append(g.clone()))
    pretrain_(vmonf.guide, x, terms=terms, augment=lambda rows: rows + 0.1, steps=1)
    for one in wanted:
        assert any(one.shape == g.shape and torch.allclose(one, g, rtol=1e-9) for g in found)


def test_clusters_are_those_of_the_mean_over_copies() -> None:
    views = torch.tensor([[[0.6, 0.4], [0.1, 0.9]], [[0.1, 0.9], [0.2, 0.8]]])  # copies, rows

    class Seen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1] > 0, views[1], views[0]).log()

    guide = SoftmaxGuide(Seen(), model=FlowMixture(RealNVP(2, 2, blocks=2)))
    turns = itertools.cycle([0.0, 1.0])
    found = _agreed(guide, torch.zeros(2, 2), lambda x: x + next(turns), copies=2)
    assert found.tolist() == [1, 1]
    assert _agreed(guide, torch.zeros(2, 2), lambda x: x, copies=1).tolist() == [0, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_learns_anew_what_copies_agree_on(seed: int) -> None:
    x, clusters = blobs(seed=seed)
    torch.manual_seed(seed)
    vmonf = pair([])
    wrong = torch.where(torch.rand(300) < 0.3, torch.randint(3, (300,)), clusters)
    warm_start_(vmonf.guide, x, wrong, steps=300, lr=1e-2, seed=seed)
    first, drawn = state(vmonf.guide.network), torch.get_rng_state()

    def augment(rows: torch.Tensor) -> torch.Tensor:
        return rows + 0.5 * torch.randn_like(rows)

    relearn_(vmonf.guide, x, augment=augment, steps=75, last_steps=50, lr=5e-3, seed=seed)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (vmonf.predict(x) == clusters).double().mean() > 0.99
    far = [(v - first[k]).norm() for k, v in vmonf.guide.network.state_dict().items()]
    assert all(distance > 0.1 for distance in far)


def test_labels_stand_in_place_of_clusters() -> None:
    x, clusters = blobs()
    vmonf = pair([])
    warm_start_(vmonf.guide, x, clusters, steps=100, seed=0)
    others = (clusters + 1) % 3
    relearn_(vmonf.guide, x, others, augment=lambda rows: rows, rounds=1, steps=300, last_steps=50)
    assert (vmonf.predict(x) == (clusters + 1) % 3).double().mean() > 0.99


def test_a_network_that_cannot_learn_anew_stays() -> None:
    x, _ = blobs(20)
    vmonf = pair([])
    before = state(vmonf.guide)

    def broken(batch: Batch) -> torch.Tensor:
        return batch.log_q.sum(-1) * torch.nan

    with pytest.raises(FloatingPointError):
        relearn_(vmonf.guide, x, augment=lambda rows: rows, terms=[broken], steps=3)
    with pytest.raises(ValueError, match="labels"):
        relearn_(vmonf.guide, x, torch.zeros(20, 3), augment=lambda rows: rows)
    assert all(torch.equal(v, before[k]) for k, v in vmonf.guide.state_dict().items())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_steps_are_on_the_rows_themselves(seed: int) -> None:
    """A distortion that hides the clusters; labels of all rows stand in place of what it says."""
    x, clusters = blobs(seed=seed)
    shares = []
    for last_steps in (0, 200):
        torch.manual_seed(seed)
        vmonf = pair([])
        options: dict[str, Any] = {"rounds": 1, "steps": 20, "lr": 4e-2, "seed": seed}
        relearn_(
            vmonf.guide, x, clusters, augment=torch.zeros_like, last_steps=last_steps, **options
        )
        shares.append(float((vmonf.predict(x) == clusters).double().mean()))
    assert shares[0] < 0.9 < 0.99 < shares[1]


class Later:
    """A distortion that fails after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("of the user")
        return x + 0.1


@pytest.mark.parametrize("calls", [0, 10, 31])
@pytest.mark.parametrize("verb", ["pretrain_", "relearn_"])
def test_a_lesson_that_fails_leaves_units_network_and_weights(verb: str, calls: int) -> None:
    torch.manual_seed(0)
    x = 5 * torch.randn(100, 2) + 100
    term = Confidence(weight=lambda step: 1.0 + step)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2), [term]))
    before, guide = vmonf.predict_proba(x), vmonf.guide
    if verb == "pretrain_":
        with pytest.raises(RuntimeError, match="of the user"):
            pretrain_(guide, x, augment=Later(calls), steps=40, seed=0)
    else:
        with pytest.raises(RuntimeError, match="of the user"):
            relearn_(guide, x, augment=Later(calls), steps=10, last_steps=2, copies=8, seed=0)
    assert torch.equal(vmonf.predict_proba(x), before)
    assert not vmonf.model.standardizer.fitted
    assert term.current_weight == 1.0


def test_a_lesson_leaves_the_weights_of_terms_at_their_start() -> None:
    term = Confidence(weight=lambda step: 1.0 + step)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2), [term]))
    pretrain_(vmonf.guide, torch.randn(50, 2), steps=5, n_init=2, trial_steps=3, seed=0)
    assert term.current_weight == 1.0


@pytest.mark.parametrize("penalty", [lambda batch: 1.0, lambda batch: torch.ones(7, 2)])
def test_a_lesson_names_a_term_that_returns_no_penalty(penalty: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    with pytest.raises((TypeError, ValueError), match="the term CustomTerm returns"):
        pretrain_(vmonf.guide, torch.randn(50, 2), terms=[penalty], steps=2)
    assert not vmonf.model.standardizer.fitted
