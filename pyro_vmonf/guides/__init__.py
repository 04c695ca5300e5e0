"""Guides: q(c|x) by a softmax network, the exact posterior, any Pyro program, or none."""

from pyro_vmonf.guides.base import BoundGuide
from pyro_vmonf.guides.exact import ExactGuide, MarginalGuide
from pyro_vmonf.guides.forms import as_guide
from pyro_vmonf.guides.programs import PyroGuide
from pyro_vmonf.guides.softmax import SoftmaxGuide

__all__ = ["BoundGuide", "ExactGuide", "MarginalGuide", "PyroGuide", "SoftmaxGuide", "as_guide"]
