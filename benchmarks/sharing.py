"""``python -m benchmarks.sharing``: what components gain by what they share, with the true labels.

KL(truth‖model) in nats on fresh points of the easy pinwheel (512 rows a wing), by bank and seed.
"""

from __future__ import annotations

import torch
from torch import nn

from pyro_vmonf import FlowMixture, RealNVP, RotatedRealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import Pinwheel, pinwheel
from pyro_vmonf.metrics import kl_to_truth
from pyro_vmonf.nn import MLP

WINGS, RATE, EPOCHS, SEEDS = 5, 0.25, 300, range(3)


def banks() -> dict[str, nn.Module]:
    """Return the banks that are compared, eight couplings of sixteen units each."""
    return {
        "five flows of their own": RealNVP(2, WINGS, blocks=8, hidden=(16,)),
        "one flow, five rotations": RotatedRealNVP(WINGS, blocks=8, hidden=(16,)),
        "four blocks shared, data": RealNVP(2, WINGS, blocks=8, hidden=(16,), shared=4),
        "four blocks shared, base": RealNVP(
            2, WINGS, blocks=8, hidden=(16,), shared=4, shared_at="base"
        ),
    }


def kl(name: str, seed: int) -> float:
    """Fit a bank to labelled wings and return its divergence from the truth."""
    x, wing = pinwheel(wings=WINGS, per_wing=512, rate=RATE, seed=seed)
    with local_seed(seed):
        guide = SoftmaxGuide(MLP(2, WINGS, hidden=(32, 32)))
        vmonf = VMoNF(FlowMixture(banks()[name]), guide)
    vmonf.fit(
        x,
        (-wing) % WINGS,  # the rotations start in this order
        epochs=EPOCHS,
        lr=3e-3,
        scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, WINGS * EPOCHS),
        progress=False,
        seed=seed,
    )
    truth = Pinwheel(WINGS, RATE)
    fresh, _ = pinwheel(wings=WINGS, per_wing=20_000, rate=RATE, seed=1000 + seed)
    return kl_to_truth(truth.log_prob(fresh), vmonf.log_prob(fresh))[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("| bank | KL, seeds 0 to 2 |\n|---|---|")
    for name in banks():
        print(f"| {name} | {', '.join(f'{kl(name, seed):.3f}' for seed in SEEDS)} |", flush=True)
