"""Tensors of foreign transforms are saved, moved and trained as those of modules are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions.transforms as T
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, ComposeTransform, Normal, Transform

from pyro_vmonf import FlowMixture, Replicated, VMoNF
from pyro_vmonf.interop.serving import from_safetensors_, to_safetensors

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"epochs": 2, "progress": False, "seed": 0}


def affine(shift: Any, scale: Any = 2.0) -> AffineTransform:
    return AffineTransform(shift, scale)


CHAINS: dict[str, Callable[[], list[Transform]]] = {
    "permutations": lambda: [T.affine_coupling(4), T.permute(4), T.affine_coupling(4)],
    "shifts": lambda: [T.affine_coupling(4), affine(torch.randn(4))],
    "an inverse": lambda: [affine(torch.randn(4)).inv, T.affine_coupling(4)],
    "a composition": lambda: [ComposeTransform([affine(torch.randn(4)), T.affine_coupling(4)])],
}


def pair(make: Callable[[], list[Transform]], seed: int = 0) -> VMoNF:
    torch.manual_seed(seed)
    return VMoNF(FlowMixture(Replicated(make, 2, features=4)))


def save(vmonf: VMoNF, path: Path) -> None:
    with pytest.warns(UserWarning, match="Replicated is not a part of pyro_vmonf"):
        vmonf.save(path)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("kind", ["pt", "safetensors", "checkpoint", "copy", "state"])
def test_another_pair_takes_them(kind: str, name: str, tmp_path: Path) -> None:
    one, other, path = pair(CHAINS[name]), pair(CHAINS[name], 1), tmp_path / "file"
    assert not torch.allclose(one.log_prob(X), other.log_prob(X))
    if kind == "pt":
        save(one, path)
        other = VMoNF.load(path, into=other)
    if kind == "safetensors":
        to_safetensors(one, path)
        from_safetensors_(other, path)
    if kind == "checkpoint":
        one.fit(X, checkpoint=path, **OPTIONS)
        other.fit(X, resume=path, **OPTIONS)
    if kind == "copy":
        other = copy.deepcopy(one)
    if kind == "state":
        other.load_state_dict(one.state_dict())
    assert torch.equal(other.log_prob(X), one.log_prob(X))
    torch.manual_seed(0)
    draws, _ = one.sample(5)
    torch.manual_seed(0)
    assert torch.equal(other.sample(5)[0], draws)


def test_numbers_that_no_state_holds_are_compared(tmp_path: Path) -> None:
    def make(scale: float) -> VMoNF:
        return pair(lambda: [T.affine_coupling(4), affine(0.0, scale).inv])

    path = tmp_path / "file"
    make(1.0).fit(X, checkpoint=path, **OPTIONS)
    with pytest.raises(ValueError, match=r"parts\.0 has transforms=.*scale=3\).* the file has"):
        make(3.0).fit(X, resume=path, **OPTIONS)
    save(make(1.0), path)
    with pytest.raises(ValueError, match=r"parts\.0 has transforms=.*scale=3\).* the file has"):
        VMoNF.load(path, into=make(3.0))
    VMoNF.load(path, into=make(1.0))


@pytest.mark.parametrize("used", [False, True])
def test_a_transform_that_was_used_before_is_the_same(used: bool) -> None:
    torch.manual_seed(0)
    order = T.permute(4)
    if used:
        assert torch.equal(order.inv(order(X)), X)  # what it has computed stays with it
    flow = pair(lambda: [order, affine(torch.zeros(4))])
    names = [name for name in flow.state_dict() if "parts.0.tensor" in name]
    assert [name[-1] for name in names] == ["0", "1"]
    expected = Normal(0.0, 1.0).log_prob(X / 2).sum(-1) - 4 * torch.tensor(2.0).log()
    torch.testing.assert_close(flow.log_prob(X), expected)


def test_a_parameter_of_a_transform_is_trained() -> None:
    rows = X + torch.tensor([3.0, -1.0, 0.0, 8.0])

    def make() -> list[Transform]:
        return [affine(nn.Parameter(torch.zeros(4)), torch.ones(4))]

    vmonf = VMoNF(FlowMixture(Replicated(make, 1, features=4)))
    vmonf.fit(
        rows, steps=40, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), standardize=False,
        progress=False, seed=0,
    )  # fmt: skip
    torch.testing.assert_close(vmonf.model.bank.parts[0].tensor_0.data, rows.mean(0))


def test_one_parameter_of_several_transforms_is_one() -> None:
    shared = nn.Parameter(torch.ones(4))
    bank = Replicated(lambda: [affine(shared, 2.0), affine(shared, 3.0)], 2, features=4)
    assert [id(p) for p in bank.parameters()] == [id(shared)]
    total = bank().log_prob(X[:, None]).sum()
    (gradient,) = torch.autograd.grad(total, [shared])
    mean = 4 * shared.detach()  # 3 * 1 + 1, at a scale of 6
    expected = 2 * 4 * ((X - mean) / 36).sum(0)
    torch.testing.assert_close(gradient, expected)


def test_a_tensor_that_nothing_would_train_is_refused() -> None:
    loc: Tensor = torch.zeros(4, requires_grad=True)
    with pytest.raises(ValueError, match=r"requires a gradient \(shape \(4,\)\).*nn.Parameter"):
        Replicated(lambda: [affine(loc)], 2, features=4)


def test_they_move_to_another_precision() -> None:
    vmonf = pair(CHAINS["shifts"])
    whole = copy.deepcopy(vmonf).double()
    assert whole.log_prob(X.double()).dtype == torch.float64
    torch.testing.assert_close(whole.log_prob(X.double()).float(), vmonf.log_prob(X))


def test_a_file_without_them_says_so(tmp_path: Path) -> None:
    vmonf, path = pair(CHAINS["permutations"]), tmp_path / "file"
    save(vmonf, path)
    content = torch.load(path, weights_only=True)
    for name in [name for name in content["state"] if "tensor_" in name]:
        del content["state"][name]
    torch.save(content, path)
    with pytest.warns(UserWarning, match="has no tensors of the transforms below model.bank.parts"):
        again = VMoNF.load(path, into=pair(CHAINS["permutations"]))
    assert torch.equal(again.log_prob(X), vmonf.log_prob(X))
