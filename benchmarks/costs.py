"""``python -m benchmarks.costs``: the cost model of ``docs/beyond_one_machine.md``, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_vmonf import MAF, RealNVP

RESULTS = Path(__file__).parent / "results" / "costs.jsonl"
SIZES = (("RealNVP", 5, 8, 2, 8, 512), ("RealNVP", 10, 8, 16, 64, 512), ("MAF", 5, 5, 64, 100, 100))


def formula(family: str, k: int, blocks: int, d: int, h: int, rows: int) -> tuple[float, ...]:
    """Return parameters, multiply-adds of a step, and numbers kept for the gradient."""
    if family == "RealNVP":
        parameters = k * blocks * (2 * h * (d // 2 + 1) + d * (h + 1))
        return parameters, 3 * rows * k * blocks * 2 * d * h, rows * k * blocks * (2 * h + 11 * d)
    parameters = k * blocks * (h * (d + 1) + 2 * d * (h + 1))
    return parameters, 3 * rows * k * blocks * 3 * d * h, rows * k * blocks * (h + 10 * d)


def counted(bank: nn.Module, x: Tensor) -> tuple[float, ...]:
    """Return the same as torch counts it."""
    with FlopCounterMode(display=False) as flops:
        bank().log_prob(x).sum().backward()
    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bank().log_prob(x).sum()
    return sum(p.numel() for p in bank.parameters()), flops.get_total_flops() / 2, kept


def main() -> None:
    """Print the numbers, and write them to the results."""
    makers: dict[str, Any] = {"RealNVP": RealNVP, "MAF": MAF}
    found = []
    for family, k, blocks, d, h, rows in SIZES:
        bank = makers[family](d, k, blocks=blocks, hidden=(h,), activation="relu")
        expected = formula(family, k, blocks, d, h, rows)
        own = counted(bank, torch.randn(rows, 1, d))
        name = f"{family}, K {k}, L {blocks}, D {d}, H {h}, B {rows}"
        found.append({"bank": name, "formula": expected, "counted": own})
        print(found[-1])
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main()
