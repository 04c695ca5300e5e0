"""Schedules: functions from the number of a training step to a positive number."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pyro_vmonf._utils.validation import check_number

Schedule = Callable[[int], float]
SMALLEST_TEMPERATURE = 1e-30  # below it quotients of logits are not finite


def check_temperature(value: float) -> float:
    """Return a valid temperature as a float.

    Raises:
        ValueError: if it is not a positive finite number.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):  # no number at all
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"temperature is {value!r}; it must be a positive finite number")
    return number


@dataclass(frozen=True)
class Constant:
    """A constant schedule: see :func:`constant`."""

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
        check_number("rate", self.rate, zero=True)
        check_number("floor", self.floor, zero=True)
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
            check_number(name, getattr(self, name), zero=True)  # the weight of a term can be zero
        if check_number("steps", self.steps) < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")

    def __call__(self, step: int) -> float:
        share = min(step / self.steps, 1.0)
        return (1 - share) * self.initial + share * self.final


def constant(value: float = 1.0) -> Constant:
    r"""Return the constant schedule :math:`T(t) = \mathrm{value}`.

    Raises:
        ValueError: if the value is not a positive finite number.

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
        floor: smallest temperature; at zero the softmax becomes an argmax.

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
    r"""Return the line from ``initial`` to ``final`` over ``steps`` steps, constant afterwards.

    .. math::
        T(t) = T_0 + \min(t / \mathrm{steps}, 1) \, (T_1 - T_0)

    Arguments:
        steps: number of steps.
        initial: the value :math:`T_0` of the first step.
        final: the value :math:`T_1` after the last step.

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
    """The exponential decay over a share of a run: see :func:`cooling`."""

    final: float = 0.1
    share: float = 0.5

    def __post_init__(self) -> None:
        check_temperature(self.final)
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected a share of the run, in (0, 1]")

    def over(self, steps: int, initial: float) -> Schedule:
        """Return the schedule of a run of ``steps`` steps that begins at ``initial``."""
        if initial <= self.final:
            return constant(initial)
        rate = math.log(initial / self.final) / max(self.share * steps, 1)
        return exponential_decay(rate, initial=initial, floor=self.final)


def cooling(final: float = 0.1, *, share: float = 0.5) -> Cooling:
    r"""Return the exponential decay to ``final`` over a share of the steps of a run.

    .. math::
        T(t) = \max(T_1, T_0 (T_1 / T_0)^{t / (\mathrm{share} \cdot \mathrm{steps})})

    :math:`T_0` is the temperature of the guide at the start of the run. The decay takes the same
    share of each run, whereas a rate per step depends on the number of rows and epochs.

    Arguments:
        final: the last temperature :math:`T_1`; a colder guide keeps its temperature.
        share: share of the run.

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
    """Return a number as a constant schedule, a function as it is, and a cooling over a run.

    Arguments:
        temperature: a number, a function of the step, or a :func:`cooling`.
        steps: steps of the run, for a cooling.
        initial: the first temperature, for a cooling.

    Raises:
        ValueError: if a number is no temperature.

    Example:
        >>> as_schedule(0.5)(10), as_schedule(cooling(), steps=10)(10)
        (0.5, 0.1)
    """
    if isinstance(temperature, Cooling):
        return temperature.over(steps, initial)
    return temperature if callable(temperature) else constant(temperature)
