"""Data sets: the thesis's pinwheel and two circles, random mixtures, and MNIST."""

from pyro_vmonf.datasets.digits import (
    MNIST_FILES,
    DequantizedImages,
    dequantize,
    download_mnist,
    mnist,
    read_idx,
)
from pyro_vmonf.datasets.mixtures import random_mixture
from pyro_vmonf.datasets.plane import Pinwheel, TwoCircles, pinwheel, two_circles

__all__ = [
    "MNIST_FILES",
    "DequantizedImages",
    "Pinwheel",
    "TwoCircles",
    "dequantize",
    "download_mnist",
    "mnist",
    "pinwheel",
    "random_mixture",
    "read_idx",
    "two_circles",
]
