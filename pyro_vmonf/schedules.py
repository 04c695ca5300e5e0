"""Schedules: functions from the number of a training step to a positive number."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


def check_temperature(value: float) -> float:
    """Return ``value`` if it can be a temperature.

    Raises:
        ValueError: if it is not a positive finite number.
    """
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"temperature is {value}; it must be a positive finite number")
    return float(value)


@dataclass(frozen=True)
class Constant:
    """The schedule that stays at one value: see :func:`constant`."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class ExponentialDecay:
    """The exponential schedule: see :func:`exponential_decay`."""

    rate: float
    initial: float = 1.0
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_temperature(self.initial)
        if not (math.isfinite(self.rate) and self.rate >= 0):
            raise ValueError(f"rate is {self.rate}; it must be a number of at least 0")
        if not 0 <= self.floor <= self.initial:
            raise ValueError(f"floor is {self.floor}; expected 0 <= floor <= {self.initial}")

    def __call__(self, step: int) -> float:
        return max(self.floor, self.initial * math.exp(-self.rate * step), sys.float_info.min)


@dataclass(frozen=True)
class Linear:
    """The linear schedule: see :func:`linear_decay`."""

    steps: int
    initial: float = 1.0
    final: float = 0.1

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):  # a term's weight may well be zero
                raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")

    def __call__(self, step: int) -> float:
        share = min(step / self.steps, 1.0)
        return self.initial + share * (self.final - self.initial)


def constant(value: float = 1.0) -> Constant:
    """Return the schedule that stays at ``value``.

    Example:
        >>> constant(0.5)(1000)
        0.5
    """
    return Constant(value)


def exponential_decay(rate: float, *, initial: float = 1.0, floor: float = 0.1) -> ExponentialDecay:
    r"""Return :math:`T(t) = \max(\mathrm{floor}, T_0 e^{-\mathrm{rate}\cdot t})`, t in steps.

    Arguments:
        rate: decay per step.
        initial: the temperature :math:`T_0` of the first step.
        floor: what it never falls below; without one the softmax ends as an argmax.

    Raises:
        ValueError: if the initial temperature is not positive, the rate is negative, or the floor
            is outside 0 to ``initial``.

    Example:
        >>> schedule = exponential_decay(rate=1e-3)
        >>> schedule(0), round(schedule(1000), 4), schedule(100_000)
        (1.0, 0.3679, 0.1)
    """
    return ExponentialDecay(rate, initial, floor)


def linear_decay(steps: int, *, initial: float = 1.0, final: float = 0.1) -> Linear:
    """Return the straight line from ``initial`` to ``final`` over ``steps`` steps, flat afterwards.

    Raises:
        ValueError: if a value is negative, or there are no steps.

    Example:
        >>> schedule = linear_decay(steps=100, final=0.5)
        >>> schedule(0), schedule(50), schedule(1000)
        (1.0, 0.75, 0.5)
    """
    return Linear(steps, initial, final)


@dataclass(frozen=True)
class Cooling:
    """The exponential decay that suits a run's length: see :func:`cooling`."""

    final: float = 0.1
    share: float = 0.5

    def __post_init__(self) -> None:
        check_temperature(self.final)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected a share of the run, in (0, 1]")

    def over(self, steps: int, initial: float) -> Schedule:
        """Return the schedule of a run of so many steps that begins at ``initial``."""
        if initial <= self.final:
            return constant(initial)
        rate = math.log(initial / self.final) / max(self.share * steps, 1)
        return exponential_decay(rate, initial=initial, floor=self.final)


def cooling(final: float = 0.1, *, share: float = 0.5) -> Cooling:
    """Return the decay from where the guide is to ``final``, over a share of the run's steps.

    The run's length is known once it starts, so this suits any number of rows; a rate per step is
    over after a few epochs of many rows and has hardly begun after as many of few.

    Arguments:
        final: the temperature that is reached; a guide that is as cool already stays as it is.
        share: the part of the run that it takes.

    Raises:
        ValueError: if the temperature is not positive, or the share not in (0, 1].

    Example:
        >>> schedule = cooling().over(steps=1000, initial=1.0)
        >>> schedule(0), round(schedule(250), 4), schedule(500), schedule(1000)
        (1.0, 0.3162, 0.1, 0.1)
    """
    return Cooling(final, share)


def as_schedule(
    temperature: float | Schedule | Cooling, *, steps: int = 1, initial: float = 1.0
) -> Schedule:
    """Return the schedule for a number (constant), a callable (itself), or the rest of a run.

    Arguments:
        temperature: what a user gave.
        steps: of the run.
        initial: the temperature that it begins at.
    """
    if isinstance(temperature, Cooling):
        return temperature.over(steps, initial)
    return temperature if callable(temperature) else constant(temperature)
