"""One run of an experiment: fit, score and write the results."""

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
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import DequantizedImages
from pyro_vmonf.experiments.draws import Data, Settings
from pyro_vmonf.experiments.recipes import Recipe
from pyro_vmonf.training.fit import Callback, Progress
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf import VMoNF

SCORED_IMAGES = 2000  # training images with a score


class Curve:
    """A callback that writes the bits per dimension of each epoch and the time to a file.

    The bits are those of the ELBO, an upper bound, on images with fresh noise.

    Arguments:
        path: the file; a resumed run appends to it.
        dimensions: number of pixels of an image.
    """

    def __init__(self, path: Path, dimensions: int) -> None:
        self.path = path
        self.dimensions = dimensions
        self.rows: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
        last = self.rows[-1] if self.rows else {"seconds": 0.0, "cpu_seconds": 0.0}
        self.start = time.perf_counter() - last["seconds"]
        self.cpu_start = time.process_time() - last["cpu_seconds"]

    def __call__(self, progress: Progress) -> None:
        elbo = torch.tensor(progress.history.elbo[-1])
        row = {
            "step": progress.step,
            "seconds": time.perf_counter() - self.start,
            "cpu_seconds": time.process_time() - self.cpu_start,
            "bits_per_dim": metrics.bits_per_dim(elbo, self.dimensions),
        }
        self.rows.append({key: round(value, 4) for key, value in row.items()})
        self.path.write_text(json.dumps(self.rows, indent=0) + "\n")


@dataclass(frozen=True)
class Result:
    """The result of a run: the fitted pair, its data, the history of the training, and scores."""

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
    checkpoint: Path | None = None,
) -> Result:
    """Fit a recipe to the data of one seed and score it.

    Arguments:
        data, recipe, settings: data, recipe and settings of the run.
        device: ``"cpu"`` or ``"cuda"``.
        callbacks: callbacks of ``fit``.
        progress: show progress bars.
        checkpoint: file for the state of the run after each epoch. If it exists, the run continues
            from it.
    """
    options = {**recipe.options, **(recipe.quick if settings.quick else {})}
    with local_seed(settings.seed):
        vmonf = recipe.build(data).to(device)
        start = time.perf_counter()
        if recipe.teach is not None and (checkpoint is None or not checkpoint.exists()):
            recipe.teach(vmonf, data, settings.quick)
    taught = time.perf_counter() - start
    rows: Any = data.x
    if recipe.fresh_noise:
        assert data.levels is not None
        batch_size = options.pop("batch_size")
        rows = DequantizedImages(data.levels).loader(batch_size, settings.seed)
    if checkpoint is not None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        options |= {"checkpoint": checkpoint, "resume": checkpoint}
        dimensions = math.prod(data.x.shape[1:])
        callbacks = (*callbacks, Curve(checkpoint.with_name("curve.json"), dimensions))
    history = vmonf.fit(
        rows,
        None if recipe.fresh_noise else data.y,
        seed=settings.seed,
        callbacks=callbacks,
        progress=progress,
        **options,
    )
    seconds = {"seconds": taught + history.seconds, "seconds_clustering": taught}
    return Result(vmonf, data, history, score(vmonf, data) | seconds)


def _agreement(data: Data, labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """Score a clustering. After a fit with labels, cluster c has to be label c."""
    scores = metrics.clustering_scores(labels, clusters)
    if data.y is not None:
        scores["accuracy"] = float((labels == clusters).double().mean())
    return scores


def score(vmonf: VMoNF, data: Data) -> dict[str, float]:
    """Return the scores of a fitted pair on its data and on held-out data.

    Densities of images are slow, so the densities of training images use a sample of them.
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
        exact = _agreement(data, some, joint.argmax(-1).cpu())
        scores[f"accuracy_exact{suffix}"] = exact["accuracy"]
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
    """Write the scores, the fitted pair and the figures of a run into a folder."""
    import matplotlib.pyplot as plt  # slow to import

    from pyro_vmonf import plots

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(result.scores, indent=2) + "\n")
    vmonf, data = result.vmonf, result.data
    vmonf.save(folder / "model.pt")

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
