"""Starts as objects: from rows and a number of clusters to responsibilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive, check_rows
from pyro_vmonf.starts.clusters import spectral_clusters
from pyro_vmonf.starts.gaussians import (
    GaussianFit,
    fit_gaussians,
    gaussians_of_size,
    merged_responsibilities,
)
from pyro_vmonf.starts.means import k_means
from pyro_vmonf.starts.responsibilities import as_responsibilities
from pyro_vmonf.starts.tree import NEIGHBORS, cut_tree, spanning_tree

Array = np.ndarray[Any, Any]
MOST = 40  # Gaussians of an over-complete mixture, at least
MOST_OF_ANY = 128  # where nobody knows the number of clusters


class Clustering(ABC):
    """A start that is ready-made: its call checks the rows, and gives responsibilities."""

    def __call__(self, x: Tensor, num_clusters: int) -> Tensor:
        """Return the responsibilities ``(N, K)`` of rows ``(N, D)``.

        Raises:
            TypeError: if the rows are no floating-point numbers.
            ValueError: if there are fewer rows than clusters, or they are not finite.
        """
        check_positive("num_clusters", num_clusters)
        shape = tuple(x.shape[1:]) if isinstance(x, Tensor) else np.shape(x)[1:]
        if not shape or 0 in shape:
            raise ValueError(f"x has shape {(len(x), *shape)}; expected rows (N, D)")
        kind = x if isinstance(x, Tensor) and x.is_floating_point() else torch.zeros(())
        rows = check_rows(x, shape, kind)
        if len(rows) < num_clusters:
            raise ValueError(
                f"x has {len(rows)} rows; expected at least {num_clusters}, one a cluster"
            )
        flat = rows.flatten(1).double().cpu().numpy()
        found = _distinct(flat, num_clusters)
        found = self._find(flat, num_clusters) if found is None else found
        return as_responsibilities(found, len(rows), num_clusters, rows)

    @abstractmethod
    def _find(self, x: Array, num_clusters: int) -> Array:
        """Return clusters ``(N,)`` or responsibilities ``(N, K)``."""


def _distinct(x: Array, most: int) -> Array | None:
    """Return the number ``(N,)`` of the point at each row, if there are at most so many points."""
    few = len(np.unique(x[: 10 * most], axis=0)) <= most  # rows of any table are soon more
    points, numbers = np.unique(x, axis=0, return_inverse=True) if few else (x, None)
    return numbers if len(points) <= most else None


@dataclass(frozen=True)
class GaussianMixture(Clustering):
    r"""The posterior of a mixture of K Gaussians: the best of three starts.

    .. math::
        r_{nk} \propto \pi_k \, N(x_n; \mu_k, \Sigma_k)

    Arguments:
        seed: of the starts.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> GaussianMixture()(x, 2).sum(0).round()
        tensor([50., 50.])
    """

    seed: int = 0

    def _find(self, x: Array, num_clusters: int) -> Array:
        z = _standardized(x)
        return gaussians_of_size(z, num_clusters, seed=self.seed).responsibilities(z)


@dataclass(frozen=True)
class MergedGaussians(Clustering):
    """A mixture of many Gaussians, whose components are merged where they are mistaken.

    BIC chooses their number, up to 40 or 2K. The two that are mistaken for each other most are one
    cluster, until K are left.

    Arguments:
        seed: of the mixture's start.
        large: mixture from which clusters are merged, where there is one of the same rows already.

    Source: Hennig (2010), Methods for merging Gaussian mixture components.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> MergedGaussians()(x, 2).sum(0).round()
        tensor([50., 50.])
    """

    seed: int = 0
    large: GaussianFit | None = field(default=None, repr=False)

    def _find(self, x: Array, num_clusters: int) -> Array:
        x = x if self.large else _standardized(x)
        found = self.large or large_mixture(x, num_clusters, seed=self.seed)
        if len(found.weights) < num_clusters:
            found = gaussians_of_size(x, num_clusters, seed=self.seed)
        return merged_responsibilities(found.responsibilities(x), num_clusters)


@dataclass(frozen=True)
class SpanningTree(Clustering):
    """The sides of the longest edges of a spanning tree: see ``pyro_vmonf.starts.tree``.

    An edge is cut if N/(2K) rows or more are left on both sides. Columns of other units want
    standardising first.

    Arguments:
        neighbors: number of the neighbour whose distance says how dense a place is; smaller than
            the smallest cluster.

    Source: Gagolewski (2026), Lumbermark, arXiv:2604.07143, for the bound on the sizes.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> SpanningTree()(x, 2).sum(0)
        tensor([50., 50.])
    """

    neighbors: int = NEIGHBORS

    def __post_init__(self) -> None:
        check_positive("neighbors", self.neighbors)

    def _find(self, x: Array, num_clusters: int) -> Array:
        return cut_tree(*spanning_tree(_in_range(x), self.neighbors), num_clusters)


@dataclass(frozen=True)
class Spectral(Clustering):
    """The clusters of :func:`~pyro_vmonf.starts.spectral_clusters`.

    Arguments:
        neighbors: links of each row, at most one less than there are rows.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> Spectral()(x, 2).sum(0)
        tensor([50., 50.])
    """

    neighbors: int = 15

    def __post_init__(self) -> None:
        check_positive("neighbors", self.neighbors)

    def _find(self, x: Array, num_clusters: int) -> Array:
        near = min(self.neighbors, len(x) - 1)
        rows = torch.as_tensor(_in_range(x))
        return spectral_clusters(rows, num_clusters, neighbors=near).numpy()


@dataclass(frozen=True)
class KMeans(Clustering):
    """The clusters of k-means on standardised columns.

    Arguments:
        seed: of the starts.
        n_init: number of starts.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> KMeans()(x, 2).sum(0)
        tensor([50., 50.])
    """

    seed: int = 0
    n_init: int = 4

    def __post_init__(self) -> None:
        check_positive("n_init", self.n_init)

    def _find(self, x: Array, num_clusters: int) -> Array:
        rows = torch.as_tensor(_in_range(x))
        return k_means(rows, num_clusters, n_init=self.n_init, seed=self.seed).numpy()


def _in_range(x: Array) -> Array:
    """Return rows in a unit, a power of two, in which squares neither vanish nor overflow."""
    _, exponent = np.frexp(np.abs(x).max(initial=0.0))
    return np.asarray(np.ldexp(x, -exponent))


def _standardized(x: Array) -> Array:
    """Return columns in units in which the ridge of a Gaussian fit is small."""
    x = _in_range(x)
    spread = x.std(0)
    return np.asarray((x - x.mean(0)) / np.where(spread > 0, spread, 1.0))


def large_mixture(x: Array, num_clusters: int | None = None, *, seed: int = 0) -> GaussianFit:
    """Return a mixture of as many Gaussians as BIC wants, from which clusters are merged."""
    most = MOST_OF_ANY if num_clusters is None else max(MOST, 2 * num_clusters)
    return fit_gaussians(x, most, seed=seed)
