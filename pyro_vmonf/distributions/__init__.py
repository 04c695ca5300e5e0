"""Distributions with K components on the last batch dimension."""

from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.distributions.selection import Selected, pick, select
from pyro_vmonf.distributions.stacked import StackedDistribution, stacked
from pyro_vmonf.distributions.truncated import TopCategorical

__all__ = [
    "FlowDistribution",
    "Marginal",
    "Selected",
    "StackedDistribution",
    "TopCategorical",
    "pick",
    "select",
    "stacked",
]
