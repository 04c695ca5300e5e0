"""The distribution of weights that are pieces broken off a stick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Beta, constraints
from torch.nn import functional as F

from pyro_vmonf._utils.validation import check_positive, check_simplex


class StickBreaking(TorchDistribution):
    r"""Weights that are pieces broken off a stick, the last one being what is left.

    .. math::
        \pi_k = v_k \prod_{j<k} (1 - v_j), \qquad v_k \sim \mathrm{Beta}(a_k, b_k), \qquad v_K = 1

    With :math:`a_k = 1, b_k = \alpha` it is the Dirichlet process, truncated at K components;
    with :math:`b_k = \sum_{j>k} a_j` it is the Dirichlet. Sticks are conjugate to the components
    of rows.

    Arguments:
        a, b: positive numbers ``(*, K - 1)``.

    References:
        Connor, Mosimann (1969), Concepts of Independence for Proportions with a Generalization of
        the Dirichlet Distribution. Ishwaran, James (2001), Gibbs Sampling Methods for
        Stick-Breaking Priors.

    Example:
        >>> sticks = StickBreaking(torch.ones(2), torch.ones(2))
        >>> sticks.mean
        tensor([0.5000, 0.2500, 0.2500])
        >>> sticks.log_prob(torch.tensor([0.2, 0.3, 0.5]))
        tensor(0.2231)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "a": constraints.independent(constraints.positive, 1),
        "b": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, a: Tensor, b: Tensor, validate_args: bool | None = None) -> None:
        kind = torch.promote_types(a.dtype, b.dtype)
        kind = kind if kind.is_floating_point else torch.get_default_dtype()
        self.a, self.b = torch.broadcast_tensors(a.to(kind), b.to(kind))
        shape = self.a.shape
        super().__init__(shape[:-1], Size((shape[-1] + 1,)), validate_args=validate_args)

    @classmethod
    def process(cls, num_components: int, concentration: float = 1.0) -> StickBreaking:
        """Return the Dirichlet process of a concentration α, truncated at K components.

        About α log(1 + N/α) of the components hold N rows before any is seen.
        """
        check_positive("num_components", num_components, minimum=2)
        ones = torch.ones(num_components - 1)
        return cls(ones, concentration * ones)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> StickBreaking:
        shape = Size((*batch_shape, self.a.shape[-1]))
        return StickBreaking(self.a.expand(shape), self.b.expand(shape), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        tiny = torch.finfo(self.a.dtype).tiny
        v = Beta(self.a, self.b, validate_args=False).rsample(Size(sample_shape))
        v = v.clamp(tiny, 1 - torch.finfo(v.dtype).eps)
        left = F.pad((-v).log1p().cumsum(-1), (1, 0))
        return (left + F.pad(v.log(), (0, 1))).exp().clamp_min(tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        # left[k] is what remains of the stick behind piece k; it is summed from its own end, so
        # that no difference of nearly equal numbers is taken.
        left = value.flip(-1).cumsum(-1).flip(-1)
        if self._validate_args:
            check_simplex("weights", value)
        norm = self.a.lgamma() + self.b.lgamma() - (self.a + self.b).lgamma()
        # A part that is zero counts by its whole exponent, which may be zero as well.
        rest = self.b - 1 - F.pad((self.a + self.b - 1)[..., 1:], (0, 1))
        pieces = torch.special.xlogy(self.a - 1, value[..., :-1])
        return (pieces + torch.special.xlogy(rest, left[..., 1:]) - norm).sum(-1)

    @property
    def mean(self) -> Tensor:
        return stick_logs(self.a.log(), self.b.log(), (self.a + self.b).log()).exp()

    @property
    def variance(self) -> Tensor:
        # E[w²]/E[w]² of each break, by logarithms of numbers near one.
        logs = ((1 / n).log1p() for n in (self.a, self.b, self.a + self.b))
        return self.mean.square() * stick_logs(*logs).expm1()

    def entropy(self) -> Tensor:
        """Return the entropy of the first K - 1 weights, in nats."""
        # Piece k is v_k times what the pieces before it leave.
        later = torch.arange(self.a.shape[-1] - 1, -1, -1, device=self.a.device)
        left = self.b.digamma() - (self.a + self.b).digamma()
        return (Beta(self.a, self.b, validate_args=False).entropy() + later * left).sum(-1)

    @property
    def mean_log(self) -> Tensor:
        r"""The expectation :math:`E[\log\pi]` ``(*, K)``."""
        return stick_logs(self.a.digamma(), self.b.digamma(), (self.a + self.b).digamma())


def stick_logs(piece: Tensor, rest: Tensor, whole: Tensor) -> Tensor:
    """Return the logs of the pieces, given those of each break's parts and of their sum."""
    return F.pad((rest - whole).cumsum(-1), (1, 0)) + F.pad(piece - whole, (0, 1))
