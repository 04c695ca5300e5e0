"""Exact densities of the toy data, and MNIST's files, whole and damaged."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import chi2
from torch import Tensor

from pyro_vmonf.datasets import (
    MNIST_FILES,
    Pinwheel,
    TwoCircles,
    dequantize,
    digits,
    download_mnist,
    mnist,
    pinwheel,
    read_idx,
    two_circles,
)

MNIST = Path(__file__).parents[1] / "data" / "mnist"


class Truth(Protocol):
    def sample(self, count: int) -> tuple[Tensor, Tensor]: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


# Per case: the distribution, its groups, and the half-width of a square that holds it.
TRUTHS: dict[str, tuple[Callable[[], Truth], int, float]] = {
    "pinwheel": (lambda: Pinwheel(5, 0.4), 5, 1.25),
    "pinwheel-easy": (lambda: Pinwheel(5, 0.25), 5, 1.25),
    "pinwheel-3": (lambda: Pinwheel(3, 0.4), 3, 1.25),
    "pinwheel-3-easy": (lambda: Pinwheel(3, 0.25), 3, 1.25),
    "pinwheel-1": (lambda: Pinwheel(1, 0.4), 1, 1.25),
    "circles": (TwoCircles, 2, 1.2),
    "circles-narrow": (lambda: TwoCircles(noise=0.005), 2, 0.9),
    "circles-wide": (lambda: TwoCircles((1.0, 0.5), 0.25), 2, 2.4),
}
ENTROPIES = {
    "pinwheel-easy": -1.1420,
    "pinwheel": -1.1431,
    "circles": 0.3794,
    "circles-narrow": -1.9181,
}


@lru_cache
def on_a_grid(name: str) -> tuple[Tensor, float]:
    """Log-density in the middle of each cell ``(cells, cells)``, and the area of a cell."""
    make, _, reach = TRUTHS[name]
    # A cell is at most half of the standard deviation across a wing.
    cells = {"circles-narrow": 800}.get(name, 200 if name.startswith("pinwheel") else 400)
    step = 2 * reach / cells
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) * step - reach
    return make().log_prob(torch.cartesian_prod(axis, axis)).reshape(cells, cells), step**2


def draws(name: str, count: int) -> Tensor:
    make, groups, _ = TRUTHS[name]
    x, group = make().sample(count // groups)
    assert group.bincount().tolist() == [count // groups] * groups
    return x


@pytest.mark.parametrize("name", TRUTHS)
def test_density_integrates_to_one(name: str) -> None:
    log_prob, area = on_a_grid(name)
    assert float(log_prob.exp().sum()) * area == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", ENTROPIES)
def test_entropy_is_the_known_one(name: str) -> None:
    log_prob, area = on_a_grid(name)
    entropy = -float((log_prob.exp() * log_prob).nan_to_num().sum()) * area
    assert entropy == pytest.approx(ENTROPIES[name], abs=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TRUTHS)
def test_draws_have_the_entropy_of_the_density(name: str) -> None:
    log_prob, area = on_a_grid(name)
    entropy = -float((log_prob.exp() * log_prob).nan_to_num().sum()) * area
    surprise = -TRUTHS[name][0]().log_prob(draws(name, 30_000))
    error = float(surprise.std()) / math.sqrt(len(surprise))
    assert abs(float(surprise.mean()) - entropy) < 4 * error + 1e-3


@pytest.mark.parametrize("name", TRUTHS)
def test_draws_fill_the_cells_as_the_density_does(name: str) -> None:
    count, cells, reach = 90_000, 20, TRUTHS[name][2]
    log_prob, area = on_a_grid(name)
    share = log_prob.exp().unflatten(0, (cells, -1)).unflatten(2, (cells, -1))
    share = share.sum((1, 3)).flatten() * area
    edges = [np.linspace(-reach, reach, cells + 1)] * 2
    found, _, _ = np.histogram2d(*draws(name, count).double().T.numpy(), bins=edges)
    expected = (share * count).numpy()
    large = expected >= 5
    rest = count - found.ravel()[large].sum(), count - expected[large].sum()
    statistic = ((found.ravel() - expected)[large] ** 2 / expected[large]).sum()
    statistic += (rest[0] - rest[1]) ** 2 / max(rest[1], 5.0)
    assert large.sum() > 20
    assert chi2.sf(statistic, df=large.sum()) > 1e-4


def by_root_finding(truth: Pinwheel, x: Tensor) -> float:
    """Density at a point: all (k, r, t) that the sampler would take there, and its Jacobian."""

    def place(r: Tensor, t: Tensor, wing: int) -> Tensor:
        angle = 2 * math.pi * wing / truth.wings + truth.rate * r.exp()
        cos, sin = angle.cos(), angle.sin()
        return 0.5 * torch.stack((r * cos + t * sin, t * cos - r * sin))

    def radius_missed(r: float, wing: int) -> float:
        angle = 2 * math.pi * wing / truth.wings + truth.rate * math.exp(r)
        return 2 * (float(x[0]) * math.cos(angle) - float(x[1]) * math.sin(angle)) - r

    total = 0.0
    grid = np.linspace(-1.5, 3.0, 20_001) + 1e-7  # no node at a radius that a case uses
    for wing in range(truth.wings):
        angle = 2 * math.pi * wing / truth.wings + truth.rate * np.exp(grid)
        missed = 2 * (float(x[0]) * np.cos(angle) - float(x[1]) * np.sin(angle)) - grid
        for i in np.flatnonzero(missed[:-1] * missed[1:] < 0):
            r = torch.tensor(brentq(radius_missed, grid[i], grid[i + 1], args=(wing,), xtol=1e-14))
            angle = 2 * math.pi * wing / truth.wings + truth.rate * r.exp()
            t = 2 * (x[0] * angle.sin() + x[1] * angle.cos())
            torch.testing.assert_close(place(r, t, wing), x, rtol=0, atol=1e-10)
            jacobian = torch.stack(
                torch.autograd.functional.jacobian(lambda r, t, w=wing: place(r, t, w), (r, t)), -1
            )
            density = -0.5 * ((r - 1) / 0.3) ** 2 - 0.5 * (t / 0.05) ** 2
            density = density.exp() / (2 * math.pi * 0.3 * 0.05)
            total += float(density / torch.linalg.det(jacobian).abs()) / truth.wings
    return math.log(total) if total else -math.inf


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [0.25, 0.4, 0.7])
@pytest.mark.parametrize("wings", [1, 3, 5])
def test_pinwheel_density_equals_root_finding(wings: int, rate: float) -> None:
    truth = Pinwheel(wings, rate)
    x, _ = truth.sample(12 // wings)
    between = 0.5 * torch.randn(6, 2)
    for point in torch.cat((x, between, 1.5 * x[:2])):
        expected, found = by_root_finding(truth, point), truth.log_prob(point.unsqueeze(0)).item()
        if expected > -14:
            assert found == pytest.approx(expected, abs=1e-7)
        else:  # beyond six standard deviations there is only the promise that it is small
            assert found < -13


@pytest.mark.usefixtures("float64")
def test_a_pinwheel_is_a_constant_far_outside() -> None:
    x = torch.tensor([[1.3, 0.0], [1.5, 0.0], [2.0, 0.0], [5.0, 5.0], [100.0, 0.0]])
    found = Pinwheel().log_prob(x)
    assert -52 < float(found[0]) < -48
    torch.testing.assert_close(found[1:], torch.full((4,), -62.25 + math.log(5)), atol=0.5, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("radius", [1.0, 1.0 - 1.95 / 2, 1.0 + 1.95 / 2])
def test_pinwheel_density_on_the_middle_of_a_wing(radius: float) -> None:
    truth, r = Pinwheel(5, 0.4), torch.tensor(radius)
    for wing in range(5):
        angle = 2 * math.pi * wing / 5 + 0.4 * r.exp()
        point = 0.5 * torch.stack((r * angle.cos(), -r * angle.sin()))
        expected = by_root_finding(truth, point)
        found = truth.log_prob(point.unsqueeze(0))
        torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-6, atol=1e-6)


def test_pinwheel_posterior_finds_the_wing() -> None:
    truth = Pinwheel(5, 0.25)
    x, wing = truth.sample(400)
    posterior = truth.posterior(x)
    torch.testing.assert_close(posterior.sum(-1), torch.ones(2000))
    assert (posterior.argmax(-1) == wing).float().mean() > 0.99
    calibrated = posterior.mean(0) - torch.full((5,), 0.2)
    assert calibrated.abs().max() < 0.01


def test_pinwheel_turns_into_itself() -> None:
    truth, turn = Pinwheel(5, 0.4), 2 * math.pi / 5
    x = 0.6 * torch.randn(200, 2, dtype=torch.float64)
    rotation = torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=torch.float64
    )
    torch.testing.assert_close(truth.log_prob(x @ rotation.T), truth.log_prob(x))


@pytest.mark.parametrize("name", TRUTHS)
def test_density_of_many_rows_is_that_of_each(name: str) -> None:
    truth = TRUTHS[name][0]()
    x = torch.randn(7, 2)
    found = truth.log_prob(x)
    assert found.dtype == torch.float32
    assert found.shape == (7,)
    assert truth.log_prob(torch.full((1, 2), 50.0)) < -60
    for row, one in zip(x, found, strict=True):
        assert truth.log_prob(row.unsqueeze(0)) == one
    if isinstance(truth, Pinwheel):
        assert truth.log_prob(x, chunk_size=3).equal(found)


@pytest.mark.parametrize("wings", [0, -1])
def test_a_pinwheel_needs_a_wing(wings: int) -> None:
    with pytest.raises(ValueError, match=f"wings is {wings}"):
        Pinwheel(wings)


IMAGES = torch.randint(256, (6, 4, 4), dtype=torch.uint8)
SEEDED: dict[str, Callable[[int | None], Tensor]] = {
    "pinwheel": lambda seed: pinwheel(wings=3, per_wing=9, seed=seed)[0],
    "two_circles": lambda seed: two_circles(per_circle=9, seed=seed)[0],
    "dequantize": lambda seed: dequantize(IMAGES, seed=seed),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_repeats_and_leaves_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    first = SEEDED[name](3)
    assert SEEDED[name](3).equal(first)
    assert not SEEDED[name](4).equal(first)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("name", SEEDED)
def test_without_a_seed_the_global_generator_decides(name: str) -> None:
    torch.manual_seed(3)
    first, second = SEEDED[name](None), SEEDED[name](None)
    assert not first.equal(second)
    torch.manual_seed(3)
    assert SEEDED[name](None).equal(first)


def test_toy_data_have_groups_of_equal_size() -> None:
    x, wing = pinwheel(wings=3, per_wing=7, seed=0)
    assert (x.shape, x.dtype, wing.dtype) == ((21, 2), torch.float32, torch.int64)
    assert wing.tolist() == sorted([0, 1, 2] * 7)
    x, circle = two_circles(per_circle=7, radii=(5.0, 1.0), noise=1e-3, seed=0)
    assert circle.tolist() == [0] * 7 + [1] * 7
    torch.testing.assert_close(x.norm(dim=1), torch.tensor([5.0, 1.0])[circle], rtol=0, atol=0.01)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["pinwheel", "two_circles"])
def test_toy_data_follow_the_default_dtype(name: str) -> None:
    assert SEEDED[name](0).dtype == torch.float64


def idx(*shape: int, content: bytes | None = None) -> bytes:
    """A file in MNIST's format."""
    content = bytes(i % 256 for i in range(math.prod(shape))) if content is None else content
    return b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (300, 1, 1), (2, 0)])
@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_files_plain_or_packed_are_read(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    found = read_idx(write(tmp_path, name, idx(*shape)))
    assert found.dtype == torch.uint8
    assert found.equal((torch.arange(math.prod(shape)) % 256).to(torch.uint8).reshape(shape))
    assert read_idx(str(tmp_path / name)).equal(found)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not begin like a file"),
    "short-magic": (b"\x00\x00\x08", "does not begin like a file"),
    "wrong-magic": (b"\x00\x00\x0d\x01" + idx(5)[4:], "does not begin like a file"),
    "text": (b"<html>not found</html>", "does not begin like a file"),
    "short-header": (idx(5, 4)[:9], "truncated"),
    "no-content": (idx(5, content=b""), "holds fewer"),
    "truncated": (idx(5, 4)[:-1], r"promises \[5, 4\] bytes and holds fewer"),
    "extra": (idx(5, 4) + b"\x00", "holds more"),
    "absurd-size": (idx(2**32 - 1, 2**32 - 1, 2**32 - 1, content=b"abc"), "at most"),
}


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, name: str, damage: str) -> None:
    content, message = DAMAGED[damage]
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(write(tmp_path, name, content))
    assert name in str(caught.value)


def broken(content: bytes, where: int) -> bytes:
    return content[:where] + bytes([content[where] ^ 0xFF]) + content[where + 1 :]


PACKED = gzip.compress(idx(100, 100), mtime=0)
BROKEN_PACKINGS: dict[str, bytes] = {
    "not-gzip": idx(5),
    "cut": PACKED[: len(PACKED) // 2],
    "cut-at-the-checksum": PACKED[:-6],
    "bad-checksum": broken(PACKED, len(PACKED) - 6),
    "bad-stream": broken(PACKED, 12),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BROKEN_PACKINGS)
def test_broken_packings_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(BROKEN_PACKINGS[name])
    with pytest.raises(ValueError, match=r"images\.gz"):
        read_idx(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte or .*download_mnist"):
        mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no t10k-images-idx3-ubyte or"):
        mnist(tmp_path, train=False)


@pytest.mark.parametrize(("train", "each"), [(True, 40), (False, 10)])
def test_the_sample_of_mnist_is_read(train: bool, each: int) -> None:
    images, labels = mnist(MNIST, train=train)
    assert images.shape == (10 * each, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert labels.bincount().tolist() == [each] * 10
    assert (images.flatten(1).amax(1) > 200).all()
    ink = images.float().mean((1, 2))
    assert ink[labels == 1].mean() < ink[labels == 0].mean()


@pytest.mark.parametrize("digits", [(0, 1, 2, 3, 4), (7,), ()])
def test_digits_are_chosen(digits: tuple[int, ...]) -> None:
    images, labels = mnist(str(MNIST), digits=digits)
    every, every_label = mnist(MNIST)
    kept = torch.tensor([int(label) in digits for label in every_label])
    assert images.equal(every[kept])
    assert labels.equal(every_label[kept])


def test_plain_files_come_before_packed_ones(tmp_path: Path) -> None:
    write(tmp_path, "train-images-idx3-ubyte", idx(3, 2, 2))
    write(tmp_path, "train-images-idx3-ubyte.gz", idx(4, 2, 2))
    write(tmp_path, "train-labels-idx1-ubyte.gz", idx(3))
    images, labels = mnist(tmp_path)
    assert images.shape == (3, 2, 2)
    assert labels.tolist() == [0, 1, 2]


MISMATCHES: dict[str, tuple[bytes, bytes]] = {
    "number": (idx(3, 2, 2), idx(4)),
    "labels-as-images": (idx(3), idx(3)),
    "images-as-labels": (idx(3, 2, 2), idx(3, 2, 2)),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_images_and_labels_must_fit(tmp_path: Path, name: str) -> None:
    images, labels = MISMATCHES[name]
    write(tmp_path, "train-images-idx3-ubyte", images)
    write(tmp_path, "train-labels-idx1-ubyte", labels)
    with pytest.raises(ValueError, match=r"expected \(N, H, W\) and \(N,\)"):
        mnist(tmp_path)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the mirror serves, with the checksums of it; no request leaves the process."""
    files = {name: gzip.compress(idx(3, 2, 2), mtime=0) + name.encode() for name in MNIST_FILES}
    sums = {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in files.items()
    }
    monkeypatch.setattr(digits, "MNIST_FILES", sums)

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert url.startswith("https://")
        assert timeout > 0
        return io.BytesIO(files[url.rsplit("/", 1)[1].removesuffix(".gz")])

    monkeypatch.setattr(digits.urllib.request, "urlopen", urlopen)
    return files


def test_the_four_files_are_downloaded(tmp_path: Path, served: dict[str, bytes]) -> None:
    folder = tmp_path / "made" / "anew"
    download_mnist(folder)
    found = {path.name.removesuffix(".gz"): path.read_bytes() for path in folder.iterdir()}
    assert found == served


def test_a_wrong_checksum_is_refused_and_not_kept(tmp_path: Path, served: dict[str, bytes]) -> None:
    name = list(served)[1]
    served[name] += b"tampered"
    with pytest.raises(ValueError, match=f"{name}.gz has checksum .*; expected "):
        download_mnist(tmp_path)
    assert not [path for path in tmp_path.iterdir() if name in path.name]


def test_checksums_are_those_of_the_mirror() -> None:
    assert MNIST_FILES["train-images-idx3-ubyte"] == "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    assert MNIST_FILES["t10k-labels-idx1-ubyte"] == "ec29112dd5afa0611ce80d1b7f02629c"
    assert len(MNIST_FILES) == len(set(MNIST_FILES.values())) == 4


def test_dequantised_pixels_stay_in_their_bin() -> None:
    images = torch.arange(256).repeat_interleave(10_000).to(torch.uint8)
    x = dequantize(images, seed=0)
    assert x.dtype == torch.float32
    assert (x * 256).floor().equal(images.float())
    rest = x * 256 - images
    assert abs(float(rest.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(rest))
    assert float(rest.var()) == pytest.approx(1 / 12, rel=0.01)


def test_the_brightest_pixel_stays_below_one() -> None:
    assert dequantize(torch.full((2**20,), 255, dtype=torch.uint8), seed=0).max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_only_bytes_are_dequantised(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"images have dtype {dtype}; expected uint8"):
        dequantize(torch.zeros(2, 2, dtype=dtype))


def test_images_of_numpy_are_dequantised() -> None:
    assert torch.equal(dequantize(IMAGES.numpy(), seed=0), dequantize(IMAGES, seed=0))
    with pytest.raises(TypeError, match=r"images have dtype torch.int64; expected uint8"):
        dequantize(IMAGES.numpy().astype("int64"))
