"""The experiments: a data set and its recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyro_vmonf.experiments import images, recipes
from pyro_vmonf.experiments.draws import Data, Settings, draw_circles, draw_mnist, draw_pinwheel
from pyro_vmonf.experiments.recipes import Recipe


@dataclass(frozen=True)
class Experiment:
    """A named experiment.

    Attributes:
        title: a description in one line.
        draw: function from settings to data.
        recipes: the recipes by name, ``thesis`` and ``best``.
    """

    title: str
    draw: Callable[[Settings], Data]
    recipes: Mapping[str, Recipe]


EXPERIMENTS: dict[str, Experiment] = {
    "pinwheel": Experiment(
        "five wings of 512 points, rate 0.4 (thesis 5.1.1)",
        draw_pinwheel,
        {"thesis": recipes.THESIS_PINWHEEL, "best": recipes.BEST_PINWHEEL},
    ),
    "pinwheel-easy": Experiment(
        "five wings that turn less, rate 0.25",
        lambda s: draw_pinwheel(s, rate=0.25),
        {"thesis": recipes.THESIS_PINWHEEL, "best": recipes.BEST_PINWHEEL},
    ),
    "pinwheel-3": Experiment(
        "three wings (the slides)",
        lambda s: draw_pinwheel(s, wings=3),
        {"thesis": recipes.THESIS_PINWHEEL, "best": recipes.BEST_PINWHEEL},
    ),
    "circles": Experiment(
        "two circles of 512 points, no labels (thesis 5.1.2)",
        draw_circles,
        {"thesis": recipes.THESIS_CIRCLES, "best": recipes.BEST_CIRCLES},
    ),
    "circles-semi": Experiment(
        "the same with 32 labelled points more, or --labels 11",
        lambda s: draw_circles(s, labelled=32),
        {"thesis": recipes.THESIS_CIRCLES_SEMI, "best": recipes.BEST_CIRCLES},
    ),
    "mnist-04": Experiment(
        "MNIST's digits 0 to 4 (thesis 5.2)",
        lambda s: draw_mnist(s, digits=5, held_out=5000),
        {
            "thesis": recipes.THESIS_MNIST,
            "best": images.undistorted(n_init=3, steps=1000, trial_steps=100),
        },
    ),
    "mnist": Experiment(
        "all ten digits of MNIST",
        draw_mnist,
        {"thesis": recipes.THESIS_MNIST, "best": images.undistorted(n_init=6, rounds=2)},
    ),
    "mnist-semi": Experiment(
        "all ten digits with 100 labels, or --labels 1000",
        lambda s: draw_mnist(s, labelled=100),
        {"thesis": recipes.THESIS_MNIST_SEMI, "best": images.undistorted(n_init=1)},
    ),
    "mnist-glow": Experiment(
        "all ten digits by convolutional flows, Glows",
        lambda s: draw_mnist(s, flat=False),
        {"best": images.GLOW},
    ),
    "mnist-pixels": Experiment(
        "all ten digits by masked convolutions, pixel by pixel",
        lambda s: draw_mnist(s, flat=False),
        {"best": images.PIXELS},
    ),
    "mnist-maf-mog": Experiment(
        "all ten digits by dense flows with mixtures of Gaussians",
        draw_mnist,
        {"best": images.MAF_MOG},
    ),
}
