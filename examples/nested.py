"""A mixture of mixtures: each component of the outer one is a mixture itself."""

from __future__ import annotations

import torch

from examples.data import constellations
from pyro_vmonf import FlowMixture, Gaussian, MixtureComponent, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return held-out log-likelihood and accuracy of the constellations, few of them labelled."""
    (x, ring), (test, truth) = constellations(1000, seed), constellations(4000, seed + 1000)
    y = torch.where(torch.arange(len(x)) < 100, ring, -1)
    numbers = {}
    for name in ("two Gaussians", "two flows", "two mixtures of five"):
        torch.manual_seed(seed)
        banks = {
            "two Gaussians": lambda: Gaussian(2, 2),
            "two flows": lambda: RealNVP(2, 2, blocks=8, hidden=(16,)),
            "two mixtures of five": lambda: [
                MixtureComponent(FlowMixture(Gaussian(2, 5), "learned")) for _ in range(2)
            ],
        }
        guide = SoftmaxGuide(MLP(2, 2, hidden=(16,)))
        vmonf = VMoNF(FlowMixture(banks[name]()), guide)
        vmonf.fit(x, y, epochs=20 if quick else 300, batch_size=250, lr=2e-2, progress=False)
        numbers[f"{name}, held-out log-likelihood"] = float(vmonf.log_prob(test).mean())
        numbers[f"{name}, accuracy of the constellations"] = accuracy(truth, vmonf.predict(test))
    return numbers
