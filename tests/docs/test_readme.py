"""The snippets of README and pages run, and the first one clusters a table."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from pyro_vmonf import plots
from pyro_vmonf.metrics import accuracy

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from pictures import front, numbers  # noqa: E402

DOCS = ROOT / "docs"
FOLDERS = [DOCS, DOCS / "howto", DOCS / "explanation"]
PAGES = [ROOT / "README.md", *sorted(p for folder in FOLDERS for p in folder.glob("*.md"))]


def snippets(page: Path) -> list[str]:
    text = page.read_text()
    if page.name == "swapping.md":  # its programs are run in full elsewhere
        text = text[text.index("\n## The components") :]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


# The README's snippets stand alone; a page of the docs is read from its beginning. The first one of
# the README has a test of its own.
SNIPPETS = [
    pytest.param([code], id=f"README.md-{number}")
    for number, code in enumerate(snippets(ROOT / "README.md"))
    if number
] + [pytest.param(snippets(page), id=page.name) for page in PAGES[1:] if snippets(page)]


def test_the_first_page_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert len([line for line in snippets(ROOT / "README.md")[0].splitlines() if line]) <= 12


def test_the_first_code_finds_the_growers_of_the_wines() -> None:
    code = snippets(ROOT / "README.md")[0].replace("seed=0)", "seed=0, minutes=0.02)")
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(code, names)
    wrong = 1 - accuracy(names["grower"], names["clusters"])
    assert round(wrong * len(names["x"])) <= 12


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_gallery_draws_the_picture_of_the_front_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = numbers(front())
    wanted = json.loads((DOCS / "front.json").read_text())
    assert drawn.keys() == wanted.keys()
    assert drawn["rows"] == wanted["rows"]
    # Which component is which, and so what is drawn from it, depends on the processor's rounding.
    deviation = np.sqrt(1000 * 0.2 * 0.8)
    for found in (drawn, wanted):
        assert found["points a component"] == pytest.approx([200.0] * 5, abs=4 * deviation)
    for name in ("mean of the rows", "density of the regions"):
        assert drawn[name] == pytest.approx(wanted[name], abs=0.01)
    assert drawn["density, nats"] == pytest.approx(wanted["density, nats"], abs=0.1)
    with Image.open(tmp_path / "front.png") as one, Image.open(DOCS / "front.png") as other:
        assert one.size == other.size


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.filterwarnings("ignore:.*is not a part of pyro_vmonf")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.parametrize("codes", SNIPPETS)
def test_snippets_run(codes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "savefig" in codes[-1]:  # the gallery's pictures are drawn by docs/pictures.py
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    monkeypatch.setattr("pyro_vmonf.vmonf.automatic.BLOCKS", 1)
    monkeypatch.setattr("pyro_vmonf.vmonf.automatic.HIDDEN", (8,))
    for plot in (plots.plot_density, plots.plot_component_contours, plots.plot_regions):
        monkeypatch.setitem(plot.__wrapped__.__kwdefaults__, "resolution", 20)
    # nothing else is shortened than training, draws and grids, and the flows that from_data builds
    names: dict[str, object] = {"__name__": "snippet"}
    plt.close("all")
    for code in codes:
        short = re.sub(r"epochs=\d+", "epochs=2", code)
        short = re.sub(r"(?m)^(warm_start_\(.*)\)(?=$|  #)", r"\1, steps=5)", short)
        short = re.sub(r"(to_inference_data\([^)]*)\)", r"\1, draws=100)", short)
        fits = r"((?:from_data|FlowMixtureClustering)\([^)]*)\)"
        exec(re.sub(fits, r"\1, minutes=0.001)", short), names)
        if "savefig" in code:
            plt.close("all")
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
