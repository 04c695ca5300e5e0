"""Mixtures of elliptical densities, whose marginals and conditionals are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Size, Tensor
from torch.distributions import Categorical

from pyro_vmonf.distributions.entries import Partial, exactly
from pyro_vmonf.distributions.radial import NORMAL, NormalLaw


@dataclass(frozen=True)
class Ellipses:
    r"""K mixtures of M elliptical densities, whose marginals and conditionals are known.

    Arguments:
        log_weights: :math:`\log w` ``(*, K, M)``.
        loc: centres ``(*, K, M, D)``.
        scale_tril: Cholesky factors of the scale matrices ``(*, K, M, D, D)``; of Gaussians, of
            their covariances.
        law: see :mod:`pyro_vmonf.distributions.radial`.
    """

    log_weights: Tensor
    loc: Tensor
    scale_tril: Tensor
    law: NormalLaw = NORMAL

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(*, K)`` of rows without gaps."""
        z = torch.linalg.solve_triangular(
            self.scale_tril, (x.unsqueeze(-2) - self.loc).unsqueeze(-1), upper=False
        )
        everywhere = torch.ones_like(self.loc[..., :1, :], dtype=torch.bool)
        return self._joint(z.squeeze(-1), self.scale_tril, everywhere)[0].logsumexp(-1)

    def _joint(self, z: Tensor, factor: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-densities with their weights, squared distances and numbers of entries.

        Arguments:
            z: whitened values ``(*, K, M, D)``.
            factor: the matrices that they were whitened with.
            there: the entries that count.
        """
        log_det = torch.where(there, factor.diagonal(dim1=-2, dim2=-1).log(), 0.0).sum(-1)
        squares = torch.where(there, z.square(), 0.0).sum(-1)
        width = there.sum(-1).to(z)
        density = self.law.constant(width) + self.law.kernel(squares, width)
        return self.log_weights + density - log_det, squares, width

    def observe(self, x: Tensor, draws: int = 0) -> Partial:
        """Return marginals and conditionals, from one Cholesky factor a row.

        With the entries that are there in front, the first rows of the factor whiten them, and the
        others are the conditional law of the rest. All of it is in float64.

        Arguments:
            x: rows ``(*, 1, D)`` or ``(*, K, D)``.
            draws: of no use here.
        """
        kind = x.dtype
        exact = self.double()
        loc, log_weights = exact.loc, exact.log_weights
        x = x.unsqueeze(-2).double()
        gap = x.isnan()
        order = gap.long().argsort(dim=-1, stable=True)
        back = order.argsort(-1)
        factor = _factor_of(_taken(exact.scale_tril, order.unsqueeze(-1), -2))
        centred = torch.where(gap, 0.0, x - loc)
        centred = _taken(centred, order, -1).unsqueeze(-1)
        z = torch.linalg.solve_triangular(factor, centred, upper=False).squeeze(-1)
        there = ~gap.take_along_dim(order, -1)
        joint, squares, width = exact._joint(z, factor, there)

        # Far from all of them no share is known, and the weights take its place.
        lost = (joint == -torch.inf).all(-1, keepdim=True)
        known = torch.where(lost, log_weights, joint)

        def completed(noise: Tensor) -> Tensor:
            values = (factor @ torch.where(there, z, noise).unsqueeze(-1)).squeeze(-1)
            return torch.where(gap, _taken(values, back, -1) + loc, x)

        def mean() -> Tensor:
            share = known.softmax(-1).unsqueeze(-1)
            return (share * completed(torch.zeros_like(z))).sum(-2).to(kind)

        def draw(number: int) -> Tensor:
            shape = Size((number,))
            m = Categorical(logits=known, validate_args=False).sample(shape)[..., None, None]
            noise = torch.randn(shape + z.shape, dtype=kind, device=z.device)
            wider = exact.law.spread(squares.expand(shape + z.shape[:-1]), width).unsqueeze(-1)
            return torch.take_along_dim(completed(wider * noise), m, -2).squeeze(-2).to(kind)

        return exactly(joint.logsumexp(-1).to(kind), mean, draw)

    def double(self) -> Ellipses:
        """Return the same in float64."""
        parts = (self.log_weights.double(), self.loc.double(), self.scale_tril.double())
        return Ellipses(*parts, self.law.double())


def _factor_of(root: Tensor) -> Tensor:
    r"""Return the Cholesky factor of :math:`R R^T` ``(*, D, D)`` to the digits of R.

    The product squares the condition of R. The factor of the product takes R nearly to an
    orthogonal matrix, and the factor of that one brings the digits back.

    Raises:
        ValueError: if the product is singular to rounding.

    References:
        Yamamoto, Nakatsukasa, Yanagisawa, Fukaya (2015), Roundoff error analysis of the CholeskyQR2
        algorithm.
    """
    try:
        first = torch.linalg.cholesky(root @ root.mT)
        near = torch.linalg.solve_triangular(first, root, upper=False)
        return first @ torch.linalg.cholesky(near @ near.mT)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "the covariance of a component is singular to rounding, so rows with missing entries "
            "have no density; drop columns that follow from others"
        ) from error


def _taken(values: Tensor, index: Tensor, dim: int) -> Tensor:
    """Return values along a dimension, where the other dimensions broadcast from the right."""
    left = max(values.dim(), index.dim())
    values = values[(None,) * (left - values.dim())]
    return torch.take_along_dim(values, index[(None,) * (left - index.dim())], dim)
