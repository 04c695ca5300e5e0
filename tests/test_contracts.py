import doctest
from typing import Any

import pytest

from pyro_vmonf import contracts
from pyro_vmonf.contracts import optional, required

NAMES = ["Bank", "Transform", "Weights", "Guide", "Term", "Distortion", "Start"]


@pytest.mark.parametrize("name", NAMES)
def test_each_contract_has_a_recipe_of_about_ten_lines_that_runs(name: str) -> None:
    text = getattr(contracts, name).__doc__
    assert "Implementing a" in text or "Implementing weights" in text
    [test] = doctest.DocTestFinder(recurse=False).find(getattr(contracts, name), name)
    lines = sum(example.source.count("\n") for example in test.examples)
    assert 4 <= lines <= 16
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0


def test_an_optional_member_has_a_default() -> None:
    class Part:
        def start_(self) -> str:
            return "own"

    assert optional(Part(), "start_", lambda: "default")() == "own"
    assert optional(object(), "start_", lambda: "default")() == "default"


def test_a_required_member_is_named_with_its_verb() -> None:
    class Mute:
        pass

    with pytest.raises(TypeError, match="predict needs log_q, which Mute does not have"):
        required(Mute(), "log_q", "predict")
    part: Any = Mute()
    part.log_q = 3
    assert required(part, "log_q", "predict") == 3
