"""What an experiment's data are: drawn, or read, by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import Pinwheel, TwoCircles, dequantize, mnist

# Offsets that keep the draws of one seed apart: data, held-out data, fresh points of the truth.
HELD_OUT, FRESH = 10_000, 20_000
FRESH_POINTS, FRESH_POINTS_QUICK = 100_000, 10_000


@dataclass(frozen=True)
class Settings:
    """What the command line sets of an experiment.

    Attributes:
        seed: of data, initialisation and training.
        per_wing: points of each wing or circle; the experiment's own by default.
        labels: number of labelled rows; the experiment's own by default.
        data: folder of MNIST's files.
        quick: a shortened run that shows that everything works.
    """

    seed: int = 0
    per_wing: int | None = None
    labels: int | None = None
    data: Path = Path("data/mnist")
    quick: bool = False

    @property
    def fresh_points(self) -> int:
        """How many fresh points of the truth the KL divergence is estimated on."""
        return FRESH_POINTS_QUICK if self.quick else FRESH_POINTS


@dataclass(frozen=True)
class Data:
    """One draw of an experiment's data.

    Attributes:
        x: rows that the mixture is fitted to.
        labels: their true labels, for scoring.
        x_test: held-out rows.
        labels_test: their true labels.
        num_components: how many components to fit.
        y: labels that the fit may use, −1 for unlabelled; ``None`` in an unsupervised experiment.
        truth: the density that the rows come from, where it is known.
        fresh: points drawn from the truth, for the KL divergence.
        image_shape: shape of a row that is an image.
        levels: the images that ``x`` is made of, before they were dequantised, as ``x`` is shaped.
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
    """Draw a pinwheel, as many held-out points, and fresh ones."""
    truth, count = Pinwheel(wings, rate), settings.per_wing or 512
    with local_seed(settings.seed):
        x, labels = truth.sample(count)
    with local_seed(HELD_OUT + settings.seed):
        x_test, labels_test = truth.sample(count)
    with local_seed(FRESH + settings.seed):
        fresh, _ = truth.sample(settings.fresh_points // wings)
    return Data(x, labels, x_test, labels_test, wings, truth=truth, fresh=fresh)


def draw_circles(settings: Settings, *, labelled: int = 0) -> Data:
    """Draw two circles; ``labelled`` more points, half on each, come with their label."""
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
    with local_seed(HELD_OUT + settings.seed):
        x_test, labels_test = truth.sample(count)
    with local_seed(FRESH + settings.seed):
        fresh, _ = truth.sample(settings.fresh_points // 2)
    return Data(x, labels, x_test, labels_test, 2, y=y, truth=truth, fresh=fresh)


def draw_mnist(
    settings: Settings,
    *,
    digits: int = 10,
    held_out: int = 0,
    labelled: int = 0,
    flat: bool = True,
) -> Data:
    """Read MNIST's digits below ``digits``, dequantised.

    Arguments:
        settings: of the run.
        digits: how many, from 0.
        held_out: training images left aside at random, as behind thesis Table 5.1.
        labelled: training images, as many of each digit, that come with their label.
        flat: whether a row is flattened, or an image ``(1, H, W)``.
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
