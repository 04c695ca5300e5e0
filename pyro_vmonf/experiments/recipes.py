"""Recipes: for the data of an experiment, how to build a pair, teach its guide and fit it."""

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

Build = Callable[[Data], VMoNF]
Teach = Callable[[VMoNF, Data, bool], None]


@dataclass(frozen=True)
class Recipe:
    """A pair for the data of an experiment, and the options of ``fit``.

    Attributes:
        build: function from data to a pair.
        options: options of ``fit``.
        quick: options that a quick run replaces.
        teach: function of pair, data and ``quick`` that teaches the guide before the fit.
        fresh_noise: dequantise the images anew at every step. Such a run can be resumed.
    """

    build: Build
    options: Mapping[str, Any]
    quick: Mapping[str, Any] = field(default_factory=dict)
    teach: Teach | None = None
    fresh_noise: bool = False


def toy_pair(blocks: int, flow_hidden: int, guide_hidden: tuple[int, ...]) -> Build:
    """Return a function that builds a RealNVP mixture with a perceptron as its guide."""

    def build(data: Data) -> VMoNF:
        features, components = data.x.shape[1], data.num_components
        bank = RealNVP(features, components, blocks=blocks, hidden=(flow_hidden,))
        guide = SoftmaxGuide(MLP(features, components, hidden=guide_hidden))
        return VMoNF(FlowMixture(bank, weights="uniform"), guide)

    return build


def image_pair(data: Data) -> VMoNF:
    """Build the mixture of MAFs of the thesis, over the logits of pixels."""
    features, components = data.x.shape[1], data.num_components
    layers = MAF(features, components, blocks=5, hidden=(200,)).transforms
    bank = Flow([*layers, Logit()], base=StandardNormal(features, components))  # type: ignore[list-item]
    guide = SoftmaxGuide(MLP(features, components, hidden=(512,)))
    return VMoNF(FlowMixture(bank, weights="uniform"), guide)


def of_thesis(build: Build, quick: int = 20, **options: Any) -> Recipe:
    """Return a recipe with the settings of the thesis; docs/thesis.md lists choices of our own."""
    common = {"temperature": exponential_decay(rate=1e-3), "standardize": False}
    return Recipe(build, {**options, **common}, quick={"epochs": quick})


def semi_supervised(recipe: Recipe, pretrain_epochs: int, quick: int) -> Recipe:
    """Return a recipe with pretraining on the labelled rows, and interleaved epochs."""
    more = {"pretrain_epochs": pretrain_epochs, "interleave": True}
    short = {"epochs": quick, "pretrain_epochs": quick}
    return Recipe(recipe.build, {**recipe.options, **more}, quick=short)


THESIS_PINWHEEL = of_thesis(toy_pair(8, 8, (3,)), epochs=400, batch_size=512, lr=1e-3)
THESIS_CIRCLES = of_thesis(toy_pair(10, 8, (16, 16)), epochs=500, batch_size=128, lr=1e-3)
THESIS_CIRCLES_SEMI = semi_supervised(THESIS_CIRCLES, pretrain_epochs=300, quick=20)
THESIS_MNIST = of_thesis(
    image_pair, quick=3, epochs=100, batch_size=100, lr=1e-4, weight_decay=1e-6
)
THESIS_MNIST_SEMI = semi_supervised(THESIS_MNIST, pretrain_epochs=20, quick=1)

STEPS, STEPS_QUICK = 3000, 500


def neighbourly(length: int, last: float) -> Recipe:
    """Return the recipe of a pair whose guide prefers one component for neighbours.

    The guide pays for different components at the two ends of a random walk on the graph of
    nearest neighbours, and for unbalanced components.

    Arguments:
        length: length of the longest walks.
        last: weight of the consistency at the end of the training; the first weight is 1.
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

    def teach(vmonf: VMoNF, data: Data, quick: bool) -> None:
        guide: Any = vmonf.guide
        warm_start_(guide, data.x, y=data.y)  # spectral clusters

    def over(steps: int) -> dict[str, object]:
        return {
            "steps": steps,
            "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, steps),
            "temperature": exponential_decay(rate=6 / steps),
        }

    options = {**over(STEPS), "batch_size": 512, "lr": 3e-3, "clip_norm": 10.0}
    return Recipe(build, options, quick=over(STEPS_QUICK), teach=teach)


# The wings nearly touch. Short walks stay in a wing, and the likelihood decides on the border.
BEST_PINWHEEL = neighbourly(length=16, last=0.1)
# The circles are apart, and the likelihood alone would halve them. Long walks keep them whole.
BEST_CIRCLES = neighbourly(length=64, last=1.0)
