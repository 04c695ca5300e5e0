"""``python -m benchmarks chains``: a chain of flows beside the mixture of the same flows.

Three arcs overlap, and each lasts. The mixture takes each step by itself; the chain takes the most
probable path.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import table
from examples.data import arcs
from pyro_vmonf import FlowMixture, Gaussian, MarkovMixture, MarkovVMoNF, RealNVP, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.metrics import accuracy

RESULTS = Path(__file__).parent / "results" / "chains.jsonl"
STATES = 3
STAYS = 0.95  # probability that a step keeps its state, before the draw of a new one


def sequences(count: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return sequences of three arcs that overlap ``(S, T, 2)``, and their states ``(S, T)``."""
    with local_seed(seed):
        path = [torch.randint(STATES, (count,))]
        for _ in range(steps - 1):
            stays = torch.rand(count) < STAYS
            path.append(torch.where(stays, path[-1], torch.randint(STATES, (count,))))
        c = torch.stack(path, 1)
        return arcs(c, 0.25), c


def fitted(seed: int) -> dict[str, float]:
    """Return the accuracy of the states of new sequences, by the mixture and by the chain."""
    (x, _), (test, truth) = sequences(40, 40, seed), sequences(50, 40, seed + 100)
    with local_seed(seed):
        base = Gaussian(2, STATES)
        base.loc.data.copy_(torch.tensor([[-1.0, 0.5], [0.0, -0.5], [1.0, 0.5]]))
        options: dict[str, Any] = {"progress": False, "seed": seed, "batch_size": 4000}
        mixture = VMoNF(FlowMixture(RealNVP(2, STATES, blocks=2, base=base), "learned"))
        mixture.fit(x.flatten(0, 1), epochs=80, lr=2e-2, **options)
        alone = accuracy(truth.flatten(), mixture.predict(test.flatten(0, 1)))
        chain = MarkovVMoNF(MarkovMixture(mixture.model.bank, "learned", "learned"))
        chain.fit(x, epochs=40, lr=4e-2, **options)
    path = accuracy(truth.flatten(), chain.predict(test).flatten())
    return {"seed": seed, "mixture": round(float(alone), 4), "chain": round(float(path), 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the seeds, and write their rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks chains", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [fitted(seed) for seed in range(given.seeds)]
    given.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
