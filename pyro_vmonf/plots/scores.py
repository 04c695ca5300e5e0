"""How good a clustering or an anomaly score is."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf.metrics import accuracy, area_under_roc, contingency, match, roc_curve
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import UNLABELLED, component_colors
from pyro_vmonf.plots.tables import draw_table, outline
from pyro_vmonf.plots.window import to_numpy


def plot_contingency(
    labels: Any,
    clusters: Any,
    *,
    normalize: bool = True,
    matching: bool = True,
    ordered: bool = False,
    num_clusters: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw how the labels (rows) fall into clusters (columns), as in thesis Table 5.1.

    The cells of the one-to-one matching with most agreement are outlined, and the share of the rows
    that they hold is the title.

    Arguments:
        labels: integers ``(N,)`` of at least 0.
        clusters: integers ``(N,)`` of at least 0.
        normalize: divide each row by its sum, or show the counts.
        matching: ``False`` for no outlines and no title.
        ordered: put each cluster below the label that it is matched with, on the diagonal; the
            numbers below the columns stay those of the clusters.
        num_clusters: columns to have at least, so that empty clusters show.
        ax: where to draw.

    Raises:
        TypeError: if labels or clusters are not integers.
        ValueError: if the lengths differ, there are no rows, or a number is negative.

    Example:
        >>> ax = plot_contingency([0, 0, 1], [1, 1, 0], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.texts], ax.get_title()
        (['0.00', '1.00', '1.00', '0.00'], 'best matching: 1.000')
    """
    counts = to_numpy(contingency(labels, clusters, num_clusters))
    label_of = to_numpy(match(labels, clusters, counts.shape[1]))
    order = label_of.argsort() if ordered else np.arange(len(label_of))
    counts, label_of = counts[:, order], label_of[order]
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    texts = [[f"{share:.2f}" for share in row] for row in shares] if normalize else counts.tolist()
    ax = axes_or_new(ax)
    draw_table(ax, shares, texts)
    ax.set_xticks(range(len(order)), map(str, order))
    if matching:
        matched = [(int(row), column) for column, row in enumerate(label_of)]
        outline(ax, [cell for cell in matched if cell[0] < len(counts)])
        ax.set_title(f"best matching: {accuracy(labels, clusters):.3f}")
    ax.set(xlabel="cluster", ylabel="label")
    return ax


def plot_roc(scores_in: Any, scores_out: Any, *, label: str = "", ax: Axes | None = None) -> Axes:
    """Draw the share of anomalies found over that of false alarms, as the threshold falls.

    A second call on the same Axes adds a curve, in another colour.

    Arguments:
        scores_in: scores ``(N,)`` of ordinary rows; larger is more anomalous, such as
            ``-vmonf.log_prob(x)``.
        scores_out: scores ``(M,)`` of anomalies.
        label: what the legend says before the area under the curve.
        ax: where to draw.

    Raises:
        ValueError: if either has no scores, or a score is NaN.

    Example:
        >>> ax = plot_roc([0.1, 0.2, 0.3], [0.25, 0.9], label="flows", ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['flows: AUC 0.833']
    """
    false_alarms, found = roc_curve(scores_in, scores_out)
    area = f"AUC {area_under_roc(scores_in, scores_out):.3f}"
    ax = axes_or_new(ax)
    if not ax.get_lines():
        ax.axline((0, 0), (1, 1), color=UNLABELLED, linestyle="--", linewidth=0.8)
    drawn = len(ax.get_lines()) - 1
    color = component_colors(drawn + 1)[drawn]
    text = f"{label}: {area}" if label else area
    ax.plot(to_numpy(false_alarms), to_numpy(found), color=color, label=text, clip_on=False)
    ax.set(xlabel="share of ordinary rows flagged", ylabel="share of anomalies flagged")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.legend(loc="lower right")
    return ax
