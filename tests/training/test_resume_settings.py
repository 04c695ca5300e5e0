"""A run goes on with the pair and the options that it began with, or it is refused before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import nn

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    files,
    linear_decay,
)
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance
from pyro_vmonf.training.callbacks import Progress
from pyro_vmonf.training.losses import ImportanceWeightedELBO

X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 15, "progress": False, "seed": 0}


class Stop(Exception):
    """What ends the first part of a run."""


def stop(progress: Progress) -> None:
    if progress.epoch == 1:
        raise Stop


def pair(bank: nn.Module | None = None, *terms: Balance, activation: Any = nn.ReLU) -> VMoNF:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 4), activation(), nn.Linear(4, 3))
    return VMoNF(FlowMixture(bank or Gaussian(2, 3)), SoftmaxGuide(layers, terms))


def frozen(name: str) -> VMoNF:
    made = pair()
    getattr(made.model.bank, name).requires_grad_(False)
    return made


def with_base(degrees: float) -> VMoNF:
    base = dist.StudentT(torch.full((3, 2), degrees)).to_event(1)
    return pair(RealNVP(2, 3, blocks=1, base=base))


def with_prior(scale: float) -> VMoNF:
    model = FlowMixture(RandomBank(Gaussian(2, 3), dist.Normal(0.0, scale)))
    return VMoNF(model, SoftmaxGuide(MLP(2, 3)))


def random_weights() -> VMoNF:
    torch.manual_seed(0)
    return VMoNF(FlowMixture(Gaussian(2, 3), dist.Dirichlet(torch.ones(3))))


def scheduled(steps: int) -> Balance:
    return Balance(weight=linear_decay(steps, initial=5.0))


PAIRS: dict[str, tuple[Callable[[], VMoNF], Callable[[], VMoNF], str]] = {
    "a weight of a term": (
        lambda: pair(None, Balance(weight=5.0)), lambda: pair(None, Balance(weight=1.0)), "weight",
    ),
    "a term less": (lambda: pair(None, Balance()), pair, "only the file has guide.terms.0"),
    "a term more": (pair, lambda: pair(None, Balance()), "only it has guide.terms.0"),
    "a schedule of a term": (
        lambda: pair(None, scheduled(100)), lambda: pair(None, scheduled(8)), "steps=100",
    ),
    "another parameter frozen": (lambda: frozen("loc"), lambda: frozen("log_scale"), "bank.loc"),
    "the base": (lambda: with_base(3.0), lambda: with_base(30.0), "StudentT"),
    "the prior of a bank": (lambda: with_prior(1.0), lambda: with_prior(0.1), "Normal"),
    "an activation": (pair, lambda: pair(activation=nn.Tanh), "part='Tanh'"),
    "a share of dropout": (
        lambda: pair(activation=lambda: nn.Dropout(0.5)),
        lambda: pair(activation=lambda: nn.Dropout(0.1)),
        "p=0.1",
    ),
}  # fmt: skip


def first_part(vmonf: VMoNF, path: Path, **options: Any) -> None:
    with pytest.raises(Stop):
        vmonf.fit(X, checkpoint=path, callbacks=stop, **{**OPTIONS, **options})


@pytest.mark.parametrize("case", PAIRS)
def test_another_pair_is_refused(case: str, tmp_path: Path) -> None:
    first, second, said = PAIRS[case]
    path = tmp_path / "run.pt"
    first_part(first(), path)
    vmonf = second()
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match=said):
        vmonf.fit(X, resume=path, **OPTIONS)
    assert all(torch.equal(before[name], value) for name, value in vmonf.state_dict().items())


def test_another_loss_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "run.pt", {"batch_size": len(X)}
    first_part(random_weights(), path, loss=ImportanceWeightedELBO(2), **whole)
    with pytest.raises(ValueError, match=r"loss\.num_particles=2"):
        random_weights().fit(X, resume=path, loss=ImportanceWeightedELBO(4), **{**OPTIONS, **whole})


def test_another_number_of_a_loss_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "run.pt", {**OPTIONS, "batch_size": len(X)}
    first_part(pair(), path, loss=RenyiELBO(alpha=0.5, num_particles=2), batch_size=len(X))
    with pytest.raises(ValueError, match=r"loss\.alpha=0\.5"):
        pair().fit(X, resume=path, loss=RenyiELBO(alpha=0.2, num_particles=2), **whole)


@pytest.mark.parametrize("half", ["model.bank", "guide"])
def test_what_a_callback_froze_stays_frozen(half: str, tmp_path: Path) -> None:
    def freeze(progress: Progress) -> None:
        if progress.epoch == 0:
            part: nn.Module = progress.guide if half == "guide" else progress.model.bank
            part.requires_grad_(False)

    path = tmp_path / "run.pt"
    whole, begun, resumed = pair(), pair(), pair()
    whole.fit(X, callbacks=freeze, **OPTIONS)
    with pytest.raises(Stop):
        begun.fit(X, checkpoint=path, callbacks=[freeze, stop], **OPTIONS)
    resumed.fit(X, resume=path, callbacks=freeze, **OPTIONS)
    assert not any(p.requires_grad for p in resumed.get_submodule(half).parameters())
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_part_in_eval_stays_in_eval(tmp_path: Path) -> None:
    def quiet(progress: Progress) -> None:
        if progress.epoch == 0:
            progress.guide.network.eval()

    def made() -> VMoNF:
        return pair(activation=nn.Dropout)

    path = tmp_path / "run.pt"
    whole, begun, resumed = made(), made(), made()
    whole.fit(X, callbacks=quiet, **OPTIONS)
    with pytest.raises(Stop):
        begun.fit(X, checkpoint=path, callbacks=[quiet, stop], **OPTIONS)
    resumed.fit(X, resume=path, callbacks=quiet, **OPTIONS)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("change", ["swapped", "another"])
def test_another_group_of_parameters_is_refused(change: str, tmp_path: Path) -> None:
    """Moments go to parameters by their places, also where shapes agree."""
    path = tmp_path / "run.pt"
    groups = lambda p: torch.optim.Adam([{"params": p[:2]}, {"params": p[2:]}])  # noqa: E731
    first, second = {
        "swapped": (groups, lambda p: torch.optim.Adam([{"params": p[2:]}, {"params": p[:2]}])),
        "another": (
            lambda p: torch.optim.Adam([p[0], *p[2:]]),  # loc
            lambda p: torch.optim.Adam([p[1], *p[2:]]),
        ),
    }[change]
    first_part(pair(), path, optimizer=first)
    said = "their order" if change == "swapped" else "model.bank.loc"
    with pytest.raises(ValueError, match=f"its optimiser has other parameters.*{said}"):
        pair().fit(X, resume=path, optimizer=second, **OPTIONS)


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """It knows neither what was frozen nor the settings of the layers of torch."""
    path = tmp_path / "run.pt"
    first_part(frozen("loc"), path)
    content = files.read(path, "checkpoint")
    for name in ("frozen", "in eval", "trained"):
        del content[name]
    own = content["settings"].items()
    content["settings"] = {name: one for name, one in own if "network" not in name}
    with open(path, "wb") as file:
        torch.save(content, file)
    whole, resumed = frozen("loc"), frozen("loc")
    whole.fit(X, **OPTIONS)
    resumed.fit(X, resume=path, **OPTIONS)
    assert not resumed.model.bank.loc.requires_grad
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
