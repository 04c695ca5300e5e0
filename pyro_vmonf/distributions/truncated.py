"""A categorical distribution cut down to its most probable values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints


class TopCategorical(TorchDistribution):
    r"""A categorical on the *m* most probable of its K values, renormalised on them.

    Its enumeration runs over the m values of each row, so that what depends on it is computed for
    those alone. As a posterior it is one like any other: the ELBO stays a bound, and at m = K it is
    the full one.

    Arguments:
        logits: unnormalised log-probabilities ``(*, K)``.
        top: number of values *m* that are kept.

    Example:
        >>> q = TopCategorical(torch.tensor([[0.5, 0.1, 0.4]]).log(), 2)
        >>> q.enumerate_support()
        tensor([[0],
                [2]])
        >>> q.log_prob(torch.tensor([2])).exp()
        tensor([0.4444])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_enumerate_support = True

    def __init__(self, logits: Tensor, top: int) -> None:
        values, self.kept = logits.topk(top, -1)
        self.log_probs = values.log_softmax(-1)
        self.num_values = logits.shape[-1]
        super().__init__(logits.shape[:-1], Size(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_values - 1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> TopCategorical:
        new = TopCategorical.__new__(TopCategorical)
        shape = Size((*batch_shape, self.kept.shape[-1]))
        new.kept, new.log_probs = self.kept.expand(shape), self.log_probs.expand(shape)
        new.num_values = self.num_values
        TorchDistribution.__init__(new, Size(batch_shape), Size(), validate_args=False)
        return new

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return the m values of each row ``(m, *)``, the most probable first."""
        return self.kept.movedim(-1, 0)

    def log_prob(self, value: Tensor) -> Tensor:
        found = value.unsqueeze(-1) == self.kept
        log_probs = self.log_probs.expand(found.shape)
        picked = log_probs.gather(-1, found.long().argmax(-1, keepdim=True)).squeeze(-1)
        return picked.masked_fill(~found.any(-1), -torch.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = Size((*sample_shape, *self.batch_shape))
            slot = torch.distributions.Categorical(logits=self.log_probs).sample(Size(sample_shape))
            kept = self.kept.expand(*shape, self.kept.shape[-1])
            return kept.gather(-1, slot.unsqueeze(-1)).squeeze(-1)
