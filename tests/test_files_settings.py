"""What a state does not hold: the settings of the parts that it fills."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vmonf import NSF, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.files import difference, read, settings_of
from pyro_vmonf.interop.serving import from_safetensors_, to_safetensors
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
OTHERS: dict[str, tuple[Callable[[], VMoNF], str]] = {
    "bound": (
        lambda: VMoNF(FlowMixture(NSF(2, 2, bound=8.0, blocks=2)), SoftmaxGuide(MLP(2, 2))),
        "model.bank has bound=8.0 and the file has 5.0",
    ),
    "activation": (
        lambda: VMoNF(FlowMixture(NSF(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2, activation="tanh"))),
        "guide.network has activation='tanh' and the file has 'relu'",
    ),
}


def pair(network: nn.Module | None = None) -> VMoNF:
    torch.manual_seed(0)
    return VMoNF(FlowMixture(NSF(2, 2, blocks=2)), SoftmaxGuide(network or MLP(2, 2)))


def beside_a_fixed_one(loc: float, size: int) -> VMoNF:
    centre = torch.full((size,), loc)
    fixed = dist.Normal(centre, 0.1).to_event(1)
    model = FlowMixture([fixed, Gaussian(size, 1)])
    return VMoNF(model, SoftmaxGuide(nn.Linear(size, 2)))


@pytest.mark.parametrize("size", [2, 20])
def test_fixed_distributions_are_compared_to_the_last_digits(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.warns(UserWarning, match="is not a part of pyro_vmonf"):
        beside_a_fixed_one(1e5, size).save(path)
    for loc in (100000.4, 100002.0):
        with pytest.raises(ValueError, match=r"the file has .*100000"):
            VMoNF.load(path, into=beside_a_fixed_one(loc, size))
    VMoNF.load(path, into=beside_a_fixed_one(1e5, size))
    VMoNF.load(path, into=beside_a_fixed_one(1e5, size).double())


def test_texts_are_the_same_but_for_the_last_digit_of_numbers() -> None:
    def has(text: Any) -> Any:
        return {"model": {"part": "FlowMixture", "base": text}}

    same = (("Normal(loc=[0.1, -2e-05])", "Normal(loc=[0.10000001, -2.0000001e-05])"), (1.5, 1.5))
    other = (
        ("Normal(loc=[0.1])", "Normal(loc=[0.10001])"),
        ("Normal(loc=[0.1])", "Normal(loc=[-0.1])"),
        ("Normal(loc=[0.1])", "Laplace(loc=[0.1])"),
        ("Normal(loc=[0.1])", "Normal(loc=[0.1, 2])"),
        ("[1], and others: sum 1, digest x01234567", "[1], and others: sum 1, digest x01234568"),
        (1.5, 1.5000001),
        ("tanh", "relu"),
    )
    assert not any(difference(has(mine), has(theirs)) for mine, theirs in same)
    assert all(difference(has(mine), has(theirs)) for mine, theirs in other)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("kind", ["pt", "safetensors", "checkpoint"])
def test_a_pair_with_other_settings_is_refused_and_stays(
    kind: str, name: str, tmp_path: Path
) -> None:
    make, message = OTHERS[name]
    one, other, path = pair(), make(), tmp_path / "file"
    options: dict[str, Any] = {"epochs": 3, "seed": 0, "progress": False}
    one.fit(X, checkpoint=path, callbacks=lambda progress: True, **options)
    if kind == "pt":
        one.save(path)
    if kind == "safetensors":
        to_safetensors(one, path)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    take: dict[str, Callable[[], Any]] = {
        "pt": lambda: VMoNF.load(path, into=other),
        "safetensors": lambda: from_safetensors_(other, path),
        "checkpoint": lambda: other.fit(X, resume=path, **options),
    }
    with pytest.raises(ValueError, match=message):
        take[kind]()
    for key, value in other.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_terms_may_differ_in_a_file_and_not_in_a_run(tmp_path: Path) -> None:
    one, path = pair(), tmp_path / "file"
    one.save(path)
    other = VMoNF(FlowMixture(NSF(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2), [Balance(weight=3.0)]))
    VMoNF.load(path, into=other)
    assert torch.equal(one.log_prob(X), other.log_prob(X))
    options: dict[str, Any] = {"epochs": 3, "seed": 0, "progress": False}
    other.fit(X, checkpoint=path, callbacks=lambda progress: True, **options)
    changed = VMoNF(
        FlowMixture(NSF(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2), [Balance(weight=9.0)])
    )
    with pytest.raises(ValueError, match=r"guide.terms.0 has weight=9.0 and the file has 3.0"):
        changed.fit(X, resume=path, **options)


def test_parts_of_ones_own_do_not_hide_those_of_the_library(tmp_path: Path) -> None:
    class Own(nn.Linear):
        pass

    with pytest.warns(UserWarning, match="into=vmonf"):
        pair(Own(2, 2)).save(tmp_path / "file")
    other = VMoNF(FlowMixture(NSF(2, 2, bound=8.0, blocks=2)), SoftmaxGuide(Own(2, 2)))
    with pytest.raises(ValueError, match=r"bound=8.0 and the file has 5.0"):
        VMoNF.load(tmp_path / "file", into=other)
    VMoNF.load(tmp_path / "file", into=pair(Own(2, 2)))


def test_a_file_has_the_settings_of_each_part(tmp_path: Path) -> None:
    one = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1)), SoftmaxGuide(MLP(2, 3)))
    one.save(tmp_path / "file")
    found = read(tmp_path / "file", "fitted mixture")["settings"]
    assert found == settings_of(one, terms=False)
    assert found["model.bank"]["part"] == "RealNVP"
    assert found["guide.network"]["activation"] == "relu"


BASES: dict[str, tuple[Any, Any]] = {
    "another kind": (dist.Normal(torch.zeros(3, 2), 1.0), dist.Laplace(torch.zeros(3, 2), 1.0)),
    "another scale": (dist.Normal(torch.zeros(3, 2), 1.0), dist.Normal(torch.zeros(3, 2), 2.0)),
    "other degrees": (dist.StudentT(torch.full((3, 2), 3.0)), dist.StudentT(torch.ones(3, 2))),
}  # fmt: skip


@pytest.mark.parametrize("case", BASES)
def test_fixed_distributions_are_compared(case: str, tmp_path: Path) -> None:
    one, other = (
        VMoNF(FlowMixture(RealNVP(2, 3, blocks=1, base=base.to_event(1)))) for base in BASES[case]
    )
    one.save(tmp_path / "pair.pt")
    to_safetensors(one, tmp_path / "pair.st")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="distribution="):
        VMoNF.load(tmp_path / "pair.pt", into=other)
    with pytest.raises(ValueError, match="distribution="):
        from_safetensors_(other, tmp_path / "pair.st")
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    VMoNF.load(tmp_path / "pair.pt", into=copy.deepcopy(one))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_fixed_distributions_of_another_precision_are_the_same(
    kind: torch.dtype, tmp_path: Path
) -> None:
    def made() -> VMoNF:
        covariance = torch.tensor([[1.1, 0.3], [0.3, 0.7]])
        normal = dist.MultivariateNormal(torch.tensor([0.1, 1 / 3]), covariance)
        return VMoNF(FlowMixture([normal, Gaussian(2, 1)]))

    made().double().save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt", into=made().to(kind))
    assert loaded.log_prob(torch.zeros(1, 2).double()).isfinite().all()


class Own(nn.Module):
    """A network of the user's, with a list of parameters and a buffer of eight bits."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.ParameterList([nn.Parameter(torch.ones(2, 3))])
        self.register_buffer("small", torch.ones(3).to(torch.float8_e4m3fn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.rows[0]


def test_networks_of_any_dtype_are_filled(tmp_path: Path) -> None:
    def made() -> VMoNF:
        return VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(Own()))

    with pytest.warns(UserWarning, match="load the file with"):
        made().save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt", into=made().double())
    assert loaded.guide.network.rows[0].dtype == torch.float32
    assert loaded.guide.network.small.dtype == torch.float8_e4m3fn
