"""Recipes for images: distortions teach the guide, and flows fit its clusters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.experiments.draws import Data
from pyro_vmonf.experiments.recipes import Recipe, Teach
from pyro_vmonf.flows.base import Flow
from pyro_vmonf.flows.images import Glow
from pyro_vmonf.flows.pixels import PixelFlow, behind_pixels
from pyro_vmonf.flows.ready_made import AutoregressiveNSF, MAFMoG
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.mlp import ConvEncoder
from pyro_vmonf.starts.copies import relearn_
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.terms import Balance, Classification, Consistency
from pyro_vmonf.vmonf import VMoNF

Bank = Callable[[tuple[int, ...], int], Flow]


def fitting_pair(network: nn.Module, flows: Flow) -> VMoNF:
    """Return a pair whose flows fit the clusters of a taught guide.

    No likelihood reaches the guide. Each row trains the flow of its most probable component only.
    """
    guide = SoftmaxGuide(network, terms=[], elbo_gradient=0.0, top=1)
    return VMoNF(FlowMixture(flows, weights="uniform"), guide)


def encoder(data: Data) -> ConvEncoder:
    """Return the network of the guide for images, flattened or not."""
    assert data.image_shape is not None
    return ConvEncoder((1, *data.image_shape), data.num_components)


def teach_undistorted(
    n_init: int,
    *,
    steps: int = 3000,
    trial_steps: int = 400,
    quick_steps: int = 100,
    rounds: int = 0,
) -> Teach:
    """Return a function that teaches a guide to ignore small affine distortions.

    Arguments:
        n_init: starts of the guide; the one with the best terms stays.
        steps, trial_steps: of the guide that stays, and of each start.
        quick_steps: steps in a quick run, which has one start.
        rounds: how often the network then learns its own clusters anew; never in a quick run.
    """

    def teach(vmonf: VMoNF, data: Data, quick: bool) -> None:
        assert data.image_shape is not None
        distort = AffineImages(data.image_shape, shift=0.2)
        guide: Any = vmonf.guide
        pretrain_(
            guide,
            data.x,
            data.y,
            terms=[Classification(), Consistency(distort), Balance(weight=3.0)],
            augment=distort.distorted,
            n_init=1 if quick else n_init,
            trial_steps=trial_steps,
            steps=quick_steps if quick else steps,
            progress=True,
        )
        if rounds and not quick:
            relearn_(
                guide,
                data.x,
                data.y,
                augment=distort.distorted,
                terms=[Consistency(distort)],
                rounds=rounds,
                progress=True,
            )

    return teach


SPLINE_STEPS, SPLINE_STEPS_QUICK = 250, 10


def undistorted(n_init: int, **lessons: int) -> Recipe:
    """Return the recipe of dense spline flows.

    Arguments:
        n_init, lessons: as for :func:`teach_undistorted`.
    """

    def build(data: Data) -> VMoNF:
        splines = AutoregressiveNSF(
            data.x.shape[1], data.num_components, blocks=1, hidden=(200,), bound=4.0
        )
        return fitting_pair(network=encoder(data), flows=behind_pixels(splines, data.x))

    return Recipe(
        build,
        {
            "steps": SPLINE_STEPS,
            "batch_size": 256,
            "lr": 2e-3,
            "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, SPLINE_STEPS),
            "temperature": 1.0,
        },
        quick={"steps": SPLINE_STEPS_QUICK},
        teach=teach_undistorted(n_init, **lessons),
    )


def one_cycle(lr: float, steps: int) -> Callable[[Optimizer], LRScheduler]:
    """Return a learning rate that rises for 1 % of the run and then falls to zero."""
    return partial(OneCycleLR, max_lr=lr, total_steps=steps + 1, pct_start=0.01)


def recipe(bank: Bank, *, steps: int, quick: int, batch_size: int, lr: float) -> Recipe:
    """Return the recipe of a bank that fits the clusters of a taught guide.

    Arguments:
        bank: function from the shape of a row and the number of components to flows of logits.
        steps, batch_size: steps and batch size of the flows.
        quick: steps in a quick run.
        lr: largest learning rate.
    """

    def build(data: Data) -> VMoNF:
        network = encoder(data)
        flows = bank(tuple(data.x.shape[1:]), data.num_components)
        return fitting_pair(network, behind_pixels(flows, data.x))

    def options(steps: int) -> dict[str, object]:
        return {
            "steps": steps,
            "batch_size": batch_size,
            "scheduler": one_cycle(lr, steps),
            "clip_norm": 1000.0,  # nats per row
            "temperature": 1.0,
        }

    return Recipe(
        build,
        options(steps),
        quick=options(quick),
        teach=teach_undistorted(n_init=6, quick_steps=1000),
        fresh_noise=True,
    )


def masked_convolutions(event_shape: tuple[int, ...], components: int) -> Flow:
    """Return pixel-by-pixel spline flows; the components share all layers but the last."""
    return PixelFlow(
        event_shape,
        components,
        channels=64,
        depth=5,
        first=5,
        squeezes=1,
        shared_trunk=True,
        precision="bfloat16",
    )


def glow(event_shape: tuple[int, ...], components: int) -> Flow:
    """Return Glows with separate layers."""
    return Glow(event_shape, components, blocks=4, channels=32, precision="bfloat16")


def mixtures_of_gaussians(event_shape: tuple[int, ...], components: int) -> Flow:
    """Return dense MADEs with mixtures of Gaussians."""
    return MAFMoG(event_shape[0], components, blocks=1, hidden=(256,), mixtures=10)


PIXELS = recipe(masked_convolutions, steps=7_000, quick=700, batch_size=256, lr=4e-3)
GLOW = recipe(glow, steps=7_000, quick=400, batch_size=256, lr=3e-3)
MAF_MOG = recipe(mixtures_of_gaussians, steps=6_000, quick=600, batch_size=256, lr=2e-3)
