"""Ten components for five wings: ``python benchmarks/unknown_k.py FILE --seeds 0,1,…``.

Of ten spectral clusters, those that random walks link are joined, and the guide starts there; the
components that are left over stay empty under a sparse Dirichlet prior, and are pruned. Writes the
components' usage and the accuracy of each seed to FILE; seeds that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from pyro.distributions import Dirichlet
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF, exponential_decay
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.starts import merge_linked, spectral_clusters, warm_start_
from pyro_vmonf.terms import Consistency

COMPONENTS, STEPS = 10, 2000


def run(seed: int) -> dict[str, object]:
    """Fit one seed of the easy pinwheel with ten components."""
    x, wing = pinwheel(wings=5, per_wing=512, rate=0.25, seed=seed)
    start = time.perf_counter()
    with local_seed(seed):
        walks = RandomWalk(x, length=64)
        weight = linear_decay(steps=STEPS, initial=1.0, final=0.1)
        guide = SoftmaxGuide(
            MLP(2, COMPONENTS, hidden=(64, 64)), [Consistency(walks, weight=weight)]
        )
        prior = Dirichlet(torch.full((COMPONENTS,), 1 / COMPONENTS))
        vmonf = VMoNF(FlowMixture(RealNVP(2, COMPONENTS, blocks=8, hidden=(16,)), prior), guide)
        clusters = merge_linked(spectral_clusters(x, COMPONENTS), walks.ends)
        warm_start_(guide, x, clusters)
    vmonf.fit(
        x,
        steps=STEPS,
        batch_size=512,
        lr=3e-3,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
        clip_norm=10.0,
        temperature=exponential_decay(rate=2e-3),
        seed=seed,
        progress=False,
    )
    usage = vmonf.predict_proba(x).mean(0).sort(descending=True).values
    kept = vmonf.prune_(x, below=0.01)
    return {
        "seed": seed,
        "usage": [round(float(share), 4) for share in usage],
        "above_one_percent": len(kept),
        "accuracy": accuracy(wing, vmonf.predict(x)),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Run the seeds that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.file.read_text()) if options.file.exists() else []
    for seed in map(int, options.seeds.split(",")):
        if seed not in {row["seed"] for row in rows}:
            rows.append(run(seed))
            print(rows[-1], flush=True)
            options.file.write_text(json.dumps(rows, indent=1) + "\n")
    found = [row["above_one_percent"] for row in rows]
    print(f"five components on {found.count(5)} of {len(found)} seeds")


if __name__ == "__main__":
    main()
