"""Mixture weights: modules whose call, inside the model, returns log π."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import sample
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.processes import sum_over_processes
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.contracts import optional
from pyro_vmonf.counts import Counts, LogPosterior, Update, counted_dims, counts_of, is_learning
from pyro_vmonf.program import name_of
from pyro_vmonf.weight_priors import Posterior, as_prior, check_prior, posterior_of
from pyro_vmonf.weights.base import Weights


class FixedWeights(Weights):
    """Weights that the modeller sets and training leaves alone.

    Arguments:
        probs: probabilities ``(K,)``, positive; they are divided by their sum.

    Raises:
        ValueError: if they are not a vector of positive finite numbers, or have a gradient.

    Example:
        >>> FixedWeights(torch.tensor([1.0, 3.0]))().exp()
        tensor([0.2500, 0.7500])
    """

    probs: Tensor
    batched_buffers = ("probs",)
    _wanted = "positive"

    def __init__(self, probs: Tensor) -> None:
        super().__init__()
        probs = torch.as_tensor(probs)
        if probs.requires_grad:
            raise ValueError(
                "the weights given have a gradient, and training leaves them alone; pass "
                "LearnedWeights(K), which learns them, or weights.detach()"
            )
        if probs.dim() != 1 or not (probs.isfinite().all() and self._fit(probs)):
            said = f"weights are {probs.tolist()}; expected"
            raise ValueError(f"{said} a vector of K {self._wanted} finite numbers")
        probs = probs if probs.is_floating_point() else probs.to(torch.get_default_dtype())
        self.num_components = len(probs)
        self.register_buffer("probs", probs / probs.sum())

    def _fit(self, probs: Tensor) -> bool:
        return bool((probs > 0).all())

    def forward(self, context: Tensor | None = None) -> Tensor:
        return self.probs.log().log_softmax(-1)


class CountedWeights(Weights):
    r"""The base of weights that follow the responsibilities: see :class:`LearnedWeights`.

    Arguments:
        num_components, update, rate, pseudo_count: as there.
        num_groups: number of groups of rows, each with weights of its own.
    """

    def __init__(
        self,
        num_components: int,
        update: Update,
        rate: float | None,
        pseudo_count: float,
        num_groups: int | None = None,
    ) -> None:
        super().__init__()
        self.num_components = check_positive("num_components", num_components)
        groups = () if num_groups is None else (check_positive("num_groups", num_groups),)
        if update not in ("counts", "gradient"):
            raise ValueError(f"update is {update!r}; expected 'counts' or 'gradient'")
        if not (rate is None or 0 < rate <= 1) or not pseudo_count >= 0:
            raise ValueError(
                f"rate is {rate} and pseudo_count is {pseudo_count}; expected a rate above 0 and "
                "at most 1, or None, and a count of at least 0"
            )
        self.update = update
        self.rate = rate
        self.pseudo_count = pseudo_count
        self.logits = nn.Parameter(torch.zeros(*groups, num_components))
        self.counts = Counts(num_components, *groups)
        self._counted = False  # in the guide of the run

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at equal weights."""
        self._parameter("logits").zero_()

    def forward(self, context: Tensor | None = None) -> Tensor:
        log_weights = self.next_call(context)
        self._counted = False
        return log_weights

    def next_call(self, context: Tensor | None = None) -> Tensor:
        """Return what the next call returns, which leaves that one as it is."""
        logits: Tensor = self._parameter("logits")
        return self._of((logits.detach() if self._counted else logits).log_softmax(-1), context)

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        logits: Tensor = self._parameter("logits")
        logits = logits.detach() if counted_dims() and self._is_counted() else logits
        return self._of(logits.log_softmax(-1), context)

    def _of(self, log_weights: Tensor, context: Tensor | None) -> Tensor:
        return log_weights  # of rows with this context

    def _is_counted(self) -> bool:
        """Return whether counts move the weights, where a guide counts."""
        return self.update != "gradient" and is_learning(self, self._parameter("logits"))

    def _learn(self, count: Callable[[], Tensor], fraction: float) -> None:
        """Learn from the counts ``(*, K)`` of a batch, one row for each group."""
        logits = self._parameter("logits")
        if not self._is_counted():
            return
        self._counted = True
        if fraction == 0 and self.rate is not None:  # the step has been taken
            return
        with torch.no_grad():
            batch, present = sum_over_processes(count()), logits.softmax(-1)
            if self.rate is None:
                unseen = self._unseen(batch, present)
                self.counts.add_(batch.movedim(-1, 0), fraction, unseen.movedim(-1, 0))
                total = self.counts.over_the_data().movedim(0, -1) + self.pseudo_count
                share = total / total.sum(-1, keepdim=True)
                seen = self.counts.passes[:, 0].movedim(0, -1)
            else:
                seen, total = batch, batch + self.pseudo_count
                share = (1 - self.rate) * present + self.rate * total / total.sum(-1, keepdim=True)
            # Rows that do not count, or a posterior that is no number, say nothing of the weights.
            # A component that has no row at all keeps a density to come back by.
            moved = share.clamp_min(torch.finfo(share.dtype).tiny).log()
            says = share.isfinite().all(-1, keepdim=True) & (seen.sum(-1, keepdim=True) > 0)
            logits.copy_(torch.where(says, moved, logits))

    def _unseen(self, batch: Tensor, present: Tensor) -> Tensor:
        """Return the shares ``(*, K)`` by which unseen rows count in the first pass."""
        return present


class LearnedWeights(CountedWeights):
    r"""Weights that follow the responsibilities: their mean over the data, as EM has it.

    .. math::
        \pi_c = \frac{n_c + a}{\sum_j n_j + K a}, \qquad n_c = \sum_n w_n\, q(c|x_n)

    The guide counts at every step in ``train()``, before the model runs: see
    :class:`~pyro_vmonf.counts.Counts`. The weights are then constant to the optimiser. Where
    no guide of this library runs (:meth:`FlowMixture.marginal`, a guide of your own) they are a
    parameter with a gradient.

    Arguments:
        num_components: number of components *K*.
        update: ``"counts"``, or ``"gradient"`` for a parameter that the optimiser moves.
        rate: in place of the counts over the data, the share ρ of each batch,
            :math:`\pi \leftarrow (1 - \rho)\,\pi + \rho\,\pi_{\text{batch}}`.
        pseudo_count: *a*, at least 0, as the mode under a Dirichlet prior of concentration *a* + 1;
            above 0 no component's weight reaches zero.

    Raises:
        ValueError: if an argument is out of range.

    References:
        Neal, Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and
        other variants.

    Example:
        >>> weights = LearnedWeights(2)
        >>> weights.update_(lambda: torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log(), None, 1.0)
        >>> weights().exp()
        tensor([0.8000, 0.2000])
    """

    def __init__(
        self,
        num_components: int,
        update: Update = "counts",
        *,
        rate: float | None = None,
        pseudo_count: float = 0.0,
    ) -> None:
        super().__init__(num_components, update, rate, pseudo_count)

    def update_(
        self, log_posterior: LogPosterior, sample_weight: Tensor | None, fraction: float = 1.0
    ) -> None:
        self._learn(lambda: counts_of(log_posterior(), sample_weight), fraction)


class UpdatedWeights(LearnedWeights):
    """:class:`LearnedWeights` by counts, under the name and arguments of earlier versions.

    Arguments:
        num_components, rate, pseudo_count: as there.

    Example:
        >>> UpdatedWeights(2, rate=0.1)().exp()
        tensor([0.5000, 0.5000], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self, num_components: int, *, rate: float | None = None, pseudo_count: float = 0.0
    ) -> None:
        super().__init__(num_components, rate=rate, pseudo_count=pseudo_count)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        probs = state_dict.pop(f"{prefix}probs", None)  # of earlier versions
        if probs is not None:
            tiny = torch.finfo(probs.dtype).tiny
            state_dict[f"{prefix}logits"] = probs.clamp_min(tiny).log()
        super()._load_from_state_dict(state_dict, prefix, *args)


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

    def num_free(self) -> int:
        """Return the number of the network's numbers that are learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

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

    The posterior of a Dirichlet is a Dirichlet, that of :class:`~pyro_vmonf.StickBreaking` has
    sticks. They are the prior and the counts of the responsibilities, the conjugate step of
    variational Bayes, where a guide of this library runs. The posterior of any other prior is a
    normal behind the stick-breaking map, which the optimiser moves. NUTS needs none of them.

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
        if (found := self.posterior.num_components) != self.num_components:
            raise ValueError(f"the posterior has {found} weights; expected {self.num_components}")
        check_prior(self.prior, self.posterior)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prior" and hasattr(self, "posterior"):
            check_prior(value := as_prior(value), self.posterior)
        super().__setattr__(name, value)

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
        optional(self.prior, "guide", _nothing)()  # of a hierarchical one
        sample(self._site, self.posterior())

    def update_(
        self, log_posterior: LogPosterior, sample_weight: Tensor | None, fraction: float = 1.0
    ) -> None:
        log_q = log_posterior()
        if log_q.dim() == 2:  # several groups draw weights of their own: no count of all is theirs
            optional(self.posterior, "update_", _nothing)(lambda: log_q, sample_weight, fraction)

    @property
    def takes_draws(self) -> bool:
        return type(self.posterior).take_draws_ is not Posterior.take_draws_

    def take_draws_(self, draws: Tensor) -> None:
        self.posterior.take_draws_(draws)

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.posterior.log_mean()

    def mean_log(self, context: Tensor | None = None) -> Tensor:
        return self.posterior.mean_log()


def _nothing(*_: object) -> None:
    """Learn nothing."""


_NAMED: dict[str, Callable[[int], Weights]] = {
    "uniform": lambda count: FixedWeights(torch.full((count,), 1 / count)),
    "learned": LearnedWeights,
    "updated": UpdatedWeights,
}


def as_weights(
    weights: str | Tensor | Distribution | Weights, num_components: int, like: Tensor | None = None
) -> Weights:
    """Return the weights that a user's short form stands for.

    Arguments:
        weights: ``"uniform"``, ``"learned"``, ``"updated"``, probabilities ``(K,)``, a prior on the
            simplex, such as a ``Dirichlet``, or a :class:`Weights` module.
        num_components: number of components *K* of the bank.
        like: a tensor of the bank, whose dtype weights take that are no module yet.

    Raises:
        TypeError: if it is a module that is no :class:`Weights`, or stands for no weights.
        ValueError: if the form is unknown, or the number of weights is not that of the components.
    """
    forms = (
        f"expected one of {', '.join(map(repr, _NAMED))}, a tensor of probabilities, a "
        "distribution on the simplex or a Weights module"
    )
    if isinstance(weights, str):
        if weights not in _NAMED:
            raise ValueError(f"weights is {weights!r}; {forms}")
        result = _NAMED[weights](num_components)
    elif isinstance(weights, Weights):
        result = weights
    elif isinstance(weights, nn.Module):
        kind = type(weights).__name__
        raise TypeError(
            f"weights is a {kind}, a module that is no Weights; pass RandomWeights({kind}(...)) if "
            f"its call returns a prior of the weights, or let {kind} inherit from "
            "pyro_vmonf.weights.Weights, which has the defaults of guide, update_ and log_mean"
        )
    elif isinstance(weights, Distribution):
        result = RandomWeights(weights)
    else:
        try:
            result = FixedWeights(torch.as_tensor(weights))
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"weights is a {type(weights).__name__}; {forms}") from error
    if result.num_components != num_components:
        raise ValueError(
            f"there are {result.num_components} weights but the bank has {num_components} "
            "components; pass one weight for each component"
        )
    made = not isinstance(weights, nn.Module)
    return result.to(like.dtype) if made and like is not None and like.numel() else result
