"""Weights of groups of rows that share components."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.weights.base import Weights


class GroupWeights(Weights):
    r"""Weights of their own for each group of rows, which share the components: :math:`\pi_{g(n)}`.

    The context of a row is the number of its group, from 0: ``given`` of shape ``(N, 1)``. The
    optimiser moves the weights.

    Arguments:
        num_groups: number of groups *G*.
        num_components: number of components *K*.

    Raises:
        ValueError: in a call, without groups, or if a number is none of a group.

    Example:
        >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
        >>> model = FlowMixture(Gaussian(2, 3), GroupWeights(4, 3), context_features=1)
        >>> group = torch.randint(4, (20, 1)).float()
        >>> history = VMoNF(model).fit(torch.randn(20, 2), given=group, epochs=1, progress=False)
        >>> model.weights(group).shape
        torch.Size([20, 3])
    """

    component_dim = -1

    def __init__(self, num_groups: int, num_components: int) -> None:
        super().__init__()
        self.num_groups = check_positive("num_groups", num_groups)
        self.num_components = check_positive("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(num_groups, num_components))

    def num_free(self) -> int:
        return self.num_groups * super().num_free()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at equal weights."""
        self._parameter("logits").zero_()

    def forward(self, context: Tensor | None = None) -> Tensor:
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
        return self._parameter("logits").log_softmax(-1)[group]
