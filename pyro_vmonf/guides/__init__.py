"""Guides: q(c|x) by a softmax network, the exact posterior, or none."""

from pyro_vmonf.guides.base import BoundGuide
from pyro_vmonf.guides.exact import ExactGuide, MarginalGuide
from pyro_vmonf.guides.softmax import SoftmaxGuide

__all__ = ["BoundGuide", "ExactGuide", "MarginalGuide", "SoftmaxGuide"]
