"""Larger Pyro programs with the mixture as a part, each beside what that part replaces."""

from __future__ import annotations

from collections.abc import Callable

from examples import hmm, nested, regression, topics, tree, two, vae

EXAMPLES: dict[str, Callable[..., dict[str, float]]] = {
    "vae": vae.run,
    "hmm": hmm.run,
    "regression": regression.run,
    "two": two.run,
    "nested": nested.run,
    "topics": topics.run,
    "tree": tree.run,
}
