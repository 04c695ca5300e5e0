"""Mixtures of Student's t that grow with the number of rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf.distributions.radial import StudentLaw
from pyro_vmonf.flows.students import LEAST, MOST
from pyro_vmonf.starts.gaussians import GaussianFit

Array = np.ndarray[Any, Any]
FEWEST_ROWS = 100_000  # of a cluster whose mixture grows; of fewer rows flows learn as much
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000  # rows that end the growth
ROWS_EACH = 256  # rows of a step for each t
FEWEST_OF_A_STEP = 4096
LEAST_GAIN = 0.01  # nats a row that a pass has to bring on held-out rows
RATE_POWER, FIRST_RATE = 0.6, 8  # step s has the rate (s + 8)^-0.6
FREEDOMS = (2.2, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0)  # that Gaussians are compared with
HEAVY = 200.0  # degrees of freedom: if all have more, they are Gaussians
RIDGE = 1e-5  # of the variances, in units in which the rows have unit covariance
FLOOR = 1e-6  # of the variances of the rows, in standardised units
NEGLIGIBLE = 1e-6  # responsibilities that are left out
CHUNK = 16_384  # rows that are scored at once


@dataclass
class _Mixture:
    """M t's: weights, degrees of freedom ``(M,)``, centres ``(M, D)``, scales ``(M, D, D)``."""

    weights: Tensor
    freedom: Tensor
    means: Tensor
    scales: Tensor

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of each t, with its weight, and squared distances ``(N, M)``."""
        width, law = x.shape[1], StudentLaw(self.freedom)
        factors = torch.linalg.cholesky(self.scales)
        unit = torch.eye(width, dtype=factors.dtype)
        whitening = torch.linalg.solve_triangular(factors, unit, upper=False)
        constants = self.weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constants = constants + law.constant(width)
        squares = x.new_empty(len(self.weights), len(x))
        for m, (matrix, mean) in enumerate(zip(whitening.to(x), self.means.to(x), strict=True)):
            torch.sum(((x - mean) @ matrix.T).square_(), 1, out=squares[m])
        kernel = StudentLaw(self.freedom.to(x)).kernel(squares.T, width)
        return constants.to(x) + kernel, squares.T

    def score(self, x: Tensor) -> float:
        """Return the mean log-density of rows in nats."""
        parts = [self.joint(part)[0].logsumexp(1).double().sum() for part in x.split(CHUNK)]
        return float(torch.stack(parts).sum()) / len(x)

    def split(self) -> _Mixture:
        """Return two t's for each one, apart along its longest axis, of the same moments."""
        values, vectors = torch.linalg.eigh(self.scales)
        axis = 0.5 * values[:, -1:].sqrt() * vectors[:, :, -1]
        inside = self.scales - axis.unsqueeze(2) * axis.unsqueeze(1)
        return _Mixture(
            (0.5 * self.weights).repeat(2),
            self.freedom.repeat(2),
            torch.cat((self.means - axis, self.means + axis)),
            inside.repeat(2, 1, 1),
        )

    def with_tails(self, x: Tensor) -> _Mixture:
        """Return t's of the same covariances whose common tail suits rows best; or Gaussians."""
        several = [
            _Mixture(self.weights, torch.full_like(self.freedom, nu), self.means, scales)
            for nu in FREEDOMS
            for scales in [self.scales * (nu - 2) / nu]
        ]
        return max([self, *several], key=lambda mixture: mixture.score(x))

    def sums(self) -> list[Tensor]:
        """Return the expected sums of a row: see :func:`_sums_of`."""
        squares = self.scales + self.means.unsqueeze(2) * self.means.unsqueeze(1)
        weights, half = self.weights, self.freedom / 2
        # log u - u of a chi-squared variable over its degrees of freedom
        tails = weights * (torch.digamma(half) - half.log() - 1)
        means, squares = weights[:, None] * self.means, weights[:, None, None] * squares
        return [weights.clone(), tails, weights.clone(), means, squares]


def _of_sums(
    counts: Tensor, tails: Tensor, scaled: Tensor, sums: Tensor, squares: Tensor
) -> _Mixture:
    """Return the mixture that has these expected sums of a row."""
    counts, scaled = counts.clamp(min=1e-12), scaled.clamp(min=1e-12)
    means = sums / scaled[:, None]
    crossed = scaled[:, None, None] * means.unsqueeze(2) * means.unsqueeze(1)
    scales = (squares - crossed) / counts[:, None, None]
    scales.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return _Mixture(counts / counts.sum(), _freedom(tails / counts), means, scales)


def _freedom(tails: Tensor) -> Tensor:
    r"""Return the :math:`\nu` that solves :math:`\log\frac\nu2 - \psi(\frac\nu2) + 1 + t = 0`."""
    low, high = (torch.full_like(tails, math.log(bound)) for bound in (LEAST, MOST))
    for _ in range(40):  # halves of the interval: the left side falls with the degrees of freedom
        middle = (low + high) / 2
        half = middle.exp() / 2
        above = half.log() - torch.digamma(half) + 1 + tails > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low.exp()


def _sums_of(x: Tensor, mixture: _Mixture) -> list[Tensor]:
    r"""Return the mean sums of rows under the posterior of a mixture.

    With the responsibility r of a t and :math:`u = (\nu + D) / (\nu + r^2)`, the sums of *r*, of
    :math:`r (E \log u - u)`, of *ru*, *rux* and :math:`rux x^\top`.

    Source: Liu, Rubin (1995), ML estimation of the t distribution using EM and its extensions.
    """
    counts, tails, scaled, sums, squares = (torch.zeros_like(s) for s in mixture.sums())
    joint, distances = mixture.joint(x)
    freedom, half = mixture.freedom.to(x), (mixture.freedom + x.shape[1]) / 2
    for m, r in enumerate(joint.softmax(1).T):
        own = (r > NEGLIGIBLE).nonzero().squeeze(1)
        r = r[own]
        u = (freedom[m] + x.shape[1]) / (freedom[m] + distances[own, m])
        # About the mean, since differences of large squares have few digits.
        rows, weight = x[own] - mixture.means[m].to(x), r * u
        counts[m], tails[m], scaled[m] = r.sum(), (r * (u.log() - u)).sum(), weight.sum()
        sums[m], squares[m] = weight @ rows, (weight[:, None] * rows).T @ rows
    tails += counts * (torch.digamma(half) - half.log())
    means = mixture.means
    cross = sums.unsqueeze(2) * means.unsqueeze(1)
    raw = sums + scaled[:, None] * means
    squares += cross + cross.mT + scaled[:, None, None] * means.unsqueeze(2) * means.unsqueeze(1)
    return [value / len(x) for value in (counts, tails, scaled, raw, squares)]


def _pass(mixture: _Mixture, x: Tensor, end: float, draws: torch.Generator) -> _Mixture:
    """Return a mixture after stepwise EM over the rows, or over those for which there is time."""
    sums, size = mixture.sums(), max(FEWEST_OF_A_STEP, ROWS_EACH * len(mixture.weights))
    order = torch.randperm(len(x), generator=draws)
    for step, index in enumerate(order.split(min(size, len(x)))):
        if time.perf_counter() > end:
            break
        rate = (step + FIRST_RATE) ** -RATE_POWER * len(index) / min(size, len(x))
        for total, found in zip(sums, _sums_of(x[index], mixture), strict=True):
            total.lerp_(found, rate)
        mixture = _of_sums(*sums)
    return mixture


@torch.no_grad()
def grown(
    fit: GaussianFit, x: Array, *, seconds: float, most: int = 256, seed: int = 0
) -> GaussianFit:
    r"""Return a mixture of Student's t, as many as held-out rows of a long table want.

    Tails as long as those of the rows take the place of Gaussian ones. Passes of stepwise EM over
    the rows settle the mixture. Each t is then split in two along its longest axis, and another
    pass moves them. Step s takes the sums of its rows into the running ones with the rate
    :math:`(s + 8)^{-0.6}`. The passes end where held-out rows no longer gain 0.01 nats, or with the
    time. Fewer than 100,000 rows keep their mixture.

    Arguments:
        fit: the mixture at the start.
        x: rows ``(N, D)``.
        seconds: that the passes may take.
        most: the largest number of t's.
        seed: of the held-out rows and of the order.

    References:
        Cappé, Moulines (2009), Online EM algorithm for latent data models, arXiv:0712.4273.
        van den Oord, Schrauwen (2014), The student-t mixture as a natural image patch prior with
        application to image compression.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(100_000, 2))
        >>> rows[::2] += 9
        >>> one = GaussianFit(np.ones(1), np.zeros((1, 2)), np.eye(2)[None], 5)
        >>> more = grown(one, rows, seconds=9, most=2)
        >>> len(more.weights), bool(more.log_prob(rows).mean() > one.log_prob(rows).mean())
        (2, True)
    """
    if len(x) < FEWEST_ROWS:
        return fit
    end = time.perf_counter() + seconds
    # Where the rows have unit covariance float32 has digits enough for nearly singular columns.
    mean, width = x.mean(0), x.shape[1]
    covariance = np.cov(x.T).reshape(width, width)
    floor = FLOOR * np.maximum(np.diag(covariance), 1.0)
    root = np.linalg.cholesky(covariance + np.diag(floor))
    whitening = np.linalg.inv(root)
    z = torch.as_tensor(((x - mean) @ whitening.T).astype(np.float32))
    draws = torch.Generator().manual_seed(seed)
    z = z[torch.randperm(len(z), generator=draws)]
    count = min(round(HELD_OUT * len(z)), MOST_HELD_OUT)
    judged, rows = z[:count], z[count:]
    best = _Mixture(
        torch.as_tensor(fit.weights),
        torch.full((len(fit.weights),), MOST, dtype=torch.float64),
        torch.as_tensor((fit.means - mean) @ whitening.T),
        torch.as_tensor(whitening @ fit.covariances @ whitening.T),
    )
    first, best = best, best.with_tails(rows[:CHUNK])
    score, grows = best.score(judged), False
    while time.perf_counter() < end:
        larger = best.split() if grows else best
        larger = _pass(larger, rows, end, draws)
        found = larger.score(judged)
        better = found > score + LEAST_GAIN
        if better:
            best, score = larger, found
        elif grows or 2 * len(best.weights) > most:
            break
        # The first mixture settles before it grows: what it gains says nothing of its size.
        grows = (grows or not better) and 2 * len(best.weights) <= most
    if best is first:
        return fit
    size, heavy = len(best.weights), bool((best.freedom < HEAVY).any())
    means, scales = best.means.numpy(), best.scales.numpy()
    free = size * (1 + heavy + width + width * (width + 1) // 2) - 1
    return GaussianFit(
        best.weights.numpy(),
        means @ root.T + mean,
        root @ scales @ root.T,
        free,
        best.freedom.numpy() if heavy else None,
    )
