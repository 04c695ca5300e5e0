"""A change of the order of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vmonf.checks import check_positive
from pyro_vmonf.transforms.base import FlowTransform


class Permutation(FlowTransform):
    r"""A fixed permutation :math:`x_i = z_{\sigma(i)}`, with log-determinant zero.

    Arguments:
        features: number of features *D*.
        order: the permutation σ of ``range(D)``; random if ``None``.

    Raises:
        ValueError: if ``order`` is no permutation of ``range(features)``.

    Example:
        >>> Permutation(3, order=(2, 0, 1))(torch.tensor([10.0, 20.0, 30.0]))
        tensor([30., 10., 20.])
    """

    order: Tensor

    def __init__(self, features: int, *, order: Sequence[int] | Tensor | None = None) -> None:
        super().__init__()
        self.features = check_positive("features", features)
        chosen = torch.randperm(features) if order is None else torch.as_tensor(order)
        if sorted(chosen.tolist()) != list(range(features)):
            raise ValueError(
                f"order is {chosen.tolist()}; expected a permutation of 0 to {features - 1}"
            )
        self.register_buffer("order", chosen)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.index_select(-1, self.order), z.new_zeros(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order.argsort()), x.new_zeros(x.shape[:-1])
