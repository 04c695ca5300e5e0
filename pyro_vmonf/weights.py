"""Mixture weights: modules whose call, inside the model, returns log π."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro import sample
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.processes import sum_over_processes
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.program import name_of
from pyro_vmonf.weight_priors import Posterior, as_prior, posterior_of


class Weights(PyroModule):
    r"""The base of weights: a call that returns :math:`\log\pi` of shape ``(*, K)``.

    To implement one, write :meth:`forward`; if it draws from a prior, also :meth:`guide`, which
    draws the same sites from the approximate posterior, and :meth:`log_mean`. Weights that learn
    from responsibilities write :meth:`update_`. Those that depend on the rows' context take it;
    the others leave it alone.
    """

    num_components: int
    in_program = False  # whether they are more than a function: sites, or updates by the guide

    def forward(self, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return arguments_of(self) or f"num_components={self.num_components}"

    def _parameter(self, name: str) -> Tensor:
        """Read a parameter; a frozen one past Pyro, which would thaw it."""
        parameter = self._parameters[name]
        assert parameter is not None
        return getattr(self, name) if parameter.requires_grad else parameter

    def guide(self) -> None:
        """Draw the sites of :meth:`forward` from their approximate posterior: here, none."""

    def update_(self, log_posterior: Callable[[], Tensor], sample_weight: Tensor | None) -> None:
        """Learn from log q(c|x, y) ``(*, K)`` of a batch's rows, which the function computes.

        Guides call it at every step, before the model runs; here it does nothing.
        """

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        r"""Return :math:`\log E[\pi]` ``(*, K)``, the weights that scores are exact for."""
        return self.forward(context)

    def mean_log(self, context: Tensor | None = None) -> Tensor:
        r"""Return :math:`E[\log\pi]` of shape ``(*, K)``, the weights of the ELBO."""
        return self.log_mean(context)


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

    def forward(self, context: Tensor | None = None) -> Tensor:
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

    def forward(self, context: Tensor | None = None) -> Tensor:
        return self._parameter("logits").log_softmax(-1)


class UpdatedWeights(Weights):
    r"""Weights in closed form: the mean of the responsibilities, as EM has it.

    .. math::
        \pi_c \leftarrow (1 - \rho)\, \pi_c
        + \rho\, \frac{\sum_n w_n\, q(c|x_n) + a}{\sum_n w_n + K a}

    At every step in ``train()``, before the model runs. With all rows in one batch and
    :math:`\rho = 1` that maximises the ELBO; with minibatches choose a smaller rate.

    Arguments:
        num_components: number of components *K*.
        rate: the share ρ of the batch, above 0 and at most 1.
        pseudo_count: *a*, at least 0, as the mode under a Dirichlet prior of concentration *a* + 1;
            above 0 no component's weight reaches zero.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> weights = UpdatedWeights(2)
        >>> weights.update_(lambda: torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log(), None)
        >>> weights().exp()
        tensor([0.8000, 0.2000])
    """

    probs: Tensor
    batched_buffers = ("probs",)
    in_program = True

    def __init__(
        self, num_components: int, *, rate: float = 1.0, pseudo_count: float = 0.0
    ) -> None:
        super().__init__()
        self.num_components = check_positive("num_components", num_components)
        if not 0 < rate <= 1 or not pseudo_count >= 0:
            raise ValueError(
                f"rate is {rate} and pseudo_count is {pseudo_count}; expected a rate above 0 and "
                "at most 1, and a count of at least 0"
            )
        self.rate = rate
        self.pseudo_count = pseudo_count
        self.register_buffer("probs", torch.full((num_components,), 1 / num_components))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at equal weights."""
        self.probs.fill_(1 / self.num_components)

    def forward(self, context: Tensor | None = None) -> Tensor:
        # A component that has no row at all keeps a density to come back by.
        return self.probs.clamp_min(torch.finfo(self.probs.dtype).tiny).log().log_softmax(-1)

    def update_(self, log_posterior: Callable[[], Tensor], sample_weight: Tensor | None) -> None:
        # Losses that are only evaluated, and those of ``eval()``, change nothing.
        if not self.training or not torch.is_grad_enabled():
            return
        with torch.no_grad():
            q = log_posterior().exp()
            weight = q.new_ones(()) if sample_weight is None else sample_weight.unsqueeze(-1)
            counts = (weight * q).reshape(-1, self.num_components).sum(0)
            counts = sum_over_processes(counts) + self.pseudo_count
            total = counts.sum()
            moved = (1 - self.rate) * self.probs + self.rate * counts / total
            # Rows that do not count, or a posterior that is no number, say nothing of the weights.
            self.probs.copy_(torch.where((total > 0) & moved.isfinite().all(), moved, self.probs))


class GatedWeights(Weights):
    r"""Weights that a network computes from each row's context, :math:`\pi(\text{context})`.

    Arguments:
        network: module from contexts ``(*, H)`` to K logits.
        num_components: number of components *K*.

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive Mixtures of Local Experts.

    Example:
        >>> GatedWeights(torch.nn.Linear(3, 5), 5)(torch.zeros(7, 3)).shape
        torch.Size([7, 5])
    """

    def __init__(self, network: nn.Module, num_components: int) -> None:
        super().__init__()
        self.network = network
        self.num_components = check_positive("num_components", num_components)

    def forward(self, context: Tensor | None = None) -> Tensor:
        if context is None:
            raise ValueError(
                "the weights are gated, so they need the rows' context; pass given=, of shape "
                "(N, H)"
            )
        logits = self.network(context)
        if logits.shape[-1] != self.num_components:
            raise ValueError(
                f"the gate's network returns shape {tuple(logits.shape)}; expected (*, "
                f"{self.num_components}), one logit for each component"
            )
        return logits.log_softmax(-1)


class RandomWeights(Weights):
    r"""Weights with a prior, at the site ``weights``, and an approximate posterior.

    The posterior's parameters start at the prior: a Dirichlet's posterior is a Dirichlet, that of
    :class:`~pyro_vmonf.StickBreaking` has sticks, and any other prior's is a normal behind the
    stick-breaking map. NUTS needs none of them.

    Arguments:
        prior: distribution on the simplex, of ``event_shape`` ``(K,)`` and ``batch_shape`` ``()``;
            a tensor stands for a Dirichlet's concentrations.
        posterior: a :class:`~pyro_vmonf.weight_priors.Posterior`, such as
            ``PointPosterior(prior)`` for the most probable weights.

    Raises:
        ValueError: if the prior is not on the simplex, or has a batch.

    Example:
        >>> RandomWeights(torch.ones(3)).log_mean().exp()
        tensor([0.3333, 0.3333, 0.3333], grad_fn=<ExpBackward0>)
    """

    in_program = True

    def __init__(
        self, prior: Tensor | Distribution | nn.Module, posterior: Posterior | None = None
    ) -> None:
        super().__init__()
        self.prior = as_prior(prior)
        self.posterior = posterior_of(self.prior) if posterior is None else posterior
        self.num_components = self.prior().event_shape[0]
        if self.posterior.num_components != self.num_components:
            raise ValueError(
                f"the posterior has {self.posterior.num_components} weights and the prior "
                f"{self.num_components}; expected as many"
            )

    def reset_parameters(self) -> None:
        """Start the posterior anew."""
        self.posterior.reset_parameters()  # type: ignore[operator]

    @property
    def _site(self) -> str:
        return name_of(self, "weights")

    def forward(self, context: Tensor | None = None) -> Tensor:
        drawn = sample(self._site, self.prior())
        return drawn.clamp_min(torch.finfo(drawn.dtype).tiny).log()

    @pyro_method
    def guide(self) -> None:
        sample(self._site, self.posterior())

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.posterior.log_mean()

    def mean_log(self, context: Tensor | None = None) -> Tensor:
        return self.posterior.mean_log()


_NAMED: dict[str, Callable[[int], Weights]] = {
    "uniform": lambda count: FixedWeights(torch.full((count,), 1 / count)),
    "learned": LearnedWeights,
    "updated": UpdatedWeights,
}


def as_weights(weights: str | Tensor | Distribution | Weights, num_components: int) -> Weights:
    """Return the weights that a user's short form stands for.

    Arguments:
        weights: ``"uniform"``, ``"learned"``, ``"updated"``, probabilities ``(K,)``, a prior on the
            simplex, such as a ``Dirichlet``, or a :class:`Weights` module.
        num_components: number of components *K* of the bank.

    Raises:
        ValueError: if the form is unknown, or the number of weights is not that of the components.
    """
    if isinstance(weights, str):
        if weights not in _NAMED:
            raise ValueError(
                f"weights is {weights!r}; expected one of {', '.join(map(repr, _NAMED))}, a tensor "
                "of probabilities, a distribution on the simplex or a Weights module"
            )
        result = _NAMED[weights](num_components)
    elif isinstance(weights, Weights):
        result = weights
    elif isinstance(weights, Distribution):
        result = RandomWeights(weights)
    else:
        result = FixedWeights(torch.as_tensor(weights))
    if result.num_components != num_components:
        raise ValueError(
            f"there are {result.num_components} weights but the bank has {num_components} "
            "components; pass one weight for each component"
        )
    return result
