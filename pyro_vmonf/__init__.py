"""Variational mixtures of normalizing flows, as Pyro programs.

The rooms of the package, from high to low. A room imports from the rooms below it, never from those
above::

    __main__        the command line
    experiments     the experiments of paper and thesis: data, recipes, runs
    interop         bridges to ArviZ, scikit-learn, Lightning, distributed training
    _moved          names of earlier versions and where they are now
    dequantization  mixtures of whole grey levels
    vmonf           VMoNF: the pair of model and guide, its verbs, and the pair that a table chooses
    report          the state of each component of a fitted pair
    plots           figures, one file a subject
    starts          first clusterings, lessons that teach them to a guide, the callback that revives
                    dead components
    training        the run: rows, trainer, restarts, checkpoints, history; stopping rules are
                    callbacks of fit
    files           saved pairs
    em              expectation-maximisation of Gaussian mixtures
    components      mixtures as components; pruning, aligning, doubling components
    metrics         scores of clusterings and densities
    guides          q(c|x): softmax network, exact posterior, none
    terms           penalties of the guide beside the ELBO
    distortions     copies of rows that belong to the same cluster
    chains          MarkovMixture: the Pyro model of sequences
    model           FlowMixture: the Pyro model
    weights         mixture weights: fixed, learned, updated, random, gated, by group, observed
    weight_priors   distributions on the simplex and their posteriors
    counts          running counts of the responsibilities
    flows           banks: K flows as one module
    distributions   distributions with K components on the last batch dimension
    transforms      invertible maps with a batch of parameters, one family a file
    nn              networks with a batch of parameters
    datasets        data sets
    schedules       numbers that change over the steps of a run
    contracts       the interfaces that a user can implement
    program         names, plates and traces of Pyro programs
    _utils          validation, repr, contexts, progress, processes
    _version        the version
"""

import sys

from pyro_vmonf import _moved
from pyro_vmonf._version import __version__
from pyro_vmonf.chains import MarkovMixture
from pyro_vmonf.components import MixtureComponent
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.distributions.selection import select
from pyro_vmonf.distributions.stacked import stacked
from pyro_vmonf.distributions.sticks import StickBreaking
from pyro_vmonf.em import fit_em, information_criteria
from pyro_vmonf.flows.foreign import Replicated
from pyro_vmonf.flows.images import Glow, ImageNSF, MultiScaleRealNVP
from pyro_vmonf.flows.pixels import PixelFlow
from pyro_vmonf.flows.random import RandomBank
from pyro_vmonf.flows.ready_made import MAF, NSF, AutoregressiveNSF, Flow, Gaussian, MAFMoG, RealNVP
from pyro_vmonf.flows.rotated import RotatedRealNVP
from pyro_vmonf.flows.stack import Stack
from pyro_vmonf.guides import ExactGuide, MarginalGuide, PyroGuide, SoftmaxGuide
from pyro_vmonf.interop.ddp import TrainingLoss
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import constant, exponential_decay, linear_decay
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf import MarkovVMoNF, VMoNF
from pyro_vmonf.weights import (
    FixedWeights,
    GammaDirichlet,
    GatedWeights,
    GroupWeights,
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
    "GammaDirichlet",
    "GatedWeights",
    "Gaussian",
    "Glow",
    "GroupWeights",
    "History",
    "ImageNSF",
    "LearnedWeights",
    "MAFMoG",
    "Marginal",
    "MarginalGuide",
    "MarkovMixture",
    "MarkovVMoNF",
    "MixtureComponent",
    "MultiScaleRealNVP",
    "PixelFlow",
    "PyroGuide",
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

_moved.install(sys.modules[__name__])
