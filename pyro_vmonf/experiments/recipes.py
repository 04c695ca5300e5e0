"""Recipes: for the data of an experiment a pair, how it is taught, and the options of its fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.experiments.draws import Data
from pyro_vmonf.flows.ready_made import MAF, Flow, RealNVP, StandardNormal
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.mlp import MLP
from pyro_vmonf.schedules import exponential_decay, linear_decay
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.terms import Balance, Classification, Consistency
from pyro_vmonf.transforms import Logit
from pyro_vmonf.vmonf import VMoNF

Teach = Callable[[VMoNF, Data, bool], None]


@dataclass(frozen=True)
class Recipe:
    """A model and guide for the data, and the options of ``fit``.

    Attributes:
        build: makes the pair.
        options: of ``fit``.
        quick: options that differ in a shortened run.
        teach: teaches the guide first clusters, before the fit; true for a shortened run.
        fresh_noise: dequantise the images anew at every step; the run can then be resumed as well.
    """

    build: Callable[[Data], VMoNF]
    options: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    teach: Teach | None = None
    fresh_noise: bool = False


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
        bank = RealNVP(features, components, blocks=8, hidden=(8,))
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


# Wings nearly touch: walks are short, and the likelihood has the last word on the border.
BEST_PINWHEEL = neighbourly(length=16, last=0.1)
# Circles lie apart, and the likelihood would rather cut them in halves: walks are long and stay.
BEST_CIRCLES = neighbourly(length=64, last=1.0)
