"""The affine transform; its determinant costs O(D)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.mlp import to_columns
from pyro_vmonf.transforms.base import FlowTransform, constant_log_det


class Affine(FlowTransform):
    r"""An affine map; its parameters are the PLU factors of the matrix (thesis 3.4.1).

    .. math::
        x = P L (U + \mathrm{diag}(s))\, z + b, \qquad \log|\det| = \sum_i \log|s_i|

    P is a fixed permutation, L is unit lower triangular, U is strictly upper triangular. Each index
    of the batch starts at its own random rotation and small shift. The signs of *s* are fixed.

    Arguments:
        features: number of features *D*.
        batch_shape: one map for each index of this shape.

    References:
        Kingma, Dhariwal (2018), Glow: Generative Flow with Invertible 1x1 Convolutions,
        arXiv:1807.03039.

    Example:
        >>> transform = Affine(2, batch_shape=(5,))
        >>> x, log_det = transform.forward_and_log_det(torch.randn(7, 1, 2))
        >>> x.shape, log_det.shape
        (torch.Size([7, 5, 2]), torch.Size([7, 5]))
    """

    permutation: Tensor
    signs: Tensor
    batched_buffers = ("permutation", "signs")

    def __init__(self, features: int, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=batch_shape)
        self.features = check_positive("features", features)
        square = (*self.batch_shape, features, features)
        self.register_buffer("permutation", torch.empty(square[:-1], dtype=torch.long))
        self.register_buffer("signs", torch.empty(square[:-1]))
        self.lower = nn.Parameter(torch.empty(square))
        self.upper = nn.Parameter(torch.empty(square))
        self.log_scale = nn.Parameter(torch.empty(square[:-1]))
        self.shift = nn.Parameter(torch.empty(square[:-1]))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at a random rotation and a small shift."""
        rotation, _ = torch.linalg.qr(torch.randn_like(self.lower))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal(dim1=-2, dim2=-1)
        # P y is y[permutation].
        self.permutation.copy_(permutation.argmax(-1))
        self.signs.copy_(diagonal.sign())
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_scale.copy_(diagonal.abs().log())
        # All rotations of a round base are equal; a small shift makes the components differ.
        self.shift.copy_(0.1 * torch.randn_like(self.shift))

    def _factors(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(self.features, dtype=self.shift.dtype, device=self.shift.device)
        diagonal = torch.diag_embed(self.signs * self.log_scale.exp())
        return self.lower.tril(-1) + identity, self.upper.triu(1) + diagonal

    def matrix(self) -> Tensor:
        """Return the matrices ``(*batch, D, D)``."""
        lower, upper = self._factors()
        return torch.take_along_dim(lower @ upper, self.permutation.unsqueeze(-1), -2)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        columns, restore = to_columns(z, self.batch_shape)
        matrix = self.matrix().reshape(-1, self.features, self.features)
        x = restore(matrix @ columns) + self.shift
        return x, constant_log_det(self.log_scale.sum(-1), x)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        columns, restore = to_columns(x - self.shift, self.batch_shape)
        back = self.permutation.argsort(-1).reshape(-1, self.features, 1)
        columns = torch.take_along_dim(columns, back, 1)
        lower, upper = (f.reshape(-1, self.features, self.features) for f in self._factors())
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        z = restore(torch.linalg.solve_triangular(upper, columns, upper=True))
        return z, constant_log_det(-self.log_scale.sum(-1), z)
