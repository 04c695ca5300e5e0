"""Scores against known values, brute force, closed forms and scikit-learn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Delta
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    Poisson,
    Uniform,
    kl_divergence,
)

from pyro_vmonf.metrics import (
    accuracy,
    adjusted_rand_index,
    area_under_roc,
    bits_per_dim,
    clustering_scores,
    contingency,
    format_contingency,
    kl_to_truth,
    match,
    match_components,
    normalized_mutual_information,
    roc_curve,
)
from pyro_vmonf.metrics import (
    kl_divergence as kl_of_draws,
)

Labels = tuple[Tensor, Tensor]


def noisy(labels: int, clusters: int, rows: int = 60) -> Labels:
    y = torch.randint(labels, (rows,))
    keep = torch.rand(rows) < 0.7
    return y, torch.where(keep, (y + 1) % clusters, torch.randint(clusters, (rows,)))


CASES: dict[str, Callable[[], Labels]] = {
    "as-many": lambda: noisy(4, 4),
    "more-clusters": lambda: noisy(3, 6),
    "fewer-clusters": lambda: noisy(6, 3),
    "independent": lambda: (torch.randint(4, (60,)), torch.randint(4, (60,))),
    "perfect": lambda: (torch.arange(60) % 4, (torch.arange(60) + 2) % 4),
    "one-cluster": lambda: (torch.arange(60) % 3, torch.zeros(60, dtype=torch.long)),
    "one-label": lambda: (torch.zeros(60, dtype=torch.long), torch.arange(60) % 3),
    "both-constant": lambda: (torch.full((9,), 2), torch.full((9,), 1)),
    "all-apart": lambda: (torch.arange(9), torch.arange(9).flip(0)),
    "missing-numbers": lambda: (2 * torch.randint(3, (60,)), 3 * torch.randint(2, (60,)) + 1),
    "one-row": lambda: (torch.tensor([1]), torch.tensor([2])),
}


def best_agreement(labels: Tensor, clusters: Tensor) -> float:
    """The best of all one-to-one namings of clusters by labels."""
    count = 1 + max(int(labels.max()), int(clusters.max()))
    names = torch.tensor(list(itertools.permutations(range(count))))
    return float((names[:, clusters] == labels).double().mean(1).max())


@pytest.mark.parametrize("name", [name for name in CASES if name != "all-apart"])
def test_accuracy_is_that_of_the_best_permutation(name: str) -> None:
    labels, clusters = CASES[name]()
    assert accuracy(labels, clusters) == pytest.approx(best_agreement(labels, clusters), abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_matching_has_the_accuracy(name: str) -> None:
    labels, clusters = CASES[name]()
    names = match(labels, clusters)
    assert len(names.unique()) == len(names)
    agreeing = (names[clusters] == labels).double().mean()
    assert float(agreeing) == pytest.approx(accuracy(labels, clusters), abs=1e-12)


# labels, clusters, NMI, ARI. The second case: H(y) = log 2, H(c) = 3/2 log 2, I = log 2; of 6 pairs
# labels join 2, clusters 1, both 1, so that ARI = (1 - 1/3) / (3/2 - 1/3).
KNOWN: dict[str, tuple[list[int], list[int], float, float]] = {
    "renamed": ([0, 0, 1, 1], [1, 1, 0, 0], 1.0, 1.0),
    "one-label-halved": ([0, 0, 1, 1], [0, 0, 1, 2], 0.8, 4 / 7),
    "crossed": ([0, 0, 1, 1], [0, 1, 0, 1], 0.0, -0.5),
    "one-cluster": ([0, 0, 1, 1], [0, 0, 0, 0], 0.0, 0.0),
    "all-apart": ([0, 0, 0, 0], [0, 1, 2, 3], 0.0, 0.0),
    "both-constant": ([2, 2, 2], [1, 1, 1], 1.0, 1.0),
    "numbers-with-gaps": ([0, 0, 9, 9], [5, 5, 70_000, 8], 0.8, 4 / 7),
}


@pytest.mark.parametrize("name", KNOWN)
def test_scores_have_the_known_values(name: str) -> None:
    labels, clusters, nmi, ari = KNOWN[name]
    assert normalized_mutual_information(labels, clusters) == pytest.approx(nmi, abs=1e-12)
    assert adjusted_rand_index(labels, clusters) == pytest.approx(ari, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name != "one-row"])
def test_the_rand_index_counts_pairs(name: str) -> None:
    labels, clusters = CASES[name]()
    pairs = list(itertools.combinations(range(len(labels)), 2))
    one = [bool(labels[i] == labels[j]) for i, j in pairs]
    other = [bool(clusters[i] == clusters[j]) for i, j in pairs]
    both = sum(a and b for a, b in zip(one, other, strict=True))
    expected, largest = sum(one) * sum(other) / len(pairs), (sum(one) + sum(other)) / 2
    ari = 1.0 if largest == expected else (both - expected) / (largest - expected)
    assert adjusted_rand_index(labels, clusters) == pytest.approx(ari, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_scores_come_together(name: str) -> None:
    labels, clusters = CASES[name]()
    assert clustering_scores(labels, clusters) == {
        "accuracy": accuracy(labels, clusters),
        "nmi": normalized_mutual_information(labels, clusters),
        "ari": adjusted_rand_index(labels, clusters),
    }


@pytest.mark.parametrize("name", CASES)
def test_contingency_equals_that_of_scikit_learn(name: str) -> None:
    labels, clusters = CASES[name]()
    table = contingency(labels, clusters)
    assert table.shape == (int(labels.max()) + 1, int(clusters.max()) + 1)
    kept = table[table.sum(1) > 0][:, table.sum(0) > 0]
    assert kept.equal(torch.tensor(contingency_matrix(labels, clusters)))


@pytest.mark.parametrize("name", CASES)
def test_scores_do_not_mind_the_numbering(name: str) -> None:
    labels, clusters = CASES[name]()
    shuffled = torch.randperm(int(clusters.max()) + 1)[clusters]
    for key, score in clustering_scores(labels, clusters).items():
        assert clustering_scores(labels, shuffled)[key] == pytest.approx(score, abs=1e-12)


FORMS: dict[str, Callable[[Tensor], object]] = {
    "list": lambda t: t.tolist(),
    "numpy": lambda t: t.numpy(),
    "numpy-uint8": lambda t: t.numpy().astype(np.uint8),
    "tensor-uint8": lambda t: t.to(torch.uint8),
    "tensor-int32": lambda t: t.int(),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_come_in_any_form(form: str) -> None:
    labels, clusters = torch.randint(20, (200,)), torch.randint(30, (200,))
    converted = FORMS[form](labels), FORMS[form](clusters)
    assert contingency(*converted).equal(contingency(labels, clusters))


def test_contingency_is_printed_as_shares_of_each_label() -> None:
    labels = [0, 0, 0, 1, 1, 3]
    clusters = [2, 2, 0, 1, 1, 0]
    assert format_contingency(labels, clusters).splitlines() == [
        "label \\ cluster        0        1        2",
        "              0 0.333333 0.000000 0.666667",
        "              1 0.000000 1.000000 0.000000",
        "              2 0.000000 0.000000 0.000000",
        "              3 1.000000 0.000000 0.000000",
    ]


ERRORS: dict[str, tuple[object, object, type[Exception], str]] = {
    "lengths": ([0, 1], [0, 1, 1], ValueError, r"shape \(2,\) and clusters \(3,\)"),
    "empty": ([], [], ValueError, "N of at least 1"),
    "table": ([[0, 1]], [[0, 1]], ValueError, r"expected the same \(N,\)"),
    "negative-label": ([0, -1], [0, 1], ValueError, "labels contain -1"),
    "negative-cluster": ([1, 1], [2, -1], ValueError, "clusters contain -1"),
    "fraction": ([0.0, 1.0], [0, 1], TypeError, "labels have dtype torch.float"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given(name: str) -> None:
    labels, clusters, error, message = ERRORS[name]
    for score in (contingency, accuracy, normalized_mutual_information, adjusted_rand_index):
        with pytest.raises(error, match=message):
            score(labels, clusters)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("dimensions", "levels"), [(1, 256), (784, 256), (784, 2)])
def test_bits_per_dim_of_a_uniform_density(dimensions: int, levels: int) -> None:
    half = Uniform(torch.zeros(dimensions), 0.5).log_prob(torch.rand(9, dimensions) / 2).sum(-1)
    expected = math.log2(levels) - 1
    assert bits_per_dim(half, dimensions, levels) == pytest.approx(expected, abs=1e-12)


def test_bits_per_dim_of_a_certain_pixel_is_zero() -> None:
    narrow = torch.full((9,), 784 * math.log(256))
    assert bits_per_dim(narrow, 784) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.usefixtures("float64")
def test_kl_approaches_that_between_gaussians() -> None:
    truth = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
    other = MultivariateNormal(torch.tensor([0.3, -0.2]), torch.eye(2))
    x = truth.sample((50_000,))
    kl, error = kl_to_truth(truth.log_prob(x), other.log_prob(x))
    expected = float(kl_divergence(truth, other))
    assert abs(kl - expected) < 4 * error
    assert error < 0.02 * expected
    gap = truth.log_prob(x) - other.log_prob(x)
    assert error == pytest.approx(float(gap.std()) / math.sqrt(50_000), rel=1e-12)


def test_one_point_has_no_standard_error() -> None:
    with pytest.raises(ValueError, match="two points or more"):
        kl_to_truth(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(("dimensions", "levels"), [(0, 256), (-1, 256), (784, 0)])
def test_bits_need_pixels_and_levels(dimensions: int, levels: int) -> None:
    with pytest.raises(ValueError, match=r"is (0|-1)"):
        bits_per_dim(torch.zeros(3), dimensions, levels)


def test_kl_to_itself_is_zero() -> None:
    log_truth = torch.randn(9)
    assert kl_to_truth(log_truth, log_truth) == (0.0, 0.0)


def scores(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    inside, outside = torch.randn(60), torch.randn(40) + 1
    return {
        "distinct": (inside, outside),
        "tied": (inside.round(), outside.round()),
        "constant": (torch.zeros(3), torch.zeros(2)),
        "separate": (inside, outside + 99),
    }[kind]


@pytest.mark.parametrize("kind", ["distinct", "tied", "constant", "separate"])
def test_roc_is_that_of_scikit_learn(kind: str) -> None:
    inside, outside = scores(kind)
    truth = [0] * len(inside) + [1] * len(outside)
    both = torch.cat((inside, outside))
    expected = sklearn_roc_curve(truth, both, drop_intermediate=False)[:2]
    for found, wanted in zip(roc_curve(inside, outside), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    area = roc_auc_score(truth, both)
    assert area_under_roc(inside, outside) == pytest.approx(area, rel=1e-12)


def test_scores_of_rows_outside_the_support_are_infinite() -> None:
    assert area_under_roc([0.0, 1.0], [math.inf, 1.0]) == 0.875
    assert area_under_roc([0.0, math.inf], [math.inf, math.inf]) == 0.75


@pytest.mark.parametrize("bad", [[], [0.0, math.nan], [[0.0]]])
def test_scores_are_checked(bad: list[Any]) -> None:
    with pytest.raises(ValueError, match="scores_in have shape"):
        area_under_roc(bad, [1.0])
    with pytest.raises(ValueError, match="scores_out have shape"):
        roc_curve([1.0], bad)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (Poisson(3.0), Normal(3.0, 1.0)),
        (Normal(0.0, 1.0), Poisson(3.0)),
        (Bernoulli(0.5), Uniform(-1.0, 2.0)),
        (Delta(torch.tensor(0.0)), Normal(0.0, 1.0)),
        (Independent(Poisson(torch.ones(2)), 1), Independent(Normal(torch.zeros(2), 1.0), 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_probability_and_a_density_have_no_divergence(p: Any, q: Any) -> None:
    with pytest.raises(ValueError, match="the other a density"):
        kl_of_draws(p, q, seed=0)


def test_a_divergence_of_counts_is_finite() -> None:
    kl, error = kl_of_draws(Poisson(3.0), Poisson(4.0), seed=0)
    assert kl == pytest.approx(3 * math.log(3 / 4) + 1, abs=5 * float(error))


def test_logarithms_are_no_responsibilities() -> None:
    q = torch.randn(6, 3).softmax(1)
    for pair in ((q.log(), q), (q, q.log())):
        with pytest.raises(ValueError, match=r"below 0; expected responsibilities"):
            match_components(*pair)
