"""The mixture as an estimator in the form of ``GaussianMixture`` of scikit-learn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import nn

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.em import num_parameters
from pyro_vmonf.flows.ready_made import MAF, NSF, AutoregressiveNSF, Gaussian, RealNVP
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.mlp import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.vmonf import VMoNF

Array = np.ndarray[Any, Any]
FLOWS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": Gaussian,
    "maf": MAF,
    "nsf": NSF,
    "realnvp": RealNVP,
    "spline": AutoregressiveNSF,
}


class FlowMixtureClustering(ClusterMixin, DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A variational mixture of normalizing flows with the interface of scikit-learn.

    It estimates densities and clusters like ``sklearn.mixture.GaussianMixture``, with flows as
    components. A few labels can guide the clusters. ``vmonf_`` is the fitted pair.

    Arguments:
        n_components: number of components *K*.
        flow: ``"realnvp"``, ``"nsf"``, ``"maf"``, ``"spline"`` (autoregressive), ``"gaussian"``, or
            a function ``(features, components) → bank``. Couplings need two features; with one
            feature ``"spline"`` takes their place.
        weights: mixture weights, as for :class:`~pyro_vmonf.FlowMixture`.
        hidden: widths of the hidden layers of the guide.
        init: first clusters of the guide: ``"kmeans"``, ``"spectral"`` (clusters along neighbours),
            or ``"random"``.
        n_init: number of starts; the one with the best objective on held-out rows stays.
        max_iter: passes through the data.
        batch_size: rows of one step.
        learning_rate: learning rate of Adam.
        use_labels: use ``y`` for the clusters. ``"auto"`` uses it if it holds −1, the mark of an
            unlabelled row. Cluster *c* is then class ``classes_[c]``.
        random_state: seed of the start, the order of the rows and each draw.

    Example:
        >>> from pyro_vmonf.datasets import pinwheel
        >>> x, _ = pinwheel(wings=3, per_wing=50, seed=0)
        >>> estimator = FlowMixtureClustering(3, max_iter=2, random_state=0).fit(x.numpy())
        >>> estimator.predict(x.numpy()).shape, estimator.predict_proba(x.numpy()).shape
        ((150,), (150, 3))
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        flow: str | Callable[[int, int], nn.Module] = "realnvp",
        weights: Any = "learned",
        hidden: Sequence[int] = (32, 32),
        init: Literal["kmeans", "spectral", "random"] = "kmeans",
        n_init: int = 1,
        max_iter: int = 100,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        use_labels: bool | Literal["auto"] = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.flow = flow
        self.weights = weights
        self.hidden = hidden
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.use_labels = use_labels
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowMixtureClustering:
        """Fit the mixture to rows ``(n_samples, n_features)``.

        Arguments:
            X: the rows.
            y: classes, −1 for unlabelled rows; see ``use_labels``.
            sample_weight: weights of the rows ``(n_samples,)``, at least zero.

        Raises:
            ValueError: if the rows, the labels or the parameters do not fit.
        """
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        for name in ("n_components", "n_init", "max_iter", "batch_size"):
            check_positive(name, getattr(self, name))
        labels = self._labels(y, len(X))
        if len(X) < self.n_components:
            raise ValueError(
                f"n_samples={len(X)} is below n_components={self.n_components}; pass fewer "
                "components or more rows"
            )
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
            if not sample_weight.any():
                raise ValueError("sample_weight is zero for every row; some have to count")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with local_seed(seed):
            features = X.shape[1]
            network = MLP(features, self.n_components, hidden=self.hidden)
            guide = SoftmaxGuide(network)
            weights = copy.deepcopy(self.weights)  # a fit does not change its arguments
            vmonf = VMoNF(FlowMixture(self._bank(features), weights), guide)
        vmonf.to(torch.float64 if X.dtype == np.float64 else torch.float32)
        options = {
            "batch_size": self.batch_size,
            "lr": self.learning_rate,
            "sample_weight": sample_weight,
            "progress": False,
            "seed": seed,
        }
        first = self.max_iter // 4 if self._start(guide, X, labels, seed) else 0
        if first:  # the flows fit the first clusters before the ELBO moves the guide
            guide.elbo_gradient = 0.0
            vmonf.fit(X, labels, epochs=first, temperature=1.0, **options)
            guide.elbo_gradient = 1.0
        self.history_ = vmonf.fit(
            X,
            labels,
            n_init=self.n_init,
            epochs=self.max_iter - first,
            held_out=0.1 if self.n_init > 1 and len(X) >= 10 else 0.0,
            **options,
        )
        self.vmonf_ = vmonf
        self.weights_ = vmonf.model.weights.log_mean().exp().detach().numpy()
        self.n_iter_ = first + len(self.history_.epoch)
        self.lower_bound_ = self.history_.elbo[-1]
        self.labels_ = vmonf.predict(X).numpy()
        return self

    def _start(self, guide: SoftmaxGuide, X: Array, labels: torch.Tensor | None, seed: int) -> bool:
        """Teach the first clusters to the guide, and return whether there are any."""
        if self.init not in ("kmeans", "spectral", "random"):
            raise ValueError(f"init is {self.init!r}; expected 'kmeans', 'spectral' or 'random'")
        if self.init == "random" or self.n_components == 1:
            return False
        clusters = None
        if self.init == "kmeans":
            means = KMeans(self.n_components, n_init=4, random_state=seed)
            clusters = means.fit_predict((X - X.mean(0)) / (X.std(0) + 1e-12)).astype(np.int64)
        warm_start_(guide, X, clusters, y=labels, seed=seed)
        return True

    def _bank(self, features: int) -> nn.Module:
        if callable(self.flow):
            return self.flow(features, self.n_components)
        if self.flow not in FLOWS:
            raise ValueError(
                f"flow is {self.flow!r}; expected one of {', '.join(sorted(FLOWS))}, or a function "
                "(features, components) → bank"
            )
        coupled = self.flow in ("realnvp", "nsf")
        flow = "spline" if features == 1 and coupled else self.flow
        return FLOWS[flow](features, self.n_components)

    def _labels(self, y: Any, rows: int) -> torch.Tensor | None:
        """Return the class numbers of the rows, or ``None`` without labels for the fit."""
        if y is None or self.use_labels is False:
            return None
        y = np.asarray(y)
        if y.dtype.kind == "f" and np.isnan(y).any():
            raise ValueError("y contains NaN; the mark of an unlabelled row is -1")
        known = y != -1
        if self.use_labels == "auto" and known.all():
            return None
        if y.shape != (rows,):
            raise ValueError(f"y has shape {y.shape} but X has {rows} rows; pass one label a row")
        self.classes_ = np.unique(y[known])
        if len(self.classes_) > self.n_components:
            raise ValueError(
                f"y has {len(self.classes_)} classes and the mixture {self.n_components} "
                "components; pass n_components of at least that many"
            )
        labels = torch.full((rows,), -1)
        labels[torch.as_tensor(known)] = torch.as_tensor(np.searchsorted(self.classes_, y[known]))
        return labels

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self)
        kind = np.float64 if next(self.vmonf_.parameters()).dtype == torch.float64 else np.float32
        return validate_data(self, X, dtype=kind, reset=False)  # type: ignore[no-any-return]

    def predict(self, X: Any) -> Array:
        """Return the cluster of each row ``(n_samples,)``, by the guide."""
        rows = self._rows(X)
        return self.vmonf_.predict(rows).numpy()  # type: ignore[no-any-return]

    def predict_proba(self, X: Any) -> Array:
        """Return the guide's posterior ``(n_samples, n_components)``."""
        rows = self._rows(X)
        return self.vmonf_.predict_proba(rows).numpy()  # type: ignore[no-any-return]

    def score_samples(self, X: Any) -> Array:
        """Return the log-density of each row ``(n_samples,)`` in nats."""
        rows = self._rows(X)
        return self.vmonf_.log_prob(rows).numpy()  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw rows ``(n_samples, n_features)`` and the component of each ``(n_samples,)``."""
        check_is_fitted(self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        x, c = self.vmonf_.sample(n_samples, seed=seed)
        return x.numpy(), c.numpy()

    def bic(self, X: Any) -> float:
        """Return the Bayesian information criterion on the rows; smaller is better.

        Each weight of a network counts as a parameter, so the criterion overstates the size of
        flows. Compare :meth:`score` on held-out rows instead.
        """
        X = self._rows(X)
        free = num_parameters(self.vmonf_.model)
        return float(free * math.log(len(X)) - 2 * self.score_samples(X).sum())

    def aic(self, X: Any) -> float:
        """Return the Akaike information criterion; see the limits of :meth:`bic`."""
        return float(2 * num_parameters(self.vmonf_.model) - 2 * self.score_samples(X).sum())
