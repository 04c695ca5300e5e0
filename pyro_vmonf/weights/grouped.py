"""Weights of groups of rows that share components."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pyro_vmonf.counts import LogPosterior, Update
from pyro_vmonf.weights.standard import CountedWeights


class GroupWeights(CountedWeights):
    r"""Weights of their own for each group of rows, which share the components.

    .. math::
        \pi_{g,c} = \frac{n_{g,c} + a}{\sum_j n_{g,j} + K a},
        \qquad n_{g,c} = \sum_{n:\,g(n) = g} w_n\, q(c|x_n)

    The context of a row is the number of its group, from 0: ``given`` of shape ``(N, 1)``. The
    weights follow the responsibilities of the rows of their group, as those of
    :class:`LearnedWeights` follow all rows. A group without rows keeps the weights that it has:
    equal ones at the start.

    Arguments:
        num_groups: number of groups *G*.
        num_components: number of components *K*.
        update: ``"counts"``, or ``"gradient"`` for a parameter that the optimiser moves.
        pseudo_count: *a*, at least 0; above 0 no component of a small group loses all its weight.

    Raises:
        ValueError: if an argument is out of range, and in a call, without groups, or if a number is
            none of a group.

    Example:
        >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
        >>> model = FlowMixture(Gaussian(2, 3), GroupWeights(4, 3), context_features=1)
        >>> group = torch.randint(4, (20, 1)).float()
        >>> history = VMoNF(model).fit(torch.randn(20, 2), given=group, epochs=1, progress=False)
        >>> model.weights(group).shape
        torch.Size([20, 3])
    """

    component_dim = -1

    def __init__(
        self,
        num_groups: int,
        num_components: int,
        update: Update = "counts",
        *,
        pseudo_count: float = 0.0,
    ) -> None:
        super().__init__(num_components, update, None, pseudo_count, num_groups)
        self.num_groups = int(num_groups)

    def num_free(self) -> int:
        return self.num_groups * super().num_free()

    def _of(self, log_weights: Tensor, context: Tensor | None) -> Tensor:
        return log_weights[self._groups(context)]

    def update_given_(
        self,
        context: Tensor | None,
        log_posterior: LogPosterior,
        sample_weight: Tensor | None,
        fraction: float = 1.0,
    ) -> None:
        self._learn(partial(self._count, context, log_posterior, sample_weight), fraction)

    def _count(
        self, context: Tensor | None, log_posterior: LogPosterior, sample_weight: Tensor | None
    ) -> Tensor:
        """Return the counts ``(G, K)`` of a batch."""
        q = log_posterior().exp()
        weighted = q if sample_weight is None else sample_weight.unsqueeze(-1) * q
        group = self._groups(context).expand(weighted.shape[:-1]).reshape(-1)
        none = weighted.new_zeros(self.num_groups, self.num_components)
        return none.index_add(0, group, weighted.reshape(-1, self.num_components))

    def _unseen(self, batch: Tensor, present: Tensor) -> Tensor:
        rows = batch.sum(-1, keepdim=True)
        size = rows / rows.sum().clamp_min(torch.finfo(rows.dtype).tiny)
        # A group that is not in the first batch counts as one of mean size.
        return size.clamp_min(1 / self.num_groups) * present

    def _groups(self, context: Tensor | None) -> Tensor:
        """Return the number of each row's group ``(*)``."""
        if context is None:
            raise ValueError(
                "the weights differ by group; pass given=, the number of each row's group, of "
                "shape (N, 1)"
            )
        if self.num_groups > 2 / torch.finfo(context.dtype).eps + 1:
            raise ValueError(
                f"there are {self.num_groups} groups, whose numbers {context.dtype} rounds; keep "
                "the pair in float32"
            )
        group = context[..., 0].round().long()
        wrong = (group < 0) | (group >= self.num_groups) | (group != context[..., 0])
        if context.shape[-1] != 1 or bool(wrong.any()):
            raise ValueError(
                f"given has shape {tuple(context.shape)} and numbers from {float(context.min()):g} "
                f"to {float(context.max()):g}; expected (N, 1), whole numbers from 0 to "
                f"{self.num_groups - 1}"
            )
        return group
