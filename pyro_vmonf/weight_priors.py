"""Distributions over the weights of a mixture, and the posteriors that go with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Delta, Dirichlet, Normal, TorchDistribution, TransformedDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, StickBreakingTransform, constraints

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.processes import sum_over_processes
from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf.contracts import no_draws
from pyro_vmonf.counts import Counts, LogPosterior, Update, counted_dims, counts_of, is_learning
from pyro_vmonf.distributions.simplex import OnSimplex, is_simplex
from pyro_vmonf.distributions.sticks import StickBreaking
from pyro_vmonf.flows.constant import ConstantDistribution

TINY = 1e-6  # the least weight and spread that draws are taken for
MOST_PRECISION = 1e6  # of a posterior whose draws hardly differ


def _moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and variances of draws of weights, none of them zero."""
    return draws.mean(0).clamp_min(TINY), draws.var(0).clamp_min(TINY**2)


class DirichletPrior(ShownModule):
    """The module whose call returns a Dirichlet, whose components may change places.

    Arguments:
        concentration: concentrations ``(K,)``, positive.
    """

    concentration: Tensor
    batched_buffers = ("concentration",)

    def __init__(self, concentration: Tensor) -> None:
        super().__init__()
        self.num_components = len(concentration)
        self.register_buffer("concentration", concentration.detach() / 1)  # whole numbers as floats

    def forward(self) -> Dirichlet:
        return Dirichlet(self.concentration)


def as_prior(prior: Tensor | Distribution | nn.Module) -> nn.Module:
    """Return the module whose call returns a prior of weights.

    Arguments:
        prior: distribution on the simplex, of ``event_shape`` ``(K,)`` and ``batch_shape`` ``()``;
            a tensor stands for a Dirichlet's concentrations; such a module is returned.

    Raises:
        ValueError: if the prior is not on the simplex or has a batch, or the concentrations are not
            positive.
    """
    if isinstance(prior, nn.Module):
        return prior
    if isinstance(prior, Tensor):
        positive = prior.isfinite().all() and (prior > 0).all()
        if prior.dim() != 1 or not positive:
            raise ValueError(
                f"concentration is {prior.tolist()}; expected a vector of K positive finite numbers"
            )
        return DirichletPrior(prior)
    if prior.batch_shape or not is_simplex(prior.support):
        raise ValueError(
            f"the weights' prior is a {type(prior).__name__} of batch_shape "
            f"{tuple(prior.batch_shape)} and event_shape {tuple(prior.event_shape)}; expected a "
            "distribution on the simplex, such as Dirichlet(torch.ones(K)), of batch_shape ()"
        )
    if isinstance(prior, torch.distributions.Dirichlet):  # Pyro's is one too
        return DirichletPrior(prior.concentration)
    kind = type(prior).__name__
    with local_seed(0):
        try:
            drawn = prior.sample()
        except NotImplementedError as error:
            raise ValueError(
                f"the weights' prior, a {kind}, has no sample; write {kind}.sample, from which its "
                "shape, dtype and device are known"
            ) from error
    try:
        prior.log_prob(drawn)
    except NotImplementedError as error:
        raise ValueError(
            f"the weights' prior, a {kind}, has no density: a map such as softmax "
            "takes K numbers to K - 1; take StickBreakingTransform, of K - 1 numbers"
        ) from error
    plain = isinstance(prior, TorchDistribution) and prior.support is constraints.simplex
    return ConstantDistribution(prior if plain else OnSimplex(prior))


class Posterior(nn.Module):
    """An approximate posterior of the weights: its call returns a distribution on the simplex.

    To implement one, write :meth:`forward`, :meth:`log_mean`, :meth:`mean_log`, and
    :meth:`reset_parameters`, which starts it anew.

    One that is conjugate to the rows writes :meth:`update_` by :meth:`count_`.

    Arguments:
        prior: the weights' prior, as :func:`as_prior` takes it.
        update: ``"counts"`` for the conjugate step, ``"gradient"`` for the optimiser.
    """

    def __init__(
        self, prior: Tensor | Distribution | nn.Module, update: Update = "gradient"
    ) -> None:
        super().__init__()
        if update not in ("counts", "gradient"):
            raise ValueError(f"update is {update!r}; expected 'counts' or 'gradient'")
        self.prior = as_prior(prior)
        self.update = update
        with local_seed(0):  # the prior's dtype and device: only its draws tell
            self.like = self.prior().sample()
        self.num_components = len(self.like)
        self.counts = Counts(self.num_components).to(self.like) if update == "counts" else None

    def forward(self) -> Distribution:
        raise NotImplementedError

    @property
    def conjugate(self) -> bool:
        """``True`` if the counts of the rows move it."""
        return self.counts is not None and hasattr(self, "update_")

    def settled(self, parameter: Tensor) -> Tensor:
        """Return a parameter, as a constant where the guide that runs moves it by counts."""
        # Several groups draw weights of their own: nobody counts for all of them.
        moved = counted_dims() == 1 and self.conjugate and is_learning(self, parameter)
        return parameter.detach() if moved else parameter

    def count_(
        self,
        parameter: Tensor,
        posterior: Callable[[Tensor], Tensor],
        log_posterior: LogPosterior,
        sample_weight: Tensor | None,
        fraction: float,
    ) -> None:
        """Count a batch and take the conjugate step.

        Arguments:
            parameter: logs of the posterior's parameters, which are moved.
            posterior: function from the counts of the data ``(K,)`` to those parameters.
            log_posterior, sample_weight, fraction: of the batch, as guides pass them.
        """
        if self.counts is None or not self.conjugate or not is_learning(self, parameter):
            return
        with torch.no_grad():
            batch = sum_over_processes(counts_of(log_posterior(), sample_weight))
            self.counts.add_(batch, fraction, self.log_mean().exp())
            moved = posterior(self.counts.over_the_data()).log()
            parameter.copy_(torch.where(moved.isfinite().all(), moved, parameter))

    def take_draws_(self, draws: Tensor) -> None:
        """Take the moments of draws ``(S, K)`` of another posterior, for scores.

        Raises:
            TypeError: if the class does not say how.
        """
        raise TypeError(no_draws(self))

    def log_mean(self) -> Tensor:
        r"""Return :math:`\log E[\pi]` ``(K,)``."""
        raise NotImplementedError

    def mean_log(self) -> Tensor:
        r"""Return :math:`E[\log\pi]` ``(K,)``."""
        raise NotImplementedError


def check_prior(prior: nn.Module, posterior: Any) -> None:
    """Refuse a posterior that adds its counts to another prior than that of the weights.

    Raises:
        ValueError: if it does.
    """
    if not posterior.conjugate:
        return
    mine, theirs = prior(), posterior.prior()
    if type(mine) is not type(theirs) or not all(
        torch.equal(getattr(mine, name), getattr(theirs, name)) for name in mine.arg_constraints
    ):
        raise ValueError(
            f"the posterior has the prior {theirs}, and the weights have {mine}; pass the same one "
            "to both, or take new weights, RandomWeights(prior)"
        )


class DirichletPosterior(Posterior):
    """A Dirichlet, which starts at a Dirichlet prior, or at equal concentrations.

    Arguments:
        prior: the weights' prior.
    """

    def __init__(self, prior: Tensor | Distribution | nn.Module, update: Update = "counts") -> None:
        super().__init__(prior, update)
        self.log_concentration = nn.Parameter(torch.zeros_like(self.like))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at the prior."""
        self.log_concentration.zero_()
        if isinstance(self.prior, DirichletPrior):
            self.log_concentration.copy_(self.prior.concentration.log())

    @property
    def conjugate(self) -> bool:
        return super().conjugate and isinstance(self.prior, DirichletPrior)

    def forward(self) -> Distribution:
        return Dirichlet(self.settled(self.log_concentration).exp())

    def update_(self, *batch: Any) -> None:
        """Add the counts of the responsibilities to the prior's concentrations."""
        prior: Any = self.prior
        self.count_(self.log_concentration, lambda n: prior.concentration + n, *batch)

    @torch.no_grad()
    def take_draws_(self, draws: Tensor) -> None:
        """Take the mean of draws, and the concentration that their variances have."""
        mean, variance = _moments(draws)
        precision = (mean * (1 - mean)).sum() / variance.sum() - 1
        precision = precision.clamp(1e-3, MOST_PRECISION)
        self.log_concentration.copy_((mean * precision).log())

    def log_mean(self) -> Tensor:
        return self.settled(self.log_concentration).log_softmax(-1)

    def mean_log(self) -> Tensor:
        concentration = self.settled(self.log_concentration).exp()
        return concentration.digamma() - concentration.sum(-1, keepdim=True).digamma()


class SticksPosterior(Posterior):
    """Independent sticks, which start at a prior of sticks, or at uniform ones.

    Arguments:
        prior: the weights' prior.
    """

    component_dim = None  # each piece is a share of what those before it leave

    def __init__(self, prior: Tensor | Distribution | nn.Module, update: Update = "counts") -> None:
        super().__init__(prior, update)
        self.log_sticks = nn.Parameter(self.like.new_zeros(2, self.num_components - 1))
        with local_seed(0):
            self._of_sticks = isinstance(self.prior(), StickBreaking)
        self.reset_parameters()

    @property
    def conjugate(self) -> bool:
        return super().conjugate and self._of_sticks

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at the prior."""
        prior = self.prior()
        self.log_sticks.zero_()
        if isinstance(prior, StickBreaking):
            self.log_sticks.copy_(torch.stack((prior.a, prior.b)).log())

    def forward(self) -> StickBreaking:
        return self._sticks(self.settled(self.log_sticks))

    def _sticks(self, logs: Tensor) -> StickBreaking:
        a, b = logs.exp()
        return StickBreaking(a, b, validate_args=False)

    def update_(self, *batch: Any) -> None:
        """Add the counts of each piece, and of the pieces behind it, to those of the prior."""
        if self.conjugate:
            prior = self.prior()
            self.count_(
                self.log_sticks,
                lambda n: torch.stack(
                    (prior.a + n[:-1], prior.b + n.flip(-1).cumsum(-1).flip(-1)[1:])
                ),
                *batch,
            )

    @torch.no_grad()
    def take_draws_(self, draws: Tensor) -> None:
        """Take the share of each piece in what is left, and the variance of that share."""
        left = draws.flip(-1).cumsum(-1).flip(-1)
        # The ratio of means, so that the mean of the weights is that of the draws.
        mean = (draws.mean(0) / left.mean(0))[:-1].clamp(TINY, 1 - TINY)
        _, variance = _moments((draws / left.clamp_min(TINY))[:, :-1])
        precision = (mean * (1 - mean) / variance - 1).clamp(1e-3, MOST_PRECISION)
        self.log_sticks.copy_((torch.stack((mean, 1 - mean)) * precision).log())

    def log_mean(self) -> Tensor:
        return self._sticks(self.settled(self.log_sticks)).mean.log()

    def mean_log(self) -> Tensor:
        return self._sticks(self.settled(self.log_sticks)).mean_log


class PointPosterior(Posterior):
    """A single point: the weights that are most probable (MAP), where the prior has a mode.

    Arguments:
        prior: the weights' prior.
    """

    def __init__(self, prior: Tensor | Distribution | nn.Module) -> None:
        super().__init__(prior)
        self.logits = nn.Parameter(self.like.new_zeros(self.num_components))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at equal weights."""
        self.logits.zero_()

    @torch.no_grad()
    def take_draws_(self, draws: Tensor) -> None:
        """Take the mean of draws."""
        self.logits.copy_(_moments(draws)[0].log())

    def forward(self) -> Distribution:
        return Delta(self.logits.softmax(-1), event_dim=1)

    def log_mean(self) -> Tensor:
        return self.logits.log_softmax(-1)

    def mean_log(self) -> Tensor:
        return self.log_mean()


class NormalPosterior(Posterior):
    """A normal behind the stick-breaking map, for any prior on the simplex, as in ``AutoNormal``.

    Its means have no closed form; they are averages over a fixed set of standard normal draws.

    Arguments:
        prior: the weights' prior.
        draws: number of draws in the averages.
    """

    component_dim = None  # each piece is a share of what those before it leave

    noise: Tensor
    offset: Tensor

    def __init__(self, prior: Tensor | Distribution | nn.Module, draws: int = 1024) -> None:
        super().__init__(prior)
        self.draws = draws
        breaks = self.num_components - 1
        self.loc = nn.Parameter(self.like.new_zeros(breaks))
        self.log_scale = nn.Parameter(self.like.new_full((breaks,), math.log(0.1)))
        # Quasi-random, so that few draws do and nothing global is touched.
        grid = torch.quasirandom.SobolEngine(breaks, scramble=True, seed=0).draw(draws)
        noise = torch.erfinv((2 * grid - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * math.sqrt(2)
        self.register_buffer("noise", noise.to(self.like))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start near equal weights."""
        self.loc.zero_()
        self.log_scale.fill_(math.log(0.1))

    def forward(self) -> Distribution:
        normal = Normal(self.loc, self.log_scale.exp(), validate_args=False).to_event(1)
        return TransformedDistribution(normal, [StickBreakingTransform()])

    @torch.no_grad()
    def take_draws_(self, draws: Tensor) -> None:
        """Take mean and spread of draws behind the stick-breaking map."""
        safe = draws.clamp_min(TINY)
        free = StickBreakingTransform().inv(safe / safe.sum(-1, keepdim=True))
        self.loc.copy_(free.mean(0))
        self.log_scale.copy_(free.std(0).clamp_min(TINY).log())

    def _log_draws(self) -> Tensor:
        draws = StickBreakingTransform()(self.loc + self.log_scale.exp() * self.noise)
        return draws.clamp_min(torch.finfo(draws.dtype).tiny).log()

    def log_mean(self) -> Tensor:
        return (self._log_draws().logsumexp(0) - math.log(len(self.noise))).log_softmax(-1)

    def mean_log(self) -> Tensor:
        return self._log_draws().mean(0)


def posterior_of(prior: nn.Module) -> Posterior:
    """Return the posterior of a prior's own family, or a normal one."""
    families: dict[Any, type[Posterior]] = {
        Dirichlet: DirichletPosterior,
        StickBreaking: SticksPosterior,
    }
    return families.get(type(prior()), NormalPosterior)(prior)
