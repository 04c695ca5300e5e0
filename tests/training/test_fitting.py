"""``fit``: what it trains, records, keeps, refuses, and leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Dirichlet
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    exponential_decay,
    fit,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Batch
from pyro_vmonf.training import trainer
from pyro_vmonf.training.direct import takes_part
from pyro_vmonf.training.fit import Progress
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.transforms import Affine, BatchNorm

K, D = 3, 2


def pair(weights: object = "uniform", seed: int = 0, guided: bool = True) -> VMoNF:
    with local_seed(seed):
        model = FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), weights)
        return VMoNF(model, SoftmaxGuide(MLP(D, K, hidden=(8,))) if guided else None)


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    return pinwheel(wings=K, per_wing=40, seed=seed)


def state(vmonf: VMoNF) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vmonf.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


WEIGHTS: dict[str, Callable[[], object]] = {
    "fixed": lambda: torch.tensor([0.2, 0.3, 0.5]),
    "learned": lambda: "learned",
    "random": lambda: Dirichlet(torch.ones(K)),
}


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_parameter_trains_and_the_elbo_rises(weights: str, guided: bool) -> None:
    vmonf = pair(WEIGHTS[weights](), guided=guided)
    before = state(vmonf)
    history = vmonf.fit(data()[0], epochs=20, batch_size=40, lr=1e-2, seed=0, progress=False)
    for name, parameter in vmonf.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert history.elbo[-1] > history.elbo[0] + 0.1
    assert len(history.elbo) == len(history.temperature) == 20
    assert history.step[-1] == 60


def test_fit_is_the_loop_a_user_would_write() -> None:
    x, _ = data()
    fitted, written = pair(), pair()
    fitted.fit(x, epochs=4, batch_size=len(x), lr=1e-2, temperature=1.0, seed=0, progress=False)
    written.model.standardize_(x)
    loss = TraceEnum_ELBO(max_plate_nesting=1)(written.model, written.guide)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (loss(x) / len(x)).backward()
        optimizer.step()
    for (name, one), other in zip(fitted.named_parameters(), written.parameters(), strict=True):
        # the rows come in another order, so sums differ by rounding
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


def test_seeds_are_local_and_repeat() -> None:
    x, y = data()
    torch.manual_seed(7)
    pyro.param("mine", torch.tensor(1.0))
    before = torch.get_rng_state()
    one, other = pair(WEIGHTS["random"]()), pair(WEIGHTS["random"]())
    one.fit(x, y, epochs=2, batch_size=50, seed=3, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(pyro.get_param_store().keys()) == {"mine"}
    torch.rand(5)
    other.fit(x, y, epochs=2, batch_size=50, seed=3, progress=False)
    assert same(state(one), state(other))


def test_refitting_with_another_k_in_one_process() -> None:
    x, _ = data()
    for components in (2, 4, 2):
        vmonf = VMoNF(
            FlowMixture(RealNVP(D, components, blocks=1, hidden=(4,))),
            SoftmaxGuide(MLP(D, components)),
        )
        before = state(vmonf)
        vmonf.fit(x, epochs=1, progress=False)
        assert vmonf.predict_proba(x).shape == (len(x), components)
        for name, parameter in vmonf.named_parameters():
            assert not torch.equal(parameter, before[name]), name


def test_standardisation_is_found_once() -> None:
    x, _ = data()
    vmonf = pair()
    vmonf.fit(50 + 9 * x, epochs=1, progress=False)
    found = vmonf.model.standardizer.loc.clone()
    torch.testing.assert_close(found, (50 + 9 * x).mean(0))
    vmonf.fit(x, epochs=1, progress=False)
    assert torch.equal(vmonf.model.standardizer.loc, found)
    raw = pair()
    raw.fit(x, epochs=1, standardize=False, progress=False)
    assert torch.equal(raw.model.standardizer.scale, torch.ones(D))


def test_steps_in_place_of_epochs() -> None:
    history = pair().fit(data()[0], steps=7, batch_size=50, progress=False)
    assert history.step[-1] == 7
    assert history.epoch == [0, 1, 2]


def test_the_temperature_follows_its_schedule_and_stays() -> None:
    vmonf = pair()
    history = vmonf.fit(
        data()[0],
        epochs=3,
        batch_size=60,
        temperature=exponential_decay(rate=0.1, floor=0.01),
        progress=False,
    )
    # two steps an epoch: the last step of an epoch is number 1, 3, 5
    expected = torch.exp(-0.1 * torch.tensor([1.0, 3.0, 5.0]))
    torch.testing.assert_close(torch.tensor(history.temperature), expected)
    assert float(vmonf.guide.temperature) == pytest.approx(history.temperature[-1])


def test_numpy_and_loaders_train_like_tensors() -> None:
    x, y = data()
    tensors, arrays, loader = pair(), pair(), pair()
    tensors.fit(x, y, epochs=2, seed=0, progress=False)
    arrays.fit(x.double().numpy(), y.numpy(), epochs=2, seed=0, progress=False)
    assert same(state(tensors), state(arrays))
    batches = DataLoader(TensorDataset(x, y), batch_size=len(x))
    loader.fit(batches, epochs=2, seed=0, progress=False)
    for (name, one), other in zip(loader.named_parameters(), tensors.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)
    unlabelled = pair()
    history = unlabelled.fit(DataLoader(x, batch_size=50), epochs=1, progress=False)
    assert history.step == [3]


def test_optimiser_scheduler_and_clipping() -> None:
    seen: list[float] = []
    vmonf = pair()

    def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(parameters, lr=1.0))
        return made[0]

    before = state(vmonf)
    vmonf.fit(
        data()[0],
        epochs=3,
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=1e-3,
        callbacks=[lambda p: seen.append(made[0].param_groups[0]["lr"])],
        progress=False,
    )
    assert seen == [0.5, 0.25, 0.125]
    moved = torch.stack([(v - before[k]).square().sum() for k, v in _trained(vmonf)]).sum().sqrt()
    assert moved <= 1e-3 * (1 + 0.5 + 0.25) * 1.001


def _trained(vmonf: VMoNF) -> list[tuple[str, Tensor]]:
    return [(name, p.detach()) for name, p in vmonf.named_parameters()]


def test_a_callback_stops_the_run() -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> bool:
        seen.append(progress)
        return progress.epoch == 2

    history = pair().fit(data()[0], epochs=10, callbacks=[stop], progress=False)
    assert history.epoch == [0, 1, 2]
    assert "callback" in history.stopped
    assert [p.epoch for p in seen] == [0, 1, 2]


def test_held_out_rows_stop_the_run_and_choose_the_parameters() -> None:
    x, _ = data()
    vmonf = pair()
    states: list[dict[str, Tensor]] = []
    history = vmonf.fit(
        x,
        epochs=60,
        lr=0.3,  # far too large: the held-out ELBO goes up and down
        held_out=0.25,
        patience=3,
        keep="best",
        callbacks=[lambda p: states.append(state(vmonf))],
        seed=0,
        progress=False,
    )
    best = int(np.argmax(history.held_out))
    assert len(history.held_out) == len(history.epoch) == best + 4 < 60
    assert same(state(vmonf), states[best])
    assert not same(states[best], states[-1])


def test_pretraining_sees_labelled_rows_only_and_interleaving_alternates() -> None:
    x, labels = data()
    y = torch.full_like(labels, -1)
    y[::10] = labels[::10]
    seen: list[tuple[int, int]] = []

    def spy(batch: Batch) -> Tensor:
        known = batch.log_evidence
        labelled = 0 if known is None else int((known < 0).any(-1).sum())
        if in_a_step(batch):
            seen.append((labelled, len(batch.x)))
        return batch.x.new_zeros(len(batch.x))

    vmonf = pair()
    vmonf.guide.terms.append(type(SoftmaxGuide(MLP(D, K), [spy]).terms[0])(spy))
    history = vmonf.fit(
        x, y, epochs=2, batch_size=200, pretrain_epochs=2, interleave=True, progress=False
    )
    count = int((y >= 0).sum())
    rest = len(x) - count
    assert seen == [(count, count)] * 2 + [(count, count), (0, rest)] * 2
    assert history.epoch == [-2, -1, 0, 1]
    assert history.terms["classification"][0] < 0


def test_labels_reach_the_guide() -> None:
    x, labels = data()
    y = torch.full_like(labels, -1)
    y[::4] = labels[::4]
    vmonf = pair()
    vmonf.fit(x, y, epochs=150, lr=1e-2, seed=0, progress=False)
    known = y >= 0
    assert (vmonf.predict(x[known]) == y[known]).double().mean() > 0.9
    given = vmonf.predict_proba(x, y)
    assert torch.equal(given.argmax(-1)[known], y[known])


def in_a_step(batch: Batch) -> bool:
    """Whether a term is called by a step, and not by the checks at the start of a run."""
    return torch.is_grad_enabled() and batch.x.dtype == torch.get_default_dtype()


class Faulty:
    """Loss factors that turn bad for some steps."""

    def __init__(self, bad: set[int], value: float = float("nan")) -> None:
        self.bad, self.value, self.calls = bad, value, -1

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += in_a_step(batch)
        penalty = batch.log_q.square().sum(-1)
        return penalty * self.value if self.calls in self.bad else penalty * 0


def faulty_pair(bad: set[int], value: float = float("nan")) -> VMoNF:
    with local_seed(0):
        layers = [Affine(D, batch_shape=(K,)), BatchNorm(D, batch_shape=(K,))]
        model = FlowMixture(Flow(layers, base=StandardNormal(D, K)))
        return VMoNF(model, SoftmaxGuide(MLP(D, K), [Faulty(bad, value)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_rolled_back_and_counted(value: float) -> None:
    x, _ = data()
    states: list[dict[str, Tensor]] = []
    vmonf = faulty_pair({1, 2}, value)
    with pytest.warns(RuntimeWarning, match="2 of 4 steps"):
        history = vmonf.fit(
            x,
            epochs=4,
            temperature=1.0,
            callbacks=lambda p: states.append(state(vmonf)),
            progress=False,
            batch_size=len(x),
        )
    assert history.rejected == 2
    assert same(states[0], states[1])  # buffers of the batch norm included
    assert same(states[0], states[2])
    assert not same(states[2], states[3])


def test_lasting_faults_stop_the_run_in_the_last_good_state() -> None:
    x, _ = data()
    vmonf = faulty_pair(set(range(3, 100)))
    states: list[dict[str, Tensor]] = []
    with pytest.raises(FloatingPointError, match=r"5 steps in a row.*customterm"):
        vmonf.fit(
            x,
            epochs=50,
            max_rejected=5,
            callbacks=[lambda p: states.append(state(vmonf))],
            progress=False,
        )
    # the parameters that gave the last finite loss, before the step that nothing finite followed
    names = [name for name, _ in vmonf.named_parameters()]
    assert all(torch.equal(state(vmonf)[name], states[1][name]) for name in names)


def test_the_last_good_state_scores() -> None:
    x, _ = data()
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    with pytest.raises(FloatingPointError, match="last good state"):
        vmonf.fit(x, epochs=100, lr=100.0, progress=False)
    assert vmonf.log_prob(x).isfinite().all()


def test_a_run_of_rejected_steps_is_an_error() -> None:
    with pytest.raises(FloatingPointError, match="3 of 3 steps"):
        faulty_pair(set(range(10))).fit(data()[0], epochs=3, progress=False)


def test_a_faulty_component_is_named() -> None:
    x, _ = data()
    vmonf = pair()
    with torch.no_grad():
        vmonf.model.bank.transforms[0].network.layers[0].bias[1] = torch.nan
    with pytest.raises(FloatingPointError, match=r"log_likelihood.*component 1"):
        vmonf.fit(x, epochs=1, batch_size=10, max_rejected=3, progress=False)


def test_modes_and_frozen_parameters_are_left_as_they_were() -> None:
    vmonf = pair()
    vmonf.eval()
    vmonf.guide.train()
    vmonf.model.bank.requires_grad_(False)
    before = state(vmonf)
    vmonf.fit(data()[0], epochs=1, progress=False)
    assert not vmonf.model.training
    assert vmonf.guide.training
    after = state(vmonf)
    assert same(
        {k: v for k, v in before.items() if k.startswith("model.bank")},
        {k: v for k, v in after.items() if k.startswith("model.bank")},
    )


def test_row_weights_of_zero_leave_rows_out() -> None:
    x, _ = data()
    weight = torch.ones(len(x))
    weight[60:] = 0.0
    one, other = pair(), pair()
    for vmonf in (one, other):
        vmonf.model.standardize_(x)
    one.fit(x, sample_weight=weight * 2, epochs=3, lr=1e-2, progress=False)
    other.fit(x[:60], epochs=3, lr=1e-2, progress=False)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


X = pinwheel(wings=K, per_wing=10, seed=0)[0]
LABELS = torch.arange(K).repeat_interleave(10)


def spoiled(position: int, value: float) -> Tensor:
    x = X.clone()
    x[position, 1] = value
    return x


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "another dimension": ({"x": torch.randn(9, 3)}, ValueError, "3 features.*have 2.*features=3"),
    "a vector": ({"x": torch.randn(9)}, ValueError, r"shape \(9,\)"),
    "a row of nan": ({"x": X.index_fill(0, torch.tensor(4), torch.nan)}, ValueError, "rows 4 of x"),
    "a column of nan": ({"x": X * torch.tensor([1, torch.nan])}, ValueError, "column 1 of x"),
    "inf": ({"x": spoiled(7, torch.inf)}, ValueError, "1 of 30 rows: 7"),
    "no rows": ({"x": X[:0]}, ValueError, "no rows"),
    "fewer rows than components": ({"x": X[:2]}, ValueError, "2 rows.*3 components"),
    "integers": ({"x": X.long()}, TypeError, "int64"),
    "complex": ({"x": X.to(torch.complex64)}, TypeError, "complex64"),
    "text": ({"x": [["a", "b"]] * 9}, TypeError, "numeric"),
    "overflow": ({"x": X.double() * 1e300}, ValueError, "overflow"),
    "label out of range": ({"y": LABELS + 1}, ValueError, "label 3 in row 20"),
    "label below -1": ({"y": LABELS - 2}, ValueError, "label -2 in row 0"),
    "too few labels": ({"y": LABELS[:5]}, ValueError, "30 rows"),
    "float labels": ({"y": LABELS.float()}, TypeError, "integer labels"),
    "evidence of another K": ({"y": torch.zeros(30, 4)}, ValueError, r"\(30, 3\)"),
    "impossible rows": ({"y": torch.full((30, 3), -torch.inf)}, ValueError, "rule out"),
    "negative temperature": ({"temperature": -1.0}, ValueError, "-1.0"),
    "zero temperature": ({"temperature": lambda step: 0.0}, ValueError, "positive"),
    "no epochs": ({"epochs": 0}, ValueError, "epochs is 0"),
    "both lengths": ({"epochs": 1, "steps": 1}, ValueError, "both"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size"),
    "row weights too short": ({"sample_weight": torch.ones(3)}, ValueError, "30 rows"),
    "negative row weights": ({"sample_weight": -torch.ones(30)}, ValueError, "negative"),
    "nobody labelled": ({"pretrain_epochs": 1}, ValueError, "no row is labelled"),
    "patience alone": ({"patience": 3}, ValueError, "held_out"),
    "everything held out": ({"held_out": 1.0}, ValueError, "held_out is 1.0"),
    "learning rate": ({"lr": -1.0}, ValueError, "lr is -1.0"),
    "clipping": ({"clip_norm": 0.0}, ValueError, "clip_norm"),
    "pretraining": ({"pretrain_epochs": -1}, ValueError, "pretrain_epochs is -1"),
    "keep": ({"keep": "first"}, ValueError, "keep is 'first'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_reason_and_changes_nothing(case: str) -> None:
    arguments, error, message = BAD[case]
    vmonf = pair()
    before = copy.deepcopy(state(vmonf))
    given = {"x": X, "epochs": 1} | arguments
    with pytest.raises(error, match=message):
        vmonf.fit(progress=False, **given)
    assert same(state(vmonf), before)


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0.5}, {"sample_weight": torch.ones(30)}], ids=str
)
def test_options_that_need_a_guide(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SoftmaxGuide"):
        pair(guided=False).fit(X, epochs=1, progress=False, **arguments)


@pytest.mark.parametrize("guided", [True, False])
def test_one_component_fits(guided: bool) -> None:
    guide = SoftmaxGuide(MLP(D, 1)) if guided else None
    vmonf = VMoNF(FlowMixture(RealNVP(D, 1, blocks=2, hidden=(4,))), guide)
    history = vmonf.fit(X, epochs=5, lr=1e-2, progress=False)
    assert history.elbo[-1] > history.elbo[0]
    assert history.terms["entropy"] == pytest.approx([0.0] * 5)


def test_frozen_weights_stay_frozen() -> None:
    for weights in ("learned", Dirichlet(torch.ones(K))):
        vmonf = pair(weights)
        vmonf.model.weights.requires_grad_(False)
        before = vmonf.model.weights.log_mean().clone()
        for _ in range(2):
            vmonf.fit(X, epochs=2, lr=0.1, progress=False)
        assert torch.equal(vmonf.model.weights.log_mean(), before)


def test_fit_binds_a_free_guide_and_refuses_anothers() -> None:
    model, guide = FlowMixture(RealNVP(D, K, blocks=2)), SoftmaxGuide(MLP(D, K))
    fit(model, guide, X, epochs=1, progress=False)
    assert guide.model is model
    with pytest.raises(ValueError, match="another model"):
        fit(FlowMixture(RealNVP(D, K, blocks=2)), guide, X, epochs=1, progress=False)


def test_terms_know_the_positions_of_their_rows_or_that_nobody_does() -> None:
    x, _ = data()
    seen: list[bool] = []

    def spy(batch: Batch) -> Tensor:
        seen.append(batch.index is not None and torch.equal(x[batch.index], batch.x))
        return batch.x.new_zeros(len(batch.x))

    with local_seed(0):
        vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=2)), SoftmaxGuide(MLP(D, K), [spy]))
    vmonf.fit(x, epochs=2, batch_size=50, held_out=0.3, progress=False)
    assert len(seen) > 4
    assert all(seen)
    seen.clear()
    vmonf.fit(DataLoader(x, batch_size=50), epochs=1, progress=False)
    assert not any(seen)


def test_a_last_batch_of_one_row_joins_the_one_before() -> None:
    sizes: list[int] = []

    def spy(batch: Batch) -> Tensor:
        if in_a_step(batch):
            sizes.append(len(batch.x))
        return batch.x.new_zeros(len(batch.x))

    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=2)), SoftmaxGuide(MLP(D, K), [spy]))
    vmonf.fit(torch.randn(41, D), epochs=1, batch_size=20, progress=False)
    assert sizes == [20, 21]


def test_the_units_of_a_fitted_model_are_settled() -> None:
    vmonf = pair()
    vmonf.fit(X, epochs=1, standardize=False, progress=False)
    vmonf.fit(50 * X, epochs=1, progress=False)
    assert torch.equal(vmonf.model.standardizer.scale, torch.ones(D))


def test_a_run_that_is_refused_late_leaves_the_units_alone() -> None:
    vmonf = VMoNF(
        FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3), terms=[lambda batch: torch.zeros(7)])
    )
    before = {k: v.clone() for k, v in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match=r"[Ss]hape"):
        vmonf.fit(100 * torch.randn(40, 2), epochs=1, progress=False)
    for name, value in vmonf.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("direct", [True, False])
def test_gradients_of_flows_have_no_denormal_numbers(direct: bool) -> None:
    """With them a step on a processor takes ten times as long."""
    torch.manual_seed(0)
    network = nn.Linear(D, K)
    network.bias.data = torch.tensor([0.0, -60.0, -95.0])
    model = FlowMixture(RealNVP(D, K, blocks=2))
    objective = Objective(model, VMoNF(model, SoftmaxGuide(network)).guide, direct=direct)
    (-sum(objective(x=torch.randn(50, D)).values())).backward()  # type: ignore[operator, union-attr]
    gradients = [p.grad for p in model.bank.parameters() if p.grad is not None]
    sizes = torch.cat([gradient.abs().flatten() for gradient in gradients])
    assert (sizes > 0).any()
    assert not ((sizes > 0) & (sizes < torch.finfo(sizes.dtype).tiny)).any()


def test_what_is_unlikely_counts_by_what_it_costs() -> None:
    q = torch.tensor([1.0, 1e-20, 1e-25, 1e-30, 1e-30, 0.0, 0.0])
    cost = torch.tensor([1.0, 0.0, 1e9, 1e9, torch.nan, 9e9, torch.inf])
    assert takes_part(q, [cost]).tolist() == [True, False, True, False, True, False, False]
    q = torch.tensor([1.0, 1e-20], dtype=torch.float64)
    assert takes_part(q, [torch.full((2,), -torch.inf), q]).tolist() == [True, True]
    assert takes_part(q, [q]).tolist() == [True, True]


def test_denormal_moments_of_an_optimiser_become_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a component that no row reaches would stay the smallest numbers that there are."""
    monkeypatch.setattr(trainer, "FLUSHED", 1)  # in place of 256 steps
    torch.manual_seed(0)
    network = nn.Linear(D, K)
    network.bias.data = torch.tensor([0.0, -200.0, -200.0])
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, blocks=2)), SoftmaxGuide(network))
    made: list[torch.optim.Optimizer] = []
    seen: list[list[float]] = []

    def optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=1e-3))
        return made[-1]

    def spoil(_: Any) -> None:
        state = made[-1].state
        moments = [state[p]["exp_avg"] for p in vmonf.model.bank.parameters()]
        seen.append([float(m[1].abs().max()) for m in moments])
        for moment in moments:
            moment[1] = 1e-42

    options: dict[str, Any] = {"optimizer": optimizer, "callbacks": spoil, "temperature": 1.0}
    vmonf.fit(data()[0], epochs=2, progress=False, seed=0, **options)
    assert seen[0]
    assert seen == [[0.0] * len(seen[0])] * 2
