"""The course of a training run as an animation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.plots import window
from pyro_vmonf.plots.palette import UNLABELLED, component_colors

if TYPE_CHECKING:
    from pyro_vmonf.training.fit import Progress


@dataclass(frozen=True)
class Frame:
    """The content of one frame.

    Attributes:
        epochs: finished epochs; zero or less in pretraining.
        elbo: ELBO of the epoch, nats per row.
        temperature: temperature of the guide.
        regions: most probable component under the guide on a grid ``(R, R)``.
        samples: samples ``(S, 2)`` of the mixture.
        components: their components ``(S,)``.
    """

    epochs: int
    elbo: float
    temperature: float
    regions: window.Array
    samples: window.Array
    components: window.Array


class Recorder:
    """A callback of ``fit`` that records the regions of the guide and samples of the mixture.

    It records the first epoch and every ``every``-th. The run stays the same: the recorder changes
    neither random numbers nor the modes of modules. It holds one run: a further fit begins its
    frames anew, and fits of several restarts refuse it.

    Arguments:
        x: points ``(N, 2)``, drawn in grey. They set the extent of the frames; without them the
            samples of the last frame do.
        every: epochs from one frame to the next.
        num_samples: samples in each frame, from the same random numbers.
        resolution: grid points along each side.
        extent: left, right, bottom and top, in place of the extent of the points.
        seed: seed of the samples.

    Raises:
        ValueError: if ``every`` is below one, or, at the first call, the mixture does not have two
            features.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> x, recorder = torch.randn(100, 2), Recorder(every=2)
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)))
        >>> history = vmonf.fit(x, epochs=6, callbacks=[recorder], progress=False)
        >>> [frame.epochs for frame in recorder.frames]  # recorder.save_gif("training.gif")
        [1, 2, 4, 6]
    """

    of_one_run = True

    def __init__(
        self,
        x: Any = None,
        *,
        every: int = 10,
        num_samples: int = 1000,
        resolution: int = 200,
        extent: window.Extent | None = None,
        seed: int = 0,
    ) -> None:
        check_positive("every", every)
        check_positive("num_samples", num_samples)
        self.x = x
        self.points: window.Array | None = None
        self.every = every
        self.num_samples = num_samples
        self.resolution = resolution
        self.extent = extent
        self.zooms = x is None and extent is None
        self.seed = seed
        self.num_components = 0
        self.frames: list[Frame] = []
        self.last = 0  # epochs that were seen

    @torch.no_grad()
    def __call__(self, progress: Progress) -> None:
        """Record a frame if it is due."""
        epochs = progress.epoch + 1
        if self.frames and epochs <= self.last:  # a further fit
            self.frames.clear()
        self.last = epochs
        if self.frames and epochs % self.every:
            return
        model, guide = progress.model, progress.guide
        window.check(model, "Recorder")
        if self.x is not None and self.points is None:  # columns in the order of the fit
            self.points = window.to_numpy(model.rows(self.x))
        self.num_components = model.num_components
        with local_seed(self.seed), evaluating(model):
            x, c = model.mixture().sample_with_component((self.num_samples,))
        samples = window.to_numpy(x)
        if self.extent is None:
            self.extent = window.find_extent(samples if self.points is None else self.points)
        regions = window.regions_of(model, guide, self.extent, self.resolution)
        history = progress.history
        frame = Frame(
            epochs,
            history.elbo[-1],
            history.temperature[-1],
            regions.astype(np.int8 if model.num_components < 128 else np.int64),
            samples,
            window.to_numpy(c),
        )
        self.frames.append(frame)

    def save_gif(
        self, path: str | os.PathLike[str], *, fps: int = 8, size: float = 4.0, dpi: int = 80
    ) -> None:
        """Write the frames as a GIF that shows the last frame for two seconds.

        Arguments:
            path: the file.
            fps: frames per second.
            size: width in inches.
            dpi: pixels per inch.

        Raises:
            RuntimeError: if there are no frames.
        """
        if not self.frames or self.extent is None:
            raise RuntimeError("nothing was recorded; pass the recorder to fit: callbacks=[…]")
        last = self.frames[-1]
        left, right, bottom, top = self._view()
        height = size * min(max((top - bottom) / (right - left), 0.5), 2.0) + 0.3
        figure = Figure(figsize=(size, height), dpi=dpi)
        figure.set_layout_engine("none")
        # The axes have a fixed place, so they do not move between frames.
        ax = figure.add_axes((0.02, 0.02, 0.96, 0.96 - 0.3 / height))
        colors = np.array(component_colors(self.num_components))
        if self.points is not None:
            ax.scatter(self.points[:, 0], self.points[:, 1], s=1, c=UNLABELLED, alpha=0.5)
        image = window.draw_regions(ax, last.regions, self.num_components, self.extent)
        dots = ax.scatter(last.samples[:, 0], last.samples[:, 1], s=4, linewidths=0)
        ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
        writer = PillowWriter(fps=fps)
        with writer.saving(figure, os.fspath(path), dpi):
            for frame in [*self.frames, *[last] * (2 * fps)]:
                image.set_data(window.tints(self.num_components)[frame.regions])
                dots.set_offsets(frame.samples)
                dots.set(facecolors=colors[frame.components])
                numbers = f"ELBO {frame.elbo:.3f}, temperature {frame.temperature:.2f}"
                stage = f"epoch {frame.epochs}" if frame.epochs > 0 else "pretraining"
                ax.set_title(f"{stage}: {numbers}", fontsize=10)
                writer.grab_frame()

    def _view(self) -> window.Extent:
        """Return the extent to show; without points it is around the last samples, in the grid."""
        assert self.extent is not None
        if not self.zooms:
            return self.extent
        first, last = self.extent, window.find_extent(self.frames[-1].samples)
        left, bottom = max(first[0], last[0]), max(first[2], last[2])
        right, top = min(first[1], last[1]), min(first[3], last[3])
        return (left, right, bottom, top) if left < right and bottom < top else first
