"""Banks: modules whose call returns one distribution of K components."""

from pyro_vmonf.flows.base import Flow
from pyro_vmonf.flows.foreign import Replicated
from pyro_vmonf.flows.gaussian import Gaussian, StandardNormal
from pyro_vmonf.flows.images import Glow, ImageNSF, MultiScaleRealNVP
from pyro_vmonf.flows.pixels import PixelFlow
from pyro_vmonf.flows.random import ObservedBank, RandomBank
from pyro_vmonf.flows.ready_made import (
    MAF,
    NSF,
    AutoregressiveNSF,
    MAFMoG,
    RealNVP,
    alternating_order,
)
from pyro_vmonf.flows.rotated import RotatedRealNVP
from pyro_vmonf.flows.stack import Stack
from pyro_vmonf.flows.students import StudentMixtures
from pyro_vmonf.flows.submixtures import GaussianMixtures

__all__ = [
    "MAF",
    "NSF",
    "AutoregressiveNSF",
    "Flow",
    "Gaussian",
    "GaussianMixtures",
    "Glow",
    "ImageNSF",
    "MAFMoG",
    "MultiScaleRealNVP",
    "ObservedBank",
    "PixelFlow",
    "RandomBank",
    "RealNVP",
    "Replicated",
    "RotatedRealNVP",
    "Stack",
    "StandardNormal",
    "StudentMixtures",
    "alternating_order",
]
