"""Monotone maps of one number; a conditioner computes their parameters."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import check_positive


class Univariate(Protocol):
    """A monotone map of features ``(*, D, N)`` with parameters ``(*, D, P, N)``.

    The rows are the last dimension, so an operation on one parameter runs along memory.

    A class needs ``parameters`` (*P*), ``networks`` (the number of separate networks that compute
    them in a coupling), and both directions. Each direction returns the value and the
    log-derivative, ``(*, D, N)``.
    """

    parameters: int
    networks: int

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]: ...


class ShiftAndScale:
    r"""The affine map :math:`x = z\, e^{s} + t`, with :math:`|s|` below ``bound``.

    The log-scale is :math:`s = b \tanh(\hat s / b)`, the identity near zero. The bound keeps the
    density finite for rows far from the data.

    Arguments:
        bound: the largest log-scale *b*.
    """

    parameters = 2
    networks = 2  # s(.) and t(.) of the thesis

    def __init__(self, bound: float) -> None:
        if not bound > 0:
            raise ValueError(f"bound is {bound}; the largest log-scale must be above zero")
        self.bound = bound

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        # The order of a coupling's output, so that no gradient is copied.
        raw, shift = theta.unbind(-2)
        log_scale = self.bound * torch.tanh(raw / self.bound)
        x = z * log_scale.exp() + shift
        return x, log_scale if log_scale.shape == x.shape else log_scale.expand_as(x)

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = theta.unbind(-2)
        log_slope = -self.bound * torch.tanh(raw / self.bound)
        z = (x - shift) * log_slope.exp()
        return z, log_slope if log_slope.shape == z.shape else log_slope.expand_as(z)


class RationalQuadratic:
    r"""A monotone spline of rational quadratics on :math:`[-B, B]`, the identity outside.

    Arguments:
        bins: number of pieces.
        bound: the number *B*; outside the map is the identity (linear tails).

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.
    """

    networks = 1
    smallest_bin = 1e-3
    smallest_slope = 1e-3

    def __init__(self, bins: int, bound: float) -> None:
        check_positive("bins", bins)
        if bins * self.smallest_bin >= 1 or not bound > 0:
            raise ValueError(
                f"bins is {bins} and bound is {bound}; expected fewer than "
                f"{round(1 / self.smallest_bin)} bins and a bound above zero"
            )
        self.bins = bins
        self.bound = bound
        self.parameters = 3 * bins - 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def _pieces(
        self, theta: Tensor, value: Tensor, by_height: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return lower knot (z, x), width, height and both slopes of the piece of a value."""
        widths, heights, slopes = theta.split((self.bins, self.bins, self.bins - 1), -2)
        room = 1 - self.smallest_bin * self.bins
        widths, heights = (
            2 * self.bound * (self.smallest_bin + room * raw.softmax(-2))
            for raw in (widths, heights)
        )
        # softplus(raw + offset) is 1 at raw = 0, as is the slope of the tails
        offset = math.log(math.expm1(1 - self.smallest_slope))
        slopes = self.smallest_slope + F.softplus(slopes + offset)
        with torch.no_grad():  # the index of the piece has no gradient
            edges = (heights if by_height else widths)[..., :-1, :].cumsum(-2) - self.bound
            past = value.unsqueeze(-2) >= edges
            here = F.pad(past, (0, 0, 1, 0), value=True) & ~F.pad(past, (0, 0, 0, 1), value=False)
            past, here = past.to(theta.dtype), here.to(theta.dtype)
        # Masked sums replace a gather, because their gradient is a product and no scatter.
        z0 = (widths[..., :-1, :] * past).sum(-2) - self.bound
        x0 = (heights[..., :-1, :] * past).sum(-2) - self.bound
        width, height = (widths * here).sum(-2), (heights * here).sum(-2)
        d0 = (slopes * here[..., 1:, :]).sum(-2) + here[..., 0, :]
        d1 = (slopes * here[..., :-1, :]).sum(-2) + here[..., -1, :]
        return z0, x0, width, height, d0, d1

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = torch.broadcast_tensors(z, theta[..., 0, :])
        inside = z.abs() < self.bound
        safe = z.clamp(-self.bound, self.bound)
        z0, x0, width, height, d0, d1 = self._pieces(theta, safe, by_height=False)
        mean_slope = height / width
        t = ((safe - z0) / width).clamp(0, 1)
        x = x0 + height * (mean_slope * t * t + d0 * t * (1 - t)) / self._denominator(
            t, mean_slope, d0, d1
        )
        log_slope = self._log_slope(t, mean_slope, d0, d1)
        return torch.where(inside, x, z), torch.where(inside, log_slope, torch.zeros_like(z))

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = torch.broadcast_tensors(x, theta[..., 0, :])
        inside = x.abs() < self.bound
        safe = x.clamp(-self.bound, self.bound)
        z0, x0, width, height, d0, d1 = self._pieces(theta, safe, by_height=True)
        mean_slope = height / width
        rise = safe - x0
        bend = rise * (d0 + d1 - 2 * mean_slope)
        a = height * (mean_slope - d0) + bend
        b = height * d0 - bend
        c = -mean_slope * rise
        # The root in [0, 1] of a t² + b t + c, in the form without cancellation: a is positive
        # where b is negative. Rounding can take the discriminant or the root out of range.
        tiny = torch.finfo(x.dtype).tiny
        root = (b * b - 4 * a * c).clamp_min(tiny).sqrt()
        falling = b < 0
        t = torch.where(falling, root - b, -2 * c) / torch.where(falling, 2 * a, b + root)
        t = t.clamp(0, 1)
        z = z0 + t * width
        log_slope = self._log_slope(t, mean_slope, d0, d1)
        return torch.where(inside, z, x), torch.where(inside, -log_slope, torch.zeros_like(x))

    @staticmethod
    def _denominator(t: Tensor, mean_slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        return mean_slope + (d0 + d1 - 2 * mean_slope) * t * (1 - t)

    def _log_slope(self, t: Tensor, mean_slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        numerator = d1 * t * t + 2 * mean_slope * t * (1 - t) + d0 * (1 - t) * (1 - t)
        denominator = self._denominator(t, mean_slope, d0, d1)
        return 2 * mean_slope.log() + numerator.log() - 2 * denominator.log()
