"""Files that an earlier version wrote: they load, and say what they said then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf import SoftmaxGuide, VMoNF
from pyro_vmonf.distortions import RandomWalk

FOLDER = Path(__file__).parent / "data" / "saved"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text())
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
VERBS = ("log_prob", "component_log_prob", "predict_proba", "elbo")


def rows(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    expected = EXPECTED[name]
    dtype = getattr(torch, expected["dtype"])
    context = {"given": torch.tensor(expected["given"], dtype=dtype)} if "given" in expected else {}
    return torch.tensor(expected["x"], dtype=dtype), context


def check_values(vmonf: VMoNF, name: str) -> None:
    x, context = rows(name)
    tolerance = TOLERANCE[EXPECTED[name]["dtype"]]
    for verb in VERBS:
        found = getattr(vmonf, verb)(x, **context)
        expected = torch.tensor(EXPECTED[name][verb], dtype=x.dtype)
        torch.testing.assert_close(
            found,
            expected,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda message, verb=verb: f"{verb}: {message}",
        )


def test_every_file_has_its_values() -> None:
    assert {path.stem for path in FOLDER.glob("*.pt")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_earlier_file_says_what_it_said(name: str) -> None:
    before = torch.get_rng_state()
    vmonf = VMoNF.load(FOLDER / f"{name}.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert vmonf.guide.model is vmonf.model
    check_values(vmonf, name)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_earlier_file_brings_its_history_and_its_guide(name: str) -> None:
    vmonf = VMoNF.load(FOLDER / f"{name}.pt")
    assert vmonf.history is not None
    assert vmonf.history.elbo == EXPECTED[name]["history"]["elbo"]
    assert vmonf.history.step == EXPECTED[name]["history"]["step"]
    guide, expected = vmonf.guide, EXPECTED[name].get("guide")
    assert isinstance(guide, SoftmaxGuide) == (expected is not None)
    if isinstance(guide, SoftmaxGuide):
        assert expected == {
            "top": guide.top,
            "elbo_gradient": guide.elbo_gradient,
            "temperature": float(guide.temperature),
            "terms": {term: part.current_weight for term, part in guide.named_terms()},
        }


@pytest.mark.parametrize("name", EXPECTED)
def test_an_earlier_file_is_saved_anew(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.pt"
    VMoNF.load(FOLDER / f"{name}.pt").save(path)
    check_values(VMoNF.load(path), name)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_earlier_fit_goes_on(name: str) -> None:
    vmonf = VMoNF.load(FOLDER / f"{name}.pt")
    x, context = rows(name)
    walks = [part for part in vmonf.guide.modules() if isinstance(part, RandomWalk)]
    x = walks[0].x if walks else x  # a walk knows its rows
    before = vmonf.log_prob(x, **context)
    history = vmonf.fit(x, epochs=1, progress=False, seed=0, **context)
    assert history.rejected == 0
    assert not torch.equal(vmonf.log_prob(x, **context), before)
