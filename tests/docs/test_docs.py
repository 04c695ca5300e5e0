"""The site lists every page, and every name on a page exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import pyro_vmonf
from benchmarks import pages
from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.__main__ import parser
from pyro_vmonf._moved import MOVED
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Consistency

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDERS = [DOCS, DOCS / "howto", DOCS / "explanation"]
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))


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
    pages = {str(page.relative_to(ROOT).with_suffix("")) for page in PAGES} - {"docs/index"}
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


@pytest.mark.parametrize("room", ["flows", "guides", "nn", "plots", "starts", "transforms"])
def test_every_name_of_a_room_for_users_is_in_the_reference(room: str) -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    if f"automodule:: pyro_vmonf.{room}\n" in text:
        return
    for name in importlib.import_module(f"pyro_vmonf.{room}").__all__:
        assert re.search(rf":: pyro_vmonf\.([\w.]+\.)?{name}$", text, re.MULTILINE), name


def options_of(section: str) -> dict[str, str]:
    """Return the options of a section of the page of options, and their defaults."""
    text = (DOCS / "options.md").read_text().split(f"## {section}")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.MULTILINE))


def defaults(*functions: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of functions, and their defaults."""
    own = [p for function in functions for p in inspect.signature(function).parameters.values()]
    return {p.name: p.default for p in own if p.default is not inspect.Parameter.empty}


def test_the_page_of_options_has_each_option_and_its_default() -> None:
    listed = options_of("Options of `fit`")
    given = defaults(pyro_vmonf.fit, VMoNF.fit)
    assert {name: ast.literal_eval(text) for name, text in listed.items()} == given
    listed, given = options_of("Options of `from_data`"), defaults(VMoNF.from_data)
    assert {name: ast.literal_eval(text) for name, text in listed.items()} == given


def test_the_numbers_of_the_pages_are_those_of_the_results() -> None:
    found = set()
    for page in pages.pages():
        text = page.read_text()
        assert pages.filled(text) == text, f"{page.name}: run python -m benchmarks.pages"
        found |= set(re.findall(r"<!-- numbers: ([\w-]+) -->", text))
    assert found == pages.BLOCKS.keys()


def test_no_name_of_the_package_is_a_module_in_disguise() -> None:
    for name in pyro_vmonf.__all__:
        assert not isinstance(getattr(pyro_vmonf, name), types.ModuleType), name


THESIS = (DOCS / "thesis_to_code.md").read_text()
# The change log names earlier places, too.
ALL_PAGES = [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
TEXT = "\n".join(page.read_text() for page in ALL_PAGES)
CODE = re.findall(r"`([^`\n]+)`", TEXT) + re.findall(r"^\.\. \w+:: (\S+)", TEXT, re.MULTILINE)
NAMES = sorted({code for code in CODE if re.fullmatch(r"pyro_vmonf(\.\w+)+", code)})
FILES = sorted(
    {code for code in CODE if re.fullmatch(r"(?!out/|data/)[\w.-]+(/[\w.-]+)+\.\w+", code)}
)


def test_the_pages_name_much() -> None:
    assert len(NAMES) > 100
    assert len(FILES) > 25


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_a_page_exists(name: str) -> None:
    path, found = name.split("."), None
    for cut in range(len(path), 0, -1):
        try:
            found = importlib.import_module(".".join(path[:cut]))
        except ModuleNotFoundError:
            continue
        break
    for part in path[cut:]:
        found = getattr(found, part)
    assert found is not None


@pytest.mark.parametrize("file", FILES)
def test_a_file_on_a_page_exists(file: str) -> None:
    assert (ROOT / file).is_file()


SOURCES = [
    *ALL_PAGES,
    *(ROOT / "notebooks").glob("*.ipynb"),
    *(p for folder in ("benchmarks", "examples") for p in (ROOT / folder).glob("*.py")),
]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_an_old_place(page: Path) -> None:
    assert not re.findall(rf"\bpyro_vmonf\.(?:{'|'.join(MOVED)})\b", page.read_text())


COMMANDS = re.findall(r"`(python -m pyro_vmonf run [^`]+)`", THESIS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands_that_the_page_on_the_thesis_names_are_understood(command: str) -> None:
    given = command.replace("NAME", "pinwheel").split()[3:]
    assert parser().parse_args(given).command == "run"


def test_every_equation_of_the_thesis_is_on_the_page() -> None:
    rows = re.findall(r"^\| ([2-4]\.\d+[^|]*) \|", THESIS, re.MULTILINE)
    named: set[tuple[int, int]] = set()
    for row in rows:
        for first, last in re.findall(r"(\d\.\d+)(?: to (\d\.\d+))?", row):
            chapter, start = map(int, first.split("."))
            stop = int(last.split(".")[1]) if last else start
            named |= {(chapter, number) for number in range(start, stop + 1)}
    wanted = {(c, i + 1) for c, count in ((2, 40), (3, 28), (4, 3)) for i in range(count)}
    assert named == wanted


def fit(x: Any, term: Any = None, dtype: torch.dtype = torch.float32) -> None:
    """Fit a small pair to what is given."""
    guide = SoftmaxGuide(MLP(2, 3), None if term is None else [term])
    VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), guide).to(dtype).fit(x, epochs=2, progress=False)


def load(folder: Path, content: Any) -> None:
    """Save something and load it as a pair."""
    path = folder / "file.pt"
    torch.save(content, path) if isinstance(content, dict) else content.save(path)
    VMoNF.load(path)


ROWS = 40 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
OWN = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
MESSAGES: dict[str, Callable[[Path], None]] = {
    "x has infinite values in": lambda _: fit(torch.full((20, 2), torch.inf)),
    "of x have no entry, only NaN": lambda _: fit(torch.cat((ROWS, torch.full((1, 2), torch.nan)))),
    "x has dtype torch.uint8; the flows are densities of real numbers": lambda _: fit(
        ROWS.to(torch.uint8)
    ),
    "steps had a loss or gradient that is not finite": lambda _: fit(
        ROWS, lambda batch: batch.log_q.sum(-1) * torch.nan
    ),
    "beyond torch.float32; rescale them, or use model.double()": lambda _: fit(1e36 * ROWS),
    "holds modules that are not pyro_vmonf's; build the pair and pass it": lambda folder: load(
        folder, VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(OWN))
    ),
    "cannot be read as a fitted mixture of pyro_vmonf": lambda folder: load(folder, {"a": 1}),
    "a random walk starts from the row's position in the data": lambda _: fit(
        DataLoader(ROWS, batch_size=10),  # type: ignore[arg-type]
        Consistency(RandomWalk(ROWS, neighbors=3)),
    ),
}


@pytest.mark.filterwarnings("ignore:.*is not a part of pyro_vmonf")
@pytest.mark.parametrize("message", MESSAGES)
def test_messages_that_the_page_on_troubles_quotes_are_raised(message: str, tmp_path: Path) -> None:
    assert message in (DOCS / "troubleshooting.md").read_text()
    errors = (ValueError, TypeError, FloatingPointError)
    with pytest.raises(errors, match=re.escape(message)):
        MESSAGES[message](tmp_path)
