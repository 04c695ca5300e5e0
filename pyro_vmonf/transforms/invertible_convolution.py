"""The invertible 1×1 convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf.transforms.affine import Affine
from pyro_vmonf.transforms.base import constant_log_det


class InvertibleConvolution(Affine):
    r"""The affine map of the channels at every pixel: a 1×1 convolution in PLU form (thesis 3.4.1).

    .. math::
        x_{hw} = P L (U + \mathrm{diag}(s))\, z_{hw} + b, \qquad
        \log|\det| = HW \sum_i \log|s_i|

    Each index of the batch starts at its own random rotation of the channels.

    Arguments:
        channels: number of channels *C*.
        batch_shape: one map for each index of this shape.

    References:
        Kingma, Dhariwal (2018), Glow: Generative Flow with Invertible 1x1 Convolutions,
        arXiv:1807.03039.

    Example:
        >>> transform = InvertibleConvolution(4, batch_shape=(5,))
        >>> x, log_det = transform.forward_and_log_det(torch.randn(7, 1, 4, 6, 6))
        >>> x.shape, log_det.shape
        (torch.Size([7, 5, 4, 6, 6]), torch.Size([7, 5]))
    """

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)

    def __init__(self, channels: int, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(channels, batch_shape=batch_shape)
        self.channels = channels

    def inverse_matrix(self) -> Tensor:
        """Return the inverse matrices ``(*batch, C, C)``, by two triangular solutions."""
        lower, upper = self._factors()
        identity = torch.eye(self.channels, dtype=lower.dtype, device=lower.device)
        moved = identity[self.permutation.argsort(-1)]
        half = torch.linalg.solve_triangular(lower, moved, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = _mixed(self.matrix(), z) + self.shift[..., None, None]
        return x, self._log_det(x)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = _mixed(self.inverse_matrix(), x - self.shift[..., None, None])
        return z, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        pixels = x.shape[-1] * x.shape[-2]
        return constant_log_det(pixels * self.log_scale.sum(-1), x, 3)


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply matrices ``(*, C, C)`` to the channels of images ``(*, C, H, W)``."""
    return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])
