"""Restarts in one batch against the same restarts one after the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

from pyro_vmonf import MAF, NSF, FlowMixture, Gaussian, MarginalGuide, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.flows import Flow, StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import exponential_decay, linear_decay
from pyro_vmonf.terms import Balance, Batch, Confidence, Consistency
from pyro_vmonf.training.restarts import fit_best
from pyro_vmonf.training.together import NotTogether, fit_together
from pyro_vmonf.transforms import Affine, BatchNorm

pytestmark = pytest.mark.usefixtures("float64")
D, K, N, R = 2, 3, 90, 3


class Residual(nn.Module):
    """A network of the user's own, which knows nothing of batches of networks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(D, D), nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + torch.sin(self.first(x)))


def batch_norm() -> Flow:
    layers = [Affine(D, batch_shape=(K,)), BatchNorm(D, batch_shape=(K,))]
    return Flow(layers, base=StandardNormal(D, K))


def terms() -> list[Any]:
    return [
        Balance(weight=linear_decay(steps=20, initial=2.0, final=0.5)),
        Consistency(lambda batch: batch.x + 0.1),
        Confidence(weight=0.1),
    ]


PAIRS: dict[str, Callable[[], VMoNF]] = {
    "realnvp": lambda: VMoNF(
        FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), "learned"),
        SoftmaxGuide(MLP(D, K, hidden=(5,)), terms()),
    ),
    "splines, a network of one's own": lambda: VMoNF(
        FlowMixture(NSF(D, K, blocks=2, hidden=(4,))), SoftmaxGuide(Residual(), elbo_gradient=0.5)
    ),
    "maf, no guide": lambda: VMoNF(FlowMixture(MAF(D, K, blocks=2, hidden=(4,)), "learned")),
    "batch statistics": lambda: VMoNF(FlowMixture(batch_norm()), SoftmaxGuide(MLP(D, K))),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 4, "batch_size": 32},
    "clipped": {"steps": 10, "batch_size": 40, "clip_norm": 0.5, "weight_decay": 0.01},
    "held out": {
        "epochs": 5,
        "batch_size": 32,
        "held_out": 0.2,
        "keep": "best",
        "scheduler": lambda optimizer: ExponentialLR(optimizer, 0.9),
    },
    "patient": {"epochs": 12, "batch_size": 40, "held_out": 0.2, "patience": 1, "lr": 0.3},
}


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 3.0], [3.0, -2.0], [-3.0, -2.0]])
    c = torch.randint(K, (N,), generator=generator)
    x = centres[c] + torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, torch.where(torch.arange(N) < 10, c, -1)


def starts(make: Callable[[], VMoNF]) -> list[VMoNF]:
    pairs = []
    for seed in range(R):
        with local_seed(seed):
            pairs.append(make().double())
    return pairs


# Each pair has two of the options, with labels and without, and each option has two of the pairs.
CASES = [
    (kind, option)
    for i, kind in enumerate(PAIRS)
    for j, option in enumerate(OPTIONS)
    if (j - i) % len(OPTIONS) in (0, 3)
]


@pytest.mark.parametrize(("kind", "option"), CASES)
def test_runs_in_a_batch_end_as_runs_on_their_own(kind: str, option: str) -> None:
    x, labels = data()
    # Each pair and each option has labels in half of its runs.
    y = labels if (list(PAIRS).index(kind) + list(OPTIONS).index(option)) % 2 else None
    options = {"lr": 0.02, **OPTIONS[option]}
    if kind != "maf, no guide":
        options["temperature"] = exponential_decay(rate=0.05)
    alone, together = starts(PAIRS[kind]), starts(PAIRS[kind])
    before = torch.get_rng_state()
    found = fit_together(
        [(v.model, v.guide) for v in together], x, y, list(range(R)), progress=False, **options
    )
    assert torch.equal(torch.get_rng_state(), before)
    stopped = []
    for seed, (one, other, history) in enumerate(zip(alone, together, found, strict=True)):
        wanted = one.fit(x, y, seed=seed, progress=False, **options)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(
                other.state_dict()[name],
                value,
                rtol=1e-7,
                atol=1e-9,
                msg=lambda m, n=name, s=seed: f"run {s}, {n}: {m}",
            )
        for key in ("epoch", "step", "elbo", "held_out", "objective", "temperature", "stopped"):
            mine, theirs = getattr(history, key), getattr(wanted, key)
            assert mine == (theirs if key == "stopped" else pytest.approx(theirs, rel=1e-7))
        assert history.terms.keys() == wanted.terms.keys()
        for term, values in wanted.terms.items():
            assert history.terms[term] == pytest.approx(values, rel=1e-7, abs=1e-9)
        stopped.append(len(wanted.epoch))
    if option == "patient" and kind == "realnvp":
        assert len(set(stopped)) > 1, "the runs are meant to stop at different epochs"


def test_a_fault_in_one_run_leaves_the_others_alone() -> None:
    x, _ = data()

    def broken(batch: Batch) -> Tensor:
        # Only the first run holds the first row.
        assert batch.index is not None
        return batch.log_q.sum(-1) * torch.where((batch.index == 0).any(), torch.nan, 0.0)

    def make() -> VMoNF:
        return VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(MLP(D, K), [broken]))

    options: dict[str, Any] = {"epochs": 6, "batch_size": N, "held_out": 0.5, "lr": 0.02}
    seeds: list[int] = []
    for wanted in (True, False):
        for seed in range(50):
            order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
            if bool((order[N // 2 :] == 0).any()) == wanted and len(seeds) < (1 if wanted else 3):
                seeds.append(seed)
    alone, together = starts(make), starts(make)
    found = fit_together(
        [(v.model, v.guide) for v in together], x, None, seeds, max_rejected=4, progress=False,
        **options,
    )  # fmt: skip
    start = starts(make)[0]
    assert found[0].rejected == 4
    assert found[0].objective[-1] == -math.inf
    names = [name for name, _ in start.named_parameters()]
    assert all(torch.equal(together[0].state_dict()[n], start.state_dict()[n]) for n in names)
    for i in (1, 2):
        alone[i].fit(x, seed=seeds[i], progress=False, **options)
        for name in names:
            torch.testing.assert_close(together[i].state_dict()[name], alone[i].state_dict()[name])


def test_what_vmap_does_not_take_is_fitted_one_by_one() -> None:
    class Choosy(nn.Linear):
        def __init__(self) -> None:
            super().__init__(D, K)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float(x.detach().sum() > -1e9)

    x, _ = data()
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(Choosy())).double()
    state = copy.deepcopy(vmonf.state_dict())
    pair = [(vmonf.model, vmonf.guide)] * 2
    with pytest.raises(NotTogether):
        fit_together(pair, x, None, [0, 1], epochs=1, progress=False)
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())
    assert len(vmonf.fit(x, n_init=2, epochs=2, seed=0, progress=False).restarts) == 2


def test_no_guide_restarts_too() -> None:
    x, _ = data()
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), MarginalGuide()).double()
    history = vmonf.fit(x, n_init=3, epochs=2, seed=0, progress=False)
    assert history.final_objective == max(history.restarts)
    assert len(set(history.restarts)) == 3


class Tied(nn.Module):
    """A network that uses one matrix twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, K)
        self.again.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(torch.tanh(self.first(x))))


def test_a_matrix_that_is_used_twice_is_trained() -> None:
    x, _ = data()

    def make() -> VMoNF:
        return VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(Tied()))

    alone, together = starts(make), starts(make)
    options: dict[str, Any] = {"epochs": 3, "lr": 0.02, "batch_size": 40, "progress": False}
    fit_together([(v.model, v.guide) for v in together], x, None, list(range(R)), **options)
    for seed, (one, other) in enumerate(zip(alone, together, strict=True)):
        one.fit(x, seed=seed, **options)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("option", [{}, {"callbacks": []}])
def test_restarts_are_compared_on_the_same_rows_by_what_stayed(option: dict[str, Any]) -> None:
    x, _ = data()

    class Same(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.constant_(self.weight, 0.1)
            nn.init.constant_(self.bias, 0.0)

    class Fixed(nn.Module):
        def forward(self) -> torch.distributions.Distribution:
            loc = torch.arange(2.0 * K).reshape(K, D)
            return torch.distributions.Independent(torch.distributions.Normal(loc, 1.0), 1)

    vmonf = VMoNF(FlowMixture(Fixed()), SoftmaxGuide(Same(D, K))).double()
    history = vmonf.fit(x, n_init=4, epochs=1, lr=0.0, seed=0, progress=False, **option)
    assert history.restarts == pytest.approx([history.restarts[0]] * 4)
    pair = PAIRS["realnvp"]().double()
    kept = pair.fit(
        x, n_init=2, epochs=12, lr=0.3, keep="best", batch_size=30, seed=0, progress=False, **option
    )
    assert kept.final_objective == max(kept.restarts)
    best = max(kept.held_out)
    assert kept.held_out[kept.kept] == best


@pytest.mark.parametrize("option", [{}, {"callbacks": [lambda _: None]}])
def test_no_start_is_the_first_pair_again(option: dict[str, Any]) -> None:
    x, _ = data()
    torch.manual_seed(1)  # the seed of the run, and one
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    history = vmonf.fit(x, n_init=2, epochs=1, lr=0.0, seed=0, progress=False, **option)
    assert history.restarts[0] != history.restarts[1]


def test_rejected_steps_are_reported() -> None:
    x, _ = data()

    def broken(batch: Batch) -> Tensor:
        return batch.log_q.sum(-1) * (torch.nan if batch.guide.training else 0.0)

    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(MLP(D, K), [broken])).double()
    state = copy.deepcopy(vmonf.state_dict())
    with pytest.raises(FloatingPointError, match="none of 2 stayed finite"):
        vmonf.fit(x, n_init=2, steps=3, seed=0, progress=False)
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())

    def sometimes(batch: Batch) -> Tensor:
        assert batch.index is not None
        return batch.log_q.sum(-1) * torch.where((batch.index == 5).any(), torch.nan, 0.0)

    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(MLP(D, K), [sometimes]))
    with pytest.warns(RuntimeWarning, match=r"2 of \d+ steps"):
        vmonf.double().fit(
            x, n_init=2, epochs=2, batch_size=30, held_out=torch.arange(60, 90), progress=False
        )


def test_a_loader_is_compared_on_what_it_trained_on() -> None:
    x, _ = data()
    loader = torch.utils.data.DataLoader(x, batch_size=30)
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(MLP(D, K))).double()
    assert len(vmonf.fit(loader, n_init=2, epochs=1, seed=0, progress=False).restarts) == 2


def test_the_terms_weights_stay_at_the_last_step() -> None:
    x, _ = data()
    weights = []
    for n_init in (1, 2):
        term = Confidence(weight=linear_decay(10, initial=2.0, final=0.0))
        vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(MLP(D, K), [term]))
        vmonf.double().fit(x, n_init=n_init, steps=8, progress=False)
        weights.append(term.current_weight)
    assert weights == pytest.approx([0.6, 0.6])


@pytest.mark.parametrize("positions", [[0.5], [[1]], [1, 1], [90], list(range(90)), []])
def test_held_out_positions_are_checked(positions: list[Any]) -> None:
    x, _ = data()
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=1))).double()
    said = r"held_out has (shape|a position twice|the position 90|all 90 rows)"
    with pytest.raises(ValueError, match=said):
        vmonf.fit(x, epochs=1, held_out=torch.tensor(positions), progress=False)


@pytest.mark.parametrize("option", [{}, {"callbacks": []}])
def test_what_cannot_be_fitted_is_refused_as_ever(option: dict[str, Any]) -> None:
    x, _ = data()
    one, other = PAIRS["realnvp"]().double(), PAIRS["realnvp"]().double()
    with pytest.raises(ValueError, match="2 rows but the mixture has 3 components"):
        one.fit(x[:2], n_init=2, epochs=1, held_out=0.0, progress=False, **option)
    with pytest.raises(ValueError, match="bound to another model"):
        fit_best(one.model, other.guide, x, n_init=2, epochs=1, progress=False, **option)
    assert other.guide.model is other.model


def test_a_run_that_stopped_early_is_not_given_up() -> None:
    """Others go on for longer than a run of rejected steps may last."""
    x, _ = data()
    make = PAIRS["realnvp"]
    options: dict[str, Any] = {
        "epochs": 15,
        "batch_size": 40,
        "held_out": 0.2,
        "patience": 1,
        "lr": 0.3,
        "max_rejected": 2,
        "progress": False,
    }
    together = starts(make)
    found = fit_together([(v.model, v.guide) for v in together], x, None, list(range(R)), **options)
    assert len({len(history.epoch) for history in found}) > 1
    for history in found:
        assert history.rejected == 0
        assert math.isfinite(history.final_objective)
