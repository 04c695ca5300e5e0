"""A VAE of digits whose prior is a mixture of flows, beside one with a standard normal prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, RealNVP
from pyro_vmonf.nn import MLP

LATENT, PIXELS = 8, 64


class VAE(pyro.nn.PyroModule):
    """z from the prior, black and white pixels from a decoder; the guide is an encoder."""

    def __init__(self, prior: FlowMixture | None) -> None:
        super().__init__()
        self.prior = prior
        self.decoder = MLP(LATENT, PIXELS, hidden=(128,))
        self.encoder = MLP(PIXELS, 2 * LATENT, hidden=(128,))

    def forward(self, x: Tensor) -> None:
        normal = dist.Normal(x.new_zeros(LATENT), 1.0).to_event(1)
        prior = normal if self.prior is None else self.prior.marginal()
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw)).to_event(1))


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return the held-out ELBO per image, in nats, with either prior."""
    images = torch.tensor(load_digits().data > 7).float()
    held = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)) < 360
    train, test = images[~held], images[held]
    numbers = {}
    for name in ("standard normal", "mixture of flows"):
        torch.manual_seed(seed)
        flows = FlowMixture(RealNVP(LATENT, 10, blocks=4, hidden=(32,)), "learned")
        vae = VAE(flows if name == "mixture of flows" else None)
        loss = Trace_ELBO()(vae, vae.guide)
        optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
        for _ in range(5 if quick else 150):
            for batch in train[torch.randperm(len(train))].split(128):
                optimizer.zero_grad()
                loss(batch).backward()
                optimizer.step()
        held_out = Trace_ELBO(num_particles=20).loss(vae, vae.guide, test)
        numbers[f"{name}, held-out ELBO"] = -held_out / len(test)
    return numbers
