"""One call on images: clusters, labels, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pyro_vmonf import VMoNF
from pyro_vmonf.vmonf import pictures


@pytest.fixture(autouse=True)
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FEATURE_STEPS", 80)
    monkeypatch.setattr(pictures, "GUIDE_STEPS", 40)
    monkeypatch.setattr(pictures, "MOST_EPOCHS", 1)


def bars(seed: int, counts: tuple[int, ...] = (120, 60, 30)) -> tuple[Tensor, Tensor]:
    """Draw horizontal bars, vertical bars and discs, each somewhere near the middle."""
    torch.manual_seed(seed)
    y = torch.arange(3).repeat_interleave(torch.tensor(counts))
    y = y[torch.randperm(len(y))]
    across, down = (4.5 + 2 * torch.rand(2, len(y), 1, 1)).unbind()
    place = torch.arange(12.0)
    wide = torch.stack([torch.tensor([9.0, 1.0, 3.0])[y], torch.tensor([1.0, 9.0, 3.0])[y]])
    squares = ((place - across) / wide[0, :, None, None]) ** 2
    x = torch.exp(-squares - ((place[:, None] - down) / wide[1, :, None, None]) ** 2)
    return (0.9 * x + 0.1 * torch.rand_like(x)).unsqueeze(1), y


@pytest.mark.parametrize("seed", [0, 1])
def test_kinds_of_unequal_size_are_found(seed: int, tmp_path: Path) -> None:
    x, y = bars(seed)
    vmonf = VMoNF.from_data(x, components=3, seed=seed)
    clusters = vmonf.predict(x)
    assert adjusted_rand_score(y, clusters) > 0.95
    torch.testing.assert_close(
        vmonf.model.weights.log_mean().exp().detach(),
        clusters.bincount(minlength=3) / len(x),
        atol=0.02,
        rtol=0,
    )
    assert vmonf.log_prob(x).isfinite().all()
    assert str(vmonf.report()).startswith("3 components, from the start 'neighbours of features'")
    vmonf.save(tmp_path / "pair.pt")
    torch.testing.assert_close(
        VMoNF.load(tmp_path / "pair.pt").predict_proba(x), vmonf.predict_proba(x)
    )


def test_labels_name_the_clusters_and_bytes_are_pixels() -> None:
    x, y = bars(0)
    few = torch.full_like(y, -1)
    for kind in range(3):
        few[(y == kind).nonzero()[:2]] = kind
    levels = (x * 255).round().to(torch.uint8)
    vmonf = VMoNF.from_data(levels, few, components=3, seed=0)
    assert (vmonf.predict(levels / 255) == y).float().mean() > 0.95


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.rand(9, 1, 8, 8) * 2, {}, "pixels reach from .* expected values in .0, 1."),
        (torch.rand(3, 1, 8, 8), {"components": 5}, "x has 3 images; expected at least 10"),
        (torch.rand(9, 1, 8, 8), {"background": True}, "neither sample_weight nor background"),
        (torch.rand(9, 1, 8, 8), {"sample_weight": torch.ones(9)}, "neither sample_weight"),
        (torch.rand(9, 8, 8, 3), {}, r"with the channels last; .* x.permute.0, 3, 1, 2."),
        (torch.rand(9, 8, 8), {}, "from_data takes tables .* and images"),
        (torch.full((9, 1, 8, 8), torch.nan), {}, "NaN or infinite pixels"),
    ],
)
def test_errors(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VMoNF.from_data(x, **options)


@pytest.mark.parametrize("count", [2, 17, 256, 1000])
def test_any_even_grey_levels_get_their_noise(count: int) -> None:
    """A density of whole levels would grow without bound."""
    levels = torch.randint(count, (64, 1, 8, 8))
    levels[0, 0, 0, :2] = torch.tensor([0, count - 1])
    steps = max(count - 1, 1)
    x = levels.float() / steps
    found = pictures.noisy(x, seed=0)
    # Floats of 0 and 1 alone are bytes of which two are used.
    many, own = (256, levels * 255) if count == 2 else (count, levels)
    u = found * many - own
    assert float(u.min()) > -1e-3
    assert float(u.max()) < 1 + 1e-3
    assert float(u.std()) == pytest.approx(12**-0.5, rel=0.15)
    assert float(found.max()) < 1
    smooth = torch.rand(9, 1, 8, 8)
    assert torch.equal(pictures.noisy(smooth, seed=0), smooth)
