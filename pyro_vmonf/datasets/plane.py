"""Pinwheel and two circles of the thesis, with their exact densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import as_tensor, check_number, check_positive


class Pinwheel:
    r"""The pinwheel of W wings, and its exact density.

    Radius, tangent and wing are r ~ N(1, 0.3²), t ~ N(0, 0.05²) and k uniform. The angle is
    :math:`a = 2\pi k / W + \mathrm{rate}\, e^r`, and

    .. math::
        x = \tfrac12 (r \cos a + t \sin a,\; -r \sin a + t \cos a), \qquad
        |\det| = \tfrac14\, |1 + t\,\mathrm{rate}\,e^r|

    The density of a point is a sum over the wings and over each radius r that gives the point.
    Radii within 6.5 standard deviations count. Log-densities that are some 20 nats below the
    largest one are therefore rough, and far outside they are a constant of about -62.

    Arguments:
        wings: number of wings *W*.
        rate: angle of a wing per :math:`e^r`.

    Raises:
        ValueError: if there is no wing.

    References:
        Johnson, Duvenaud, Wiltschko, Datta, Adams (2016), Composing graphical models with neural
        networks for structured representations and fast inference, arXiv:1603.06277.

    Example:
        >>> Pinwheel(wings=3).log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    radius, radial_std, tangential_std = 1.0, 0.3, 0.05

    def __init__(self, wings: int = 5, rate: float = 0.4) -> None:
        self.wings = check_positive("wings", wings)
        if isinstance(rate, str | bool) or not math.isfinite(rate):
            raise ValueError(f"rate is {rate!r}; it must be a finite number")
        self.rate = rate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def sample(self, per_wing: int) -> tuple[Tensor, Tensor]:
        """Draw ``per_wing`` points of each wing: points ``(N, 2)`` and wings ``(N,)``."""
        per_wing = check_positive("per_wing", per_wing, minimum=0)
        wing = torch.arange(self.wings).repeat_interleave(per_wing)
        r = self.radius + self.radial_std * torch.randn(len(wing))
        t = self.tangential_std * torch.randn(len(wing))
        angle = 2 * math.pi * wing / self.wings + self.rate * r.exp()
        cos, sin = angle.cos(), angle.sin()
        return 0.5 * torch.stack((r * cos + t * sin, -r * sin + t * cos), -1), wing

    def log_prob(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the log-density ``(N,)`` of points ``(N, 2)``, computed in float64."""
        x, size = _points(x), check_positive("chunk_size", chunk_size)
        return torch.cat([self._log_joint(c).logsumexp(-1) for c in x.split(size)]).to(x)

    def posterior(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the probability ``(N, W)`` of each wing."""
        x, size = _points(x), check_positive("chunk_size", chunk_size)
        return torch.cat([self._log_joint(c).softmax(-1) for c in x.split(size)]).to(x)

    def _log_joint(self, x: Tensor) -> Tensor:
        """Return the log-density of each wing ``(N, W)``."""
        far = x.isinf().any(-1, keepdim=True)
        row, wing, r, t = self._roots(2 * x.double().masked_fill(far, 0.0))
        log_density = (
            torch.distributions.Normal(self.radius, self.radial_std).log_prob(r)
            + torch.distributions.Normal(0.0, self.tangential_std).log_prob(t)
            - torch.log(0.25 * (1 + t * self.rate * r.exp()).abs())
            - math.log(self.wings)
        )
        # The sum over the roots of a point and a wing, relative to the largest.
        flat = row * self.wings + wing
        size = len(x) * self.wings
        top = torch.full((size,), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, flat, log_density, "amax")
        total = torch.zeros(size, dtype=torch.float64)
        total = total.scatter_add(0, flat, (log_density - top[flat]).exp())
        # A point without a root lies outside the grid and has the density of its edge.
        floor = -0.5 * 6.5**2 * 2 - 20.0
        # So has one whose only root found is a branch far off: others may lie outside the grid.
        joint = torch.where(total > 0, top + total.clamp_min(1e-300).log(), floor).clamp_min(floor)
        joint = joint.reshape(len(x), self.wings).masked_fill(far, -torch.inf)
        return joint.masked_fill(x.isnan().any(-1, keepdim=True), torch.nan)

    def _roots(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return row, wing, r and t of each root r of v₀ cos a − v₁ sin a − r = 0."""
        start = 2 * math.pi * torch.arange(self.wings, dtype=torch.float64) / self.wings

        def angles(r: Tensor, wing: Tensor) -> tuple[Tensor, Tensor]:
            a = wing + self.rate * r.exp()
            return a.cos(), a.sin()

        def crossing(r: Tensor, v0: Tensor, v1: Tensor, wing: Tensor) -> Tensor:
            cos, sin = angles(r, wing)
            return v0 * cos - v1 * sin - r

        def slope(r: Tensor, v0: Tensor, v1: Tensor, wing: Tensor) -> Tensor:
            cos, sin = angles(r, wing)
            return -1 - (v0 * sin + v1 * cos) * self.rate * r.exp()

        # The grid covers 6.5 standard deviations of r, and turns by 1/4 of a radian a step at most.
        reach = 6.5 * self.radial_std
        lowest, highest = self.radius - reach, self.radius + reach
        steps = abs(self.rate) * math.exp(highest) * (highest - lowest) * 4
        grid = torch.linspace(lowest, highest, max(161, math.ceil(steps)), dtype=torch.float64)
        cos, sin = angles(grid, start[:, None])
        v0, v1 = v[:, :1, None], v[:, 1:, None]
        below = v0 * cos - v1 * sin <= grid  # (N, W, grid)
        falling = v0 * sin + v1 * cos >= -1 / (self.rate * grid.exp())
        changes = below[..., :-1] != below[..., 1:]
        # Two roots may lie in one step, on either side of a turning point.
        turns = ~changes & (falling[..., :-1] != falling[..., 1:])
        row, wing, left = turns.nonzero().unbind(1)
        own = v[row, 0], v[row, 1], start[wing]
        turn = _bisected(slope, grid[left], grid[left + 1], own)
        twice = (crossing(turn, *own) <= 0) != below[row, wing, left]
        row, wing, left, turn = row[twice], wing[twice], left[twice], turn[twice]
        rows, wings, at = changes.nonzero().unbind(1)
        low = [grid[at], grid[left], turn]
        high = [grid[at + 1], turn, grid[left + 1]]
        row, wing = torch.cat((rows, row, row)), torch.cat((wings, wing, wing))
        own = v[row, 0], v[row, 1], start[wing]
        r = _bisected(crossing, torch.cat(low), torch.cat(high), own)
        cos, sin = angles(r, own[2])
        return row, wing, r, own[0] * sin + own[1] * cos


def _points(x: Any) -> Tensor:
    """Return points ``(N, 2)`` as floats."""
    x = as_tensor("x", x)
    if x.dim() != 2 or x.shape[1] != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected points (N, 2)")
    return x if x.is_floating_point() else x.double()


def _bisected(
    function: Callable[..., Tensor], low: Tensor, high: Tensor, arguments: tuple[Tensor, ...]
) -> Tensor:
    """Return a root of a function in each interval, at whose ends its signs differ."""
    first = function(low, *arguments) <= 0
    for _ in range(50):
        middle = (low + high) / 2
        before = (function(middle, *arguments) <= 0) == first
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2


class TwoCircles:
    r"""Two concentric circles with radial noise, and their exact density.

    .. math::
        p(x) = \tfrac12 \sum_k
            \frac{N(|x|; R_k, \epsilon^2) + N(-|x|; R_k, \epsilon^2)}{2 \pi |x|}

    Arguments:
        radii: the two radii, outer first.
        noise: standard deviation ε of the radius.

    Raises:
        ValueError: if they are not two positive radii and a positive noise.

    Example:
        >>> TwoCircles().log_prob(torch.ones(7, 2)).shape
        torch.Size([7])
    """

    def __init__(self, radii: tuple[float, float] = (0.8, 0.4), noise: float = 0.05) -> None:
        if len(radii) != 2:
            raise ValueError(f"radii are {radii}; expected two, the outer one first")
        self.radii = (check_number("a radius", radii[0]), check_number("a radius", radii[1]))
        self.noise = check_number("noise", noise)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def sample(self, per_circle: int) -> tuple[Tensor, Tensor]:
        """Draw ``per_circle`` points of each circle: points ``(N, 2)`` and circles ``(N,)``."""
        per_circle = check_positive("per_circle", per_circle, minimum=0)
        circle = torch.arange(2).repeat_interleave(per_circle)
        radius = torch.tensor(self.radii)[circle] + self.noise * torch.randn(len(circle))
        angle = 2 * math.pi * torch.rand(len(circle))
        return radius[:, None] * torch.stack((angle.cos(), angle.sin()), -1), circle

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(N,)`` of points ``(N, 2)``, computed in float64."""
        x = _points(x)
        radius = x.double().norm(dim=-1, keepdim=True)
        normal = torch.distributions.Normal(
            torch.tensor(self.radii, dtype=torch.float64), self.noise, validate_args=False
        )
        # A negative radius is a point on the opposite side.
        both = torch.cat((normal.log_prob(radius), normal.log_prob(-radius)), -1)
        return (both.logsumexp(-1) - math.log(4 * math.pi) - radius.squeeze(-1).log()).to(x)


def pinwheel(
    wings: int = 5, per_wing: int = 512, rate: float = 0.4, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw points ``(wings·per_wing, 2)`` of a pinwheel and their wings ``(wings·per_wing,)``.

    Arguments:
        wings, rate: as for :class:`Pinwheel`.
        per_wing: points of each wing.
        seed: seed of the points; the global state stays.

    Raises:
        ValueError: if there is no wing.

    Example:
        >>> x, wing = pinwheel(wings=5, per_wing=512, rate=0.4, seed=0)
        >>> x.shape, wing.bincount().tolist()
        (torch.Size([2560, 2]), [512, 512, 512, 512, 512])
    """
    with local_seed(seed):
        return Pinwheel(wings, rate).sample(per_wing)


def two_circles(
    per_circle: int = 512,
    radii: tuple[float, float] = (0.8, 0.4),
    noise: float = 0.05,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw points ``(2·per_circle, 2)`` of two circles and their circles ``(2·per_circle,)``.

    Arguments:
        per_circle: points of each circle.
        radii, noise: as for :class:`TwoCircles`.
        seed: seed of the points; the global state stays.

    Example:
        >>> x, circle = two_circles(per_circle=512, seed=0)
        >>> x.shape
        torch.Size([1024, 2])
    """
    with local_seed(seed):
        return TwoCircles(radii, noise).sample(per_circle)
