"""Activation normalisation: one scale and shift for each channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms.base import constant_log_det
from pyro_vmonf.transforms.image import ImageTransform


class ActNorm(ImageTransform):
    r"""The map :math:`x_i = e^{s_i} z_i + b_i` of each channel, :math:`\log|\det| = HW\sum_i s_i`.

    It is the identity at first. :meth:`start_` takes some rows, and gives each channel of each
    component mean zero and variance one at the base. ``fit`` calls it once, before its first step.

    Arguments:
        channels: number of channels *C*.
        batch_shape: one map for each index of this shape.

    References:
        Kingma, Dhariwal (2018), Glow: Generative Flow with Invertible 1x1 Convolutions,
        arXiv:1807.03039.

    Example:
        >>> norm, x = ActNorm(2), 3 + 5 * torch.randn(100, 2, 4, 4)
        >>> z = norm.start_(x)
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1).abs() < 1e-3)
        (True, True)
    """

    started: Tensor
    batched_buffers = ()

    def __init__(self, channels: int, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=batch_shape)
        self.channels = check_positive("channels", channels)
        self.log_scale = nn.Parameter(torch.zeros(*self.batch_shape, channels))
        self.shift = nn.Parameter(torch.zeros(*self.batch_shape, channels))
        self.register_buffer("started", torch.tensor(False))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Return to the identity, and wait for another start."""
        self.log_scale.zero_()
        self.shift.zero_()
        self.started.fill_(False)

    @torch.no_grad()
    def start_(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if not self.started:
            own = x.new_ones(()) if weight is None else weight.to(torch.float64)
            shape = torch.broadcast_shapes(x.shape[:-3], self.batch_shape, own.shape)
            batch = (1,) * (len(shape) - len(self.batch_shape)) + tuple(self.batch_shape)
            rows = [i for i in range(len(shape)) if batch[i] == 1]
            maps = x.expand(*shape, *x.shape[-3:]).double()
            share = own.to(maps).expand(shape)
            share = (share / share.sum(rows, keepdim=True).clamp_min(1e-300))[..., None]
            mean = (maps.mean((-1, -2)) * share).sum(rows, keepdim=True)
            square = (maps - mean[..., None, None]).square().mean((-1, -2))
            variance = (square * share).sum(rows, keepdim=True)
            self.shift.copy_(mean.reshape(self.shift.shape))
            # A constant channel keeps its scale.
            rounding = (torch.finfo(torch.float32).eps * mean).square()
            scale = torch.where(variance > rounding, variance, 1.0).sqrt()
            self.log_scale.copy_(scale.log().reshape(self.shift.shape))
            self.started.fill_(True)
        return self.inverse_and_log_det(x)[0]

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = self.log_scale.exp()[..., None, None] * z + self.shift[..., None, None]
        return x, self._log_det(x)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self.shift[..., None, None]) * torch.exp(-self.log_scale)[..., None, None]
        return z, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        pixels = x.shape[-1] * x.shape[-2]
        return constant_log_det(pixels * self.log_scale.sum(-1), x, 3)
