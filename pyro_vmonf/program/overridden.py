"""Whether a subclass that changes the program also changed a member that is derived from it."""

from __future__ import annotations

from typing import Any

PROGRAM = ("forward", "draw_parts")  # the members that make the program


def follows(model: Any, *members: str) -> bool:
    """Return whether one of the members is at least as new as the program.

    A class that overrides ``forward`` or ``draw_parts`` changes the program. Members of its bases
    then speak of the former one.

    Arguments:
        model: the model.
        members: names of members, each of which alone would do.

    Example:
        >>> class Base:
        ...     def forward(self): ...
        ...     def mixture(self): ...
        >>> class Changed(Base):
        ...     def forward(self): ...
        >>> follows(Base(), "mixture"), follows(Changed(), "mixture")
        (True, False)
    """
    program = min(_age(model, name) for name in PROGRAM)
    return any(_age(model, name) <= program for name in members)


def check_follows(model: Any, verb: str, *members: str) -> None:
    """Refuse a verb whose formula is not that of the program.

    Raises:
        TypeError: if the class changes the program and none of the members.
    """
    if follows(model, *members):
        return
    kind = type(model).__name__
    raise TypeError(
        f"{verb} rests on the formula of a FlowMixture, but {kind} has a program of its own; "
        f"override {' or '.join(members)} in {kind} as well, as that program has it, and {verb} "
        "uses it"
    )


def _age(model: Any, name: str) -> int:
    """Return how far above the object a member is defined; a large number if nowhere."""
    holders = (vars(model), *map(vars, type(model).__mro__))
    return next((i for i, holder in enumerate(holders) if name in holder), len(holders))
