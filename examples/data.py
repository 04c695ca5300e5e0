"""Data for the examples, each drawn from a seed of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Dirichlet

from pyro_vmonf import Gaussian, RealNVP
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel

WINGS = 5
STATES = 3


def bananas(sequences: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points ``(sequences, steps, 2)`` and states: three arcs that hug one another."""
    with local_seed(seed):
        state = torch.randint(3, (sequences,))
        states = []
        for _ in range(steps):
            jump = torch.rand(sequences) < 0.3
            state = torch.where(jump, torch.randint(3, (sequences,)), state)
            states.append(state)
        c = torch.stack(states, 1)
        return arcs(c, 0.08), c


def arcs(c: Tensor, noise: float) -> Tensor:
    """Draw a point ``(*, 2)`` of the arc of each state, from the global state."""
    angle = math.pi * torch.rand(c.shape)
    arc = torch.stack((angle.cos(), angle.sin() * (1 - 2 * (c % 2))), -1)
    centre = torch.stack((1.0 * c, 0.4 * (c % 2)), -1)
    return arc + centre + noise * torch.randn(arc.shape)


def families(trees: int, nodes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points ``(trees, nodes, 2)`` and states: a child mostly has its parent's state.

    The children of node n of a tree are 2n + 1 and 2n + 2.
    """
    with local_seed(seed):
        states = [torch.randint(3, (trees,))]
        for node in range(1, nodes):
            kept = torch.rand(trees) < 0.85
            states.append(torch.where(kept, states[(node - 1) // 2], torch.randint(3, (trees,))))
        c = torch.stack(states, 1)
        return arcs(c, 0.2), c


def branches(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and responses: two branches that cross, with skewed noise, one ever rarer."""
    with local_seed(seed):
        h = 4 * torch.rand(count, 1) - 2
        upper = torch.rand(count, 1) < torch.sigmoid(2 * h)
        y = torch.where(upper, torch.sin(2 * h), -torch.sin(2 * h) - 0.5)
        return h, y + 0.2 * torch.empty(count, 1).exponential_(1)


def constellations(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points and constellation: two rings of five spots each."""
    with local_seed(seed):
        ring = torch.arange(count) % 2
        angle = 2 * math.pi * torch.randint(5, (count,)) / 5
        spots = torch.stack((angle.cos() + 4 * ring, angle.sin()), -1)
        return spots + 0.08 * torch.randn(count, 2), ring


def documents(
    *, groups: int, few: int, further: int, seed: int
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return a labelled pinwheel, and a few and further points of groups with their own shares."""
    wheel, wing = pinwheel(wings=WINGS, per_wing=400, rate=0.25, seed=seed)
    with local_seed(seed):
        shares = Dirichlet(torch.tensor([2.0, 1.0, 0.5, 0.3, 0.2])).sample((groups,))
        c = Categorical(shares.unsqueeze(1)).expand((groups, few + further)).sample()
        points = torch.empty(*c.shape, 2)
        for k in range(WINGS):
            own = wheel[wing == k]
            points[c == k] = own[torch.randint(len(own), (int((c == k).sum()),))]
    return (wheel, wing), points[:, :few], points[:, few:]


def emissions(name: str, blocks: int) -> nn.Module:
    """Return densities of the states of arcs: Gaussians, or flows over them."""
    base = Gaussian(2, STATES)
    base.loc.data.copy_(torch.tensor([[0.0, 0.6], [1.0, -0.2], [2.0, 0.6]]))
    return base if name == "Gaussians" else RealNVP(2, STATES, blocks=blocks, base=base)
