"""Drawing from a MAF of five layers of 200 units, 16 points of one flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.tables import Options, Row, compared
from benchmarks.timing import interleaved
from pyro_vmonf import MAF, FlowMixture, VMoNF
from pyro_vmonf._utils.contexts import local_seed

BLOCKS, HIDDEN, POINTS = 5, 200, 16


def library(features: int, device: str) -> Callable[[], Any]:
    """Return a draw by this library."""
    vmonf = VMoNF(FlowMixture(MAF(features, 1, blocks=BLOCKS, hidden=(HIDDEN,)))).to(device)
    return lambda: vmonf.sample(POINTS)


def zuko_flow(features: int, device: str) -> Callable[[], Any]:
    """Return a draw by zuko."""
    import zuko

    flow = zuko.flows.MAF(features, transforms=BLOCKS, hidden_features=(HIDDEN,)).to(device)

    def draw() -> None:
        with torch.no_grad():
            flow().sample((POINTS,))

    return draw


def pyro_flow(features: int, device: str) -> Callable[[], Any]:
    """Return a draw by Pyro, whose networks are at least as wide as the rows."""
    import pyro.distributions as dist
    from pyro.distributions import transforms as T

    wide = [max(HIDDEN, features)]
    layers = [T.affine_autoregressive(features, hidden_dims=wide) for _ in range(BLOCKS)]
    for layer in layers:
        layer.to(device)
    base = dist.Normal(torch.zeros(features, device=device), 1.0).to_event(1)
    flow = dist.TransformedDistribution(base, [layer.inv for layer in layers])

    def draw() -> None:
        with torch.no_grad():
            flow.sample((POINTS,))

    return draw


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of each number of features."""
    for features in (98, 196, 392, 784):
        with local_seed(0):
            draws = {
                "library": library(features, options.device),
                "zuko": zuko_flow(features, options.device),
                "pyro": pyro_flow(features, options.device),
            }
        times = interleaved(draws, repeats=5, warm_up=1, device=options.device)
        yield compared(f"D={features}", times, options)
