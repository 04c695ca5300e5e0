"""Variational mixtures of normalizing flows, as Pyro programs."""

from pyro_vmonf._version import __version__
from pyro_vmonf.banks import Stack
from pyro_vmonf.distributed import TrainingLoss
from pyro_vmonf.distributions import FlowDistribution, Marginal, select, stacked
from pyro_vmonf.em import fit_em, information_criteria
from pyro_vmonf.fitting import fit
from pyro_vmonf.flows import MAF, NSF, AutoregressiveNSF, Flow, Gaussian, MAFMoG, RealNVP
from pyro_vmonf.foreign import Replicated
from pyro_vmonf.guides import ExactGuide, MarginalGuide, SoftmaxGuide
from pyro_vmonf.history import History
from pyro_vmonf.images import Glow, ImageNSF, MultiScaleRealNVP
from pyro_vmonf.model import FlowMixture, MixtureComponent
from pyro_vmonf.pixel_flow import PixelFlow
from pyro_vmonf.random_bank import RandomBank
from pyro_vmonf.rotated import RotatedRealNVP
from pyro_vmonf.simplex import StickBreaking
from pyro_vmonf.temperature import constant, exponential_decay, linear_decay
from pyro_vmonf.vmonf import VMoNF
from pyro_vmonf.weights import (
    FixedWeights,
    GatedWeights,
    LearnedWeights,
    RandomWeights,
    UpdatedWeights,
)

__all__ = [
    "MAF",
    "NSF",
    "AutoregressiveNSF",
    "ExactGuide",
    "FixedWeights",
    "Flow",
    "FlowDistribution",
    "FlowMixture",
    "GatedWeights",
    "Gaussian",
    "Glow",
    "History",
    "ImageNSF",
    "LearnedWeights",
    "MAFMoG",
    "Marginal",
    "MarginalGuide",
    "MixtureComponent",
    "MultiScaleRealNVP",
    "PixelFlow",
    "RandomBank",
    "RandomWeights",
    "RealNVP",
    "Replicated",
    "RotatedRealNVP",
    "SoftmaxGuide",
    "Stack",
    "StickBreaking",
    "TrainingLoss",
    "UpdatedWeights",
    "VMoNF",
    "__version__",
    "constant",
    "exponential_decay",
    "fit",
    "fit_em",
    "information_criteria",
    "linear_decay",
    "select",
    "stacked",
]
