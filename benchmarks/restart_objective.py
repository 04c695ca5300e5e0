"""Which score tells good restarts from bad: ``python benchmarks/restart_objective.py FILE``.

Fits pinwheel and circles from random starts, without the spectral one, and compares the start that
each held-out score would keep with the best one. Writes one row for each start to FILE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.experiments import EXPERIMENTS
from pyro_vmonf.experiments.draws import Settings
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Consistency

STEPS, STARTS = 1000, 10
SCORES = ("log_prob", "elbo", "objective")


def run(name: str, start: int) -> dict[str, object]:
    """Fit one start."""
    data = EXPERIMENTS[name].draw(Settings(0))
    with local_seed(start):
        terms = [Consistency(RandomWalk(data.x, length=64)), Balance(weight=2.0)]
        guide = SoftmaxGuide(MLP(2, data.num_components, hidden=(64, 64)), terms)
        vmonf = VMoNF(FlowMixture(RealNVP(2, data.num_components, hidden=(16,))), guide)
    history = vmonf.fit(
        data.x,
        steps=STEPS,
        lr=3e-3,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
        clip_norm=10.0,
        held_out=0.1,
        seed=start,
        progress=False,
    )
    return {
        "experiment": name,
        "start": start,
        "accuracy": accuracy(data.labels, vmonf.predict(data.x)),
        "log_prob": float(vmonf.log_prob(data.x_test).mean()),
        "elbo": float(vmonf.elbo(data.x_test).mean()),
        "objective": history.objective[-1],
    }


def main() -> None:
    """Run what is missing and say what each score would keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.file.read_text()) if options.file.exists() else []
    for name in ("pinwheel", "circles"):
        for start in range(STARTS):
            if not any(r["experiment"] == name and r["start"] == start for r in rows):
                rows.append(run(name, start))
                options.file.write_text(json.dumps(rows, indent=1) + "\n")
        found = [row for row in rows if row["experiment"] == name]
        shares = sorted(row["accuracy"] for row in found)
        print(f"{name}: accuracies {[round(share, 3) for share in shares]}")
        for score in SCORES:
            kept = max(found, key=lambda row: row[score])
            print(f"  best {score} keeps accuracy {kept['accuracy']:.3f}")


if __name__ == "__main__":
    main()
