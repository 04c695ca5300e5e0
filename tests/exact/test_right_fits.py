"""Fits that are cut, resumed, watched or held back: right values where wrong ones were found."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import Flow, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.dequantization import Dequantized
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import plot_history
from pyro_vmonf.terms import Balance, Batch, Classification, Confidence, Consistency, CustomTerm
from pyro_vmonf.transforms import AffineCoupling, BatchNorm, Logit
from tests.samples import (
    HALF,
    N,
    clustered_rows,
    double_rows,
    sixty_rows,
    still,
    three_blobs,
    three_numpy_blobs,
    two_blobs,
)

K = 3
D = 2


def test_best_state_has_the_best_objective() -> None:
    torch.manual_seed(2)
    terms = [Balance(weight=5.0), Classification(weight=5.0)]
    guide = SoftmaxGuide(MLP(2, 2), terms, elbo_gradient=0.0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), guide)
    y = torch.where(torch.arange(N) % 10 == 0, HALF, -1)
    history = vmonf.fit(
        two_blobs(apart=2.0), y, epochs=15, held_out=0.3, keep="best", seed=0, progress=False
    )
    assert history.kept == int(np.argmax(history.objective))


def clusters() -> tuple[Tensor, Tensor]:
    x = torch.cat((torch.randn(100, 2), torch.randn(100, 2) + 6))
    return x, torch.where(torch.arange(200) % 10 == 0, torch.arange(200) // 100, -1)


def flipped(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.where(y >= 0, 1 - y, y)


def moved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where((y >= 0)[:, None], x + 100, x), y


def moved_held_out(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where((torch.arange(200) >= 180)[:, None], x + 50, x), y


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (flipped, {"interleave": True}),
        (moved, {"interleave": True}),
        (moved_held_out, {"held_out": torch.arange(180, 200), "standardize": False}),
    ],
)
def test_other_labels_and_held_out_rows_are_not_gone_on_with(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    x, y = clusters()
    path = tmp_path / "run.pt"
    whole = dict(
        epochs=4, seed=0, progress=False, checkpoint=path, resume=path, batch_size=50, **options
    )

    def new() -> VMoNF:
        torch.manual_seed(1)
        return VMoNF(FlowMixture(Gaussian(2, 2), "learned"), SoftmaxGuide(MLP(2, 2)))

    def stop(progress: Any) -> None:
        if progress.epoch == 1:
            raise KeyError

    with pytest.raises(KeyError):
        new().fit(x, y, callbacks=[stop], **whole)
    with pytest.raises(ValueError, match="the checkpoint is of a run with"):
        new().fit(*change(x, y), **whole)
    assert new().fit(x, y, **whole).epoch == list(range(4))


def test_noise_alone_is_trained() -> None:
    class Noise(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            shape = 1 + super().forward(x / 256).exp()
            return dist.Beta(shape, torch.ones_like(x)).to_event(1)

    layers = [BatchNorm(4, batch_shape=(2,)), AffineCoupling(4, batch_shape=(2,)), Logit()]
    vmonf = VMoNF(FlowMixture(Flow(layers, base=StandardNormal(4, 2))))
    x, images = torch.rand(3, 4), torch.randint(256, (20, 4))
    before = vmonf.log_prob(x)
    dequantized = Dequantized(vmonf, Noise(4, 4))
    dequantized.fit(images, steps=3, seed=0, progress=False)
    assert torch.equal(vmonf.log_prob(x), before)
    assert all(p.grad is None and p.requires_grad for p in vmonf.parameters())
    dequantized.fit(images, steps=3, seed=0, progress=False, flows=True)
    assert not torch.equal(vmonf.log_prob(x), before)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, as it is imported
def test_lightning_counts_labels_and_weights() -> None:
    from pyro_vmonf.interop.lightning import LightningMixture

    x, y, weight = clustered_rows(20), torch.arange(20) % K, torch.rand(20)
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    module = LightningMixture(vmonf)
    [batch] = DataLoader(TensorDataset(x, y, weight), 20)
    expected = module.loss(x, y, size=20, sample_weight=weight)
    assert torch.equal(module._loss(batch), expected)
    assert not torch.equal(module._loss([x, y]), expected)
    with pytest.raises(TypeError, match=r"expected x, \(x, y\) or"):
        module._loss((x, y, weight, weight))


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_with_the_same_terms_and_layers() -> None:
    from pyro_vmonf.interop.lightning import LightningMixture

    def module(*terms: Any, activation: Any = nn.ReLU) -> LightningMixture:
        network = nn.Sequential(nn.Linear(D, 4), activation(), nn.Linear(4, K))
        return LightningMixture(VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(network, terms)))

    checkpoint: dict[str, Any] = {}
    module(Confidence()).on_save_checkpoint(checkpoint)
    module(Confidence()).on_load_checkpoint(checkpoint)
    for other, said in (
        (module(), r"only the file has .*terms\.0"),
        (module(Confidence(weight=2.0)), "weight=2.0"),
        (module(Confidence(), activation=nn.Tanh), "part='Tanh'"),
    ):
        with pytest.raises(ValueError, match=f"of another pair: .*{said}"):
            other.on_load_checkpoint(checkpoint)
    earlier = {"settings": {n: s for n, s in checkpoint["parts"].items() if "network" not in n}}
    module(Confidence(), activation=nn.Tanh).on_load_checkpoint(earlier)


@pytest.mark.parametrize("options", [{"compile": True}, {"n_init": 2}], ids=["compiled", "starts"])
def test_hooks_on_gradients_are_heard(options: dict[str, Any]) -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=1), "learned"), SoftmaxGuide(MLP(2, 2)))
    heard = []
    parameter = next(vmonf.guide.parameters())
    parameter.register_hook(lambda gradient: heard.append(1))
    vmonf.fit(torch.randn(64, 2), epochs=4, batch_size=32, progress=False, seed=0, **options)
    assert len(heard) >= 8
    assert "compiled in" not in vmonf.history.road


CHANGES: dict[str, Any] = {
    "forward hook": lambda vmonf, _: vmonf.guide.network.register_forward_hook(
        lambda module, given, found: 2 * found
    ),
    "step hook": lambda _, optimizer: optimizer.register_step_post_hook(
        lambda *_: [p.data.mul_(0.9) for p in optimizer.param_groups[0]["params"]]
    ),
    "maximize": lambda _, optimizer: optimizer.param_groups[0].update(maximize=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_ends_the_graph(change: str, float64: None) -> None:
    states = []
    for compiled in (False, True):
        torch.manual_seed(0)
        vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=1)), SoftmaxGuide(MLP(2, 2, hidden=(4,))))
        made: list[Any] = []

        def adam(parameters: Any, made: list[Any] = made) -> torch.optim.Adam:
            made.append(torch.optim.Adam(parameters, lr=1e-3))
            return made[0]

        def watch(progress: Any, vmonf: VMoNF = vmonf, made: list[Any] = made) -> None:
            if progress.epoch == 2:
                CHANGES[change](vmonf, made[0])

        data: dict[str, Any] = {"epochs": 5, "batch_size": 32, "progress": False, "seed": 0}
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        vmonf.fit(x, optimizer=adam, callbacks=[watch], compile=compiled, keep="last", **data)
        states.append(torch.cat([p.detach().flatten() for p in vmonf.parameters()]))
    torch.testing.assert_close(*states, rtol=0, atol=1e-9)


def test_a_walk_on_other_rows_is_refused() -> None:
    x = torch.randn(100, 2)
    for rows in (x.flip(0), x[:50] + 1, torch.cat((x, x + 1))):
        terms = [Consistency(RandomWalk(x, neighbors=5))]
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2), terms))
        before = copy.deepcopy(vmonf.state_dict())
        with pytest.raises(ValueError, match="built of 100 other rows"):
            vmonf.fit(rows, epochs=1, progress=False)
        after = vmonf.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        vmonf.fit(x, epochs=1, progress=False)


@pytest.mark.parametrize("n_init", [1, 2])
def test_a_short_batch_counts_by_its_rows(n_init: int) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3))).double()
    x = torch.as_tensor(three_numpy_blobs(110))
    options: dict[str, Any] = {"n_init": n_init, "lr": 1e-30, "temperature": 1.0, "held_out": 0.0}
    history = vmonf.fit(x, epochs=2, batch_size=50, seed=0, progress=False, **options)
    assert history.elbo[-1] == pytest.approx(float(vmonf.elbo(x).mean()), rel=1e-9)


def test_positions_of_held_out_rows_may_be_a_list() -> None:
    for held_out in ([0, 1, 2], range(3)):
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
        history = vmonf.fit(
            three_numpy_blobs(60), held_out=held_out, epochs=1, progress=False, seed=0
        )  # type: ignore[arg-type]
        assert len(history.held_out) == 1


def test_each_labelled_epoch_has_its_held_out_objective() -> None:
    """Nothing moves, so that every state has the objective of the first."""
    y = torch.randint(-1, K, (60,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2)), SoftmaxGuide(MLP(2, K))).double()
    options: dict[str, Any] = {"optimizer": still, "temperature": 1.0, "progress": False}
    options |= {"held_out": torch.arange(45, 60), "standardize": False}
    history = one.fit(double_rows(), y, epochs=2, pretrain_epochs=2, compile=False, **options)
    assert history.epoch == [-2, -1, 0, 1]
    assert history.start is not None
    for found in (history.held_out, history.objective):
        assert len(found) == 4
    assert history.objective == pytest.approx([history.start] * 4, rel=1e-12)
    plot_history(history)


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
        history = one.fit(2 * double_rows(), seed=0, callbacks=callbacks, **options)
        elbo = float(one.elbo(2 * double_rows()[held]).mean())
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
        history = one.fit(double_rows(), epochs=5, batch_size=60, progress=False, compile=False)
    assert history.rejected == 4  # the second step is taken again and again
    assert int(guide.network.steps) == 1  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("reason", ["minutes", "callback"])
def test_a_run_that_a_limit_ended_goes_on(reason: str, tmp_path: Path) -> None:
    def fitted(epochs: int = 6, **more: Any) -> VMoNF:
        torch.manual_seed(0)
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2), "learned"), SoftmaxGuide(MLP(2, 2)))
        vmonf.fit(sixty_rows(), epochs=epochs, seed=0, progress=False, compile=False, **more)
        return vmonf

    path = tmp_path / "run.pt"
    limit = (
        {"minutes": 1e-9}
        if reason == "minutes"
        else {"callbacks": [lambda progress: progress.epoch == 1]}
    )
    cut = fitted(checkpoint=path, **limit)
    assert cut.history is not None
    assert cut.history.stopped
    assert len(cut.history.epoch) < 6
    if reason == "minutes":  # the same limit is over
        assert len(fitted(resume=path, **limit).history.epoch) == len(cut.history.epoch)  # type: ignore[union-attr]
    whole, resumed = fitted(), fitted(resume=path)
    assert resumed.history is not None
    assert resumed.history.stopped == ""
    assert len(resumed.history.epoch) == 6
    assert torch.equal(resumed.log_prob(sixty_rows()), whole.log_prob(sixty_rows()))


def test_only_true_stops_a_run() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    for value in (-1.5, torch.zeros(3), "no", None, False):
        history = vmonf.fit(
            sixty_rows(), epochs=2, callbacks=[lambda _, v=value: v], progress=False
        )
        assert (len(history.epoch), history.stopped) == (2, "")
    history = vmonf.fit(
        sixty_rows(), epochs=2, callbacks=[lambda _: np.bool_(True)], progress=False
    )
    assert len(history.epoch) == 1


@pytest.mark.parametrize("how", ["prune", "bank", "double"])
def test_a_callback_that_replaces_parameters_ends_the_run_in_words(how: str) -> None:
    torch.manual_seed(0)
    x = three_blobs()
    vmonf = VMoNF(FlowMixture(RealNVP(2, 4, blocks=2)), SoftmaxGuide(MLP(2, 4)))

    def change(progress: Any) -> None:
        if progress.epoch != 1:
            return
        if how == "prune":
            vmonf.prune_(x, below=float(vmonf.predict_proba(x).mean(0).median()))
        elif how == "bank":
            vmonf.model.bank = RealNVP(2, 4, blocks=2)
        else:
            vmonf.double()

    with pytest.raises(ValueError, match="between two fits"):
        vmonf.fit(x, epochs=5, callbacks=change, progress=False)
    assert vmonf.history is not None
    assert len(vmonf.history.epoch) == 2

    def freeze(progress: Any) -> None:
        vmonf.model.bank.requires_grad_(False)

    vmonf.float().fit(x, epochs=3, callbacks=freeze, progress=False)


def test_numbers_of_numpy_are_weights() -> None:
    assert Balance(weight=np.float32(0.5)).current_weight == 0.5
    assert Balance(weight=lambda step: torch.tensor(0.25)).current_weight == 0.25  # type: ignore[arg-type, return-value]
