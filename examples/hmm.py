"""A hidden Markov model whose states have the shape of bananas: flows beside Gaussians."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from torch import Tensor, nn

from examples.data import STATES, bananas, emissions
from pyro_vmonf import select
from pyro_vmonf.metrics import accuracy

STEPS = 30


def decode(logits: Tensor, bank: nn.Module, x: Tensor) -> Tensor:
    """Return the most probable states ``(sequences, steps)``, by ``infer_discrete``."""

    def model() -> None:
        with pyro.plate("sequences", len(x), dim=-1):
            row = logits.new_zeros(STATES)
            for t in pyro.markov(range(STEPS)):
                state = dist.Categorical(logits=row)
                c = pyro.sample(f"c{t}", state, infer={"enumerate": "parallel"})
                pyro.sample(f"x{t}", select(bank(), c), obs=x[:, t])
                row = logits[c]

    best = infer_discrete(model, first_available_dim=-2, temperature=0)
    nodes = poutine.trace(best).get_trace().nodes
    return torch.stack([nodes[f"c{t}"]["value"] for t in range(STEPS)], 1)


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return held-out log-likelihood per point and accuracy of the decoded states."""
    (x, _), (test, truth) = (bananas(n, STEPS, seed + n) for n in (40 if quick else 200, 100))
    numbers = {}
    for name in ("Gaussians", "flows"):
        torch.manual_seed(seed)
        bank = emissions(name, blocks=6)
        logits = nn.Parameter(torch.eye(STATES))  # a bank is what DiscreteHMM observes
        optimizer = torch.optim.Adam([logits, *bank.parameters()], lr=1e-2)
        for _ in range(60 if quick else 400):
            optimizer.zero_grad()
            hmm = dist.DiscreteHMM(torch.zeros(STATES), logits, bank())
            (-hmm.log_prob(x).mean() / STEPS).backward()
            optimizer.step()
        with torch.no_grad():
            hmm = dist.DiscreteHMM(torch.zeros(STATES), logits, bank())
            held_out = float(hmm.log_prob(test).mean()) / STEPS
            found = decode(logits, bank, test)
        numbers[f"{name}, held-out log-likelihood a point"] = held_out
        numbers[f"{name}, accuracy of the states"] = accuracy(truth.flatten(), found.flatten())
    return numbers
