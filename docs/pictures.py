"""Draw the pictures of front page and gallery with the code that stands beside them.

``python docs/pictures.py`` runs the Python blocks of the gallery from top to bottom. A block that
saves ``NAME.png`` draws the picture of that name. The last one draws that of the front page.
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
GALLERY = DOCS / "gallery.md"


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def front() -> dict[str, Any]:
    """Run the block of the front page in the current folder; return its names.

    A busy machine has the time it needs, and the same picture.
    """
    names: dict[str, Any] = {"__name__": "picture"}
    code = blocks(GALLERY)[-1].replace("seed=0)", "seed=0, minutes=4)", 1)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    return names


def numbers(names: dict[str, Any]) -> dict[str, list[float]]:
    """Return the numbers that the front page's picture shows, in an order that no name depends on.

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
    with tempfile.TemporaryDirectory() as drawn:
        os.chdir(drawn)
        names: dict[str, Any] = {"__name__": "picture"}
        for block in blocks(GALLERY)[:-1]:
            exec(block, names)
        (DOCS / "front.json").write_text(json.dumps(numbers(front()), indent=1) + "\n")
        os.chdir(home)
        for path in sorted(Path(drawn).glob("*.png")):
            picture = Image.open(path).convert("RGB")
            packed = picture.quantize(256, dither=Image.Dither.NONE)
            folder = DOCS if path.stem == "front" else DOCS / "gallery"
            packed.save(folder / path.name, optimize=True)


if __name__ == "__main__":
    main()
