"""A monotone map that makes one number's density a mixture of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vmonf.checks import check_positive
from pyro_vmonf.shown import arguments_of


class MixtureOfGaussians:
    r"""The map under which a standard normal becomes a mixture of *M* Gaussians.

    .. math::
        z = \Phi^{-1}\Big(\sum_m w_m \Phi\big(\tfrac{x - \mu_m}{\sigma_m}\big)\Big), \qquad
        \frac{dz}{dx} = \frac{\sum_m w_m N(x; \mu_m, \sigma_m)}{N(z; 0, 1)}

    Both tails are followed, so *z* is right far from the centre, up to what a float's smallest
    number is the tail of (13 in float32, 37 in float64); beyond it stays there, and next to the
    base the density is right all the same. Towards data the map is inverted
    by bisection, between bounds that hold the value, and a step of Newton's, which carries the
    gradients. At zero parameters its mean is zero and its variance one.

    Arguments:
        mixtures: number of Gaussians *M*.
        bound: the largest log-scale.

    Raises:
        ValueError: if there are none, or the bound is not above zero.

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
        if not bound > 0:
            raise ValueError(f"bound is {bound}; the largest log-scale must be above zero")
        self.bound = bound
        self.parameters = 3 * mixtures

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def _unpack(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales ``(*, D, M, N)``."""
        logits, means, raw = theta.split(self.mixtures, -2)
        # Apart from the start, or no gradient would ever tell them apart.
        apart = torch.linspace(-0.8, 0.8, self.mixtures, dtype=theta.dtype, device=theta.device)
        apart = apart if self.mixtures > 1 else torch.zeros_like(apart)
        narrow = 0.5 * torch.log1p(-apart.square().mean())
        log_scale = self.bound * torch.tanh(raw / self.bound) + narrow
        return logits.log_softmax(-2), means + apart[:, None], log_scale

    def inverse(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        log_weight, mean, log_scale = self._unpack(theta)
        u = (x.unsqueeze(-2) - mean) * torch.exp(-log_scale)
        log_density = torch.logsumexp(log_weight - log_scale - 0.5 * u.square(), -2)
        z = self._quantile(log_weight.exp(), u)
        return z, log_density + 0.5 * z.square()  # the normalising constants cancel

    @staticmethod
    def _quantile(weight: Tensor, u: Tensor) -> Tensor:
        """Return the normal quantile of a mixture's distribution function, from its nearer tail."""
        below = (weight * torch.special.ndtr(u)).sum(-2)
        above = (weight * torch.special.ndtr(-u)).sum(-2)
        left = below < above
        tail = torch.where(left, below, above).clamp_min(torch.finfo(u.dtype).tiny)
        quantile = torch.special.ndtri(tail)
        return torch.where(left, quantile, -quantile)

    def forward(self, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            log_weight, mean, log_scale = self._unpack(theta)
            weight, scale = log_weight.exp(), log_scale.exp()
            # Where every Gaussian's own quantile is below, or above, so is the mixture's.
            quantiles = mean + scale * z.unsqueeze(-2)
            low, high = quantiles.amin(-2), quantiles.amax(-2)
            digits = -math.log2(torch.finfo(z.dtype).eps)
            for _ in range(int(digits) + 6):
                middle = (low + high) / 2
                found = self._quantile(weight, (middle.unsqueeze(-2) - mean) / scale)
                low, high = (
                    torch.where(found < z, middle, low),
                    torch.where(found < z, high, middle),
                )
            start = (low + high) / 2
        near, log_slope = self.inverse(start, theta)
        x = start - (near - z) * torch.exp(-log_slope.detach())
        return x, -self.inverse(x, theta)[1]
