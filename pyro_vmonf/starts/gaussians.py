"""Gaussian mixtures of rows: as many Gaussians as BIC wants, merged to the clusters asked for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyro_vmonf._utils.contexts import one_thread, own_filters
from pyro_vmonf.distributions.radial import NORMAL, NormalLaw, StudentLaw

Array = np.ndarray[Any, Any]
SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200)
RIDGE = 1e-3  # of the variances, in standardised units
SEARCHED = 4000  # rows on which the number of Gaussians is searched
PATIENCE = 3  # larger numbers that may be no better before the search ends
WIDE = 4  # columns above which covariances are shrunk
SHARES = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the whole shrinkage, among which held-out rows choose
HELD_OUT = 0.2  # share of the rows that choose
FEWEST_ROWS = 50  # below which none are held out, and the whole shrinkage is taken


@dataclass(frozen=True)
class GaussianFit:
    """A mixture of M Gaussians of some rows, or of Student's t.

    Arguments:
        weights: ``(M,)``.
        means: ``(M, D)``.
        covariances: ``(M, D, D)``; of t's the scale matrices.
        free: number of free parameters.
        freedom: degrees of freedom of t's ``(M,)``.
    """

    weights: Array
    means: Array
    covariances: Array
    free: int
    freedom: Array | None = None

    @property
    def law(self) -> NormalLaw:
        """The law of the distances."""
        return NORMAL if self.freedom is None else StudentLaw(torch.as_tensor(self.freedom))

    def joint(self, x: Array) -> Array:
        r"""Return :math:`\\log w_m N(x; \\mu_m, \\Sigma_m)` of rows, ``(N, M)``."""
        factors = np.linalg.cholesky(self.covariances)
        half = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
        result = np.empty((len(x), len(self.weights)))
        for m, (mean, factor) in enumerate(zip(self.means, factors, strict=True)):
            z = np.linalg.solve(factor, (x - mean).T)
            result[:, m] = (z * z).sum(0)
        kernel = self.law.kernel(torch.as_tensor(result), x.shape[1]) + self.law.constant(
            x.shape[1]
        )
        return np.asarray(kernel) - half + np.log(self.weights)

    def log_prob(self, x: Array) -> Array:
        """Return the log-density of rows ``(N,)``."""
        return np.asarray(np.logaddexp.reduce(self.joint(x), axis=1))

    def responsibilities(self, x: Array) -> Array:
        """Return the posterior of the Gaussians ``(N, M)``."""
        joint = self.joint(x)
        return np.asarray(np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None]))


def fit_gaussians(
    x: Array, most: int, *, least: int = 1, seed: int = 0, searched: int = SEARCHED
) -> GaussianFit:
    """Fit a mixture of as many Gaussians as the Bayesian information criterion wants.

    Arguments:
        x: rows ``(N, D)``, in units of about one standard deviation.
        most: the largest number of Gaussians.
        least: the smallest number, if the rows are enough for it.
        seed: of the starts.
        searched: rows on which the number is searched; the mixture is then fitted to all.

    References:
        Schwarz (1978), Estimating the dimension of a model.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(200, 2))
        >>> rows[::2] += 9
        >>> len(fit_gaussians(rows, 10).weights)
        2
    """
    from sklearn.mixture import GaussianMixture

    count, width = x.shape
    order = np.random.default_rng(seed).permutation(count)[:searched]
    some = x[order] if count > searched else x
    best, failures = None, 0
    with own_filters(), one_thread():
        warnings.simplefilter("ignore")
        most = max(1, min(most, int(len(some) / 2 / (width + 1))))
        for size in [size for size in SIZES if least <= size <= most] or [most]:
            found = GaussianMixture(size, reg_covar=RIDGE, random_state=seed % 2**32).fit(some)
            score = found.bic(some)
            if best is None or score < best[0]:
                best, failures = (score, found), 0
            else:
                failures += 1
                if failures == PATIENCE:
                    break
        assert best is not None
        found = best[1]
        if len(some) < count:
            found = _going_on(found, x, 50)
        covariances = found.covariances_
        if width > WIDE:
            covariances = _shrunk(x, found, seed)
    return GaussianFit(found.weights_, found.means_, covariances, int(found._n_parameters()))


def gaussians_of_size(x: Array, size: int, *, seed: int = 0) -> GaussianFit:
    """Fit a mixture of a given number of Gaussians: the best of three starts."""
    from sklearn.mixture import GaussianMixture

    with own_filters(), one_thread():
        warnings.simplefilter("ignore")
        found = GaussianMixture(size, reg_covar=RIDGE, random_state=seed % 2**32, n_init=3).fit(x)
    return GaussianFit(found.weights_, found.means_, found.covariances_, int(found._n_parameters()))


def _going_on(found: Any, x: Array, steps: int) -> Any:
    """Return a mixture of scikit-learn after more steps of EM on some rows."""
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(
        found.n_components,
        reg_covar=RIDGE,
        weights_init=found.weights_,
        means_init=found.means_,
        precisions_init=found.precisions_,
        max_iter=steps,
    ).fit(x)


def _shrunk(x: Array, found: Any, seed: int) -> Array:
    """Return covariances that are shrunk as much as held-out rows want.

    The shrinkage of Ledoit and Wolf minimises the error of the entries. Columns that depend on each
    other have variances that are smaller than this error, and a density needs them.
    """
    whole = _ledoit_wolf(x, found)
    if len(x) < FEWEST_ROWS:
        return whole
    order = np.random.default_rng(seed).permutation(len(x))
    held, kept = np.split(x[order], [round(HELD_OUT * len(x))])
    part = _going_on(found, kept, 20)
    change = _ledoit_wolf(kept, part) - part.covariances_

    def score(share: float) -> float:
        covariances = part.covariances_ + share * change
        mixture = GaussianFit(part.weights_, part.means_, covariances, 0)
        return float(mixture.log_prob(held).mean())

    own: Array = found.covariances_
    return own + max(SHARES, key=score) * (whole - own)


def _ledoit_wolf(x: Array, found: Any) -> Array:
    """Return covariances shrunk towards a multiple of the unit matrix.

    References:
        Ledoit, Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    owner, result = found.predict(x), found.covariances_.copy()
    unit = np.eye(x.shape[1])
    for m, covariance in enumerate(found.covariances_):
        rows = x[owner == m]
        share = ledoit_wolf_shrinkage(rows) if len(rows) > 1 else 1.0
        level = np.trace(covariance) / len(unit)
        result[m] = (1 - share) * covariance + share * level * unit
    return np.asarray(result)


def merged_responsibilities(
    responsibilities: Array, num_clusters: int, mistaken: float = 0.0
) -> Array:
    """Join the components of a posterior that are mistaken for each other most.

    Arguments:
        responsibilities: posterior ``(N, M)`` of more components than clusters.
        num_clusters: number of clusters *K*.
        mistaken: share of rows that are assigned to the other one, below which two stay apart.

    Returns:
        The posterior ``(N, K)`` of the clusters, or of more that stay apart.

    References:
        Hennig (2010), Methods for merging Gaussian mixture components.
    """
    r = responsibilities.copy()
    while r.shape[1] > num_clusters:
        best = r.argmax(1)
        owned = np.eye(r.shape[1])[best]
        share = (r.T @ owned) / np.maximum(r.sum(0)[:, None], 1e-12)
        share = np.maximum(share, share.T)
        np.fill_diagonal(share, -1.0)  # none is joined with itself, also where no row is mistaken
        if share.max() < mistaken:
            break
        one, other = sorted(divmod(int(share.argmax()), r.shape[1]))
        r[:, one] += r[:, other]
        r = np.delete(r, other, 1)
    return r


def merged(responsibilities: Array, num_clusters: int, mistaken: float = 0.0) -> Array:
    """Return the cluster ``(N,)`` of each row by :func:`merged_responsibilities`.

    Example:
        >>> merged(np.array([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.0, 1.0]]), 2)
        array([0, 0, 1])
    """
    found = merged_responsibilities(responsibilities, num_clusters, mistaken)
    return np.asarray(found.argmax(1))
