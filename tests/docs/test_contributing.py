"""The map of the rooms is complete, and the recipes run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyro_vmonf
from pyro_vmonf import contracts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"### (?:An? )?(\w[\w ]*)\n.*?```python\n(.*?)```", TEXT, re.DOTALL))
PARTS = {
    "transform": "Transform",
    "bank": "Bank",
    "Weights": "Weights",
    "guide": "Guide",
    "term": "Term",
    "distortion": "Distortion",
    "start": "Start",
}


def test_the_map_has_the_rooms_of_the_package_in_their_order() -> None:
    listed = re.findall(r"^    (\w+) {2,}\S", pyro_vmonf.__doc__ or "", re.MULTILINE)
    table = TEXT.split("## The rooms")[1].split("## Rules")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    assert [room for row in rows for room in re.findall(r"`(\w+)`", row)] == listed


def test_each_contract_has_a_recipe() -> None:
    assert RECIPES.keys() == PARTS.keys() | {"stopping rule"}
    for part, contract in PARTS.items():
        assert hasattr(contracts, contract)
        section = TEXT.split(f"{part}\n\n")[1].split("```")[0]
        assert f"`contracts.{contract}`" in section


@pytest.mark.parametrize("part", RECIPES)
def test_a_recipe_runs_and_is_short(part: str) -> None:
    own = [line for line in RECIPES[part].split("\n") if line and "import" not in line]
    assert len(own) <= 12
    exec(RECIPES[part], {"__name__": "recipe"})


@pytest.mark.parametrize("part", RECIPES)
def test_the_places_of_a_part_exist(part: str) -> None:
    [row] = re.findall(rf"^\| {part.lower()} \|(.*)$", TEXT, re.MULTILINE)
    paths = re.findall(r"`([\w.]+/[\w./]*)`", row)
    assert [path.split("/")[0] for path in (paths[0], paths[-1])] == ["pyro_vmonf", "docs"]
    for path in paths:
        assert (ROOT / path).exists(), path
    for table, path in re.findall(r"`([A-Z]+)` in `([\w./]+)`", row):
        assert re.search(rf"^{table}\b", (ROOT / path).read_text(), re.MULTILINE), table
