"""Random weights whose value is observed."""

from __future__ import annotations

import torch
from pyro import sample
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf.contracts import optional
from pyro_vmonf.program import name_of
from pyro_vmonf.weight_priors import as_prior
from pyro_vmonf.weights.base import Weights


class ObservedWeights(Weights):
    """Weights with a prior whose site ``weights`` is observed: see :meth:`FlowMixture.condition`.

    Arguments:
        prior: the weights' prior.
        observed: their value ``(K,)``.

    Raises:
        ValueError: if it is not on the simplex.

    Example:
        >>> ObservedWeights(torch.ones(2), torch.tensor([0.2, 0.8])).log_mean().exp()
        tensor([0.2000, 0.8000])
    """

    in_program = True
    batched_buffers = ("observed",)
    observed: Tensor

    def __init__(self, prior: Tensor | Distribution | nn.Module, observed: Tensor) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        observed = torch.as_tensor(observed)
        self.num_components = self.prior().event_shape[0]
        on_it = observed.shape == (self.num_components,) and bool((observed > 0).all())
        if not on_it or abs(float(observed.sum()) - 1) > 1e-4:
            raise ValueError(
                f"the observed weights are {observed.tolist()}; expected {self.num_components} "
                "positive numbers whose sum is 1"
            )
        self.register_buffer("observed", observed.detach().clone())

    def forward(self, context: Tensor | None = None) -> Tensor:
        return sample(name_of(self, "weights"), self.prior(), obs=self.observed).log()

    @pyro_method
    def guide(self) -> None:
        optional(self.prior, "guide", lambda: None)()

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.observed.log()
