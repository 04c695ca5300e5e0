"""A prior over the parameters of a bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine, sample
from pyro.distributions import Delta, Independent, Normal
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.sizes import free_numbers
from pyro_vmonf._utils.validation import as_tensor
from pyro_vmonf.flows.constant import ConstantDistribution
from pyro_vmonf.flows.functional import WithParameters
from pyro_vmonf.program import Conditioned, Program, Registered, in_plate, name_of

# The name of the sum over these sites in the history.
_TERM: Any = {"term": "parameters"}

Prior = Distribution | Callable[[str, Tensor], Distribution]
FIRST_SCALE = 1e-2  # of the posterior


class _Scales(nn.ParameterDict):
    """The log-scales of parameters, by their names."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for value in self.values():
            value.fill_(math.log(self.start))


class RandomBank(Registered, Program):
    r"""A bank whose parameters are random: thesis 3.5, footnote, for every flow.

    In the model each parameter of the bank is a site of its name, with a prior. In the guide its
    posterior is :math:`N(\theta, s^2)` with a learned *s* for each number (mean field), or the
    point :math:`\theta` (MAP); :math:`\theta` are the parameters of the bank itself. Scores and
    draws of the pair use :math:`\theta`. ``Predictive``, NUTS and the autoguides of Pyro run the
    sites.

    Arguments:
        bank: any bank with parameters.
        prior: one distribution for every number; or a function from the name and value of a
            parameter to the distribution of each of its numbers. :math:`N(0, 1)` by default.
        scale: the first *s* of the posterior; ``None`` for a point.
        names: of the parameters that are random; by default all that require a gradient now.

    Raises:
        ValueError: if the bank has no parameters or none of such a name, or the scale is not
            positive.

    References:
        Blundell, Cornebise, Kavukcuoglu, Wierstra (2015), Weight Uncertainty in Neural Networks,
        arXiv:1505.05424.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RandomBank(RealNVP(2, 5), Normal(0.0, 1.0))))
        >>> history = vmonf.fit(torch.randn(64, 2), epochs=2, progress=False)
        >>> sorted(history.terms)
        ['entropy', 'log_likelihood', 'log_prior', 'parameters']
    """

    in_program = True

    def __init__(
        self,
        bank: nn.Module,
        prior: Prior | None = None,
        *,
        scale: float | None = FIRST_SCALE,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        own = dict(bank.named_parameters())
        # They stay random where somebody freezes them, or puts others in their place.
        self.names = [n for n, p in own.items() if p.requires_grad] if names is None else [*names]
        if not self.names or not set(self.names) <= own.keys():
            what = "has no parameters that a prior could be on"
            if self.names:
                what = f"has parameters {', '.join(own)}, and names is {self.names}"
            raise ValueError(f"{type(bank).__name__} {what}")
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}; expected a positive number, or None for a point")
        self.bank = bank
        prior = Normal(0.0, 1.0) if prior is None else prior
        self.prior = ConstantDistribution(prior) if isinstance(prior, Distribution) else prior
        self.scale = scale
        self.log_scale = _Scales(scale or 1.0)
        if scale is not None:
            for name, value in self.random_parameters():
                self.log_scale[name.replace(".", "-")] = torch.empty_like(value)
        self.log_scale.reset_parameters()

    def random_parameters(self) -> list[tuple[str, Tensor]]:
        """Return the parameters that are sites, by their names."""
        own = dict(self.bank.named_parameters())
        return [(name, own[name]) for name in self.names]

    def num_free(self) -> int:
        """Return the number of free parameters of the bank; its posterior is none of the model."""
        prior = free_numbers(self.prior) if isinstance(self.prior, nn.Module) else 0
        return free_numbers(self.bank) + prior

    def site_of(self, name: str) -> str:
        """Return the site of a parameter."""
        return f"{name_of(self, 'bank')}.{name}"

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the bank at the posterior's centre."""
        return self.bank() if context is None else self.bank(context)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        shown = [] if self.scale in (None, FIRST_SCALE) else [f"scale={self.scale}"]
        if len(self.names) < len([*self.bank.parameters()]):
            shown.append(f"names={self.names}")
        return ", ".join(shown)

    @pyro_method
    def draw(self, context: Tensor | None = None) -> WithParameters:
        """Draw the parameters inside the model, and return the bank under them."""
        if in_plate():
            raise ValueError(
                "a random bank draws its parameters once; inside a plate it would have to be once "
                "a row: call the mixture outside, or take a bank with fixed parameters"
            )
        drawn = {}
        for name, value in self.random_parameters():
            prior = self.prior() if isinstance(self.prior, nn.Module) else self.prior(name, value)
            prior = Independent(prior.expand(value.shape), value.dim())  # also of torch
            drawn[name] = sample(self.site_of(name), prior, infer=_TERM)
        return WithParameters(self.bank, drawn, context)

    def observed(self, values: dict[str, Tensor]) -> ObservedBank:
        """Return the bank with some of its sites observed, which shares its parameters.

        Raises:
            ValueError: if there is no such site, or the shape of its value is another one.
        """
        names = {self.site_of(name): name for name, _ in self.random_parameters()}
        own = [names.get(site, site) for site in values]
        return ObservedBank(self, own, list(values.values()))

    @torch.no_grad()
    def take_draws_(self, draws: dict[str, Tensor]) -> None:
        """Take mean and spread of draws ``(S, *)`` of a guide of the user's, by site."""
        for name, value in self.random_parameters():
            found = draws.get(self.site_of(name))
            if found is not None:
                value.copy_(found.mean(0))
                if self.scale is not None:
                    spread = found.std(0).clamp_min(torch.finfo(found.dtype).tiny)
                    self.log_scale[name.replace(".", "-")].copy_(spread.log())

    @pyro_method
    def guide(self) -> None:
        """Draw the same sites from the posterior."""
        for name, value in self.random_parameters():
            posterior: Any = Delta(value, event_dim=value.dim())
            if self.scale is not None:
                scale = self.log_scale[name.replace(".", "-")].exp()
                posterior = Normal(value, scale, validate_args=False).to_event(value.dim())
            sample(self.site_of(name), posterior, infer=_TERM)


class ObservedBank(Conditioned):
    """A random bank of which some parameters are observed: see :meth:`FlowMixture.condition`.

    Arguments:
        bank: the bank, whose parameters it shares.
        names: names of the parameters.
        values: their values.

    Raises:
        ValueError: if there is no such parameter, its shape is another one, or its value is not
            finite.
    """

    bank: RandomBank
    halves = ("bank",)
    in_program = True

    def __init__(self, bank: RandomBank, names: Sequence[str], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.bank = bank
        shapes = {name: tuple(p.shape) for name, p in bank.random_parameters()}
        values = [as_tensor(name, value) for name, value in zip(names, values, strict=True)]
        for name, value in zip(names, values, strict=True):
            if not value.isfinite().all():
                raise ValueError(f"the observed parameter {name!r} has values that are not finite")
            if shapes.get(name) != tuple(value.shape):
                raise ValueError(
                    f"the observed parameter {name!r} has shape {tuple(value.shape)}; the bank has "
                    f"{shapes}"
                )
        self.keep_(names, values)

    def _observed(self) -> dict[str, Tensor]:
        return {self.bank.site_of(name): value for name, value in self.by_name().items()}

    def forward(self, context: Tensor | None = None) -> Distribution:
        """Return the bank at what is observed, and at the posterior's centre of the rest."""
        inner: nn.Module = self.bank.bank
        return WithParameters(inner, self.by_name(), context)

    def draw(self, context: Tensor | None = None) -> WithParameters:
        """Draw the parameters inside the model; those that are observed are not drawn."""
        with poutine.condition(data=self._observed()):
            return self.bank.draw(context)

    def take_draws_(self, draws: dict[str, Tensor]) -> None:
        """Take draws of the other parameters: see :meth:`RandomBank.take_draws_`."""
        observed = self._observed()
        self.bank.take_draws_({n: value for n, value in draws.items() if n not in observed})

    def guide(self) -> None:
        """Draw the other parameters from their posterior."""
        with poutine.block(hide=sorted(self._observed())):
            self.bank.guide()
