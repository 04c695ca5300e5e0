"""``python -m examples [NAME …] [--quick] [--seed S]``: run examples, print their numbers."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from examples import EXAMPLES


def main() -> None:
    """Run the named examples, all by default."""
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXAMPLES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="as the tests run them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    unknown = set(given.names) - set(EXAMPLES)
    if unknown:
        parser.error(f"no example is called {', '.join(sorted(unknown))}")
    print("| example | number | value |\n|---|---|---|")
    found: dict[str, dict[str, float]] = {}
    for name in given.names or EXAMPLES:
        torch.manual_seed(given.seed)
        start = time.perf_counter()
        found[name] = EXAMPLES[name](quick=given.quick, seed=given.seed)
        for key, value in found[name].items():
            print(f"| {name} | {key} | {value:.3f} |")
        print(f"| {name} | seconds | {time.perf_counter() - start:.1f} |", flush=True)
        if given.json is not None:
            rounded = {n: {k: round(v, 4) for k, v in row.items()} for n, row in found.items()}
            given.json.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
