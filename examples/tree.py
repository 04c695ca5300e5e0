"""States that are handed down a tree, with the shape of bananas: flows beside Gaussians."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, infer_discrete
from torch import Tensor, nn

from examples.data import STATES, emissions, families
from pyro_vmonf import select
from pyro_vmonf.metrics import accuracy

NODES = 7


def program(logits: Tensor, bank: nn.Module, x: Tensor) -> None:
    """The model: a state depends on that of its parent."""

    @pyro.markov
    def grow(node: int, row: Tensor) -> None:
        state = dist.Categorical(logits=row)
        c = pyro.sample(f"c{node}", state, infer={"enumerate": "parallel"})
        pyro.sample(f"x{node}", select(bank(), c), obs=x[:, node])
        for child in range(2 * node + 1, min(2 * node + 3, NODES)):
            grow(child, logits[c])

    with pyro.plate("trees", len(x), dim=-1):
        grow(0, logits.new_zeros(STATES))


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return held-out log-likelihood per point and accuracy of the states."""
    (x, _), (test, truth) = (families(n, NODES, seed + n) for n in (60 if quick else 300, 200))
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    numbers = {}
    for name in ("Gaussians", "flows"):
        torch.manual_seed(seed)
        bank = emissions(name, blocks=4)
        logits = nn.Parameter(torch.eye(STATES))
        optimizer = torch.optim.Adam([logits, *bank.parameters()], lr=2e-2)
        for _ in range(20 if quick else 200):
            optimizer.zero_grad()
            loss = elbo.differentiable_loss(program, lambda *_: None, logits, bank, x)
            (loss / x[..., 0].numel()).backward()
            optimizer.step()
        with torch.no_grad():
            loss = elbo.loss(program, lambda *_: None, logits, bank, test)
            best = infer_discrete(program, first_available_dim=-2, temperature=0)
            nodes = poutine.trace(best).get_trace(logits, bank, test).nodes
        found = torch.stack([nodes[f"c{n}"]["value"] for n in range(NODES)], 1)
        numbers[f"{name}, held-out log-likelihood a point"] = -loss / test[..., 0].numel()
        numbers[f"{name}, accuracy of the states"] = accuracy(truth.flatten(), found.flatten())
    return numbers
