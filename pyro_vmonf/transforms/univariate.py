"""Monotone maps of one number; a conditioner computes their parameters."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms import spline


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
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is {bound}; the largest log-scale must be above zero, finite")
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
        if bins * self.smallest_bin >= 1 or not 0 < bound < math.inf:
            raise ValueError(
                f"bins is {bins} and bound is {bound}; expected fewer than "
                f"{round(1 / self.smallest_bin)} bins and a bound above zero"
            )
        self.bins = bins
        self.bound = bound
        self.parameters = 3 * bins - 1

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    @property
    def box(self) -> spline.Box:
        """The square in which the map is not the identity."""
        return spline.Box(self.bins, self.bound, self.smallest_bin, self.smallest_slope)

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return spline.forward(*self._together(z, theta), self.box)

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        return spline.inverse(*self._together(x, theta), self.box)

    @staticmethod
    def _together(value: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and parameters with one spline for each value."""
        value, _ = torch.broadcast_tensors(value, theta[..., 0, :])
        return value, theta.expand(*value.shape[:-1], theta.shape[-2], value.shape[-1])
