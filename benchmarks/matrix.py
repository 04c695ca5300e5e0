"""``python -m benchmarks.matrix``: count the outcomes of the cells that ``make matrix`` ran.

It reads ``out/matrix.jsonl``, one line for each cell that passed its test, and writes
``benchmarks/results/matrix.json``. A cell without a line has failed. The order of the names in that
file is that of ``tests/test_swapping.py``.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CELLS = ROOT / "out" / "matrix.jsonl"
RESULT = ROOT / "benchmarks" / "results" / "matrix.json"


def table(lines: list[list[str]]) -> dict[str, Any]:
    """Return names, outcomes, and a string of digits for each bank, weights and guide.

    A digit is the index of the outcome of one verb. A cell without a line "fails".

    Example:
        >>> found = table([["NSF", "learned", "none", "fit", "works"]])
        >>> found["outcomes"], found["cells"]
        (['works'], {'NSF | learned | none': '0'})
    """
    banks, weights, guides, verbs, outcomes = (
        list(dict.fromkeys(line[place] for line in lines)) for place in range(5)
    )
    outcomes.sort(key=lambda outcome: (outcome.startswith("refused"), outcome))
    known = {tuple(line[:4]): line[4] for line in lines}
    rows = list(itertools.product(banks, weights, guides))
    if len(known) < len(rows) * len(verbs):
        outcomes.append("fails")
    cells = {
        " | ".join(row): "".join(
            str(outcomes.index(known.get((*row, verb), "fails"))) for verb in verbs
        )
        for row in rows
    }
    return {"verbs": verbs, "outcomes": outcomes, "cells": cells}


def main() -> None:
    """Write the table."""
    lines = sorted(json.loads(line) for line in CELLS.read_text().splitlines())
    found = table([line[1:] for line in lines])
    RESULT.write_text(json.dumps(found, indent=0, ensure_ascii=False) + "\n")
    digits = "".join(found["cells"].values())
    for place, outcome in enumerate(found["outcomes"]):
        print(f"{digits.count(str(place)):>6,} {outcome}")


if __name__ == "__main__":
    main()
