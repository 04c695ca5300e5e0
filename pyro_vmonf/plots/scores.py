"""Scores of clusterings and of anomaly detection."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf.metrics import accuracy, area_under_roc, contingency, match, roc_curve
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import UNLABELLED, component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.tables import draw_table, outline
from pyro_vmonf.plots.window import to_numpy


@styled
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
    """Draw the contingency table of labels (rows) and clusters (columns), as in thesis Table 5.1.

    Outlines mark the best one-to-one matching. The title is its share of the rows of the data.

    Arguments:
        labels: integers ``(N,)`` of at least 0.
        clusters: integers ``(N,)`` of at least 0.
        normalize: divide each row by its sum; ``False`` shows the counts.
        matching: ``False`` for no outlines and no title.
        ordered: sort the clusters by their matched labels; the ticks keep the cluster numbers.
        num_clusters: the least number of columns, so that empty clusters show.
        ax: the axes; by default those of a new figure.

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


@styled
def plot_roc(scores_in: Any, scores_out: Any, *, label: str = "", ax: Axes | None = None) -> Axes:
    """Draw the ROC curve: the share of anomalies flagged over the share of ordinary rows flagged.

    A second call on the same axes adds a curve in another colour.

    Arguments:
        scores_in: scores ``(N,)`` of ordinary rows, such as ``-vmonf.log_prob(x)``; larger is
            more anomalous.
        scores_out: scores ``(M,)`` of anomalies.
        label: the text before the area under the curve in the legend.
        ax: the axes; by default those of a new figure.

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
