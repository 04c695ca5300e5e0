"""Draw the pictures of README and gallery with the code that stands beside them.

``python docs/pictures.py`` runs the Python blocks of each page from top to bottom. A block that
saves ``NAME.png`` draws the picture of that name.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
# A page, and the folder that holds its pictures.
PAGES = {DOCS.parent / "README.md": DOCS, DOCS / "gallery.md": DOCS / "gallery"}


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def front() -> dict[str, Any]:
    """Run the README's first block in the current folder; return its names.

    A busy machine has the time it needs, and the same picture.
    """
    names: dict[str, Any] = {"__name__": "picture"}
    code = blocks(DOCS.parent / "README.md")[0].replace("seed=0)", "seed=0, minutes=4)", 1)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names


def numbers(names: dict[str, Any]) -> dict[str, list[float]]:
    """Return the numbers that the README's picture shows, in an order that no name depends on.

    Regions count by the density in them: no row says where they end far away.
    """
    left, middle, right = (names[name] for name in ("left", "middle", "right"))
    density = right.images[0].get_array()
    colors = np.asarray(middle.images[0].get_array())
    near = [np.arange(n) * m // n for n, m in zip(density.shape, colors.shape, strict=False)]
    colors = colors[np.ix_(*near)].reshape(-1, colors.shape[-1])
    _, region = np.unique(colors, axis=0, return_inverse=True)
    shares = np.bincount(region.ravel(), np.exp(density).ravel())
    return {
        "rows": [float(len(artist.get_offsets())) for artist in left.collections],
        "mean of the rows": left.collections[0].get_offsets().mean(0).tolist(),
        "points a component": sorted(
            float(len(artist.get_offsets())) for artist in middle.collections
        ),
        "density of the regions": sorted((shares / shares.sum()).tolist()),
        "density, nats": [float(density.max()), float(density.mean())],
    }


def main() -> None:
    """Draw every picture."""
    matplotlib.use("Agg")
    warnings.simplefilter("ignore")
    home = os.getcwd()
    for page, folder in PAGES.items():
        with tempfile.TemporaryDirectory() as drawn:
            os.chdir(drawn)
            if page.name == "README.md":
                found = numbers(front())
                (DOCS / "front.json").write_text(json.dumps(found, indent=1) + "\n")
            else:
                names: dict[str, Any] = {"__name__": "picture"}
                for block in blocks(page):
                    exec(block, names)
            os.chdir(home)
            for path in sorted(Path(drawn).glob("*.png")):
                picture = Image.open(path).convert("RGB")
                packed = picture.quantize(256, dither=Image.Dither.NONE)
                packed.save(folder / path.name, optimize=True)


if __name__ == "__main__":
    main()
