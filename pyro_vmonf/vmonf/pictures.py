"""A pair for images of one's own: clusters by what distortions leave alone, then densities."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.columns import levels_of
from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.progress import Stages
from pyro_vmonf._utils.validation import as_tensor, check_number, check_positive
from pyro_vmonf.datasets import dequantize
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.flows.pixels import PixelFlow, behind_pixels
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.mlp import ConvEncoder
from pyro_vmonf.report import touching
from pyro_vmonf.starts.images import CHUNK, features_of, image_clusters, image_encoder
from pyro_vmonf.starts.lessons import named, pretrain_
from pyro_vmonf.terms import Classification, Consistency
from pyro_vmonf.training.fit import Progress, fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.options import seed_of
from pyro_vmonf.vmonf.lengths import reached
from pyro_vmonf.vmonf.table import labels_of

CHANNELS = (1, 3, 4)  # of images in grey or in colours
MOST_ROWS = 10_000  # whose graph is cut; the guide learns from them and is applied to the others
FEATURE_STEPS = 5000
GUIDE_STEPS = 800
HELD_OUT = 0.1
PATIENCE = 3  # epochs without a better held-out objective
MOST_EPOCHS = 100
BATCH = 128
SHIFT = 0.2  # of the distortions, as a share of half the image


def from_images(
    x: Any,
    y: Any = None,
    *,
    components: int | None = None,
    seed: int | None = None,
    minutes: float = 1.0,
    progress: bool = True,
) -> tuple[FlowMixture, SoftmaxGuide, History]:
    """Build a pair for images ``(N, C, H, W)`` and fit it: see :meth:`VMoNF.from_data`."""
    begun = time.perf_counter()
    check_number("minutes", minutes)
    images = images_of(x, components)
    seed = seed_of(seed)
    labels = None
    if y is not None:
        labels = labels_of(y, len(images), components, torch.empty(0))
    distort = AffineImages(images.shape[1:], shift=SHIFT)
    with local_seed(seed):
        drawn = torch.randperm(len(images))[:MOST_ROWS]
    encoder = image_encoder(images, distort, steps=FEATURE_STEPS, seed=seed, progress=progress)
    found, cut = image_clusters(features_of(encoder, images[drawn]), components)
    clusters = torch.as_tensor(found)
    if (parts := int(clusters.max()) + 1) < (components or 0):
        said = f"{components} components were asked for, and the best start has {parts} clusters"
        warnings.warn(f"{said}: the others have no image at first", RuntimeWarning, stacklevel=3)
    count = components or max(int(clusters.max()), -1 if labels is None else int(labels.max())) + 1
    targets = torch.full((len(images),), -1)
    targets[drawn] = clusters if labels is None else named(clusters, labels[drawn], count)
    if labels is not None:
        targets = torch.where(labels >= 0, labels, targets)
    model, guide = _pair(images, encoder, count, seed)
    pretrain_(
        guide,
        images,
        targets,
        terms=[Classification(), Consistency(distort)],
        augment=distort.distorted,
        steps=GUIDE_STEPS,
        labelled=0 if len(drawn) == len(images) else 128,
        seed=seed,
        progress=progress,
    )
    q = _posterior(guide, images)
    with torch.no_grad():
        model.weights.logits.copy_(q.mean(0).log())  # type: ignore[operator, union-attr]
    history = _fit(model, guide, images, 60 * minutes, seed, progress)
    history.choice = {
        "components": count,
        "start": "neighbours of features",
        "normalised_cut": cut,
        **touching(q, q.new_ones(len(q))),
        "epochs": len(history.epoch),
        "seconds": time.perf_counter() - begun,
    }
    return model, guide, history


def images_of(x: Any, components: int | None) -> Tensor:
    """Return images as floats in [0, 1].

    Raises:
        ValueError: if they are no images in [0, 1], or fewer than two for each component.
    """
    images = as_tensor("x", x)
    if images.dtype == torch.uint8:
        images = images / 255
    if images.dim() != 4:
        raise ValueError(f"x has shape {tuple(images.shape)}; expected images (N, C, H, W)")
    if images.shape[3] in CHANNELS and images.shape[1] not in CHANNELS:
        raise ValueError(
            f"x has shape {tuple(images.shape)}, with the channels last; expected images "
            "(N, C, H, W), as x.permute(0, 3, 1, 2) of a tensor"
        )
    images = images.to(torch.get_default_dtype())
    if not images.isfinite().all():
        raise ValueError("x holds NaN or infinite pixels; fill or leave out these images")
    if not ((images >= 0) & (images <= 1)).all():
        raise ValueError(
            f"pixels reach from {float(images.min()):g} to {float(images.max()):g}; expected "
            "values in [0, 1], or bytes: divide by the largest value"
        )
    least = 2 * (2 if components is None else check_positive("components", components))
    if len(images) < least:
        raise ValueError(f"x has {len(images)} images; expected at least {least}")
    return images


def _pair(
    images: Tensor, encoder: ConvEncoder, components: int, seed: int
) -> tuple[FlowMixture, SoftmaxGuide]:
    """Return a pair whose guide begins with the features; no likelihood reaches it."""
    shape = tuple(images.shape[1:])
    even = all(size % 2 == 0 for size in shape[1:])
    with local_seed(seed):
        network = ConvEncoder(shape, components)
        options: dict[str, Any] = {"channels": 32, "depth": 3, "shared_trunk": True}
        flows = PixelFlow(shape, components, squeezes=int(even), **options).to(images.device)
    network.layers[:-1].load_state_dict(encoder.layers[:-1].state_dict())
    model = FlowMixture(behind_pixels(flows, noisy(images, seed)), "learned")
    guide = SoftmaxGuide(network, [], elbo_gradient=0.0, top=1, model=model)
    return model.to(images.device), guide.to(images.device)


def noisy(images: Tensor, seed: int) -> Tensor:
    """Return images whose even grey levels are dequantised; other images stay as they are."""
    count = levels_of(images)
    if count is None:
        return images
    levels = (images * (count - 1)).round()
    if count == 256:
        return dequantize(levels.to(torch.uint8), seed=seed).to(images)
    with local_seed(seed):
        u = torch.rand(images.shape, dtype=torch.float64).to(images.device)
        top = 1 - torch.finfo(images.dtype).eps
        return ((levels + u) / count).to(images).clamp(max=top)


def _fit(
    model: FlowMixture,
    guide: SoftmaxGuide,
    images: Tensor,
    seconds: float,
    seed: int,
    progress: bool,
) -> History:
    """Train the densities of the clusters, until held-out images are best or the time is over."""
    end = time.perf_counter() + seconds
    stages = Stages(seconds, progress, "from_data")
    stages.enter("fit")

    def in_time(now: Progress) -> bool:
        stages.show(now.history.last_numbers())
        return time.perf_counter() > end

    try:
        with reached(model, guide):
            return fit(
                model,
                guide,
                noisy(images, seed),
                epochs=MOST_EPOCHS,
                batch_size=min(BATCH, len(images)),
                lr=2e-3,
                clip_norm=1000.0,
                temperature=1.0,
                standardize=False,
                held_out=HELD_OUT if len(images) > 10 else 0.0,
                patience=PATIENCE if len(images) > 10 else None,
                callbacks=in_time,
                seed=seed,
                progress=False,
            )
    finally:
        stages.close()


@torch.no_grad()
def _posterior(guide: SoftmaxGuide, images: Tensor) -> Tensor:
    """Return the probabilities of the clusters of each image."""
    with evaluating(guide):
        return torch.cat([guide.log_q(part).exp() for part in images.split(CHUNK)])
