"""Mixture weights: modules whose call, inside the model, returns log π."""

from pyro_vmonf.weights.base import Weights
from pyro_vmonf.weights.grouped import GroupWeights
from pyro_vmonf.weights.hierarchical import GammaDirichlet
from pyro_vmonf.weights.markov import FixedRow
from pyro_vmonf.weights.observed import ConditionedWeights, ObservedWeights, observed, sites_of
from pyro_vmonf.weights.standard import (
    FixedWeights,
    GatedWeights,
    LearnedWeights,
    RandomWeights,
    UpdatedWeights,
    as_weights,
)

__all__ = [
    "ConditionedWeights",
    "FixedRow",
    "FixedWeights",
    "GammaDirichlet",
    "GatedWeights",
    "GroupWeights",
    "LearnedWeights",
    "ObservedWeights",
    "RandomWeights",
    "UpdatedWeights",
    "Weights",
    "as_weights",
    "observed",
    "sites_of",
]
