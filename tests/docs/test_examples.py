"""The larger programs run, and the part that is the mixture's pays."""

from __future__ import annotations

import subprocess
import sys
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


def test_the_command_prints_a_table() -> None:
    command = [sys.executable, "-m", "examples", "topics", "--quick"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| topics | hierarchical, log-likelihood a further point |" in result.stdout
    wrong = subprocess.run(
        [*command[:3], "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "no example is called nothing" in wrong.stderr
