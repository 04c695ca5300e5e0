"""The data of the experiments: drawn or read by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import Pinwheel, TwoCircles, dequantize, mnist

# Offsets of the seeds of held-out data and of fresh points of the truth.
HELD_OUT, FRESH = 10_000, 20_000
FRESH_POINTS, FRESH_POINTS_QUICK = 100_000, 10_000


@dataclass(frozen=True)
class Settings:
    """The settings of a run on the command line.

    Attributes:
        seed: seed of data, initialisation and training.
        per_wing: points of each wing or circle; by default 512.
        labels: number of labelled rows; by default that of the experiment.
        data: folder of the files of MNIST.
        quick: a short run.
    """

    seed: int = 0
    per_wing: int | None = None
    labels: int | None = None
    data: Path = Path("data/mnist")
    quick: bool = False

    @property
    def fresh_points(self) -> int:
        """The number of fresh points of the truth, for the KL divergence."""
        return FRESH_POINTS_QUICK if self.quick else FRESH_POINTS


@dataclass(frozen=True)
class Data:
    """One draw of an experiment's data.

    Attributes:
        x: rows for the fit.
        labels: true labels of the rows, for scores.
        x_test: held-out rows.
        labels_test: true labels of the held-out rows.
        num_components: number of components.
        y: labels for the fit, −1 for unlabelled; ``None`` in an unsupervised experiment.
        truth: the true density, if known.
        fresh: points of the truth, for the KL divergence.
        image_shape: shape of an image; ``None`` for other rows.
        levels: the 8-bit images behind ``x``, in the shape of ``x``.
    """

    x: Tensor
    labels: Tensor
    x_test: Tensor
    labels_test: Tensor
    num_components: int
    y: Tensor | None = None
    truth: Pinwheel | TwoCircles | None = None
    fresh: Tensor | None = None
    image_shape: tuple[int, ...] | None = None
    levels: Tensor | None = None


def draw_pinwheel(settings: Settings, *, wings: int = 5, rate: float = 0.4) -> Data:
    """Draw a pinwheel, as many held-out points, and fresh points."""
    truth, count = Pinwheel(wings, rate), settings.per_wing or 512
    with local_seed(settings.seed):
        x, labels = truth.sample(count)
    return _with_truth(settings, x, labels, truth, count, wings)


def draw_circles(settings: Settings, *, labelled: int = 0) -> Data:
    """Draw two circles, and ``labelled`` more points with labels, half on each circle."""
    truth, count = TwoCircles(), settings.per_wing or 512
    with local_seed(settings.seed):
        x, labels = truth.sample(count)
        y = None
        wanted = settings.labels or labelled
        if labelled:
            more, known = truth.sample((wanted + 1) // 2)
            kept = torch.arange(len(known))[: len(known) - wanted % 2]
            x, labels = torch.cat((x, more[kept])), torch.cat((labels, known[kept]))
            y = torch.cat((torch.full((2 * count,), -1), known[kept]))
    return _with_truth(settings, x, labels, truth, count, 2, y)


def _with_truth(
    settings: Settings,
    x: Tensor,
    labels: Tensor,
    truth: Pinwheel | TwoCircles,
    count: int,
    clusters: int,
    y: Tensor | None = None,
) -> Data:
    """Return the data with held-out points and fresh points of the truth."""
    with local_seed(HELD_OUT + settings.seed):
        x_test, labels_test = truth.sample(count)
    with local_seed(FRESH + settings.seed):
        fresh, _ = truth.sample(settings.fresh_points // clusters)
    return Data(x, labels, x_test, labels_test, clusters, y=y, truth=truth, fresh=fresh)


def draw_mnist(
    settings: Settings,
    *,
    digits: int = 10,
    held_out: int = 0,
    labelled: int = 0,
    flat: bool = True,
) -> Data:
    """Read the digits of MNIST below ``digits``, dequantised.

    Arguments:
        settings: settings of the run.
        digits: number of digits, from 0.
        held_out: number of random training images to leave out, as in thesis Table 5.1.
        labelled: number of training images with labels, as many of each digit.
        flat: flatten the rows; otherwise a row is an image ``(1, H, W)``.

    Raises:
        ValueError: if there are too few training images, or the labels cannot be shared equally.
    """
    images, labels = mnist(settings.data, digits=tuple(range(digits)))
    images_test, labels_test = mnist(settings.data, train=False, digits=tuple(range(digits)))
    if held_out >= len(images):
        raise ValueError(
            f"{settings.data} holds {len(images)} training images of these digits; the experiment "
            f"leaves {held_out} aside and needs more"
        )
    generator = torch.Generator().manual_seed(settings.seed)
    kept = torch.randperm(len(images), generator=generator)[held_out:]
    images, labels = images[kept], labels[kept]
    y = None
    if labelled:
        wanted = settings.labels or labelled
        if wanted % digits:
            raise ValueError(f"--labels is {wanted}; expected as many for each of {digits} digits")
        y = torch.full_like(labels, -1)
        for digit in range(digits):
            y[(labels == digit).nonzero().squeeze(1)[: wanted // digits]] = digit
    image_shape = tuple(images.shape[1:])
    if flat:
        images, images_test = images.flatten(1), images_test.flatten(1)
    else:
        images, images_test = images.unsqueeze(1), images_test.unsqueeze(1)
    return Data(
        dequantize(images, seed=settings.seed),
        labels,
        dequantize(images_test, seed=HELD_OUT + settings.seed),
        labels_test,
        digits,
        y=y,
        image_shape=image_shape,
        levels=images,
    )
