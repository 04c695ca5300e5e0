"""The distribution of a bank under other parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.func import functional_call

from pyro_vmonf.distributions.entries import Partial
from pyro_vmonf.distributions.estimates import Asking
from pyro_vmonf.distributions.partial import observe


class Use(nn.Module):
    """A module that calls a bank, and then a function of its distribution.

    A flow reads its parameters when it computes a density. Both calls therefore happen inside one
    ``functional_call``, which puts other parameters in their place.

    Arguments:
        bank: module whose call returns a distribution.
    """

    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, function: Callable[[Distribution], Any], context: Tensor | None) -> Any:
        return function(self.bank() if context is None else self.bank(context))


class WithParameters(Asking):
    """The distribution of a bank whose parameters have other values.

    Arguments:
        bank: the bank.
        parameters: values by the names of the parameters.
        context: the context of the rows, if the bank takes one.
        batch_shape: the batch shape of the bank's distribution by default.

    Example:
        >>> from pyro_vmonf import Gaussian
        >>> bank = Gaussian(2, 5)
        >>> shifted = WithParameters(bank, {"loc": bank.loc + 1})
        >>> x = torch.zeros(7, 1, 2)
        >>> bool(torch.isclose(shifted.log_prob(x), bank().log_prob(x - 1)).all())
        True
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        bank: nn.Module,
        parameters: Mapping[str, Tensor],
        context: Tensor | None = None,
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.bank = bank
        self.parameters = dict(parameters)
        self.context = context
        like = Use(bank)(lambda d: d, context)
        self._support, self._reparametrized = like.support, like.has_rsample
        shape = like.batch_shape if batch_shape is None else Size(batch_shape)
        super().__init__(shape, like.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self._reparametrized

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self._support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> WithParameters:
        return WithParameters(self.bank, self.parameters, self.context, batch_shape)

    def _ask(self, function: Callable[[Distribution], Any]) -> Any:
        def expanded(found: Distribution) -> Any:
            same = found.batch_shape == self.batch_shape
            return function(found if same else found.expand(self.batch_shape))

        values = {f"bank.{name}": value for name, value in self.parameters.items()}
        return functional_call(Use(self.bank), values, (expanded, self.context))

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return marginals and conditionals: see :mod:`pyro_vmonf.distributions.partial`."""
        found = self._ask(lambda found: observe(found, x, draws))
        mean, draw = found.mean, found.draw
        return replace(
            found,
            mean=lambda: self._ask(lambda _: mean()),
            draw=lambda count: self._ask(lambda _: draw(count)),
        )

    def log_prob(self, x: Tensor) -> Tensor:
        return self._ask(lambda found: found.log_prob(x))  # type: ignore[no-any-return]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._ask(lambda found: found.sample(Size(sample_shape)))  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._ask(lambda found: found.rsample(Size(sample_shape)))  # type: ignore[no-any-return]
