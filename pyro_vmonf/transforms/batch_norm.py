"""Batch normalisation between the layers of a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms.base import FlowTransform, constant_log_det


class BatchNorm(FlowTransform):
    r"""Batch normalisation on the way from data to base (thesis 3.4.3).

    .. math::
        z = \frac{x - \tilde\mu}{\sqrt{\tilde\sigma^2 + \epsilon}}, \qquad
        \log|\det\partial h^{-1}| = -\tfrac12 \sum_i \log(\tilde\sigma_i^2 + \epsilon)

    In ``train()`` the inverse uses the statistics of the batch, and updates the running ones. In
    ``eval()``, and always from base to data, the layer uses the running ones. Training therefore
    couples the rows of a batch, and only ``eval()`` gives a proper density. Each component has its
    own statistics, which give all rows the same weight. No ready-made bank has this layer.

    Arguments:
        features: number of features *D*.
        momentum: weight of the batch in the running statistics, in (0, 1].
        epsilon: constant added to the variance.
        batch_shape: one set of statistics for each index of this shape.

    Raises:
        ValueError: if momentum or epsilon is out of range; in ``train()`` if a batch has one row.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> transform = BatchNorm(2, momentum=1.0)
        >>> z, _ = transform.inverse_and_log_det(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> transform.running_mean
        tensor([2., 2.])
    """

    running_mean: Tensor
    running_variance: Tensor

    batched_buffers = ("running_mean", "running_variance")

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        self.features = check_positive("features", features)
        if not 0 < momentum <= 1 or not epsilon > 0:
            raise ValueError(
                f"momentum is {momentum} and epsilon is {epsilon}; expected momentum in (0, 1] and "
                "epsilon above zero"
            )
        self.momentum = momentum
        self.epsilon = epsilon
        self.register_buffer("running_mean", torch.zeros(*self.batch_shape, features))
        self.register_buffer("running_variance", torch.ones(*self.batch_shape, features))

    def reset_parameters(self) -> None:
        """Forget the statistics."""
        self.running_mean.zero_()
        self.running_variance.fill_(1.0)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(*batch, D)`` over every dimension that holds rows."""
        batch = (1,) * (x.dim() - 1 - len(self.batch_shape)) + tuple(self.batch_shape)
        rows = [i for i in range(x.dim() - 1) if batch[i] == 1]
        x = x.expand(torch.broadcast_shapes(x.shape, (*batch, self.features)))
        count = math.prod(x.shape[i] for i in rows)
        if count < 2:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, a single row for each component; batch statistics "
                "need two: use larger batches, or eval()"
            )
        mean = x.mean(rows, keepdim=True)
        variance = (x - mean).square().mean(rows, keepdim=True)
        shape = (*self.batch_shape, self.features)
        return mean.reshape(shape), variance.reshape(shape)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            mean, variance = self._batch_statistics(x)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_variance.lerp_(variance, self.momentum)
        variance = variance + self.epsilon
        z = (x - mean) * variance.rsqrt()
        return z, constant_log_det(-0.5 * variance.log().sum(-1), z)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        variance = self.running_variance + self.epsilon
        x = z * variance.sqrt() + self.running_mean
        return x, constant_log_det(0.5 * variance.log().sum(-1), x)
