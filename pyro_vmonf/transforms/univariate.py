"""Monotone maps of one number, whose parameters a conditioner chooses."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmonf.checks import check_positive


class Univariate(Protocol):
    """A monotone map of each feature, given its parameters ``(*, D, P)``.

    To implement one, state ``parameters`` (*P*) and ``networks`` (how many separate networks share
    the work of producing them in a coupling), and write both directions; each returns the value
    and the log-derivative, ``(*, D)``.
    """

    parameters: int
    networks: int

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]: ...


class ShiftAndScale:
    r"""The affine map :math:`x = z\, e^{s} + t`, with :math:`|s|` below ``bound``.

    The log-scale is :math:`s = b \tanh(\hat s / b)`, the identity near zero; without a bound one
    row far from the data can send a density to infinity.

    Arguments:
        bound: the largest log-scale *b*.
    """

    parameters = 2
    networks = 2  # the thesis's s(.) and t(.)

    def __init__(self, bound: float) -> None:
        if not bound > 0:
            raise ValueError(f"bound is {bound}; the largest log-scale must be above zero")
        self.bound = bound

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = theta.unbind(-1)
        return self.bound * torch.tanh(raw / self.bound), shift

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._unpack(theta)
        x = z * log_scale.exp() + shift
        return x, log_scale.expand_as(x)

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._unpack(theta)
        z = (x - shift) * torch.exp(-log_scale)
        return z, -log_scale.expand_as(z)


class RationalQuadratic:
    r"""A monotone spline of rational quadratics on :math:`[-B, B]`, the identity outside.

    Arguments:
        bins: number of pieces.
        bound: half the width *B* of the box; beyond it the map is the identity (linear tails).

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

    def _knots(self, raw: Tensor) -> Tensor:
        """Positions ``(*, bins + 1)`` of the knots, from -B to B."""
        share = self.smallest_bin + (1 - self.smallest_bin * self.bins) * raw.softmax(-1)
        inner = 2 * self.bound * share[..., :-1].cumsum(-1) - self.bound
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def _pieces(
        self, theta: Tensor, value: Tensor, by_height: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Left and right knot (z, x) and slopes of the piece that each value falls in."""
        theta = theta.expand(*value.shape, theta.shape[-1])
        widths, heights, slopes = theta.split((self.bins, self.bins, self.bins - 1), -1)
        z, x = self._knots(widths), self._knots(heights)
        # softplus(raw + offset) is 1 at raw = 0, as is the slope of the tails
        offset = math.log(math.expm1(1 - self.smallest_slope))
        slope = F.pad(self.smallest_slope + F.softplus(slopes + offset), (1, 1), value=1.0)
        edges = (x if by_height else z)[..., 1:-1].detach()
        left = (value.unsqueeze(-1) >= edges).sum(-1, keepdim=True)
        pair = torch.cat((left, left + 1), -1)
        z0, z1 = z.gather(-1, pair).unbind(-1)
        x0, x1 = x.gather(-1, pair).unbind(-1)
        d0, d1 = slope.gather(-1, pair).unbind(-1)
        return z0, z1, x0, x1, d0, d1

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = torch.broadcast_tensors(z, theta[..., 0])
        inside = z.abs() < self.bound
        safe = z.clamp(-self.bound, self.bound)
        z0, z1, x0, x1, d0, d1 = self._pieces(theta, safe, by_height=False)
        mean_slope = (x1 - x0) / (z1 - z0)
        t = (safe - z0) / (z1 - z0)
        x = x0 + (x1 - x0) * (mean_slope * t * t + d0 * t * (1 - t)) / self._denominator(
            t, mean_slope, d0, d1
        )
        log_slope = self._log_slope(t, mean_slope, d0, d1)
        return torch.where(inside, x, z), torch.where(inside, log_slope, torch.zeros_like(z))

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = torch.broadcast_tensors(x, theta[..., 0])
        inside = x.abs() < self.bound
        safe = x.clamp(-self.bound, self.bound)
        z0, z1, x0, x1, d0, d1 = self._pieces(theta, safe, by_height=True)
        mean_slope = (x1 - x0) / (z1 - z0)
        rise = safe - x0
        bend = rise * (d0 + d1 - 2 * mean_slope)
        a = (x1 - x0) * (mean_slope - d0) + bend
        b = (x1 - x0) * d0 - bend
        c = -mean_slope * rise
        # The root in [0, 1] of a t² + b t + c, in the form that subtracts nothing: a is above zero
        # where b is below. Rounding alone can take the discriminant or the root out of range.
        tiny = torch.finfo(x.dtype).tiny
        root = (b * b - 4 * a * c).clamp_min(tiny).sqrt()
        falling = b < 0
        t = torch.where(falling, root - b, -2 * c) / torch.where(falling, 2 * a, b + root)
        t = t.clamp(0, 1)
        z = z0 + t * (z1 - z0)
        log_slope = self._log_slope(t, mean_slope, d0, d1)
        return torch.where(inside, z, x), torch.where(inside, -log_slope, torch.zeros_like(x))

    @staticmethod
    def _denominator(t: Tensor, mean_slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        return mean_slope + (d0 + d1 - 2 * mean_slope) * t * (1 - t)

    def _log_slope(self, t: Tensor, mean_slope: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        numerator = d1 * t * t + 2 * mean_slope * t * (1 - t) + d0 * (1 - t) * (1 - t)
        denominator = self._denominator(t, mean_slope, d0, d1)
        return 2 * mean_slope.log() + numerator.log() - 2 * denominator.log()
