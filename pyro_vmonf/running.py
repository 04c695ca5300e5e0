"""One run of an experiment: fit, score, and write what was found."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf import metrics
from pyro_vmonf.draws import Data, Settings
from pyro_vmonf.fitting import Callback
from pyro_vmonf.history import History
from pyro_vmonf.recipes import Recipe
from pyro_vmonf.scopes import local_seed
from pyro_vmonf.vmonf import VMoNF

SCORED_IMAGES = 2000  # of those fitted


@dataclass(frozen=True)
class Result:
    """What one run leaves: the fitted pair, its data, the training's history and the scores."""

    vmonf: VMoNF
    data: Data
    history: History
    scores: dict[str, float]


def run(
    data: Data,
    recipe: Recipe,
    settings: Settings,
    *,
    device: str = "cpu",
    callbacks: tuple[Callback, ...] = (),
    progress: bool = True,
) -> Result:
    """Fit a recipe to the data of one seed and score it."""
    options = {**recipe.options, **(recipe.quick if settings.quick else {})}
    with local_seed(settings.seed):
        vmonf = recipe.build(data).to(device)
        start = time.perf_counter()
        if recipe.teach is not None:
            recipe.teach(vmonf, data, settings.quick)
    taught = time.perf_counter() - start
    history = vmonf.fit(
        data.x, data.y, seed=settings.seed, callbacks=callbacks, progress=progress, **options
    )
    seconds = {"seconds": time.perf_counter() - start, "seconds_clustering": taught}
    return Result(vmonf, data, history, score(vmonf, data) | seconds)


def _agreement(data: Data, labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """Score a clustering; where labels were given, cluster c has to be label c."""
    scores = metrics.clustering_scores(labels, clusters)
    if data.y is not None:
        scores["accuracy"] = float((labels == clusters).double().mean())
    return scores


def score(vmonf: VMoNF, data: Data) -> dict[str, float]:
    """Return the scores of a fitted pair on the data it was fitted to and on held-out data.

    Densities of images are slow: those that the pair was fitted to are a sample of their rows.
    """
    images = data.image_shape is not None
    scored = {"": SCORED_IMAGES if images else len(data.x), "_test": len(data.x_test)}
    chunk_size = 256 if images else 8192
    scores: dict[str, float] = {}
    for suffix, x, labels in (("", data.x, data.labels), ("_test", data.x_test, data.labels_test)):
        agreement = _agreement(data, labels, vmonf.predict(x).cpu())
        rows, some = x[: scored[suffix]], labels[: scored[suffix]]
        log_prob = vmonf.component_log_prob(rows, chunk_size=chunk_size)
        joint = vmonf.model.weights.log_mean().detach() + log_prob
        scores[f"accuracy{suffix}"] = agreement["accuracy"]
        scores[f"accuracy_exact{suffix}"] = _agreement(data, some, joint.argmax(-1).cpu())[
            "accuracy"
        ]
        scores[f"nmi{suffix}"] = agreement["nmi"]
        scores[f"ari{suffix}"] = agreement["ari"]
        scores[f"log_prob{suffix}"] = float(joint.logsumexp(-1).double().mean())
    elbo = vmonf.elbo(data.x[: scored[""]], chunk_size=chunk_size)
    scores["elbo"] = float(elbo.double().mean())
    if data.truth is not None and data.fresh is not None:
        divergence, error = metrics.kl_to_truth(
            data.truth.log_prob(data.fresh), vmonf.log_prob(data.fresh).cpu()
        )
        scores["kl_to_truth"], scores["kl_to_truth_se"] = divergence, error
    if data.image_shape is not None:
        dimensions = math.prod(data.image_shape)
        log_prob = torch.tensor(scores["log_prob_test"])
        scores["bits_per_dim"] = metrics.bits_per_dim(log_prob, dimensions)
    return scores


def write(result: Result, folder: Path, recorder: Any = None) -> None:
    """Write ``metrics.json`` and the figures of a run into a folder."""
    import matplotlib.pyplot as plt

    from pyro_vmonf import plots

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(result.scores, indent=2) + "\n")
    vmonf, data = result.vmonf, result.data

    def keep(axes: Any, name: str) -> None:
        axes.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(axes.figure)

    if data.image_shape is None:
        keep(plots.plot_data(data.x, data.labels if data.y is None else data.y), "data")
        keep(plots.plot_clusters(vmonf, data.x), "clusters")
        keep(plots.plot_samples(vmonf), "samples")
        keep(plots.plot_density(vmonf), "density")
    else:
        keep(plots.plot_component_grid(vmonf, data.image_shape), "samples")
        clusters = vmonf.predict(data.x).cpu()
        keep(plots.plot_contingency(data.labels, clusters), "contingency")
        count = vmonf.model.num_components
        table = metrics.format_contingency(data.labels, clusters, count)
        (folder / "contingency.txt").write_text(table + "\n")
    keep(plots.plot_history(result.history), "history")
    keep(plots.plot_terms(result.history), "terms")
    if recorder is not None:
        recorder.save_gif(folder / "training.gif")
