import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyro_vmonf

PACKAGE = Path(pyro_vmonf.__file__).parent
# From high to low, as the docstring of the package lists them.
ROOMS = re.findall(r"^    (\w+) {2,}\S", pyro_vmonf.__doc__ or "", re.MULTILINE)
FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(("pyro_vmonf", *(p for p in parts if p != "__init__")))


def room_of(module: str) -> str | None:
    """The room of a module; ``None`` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


MODULES = {module_of(file): file for file in FILES}


def imports(source: str) -> Iterator[str]:
    """Every module of the package that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] == "pyro_vmonf")


def test_each_room_stands_once_in_the_order() -> None:
    rooms = {room_of(module) for module in MODULES} - {None}
    assert sorted(ROOMS) == sorted(r for r in rooms if r is not None)
    assert 25 <= len(ROOMS) <= 32


@pytest.mark.parametrize("file", [f for f in FILES if f != Path("__init__.py")], ids=str)
def test_imports_go_down(file: Path) -> None:
    own = room_of(module_of(file))
    assert own is not None
    for module in imports((PACKAGE / file).read_text()):
        room = room_of(module)
        assert room is not None, f"{file} imports the package itself"
        if room != own:
            assert ROOMS.index(room) > ROOMS.index(own), f"{file} imports {module}, which is above"


def test_no_circle() -> None:
    """Within a folder too: a module that is imported is done before the one that imports it."""
    graph = {name: set(imports((PACKAGE / file).read_text())) for name, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path, module))
        if module in done or MODULES[module].name == "__init__.py":
            return
        for other in sorted(graph[module]):
            visit(other, (*path, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_test_sees_imports_wherever_they_are() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from pyro_vmonf.vmonf import VMoNF
def f():
    import pyro_vmonf.model
    from pyro_vmonf import plots
"""
    expected = ["pyro_vmonf.vmonf", "pyro_vmonf.model", "pyro_vmonf.plots"]
    assert sorted(imports(source)) == sorted(expected)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_files_and_functions_are_short(file: Path) -> None:
    """A file has at most 400 lines, and a function at most 60 beside its docstring."""
    source = (PACKAGE / file).read_text()
    assert source.count("\n") <= 400
    for name, lines in functions(source):
        assert lines <= 60, f"{name} has {lines} lines"


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Every function of a source with its number of lines, the docstring left out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            text = ast.get_docstring(node, clean=False) is not None
            spoken = (first.end_lineno or 0) - first.lineno + 1 if text else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - spoken


def test_the_length_of_a_function_is_counted() -> None:
    lines = ["def f(", "    x,", "):", '    """Text', "    more.", '    """', "    return x"]
    assert list(functions("\n".join(lines))) == [("f", 4)]
