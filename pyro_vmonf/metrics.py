"""Scores of clusterings and densities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.validation import as_tensor, check_positive
from pyro_vmonf.distributions.divergence import kl_divergence as kl_divergence
from pyro_vmonf.distributions.estimates import mean_and_error

Array = np.ndarray[Any, Any]
LARGEST_TABLE = 2**24  # entries: the number of labels times that of clusters


def _checked(labels: Any, clusters: Any) -> tuple[Tensor, Tensor]:
    """Return labels and clusters as integers ``(N,)`` on the CPU, or say why they are none."""
    labels, clusters = as_tensor("labels", labels).cpu(), as_tensor("clusters", clusters).cpu()
    if labels.shape != clusters.shape or labels.dim() != 1 or not len(labels):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and clusters {tuple(clusters.shape)}; "
            "expected the same (N,), with N of at least 1"
        )
    for name, numbers in (("labels", labels), ("clusters", clusters)):
        if numbers.is_floating_point() or numbers.is_complex():
            raise TypeError(f"{name} have dtype {numbers.dtype}; expected integers")
        if numbers.min() < 0:
            raise ValueError(
                f"{name} contain {int(numbers.min())}; expected numbers of at least 0: leave out "
                "the rows that are not labelled"
            )
    return labels.long(), clusters.long()


def contingency(labels: Any, clusters: Any, num_clusters: int = 0) -> Tensor:
    """Return how many rows have each label (row) and each cluster (column).

    Arguments:
        labels, clusters: integers ``(N,)`` of at least 0.
        num_clusters: columns to have at least, so that empty clusters show.

    Returns:
        Counts ``(L, K)``, for labels 0 to L − 1 and clusters 0 to K − 1.

    Raises:
        TypeError: if labels or clusters are not integers.
        ValueError: if the lengths differ, there are no rows, a number is negative, or the table
            would have more than 2²⁴ entries.

    Example:
        >>> contingency([0, 0, 1], [1, 1, 0])
        tensor([[0, 2],
                [1, 0]])
    """
    labels, clusters = _checked(labels, clusters)
    rows = int(labels.max()) + 1
    columns = max(int(clusters.max()) + 1, check_positive("num_clusters", num_clusters, minimum=0))
    if rows * columns > LARGEST_TABLE:
        raise ValueError(
            f"labels reach {rows - 1} and clusters {columns - 1}; expected numbers that count from "
            "0: torch.unique(labels, return_inverse=True)[1] renumbers them"
        )
    # scikit-learn's table leaves out labels and clusters without rows, and with them the numbering.
    counts = torch.bincount(labels * columns + clusters, minlength=rows * columns)
    return counts.reshape(rows, columns)


def _assignment(table: Array) -> tuple[Array, Array]:
    """Return rows and columns of the one-to-one matching with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(table, maximize=True)  # type: ignore[no-any-return]


def match(labels: Any, clusters: Any, num_clusters: int = 0) -> Tensor:
    """Return the label that each cluster stands for, under the matching with most agreement.

    Arguments:
        labels, clusters: integers ``(N,)`` of at least 0.
        num_clusters: number of clusters, where not all of them occur.

    Returns:
        Labels of all clusters ``(K,)``, at least ``num_clusters`` of them, each a different one.
        Clusters beyond the labels get the numbers that are left.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    Example:
        >>> match([0, 0, 1, 1], [2, 2, 0, 0], 3)
        tensor([1, 2, 0])
    """
    table = contingency(labels, clusters, num_clusters).numpy()
    size = max(table.shape)
    square = np.zeros((size, size), dtype=table.dtype)
    square[: table.shape[0], : table.shape[1]] = table
    rows, columns = _assignment(square)
    labels_of = torch.empty(size, dtype=torch.long)
    labels_of[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return labels_of[: table.shape[1]]


def match_components(reference: Any, posterior: Any) -> Tensor:
    """Return the order of components under which a posterior agrees best with another fit's.

    Arguments:
        reference: responsibilities ``(N, K)`` or clusters ``(N,)`` of the other fit, −1 for none.
        posterior: responsibilities ``(N, K)`` of the same rows.

    Returns:
        The order ``(K,)``: ``posterior[:, order]`` has the reference's components in their places,
        as far as the posterior has them.

    Raises:
        TypeError: if clusters are not integers.
        ValueError: if the rows differ in number, the reference has more components, or a number is
            not finite.

    Example:
        >>> match_components(torch.tensor([1, 1, 0]), torch.eye(3)[[2, 2, 0]])
        tensor([0, 2, 1])
    """
    reference = as_tensor("the reference", reference)
    posterior = as_tensor("the posterior", posterior)
    if reference.dim() == 1:
        if reference.is_floating_point():
            raise TypeError(f"clusters have dtype {reference.dtype}; expected integers")
        reference, width = reference.long(), posterior.shape[-1]
        if len(reference) and not (reference.min() >= -1 and reference.max() < width):
            raise ValueError(
                f"clusters go from {int(reference.min())} to {int(reference.max())}; expected -1 "
                f"(none) or 0 to {width - 1}, the components of the posterior"
            )
        reference = torch.nn.functional.one_hot(reference + 1, width + 1)[:, 1:]
    if reference.shape != posterior.shape:
        raise ValueError(
            f"the reference has shape {tuple(reference.shape)} and the posterior "
            f"{tuple(posterior.shape)}; expected the same rows and components"
        )
    posterior = posterior.double()
    reference = reference.to(posterior)
    for name, values in (("reference", reference), ("posterior", posterior)):
        if not (values.isfinite().all() and (values >= 0).all()):
            raise ValueError(
                f"the {name} holds numbers that are not finite or below 0; expected "
                "responsibilities, such as log_q.exp()"
            )
    together = reference.mT @ posterior
    _, order = _assignment(together.cpu().numpy())
    return torch.as_tensor(order)


def accuracy(labels: Any, clusters: Any) -> float:
    """Return the share of rows that agree under the best one-to-one matching of clusters to labels.

    Arguments:
        labels, clusters: as for :func:`contingency`.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    Example:
        >>> accuracy([0, 0, 1, 1], [1, 1, 0, 1])
        0.75
    """
    table = contingency(labels, clusters).numpy()
    rows, columns = _assignment(table)
    return float(table[rows, columns].sum() / table.sum())


def normalized_mutual_information(labels: Any, clusters: Any) -> float:
    r"""Return :math:`I(y, c) / \tfrac12 (H(y) + H(c))`; 1 where both are constant.

    Arguments:
        labels, clusters: integers ``(N,)`` of at least 0.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    Example:
        >>> round(normalized_mutual_information([0, 0, 1, 1], [1, 1, 0, 0]), 6)
        1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    labels, clusters = _checked(labels, clusters)
    return float(normalized_mutual_info_score(labels.numpy(), clusters.numpy()))


def adjusted_rand_index(labels: Any, clusters: Any) -> float:
    """Return the Rand index corrected for chance; 1 where both are constant.

    Arguments:
        labels, clusters: integers ``(N,)`` of at least 0.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    References:
        Hubert, Arabie (1985), Comparing partitions.

    Example:
        >>> adjusted_rand_index([0, 0, 1, 1], [1, 1, 0, 0])
        1.0
    """
    from sklearn.metrics import adjusted_rand_score

    labels, clusters = _checked(labels, clusters)
    return float(adjusted_rand_score(labels.numpy(), clusters.numpy()))


def clustering_scores(labels: Any, clusters: Any) -> dict[str, float]:
    """Return ``accuracy``, ``nmi`` and ``ari`` together.

    Arguments:
        labels, clusters: as for :func:`contingency`.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    Example:
        >>> clustering_scores([0, 0, 1, 1], [1, 1, 0, 0])["accuracy"]
        1.0
    """
    return {
        "accuracy": accuracy(labels, clusters),
        "nmi": normalized_mutual_information(labels, clusters),
        "ari": adjusted_rand_index(labels, clusters),
    }


def format_contingency(labels: Any, clusters: Any, num_clusters: int = 0) -> str:
    """Return the contingency table as text, each row divided by its sum, as thesis Table 5.1.

    Arguments:
        labels, clusters, num_clusters: as for :func:`contingency`.

    Raises:
        TypeError, ValueError: as for :func:`contingency`.

    Example:
        >>> print(format_contingency([0, 0, 1], [1, 1, 0]))
        label \\ cluster        0        1
                     0 0.000000 1.000000
                     1 1.000000 0.000000
    """
    table = contingency(labels, clusters, num_clusters).double()
    table = table / table.sum(1, keepdim=True).clamp_min(1)
    lines = ["label \\ cluster" + "".join(f"{c:9d}" for c in range(table.shape[1]))]
    for label, row in enumerate(table.tolist()):
        lines.append(f"{label:15d}" + "".join(f"{share:9.6f}" for share in row))
    return "\n".join(lines)


def roc_curve(scores_in: Any, scores_out: Any) -> tuple[Tensor, Tensor]:
    """Return the shares of ordinary rows and of anomalies at or above each threshold.

    Arguments:
        scores_in: scores ``(N,)`` of ordinary rows. A larger score is more anomalous, such as minus
            the log-density; it may be infinite.
        scores_out: scores ``(M,)`` of anomalies.

    Returns:
        Both shares ``(T + 1,)``, from 0 to 1, at the T different scores from the largest down.

    Raises:
        ValueError: if either has no scores, or a score is NaN.

    Example:
        >>> roc_curve([0.0, 1.0], [1.0, 2.0])[1]
        tensor([0.0000, 0.5000, 1.0000, 1.0000], dtype=torch.float64)
    """
    # scikit-learn's curve refuses infinite scores, which rows outside the support have.
    parts = []
    for name, scores in (("scores_in", scores_in), ("scores_out", scores_out)):
        scores = as_tensor(name, scores).cpu().double()
        if scores.dim() != 1 or not len(scores) or scores.isnan().any():
            raise ValueError(
                f"{name} have shape {tuple(scores.shape)}, {int(scores.isnan().sum())} of them "
                "NaN; expected one number for each of at least one row"
            )
        parts.append(scores.sort().values)
    thresholds = torch.cat(parts).unique().flip(0)
    shares = [1 - torch.searchsorted(part, thresholds).double() / len(part) for part in parts]
    start = thresholds.new_zeros(1)
    return torch.cat((start, shares[0])), torch.cat((start, shares[1]))


def area_under_roc(scores_in: Any, scores_out: Any) -> float:
    r"""Return how often an anomaly scores above an ordinary row, ties counting half.

    .. math::
        P(s_\mathrm{out} > s_\mathrm{in}) + \tfrac12 P(s_\mathrm{out} = s_\mathrm{in})

    This is the area under the ROC curve: 1 where the scores separate, 1/2 where they say nothing.

    Arguments:
        scores_in, scores_out: as for :func:`roc_curve`.

    Raises:
        ValueError: if either has no scores, or a score is NaN.

    References:
        Hanley, McNeil (1982), The Meaning and Use of the Area under a ROC Curve.

    Example:
        >>> area_under_roc([0.0, 1.0], [1.0, 2.0])
        0.875
    """
    false_alarms, found = roc_curve(scores_in, scores_out)
    return float(torch.trapezoid(found, false_alarms))


def kl_to_truth(log_truth: Any, log_model: Any) -> tuple[float, float]:
    r"""Return the Monte-Carlo estimate of :math:`KL(p \| \hat p)` and its standard error, in nats.

    Arguments:
        log_truth: log-density ``(N,)`` of the truth at points drawn from it.
        log_model: log-density ``(N,)`` of the model at the same points.

    Raises:
        ValueError: if the shapes differ, or there are fewer than two points.

    Example:
        >>> kl_to_truth(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.5]))
        (0.5, 0.0)
    """
    log_truth, log_model = (as_tensor("log-densities", v) for v in (log_truth, log_model))
    if log_truth.dim() != 1 or log_truth.shape != log_model.shape or len(log_truth) < 2:
        raise ValueError(
            f"the log-densities have shapes {tuple(log_truth.shape)} and "
            f"{tuple(log_model.shape)}; expected (N,) twice, of the same two points or more"
        )
    mean, error = mean_and_error(log_truth.double() - log_model.double().to(log_truth.device))
    return float(mean), float(error)


@torch.no_grad()
def bits_per_dim(log_prob: Any, dimensions: int, levels: int = 256) -> float:
    r"""Return the mean of :math:`-\frac{\log p(x)}{D \log 2} + \log_2 \mathrm{levels}`.

    The density is that of dequantised pixels divided by ``levels``, on [0, 1].

    Arguments:
        log_prob: log-density ``(N,)`` of the rows, in nats.
        dimensions: number of pixels *D* of a row.
        levels: number of grey levels.

    References:
        Theis, van den Oord, Bethge (2016), arXiv:1511.01844.

    Raises:
        ValueError: if there is no row, no pixel or no grey level.

    Example:
        >>> bits_per_dim(torch.zeros(3), 784)  # the uniform density
        8.0
    """
    log_prob = as_tensor("log_prob", log_prob)
    if not log_prob.numel():
        raise ValueError("there is no log-density to average; pass those of the rows, (N,)")
    check_positive("dimensions", dimensions)
    check_positive("levels", levels)
    return float(-log_prob.double().mean() / (dimensions * math.log(2)) + math.log2(levels))
