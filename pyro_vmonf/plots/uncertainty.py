"""Probabilities of the clusters, for rows of any number of features."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples

from pyro_vmonf.contracts import Pair
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import to_numpy

MOST_STRIPES = 2000  # rows beside each other


@styled
def plot_uncertainty(vmonf: Pair, x: Any, *, ax: Axes | None = None) -> Axes:
    r"""Draw the share of the rows whose cluster has at most a probability.

    One curve is the guide's :math:`\max_c q(c|x)`, the other that of Bayes' rule. A guide that
    claims more than the components do has the lower curve.

    Arguments:
        vmonf: the pair.
        x: rows ``(N, *event_shape)``.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the rows do not fit, or there are none.

    Example:
        >>> import torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> ax = plot_uncertainty(VMoNF(FlowMixture(RealNVP(3, 2))), torch.randn(50, 3))
        >>> ax.get_xlabel()
        'probability of the cluster'
    """
    exact = np.sort(to_numpy(vmonf.predict_proba(x, exact=True).amax(-1)))
    if not len(exact):
        raise ValueError("x has no rows; pass some")
    guide = np.sort(to_numpy(vmonf.predict_proba(x).amax(-1)))
    ax = axes_or_new(ax)
    share = np.arange(1, len(exact) + 1) / len(exact)
    first, second = component_colors(2)
    ax.step(exact, share, where="post", color=second, linestyle="--", label="Bayes' rule")
    ax.step(guide, share, where="post", color=first, label="guide")
    lowest = min(float(exact[0]), float(guide[0]), 0.95)
    ax.set(xlabel="probability of the cluster", ylabel="share of the rows", ylim=(0, 1.02))
    ax.set_xlim(lowest - 0.02 * (1 - lowest), 1 + 0.02 * (1 - lowest))
    ax.legend(loc="upper left")
    return ax


@styled
def plot_memberships(
    vmonf: Pair, x: Any, *, exact: bool = False, seed: int = 0, ax: Axes | None = None
) -> Axes:
    """Draw the probabilities of each row as a stripe, the rows ordered by cluster and certainty.

    Arguments:
        vmonf: the pair.
        x: rows ``(N, *event_shape)``; at most 2,000 of them are drawn.
        exact: by Bayes' rule, in place of the guide.
        seed: of the choice of rows.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if the rows do not fit, or there are none.

    Example:
        >>> import torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> ax = plot_memberships(VMoNF(FlowMixture(RealNVP(3, 2))), torch.randn(50, 3))
        >>> ax.get_ylabel()
        'probability'
    """
    q = to_numpy(vmonf.predict_proba(x, exact=exact))
    if not len(q):
        raise ValueError("x has no rows; pass some")
    ax = axes_or_new(ax)
    if len(q) > MOST_STRIPES:
        q = q[np.random.default_rng(seed).permutation(len(q))[:MOST_STRIPES]]
    best = q.argmax(1)
    q = q[np.lexsort((-q.max(1), best))]
    edges = np.linspace(0.0, 1.0, len(q) + 1)
    upper = np.concatenate([np.zeros((1, len(q))), q.T.cumsum(0)])
    for k, color in enumerate(component_colors(q.shape[1])):
        values, base = (np.append(part, part[-1]) for part in (upper[k + 1], upper[k]))
        ax.fill_between(edges, base, values, step="post", color=color, linewidth=0, label=str(k))
    ax.set(xlabel="share of the rows", ylabel="probability")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    if q.shape[1] <= 12:
        ax.legend(title="cluster", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
