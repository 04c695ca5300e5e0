"""The mixture as an estimator in the form of ``GaussianMixture`` of scikit-learn."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import nn

from pyro_vmonf._utils.contexts import local_seed, own_filters
from pyro_vmonf._utils.frames import as_table, check_masks, names_of
from pyro_vmonf._utils.labels import is_mark, marked
from pyro_vmonf._utils.plain import plain
from pyro_vmonf._utils.validation import check_number, check_positive
from pyro_vmonf.contracts import Start
from pyro_vmonf.em import num_parameters
from pyro_vmonf.flows.ready_made import MAF, NSF, AutoregressiveNSF, Gaussian, RealNVP
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn import MLP, Remembered
from pyro_vmonf.starts import Spectral, warm_start_
from pyro_vmonf.starts.means import k_means
from pyro_vmonf.terms import Agreement, Classification
from pyro_vmonf.training.fit import fit
from pyro_vmonf.vmonf import VMoNF
from pyro_vmonf.vmonf.automatic import number_of_components
from pyro_vmonf.vmonf.table import filled

Array = np.ndarray[Any, Any]
KINDS, FINITE = [np.float64, np.float32], "allow-nan"  # of numbers that rows may hold
NEIGHBORS = (15, 10, 20, 30)  # of the first spectral clusters, one start after the other
OPTIONS_BY_HAND = (
    *("flow", "weights", "hidden", "init"),
    *("n_init", "max_iter", "batch_size", "learning_rate"),
)
FLOWS: dict[str, Callable[..., nn.Module]] = {
    "gaussian": Gaussian,
    "maf": MAF,
    "nsf": NSF,
    "realnvp": RealNVP,
    "spline": AutoregressiveNSF,
}


class FlowMixtureClustering(  # type: ignore[misc]
    TransformerMixin, ClusterMixin, DensityMixin, BaseEstimator
):
    """A variational mixture of normalizing flows with the interface of scikit-learn.

    It estimates densities and clusters like ``sklearn.mixture.GaussianMixture``, with flows as
    components. A few labels can guide the clusters. ``vmonf_`` is the fitted pair.

    With the options of training at their defaults the pair is built by
    :meth:`pyro_vmonf.VMoNF.from_data`, which chooses the start, the densities and the length of the
    fit. Any other ``flow``, ``weights``, ``hidden``, ``init``, ``n_init``, ``max_iter``,
    ``batch_size`` or ``learning_rate`` asks for training by hand, with these options.

    Arguments:
        n_components: number of components *K*, or ``"auto"`` for the one that the data prefer.
        flow: ``"auto"``; or ``"realnvp"`` (the default of training by hand), ``"nsf"``, ``"maf"``,
            ``"spline"`` (autoregressive), ``"gaussian"``, or a function ``(features, components) →
            bank``. Couplings need two features; with one feature ``"spline"`` takes their place.
        weights: mixture weights, as for :class:`~pyro_vmonf.FlowMixture`.
        hidden: widths of the hidden layers of the guide.
        init: first clusters of the guide: ``"kmeans"`` (the default of training by hand),
            ``"spectral"`` (clusters along neighbours), ``"random"``, or a
            :class:`~pyro_vmonf.contracts.Start`, which gives each start the same clusters.
        n_init: number of starts of the kind of ``init``, from other seeds and, for ``"spectral"``,
            with other numbers of neighbours; the one with the best objective on held-out rows
            stays.
        max_iter: passes through the data.
        batch_size: rows of one step.
        learning_rate: learning rate of Adam.
        use_labels: use ``y`` for the clusters. ``"auto"`` uses it where −1 can only be the mark of
            an unlabelled row, and warns that it does: beside texts, beside three classes or more,
            or where there are fewer components than values. A y of −1 and +1 is left out, with a
            warning. Cluster *c* is then class ``classes_[c]``; ``labels_used_`` says whether labels
            were used.
        minutes: time for the choice and the fit, about; training by hand ignores it.
        background: add a broad component for outliers, as for
            :meth:`~pyro_vmonf.VMoNF.from_data`; it is the last one, and its rows have the label −1.
            Training by hand has none.
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
        n_components: int | Literal["auto"] = "auto",
        *,
        flow: str | Callable[[int, int], nn.Module] = "auto",
        weights: Any = "learned",
        hidden: Sequence[int] = (32, 32),
        init: Literal["auto", "kmeans", "spectral", "random"] | Start = "auto",
        n_init: int = 1,
        max_iter: int = 100,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        use_labels: bool | Literal["auto"] = "auto",
        minutes: float = 1.0,
        background: bool | Literal["auto"] = False,
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
        self.minutes = minutes
        self.background = background
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowMixtureClustering:
        """Fit the mixture to rows ``(n_samples, n_features)``.

        Arguments:
            X: the rows, with NaN for missing entries.
            y: classes, −1 for unlabelled rows; see ``use_labels``.
            sample_weight: weights of the rows ``(n_samples,)``, at least zero.

        Raises:
            ValueError: if the rows, the labels or the parameters do not fit; what an earlier fit
                has found then stays.
        """
        before = dict(self.__dict__)
        try:
            return self._fit(X, y, sample_weight)
        except BaseException:
            self.__dict__ = before
            raise

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> FlowMixtureClustering:
        self._columns = names_of(X)
        X = as_table(X, self._columns)
        X = validate_data(self, X, dtype=KINDS, ensure_min_samples=2, ensure_all_finite=FINITE)
        X = np.ascontiguousarray(X)
        for name in ("n_init", "max_iter", "batch_size"):
            check_positive(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate)
        if self.n_components != "auto":
            check_positive("n_components", self.n_components)
        if not callable(self.init) and self.init not in ("auto", "kmeans", "spectral", "random"):
            ways = "'kmeans', 'spectral', 'random', or a function (rows, clusters) → clusters"
            raise ValueError(f"init is {self.init!r}; expected {ways}")
        labels = self._labels(y, len(X))
        if self.n_components != "auto" and len(X) < self.n_components:
            raise ValueError(
                f"n_samples={len(X)} is below n_components={self.n_components}; pass fewer "
                "components or more rows"
            )
        if sample_weight is not None:
            check_masks("sample_weight", sample_weight)
            sample_weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
            if not sample_weight.any():
                raise ValueError("sample_weight is zero for every row; some have to count")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self._by_hand():
            self._fit_by_hand(X, labels, sample_weight, seed)
        else:
            self._fit_by_data(X, labels, sample_weight, seed)
        self.weights_ = self.vmonf_.model.weights.log_mean().exp().detach().numpy()
        elbo = self.vmonf_.elbo(X).double().numpy()
        weight = np.ones(len(X)) if sample_weight is None else sample_weight
        self.lower_bound_ = float(np.average(elbo[weight > 0], weights=weight[weight > 0]))
        self.labels_ = self._numbered(self.vmonf_.predict(X).numpy())
        return self

    def _by_hand(self) -> bool:
        """Return whether an option asks for training by hand."""
        defaults = inspect.signature(FlowMixtureClustering).parameters
        pairs = [(plain(getattr(self, name)), defaults[name].default) for name in OPTIONS_BY_HAND]
        pairs = [(tuple(a) if isinstance(a, list) else a, b) for a, b in pairs]
        return not all(a is b or (type(a) is type(b) and a == b) for a, b in pairs)

    def _fit_by_data(self, X: Array, labels: Any, sample_weight: Any, seed: int) -> None:
        """Fit the pair that the data choose."""
        self.vmonf_ = VMoNF.from_data(
            X,
            labels,
            components=None if self.n_components == "auto" else self.n_components,
            seed=seed,
            minutes=self.minutes,
            background=self.background,
            sample_weight=sample_weight,
            progress=False,
        )
        self.vmonf_.model.feature_names = self._columns
        assert self.vmonf_.history is not None
        self.history_ = self.vmonf_.history
        self.n_iter_ = max(1, len(self.history_.epoch))  # the choice is a pass of its own

    def _fit_by_hand(self, X: Array, labels: Any, sample_weight: Any, seed: int) -> None:
        """Fit the pair that the options describe."""
        if self.n_components == "auto":
            with own_filters():  # the fit says what there is to say of the columns
                warnings.simplefilter("ignore", UserWarning)
                components = number_of_components(X, labels, seed=seed, sample_weight=sample_weight)
        else:
            components = int(self.n_components)
        started = self.init != "random" and components > 1
        vmonf = self._pair(X, components, seed, started)
        first = self.max_iter // 4 if started else 0
        if not vmonf.model.bounded:  # once for all starts
            vmonf.model.standardize_(X, sample_weight)
        whole = filled(torch.as_tensor(X), vmonf.model.standardizer, seed)
        options: dict[str, Any] = {"batch_size": self.batch_size, "lr": self.learning_rate}
        options |= {"sample_weight": sample_weight, "progress": False}

        def start(model: FlowMixture, guide: Any, number: int) -> None:
            """Teach first clusters to a guide, and let the flows fit them before it moves."""
            if not started:
                return
            own = (seed + number) % 2**31
            find = self._clusters(sample_weight, number, own)
            warm_start_(guide, whole, find, y=labels, sample_weight=sample_weight, seed=own)
            guide.network.remember_()
            if first:
                guide.elbo_gradient = 0.0
                fit(model, guide, X, labels, epochs=first, temperature=1.0, seed=own, **options)
                guide.elbo_gradient = 1.0

        last = {**options, "epochs": self.max_iter - first, "seed": seed}
        if self.n_init == 1:
            start(vmonf.model, vmonf.guide, 0)
        else:
            held_out = 0.1 if len(X) >= 10 else 0.0
            last |= {"n_init": self.n_init, "start": start, "held_out": held_out}
        self.history_ = vmonf.fit(X, labels, **last)
        self.vmonf_ = vmonf
        self.n_iter_ = first + len(self.history_.epoch)

    def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> Array:
        """Fit as :meth:`fit` does, labels included, and return the cluster of each row."""
        return self.fit(X, y, **kwargs).labels_

    def _pair(self, X: Array, components: int, seed: int, started: bool) -> VMoNF:
        """Return a pair with fresh parameters, of the rows' dtype."""
        features = X.shape[1]
        with local_seed(seed):
            guide = SoftmaxGuide(MLP(features, components, hidden=self.hidden))
            if started:  # the clusters of the start hold the guide
                guide = SoftmaxGuide(Remembered(guide.network), [Classification(), Agreement()])
            weights = copy.deepcopy(self.weights)  # a fit does not change its arguments
            vmonf = VMoNF(FlowMixture(self._bank(features, components), weights), guide)
        vmonf.model.feature_names = self._columns
        return vmonf.to(torch.float64 if X.dtype == np.float64 else torch.float32)

    def _clusters(self, sample_weight: Array | None, number: int, seed: int) -> Start:
        """Return the first clusters of a start, another variant of the same for each."""
        if callable(self.init):
            return self.init
        if self.init == "spectral":
            return Spectral(NEIGHBORS[number % len(NEIGHBORS)])
        weight = None if sample_weight is None else sample_weight[sample_weight > 0]
        return partial(k_means, sample_weight=weight, n_init=1 if number else 4, seed=seed)

    def _bank(self, features: int, components: int) -> nn.Module:
        if callable(self.flow):
            return self.flow(features, components)
        flow = "realnvp" if self.flow == "auto" else self.flow
        if flow not in FLOWS:
            raise ValueError(
                f"flow is {self.flow!r}; expected 'auto', one of {', '.join(sorted(FLOWS))}, or a "
                "function (features, components) → bank"
            )
        flow = "spline" if features == 1 and flow in ("realnvp", "nsf") else flow
        return FLOWS[flow](features, components)

    def _labels(self, y: Any, rows: int) -> torch.Tensor | None:
        """Return the class numbers of the rows, or ``None`` without labels for the fit."""
        self.labels_used_ = False
        self.__dict__.pop("classes_", None)  # of a former fit
        if not isinstance(self.use_labels, bool | np.bool_) and self.use_labels != "auto":
            raise ValueError(f"use_labels is {self.use_labels!r}; expected True, False or 'auto'")
        if y is None or not self.use_labels:
            return None
        y, known = marked(y)
        if y.shape != (rows,):
            raise ValueError(f"y has shape {y.shape} but X has {rows} rows; pass one label a row")
        classes = np.unique(y[known])
        if self.use_labels == "auto":
            if known.all():
                return None
            if not is_mark(classes, self.n_components):
                warnings.warn(
                    f"y holds -1 and the classes {classes.tolist()}: -1 can be a class or the mark "
                    "of unlabelled rows, so the fit leaves y out; pass use_labels=True if it is "
                    "the mark, or use_labels=False",
                    UserWarning,
                    stacklevel=3,
                )
                return None
            warnings.warn(
                f"y marks {(~known).sum()} of {rows} rows as unlabelled: the fit uses the labels "
                "of the others; pass use_labels=True or False to choose",
                UserWarning,
                stacklevel=3,
            )
        if self.n_components != "auto" and len(classes) > int(self.n_components):
            raise ValueError(
                f"y has {len(classes)} classes and the mixture {self.n_components} "
                "components; pass n_components of at least that many"
            )
        self.classes_ = classes
        self.labels_used_ = True
        labels = torch.full((rows,), -1)
        labels[torch.as_tensor(known)] = torch.as_tensor(np.searchsorted(classes, y[known]))
        return labels

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self)
        # Where names are strings, scikit-learn looks at them.
        X = as_table(X, None if hasattr(self, "feature_names_in_") else self._columns)
        return validate_data(self, X, dtype=KINDS, reset=False, ensure_all_finite=FINITE)  # type: ignore[no-any-return]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def predict(self, X: Any) -> Array:
        """Return the cluster of each row ``(n_samples,)``, by the guide; −1 for the background."""
        rows = self._rows(X)
        return self._numbered(self.vmonf_.predict(rows).numpy())

    def _numbered(self, components: Array) -> Array:
        """Return numbers of components, with −1 for the background."""
        last = self.vmonf_.model.num_components - 1 if "background" in self.history_.choice else -1
        return np.where(components == last, -1, components)

    def predict_proba(self, X: Any) -> Array:
        """Return the guide's posterior ``(n_samples, n_components)``."""
        rows = self._rows(X)
        return self.vmonf_.predict_proba(rows).numpy()  # type: ignore[no-any-return]

    def transform(self, X: Any) -> Array:
        """Return :meth:`predict_proba`, for a pipeline; ``set_output`` chooses frames.

        The dtype is that of the rows.
        """
        rows = self._rows(X)
        return self.vmonf_.predict_proba(rows).numpy().astype(rows.dtype)  # type: ignore[no-any-return]

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the columns of :meth:`transform`: ``cluster0``, ``cluster1``, …"""
        check_is_fitted(self)
        count = self.vmonf_.model.num_components
        return np.array([f"cluster{c}" for c in range(count)], dtype=object)

    def score_samples(self, X: Any) -> Array:
        """Return the log-density of each row ``(n_samples,)`` in nats."""
        rows = self._rows(X)
        return self.vmonf_.log_prob(rows).numpy()  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log-density of the rows in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw rows ``(n_samples, n_features)`` and the cluster of each ``(n_samples,)``."""
        check_is_fitted(self)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        x, c = self.vmonf_.sample(n_samples, seed=seed)
        return x.numpy(), self._numbered(c.numpy())

    def bic(self, X: Any) -> float:
        """Return the Bayesian information criterion on the rows; smaller is better.

        Each weight of a network counts as a parameter, so the criterion overstates the size of
        flows. Compare :meth:`score` on held-out rows instead.
        """
        scores, free = self.score_samples(X), num_parameters(self.vmonf_.model)
        return float(free * math.log(len(scores)) - 2 * scores.sum())

    def aic(self, X: Any) -> float:
        """Return the Akaike information criterion; see the limits of :meth:`bic`."""
        return float(2 * num_parameters(self.vmonf_.model) - 2 * self.score_samples(X).sum())
