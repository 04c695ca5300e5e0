"""Sentences of pages and docstrings are short and begin with their subject."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = [page for page in PAGES if "katex" not in page.parts]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "pyro_vmonf").rglob("*.py"))
# A noun clause as the subject; a question is none.
RIDDLES = re.compile(r"^(?:What|Whether|How|So|That)\b(?!.*\?$|-)")
LONGEST = 18.0  # words, in the mean over a page


def prose(text: str) -> str:
    """Return a page without code, tables, comments, headings and the addresses of links."""
    text = re.sub(r"```.*?```|>>>.*|<!--.*?-->|\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^(?:\||#|    |>|!\[|\(.*\)=).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "link", text)
    return re.sub(r"`[^`]*`", "code", text)


def sentences(text: str) -> list[str]:
    """Return the sentences of prose: each item of a list ends one."""
    found = []
    for part in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.|:)\s+", prose(text)):
        plain = re.sub(r"[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}", "", " ".join(part.split()))
        found += re.split(r"(?<=[.!?])\s+(?=[A-Z(]|code\b|link\b)", plain)
    return [sentence for sentence in found if len(re.findall(r"\w+", sentence)) > 2]


def words(sentence: str) -> int:
    return len(re.findall(r"[\w'’.-]*\w", sentence))


def docstrings(path: Path) -> list[str]:
    """Return the docstrings of the public names of a module."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [
        text
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
        if not getattr(node, "name", "").startswith("_")
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_plain(page: Path) -> None:
    found = sentences(page.read_text())
    assert not [sentence for sentence in found if RIDDLES.match(sentence)]
    if len(found) > 5:
        assert mean(map(words, found)) < LONGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_sentence_of_a_notebook_opens_with_a_noun_clause(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = [sentence for text in texts for sentence in sentences(text)]
    assert not [sentence for sentence in found if RIDDLES.match(sentence)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_of_a_docstring_opens_with_a_noun_clause(path: Path) -> None:
    found = [sentence for text in docstrings(path) for sentence in sentences(text)]
    assert not [sentence for sentence in found if RIDDLES.match(sentence)]
