"""More than one process, other people's trainers, data that do not fit in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor, distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    GroupWeights,
    RealNVP,
    SoftmaxGuide,
    TrainingLoss,
    VMoNF,
    terms,
)
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import cooling
from pyro_vmonf.terms import Balance, Classification
from tests.processes import start

K, D, B, STEPS = 3, 2, 24, 3
X = torch.randn(STEPS * 2 * B, D, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(len(X)) % K


def softmax(*terms: Any, weights: Any = "learned") -> VMoNF:
    model = FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), weights)
    return VMoNF(model, SoftmaxGuide(MLP(D, K, hidden=(4,)), terms))


# A pair, and the labels of all rows.
CASES: dict[str, tuple[Callable[[], VMoNF], Tensor | None]] = {
    "plain": (softmax, None),
    "balance": (lambda: softmax(Balance(weight=3.0), weights="uniform"), None),
    "some labels": (
        lambda: softmax(Classification(), Balance()),
        LABELS.where(torch.arange(len(X)) % 3 == 0, -1),
    ),
    "labels alone": (lambda: softmax(Classification()), LABELS),
    "labels that no network sees": (softmax, LABELS),
    "updated weights": (
        lambda: VMoNF(FlowMixture(Gaussian(D, K), "updated"), ExactGuide()),
        None,
    ),
    "no guide": (lambda: VMoNF(FlowMixture(Gaussian(D, K), "learned")), None),
    "weights of groups": (  # of which each process has one
        lambda: VMoNF(FlowMixture(Gaussian(D, K), GroupWeights(2, K), context_features=1)),
        None,
    ),
}


def build(case: str) -> tuple[VMoNF, Tensor | None]:
    torch.manual_seed(0)
    make, y = CASES[case]
    vmonf = make().double()
    return vmonf, y


def train(case: str, loss: torch.nn.Module, vmonf: VMoNF, rank: int, world: int) -> list[Tensor]:
    """Take steps over batches of which this process has its share; return the parameters."""
    y = build(case)[1]
    optimizer = torch.optim.Adam(vmonf.parameters(), lr=0.05)
    for step in range(STEPS):
        rows = torch.arange(2 * B) + 2 * B * step
        rows = rows[rank::world]
        optimizer.zero_grad()
        given = {"given": (rows[:, None] % 2).double()} if vmonf.model.context_features else {}  # type: ignore[union-attr]
        loss(X[rows], None if y is None else y[rows], size=1000, **given).backward()
        optimizer.step()
    return [value.detach().clone() for value in vmonf.state_dict().values()]


def worker(folder: Path, rank: int, world: int) -> None:
    """What each of the processes does."""
    warnings.simplefilter("ignore")
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    found: dict[str, Any] = {"numbers sent": {}}
    for case in CASES:
        vmonf, _ = build(case)
        sent: list[int] = []

        def counted(group, bucket, sent=sent):  # type: ignore[no-untyped-def]  # torch reads them
            sent.append(bucket.buffer().numel())
            return allreduce_hook(group, bucket)

        both = DistributedDataParallel(TrainingLoss(vmonf))
        both.register_comm_hook(None, counted)
        found[case] = train(case, both, vmonf, rank, world)
        found["numbers sent"][case] = sum(sent)
    values = torch.full((4, 2), -900.0, dtype=torch.float64) - rank  # whose exponentials are zero
    found["log of a sum"] = terms._log_sum(values, 0)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_are_one_with_the_joint_batch(tmp_path: Path) -> None:
    processes = [start(worker, tmp_path, rank, 2) for rank in range(2)]
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    logs = torch.tensor([[-900.0], [-901.0]], dtype=torch.float64).expand(2, 4).reshape(-1, 1)
    for one in (first, second):
        torch.testing.assert_close(
            one["log of a sum"], logs.logsumexp(0, keepdim=True).expand(1, 2)
        )
    for case in CASES:
        vmonf, _ = build(case)
        parameters = sum(p.numel() for p in vmonf.parameters())
        assert first["numbers sent"][case] == STEPS * parameters
        alone = train(case, TrainingLoss(vmonf), vmonf, 0, 1)
        for one, other, expected in zip(first[case], second[case], alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=case)
            torch.testing.assert_close(one, expected, rtol=1e-7, atol=1e-7, msg=case)


def test_the_loss_is_that_of_fit() -> None:
    vmonf, y = build("some labels")
    assert y is not None
    loss = TrainingLoss(vmonf)(X, y)
    twin, _ = build("some labels")
    history = twin.fit(
        X, y, epochs=1, batch_size=len(X), standardize=False, temperature=1.0, lr=0.0,
        progress=False,
    )  # fmt: skip
    assert float(loss.detach()) == pytest.approx(-history.elbo[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_and_resumes(precision: str, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from pyro_vmonf.interop.lightning import LightningMixture

    rows = [(x, y) for x, y in zip(X.float(), LABELS, strict=True)]
    loader: Any = DataLoader(rows, batch_size=24)  # type: ignore[arg-type]

    def module() -> Any:
        torch.manual_seed(0)
        vmonf = softmax(Classification(), Balance())
        vmonf.model.standardizer.fit_batches_([X.float()])
        return LightningMixture(vmonf, lr=1e-2, temperature=lambda step: 1 / (1 + step))

    def trainer(epochs: int) -> Any:
        return lightning.Trainer(
            max_epochs=epochs, precision=precision, accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip

    whole = module()
    trainer(4).fit(whole, loader, loader)
    part, first = module(), trainer(2)
    first.fit(part, loader)
    first.save_checkpoint(tmp_path / "run.ckpt")
    again = module()
    trainer(4).fit(again, loader, ckpt_path=str(tmp_path / "run.ckpt"), weights_only=False)
    for one, other in zip(whole.vmonf.parameters(), again.vmonf.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert float(whole.vmonf.guide.temperature) == pytest.approx(1 / 24)
    assert whole.vmonf.log_prob(X.float()).isfinite().all()
    other = module()
    other.vmonf.guide.terms[1].weight = 3.0
    with pytest.raises(ValueError, match=r"guide.terms.1 has weight=3.0 and the file has 1.0"):
        trainer(4).fit(other, loader, ckpt_path=str(tmp_path / "run.ckpt"), weights_only=False)


class Lines(IterableDataset[Tensor]):
    """Rows from somewhere, one after the other, nobody knows how many."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)


class Mapped(Dataset[Tensor]):
    """Rows of a memory-mapped file."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.rows = np.memmap(path, np.float32, "r", shape=shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor(self.rows[i])


def test_streams_take_their_units_in_one_pass(tmp_path: Path) -> None:
    x = (100 + 7 * X).float()
    x.numpy().tofile(tmp_path / "rows")
    sources = {
        "tensor": x,
        "mapped": np.memmap(tmp_path / "rows", np.float32, "r", shape=tuple(x.shape)),
        "loader of a map": DataLoader(Mapped(tmp_path / "rows", tuple(x.shape)), batch_size=50),
        "stream": DataLoader(Lines(x), batch_size=50),
    }
    for name, source in sources.items():
        torch.manual_seed(0)
        vmonf = softmax()
        history = vmonf.fit(source, epochs=2, progress=False, seed=0)
        torch.testing.assert_close(vmonf.model.standardizer.loc, x.mean(0), msg=name)
        spread = x.std(0, unbiased=False)
        torch.testing.assert_close(vmonf.model.standardizer.scale, spread, msg=name)
        assert torch.tensor(history.elbo).isfinite().all()
        assert len(history.epoch) == 2


def test_a_stream_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch"):
        softmax().fit(DataLoader(Lines(X[:0])), epochs=1, progress=False)


def test_units_in_batches_are_those_of_all_rows() -> None:
    x = torch.randn(1000, D).double() * torch.tensor([1e-3, 1e5]) + torch.tensor([1e6, -3.0])
    one, other = softmax().double().model.standardizer, softmax().double().model.standardizer
    one.fit_(x)
    assert other.fit_batches_(x.split(37)) == 1000
    torch.testing.assert_close(one.loc, other.loc, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.scale, other.scale, rtol=1e-7, atol=0)


def test_random_weights_count_once() -> None:
    vmonf = softmax(weights=dist.Dirichlet(torch.ones(K))).double()
    loss = TrainingLoss(vmonf)
    torch.manual_seed(0)
    one = loss(X[:10], size=10)
    torch.manual_seed(0)
    many = loss(X[:10], size=10**9)  # the weights' divergence is one part in a billion rows
    assert one != many


def changed(values: torch.Tensor, at: int, value: float) -> torch.Tensor:
    values = values.clone()
    values[at] = value
    return values


ONES = torch.ones(len(X))
EVERY = LABELS.where(torch.arange(len(X)) % 3 == 0, -1)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"y": changed(EVERY, 3, K)}, f"label {K} in row 3 is out of range"),
    "label below": ({"y": changed(EVERY, 3, -2)}, "label -2 in row 3 is out of range"),
    "short labels": ({"y": EVERY[:3]}, r"y has shape \(3,\)"),
    "negative weight": ({"sample_weight": changed(ONES, 0, -3.0)}, "negative or non-finite"),
    "no weight": ({"sample_weight": changed(ONES, 0, torch.nan)}, "negative or non-finite"),
    "infinite": ({"x": changed(X, 2, torch.inf)}, "infinite values in 1 of"),
    "empty row": ({"x": changed(X, 2, torch.nan)}, "rows 2 of x have no entry, only NaN"),
    "no rows": ({"x": X[:0], "size": 80}, "x has no rows"),
    "another name": (
        {"weight": ONES},
        "the loss takes no weight; beside x and y it takes given, index, ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fit_refuses_is_refused(name: str) -> None:
    given, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        TrainingLoss(softmax().double())(**{"x": X, **given})


def test_arrays_and_lists_are_rows_and_labels() -> None:
    loss = TrainingLoss(softmax().double())
    assert loss(X.numpy(), EVERY.tolist()) == loss(X, EVERY)
    with pytest.raises(TypeError, match="vmonf is a FlowMixture; expected a VMoNF"):
        TrainingLoss(softmax().double().model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": torch.full((len(X),), K)}, f"label {K} in row 0 is out of range"),
        ({"y": torch.full((len(X), K), torch.nan)}, "have NaN or"),
        ({"sample_weight": -ONES}, "sample_weight has negative values or NaN"),
    ],
)
def test_a_plain_program_refuses_them_too(given: dict[str, Any], message: str) -> None:
    vmonf = softmax().double()
    svi = SVI(vmonf.model, vmonf.guide, Adam({"lr": 0.01}), TraceEnum_ELBO())
    with pytest.raises(ValueError, match=message):
        svi.step(X, **given)


def test_a_mixture_of_lightning_refuses_what_it_cannot_follow() -> None:
    lightning = pytest.importorskip("pyro_vmonf.interop.lightning")
    with pytest.raises(TypeError, match="expected a number, or a function of the step"):
        lightning.LightningMixture(softmax().double(), temperature=cooling())
    with pytest.raises(ValueError, match="size"):
        lightning.LightningMixture(softmax().double(), size=0)
    one = lightning.LightningMixture(softmax().double(), temperature=0.5)
    one.log = lambda *_, **__: None
    one.training_step((X, EVERY), 0)
    assert float(one.vmonf.guide.temperature) == 0.5


def far_apart() -> tuple[VMoNF, Tensor]:
    """Return two Gaussians where they belong, and a fifth of the rows in the first."""
    place = (torch.arange(101) % 5 > 0).double()
    x = (
        torch.randn(101, 1, generator=torch.Generator().manual_seed(0)).double()
        + 40 * place[:, None]
    )
    model = FlowMixture(Gaussian(1, 2).double(), "learned")
    model.standardize_(x)
    z = model.standardizer.inv(x)
    centres = torch.stack([z[place == c].mean(0) for c in (0, 1)])
    model.bank.set_(centres, torch.full((2, 1, 1), 1e-3, dtype=torch.float64))  # type: ignore[operator, union-attr]
    return VMoNF(model), x


def lightnings_trainer() -> Any:
    lightning = pytest.importorskip("lightning")
    return lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip


def trained_by_lightning(
    vmonf: VMoNF, loader: Any, held_out: Any = None, **options: Any
) -> dict[str, Any]:
    trainer = lightnings_trainer()
    from pyro_vmonf.interop.lightning import LightningMixture

    trainer.fit(LightningMixture(vmonf, lr=1e-9, **options), loader, held_out)
    return dict(trainer.callback_metrics)


@pytest.mark.filterwarnings("ignore")
def test_lightning_counts_the_rows_of_the_data_set() -> None:
    """With batches for the whole, the weights would be those of the last one, of one row."""
    vmonf, x = far_apart()
    trained_by_lightning(vmonf, DataLoader(x, batch_size=20))  # type: ignore[arg-type]
    weights = vmonf.model.weights.log_mean().exp()
    torch.testing.assert_close(weights[0], torch.tensor(21 / 101).to(weights), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_lightning_asks_for_a_number_that_no_loader_knows() -> None:
    vmonf, x = far_apart()
    loader = DataLoader(Lines(x), batch_size=20)
    with pytest.raises(ValueError, match="pass size= to LightningMixture"):
        trained_by_lightning(vmonf, loader)
    trained_by_lightning(vmonf, loader, size=len(x))
    assert float(vmonf.model.weights.log_mean().exp()[0]) == pytest.approx(21 / 101, abs=1e-6)
    fixed = VMoNF(FlowMixture(Gaussian(1, 2).double(), "uniform"))  # needs no number
    trained_by_lightning(fixed, loader)


@pytest.mark.filterwarnings("ignore")
def test_lightning_measures_held_out_rows_as_in_training() -> None:
    """The divergence of random weights counts once for all rows that train."""
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    weights = dist.Dirichlet(torch.ones(3))
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), weights), SoftmaxGuide(MLP(2, 3)))
    held_out = DataLoader(x[:20], batch_size=5)  # type: ignore[arg-type]
    loader = DataLoader(x, batch_size=60)  # type: ignore[arg-type]
    torch.manual_seed(1)
    found = trained_by_lightning(vmonf, loader, held_out)["held_out"]
    from pyro_vmonf.interop.lightning import LightningMixture

    def measured(**options: Any) -> float:
        trainer = lightnings_trainer()
        trainer.validate(LightningMixture(vmonf, **options), held_out, verbose=False)
        return float(trainer.callback_metrics["held_out"])

    with pytest.raises(ValueError, match="pass size= to LightningMixture"):
        measured()
    several = [measured(size=60) for _ in range(20)]  # weights are drawn
    assert np.mean(several) == pytest.approx(float(found), abs=4 * np.std(several))
    assert np.std(several) < 0.05
    counted = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3)))
    trainer = lightnings_trainer()  # which learns nothing here
    trainer.validate(LightningMixture(counted), held_out, verbose=False)


def test_a_loss_that_takes_each_batch_for_the_whole_warns() -> None:
    vmonf, x = far_apart()
    loss = TrainingLoss(vmonf)
    for _ in range(2):
        loss(x)  # the same rows
    with pytest.warns(RuntimeWarning, match="pass size="):
        loss(x[:20])
    loss(x[20:40], size=len(x))
    with torch.no_grad():
        loss(x[20:40])
    fixed = TrainingLoss(VMoNF(FlowMixture(Gaussian(1, 2).double(), "uniform")))
    for rows in (x, x[:20]):
        fixed(rows)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning_has_the_names_of_the_columns() -> None:
    pytest.importorskip("lightning")
    from pyro_vmonf.interop.lightning import LightningMixture

    def module() -> Any:
        return LightningMixture(VMoNF(FlowMixture(Gaussian(2, 2))))

    one, other, checkpoint = module(), module(), {}
    one.vmonf.model.feature_names = ("height", "weight")
    one.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert other.vmonf.model.feature_names == ("height", "weight")
