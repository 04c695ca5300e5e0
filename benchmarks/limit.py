"""The limit: mixtures of flows written out by hand for one architecture, K on the left throughout.

Nothing here is general, and nothing of Pyro is in it. Each function returns the log-density
``(K, N)`` of rows under K flows, in as few operations as the architecture allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.configurations import BINS, BOUND, Configuration

LOG_TWO_PI = math.log(2 * math.pi)


class Couplings(nn.Module):
    """Alternating couplings ``(K, features, N)``; the two halves never meet in one tensor."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.networks = 2 if c.family == "affine" else 1
        self.outputs = 1 if c.family == "affine" else 3 * BINS - 1
        self.components, self.hidden = c.components, c.hidden
        self.move = affine if c.family == "affine" else spline
        half, k, n = c.features // 2, c.components, self.networks
        self.half = half
        self.base = MixtureBase(c) if c.gaussians else None
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        self.first_bias, self.second_bias = nn.ParameterList(), nn.ParameterList()
        for _ in range(c.blocks):
            self.first.append(torch.randn(k, n * c.hidden, half) / half**0.5)
            self.first_bias.append(torch.zeros(k, n * c.hidden, 1))
            self.second.append(0.1 * torch.randn(k * n, half * self.outputs, c.hidden) / c.hidden)
            self.second_bias.append(torch.zeros(k * n, half * self.outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        k, n, h = self.components, self.networks, self.hidden
        x = x.mT.contiguous()
        passive, active = (half.expand(k, -1, -1) for half in (x[0::2], x[1::2]))
        total: Tensor | float = 0.0
        for w1, b1, w2, b2 in zip(
            self.first, self.first_bias, self.second, self.second_bias, strict=True
        ):
            units = torch.baddbmm(b1, w1, passive).relu_()
            theta = torch.baddbmm(b2, w2, units.view(k * n, h, -1)).unflatten(0, (k, n))
            moved, log_slope = self.move(active, theta, self.half)
            total = total + log_slope
            passive, active = moved, passive
        if self.base is not None:
            return total + self.base(torch.cat((passive, active), 1))
        squares = passive.square().sum(1) + active.square().sum(1)
        return total - 0.5 * (squares + 2 * self.half * LOG_TWO_PI)


class MixtureBase(nn.Module):
    """The log-density ``(K, N)`` of K mixtures of Gaussians at columns ``(K, features, N)``."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        k, m, d = c.components, c.gaussians, c.features
        self.logits = nn.Parameter(torch.zeros(k, m))
        self.loc = nn.Parameter(torch.randn(k, m, d))
        self.log_scale = nn.Parameter(torch.zeros(k, m, d))
        self.lower = nn.Parameter(torch.zeros(k, m, d, d))

    def forward(self, z: Tensor) -> Tensor:
        k, m, d = self.loc.shape
        whitening = self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        shift = -(whitening @ self.loc.unsqueeze(-1)).view(k, m * d, 1)
        moved = torch.baddbmm(shift, whitening.view(k, m * d, d), z).view(k, m, d, -1)
        constants = self.logits.log_softmax(-1) + self.log_scale.sum(-1) - 0.5 * d * LOG_TWO_PI
        return (constants.unsqueeze(-1) - 0.5 * moved.square().sum(2)).logsumexp(1)


def affine(x: Tensor, theta: Tensor, _: int) -> tuple[Tensor, Tensor]:
    """Move x towards the base."""
    raw, shift = theta.unbind(1)
    scale = BOUND * torch.tanh(raw / BOUND)
    return (x - shift) * torch.exp(-scale), -scale.sum(1)


def spline(x: Tensor, theta: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Move x towards the base by rational-quadratic splines."""
    theta = theta.squeeze(1).unflatten(1, (half, -1))
    widths, heights, slopes = theta.split((BINS, BINS, BINS - 1), 2)
    inside = x.abs() < BOUND
    safe = x.clamp(-BOUND, BOUND)
    widths = 2 * BOUND * (1e-3 + (1 - 1e-3 * BINS) * widths.softmax(2))
    heights = 2 * BOUND * (1e-3 + (1 - 1e-3 * BINS) * heights.softmax(2))
    slopes = 1e-3 + F.softplus(slopes + math.log(math.expm1(1 - 1e-3)))
    with torch.no_grad():
        past = (safe.unsqueeze(2) >= heights[:, :, :-1].cumsum(2) - BOUND).to(x.dtype)
        here = F.pad(past, (0, 0, 1, 0), value=1.0) - F.pad(past, (0, 0, 0, 1))
    z0 = (widths[:, :, :-1] * past).sum(2) - BOUND
    x0 = (heights[:, :, :-1] * past).sum(2) - BOUND
    width, height = (widths * here).sum(2), (heights * here).sum(2)
    d0 = (slopes * here[:, :, 1:]).sum(2) + here[:, :, 0]
    d1 = (slopes * here[:, :, :-1]).sum(2) + here[:, :, -1]
    mean = height / width
    rise = safe - x0
    bend = rise * (d0 + d1 - 2 * mean)
    a, b, c = height * (mean - d0) + bend, height * d0 - bend, -mean * rise
    t = -2 * c / (b + (b * b - 4 * a * c).clamp_min(1e-30).sqrt())
    s = t * (1 - t)
    numerator = d1 * t * t + 2 * mean * s + d0 * (1 - t) * (1 - t)
    log_slope = 2 * (1 + (d0 + d1 - 2 * mean) * s / mean).log() - numerator.log()
    zero = log_slope.new_zeros(())
    return torch.where(inside, z0 + t * width, x), torch.where(inside, log_slope, zero).sum(1)


class Masked(nn.Module):
    """A MAF of one hidden layer: two masked products a block, and nothing else of that size."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        k, d, h = c.components, c.features, c.hidden
        self.features, self.components = d, k
        units = 1 + torch.arange(h) * (d - 1) // h
        rank = torch.arange(1, d + 1)
        self.register_buffer("into", (units[:, None] >= rank).float())
        self.register_buffer("out", (rank[:, None] > units).float().repeat(2, 1))
        self.first, self.second = nn.ParameterList(), nn.ParameterList()
        self.first_bias, self.second_bias = nn.ParameterList(), nn.ParameterList()
        for _ in range(c.blocks):
            self.first.append(torch.randn(k, h, d) / d**0.5)
            self.first_bias.append(torch.zeros(k, h, 1))
            self.second.append(0.1 * torch.randn(k, 2 * d, h) / h**0.5)
            self.second_bias.append(torch.zeros(k, 2 * d, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = x.mT.contiguous().expand(self.components, -1, -1)
        total: Tensor | float = 0.0
        for w1, b1, w2, b2 in zip(
            self.first, self.first_bias, self.second, self.second_bias, strict=True
        ):
            units = torch.baddbmm(b1, w1 * self.into, z).relu_()
            theta = torch.baddbmm(b2, w2 * self.out, units).unflatten(1, (2, -1))
            z, log_slope = affine(z, theta, 0)
            z = z.flip(1)
            total = total + log_slope
        return total - 0.5 * (z.square().sum(1) + self.features * LOG_TWO_PI)


def bank(c: Configuration) -> nn.Module:
    """Return the hand-written bank of a configuration."""
    return Masked(c) if c.family == "maf" else Couplings(c)


def products(c: Configuration, device: str) -> Callable[[], None]:
    """Return a step's matrix products alone, forwards and both ways back."""
    k, n, d, h = c.components, c.rows, c.features, c.hidden
    x, units = torch.randn(k, d, n, device=device), torch.randn(k, h, n, device=device)
    out = torch.randn(k, 2 * d, n, device=device)
    w1, w2 = torch.randn(k, h, d, device=device), torch.randn(k, 2 * d, h, device=device)

    def step() -> None:
        for _ in range(c.blocks):
            torch.bmm(w1, x)
            torch.bmm(w2, units)
            torch.bmm(w2.mT, out)
            torch.bmm(out, units.mT)
            torch.bmm(w1.mT, units)
            torch.bmm(units, x.mT)

    return step
