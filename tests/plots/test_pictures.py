"""Pictures beside those that were looked at: ``WRITE_PICTURES=1`` writes them anew.

A picture is compared block by block, in blocks of 6×6 pixels. The outlines of letters and the
versions of matplotlib do not matter then, and a colour or a place does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from pyro_vmonf import FlowMixture, Gaussian, History, VMoNF
from pyro_vmonf.plots import style

FOLDER = Path(__file__).parents[1] / "data" / "pictures"
BLOCK = 6
TOLERANCE = 24  # of 255, the largest difference of a block


def pair(features: int) -> VMoNF:
    """Three Gaussians on a line through the origin, the exact posterior as the guide."""
    vmonf = VMoNF(FlowMixture(Gaussian(features, 3)))
    centres = torch.tensor([-6.0, 0.0, 6.0])[:, None].expand(3, features).clone()
    if features > 1:
        centres[1, -1] = 6.0
    turned = torch.eye(features) + 0.6 * (1 - torch.eye(features))
    vmonf.model.bank.set_(centres, turned.expand(3, features, features))
    epochs = list(range(30))
    falling = [math.exp(-epoch / 10) for epoch in epochs]
    vmonf.history = History(
        epoch=epochs, step=epochs, elbo=[-v for v in falling], temperature=falling
    )
    return vmonf


def rows(features: int) -> torch.Tensor:
    return pair(features).sample(300, seed=1)[0]


CASES: dict[str, Callable[[VMoNF], Axes]] = {
    "line": lambda vmonf: vmonf.plot(rows(1)),
    "plane": lambda vmonf: vmonf.plot(rows(2)),
    "pairs": lambda vmonf: vmonf.plot(rows(3)),
    "report": lambda vmonf: vmonf.plot_report(rows(2)),
    "history": lambda vmonf: vmonf.plot_history(),
    "memberships": lambda vmonf: vmonf.plot_responsibilities(0.15 * rows(3)),
    "means": lambda vmonf: vmonf.plot_components(),
    "uncertainty": lambda vmonf: vmonf.plot_uncertainty(0.2 * rows(2)),
}
FEATURES = {"line": 1, "pairs": 3, "memberships": 3, "means": 3}


def picture(name: str) -> Image.Image:
    ax = CASES[name](pair(FEATURES.get(name, 2)))
    figure: Any = ax.figure
    file = BytesIO()
    with style():
        figure.savefig(file, format="png", dpi=45)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def blocks(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the mean colours of the blocks."""
    pixels = np.asarray(image, dtype=float)
    high, wide = (size // BLOCK for size in pixels.shape[:2])
    cut = pixels[: high * BLOCK, : wide * BLOCK]
    return cut.reshape(high, BLOCK, wide, BLOCK, 3).mean((1, 3))


@pytest.mark.parametrize("name", CASES)
def test_the_picture_is_the_one_that_was_looked_at(name: str) -> None:
    drawn, path = picture(name), FOLDER / f"{name}.png"
    if os.environ.get("WRITE_PICTURES"):
        FOLDER.mkdir(exist_ok=True)
        drawn.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    wanted = Image.open(path).convert("RGB")
    assert drawn.size == wanted.size
    assert np.abs(blocks(drawn) - blocks(wanted)).max() < TOLERANCE
    upside_down = wanted.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert np.abs(blocks(drawn) - blocks(upside_down)).max() > TOLERANCE
    if name == "uncertainty":  # thin lines: their colour is lost in a block
        return
    other_colours = Image.merge("RGB", wanted.split()[::-1])
    assert np.abs(blocks(drawn) - blocks(other_colours)).max() > TOLERANCE


def test_features_of_one_and_two_are_drawn_whole() -> None:
    for features in (1, 2):
        assert pair(features).plot(features=list(range(features))) is not None
        with pytest.raises(ValueError, match=rf"a mixture of {features} features is drawn whole"):
            pair(features).plot(features=[7])
