"""Priors of the weights whose own parameters are random."""

from __future__ import annotations

import math

import torch
from pyro import sample
from pyro.distributions import Dirichlet, Gamma, LogNormal
from pyro.nn import pyro_method
from torch import nn

from pyro_vmonf._utils.validation import check_number, check_positive
from pyro_vmonf.program import Program, name_of


class GammaDirichlet(Program):
    r"""A Dirichlet whose concentration is random.

    .. math::
        \pi \sim \mathrm{Dirichlet}(\alpha, \dots, \alpha), \qquad \alpha \sim \mathrm{Gamma}(a, b)

    The concentration :math:`\alpha` is the site ``weights_concentration``; a log-normal is its
    posterior. A small one means few components.

    Arguments:
        num_components: number of components *K*.
        shape, rate: *a* and *b*, positive.

    Raises:
        ValueError: if they are not positive.

    References:
        Escobar, West (1995), Bayesian Density Estimation and Inference Using Mixtures.

    Example:
        >>> from pyro_vmonf import FlowMixture, Gaussian, RandomWeights, VMoNF
        >>> vmonf = VMoNF(FlowMixture(Gaussian(2, 3), RandomWeights(GammaDirichlet(3))))
        >>> history = vmonf.fit(torch.randn(20, 2), epochs=1, progress=False)
        >>> sorted(history.terms)
        ['entropy', 'log_likelihood', 'log_prior', 'weights', 'weights_concentration']
    """

    def __init__(self, num_components: int, shape: float = 1.0, rate: float = 1.0) -> None:
        super().__init__()
        self.num_components = check_positive("num_components", num_components, minimum=2)
        self.shape, self.rate = check_number("shape", shape), check_number("rate", rate)
        self.loc = nn.Parameter(torch.tensor(math.log(shape / rate)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.1)))

    def extra_repr(self) -> str:
        return f"num_components={self.num_components}, shape={self.shape}, rate={self.rate}"

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at the prior's mean."""
        self.loc.fill_(math.log(self.shape / self.rate))
        self.log_scale.fill_(math.log(0.1))

    @property
    def _site(self) -> str:
        # Beside the site of the weights, and not below it, as autoguides need it.
        return f"{name_of(self, 'weights').removesuffix('.prior')}_concentration"

    def forward(self) -> Dirichlet:
        like = self.loc.detach()
        prior = Gamma(like.new_tensor(self.shape), like.new_tensor(self.rate))
        concentration = sample(self._site, prior)
        return Dirichlet(
            concentration.unsqueeze(-1).expand(*concentration.shape, self.num_components)
        )

    @pyro_method
    def guide(self) -> None:
        """Draw the concentration from its posterior."""
        sample(self._site, LogNormal(self.loc, self.log_scale.exp()))
