"""The experiments as data: for each name a data set, and recipes of model, guide and fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf.datasets import Pinwheel, TwoCircles, dequantize, mnist
from pyro_vmonf.distortions import AffineImages, RandomWalk
from pyro_vmonf.flows import MAF, AutoregressiveNSF, Flow, RealNVP, StandardNormal
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn import MLP, ConvEncoder
from pyro_vmonf.pretraining import pretrain_
from pyro_vmonf.scopes import local_seed
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.temperature import exponential_decay, linear_decay
from pyro_vmonf.terms import Balance, Classification, Consistency
from pyro_vmonf.transforms import Logit, Standardize
from pyro_vmonf.vmonf import VMoNF

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


@dataclass(frozen=True)
class Recipe:
    """A model and guide for the data, and the options of ``fit``.

    Attributes:
        build: makes the pair.
        options: of ``fit``.
        quick: options that differ in a shortened run.
        teach: teaches the guide first clusters, before the fit; true for a shortened run.
    """

    build: Callable[[Data], VMoNF]
    options: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    teach: Callable[[VMoNF, Data, bool], None] | None = None


@dataclass(frozen=True)
class Experiment:
    """A named experiment.

    Attributes:
        title: one line that says what it is.
        draw: the function that draws its data.
        recipes: by name, ``thesis`` and ``best``.
    """

    title: str
    draw: Callable[[Settings], Data]
    recipes: Mapping[str, Recipe]


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
    settings: Settings, *, digits: int = 10, held_out: int = 0, labelled: int = 0
) -> Data:
    """Read MNIST's digits below ``digits``, dequantised and flattened.

    Arguments:
        settings: of the run.
        digits: how many, from 0.
        held_out: training images left aside at random, as behind thesis Table 5.1.
        labelled: training images, as many of each digit, that come with their label.
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
    return Data(
        dequantize(images.flatten(1), seed=settings.seed),
        labels,
        dequantize(images_test.flatten(1), seed=HELD_OUT + settings.seed),
        labels_test,
        digits,
        y=y,
        image_shape=tuple(images.shape[1:]),
    )


def toy_pair(blocks: int, flow_hidden: int, guide_hidden: tuple[int, ...]) -> Any:
    """Return the builder of a RealNVP mixture with a perceptron as its guide."""

    def build(data: Data) -> VMoNF:
        features, components = data.x.shape[1], data.num_components
        bank = RealNVP(features, components, blocks=blocks, hidden=(flow_hidden,))
        return VMoNF(
            FlowMixture(bank, weights="uniform"),
            SoftmaxGuide(MLP(features, components, hidden=guide_hidden)),
        )

    return build


def image_pair(data: Data) -> VMoNF:
    """Build the thesis's mixture of MAFs over pixels, behind a logit."""
    features, components = data.x.shape[1], data.num_components
    layers = MAF(features, components, blocks=5, hidden=(200,)).transforms
    bank = Flow([*layers, Logit()], base=StandardNormal(features, components))  # type: ignore[list-item]
    return VMoNF(
        FlowMixture(bank, weights="uniform"),
        SoftmaxGuide(MLP(features, components, hidden=(512,))),
    )


# The thesis's own settings, to the letter; docs/thesis.md lists the choices where it is silent.
THESIS_COOLING = exponential_decay(rate=1e-3)
THESIS_PINWHEEL = Recipe(
    toy_pair(blocks=8, flow_hidden=8, guide_hidden=(3,)),
    {
        "epochs": 400,
        "batch_size": 512,
        "lr": 1e-3,
        "temperature": THESIS_COOLING,
        "standardize": False,
    },
    quick={"epochs": 20},
)
THESIS_CIRCLES = Recipe(
    toy_pair(blocks=10, flow_hidden=8, guide_hidden=(16, 16)),
    {
        "epochs": 500,
        "batch_size": 128,
        "lr": 1e-3,
        "temperature": THESIS_COOLING,
        "standardize": False,
    },
    quick={"epochs": 20},
)
THESIS_CIRCLES_SEMI = Recipe(
    THESIS_CIRCLES.build,
    {**THESIS_CIRCLES.options, "pretrain_epochs": 300, "interleave": True},
    quick={"epochs": 20, "pretrain_epochs": 20},
)
THESIS_MNIST = Recipe(
    image_pair,
    {
        "epochs": 100,
        "batch_size": 100,
        "lr": 1e-4,
        "weight_decay": 1e-6,
        "temperature": THESIS_COOLING,
        "standardize": False,
    },
    quick={"epochs": 3},
)
THESIS_MNIST_SEMI = Recipe(
    image_pair,
    {**THESIS_MNIST.options, "pretrain_epochs": 20, "interleave": True},
    quick={"epochs": 1, "pretrain_epochs": 1},
)

STEPS, STEPS_QUICK = 3000, 300


def neighbourly_pair(length: int, last: float) -> Callable[[Data], VMoNF]:
    """Return the builder of a pair that prefers neighbours to share a component.

    Beside the ELBO the guide pays for points that walks on the
    graph of nearest neighbours connect and that it tells apart, and for unbalanced components.

    Arguments:
        length: of the longest walks.
        last: weight of the consistency at the end of the training; it begins with 1.
    """

    def build(data: Data) -> VMoNF:
        features, components = data.x.shape[1], data.num_components
        weight = linear_decay(steps=STEPS, initial=1.0, final=last)
        terms = [
            Classification(),
            Consistency(RandomWalk(data.x, length=length), weight=weight),
            Balance(weight=2.0),
        ]
        bank = RealNVP(features, components, blocks=8, hidden=(16,))
        guide = SoftmaxGuide(MLP(features, components, hidden=(64, 64)), terms)
        return VMoNF(FlowMixture(bank, weights="uniform"), guide)

    return build


def teach_neighbours(vmonf: VMoNF, data: Data, quick: bool) -> None:
    """Start the guide from spectral clusters."""
    assert isinstance(vmonf.guide, SoftmaxGuide)
    warm_start_(vmonf.guide, data.x, y=data.y)


def neighbourly(length: int, last: float) -> Recipe:
    """Return the recipe of :func:`neighbourly_pair`."""
    return Recipe(
        neighbourly_pair(length, last),
        {
            "steps": STEPS,
            "batch_size": 512,
            "lr": 3e-3,
            "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
            "clip_norm": 10.0,
            "temperature": exponential_decay(rate=2e-3),
        },
        quick={"steps": STEPS_QUICK},
        teach=teach_neighbours,
    )


IMAGE_STEPS, IMAGE_STEPS_QUICK = 500, 10
ROWS_FOR_UNITS = 10_000


def distorted_pair(data: Data) -> VMoNF:
    """Build spline flows over pixels, and a convolutional guide whose clusters they fit.

    Logits of pixels are brought to one unit before the splines, which live on a box. The guide
    is taught beforehand and sees no likelihood; each row trains the flow of its own component.
    """
    features, components = data.x.shape[1], data.num_components
    assert data.image_shape is not None
    pixels, units = Logit(), Standardize((features,))
    units.fit_(pixels.inv(data.x[:ROWS_FOR_UNITS]))
    layers = AutoregressiveNSF(features, components, blocks=1, hidden=(200,), bound=4.0).transforms
    base = StandardNormal(features, components)
    network = ConvEncoder((1, *data.image_shape), components)
    return VMoNF(
        FlowMixture(Flow([*layers, units, pixels], base=base), weights="uniform"),  # type: ignore[list-item]
        SoftmaxGuide(network, terms=[], elbo_gradient=0.0, top=1),
    )


def teach_distortions(vmonf: VMoNF, data: Data, quick: bool) -> None:
    """Teach the guide that small affine distortions leave the cluster of an image alone."""
    assert isinstance(vmonf.guide, SoftmaxGuide) and data.image_shape is not None
    distort = AffineImages(data.image_shape, shift=0.2)
    pretrain_(
        vmonf.guide,
        data.x,
        data.y,
        terms=[Classification(), Consistency(distort), Balance(weight=3.0)],
        augment=distort.distorted,
        n_init=1 if quick or data.y is not None else 6,
        steps=100 if quick else 3000,
        progress=True,
    )


BEST_MNIST = Recipe(
    distorted_pair,
    {
        "steps": IMAGE_STEPS,
        "batch_size": 256,
        "lr": 2e-3,
        "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, IMAGE_STEPS),
        "temperature": 1.0,
    },
    quick={"steps": IMAGE_STEPS_QUICK},
    teach=teach_distortions,
)

# Wings nearly touch: walks are short, and the likelihood has the last word on the border.
BEST_PINWHEEL = neighbourly(length=16, last=0.1)
# Circles lie apart, and the likelihood would rather cut them in halves: walks are long and stay.
BEST_CIRCLES = neighbourly(length=64, last=1.0)

EXPERIMENTS: dict[str, Experiment] = {
    "pinwheel": Experiment(
        "five wings of 512 points, rate 0.4 (thesis 5.1.1)",
        draw_pinwheel,
        {"thesis": THESIS_PINWHEEL, "best": BEST_PINWHEEL},
    ),
    "pinwheel-easy": Experiment(
        "five wings that turn less, rate 0.25",
        lambda s: draw_pinwheel(s, rate=0.25),
        {"thesis": THESIS_PINWHEEL, "best": BEST_PINWHEEL},
    ),
    "pinwheel-3": Experiment(
        "three wings (the slides)",
        lambda s: draw_pinwheel(s, wings=3),
        {"thesis": THESIS_PINWHEEL, "best": BEST_PINWHEEL},
    ),
    "circles": Experiment(
        "two circles of 512 points, no labels (thesis 5.1.2)",
        draw_circles,
        {"thesis": THESIS_CIRCLES, "best": BEST_CIRCLES},
    ),
    "circles-semi": Experiment(
        "the same with 32 labelled points more, or --labels 11",
        lambda s: draw_circles(s, labelled=32),
        {"thesis": THESIS_CIRCLES_SEMI, "best": BEST_CIRCLES},
    ),
    "mnist-04": Experiment(
        "MNIST's digits 0 to 4 (thesis 5.2)",
        lambda s: draw_mnist(s, digits=5, held_out=5000),
        {"thesis": THESIS_MNIST, "best": BEST_MNIST},
    ),
    "mnist": Experiment(
        "all ten digits of MNIST",
        draw_mnist,
        {"thesis": THESIS_MNIST, "best": BEST_MNIST},
    ),
    "mnist-semi": Experiment(
        "all ten digits with 100 labels, or --labels 1000",
        lambda s: draw_mnist(s, labelled=100),
        {"thesis": THESIS_MNIST_SEMI, "best": BEST_MNIST},
    ),
}
