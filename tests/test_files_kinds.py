"""Whatever constructors and ``fit`` accept gives files that load to the same.

The walks go over signatures, so a new part or a new option is tested by being there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyro_vmonf
from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF, files
from pyro_vmonf._utils.plain import plain
from pyro_vmonf.nn import MLP
from tests.test_constructors import EXAMPLES, NO_FILE, OWN, D, K
from tests.test_files_refused import equal

X = torch.randn(40, D, generator=torch.Generator().manual_seed(5))


def in_numpy(value: Any) -> Any:
    """The same value as NumPy gives it."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, str):
        return np.str_(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return [in_numpy(item) for item in value]
    return value


def as_tensors(value: Any) -> Any:
    """The same number as a tensor of one element."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.long)


def kinds(value: Any) -> Any:
    """The types in a description, so that no NumPy number passes for Python's."""
    if isinstance(value, dict):
        return {name: kinds(item) for name, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value]
    return type(value)


def through_a_file(value: Any, path: Path) -> Any:
    files.write({"kind": "x", "value": value}, path)
    return files.read(path, "x")["value"]


def arguments_of(name: str) -> dict[str, Any]:
    """An example of each argument, or its default."""
    parameters = inspect.signature(files.parts()[name]).parameters
    given = {key: EXAMPLES[key]() for key in parameters if key in EXAMPLES}
    if "transforms" in parameters and "base" in parameters:
        given["base"] = pyro_vmonf.flows.StandardNormal(D, K)
    given |= OWN.get(name, {})
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **given}


PARTS = sorted(set(files.parts()) - NO_FILE)


@pytest.mark.parametrize("form", [in_numpy, as_tensors])
@pytest.mark.parametrize("name", PARTS)
def test_parts_from_any_kind_of_number(
    name: str, form: Callable[[Any], Any], tmp_path: Path
) -> None:
    part, arguments = files.parts()[name], arguments_of(name)
    torch.manual_seed(0)
    expected = files.describe(part(**arguments))
    for key, value in arguments.items():
        formed = form(value)
        if formed is value:
            continue
        torch.manual_seed(0)
        try:
            made = part(**{**arguments, key: formed})
        except (TypeError, ValueError):
            assert form is as_tensors  # a number that is a tensor may be refused
            continue
        described = files.describe(made)
        found = through_a_file(described, tmp_path / "x")
        assert equal(found, described)
        torch.manual_seed(0)
        again = files.describe(files.build(found))
        assert equal(again, described)
        assert equal(described, again)
        if form is in_numpy:
            assert equal(described, expected)
            assert kinds(described) == kinds(expected), key


def pair() -> VMoNF:
    torch.manual_seed(0)
    bank = RealNVP(D, K, blocks=1, hidden=(4,))
    return VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(D, K, hidden=(4,))))


OPTIONS = inspect.signature(pyro_vmonf.fit).parameters
# What an option needs beside it, and values where neither default nor annotation has one.
BESIDE: dict[str, dict[str, Any]] = {
    "patience": {"held_out": 0.25},
    "steps": {"epochs": None},
    "pretrain_epochs": {"y": torch.arange(40) % K},
    "interleave": {"y": torch.arange(40) % K},
    "every": {},
}
BY_ANNOTATION = {"int": 2, "float": 0.5, "bool": True}


def example(name: str) -> Any:
    """A plain value of an option; ``None`` where it takes no number."""
    default, annotation = OPTIONS[name].default, str(OPTIONS[name].annotation)
    if name in ("epochs", "steps", "batch_size"):
        return {"epochs": 3, "steps": 3, "batch_size": 15}[name]
    if isinstance(default, bool):
        return not default if name == "interleave" else default
    if isinstance(default, (int, float)) and default:
        return default
    kind = annotation.split("|")[0].strip()
    return min(BY_ANNOTATION[kind], 0.5) if kind == "float" else BY_ANNOTATION.get(kind)


NUMBERS = [n for n in OPTIONS if example(n) is not None and n not in ("model", "guide", "x", "y")]


def test_the_walk_finds_the_options() -> None:
    assert {"lr", "seed", "epochs", "steps", "clip_norm", "patience", "fast"} <= set(NUMBERS)


def state(vmonf: VMoNF) -> list[Tensor]:
    return [value.clone() for value in vmonf.state_dict().values()]


def plain_options(name: str) -> dict[str, Any]:
    common: dict[str, Any] = {"epochs": 1, "batch_size": 20, "seed": 0, "progress": False}
    return {**common, **BESIDE.get(name, {}), name: example(name)}


@functools.cache
def ended(name: str) -> list[Tensor]:
    """The state that a fit with a plain option ends in."""
    vmonf = pair()
    vmonf.fit(X, **plain_options(name))
    return state(vmonf)


@pytest.mark.parametrize("form", [in_numpy, as_tensors])
@pytest.mark.parametrize("name", NUMBERS)
def test_options_of_any_kind_of_number(
    name: str, form: Callable[[Any], Any], tmp_path: Path
) -> None:
    options = plain_options(name)
    formed = {**options, name: form(options[name])}
    vmonf, path = pair(), tmp_path / "run.pt"
    try:
        vmonf.fit(X, checkpoint=path, **formed)
    except (TypeError, ValueError):
        assert form is as_tensors
        assert equal(state(vmonf), state(pair()))
        return
    assert equal(state(vmonf), ended(name))
    for again in (options, formed):  # the run is over, and is found as such
        resumed = pair()
        resumed.fit(X, resume=path, checkpoint=path, **again)
        assert equal(state(resumed), ended(name))
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert equal(state(loaded), state(vmonf))
    assert loaded.history == vmonf.history


def test_plain_keeps_what_is_plain() -> None:
    module = nn.Linear(1, 1)
    state = module.state_dict()
    found = plain({"state": state, "path": Path("a") / "b", "many": (np.float32(0.5), [np.True_])})
    assert found["state"]["weight"] is state["weight"]
    assert found["state"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert (found["path"], found["many"]) == ("a/b", (0.5, [True]))
    assert torch.equal(plain(np.arange(3)), torch.arange(3))
    one = torch.ones(1)
    assert plain([one])[0] is one


# A pair as it was.


def odd() -> VMoNF:
    """A pair of two kinds of numbers, partly frozen, partly in ``eval()``."""
    vmonf = pair()
    vmonf.model.double()
    vmonf.model.bank.requires_grad_(False)
    vmonf.guide.network.eval()
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(torch.randn_like(parameter))
    return vmonf


@pytest.mark.parametrize("into", [None, pair, lambda: pair().double().eval()])
def test_a_pair_comes_back_as_it_was(into: Callable[[], VMoNF] | None, tmp_path: Path) -> None:
    vmonf = odd()
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt", into=into and into())
    for name, value in vmonf.state_dict().items():
        found = loaded.state_dict()[name]
        assert (found.dtype, found.device) == (value.dtype, value.device), name
        assert torch.equal(found, value), name
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in vmonf.named_parameters()
    ]
    assert [(n, m.training) for n, m in loaded.named_modules()] == [
        (n, m.training) for n, m in vmonf.named_modules()
    ]
    assert loaded.model.site("c") == vmonf.model.site("c")


def test_frozen_parameters_stay_in_a_further_fit(tmp_path: Path) -> None:
    vmonf = pair()
    vmonf.model.bank.requires_grad_(False)
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    for each in (vmonf, loaded):
        each.fit(X, epochs=2, seed=1, progress=False)
    assert equal(state(loaded), state(vmonf))
    assert equal(list(loaded.model.bank.parameters()), list(pair().model.bank.parameters()))


def test_a_pair_that_a_file_does_not_fit_stays_as_it_was(tmp_path: Path) -> None:
    odd().save(tmp_path / "pair.pt")
    other = VMoNF(FlowMixture(RealNVP(D, K + 1, blocks=1)), SoftmaxGuide(MLP(D, K + 1)))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit the pair"):
        VMoNF.load(tmp_path / "pair.pt", into=other)
    for name, value in other.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in other.parameters())
