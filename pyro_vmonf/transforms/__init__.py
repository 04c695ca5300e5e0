"""Transforms from base to data, each with a batch of parameters."""

from pyro_vmonf.transforms.actnorm import ActNorm
from pyro_vmonf.transforms.affine import Affine
from pyro_vmonf.transforms.autoregressive import Autoregressive
from pyro_vmonf.transforms.base import FlowTransform
from pyro_vmonf.transforms.batch_norm import BatchNorm
from pyro_vmonf.transforms.context_affine import ContextAffine
from pyro_vmonf.transforms.coupling import Coupling, alternating_mask, checkerboard_mask
from pyro_vmonf.transforms.image import ImageTransform, Split, Squeezed, squeeze, unsqueeze
from pyro_vmonf.transforms.image_autoregressive import (
    AffineImageAutoregressive,
    ImageAutoregressive,
    SplineImageAutoregressive,
)
from pyro_vmonf.transforms.image_coupling import (
    AffineImageCoupling,
    ImageCoupling,
    SplineImageCoupling,
)
from pyro_vmonf.transforms.invertible_convolution import InvertibleConvolution
from pyro_vmonf.transforms.logit import Logit
from pyro_vmonf.transforms.mixture_of_gaussians import MixtureOfGaussians
from pyro_vmonf.transforms.named import (
    AffineAutoregressive,
    AffineCoupling,
    MixtureAutoregressive,
    SplineAutoregressive,
    SplineCoupling,
)
from pyro_vmonf.transforms.permutation import Permutation
from pyro_vmonf.transforms.prelu import PReLU
from pyro_vmonf.transforms.rotation import Rotation
from pyro_vmonf.transforms.standardize import Standardize
from pyro_vmonf.transforms.univariate import RationalQuadratic, ShiftAndScale, Univariate

__all__ = [
    "ActNorm",
    "Affine",
    "AffineAutoregressive",
    "AffineCoupling",
    "AffineImageAutoregressive",
    "AffineImageCoupling",
    "Autoregressive",
    "BatchNorm",
    "ContextAffine",
    "Coupling",
    "FlowTransform",
    "ImageAutoregressive",
    "ImageCoupling",
    "ImageTransform",
    "InvertibleConvolution",
    "Logit",
    "MixtureAutoregressive",
    "MixtureOfGaussians",
    "PReLU",
    "Permutation",
    "RationalQuadratic",
    "Rotation",
    "ShiftAndScale",
    "SplineAutoregressive",
    "SplineCoupling",
    "SplineImageAutoregressive",
    "SplineImageCoupling",
    "Split",
    "Squeezed",
    "Standardize",
    "Univariate",
    "alternating_mask",
    "checkerboard_mask",
    "squeeze",
    "unsqueeze",
]
