"""First clusters of images: features that distortions leave alone, and the graph of neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.nn.mlp import ConvEncoder
from pyro_vmonf.starts.clusters import merged_parts
from pyro_vmonf.starts.lessons import Draws, Lesson, teach

Array = np.ndarray[Any, Any]
PROJECTED = 64  # numbers that the contrast compares
HEAT = 0.5
NEIGHBORS = 15
CHUNK = 4096  # images that go through a network at once


def image_encoder(
    x: Tensor,
    distort: AffineImages,
    *,
    steps: int = 5000,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int | None = None,
    progress: bool = False,
) -> ConvEncoder:
    r"""Train a network whose features tell images apart and do not see distortions.

    Two distorted copies :math:`a, b` of an image are nearer to each other than to the copies of
    the other images in the batch:

    .. math::
        -\log \frac{\exp(z_a^\top z_b / \tau)}{\sum_{o \neq a} \exp(z_a^\top z_o / \tau)}, \qquad
        \|z\| = 1, \quad \tau = 0.5

    Arguments:
        x: images ``(N, C, H, W)``.
        distort: what the features shall not see.
        steps, batch_size, lr: of Adam with a cosine.
        seed: seed of the start and of every draw.
        progress: show a progress bar.

    Returns:
        The encoder; ``features`` gives what it has learned, in ``eval()``.

    References:
        Chen, Kornblith, Norouzi, Hinton (2020), A simple framework for contrastive learning of
        visual representations, arXiv:2002.05709.

    Example:
        >>> x = torch.rand(20, 1, 8, 8)
        >>> image_encoder(x, AffineImages((8, 8)), steps=1, seed=0).features(x).shape
        torch.Size([20, 128])
    """
    with local_seed(seed):
        encoder = ConvEncoder(x.shape[1:], PROJECTED).to(x.device)

        def contrast(index: Tensor) -> Tensor:
            own = x[index]
            z = F.normalize(encoder(torch.cat((distort.distorted(own), distort.distorted(own)))))
            count = len(own)
            place = torch.arange(2 * count, device=z.device)
            alike = (z @ z.mT / HEAT).masked_fill(place[:, None] == place, -1e9)
            other = place.roll(count)
            return F.cross_entropy(alike, other)

        optimizer = torch.optim.Adam(encoder.parameters(), lr=lr, fused=True)
        rows = Draws(len(x), min(batch_size, len(x)), device=x.device)
        schedule = CosineAnnealingLR(optimizer, steps)
        teach(Lesson(encoder, contrast), rows, optimizer, schedule, steps, "features" * progress)
    return encoder.eval()


@torch.no_grad()
def features_of(encoder: ConvEncoder, x: Tensor) -> Array:
    """Return the features of images, each row of length one ``(N, hidden)``."""
    with evaluating(encoder):
        found = torch.cat([encoder.features(part) for part in x.split(CHUNK)])
    return np.asarray(F.normalize(found).double().cpu().numpy())


def image_clusters(features: Array, num_clusters: int | None) -> tuple[Array, float]:
    """Cluster images along the neighbours of their features.

    See :func:`~pyro_vmonf.starts.clusters.merged_parts`.

    Arguments:
        features: of :func:`features_of`.
        num_clusters: number of clusters *K*; by default the graph says it.

    Returns:
        The cluster ``(N,)`` of each image, and the normalised cut of the graph.
    """
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(features) - 1)).fit(features)
    return merged_parts(np.asarray(near.kneighbors(return_distance=False)), num_clusters)
