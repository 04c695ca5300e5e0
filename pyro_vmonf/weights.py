"""Mixture weights: modules whose call, inside the model, returns log π."""

from __future__ import annotations

import torch
from pyro import sample
from pyro.distributions import Dirichlet
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution


class Weights(PyroModule):
    r"""What all weights share: a call that returns :math:`\log\pi` of shape ``(*, K)``.

    To implement one, write :meth:`forward`; if it draws from a prior, also :meth:`guide`, which
    draws the same sites from the approximate posterior, and :meth:`log_mean`.
    """

    num_components: int

    def forward(self) -> Tensor:
        raise NotImplementedError

    def _parameter(self, name: str) -> Tensor:
        """Read a parameter; a frozen one past Pyro, which would thaw it."""
        parameter = self._parameters[name]
        assert parameter is not None
        return getattr(self, name) if parameter.requires_grad else parameter

    def guide(self) -> None:
        """Draw the sites of :meth:`forward` from their approximate posterior: here, none."""

    def log_mean(self) -> Tensor:
        r"""Return :math:`\log E[\pi]` of shape ``(K,)``, the weights that scores are exact for."""
        return self.forward()

    def mean_log(self) -> Tensor:
        r"""Return :math:`E[\log\pi]` of shape ``(K,)``, the weights of the ELBO."""
        return self.log_mean()


class FixedWeights(Weights):
    """Weights that the modeller sets and training leaves alone.

    Arguments:
        probs: probabilities ``(K,)``, positive; they are divided by their sum.

    Raises:
        ValueError: if they are not a vector of positive finite numbers.

    Example:
        >>> FixedWeights(torch.tensor([1.0, 3.0]))().exp()
        tensor([0.2500, 0.7500])
    """

    probs: Tensor
    batched_buffers = ("probs",)

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        probs = torch.as_tensor(probs)
        if probs.dim() != 1 or not (probs.isfinite().all() and (probs > 0).all()):
            raise ValueError(
                f"weights are {probs.tolist()}; expected a vector of K positive finite numbers"
            )
        probs = probs if probs.is_floating_point() else probs.to(torch.get_default_dtype())
        self.num_components = len(probs)
        self.register_buffer("probs", probs / probs.sum())

    def forward(self) -> Tensor:
        return self.probs.log().log_softmax(-1)


class LearnedWeights(Weights):
    """Weights that are a parameter, the softmax of K logits.

    Arguments:
        num_components: number of components *K*.

    Example:
        >>> LearnedWeights(2)().exp()
        tensor([0.5000, 0.5000], grad_fn=<ExpBackward0>)
    """

    def __init__(self, num_components: int) -> None:
        super().__init__()
        self.num_components = num_components
        self.logits = nn.Parameter(torch.zeros(num_components))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at equal weights."""
        self._parameters["logits"].zero_()  # type: ignore[union-attr]

    def forward(self) -> Tensor:
        return self._parameter("logits").log_softmax(-1)


class RandomWeights(Weights):
    r"""Weights with a Dirichlet prior, at the site ``weights``, and a Dirichlet posterior.

    The posterior's concentrations are parameters that start at the prior's.

    Arguments:
        concentration: the prior's concentrations ``(K,)``, positive.

    Raises:
        ValueError: if they are not a vector of positive finite numbers.

    Example:
        >>> RandomWeights(torch.ones(3)).log_mean().exp()
        tensor([0.3333, 0.3333, 0.3333], grad_fn=<ExpBackward0>)
    """

    concentration: Tensor
    batched_buffers = ("concentration",)

    def __init__(self, concentration: Tensor) -> None:
        super().__init__()
        concentration = torch.as_tensor(concentration)
        positive = concentration.isfinite().all() and (concentration > 0).all()
        if concentration.dim() != 1 or not positive:
            raise ValueError(
                f"concentration is {concentration.tolist()}; "
                "expected a vector of K positive finite numbers"
            )
        self.num_components = len(concentration)
        self.register_buffer("concentration", concentration.clone())
        self.log_posterior_concentration = nn.Parameter(torch.empty_like(concentration))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start the posterior at the prior."""
        self._parameters["log_posterior_concentration"].copy_(self.concentration.log())  # type: ignore[union-attr]

    @property
    def _site(self) -> str:
        return self._pyro_name or "weights"

    def forward(self) -> Tensor:
        return sample(self._site, Dirichlet(self.concentration)).log()

    @pyro_method
    def guide(self) -> None:
        sample(self._site, Dirichlet(self._parameter("log_posterior_concentration").exp()))

    def log_mean(self) -> Tensor:
        return self._parameter("log_posterior_concentration").log_softmax(-1)

    def mean_log(self) -> Tensor:
        concentration = self._parameter("log_posterior_concentration").exp()
        return concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()


def as_weights(weights: str | Tensor | Distribution | Weights, num_components: int) -> Weights:
    """Return the weights that a user's short form stands for.

    Arguments:
        weights: ``"uniform"``, ``"learned"``, probabilities ``(K,)``, a ``Dirichlet``, or weights.
        num_components: number of components *K* of the bank.

    Raises:
        ValueError: if the form is unknown, or the number of weights is not that of the components.
    """
    if isinstance(weights, str):
        if weights not in ("uniform", "learned"):
            raise ValueError(
                f"weights is {weights!r}; expected 'uniform', 'learned', a tensor of "
                "probabilities, a Dirichlet or a Weights module"
            )
        uniform = FixedWeights(torch.full((num_components,), 1 / num_components))
        result: Weights = uniform if weights == "uniform" else LearnedWeights(num_components)
    elif isinstance(weights, Weights):
        result = weights
    elif isinstance(weights, torch.distributions.Dirichlet):
        result = RandomWeights(weights.concentration)
    elif isinstance(weights, Distribution):
        raise ValueError(f"weights is a {type(weights).__name__}; expected a Dirichlet")
    else:
        result = FixedWeights(torch.as_tensor(weights))
    if result.num_components != num_components:
        raise ValueError(
            f"there are {result.num_components} weights but the bank has {num_components} "
            "components; pass one weight for each component"
        )
    return result
