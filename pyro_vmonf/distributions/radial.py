r"""Radial laws: how the density of an elliptical distribution falls with the distance.

With :math:`r^2 = (x - \mu)^\top \Sigma^{-1} (x - \mu)` in *d* dimensions

.. math::
    \log p(x) = \text{constant}(d) + \text{kernel}(r^2, d) - \tfrac12 \log|\Sigma|
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Chi2


class NormalLaw:
    r"""The law of Gaussians: :math:`-\frac12 r^2 - \frac d2 \log 2\pi`."""

    variance: float | Tensor = 1.0

    def constant(self, width: int | Tensor) -> float | Tensor:
        """Return the part of the log-density that no point changes."""
        return -0.5 * width * math.log(2 * math.pi)

    def kernel(self, squares: Tensor, width: int | Tensor) -> Tensor:
        """Return the part that falls with the distance."""
        return -0.5 * squares

    def kernel_of(self, z: Tensor, dim: int) -> Tensor:
        """Return the part that falls with the distance, of points along a dimension."""
        return self.kernel(z.square().sum(dim), z.shape[dim])

    def __getitem__(self, index: Any) -> NormalLaw:
        """Return the laws of some parts, or in another shape."""
        return self

    def double(self) -> NormalLaw:
        """Return the law in float64."""
        return self

    def spread(self, squares: Tensor, width: int | Tensor) -> Tensor:
        r"""Return draws of the factor of normal noise for entries that are missing.

        Arguments:
            squares: :math:`r^2` of the entries that are there.
            width: their number.
        """
        return torch.ones_like(squares)


@dataclass(frozen=True)
class StudentLaw(NormalLaw):
    r"""The law of Student's t with :math:`\nu` degrees of freedom.

    .. math::
        \log\frac{\Gamma((\nu + d)/2)}{\Gamma(\nu/2)} - \frac d2 \log(\nu\pi)
        - \frac{\nu + d}2 \log\Big(1 + \frac{r^2}\nu\Big)

    Given some entries the others have a t law again, with *d* degrees of freedom more, and a wider
    one where these lie far out.

    Arguments:
        freedom: :math:`\nu` ``(*, K, M)``.

    Source: Lange, Little, Taylor (1989), Robust statistical modeling using the t distribution.
    """

    freedom: Tensor

    @property
    def variance(self) -> Tensor:  # type: ignore[override]
        """The variance in each direction, infinite for two degrees of freedom or fewer."""
        nu = self.freedom
        return torch.where(nu > 2, nu / (nu - 2).clamp(min=1e-12), torch.inf)

    def constant(self, width: int | Tensor) -> Tensor:
        half = self.freedom / 2
        gammas = torch.lgamma(half + width / 2) - torch.lgamma(half)
        return gammas - 0.5 * width * (math.pi * self.freedom).log()

    def kernel(self, squares: Tensor, width: int | Tensor) -> Tensor:
        return -0.5 * (self.freedom + width) * torch.log1p(squares / self.freedom)

    def kernel_of(self, z: Tensor, dim: int) -> Tensor:
        # A density falls so slowly that it is there where squares overflow.
        largest = z.detach().abs().amax(dim, keepdim=True)
        unit = torch.where((largest > FAR) & largest.isfinite(), largest, 1.0)
        squares, unit = (z / unit).square().sum(dim), unit.squeeze(dim)
        far = unit.log() + 0.5 * (squares / self.freedom + unit**-2).log()
        near = self.kernel(torch.where(unit > 1, 0.0, squares), z.shape[dim])
        return torch.where(unit > 1, -(self.freedom + z.shape[dim]) * far, near)

    def __getitem__(self, index: Any) -> StudentLaw:
        return StudentLaw(self.freedom[index])

    def double(self) -> StudentLaw:
        return StudentLaw(self.freedom.double())

    def spread(self, squares: Tensor, width: int | Tensor) -> Tensor:
        total = self.freedom + width + torch.zeros_like(squares)
        return ((self.freedom + squares) / Chi2(total, validate_args=False).sample()).sqrt()


FAR = 1e9  # up to which squares of float32, and their sum, are finite
NORMAL = NormalLaw()
