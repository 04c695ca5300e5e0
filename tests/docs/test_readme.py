"""The README's snippets run, and its first one trains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


# The README's snippets stand alone; a page of the docs is read from its beginning.
SNIPPETS = [
    pytest.param([code], id=f"README.md-{number}")
    for number, code in enumerate(snippets(ROOT / "README.md"))
] + [pytest.param(snippets(page), id=page.name) for page in PAGES[1:] if snippets(page)]


def test_the_readme_has_snippets() -> None:
    assert sum("README" in str(snippet.id) for snippet in SNIPPETS) >= 2


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.parametrize("codes", SNIPPETS)
def test_snippets_run(codes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # the length of the training, and nothing else, is shortened
    names: dict[str, object] = {"__name__": "snippet"}
    for code in codes:
        exec(re.sub(r"epochs=\d+", "epochs=2", code), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
