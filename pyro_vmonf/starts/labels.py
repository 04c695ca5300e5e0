"""Clusters from a few labels, spread to the other rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf.starts.choice import Scored, links_of, scored
from pyro_vmonf.starts.gaussians import fit_gaussians
from pyro_vmonf.starts.lessons import named
from pyro_vmonf.starts.ready_made import MOST
from pyro_vmonf.starts.tree import spanning_tree

Array = np.ndarray[Any, Any]
Spread = Callable[[Array], Array]  # from labels with -1 to a label for each row
FOLDS = 5


def along_tree(x: Array) -> Spread:
    """Return the function that gives each row the label that it reaches by the shortest steps.

    The longest edge on the way through the spanning tree counts.
    """
    _, parent, length = spanning_tree(x)
    edges = [int(row) for row in np.argsort(length, kind="stable") if parent[row] >= 0]

    def spread(labels: Array) -> Array:
        result = labels.copy()
        home = np.arange(len(x))
        waiting = [[row] if label < 0 else [] for row, label in enumerate(labels)]
        label_of = labels.copy()

        def find(row: int) -> int:
            while home[row] != row:
                home[row] = home[home[row]]
                row = int(home[row])
            return row

        for row in edges:
            one, other = find(row), find(int(parent[row]))
            if len(waiting[one]) < len(waiting[other]):
                one, other = other, one
            known = label_of[one] if label_of[one] >= 0 else label_of[other]
            if known >= 0:
                for part in (one, other):
                    result[waiting[part]] = known
                    waiting[part] = []
            home[other] = one
            waiting[one] += waiting[other]
            label_of[one] = known
        return result

    return spread


def to_nearest(x: Array) -> Spread:
    """Return the function that gives each row the label of the nearest row with one."""
    from sklearn.neighbors import KNeighborsClassifier

    def spread(labels: Array) -> Array:
        known = labels >= 0
        nearest = KNeighborsClassifier(1).fit(x[known], labels[known])
        return np.where(known, labels, nearest.predict(x))

    return spread


def by_gaussians(x: Array, seed: int = 0) -> Spread:
    """Return the function in which the Gaussians of a large mixture vote by the rows they hold."""
    r = fit_gaussians(x, MOST, seed=seed).responsibilities(x)
    nearest = to_nearest(x)

    def spread(labels: Array) -> Array:
        known = labels >= 0
        held = r[known].T @ np.eye(labels.max() + 1)[labels[known]]
        mass = held.sum(1, keepdims=True)
        share = r @ np.where(mass > 0.1, held / np.maximum(mass, 1e-12), 0.0)
        voted = np.where(share.max(1) > 0, share.argmax(1), nearest(labels))
        return np.where(known, labels, voted)

    return spread


def left_out(spread: Spread, labels: Array, seed: int = 0) -> Array:
    """Return which labels are right when they are left out, a fifth of them at a time."""
    known = np.flatnonzero(labels >= 0)
    order = np.random.default_rng(seed).permutation(len(known))
    right = np.zeros(len(known), dtype=bool)
    for fold in range(FOLDS):
        part = order[fold::FOLDS]
        some = labels.copy()
        some[known[part]] = -1
        if len(part) and (some >= 0).any():
            right[part] = spread(some)[known[part]] == labels[known[part]]
    return right


def surely_better(right: Array, other: Array) -> bool:
    r"""Return whether the labels that are left out prefer one spread to another beyond chance.

    With *w* labels that only the first has right, and *l* that only the second has right, the
    difference has one standard deviation of :math:`\sqrt{w + l}` if neither is better (McNemar,
    1947).
    """
    won, lost = int((right & ~other).sum()), int((other & ~right).sum())
    return won - lost > math.sqrt(won + lost)


def by_labels(
    z: Array, labels: Array, components: int, candidates: list[Scored], seed: int
) -> list[Scored]:
    """Return candidates whose numbers are those of the labels, the best on left-out labels first.

    Where every component has labels, these are spread in three ways as well. The candidate that is
    first without labels stays so, unless the labels prefer another one beyond chance.
    """
    y = torch.as_tensor(labels)
    if not bool((y >= 0).any()):
        return candidates
    found: list[tuple[Array, Scored]] = []
    for candidate in candidates:
        if len(candidate.densities) != components:
            continue
        own = torch.as_tensor(candidate.clusters)

        def renamed(some: Array, own: Tensor = own) -> Array:
            return named(own, torch.as_tensor(some), components).numpy()

        kept = replace(candidate, clusters=renamed(labels))
        order = [int(own[kept.clusters == c][0]) for c in range(len(candidate.densities))]
        kept = replace(kept, densities=[candidate.densities[c] for c in order])
        found.append((left_out(renamed, labels, seed), kept))
    unlabelled = found[:1]
    if len(np.unique(labels[labels >= 0])) == components:
        links = links_of(z)
        spreads = {
            "labels along the tree": along_tree(z),
            "nearest label": to_nearest(z),
            "labels of Gaussians": by_gaussians(z, seed),
        }
        for name, spread in spreads.items():
            kept = scored(name, z, spread(labels), links, seed=seed)
            found.append((left_out(spread, labels, seed), kept))
    if not found:
        raise ValueError(
            f"no start finds {components} clusters that the labels could name; pass fewer "
            "components"
        )
    found.sort(key=lambda pair: (-pair[0].mean(), -pair[1].score))
    for first in unlabelled:
        if not surely_better(found[0][0], first[0]):
            found = [first, *(pair for pair in found if pair is not first)]
    return [kept for _, kept in found]
