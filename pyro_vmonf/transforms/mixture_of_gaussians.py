"""A monotone map that makes the density of one number a mixture of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import check_positive

NEWTON_STEPS = 2  # towards data: one has first derivatives, two have those up to the third


class MixtureOfGaussians:
    r"""The map under which a standard normal becomes a mixture of *M* Gaussians.

    .. math::
        z = \Phi^{-1}\Big(\sum_m w_m \Phi\big(\tfrac{x - \mu_m}{\sigma_m}\big)\Big), \qquad
        \frac{dz}{dx} = \frac{\sum_m w_m N(x; \mu_m, \sigma_m)}{N(z; 0, 1)}

    The map computes both tails as logarithms, so *z* is exact far from the centre. Bisection
    between bounds inverts the map towards data, and Newton steps carry its derivatives, up to the
    third. At zero parameters the mixture has mean zero and variance one.

    Arguments:
        mixtures: number of Gaussians *M*.
        bound: the largest log-scale.

    Raises:
        ValueError: if there are no Gaussians, or the bound is not positive.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked Autoregressive Flow for Density Estimation,
        arXiv:1705.07057.

    Example:
        >>> one = MixtureOfGaussians(1, bound=5.0)
        >>> z, log_slope = one.inverse(torch.tensor([[2.0]]), torch.zeros(1, 3, 1))
        >>> round(float(z), 4), abs(float(log_slope)) < 1e-4
        (2.0, True)
    """

    networks = 1

    def __init__(self, mixtures: int, bound: float) -> None:
        self.mixtures = check_positive("mixtures", mixtures)
        if not 0 < bound < math.inf:
            raise ValueError(f"bound is {bound}; the largest log-scale must be above zero")
        self.bound = bound
        self.parameters = 3 * mixtures

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales ``(*, D, M, N)``.

        Raises:
            TypeError: if they are of half precision.
        """
        if theta.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the mixtures are in {theta.dtype}, in which torch has no tails of a normal; keep "
                "them in float32"
            )
        logits, means, raw = theta.split(self.mixtures, -2)
        # Different means at the start: equal Gaussians have equal gradients.
        apart = torch.linspace(-0.8, 0.8, self.mixtures, dtype=theta.dtype, device=theta.device)
        apart = apart if self.mixtures > 1 else torch.zeros_like(apart)
        narrow = 0.5 * torch.log1p(-apart.square().mean())
        log_scale = self.bound * torch.tanh(raw / self.bound) + narrow
        return logits.log_softmax(-2), means + apart[:, None], log_scale

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_weight, mean, log_scale = self._unpack(theta)
        u = (x.unsqueeze(-2) - mean) * torch.exp(-log_scale)
        # Far away squares overflow: the density is zero there, and the value the largest with one.
        farthest = torch.finfo(u.dtype).max ** 0.5 / 2
        lost = (u.detach().abs() > farthest).all(-2)
        edge = farthest * u.detach()[..., 0, :].sign()
        u = u.masked_fill(lost.unsqueeze(-2), 0.0)
        with torch.no_grad():
            left = (log_weight.exp() * torch.special.ndtr(u)).sum(-2) < 0.5
        v = torch.where(left.unsqueeze(-2), u, -u)
        log_below, log_hazard = _tail(v)
        log_mass = torch.logsumexp(log_weight + log_below, -2)
        quantile: Tensor = _Quantile.apply(log_mass)  # type: ignore[no-untyped-call]
        z = torch.where(left, quantile, -quantile)
        # The slope is a mean of hazards over that of z: no two large numbers cancel.
        log_share = log_weight + log_below - log_mass.unsqueeze(-2)
        slope = torch.logsumexp(log_share + log_hazard - log_scale, -2) - _tail(quantile)[1]
        return torch.where(lost, edge, z), torch.where(lost, -torch.inf, slope)

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            log_weight, mean, log_scale = self._unpack(theta)
            scale, left = log_scale.exp(), z < 0
            wanted = torch.special.log_ndtr(-z.abs())
            # The quantile of the mixture lies between those of its Gaussians.
            quantiles = mean + scale * z.unsqueeze(-2)
            low, high = quantiles.amin(-2), quantiles.amax(-2)
            for _ in range(int(-math.log2(torch.finfo(z.dtype).eps)) + 6):
                middle = (low + high) / 2
                below, above = _log_tails(log_weight, (middle.unsqueeze(-2) - mean) / scale)
                short = torch.where(left, below < wanted, above > wanted)
                low, high = torch.where(short, middle, low), torch.where(short, high, middle)
            start = (low + high) / 2
        x = start
        for _ in range(NEWTON_STEPS):
            near, log_slope = self.inverse(x, theta)
            x = x - (near - z) * torch.exp(-log_slope)
        return x, -self.inverse(x, theta)[1]


def _log_tails(log_weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of a mixture's mass below and above, ``(*, D, N)``."""
    below = torch.logsumexp(log_weight + torch.special.log_ndtr(u), -2)
    above = torch.logsumexp(log_weight + torch.special.log_ndtr(-u), -2)
    return below, above


def _tail(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for a standard normal, the logarithms of the mass below and of the hazard there."""
    found: tuple[Tensor, Tensor] = _Tail.apply(u)  # type: ignore[no-untyped-call]
    return found


class _Tail(torch.autograd.Function):
    """The logarithms of mass below, and of density over that mass, with exact derivatives.

    The derivative of torch's own ``log_ndtr`` loses all digits far below zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> tuple[Tensor, Tensor]:
        below = torch.special.log_ndtr(u)
        # Far above zero the mass is one.
        density = -0.5 * u.square() - 0.5 * math.log(2 * math.pi)
        return below, torch.where(u > 5, density - below, -_ratio(u).log())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, of_below: Tensor, of_hazard: Tensor) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        excess = _excess(u)
        return of_below * (excess - u) - of_hazard * excess

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        excess = _excess(u)
        return tangent * (excess - u), -tangent * excess


def _excess(u: Tensor) -> Tensor:
    """Return the hazard h of a standard normal plus u: by a series where the two cancel."""
    switch = -12.0 if u.dtype == torch.float32 else -60.0
    far = u.clamp_max(switch)
    s = far.square().reciprocal()
    series = (s * (2 - s * (10 - 74 * s)) - 1) / far
    return torch.where(u < switch, series, _ratio(u.clamp_min(switch)).reciprocal() + u)


class _Quantile(torch.autograd.Function):
    """The quantile of a standard normal for the logarithm of a mass of at most a half.

    The logarithm of the mass is concave and the start lies at the left, so Newton steps converge.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(log_mass: Tensor) -> Tensor:
        z = -torch.sqrt(-2 * log_mass)
        for _ in range(7):
            z = z - (torch.special.log_ndtr(z) - log_mass) * _ratio(z)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        return grad * _ratio(z)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        return tangent * _ratio(z)


def _ratio(z: Tensor) -> Tensor:
    """Return mass below over density of a standard normal."""
    return math.sqrt(math.pi / 2) * torch.special.erfcx(-z / math.sqrt(2))
