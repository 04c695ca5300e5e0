"""Mixtures of Gaussians that grow with the number of rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf.starts.gaussians import GaussianFit

Array = np.ndarray[Any, Any]
FEWEST_ROWS = 100_000  # of a cluster whose mixture grows; of fewer rows flows learn as much
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000  # rows that end the growth
ROWS_EACH = 256  # rows of a step for each Gaussian
FEWEST_OF_A_STEP = 4096
LEAST_GAIN = 0.01  # nats a row that a pass has to bring on held-out rows
RATE_POWER, FIRST_RATE = 0.6, 8  # a step has the rate (t + 8)^-0.6
RIDGE = 1e-5  # of the variances, in units in which the rows have unit covariance
FLOOR = 1e-6  # of the variances of the rows, in standardised units
NEGLIGIBLE = 1e-6  # responsibilities that are left out
CHUNK = 16_384  # rows that are scored at once


@dataclass
class _Mixture:
    """Weights ``(M,)``, means ``(M, D)`` and covariances ``(M, D, D)`` of M Gaussians."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def joint(self, x: Tensor) -> Tensor:
        r"""Return :math:`\\log w_m N(x; \\mu_m, \\Sigma_m)` of rows, ``(N, M)``."""
        factors = torch.linalg.cholesky(self.covariances)
        unit = torch.eye(x.shape[1], dtype=factors.dtype)
        whitening = torch.linalg.solve_triangular(factors, unit, upper=False)
        constants = self.weights.log() - factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constants = constants - 0.5 * x.shape[1] * np.log(2 * np.pi)
        result = x.new_empty(len(self.weights), len(x))
        for m, (matrix, mean) in enumerate(zip(whitening.to(x), self.means.to(x), strict=True)):
            torch.sum(((x - mean) @ matrix.T).square_(), 1, out=result[m])
        return torch.add(constants.to(x), result.T, alpha=-0.5)

    def score(self, x: Tensor) -> float:
        """Return the mean log-density of rows in nats."""
        parts = [self.joint(part).logsumexp(1).double().sum() for part in x.split(CHUNK)]
        return float(torch.stack(parts).sum()) / len(x)

    def split(self) -> _Mixture:
        """Return two Gaussians for each one, apart along its longest axis, of the same moments."""
        values, vectors = torch.linalg.eigh(self.covariances)
        axis = 0.5 * values[:, -1:].sqrt() * vectors[:, :, -1]
        inside = self.covariances - axis.unsqueeze(2) * axis.unsqueeze(1)
        return _Mixture(
            (0.5 * self.weights).repeat(2),
            torch.cat((self.means - axis, self.means + axis)),
            inside.repeat(2, 1, 1),
        )

    def sums(self) -> list[Tensor]:
        """Return the expected counts, sums and squares of a row."""
        squares = self.covariances + self.means.unsqueeze(2) * self.means.unsqueeze(1)
        weights = self.weights
        return [weights, weights[:, None] * self.means, weights[:, None, None] * squares]


def _of_sums(counts: Tensor, sums: Tensor, squares: Tensor) -> _Mixture:
    """Return the mixture that has these expected counts, sums and squares of a row."""
    weights = counts.clamp(min=1e-12)
    means = sums / weights[:, None]
    covariances = squares / weights[:, None, None] - means.unsqueeze(2) * means.unsqueeze(1)
    covariances.diagonal(dim1=1, dim2=2).add_(RIDGE)
    return _Mixture(weights / weights.sum(), means, covariances)


def _sums_of(x: Tensor, mixture: _Mixture) -> list[Tensor]:
    """Return the mean counts, sums and squares of rows under the posterior of a mixture."""
    counts, sums, squares = (torch.zeros_like(s) for s in mixture.sums())
    for m, r in enumerate(mixture.joint(x).softmax(1).T):
        own = (r > NEGLIGIBLE).nonzero().squeeze(1)
        # About the mean, since differences of large squares have few digits.
        rows, r = x[own] - mixture.means[m].to(x), r[own]
        counts[m], sums[m], squares[m] = r.sum(), r @ rows, (r[:, None] * rows).T @ rows
    means = mixture.means
    cross = sums.unsqueeze(2) * means.unsqueeze(1)
    raw = sums + counts[:, None] * means
    squares += cross + cross.mT + counts[:, None, None] * means.unsqueeze(2) * means.unsqueeze(1)
    return [value / len(x) for value in (counts, raw, squares)]


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
    r"""Return a mixture of more Gaussians, as many as held-out rows of a long table want.

    Passes of stepwise EM over the rows settle the mixture. Each Gaussian is then split in two along
    its longest axis, and another pass moves them. Step t takes the sums of its rows into the
    running ones with the rate :math:`(t + 8)^{-0.6}`. The passes end where held-out rows no longer
    gain 0.01 nats, or with the time. Fewer than 100,000 rows keep their mixture.

    Arguments:
        fit: the mixture at the start.
        x: rows ``(N, D)``.
        seconds: that the passes may take.
        most: the largest number of Gaussians.
        seed: of the held-out rows and of the order.

    References:
        Cappé, Moulines (2009), Online EM algorithm for latent data models, arXiv:0712.4273.

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
    root = np.linalg.cholesky(np.cov(x.T).reshape(width, width) + FLOOR * np.eye(width))
    whitening = np.linalg.inv(root)
    z = torch.as_tensor(((x - mean) @ whitening.T).astype(np.float32))
    draws = torch.Generator().manual_seed(seed)
    z = z[torch.randperm(len(z), generator=draws)]
    count = min(round(HELD_OUT * len(z)), MOST_HELD_OUT)
    judged, rows = z[:count], z[count:]
    best = _Mixture(
        torch.as_tensor(fit.weights),
        torch.as_tensor((fit.means - mean) @ whitening.T),
        torch.as_tensor(whitening @ fit.covariances @ whitening.T),
    )
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
    size = len(best.weights)
    means, covariances = best.means.numpy(), best.covariances.numpy()
    free = size * (1 + width + width * (width + 1) // 2) - 1
    return GaussianFit(
        best.weights.numpy(), means @ root.T + mean, root @ covariances @ root.T, free
    )
