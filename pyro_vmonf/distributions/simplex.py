"""Distributions on the simplex, under that name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints


class OnSimplex(TorchDistribution):
    """A distribution whose support is the simplex, under that name, for autoguides and NUTS.

    Arguments:
        distribution: of torch alone, or such as a mixture of Dirichlets, whose support has
            another name.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.simplex

    def __init__(self, distribution: Distribution) -> None:
        self.distribution = distribution
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def __repr__(self) -> str:
        return f"OnSimplex({self.distribution!r})"

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> OnSimplex:
        return OnSimplex(self.distribution.expand(Size(batch_shape)))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.distribution.sample(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.distribution.log_prob(value)


def is_simplex(support: Any) -> bool:
    """Return whether a support is the simplex, also that of a mixture."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.simplex))
