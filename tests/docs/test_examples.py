"""The larger programs run, and the part that is the mixture's pays."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from examples import EXAMPLES

ROOT = Path(__file__).parents[2]

# What must hold already after the few steps of the quick form.
BETTER = {
    "hmm": [
        ("flows, accuracy of the states", "Gaussians, accuracy of the states"),
        (
            "flows, held-out log-likelihood a point",
            "Gaussians, held-out log-likelihood a point",
        ),
    ],
    "regression": [
        (
            "three experts with flows, held-out log-likelihood",
            "one Gaussian, held-out log-likelihood",
        ),
    ],
    "two": [
        (
            "one encoder, accuracy of the unlabelled view",
            "an encoder each, accuracy of the unlabelled view",
        ),
    ],
    "nested": [
        (
            "two mixtures of five, held-out log-likelihood",
            "two Gaussians, held-out log-likelihood",
        ),
    ],
    "tree": [
        ("flows, accuracy of the states", "Gaussians, accuracy of the states"),
        (
            "flows, held-out log-likelihood a point",
            "Gaussians, held-out log-likelihood a point",
        ),
    ],
    "topics": [
        (
            "hierarchical, log-likelihood a further point",
            "all groups alike, log-likelihood a further point",
        ),
    ],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    numbers = EXAMPLES[name](quick=True, seed=0)
    assert torch.tensor(list(numbers.values())).isfinite().all()
    for better, worse in BETTER.get(name, []):
        assert numbers[better] > numbers[worse]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name: str) -> None:
    lines = (ROOT / "examples" / f"{name}.py").read_text().splitlines()
    assert len(lines) < 60


def test_the_command_prints_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m examples``, with numbers that need no training."""
    asked: list[dict[str, object]] = []

    def numbers(**given: object) -> dict[str, float]:
        asked.append(given)
        return {"a number": 2 / 3}

    monkeypatch.setitem(EXAMPLES, "topics", numbers)
    monkeypatch.setattr("sys.argv", ["examples", "topics", "--quick", "--seed", "4"])
    runpy.run_module("examples", run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [
        "| example | number | value |",
        "|---|---|---|",
        "| topics | a number | 0.667 |",
    ]
    assert printed[3].startswith("| topics | seconds | ")
    assert asked == [{"quick": True, "seed": 4}]


def test_the_command_refuses_a_name_that_no_example_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["examples", "nothing"])
    with pytest.raises(SystemExit) as refusal:
        runpy.run_module("examples", run_name="__main__")
    assert refusal.value.code == 2
    assert "no example is called nothing" in capsys.readouterr().err
