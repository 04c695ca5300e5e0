"""The notebooks run from top to bottom, shortened, and are fit to be published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Jupyter is imported by the tests that need it: every worker reads this file.
if TYPE_CHECKING:
    from jupyter_client import KernelManager
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# Nobody looks at the figures of a shortened run, so little time is spent on them: their axes have
# no ticks, their grids are coarse, and they are drawn once: not when a cell ends and again when
# they are shown, and not at all in the second pass, which makes them without drawing them. What
# was imported stays to the end, and no garbage collection looks at it.
BEFORE = """
%reset -f
%matplotlib inline
%config InlineBackend.figure_formats = ["png"]
%config InlineBackend.print_figure_kwargs = {{"bbox_inches": None}}
%cd -q {folder}
import gc
import matplotlib.pyplot as plt
from pyro_vmonf import plots
from pyro_vmonf.vmonf import automatic

automatic.BLOCKS, automatic.HIDDEN = 1, (8,)
for plot in (plots.plot_density, plots.plot_component_contours, plots.plot_regions):
    plot.__wrapped__.__kwdefaults__["resolution"] = 20
plt.uninstall_repl_displayhook()
plt.rcParams["figure.dpi"] = 30
plt.rcParams["xtick.labelbottom"] = plt.rcParams["ytick.labelleft"] = False
plt.rcParams["xtick.bottom"] = plt.rcParams["ytick.left"] = False
gc.freeze()
del automatic, gc, plt, plot, plots
"""
FITS = re.compile(r"(from_data\([^)]*)\)")
FLOWS = re.compile(r"\b((?:MAF|NSF|RealNVP)\(2, \w+)(?:, blocks=\d+)?(?=[,)])")
# How many rows are drawn or in a batch, and the number of one that is shown.
ROWS = re.compile(r"(\bper_\w+=|\b(?:wings|arcs|branches)\(|\(len\(x\), \(|\bstart = )\d{3,}\b")
DRAWS = re.compile(r"\b\d+_000\b")
AGAIN = "%config InlineBackend.figure_formats = []"


def read(path: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[str]:
    return [cell.source for cell in read(path).cells if cell.cell_type == "code"]


def shortened(code: str) -> str:
    """Return a cell with fewer rows, draws and blocks of flows, and less time for its fits."""
    code = FLOWS.sub(r"\1, blocks=2", FITS.sub(r"\1, minutes=0.001)", code))
    return DRAWS.sub("1000", ROWS.sub(r"\g<1>60", code))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS, f"there is none in {FOLDER}"


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """Start a kernel for all notebooks, as imports take most of a shortened run."""
    from jupyter_client import KernelManager

    manager = KernelManager(kernel_name="python3")
    wanted = {"SMOKE_TEST": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parent)}
    others = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    manager.start_kernel(env=others | wanted)
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_twice_in_one_kernel(path: Path, tmp_path: Path, kernel: KernelManager) -> None:
    import nbformat
    from nbclient import NotebookClient

    before = path.read_bytes()
    once = [shortened(code) for code in code_cells(path)]
    codes = [BEFORE.format(folder=tmp_path), *once, AGAIN, *once]
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    client = NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=120, km=kernel)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    assert path.read_bytes() == before
    assert not list(tmp_path.iterdir()), "it leaves files behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small_numbered_and_plain(path: Path) -> None:
    assert re.match(r"\d\d_", path.name), "its name does not begin with its number"
    assert path.stat().st_size < 1_000_000
    cells = code_cells(path)
    assert len(cells) <= 25
    for cell in cells:
        assert not re.search(r"^\s*class ", cell, re.MULTILINE), f"a class is defined:\n{cell}"
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert "you can" in first.source, "it does not say what the reader can do at the end"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_was_run_in_order_without_an_error_and_names_no_machine(path: Path) -> None:
    import nbformat

    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs, "it holds no outputs"
    assert not [o for o in outputs if o.output_type == "error"]
    # The images are left out: chance could spell anything in their letters.
    for output in outputs:
        for kind in ("image/png", "image/gif"):
            output.get("data", {}).pop(kind, None)
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells)) + read(path).metadata.__repr__()
    text += "".join(cell.source for cell in read(path).cells)
    found = re.findall(r"(?:/work|/tmp|/root|/home|/Users|site-packages)\b", text)
    assert not found, f"it names {found}"
