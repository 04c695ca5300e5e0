"""Expectation maximisation of Gaussian mixtures, and information criteria.

The algorithm is our own: scikit-learn's ``GaussianMixture`` takes no weights of rows, and works on
the CPU alone. The tests compare the two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.evidence import check_sample_weight
from pyro_vmonf._utils.frames import names_of
from pyro_vmonf._utils.sizes import free_numbers
from pyro_vmonf._utils.validation import (
    as_tensor,
    check_number,
    check_positive,
    check_unconditional,
)
from pyro_vmonf.counts import forget_
from pyro_vmonf.flows.gaussian import Gaussian, moments
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.weights import LearnedWeights


def _spread_start(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return responsibilities ``(N, K)`` of the nearest of K centres drawn by k-means++."""
    from sklearn.cluster import kmeans_plusplus

    seed = int(torch.randint(2**31 - 1, ()))
    x = x - x.mean(0)  # distances lose the digits of rows far from zero
    centres, _ = kmeans_plusplus(
        x.cpu().numpy(), count, sample_weight=weight.cpu().numpy(), random_state=seed
    )
    nearest = torch.cdist(x, torch.as_tensor(centres, device=x.device)).argmin(1)
    return torch.nn.functional.one_hot(nearest, count).to(x.dtype)


@torch.no_grad()
def fit_em(
    model: FlowMixture,
    x: Any,
    *,
    responsibilities: Any = None,
    sample_weight: Any = None,
    n_init: int = 10,
    max_iter: int = 200,
    tolerance: float = 1e-4,
    ridge: float = 1e-6,
    standardize: bool = True,
    seed: int | None = None,
) -> list[float]:
    r"""Fit a mixture of Gaussians by expectation maximisation (thesis 2.5).

    .. math::
        r_{nc} \propto \pi_c N(x_n; \mu_c, \Sigma_c), \quad
        \pi_c \propto a + \sum_n w_n r_{nc}, \quad
        \mu_c = \frac{\sum_n w_n r_{nc} x_n}{\sum_n w_n r_{nc}}, \quad
        \Sigma_c = \frac{\sum_n w_n r_{nc} (x_n - \mu_c)(x_n - \mu_c)^T}{\sum_n w_n r_{nc}}

    Arguments:
        model: mixture of a :class:`~pyro_vmonf.Gaussian` bank with learned weights.
        x: rows ``(N, D)``.
        responsibilities: ``(N, K)`` to start from. By default, k-means++ draws ``n_init`` starts,
            and the fit with the highest likelihood is kept.
        sample_weight: weights :math:`w` of the rows ``(N,)``, at least zero. Only their ratios
            count, if *a*, the ``pseudo_count`` of the weights, is 0.
        n_init: number of starts.
        max_iter: largest number of iterations of one start.
        tolerance: gain of log-likelihood per row, in nats, below which a start has converged; with
            a ``pseudo_count`` the gain of the log-posterior.
        ridge: added to the diagonals of the covariances, in standardised units.
        standardize: standardise the rows, all alike, where the model never was, as
            :func:`pyro_vmonf.fit` does.
        seed: seed of the starts.

    Returns:
        The log-likelihood per row, in nats, after each iteration of the start that was kept.

    Raises:
        TypeError: if the bank is not Gaussian, or its weights are not learned.
        ValueError: if there are fewer rows than components, responsibilities or weights do not fit,
            a parameter is frozen, or a covariance is singular. The model is then as it was.

    References:
        Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.

    Example:
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> model = FlowMixture(Gaussian(2, 2), "learned")
        >>> len(fit_em(model, x, seed=0)) > 0
        True
    """
    bank, mixture_weights = _parts_of(model)
    check_positive("n_init", n_init)
    check_positive("max_iter", max_iter)
    names = model.feature_names or names_of(x)
    x = model.rows(x, weight=sample_weight)
    if len(x) < model.num_components:
        raise ValueError(
            f"x has {len(x)} rows but the mixture has {model.num_components} components"
        )
    if responsibilities is not None:
        responsibilities = as_tensor("responsibilities", responsibilities)
        _check_responsibilities(responsibilities, (len(x), model.num_components))
    check_number("ridge", ridge, zero=True)
    if math.isnan(tolerance):
        raise ValueError("tolerance is nan; expected a number of nats")
    x, weight, responsibilities = _counted(x, sample_weight, responsibilities)
    pseudo_count = mixture_weights.pseudo_count / float(weight.mean())
    weight = weight / weight.mean()
    units = Standardize(model.event_shape).to(x)
    units.load_state_dict(model.standardizer.state_dict())
    if standardize and not units.fitted:
        units.fit_(x, weight)
    z = units.inv(x).double()
    curve: list[float] = []
    best: tuple[float, tuple[Tensor, Tensor, Tensor]] | None = None
    with local_seed(seed):
        for _ in range(1 if responsibilities is not None else n_init):
            start = responsibilities
            r = _spread_start(z, weight, model.num_components) if start is None else start.to(z)
            found, value, fitted = _iterate(z, weight, r, pseudo_count, max_iter, tolerance, ridge)
            if best is None or value > best[0]:
                curve, best = found, (value, fitted)
    assert best is not None
    weights, means, covariances = best[1]
    model.feature_names = names
    model.standardizer.load_state_dict(units.state_dict())
    model.standardizer.fitted.fill_(True)
    mixture_weights.logits.copy_(weights.log())
    forget_(mixture_weights, now=True)
    bank.set_(means, covariances)
    offset = float(units.scale.log().sum())
    return [value - offset for value in curve]


def _counted(
    x: Tensor, sample_weight: Any, responsibilities: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the rows that have a weight, their weights, and their responsibilities.

    Raises:
        ValueError: if the weights are none, or all of them are zero.
    """
    weight = x.new_ones(len(x), dtype=torch.float64)
    if sample_weight is None:
        return x, weight, responsibilities
    weight = check_sample_weight(sample_weight, len(x), weight)
    counted = weight > 0
    if not counted.any():
        raise ValueError("sample_weight is zero for every row; some have to count")
    if responsibilities is not None:
        responsibilities = responsibilities[counted.to(responsibilities.device)]
    return x[counted], weight[counted], responsibilities  # the others may be anywhere


def _parts_of(model: FlowMixture) -> tuple[Gaussian, LearnedWeights]:
    """Return bank and weights, which EM moves.

    Raises:
        TypeError: if they are others.
        ValueError: if a parameter is frozen.
    """
    bank, weights = model.bank, model.weights
    if not isinstance(bank, Gaussian) or not isinstance(weights, LearnedWeights):
        raise TypeError("EM needs FlowMixture(Gaussian(...), 'learned')")
    if frozen := [name for name, value in model.named_parameters() if not value.requires_grad]:
        raise ValueError(
            f"{', '.join(frozen)} are frozen, and EM moves all parameters; call "
            "model.requires_grad_(True), or take fit, which leaves them as they are"
        )
    return bank, weights


def _check_responsibilities(responsibilities: Tensor, wanted: tuple[int, int]) -> None:
    """Refuse responsibilities that are none.

    Raises:
        ValueError: if shape or values do not fit.
    """
    if responsibilities.shape != wanted:
        raise ValueError(
            f"responsibilities have shape {tuple(responsibilities.shape)}; expected {wanted}"
        )
    if not responsibilities.isfinite().all():
        raise ValueError("responsibilities have NaN or infinite values")
    if bool((responsibilities < 0).any() | (responsibilities.sum(1) <= 0).any()):
        raise ValueError(
            f"responsibilities have values from {float(responsibilities.min()):g} to "
            f"{float(responsibilities.max()):g}; expected numbers of at least 0, one of them "
            "positive in each row"
        )


def _iterate(
    z: Tensor,
    weight: Tensor,
    responsibilities: Tensor,
    pseudo_count: float,
    max_iter: int,
    tolerance: float,
    ridge: float,
) -> tuple[list[float], float, tuple[Tensor, Tensor, Tensor]]:
    """Return the log-likelihood after each iteration, the last log-posterior, and parameters."""
    curve: list[float] = []
    before = -math.inf
    for _ in range(max_iter):
        weights, means, covariances = moments(z, weight[:, None] * responsibilities, ridge)
        total = weights * len(z) + pseudo_count
        weights = total / total.sum()
        factors, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise ValueError(
                f"the covariance of component {int(failed.nonzero()[0])} is singular; pass a "
                f"ridge larger than {ridge}, or fewer components"
            )
        components = MultivariateNormal(means, scale_tril=factors, validate_args=False)
        joint = weights.log() + components.log_prob(z.unsqueeze(-2))
        responsibilities = joint.softmax(-1)
        curve.append(float((weight * joint.logsumexp(-1)).mean()))
        prior = pseudo_count * float(weights.log().sum()) if pseudo_count else 0.0
        gain, before = curve[-1] + prior / len(z) - before, curve[-1] + prior / len(z)
        if gain < tolerance:
            break
    return curve, before, (weights, means, covariances)


def num_parameters(model: FlowMixture) -> int:
    """Return the number of free parameters of a mixture.

    .. math::
        K (D + D (D + 1) / 2) + K - 1

    This is the number for a Gaussian bank with learned weights. A chain has K - 1 weights for its
    beginning and for each component, and groups have K - 1 each. The parameters of a flow are
    merely counted, which overstates their freedom: see :func:`information_criteria`.

    Example:
        >>> num_parameters(FlowMixture(Gaussian(2, 3), "learned"))
        17
    """
    return free_numbers(model.bank) + model.weights.num_free()


@torch.no_grad()
def information_criteria(model: FlowMixture, x: Any) -> dict[str, float]:
    r"""Return AIC, BIC and MDL of a mixture on the rows ``x``, in nats; lower is better.

    .. math::
        \mathrm{AIC} = 2 k - 2 \log L, \quad \mathrm{BIC} = k \log N - 2 \log L, \quad
        \mathrm{MDL} = \tfrac{k}{2} \log N - \log L

    (thesis 2.2). The criteria assume identifiable parameters at a regular maximum of the
    likelihood, and a flow has neither. Prefer a held-out log-density for flows.

    Arguments:
        model: the mixture, with *k* free parameters.
        x: rows ``(N, *event_shape)``, or sequences ``(N, T, *event_shape)`` of a chain.

    Returns:
        ``aic``, ``bic`` and ``mdl``.

    Raises:
        ValueError: if the rows do not fit the model, or it has a context.

    References:
        Akaike (1974), A new look at the statistical model identification. Schwarz (1978),
        Estimating the dimension of a model.

    Example:
        >>> model = FlowMixture(Gaussian(2, 3), "learned")
        >>> sorted(information_criteria(model, torch.zeros(9, 2)))
        ['aic', 'bic', 'mdl']
    """
    check_unconditional("information_criteria", model.context_features)
    x = model.rows(x)
    with evaluating(model):
        mixture: Any = model.mixture()
        if model.of_sequences:  # each is one observation
            mixture = mixture.lasting(x.shape[1])
        free, total = num_parameters(model), float(mixture.log_prob(x).double().sum())
    bic = free * math.log(len(x)) - 2 * total
    return {"aic": 2 * free - 2 * total, "bic": bic, "mdl": bic / 2}
