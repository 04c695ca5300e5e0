"""Schedules and what they refuse."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest

from pyro_vmonf.schedules import (
    Schedule,
    as_schedule,
    check_temperature,
    constant,
    exponential_decay,
    linear_decay,
)

VALUES: dict[str, tuple[Callable[[], Schedule], dict[int, float]]] = {
    "constant": (lambda: constant(0.5), {0: 0.5, 1: 0.5, 10**9: 0.5}),
    "constant-default": (constant, {0: 1.0, 10**9: 1.0}),
    "exponential": (
        lambda: exponential_decay(rate=0.01),
        {0: 1.0, 1: math.exp(-0.01), 100: math.exp(-1), 230: math.exp(-2.3), 231: 0.1, 10**9: 0.1},
    ),
    "exponential-initial": (
        lambda: exponential_decay(0.5, initial=4.0, floor=2.0),
        {0: 4.0, 1: 4 * math.exp(-0.5), 2: 2.0},
    ),
    "exponential-without-floor": (
        lambda: exponential_decay(1e-3, floor=0.0),
        {0: 1.0, 25_600: math.exp(-25.6)},
    ),
    "exponential-flat": (lambda: exponential_decay(0.0), {0: 1.0, 10**9: 1.0}),
    "linear": (lambda: linear_decay(100), {0: 1.0, 50: 0.55, 100: 0.1, 101: 0.1, 10**9: 0.1}),
    "linear-rising": (
        lambda: linear_decay(4, initial=1.0, final=3.0),
        {0: 1.0, 1: 1.5, 4: 3.0, 5: 3.0},
    ),
    "linear-one-step": (lambda: linear_decay(1, final=0.5), {0: 1.0, 1: 0.5}),
    "number": (lambda: as_schedule(2), {0: 2.0, 7: 2.0}),
}


@pytest.mark.parametrize("name", VALUES)
def test_schedules_take_the_stated_values(name: str) -> None:
    make, expected = VALUES[name]
    schedule = make()
    found = {step: schedule(step) for step in expected}
    assert found == pytest.approx(expected, rel=1e-12)
    assert all(isinstance(value, (int, float)) for value in found.values())


@pytest.mark.parametrize("name", VALUES)
def test_schedules_are_values(name: str) -> None:
    make, _ = VALUES[name]
    assert make() == make()
    assert pickle.loads(pickle.dumps(make())) == make()


def test_a_callable_is_its_own_schedule() -> None:
    assert as_schedule(math.sqrt) is math.sqrt


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "constant-zero": (lambda: constant(0.0), "temperature is 0.0"),
    "constant-negative": (lambda: constant(-1.0), "temperature is -1.0"),
    "constant-infinite": (lambda: constant(math.inf), "temperature is inf"),
    "constant-nan": (lambda: constant(math.nan), "temperature is nan"),
    "number": (lambda: as_schedule(0), "temperature is 0"),
    "check": (lambda: check_temperature(-0.1), "must be a positive finite number"),
    "initial": (lambda: exponential_decay(0.1, initial=0.0), "temperature is 0.0"),
    "rate-negative": (lambda: exponential_decay(-0.1), "rate is -0.1"),
    "rate-nan": (lambda: exponential_decay(math.nan), "rate is nan"),
    "rate-infinite": (lambda: exponential_decay(math.inf), "rate is inf"),
    "floor-negative": (lambda: exponential_decay(0.1, floor=-0.1), "floor is -0.1"),
    "floor-above": (lambda: exponential_decay(0.1, floor=2.0), "expected 0 <= floor <= 1.0"),
    "floor-nan": (lambda: exponential_decay(0.1, floor=math.nan), "floor is nan"),
    "linear-initial": (lambda: linear_decay(5, initial=-1.0), "initial is -1.0"),
    "linear-final": (lambda: linear_decay(5, final=math.nan), "final is nan"),
    "linear-steps": (lambda: linear_decay(0), "steps is 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given(name: str) -> None:
    make, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("initial", "final"), [(1.0, 1e-20), (1e8, 1e-3), (0.0, 5.0)])
def test_a_line_ends_at_its_end(initial: float, final: float) -> None:
    line = linear_decay(7, initial=initial, final=final)
    assert [line(0), line(7), line(100)] == [initial, final, final]
