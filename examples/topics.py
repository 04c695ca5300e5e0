"""Groups that mix the same components in their own shares, under a hierarchical Dirichlet prior."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from examples.data import WINGS, documents
from pyro_vmonf import FlowMixture, RealNVP, VMoNF
from pyro_vmonf.weights import Weights


class GroupWeights(Weights):
    """The shares of each group, drawn around shares that all groups have in common."""

    num_components, common = WINGS, torch.ones(WINGS)

    def forward(self, context: Tensor | None = None) -> Tensor:
        return pyro.sample("shares", dist.Dirichlet(4.0 * self.common)).log()


class Topics(pyro.nn.PyroModule):
    """Groups of points are documents, wings are topics."""

    def __init__(self, bank: RealNVP) -> None:
        super().__init__()
        self.mixture = FlowMixture(bank, GroupWeights())

    def forward(self, x: Tensor) -> None:
        self.mixture.weights.common = pyro.sample("common", dist.Dirichlet(torch.ones(WINGS)))
        with pyro.plate("groups", len(x), dim=-2):
            self.mixture(x)


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return the log-likelihood of each group's further points, by three ideas of its shares."""
    (x, wing), few, further = documents(groups=30, few=8, further=200, seed=seed)
    topics = VMoNF(FlowMixture(RealNVP(2, WINGS, blocks=8)))
    topics.fit(x, wing, epochs=5 if quick else 100, lr=3e-3, standardize=False, progress=False)
    bank = topics.model.bank.requires_grad_(False).eval()
    model = Topics(bank)
    guide = AutoNormal(poutine.block(model, expose=["common", "shares"]))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=2))
    for _ in range(50 if quick else 500):
        svi.step(few)
    own = bank().log_prob(few.unsqueeze(2)).softmax(-1)
    ideas = {
        "all groups alike": own.mean((0, 1), keepdim=True),
        "each group alone": own.mean(1, keepdim=True),
        "hierarchical": guide.median(few)["shares"].detach(),
    }
    log_prob = bank().log_prob(further.unsqueeze(2))
    scores = {name: (pi.log() + log_prob).logsumexp(-1).mean() for name, pi in ideas.items()}
    return {f"{name}, log-likelihood a further point": float(v) for name, v in scores.items()}
