"""Rotations of the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms.base import FlowTransform, constant_log_det


class Rotation(FlowTransform):
    r"""A rotation of the first two features by a learned angle, with log-determinant zero.

    .. math::
        (x_1, x_2) = (z_1 \cos\theta - z_2 \sin\theta,\; z_1 \sin\theta + z_2 \cos\theta)

    The angles of K components start at even distances, :math:`\theta_c = 2\pi c / K`.

    Arguments:
        features: number of features *D*, at least 2.
        batch_shape: one angle for each index of this shape.

    Example:
        >>> transform = Rotation(2, batch_shape=(4,))
        >>> x = transform(torch.tensor([1.0, 0.0]))
        >>> torch.allclose(x[1], torch.tensor([0.0, 1.0]), atol=1e-6)
        True
    """

    def __init__(self, features: int, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=batch_shape)
        self.features = check_positive("features", features, minimum=2)
        self.angle = nn.Parameter(torch.empty(self.batch_shape))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Spread the angles evenly."""
        count = self.angle.numel()
        spread = torch.arange(count, dtype=self.angle.dtype).reshape(self.batch_shape)
        self.angle.copy_(2 * math.pi / count * spread)

    def _turned(self, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x[..., 0], x[..., 1]
        cosine, sine = angle.cos(), angle.sin()
        turned = (cosine * first - sine * second, sine * first + cosine * second)
        others = x[..., 2:].expand(*turned[0].shape, x.shape[-1] - 2)
        out = torch.cat((torch.stack(turned, -1), others), -1)
        return out, constant_log_det(torch.zeros_like(angle), out)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(z, self.angle)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._turned(x, -self.angle)
