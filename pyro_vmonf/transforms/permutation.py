"""Permutations of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.mlp import to_columns
from pyro_vmonf.transforms.base import FlowTransform


class Permutation(FlowTransform):
    r"""A fixed permutation :math:`x_i = z_{\sigma(i)}`, with log-determinant zero.

    Arguments:
        features: number of features *D*.
        order: the permutation σ of ``range(D)``, or one for each index of the batch
            ``(*batch, D)``; random if ``None``.
        batch_shape: one permutation for each index of this shape.

    Raises:
        ValueError: if ``order`` is no permutation of ``range(features)``.

    Example:
        >>> Permutation(3, order=(2, 0, 1))(torch.tensor([10.0, 20.0, 30.0]))
        tensor([30., 10., 20.])
        >>> Permutation(3, batch_shape=(5,))(torch.randn(7, 1, 3)).shape
        torch.Size([7, 5, 3])
    """

    order: Tensor
    batched_buffers = ("order",)

    def __init__(
        self,
        features: int,
        *,
        order: Sequence[int] | Tensor | None = None,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        self.features = check_positive("features", features)
        shape = (*self.batch_shape, features)
        chosen = torch.rand(shape).argsort(-1) if order is None else torch.as_tensor(order)
        if chosen.shape[-1:] != (features,) or not torch.equal(
            chosen.sort(-1).values, torch.arange(features).expand(chosen.shape)
        ):
            raise ValueError(
                f"order is {chosen.tolist()}; expected a permutation of 0 to {features - 1}"
            )
        self.register_buffer("order", chosen.expand(shape).clone())

    def _permuted(self, x: Tensor, order: Tensor) -> Tensor:
        columns, restore = to_columns(x, self.batch_shape)
        return restore(torch.take_along_dim(columns, order.reshape(-1, self.features, 1), 1))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = self._permuted(z, self.order)
        return x, x.new_zeros(x.shape[:-1])

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self._permuted(x, self.order.argsort(-1))
        return z, z.new_zeros(z.shape[:-1])

    def inverse_of_observed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inverse_and_log_det(x)
