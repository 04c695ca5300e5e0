"""The site lists every page, and the pages name what there is."""

from __future__ import annotations

import importlib
import re
import types
from pathlib import Path

import pytest

import pyro_vmonf

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def toctrees(page: Path) -> list[str]:
    """Return the entries of a page's toctrees, as paths from the repository's root."""
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL)
    entries = [
        line for block in blocks for line in block.split("\n") if line and not line.startswith(":")
    ]
    return [
        entry[1:]
        if entry.startswith("/")
        else str((page.parent / entry).resolve().relative_to(ROOT.resolve()))
        for entry in entries
    ]


def test_every_page_is_in_the_index() -> None:
    listed = toctrees(DOCS / "index.md")
    pages = {f"docs/{page.stem}" for page in PAGES} - {"docs/index"}
    assert pages <= set(listed), pages - set(listed)
    assert "notebooks/*" in listed
    assert len(listed) == len(set(listed)), "a page is listed twice"


def test_every_page_of_the_reference_is_in_its_index() -> None:
    pages = {f"docs/api/{page.stem}" for page in (DOCS / "api").glob("*.md")} - {"docs/api/index"}
    assert set(toctrees(DOCS / "api" / "index.md")) == pages


def test_every_name_of_the_package_is_in_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    # Those of a module that is there as a whole stand with their module's name.
    whole = [importlib.import_module(name) for name in re.findall(r"automodule:: (\S+)", text)]
    for name in set(pyro_vmonf.__all__) - {"__version__"}:
        found = getattr(pyro_vmonf, name)
        inside = any(module.__name__ == found.__module__ for module in whole)
        assert inside or re.search(rf":: pyro_vmonf\.{name}$", text, re.MULTILINE), name


def test_no_name_of_the_package_is_a_module_in_disguise() -> None:
    for name in pyro_vmonf.__all__:
        assert not isinstance(getattr(pyro_vmonf, name), types.ModuleType), name
