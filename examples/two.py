"""Two mixtures in one model, one for each view of the same rows, and an encoder that both share."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP

WINGS = 3


class Views(PyroModule):
    """The same clusters seen twice; ``forward`` is the model, ``guide`` the guide of both."""

    def __init__(self, encoder: nn.Module | None) -> None:
        super().__init__()
        for name in ("first", "second"):
            network = MLP(2, WINGS, hidden=(32,)) if encoder is None else encoder
            bank = RealNVP(2, WINGS, blocks=6, hidden=(16,))
            setattr(self, name, VMoNF(FlowMixture(bank), SoftmaxGuide(network)))

    def forward(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        self.first.model(x, y)
        self.second.model(z)

    def guide(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        self.first.guide(x, y)
        self.second.guide(z)


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return the accuracy in the second view, whose rows have no label, by either encoder."""
    x, wing = pinwheel(wings=WINGS, per_wing=200, rate=0.25, seed=seed)
    z = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    numbers = {}
    for name in ("an encoder each", "one encoder"):
        torch.manual_seed(seed)
        views = Views(MLP(2, WINGS, hidden=(32,)) if name == "one encoder" else None)
        optimizer = pyro.optim.Adam({"lr": 5e-3})
        svi = SVI(views, views.guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
        for _ in range(40 if quick else 600):
            svi.step(x, z, wing)
        found = views.second.predict(z)
        numbers[f"{name}, accuracy of the unlabelled view"] = float((found == wing).float().mean())
        numbers[f"{name}, up to the order of the clusters"] = accuracy(wing, found)
    return numbers
