"""Starting points: clusters of the rows, and lessons that teach them to a guide."""

from pyro_vmonf.starts.clusters import merge_linked, spectral_clusters
from pyro_vmonf.starts.copies import relearn_
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.starts.ready_made import (
    GaussianMixture,
    KMeans,
    MergedGaussians,
    SpanningTree,
    Spectral,
)
from pyro_vmonf.starts.reseeding import Reseed
from pyro_vmonf.starts.warm import warm_start_

__all__ = [
    "GaussianMixture",
    "KMeans",
    "MergedGaussians",
    "Reseed",
    "SpanningTree",
    "Spectral",
    "merge_linked",
    "pretrain_",
    "relearn_",
    "spectral_clusters",
    "warm_start_",
]
