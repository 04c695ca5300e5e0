"""The models whose steps are compared, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_vmonf import MAF, NSF, FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.flows import GaussianMixtures
from pyro_vmonf.nn import MLP

BINS, BOUND = 8, 5.0


@dataclass(frozen=True)
class Configuration:
    """A mixture of K flows over D features, and the rows of one batch."""

    family: str  # "affine", "spline" (couplings) or "maf"
    rows: int
    components: int
    features: int
    blocks: int
    hidden: int
    guide_hidden: tuple[int, ...]
    gaussians: int = 0  # of the base of each component; a standard normal without any

    def batch(self) -> Tensor:
        """Return the rows of one batch, near the flows' own start."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.rows, self.features, generator=generator)

    def network(self) -> nn.Sequential:
        """Return the guide's network for a peer, of torch's own parts."""
        layers: list[nn.Module] = []
        width = self.features
        for size in self.guide_hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        return nn.Sequential(*layers, nn.Linear(width, self.components))

    def base(self) -> GaussianMixtures:
        """Return the base of each component."""
        return GaussianMixtures(self.features, self.components, self.gaussians)

    def pair(self, top: int | None = None) -> VMoNF:
        """Return this library's mixture, with a guide over the ``top`` components of each row."""
        bank = {"affine": RealNVP, "spline": NSF, "maf": MAF}[self.family](
            self.features,
            self.components,
            blocks=self.blocks,
            hidden=(self.hidden,),
            activation="relu",
            **({"base": self.base()} if self.gaussians else {}),
        )
        network: nn.Module = MLP(self.features, self.components, hidden=self.guide_hidden)
        if top is not None:
            network = Centres(self.batch()[: self.components])
        return VMoNF(FlowMixture(bank), SoftmaxGuide(network, terms=[], top=top))


class Centres(nn.Module):
    """A guide's network that knows K clusters of about the same size, as a trained one does."""

    def __init__(self, centres: Tensor) -> None:
        super().__init__()
        self.centres = nn.Parameter(centres.clone())

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.centres).square()


CONFIGURATIONS = {
    "pinwheel": Configuration("affine", 512, 5, 2, 8, 8, (3,)),
    "mid": Configuration("affine", 512, 10, 16, 8, 64, (64, 64)),
    "mnist-maf": Configuration("maf", 100, 5, 784, 5, 200, (512,)),
    "spline": Configuration("spline", 512, 10, 16, 8, 64, (64, 64)),
    "default": Configuration("affine", 1000, 6, 8, 2, 32, (64,), gaussians=4),
}
