"""Data sets of the thesis: pinwheel and two circles with their exact densities, and MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import as_tensor


class Pinwheel:
    r"""The pinwheel of W wings, and its exact density.

    Radius, tangent and wing are r ~ N(1, 0.3²), t ~ N(0, 0.05²) and k uniform. The angle is
    :math:`a = 2\pi k / W + \mathrm{rate}\, e^r`, and

    .. math::
        x = \tfrac12 (r \cos a + t \sin a,\; -r \sin a + t \cos a), \qquad
        |\det| = \tfrac14\, |1 + t\,\mathrm{rate}\,e^r|

    The density of a point is a sum over the wings and over each radius r that gives the point.

    Arguments:
        wings: number of wings *W*.
        rate: angle of a wing per :math:`e^r`.

    Raises:
        ValueError: if there is no wing.

    References:
        Johnson, Duvenaud, Wiltschko, Datta, Adams (2016), Composing graphical models with neural
        networks for structured representations and fast inference, arXiv:1603.06277.

    Example:
        >>> Pinwheel(wings=3).log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    radius, radial_std, tangential_std = 1.0, 0.3, 0.05

    def __init__(self, wings: int = 5, rate: float = 0.4) -> None:
        if wings < 1:
            raise ValueError(f"wings is {wings}; it must be at least 1")
        self.wings = wings
        self.rate = rate

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def sample(self, per_wing: int) -> tuple[Tensor, Tensor]:
        """Draw ``per_wing`` points of each wing: points ``(N, 2)`` and wings ``(N,)``."""
        wing = torch.arange(self.wings).repeat_interleave(per_wing)
        r = self.radius + self.radial_std * torch.randn(len(wing))
        t = self.tangential_std * torch.randn(len(wing))
        angle = 2 * math.pi * wing / self.wings + self.rate * r.exp()
        cos, sin = angle.cos(), angle.sin()
        return 0.5 * torch.stack((r * cos + t * sin, -r * sin + t * cos), -1), wing

    def log_prob(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the log-density ``(N,)`` of points ``(N, 2)``, computed in float64."""
        return torch.cat([self._log_joint(c).logsumexp(-1) for c in x.split(chunk_size)]).to(x)

    def posterior(self, x: Tensor, chunk_size: int = 1000) -> Tensor:
        """Return the probability ``(N, W)`` of each wing."""
        return torch.cat([self._log_joint(c).softmax(-1) for c in x.split(chunk_size)]).to(x)

    def _log_joint(self, x: Tensor) -> Tensor:
        """Return the log-density of each wing ``(N, W)``."""
        row, wing, r, t = self._roots(2 * x.double())
        log_density = (
            torch.distributions.Normal(self.radius, self.radial_std).log_prob(r)
            + torch.distributions.Normal(0.0, self.tangential_std).log_prob(t)
            - torch.log(0.25 * (1 + t * self.rate * r.exp()).abs())
            - math.log(self.wings)
        )
        # The sum over the roots of a point and a wing, relative to the largest.
        flat = row * self.wings + wing
        size = len(x) * self.wings
        top = torch.full((size,), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, flat, log_density, "amax")
        total = torch.zeros(size, dtype=torch.float64)
        total = total.scatter_add(0, flat, (log_density - top[flat]).exp())
        # A point without a root lies outside the grid and has the density of its edge.
        floor = -0.5 * 6.5**2 * 2 - 20.0
        joint = torch.where(total > 0, top + total.clamp_min(1e-300).log(), floor)
        return joint.reshape(len(x), self.wings)

    def _roots(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return row, wing, r and t of each root r of v₀ cos a − v₁ sin a − r = 0."""
        start = 2 * math.pi * torch.arange(self.wings, dtype=torch.float64) / self.wings

        def angles(r: Tensor, wing: Tensor) -> tuple[Tensor, Tensor]:
            a = wing + self.rate * r.exp()
            return a.cos(), a.sin()

        def crossing(r: Tensor, v0: Tensor, v1: Tensor, wing: Tensor) -> Tensor:
            cos, sin = angles(r, wing)
            return v0 * cos - v1 * sin - r

        def slope(r: Tensor, v0: Tensor, v1: Tensor, wing: Tensor) -> Tensor:
            cos, sin = angles(r, wing)
            return -1 - (v0 * sin + v1 * cos) * self.rate * r.exp()

        # The grid covers 6.5 standard deviations of r, and turns by 1/4 of a radian a step at most.
        reach = 6.5 * self.radial_std
        lowest, highest = self.radius - reach, self.radius + reach
        steps = abs(self.rate) * math.exp(highest) * (highest - lowest) * 4
        grid = torch.linspace(lowest, highest, max(161, math.ceil(steps)), dtype=torch.float64)
        cos, sin = angles(grid, start[:, None])
        v0, v1 = v[:, :1, None], v[:, 1:, None]
        below = v0 * cos - v1 * sin <= grid  # (N, W, grid)
        falling = v0 * sin + v1 * cos >= -1 / (self.rate * grid.exp())
        changes = below[..., :-1] != below[..., 1:]
        # Two roots may lie in one step, on either side of a turning point.
        turns = ~changes & (falling[..., :-1] != falling[..., 1:])
        row, wing, left = turns.nonzero().unbind(1)
        own = v[row, 0], v[row, 1], start[wing]
        turn = _bisected(slope, grid[left], grid[left + 1], own)
        twice = (crossing(turn, *own) <= 0) != below[row, wing, left]
        row, wing, left, turn = row[twice], wing[twice], left[twice], turn[twice]
        rows, wings, at = changes.nonzero().unbind(1)
        low = [grid[at], grid[left], turn]
        high = [grid[at + 1], turn, grid[left + 1]]
        row, wing = torch.cat((rows, row, row)), torch.cat((wings, wing, wing))
        own = v[row, 0], v[row, 1], start[wing]
        r = _bisected(crossing, torch.cat(low), torch.cat(high), own)
        cos, sin = angles(r, own[2])
        return row, wing, r, own[0] * sin + own[1] * cos


def _bisected(
    function: Callable[..., Tensor], low: Tensor, high: Tensor, arguments: tuple[Tensor, ...]
) -> Tensor:
    """Return a root of a function in each interval, at whose ends its signs differ."""
    first = function(low, *arguments) <= 0
    for _ in range(50):
        middle = (low + high) / 2
        before = (function(middle, *arguments) <= 0) == first
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return (low + high) / 2


class TwoCircles:
    r"""Two concentric circles with radial noise, and their exact density.

    .. math::
        p(x) = \tfrac12 \sum_k
            \frac{N(|x|; R_k, \epsilon^2) + N(-|x|; R_k, \epsilon^2)}{2 \pi |x|}

    Arguments:
        radii: the two radii, outer first.
        noise: standard deviation ε of the radius.

    Example:
        >>> TwoCircles().log_prob(torch.ones(7, 2)).shape
        torch.Size([7])
    """

    def __init__(self, radii: tuple[float, float] = (0.8, 0.4), noise: float = 0.05) -> None:
        self.radii = radii
        self.noise = noise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({arguments_of(self)})"

    def sample(self, per_circle: int) -> tuple[Tensor, Tensor]:
        """Draw ``per_circle`` points of each circle: points ``(N, 2)`` and circles ``(N,)``."""
        circle = torch.arange(2).repeat_interleave(per_circle)
        radius = torch.tensor(self.radii)[circle] + self.noise * torch.randn(len(circle))
        angle = 2 * math.pi * torch.rand(len(circle))
        return radius[:, None] * torch.stack((angle.cos(), angle.sin()), -1), circle

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(N,)`` of points ``(N, 2)``, computed in float64."""
        radius = x.double().norm(dim=-1, keepdim=True)
        normal = torch.distributions.Normal(
            torch.tensor(self.radii, dtype=torch.float64), self.noise
        )
        # A negative radius is a point on the opposite side.
        both = torch.cat((normal.log_prob(radius), normal.log_prob(-radius)), -1)
        return (both.logsumexp(-1) - math.log(4 * math.pi) - radius.squeeze(-1).log()).to(x)


def pinwheel(
    wings: int = 5, per_wing: int = 512, rate: float = 0.4, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Draw points ``(wings·per_wing, 2)`` of a pinwheel and their wings ``(wings·per_wing,)``.

    Arguments:
        wings, rate: as for :class:`Pinwheel`.
        per_wing: points of each wing.
        seed: seed of the points; the global state stays.

    Raises:
        ValueError: if there is no wing.

    Example:
        >>> x, wing = pinwheel(wings=5, per_wing=512, rate=0.4, seed=0)
        >>> x.shape, wing.bincount().tolist()
        (torch.Size([2560, 2]), [512, 512, 512, 512, 512])
    """
    with local_seed(seed):
        return Pinwheel(wings, rate).sample(per_wing)


def two_circles(
    per_circle: int = 512,
    radii: tuple[float, float] = (0.8, 0.4),
    noise: float = 0.05,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw points ``(2·per_circle, 2)`` of two circles and their circles ``(2·per_circle,)``.

    Arguments:
        per_circle: points of each circle.
        radii, noise: as for :class:`TwoCircles`.
        seed: seed of the points; the global state stays.

    Example:
        >>> x, circle = two_circles(per_circle=512, seed=0)
        >>> x.shape
        torch.Size([1024, 2])
    """
    with local_seed(seed):
        return TwoCircles(radii, noise).sample(per_circle)


MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
LARGEST = 2**31  # bytes of one file; the largest of MNIST has 47 million


def read_idx(path: str | os.PathLike[str]) -> Tensor:
    """Read a file of bytes in the IDX format of MNIST, plain or gzipped, as a ``uint8`` tensor.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is damaged, truncated, or of another format.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:3] != b"\x00\x00\x08":
                raise ValueError(f"{path} does not begin like a file of bytes in MNIST's format")
            sizes = file.read(4 * header[3])
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            count = math.prod(shape)
            if count > LARGEST:
                raise ValueError(f"{path} promises {shape} bytes; at most {LARGEST} are read")
            content = file.read(count + 1)  # a small file can unpack to any size
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
    if len(sizes) != 4 * header[3] or len(content) != count:
        raise ValueError(
            f"{path} promises {shape} bytes and holds {'more' if len(content) > count else 'fewer'}"
            " (truncated, or not MNIST's format)"
        )
    return torch.tensor(np.frombuffer(content, np.uint8)).reshape(shape)


def mnist(
    folder: str | os.PathLike[str],
    *,
    train: bool = True,
    digits: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the images ``(N, 28, 28)`` of MNIST as ``uint8``, and their labels ``(N,)``.

    Arguments:
        folder: folder of ``train-images-idx3-ubyte`` and the other files, plain or with ``.gz``.
        train: ``False`` for the test images.
        digits: the digits to keep; by default all.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or images and labels differ in number.
    """
    part = "train" if train else "t10k"

    def find(name: str) -> Path:
        for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
            if path.exists():
                return path
        raise FileNotFoundError(
            f"there is no {name} or {name}.gz in {folder}; pass the folder that holds MNIST's "
            "files, or fetch them with pyro_vmonf.datasets.download_mnist(folder)"
        )

    images = read_idx(find(f"{part}-images-idx3-ubyte"))
    labels = read_idx(find(f"{part}-labels-idx1-ubyte")).long()
    if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
        raise ValueError(
            f"{folder} holds images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected (N, H, W) and (N,)"
        )
    if digits is not None:
        kept = torch.isin(labels, torch.tensor(digits))
        images, labels = images[kept], labels[kept]
    return images, labels


def download_mnist(folder: str | os.PathLike[str]) -> None:
    """Download the four files of MNIST into a folder and compare their checksums.

    Raises:
        OSError: if a file cannot be downloaded.
        ValueError: if a checksum differs; the file is not written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in MNIST_FILES.items():
        with urllib.request.urlopen(f"{MNIST_MIRROR}{name}.gz", timeout=60) as response:
            content = response.read()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != expected:
            raise ValueError(f"{name}.gz has checksum {found}; expected {expected}")
        (folder / f"{name}.gz").write_bytes(content)


def dequantize(images: Any, *, seed: int | None = None) -> Tensor:
    """Return 8-bit images as floats in [0, 1): (level + u) / 256 with u uniform in [0, 1).

    Arguments:
        images: levels of any shape, ``uint8``, as a tensor or numpy array.
        seed: seed of u; the global state stays.

    Raises:
        TypeError: if the images are not ``uint8``.

    Example:
        >>> dequantize(torch.zeros(1, 4, dtype=torch.uint8), seed=0).max() < 1 / 256
        tensor(True)
    """
    images = as_tensor("images", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"images have dtype {images.dtype}; expected uint8")
    with local_seed(seed):
        # u has 16 random bits; with more, float32 rounds 255 + u to 256.
        u = (torch.rand(images.shape) * 2**16).floor() / 2**16
        return (images.float() + u) / 256


class DequantizedImages(Dataset[Tensor]):
    """8-bit images with new uniform noise at each access, for a ``DataLoader``.

    A flow overfits noise that is the same in each epoch.

    Arguments:
        images: levels ``(N, *event_shape)``, ``uint8``.

    Raises:
        TypeError: if the images are not ``uint8``.

    Example:
        >>> images = DequantizedImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
        >>> [batch.shape[0] for batch in images.loader(batch_size=2, seed=0)]
        [2, 2, 1]
    """

    def __init__(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images have dtype {images.dtype}; expected uint8")
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Tensor:
        return dequantize(self.images[index])

    def loader(self, batch_size: int, seed: int) -> DataLoader[Tensor]:
        """Return a loader of shuffled batches; a resumed run continues its order."""
        generator = torch.Generator().manual_seed(seed)
        order = RandomSampler(self, generator=generator)
        batches = BatchSampler(order, batch_size, drop_last=False)
        return DataLoader(self, sampler=batches, batch_size=None, generator=generator)
