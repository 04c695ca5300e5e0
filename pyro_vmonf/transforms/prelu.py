"""The parametric rectifier as a bijection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms.base import FlowTransform


class PReLU(FlowTransform):
    r"""A rectifier with a learnable positive slope below zero (thesis 3.4.2).

    .. math::
        x_i = z_i \text{ if } z_i \ge 0 \text{ else } \alpha_i z_i, \qquad
        \log|\det| = \sum_{i : z_i < 0} \log \alpha_i

    Arguments:
        features: number of features *D*.
        slope: the first slope of every feature, above zero.
        batch_shape: one set of slopes for each index of this shape.

    Raises:
        ValueError: if the slope is not positive.

    Example:
        >>> x, log_det = PReLU(2, slope=0.5).forward_and_log_det(torch.tensor([-2.0, 3.0]))
        >>> x
        tensor([-1.,  3.], grad_fn=<WhereBackward0>)
    """

    def __init__(
        self, features: int, *, slope: float = 0.5, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        if not slope > 0:
            raise ValueError(f"slope is {slope}; a PReLU is invertible only if it is above zero")
        self.features = check_positive("features", features)
        self.slope = slope
        self.log_slope = nn.Parameter(torch.empty(*self.batch_shape, features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Return to the first slope."""
        self.log_slope.fill_(math.log(self.slope))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_slope = torch.where(z < 0, self.log_slope, torch.zeros_like(self.log_slope))
        return torch.where(z < 0, z * self.log_slope.exp(), z), log_slope.sum(-1)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_slope = torch.where(x < 0, self.log_slope, torch.zeros_like(self.log_slope))
        return torch.where(x < 0, x * (-self.log_slope).exp(), x), -log_slope.sum(-1)
