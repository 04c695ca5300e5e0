"""MNIST: its files, and 8-bit images as floats."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.validation import as_tensor

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
        return (images.float() + u.to(images.device)) / 256


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
