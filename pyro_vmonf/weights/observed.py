"""Random weights whose value is observed, or a site that they draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro import poutine, sample
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.contracts import optional
from pyro_vmonf.counts import LogPosterior
from pyro_vmonf.program import Conditioned, drawn_sites, name_of
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


class ConditionedWeights(Conditioned, Weights):
    """Weights of which some sites are observed, and not the weights themselves.

    They share the parameters of the weights that they are made of.

    Arguments:
        weights: the weights.
        names: names of the sites.
        values: their values.
        context_features: features *H* of the context, where the weights depend on one.

    Raises:
        ValueError: if a value does not fit its site.
    """

    halves = ("weights",)
    in_program = True
    weights: Weights

    def __init__(
        self,
        weights: Weights,
        names: Sequence[str],
        values: Sequence[Tensor],
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.num_components = weights.num_components
        self.context_features = context_features
        drawn = sites_of(weights, context_features)
        values = [torch.as_tensor(value) for value in values]
        for name, value in zip(names, values, strict=True):
            wanted = tuple(drawn[name]["value"].shape)
            if tuple(value.shape) != wanted or not bool(
                drawn[name]["fn"].support.check(value).all()
            ):
                raise ValueError(
                    f"the observed {name!r} has shape {tuple(value.shape)} and values from "
                    f"{float(value.min()):g} to {float(value.max()):g}; expected shape {wanted}, "
                    f"and values in the support of its prior, {drawn[name]['fn'].support}"
                )
        self.keep_(names, values)

    def forward(self, context: Tensor | None = None) -> Tensor:
        with poutine.condition(data=self.by_name()):
            log_weights: Tensor = self.weights(context)
        return log_weights

    def guide(self) -> None:
        """Draw the other sites from their posterior."""
        with poutine.block(hide=self.names):
            self.weights.guide()

    def update_(
        self, log_posterior: LogPosterior, sample_weight: Tensor | None, fraction: float = 1.0
    ) -> None:
        self.weights.update_(log_posterior, sample_weight, fraction)

    def update_given_(
        self,
        context: Tensor | None,
        log_posterior: LogPosterior,
        sample_weight: Tensor | None,
        fraction: float = 1.0,
    ) -> None:
        self.weights.update_given_(context, log_posterior, sample_weight, fraction)

    def num_free(self) -> int:
        return self.weights.num_free()

    @property
    def takes_draws(self) -> bool:
        return self.weights.takes_draws

    def take_draws_(self, draws: Tensor) -> None:
        self.weights.take_draws_(draws)

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        if self._draws_themselves():
            return self.weights.log_mean(context)
        draws = self._draws(context)
        return draws.logsumexp(0) - math.log(len(draws))

    def mean_log(self, context: Tensor | None = None) -> Tensor:
        if self._draws_themselves():
            return self.weights.mean_log(context)
        return self._draws(context).mean(0)

    def _draws_themselves(self) -> bool:
        """Return whether the weights have a posterior of their own, whatever its prior is."""
        return name_of(self, "weights") in sites_of(self.weights, self.context_features)


def sites_of(weights: Weights, context_features: int = 0) -> dict[str, Any]:
    """Return the sites that weights draw for one row, as Pyro's trace has them."""
    own = (*weights.parameters(), *weights.buffers())
    like = next((value for value in own if value.is_floating_point()), torch.empty(0))
    context = torch.zeros(1, context_features, dtype=like.dtype, device=like.device)
    with local_seed(0), torch.no_grad():
        return drawn_sites(lambda: weights(context if context_features else None), {})


def observed(weights: Weights, data: Mapping[str, Tensor], context_features: int = 0) -> Weights:
    """Return weights of which some sites are observed: see :meth:`FlowMixture.condition`.

    Arguments:
        weights: the weights.
        data: values by the names of sites.
        context_features: features *H* of the context, where they depend on one.
    """
    in_parts = getattr(weights, "with_observed", None)  # of a chain, which has rows
    if in_parts is not None:
        return in_parts(data)  # type: ignore[no-any-return]
    own, prior = name_of(weights, "weights"), getattr(weights, "prior", None)
    rest = {name: value for name, value in data.items() if name != own or prior is None}
    made = weights if prior is None or own not in data else ObservedWeights(prior, data[own])
    if not rest:
        return made
    return ConditionedWeights(made, list(rest), list(rest.values()), context_features)
