"""Models of a user with a program of their own, and the verbs that rest on the former one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from pyro import poutine

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf.program.store import is_quiet, unregistered

PROBED_ROWS = 8
PROGRAM = ("forward", "draw_parts")  # the members that make the program
_running: ContextVar[tuple[Any, ...]] = ContextVar("running", default=())


@contextmanager
def running(model: Any) -> Iterator[None]:
    """Run the program of a model, which may build on any member of its bases."""
    token = _running.set((*_running.get(), model))
    try:
        yield
    finally:
        _running.reset(token)


def follows(model: Any, *members: str, program: Sequence[str] = PROGRAM) -> bool:
    """Return whether one of the members is at least as new as the program.

    A class that overrides ``forward`` or ``draw_parts`` changes the program. Members of its bases
    then speak of the former one.

    Arguments:
        model: the model.
        members: names of members, each of which alone would do.
        program: the members that make the program.

    Example:
        >>> class Base:
        ...     def forward(self): ...
        ...     def mixture(self): ...
        >>> class Changed(Base):
        ...     def forward(self): ...
        >>> follows(Base(), "mixture"), follows(Changed(), "mixture")
        (True, False)
    """
    age = min(_age(model, name) for name in program)
    return any(_age(model, name) <= age for name in members)


def check_follows(model: Any, verb: str, *members: str) -> None:
    """Refuse a verb whose formula is not that of the program.

    The program itself is refused nothing, and neither is a fit, which goes by the program.

    Raises:
        TypeError: if the class changes the program and none of the members, and its ``c`` and ``x``
            are not those of the mixture.
    """
    if follows(model, *members) or is_quiet() or any(model is own for own in _running.get()):
        return
    if _has_the_mixture(model):
        return
    kind = type(model).__name__
    raise TypeError(
        f"{verb} rests on the formula of a FlowMixture, but {kind} has a program of its own; "
        f"override {' or '.join(members)} in {kind} as well, as that program has it, and {verb} "
        "uses it"
    )


def _has_the_mixture(model: Any) -> bool:
    """Return whether ``c`` and ``x`` of a changed program are still those of the mixture.

    The program runs once on a few rows that the mixture draws. Sites beside them change no density
    of a row.
    """
    if model.context_features:
        return False
    with own_store(), evaluating(model), local_seed(0), torch.no_grad(), unregistered():
        mixture = model.mixture()
        x = mixture.sample((PROBED_ROWS,))
        try:
            with poutine.block():
                nodes = poutine.trace(model).get_trace(x).nodes
            c, own = nodes[model.site("c")], nodes[model.site("x")]
            plain = all(site["mask"] is None and site["scale"] == 1.0 for site in (c, own))
            rows = c["value"].shape == (PROBED_ROWS,) and own["is_observed"]
            if not plain or not rows or not torch.equal(own["value"], x):
                return False
            joint = c["fn"].log_prob(c["value"]) + own["fn"].log_prob(x)
        except Exception:  # a program of a user may raise anything
            return False
        expected = mixture.joint_log_prob(x).gather(-1, c["value"].unsqueeze(-1)).squeeze(-1)
        return bool(torch.allclose(joint, expected, rtol=1e-4, atol=1e-4))


def _age(model: Any, name: str) -> int:
    """Return how far above the object a member is defined; a large number if nowhere."""
    holders = (vars(model), *map(vars, type(model).__mro__))
    return next((i for i, holder in enumerate(holders) if name in holder), len(holders))
