"""Numbers of the committed results, and how the pages write them."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SIZES = {
    "pinwheel": "5 RealNVPs, D = 2, 512 rows",
    "mid": "10 RealNVPs, D = 16, 512 rows",
    "spline": "10 spline flows, D = 16, 512 rows",
    "mnist-maf": "5 MAFs, D = 784, 100 rows",
    "default": "6 flows over 4 Gaussians each, D = 8, 1,000 rows",
}


def read(name: str) -> Any:
    """Return the content of a file of results."""
    text = (RESULTS / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name[-1] == "l" else json.loads(text)


def share(value: float, digits: int = 3) -> str:
    """Return a share without its leading zero.

    Example:
        >>> share(0.8703), share(-0.02), share(1.0), share(0.5, 2)
        ('.870', '-.020', '1.000', '.50')
    """
    rounded = Decimal(str(value)).quantize(Decimal(10) ** -digits, ROUND_HALF_UP)
    return re.sub(r"^(-?)0\.", r"\1.", str(rounded))


def markdown(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def filled_lines(*parts: str) -> str:
    """Return sentences in lines of a page's width."""
    return textwrap.fill(" ".join(parts), 110)


def section(name: str) -> list[list[str]]:
    """Return the cells of the tables of a benchmark's last run."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text().split(f"## {name}\n")[1]
    rows = re.findall(r"^\| (.*) \|$", text.split("\n## ")[0], re.MULTILINE)
    return [row.split(" | ") for row in rows]


def step(config: str) -> dict[str, float]:
    """Return the milliseconds of a training step, by the way it is written."""
    return {row[1]: float(row[2]) for row in section("step") if row[0] == config}


def processor_of(name: str) -> str:
    """Return the processor of a benchmark's last run."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text().split(f"## {name}\n")[1]
    return text.split("\n20", 1)[1].split(", ")[1]


def milliseconds(value: float) -> str:
    """Return a time with two or three digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def signed(value: float) -> str:
    """Return a number with its sign."""
    return f"{'−' if value < 0 else '+'}{share(abs(value))}"
