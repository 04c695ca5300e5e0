"""Transforms from base to data, each with a batch of parameters."""

from pyro_vmonf.transforms.affine import Affine
from pyro_vmonf.transforms.autoregressive import Autoregressive
from pyro_vmonf.transforms.base import FlowTransform
from pyro_vmonf.transforms.batch_norm import BatchNorm
from pyro_vmonf.transforms.context_affine import ContextAffine
from pyro_vmonf.transforms.coupling import Coupling, alternating_mask, checkerboard_mask
from pyro_vmonf.transforms.logit import Logit
from pyro_vmonf.transforms.named import (
    AffineAutoregressive,
    AffineCoupling,
    SplineAutoregressive,
    SplineCoupling,
)
from pyro_vmonf.transforms.permutation import Permutation
from pyro_vmonf.transforms.prelu import PReLU
from pyro_vmonf.transforms.rotation import Rotation
from pyro_vmonf.transforms.standardize import Standardize
from pyro_vmonf.transforms.univariate import RationalQuadratic, ShiftAndScale, Univariate

__all__ = [
    "Affine",
    "AffineAutoregressive",
    "AffineCoupling",
    "Autoregressive",
    "BatchNorm",
    "ContextAffine",
    "Coupling",
    "FlowTransform",
    "Logit",
    "PReLU",
    "Permutation",
    "RationalQuadratic",
    "Rotation",
    "ShiftAndScale",
    "SplineAutoregressive",
    "SplineCoupling",
    "Standardize",
    "Univariate",
    "alternating_mask",
    "checkerboard_mask",
]
