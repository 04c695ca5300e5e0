"""Distortions: random copies of rows that belong to the same cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vmonf._utils.contexts import from_file
from pyro_vmonf._utils.neighbors import nearest_neighbors
from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import as_tensor, check_number, check_positive
from pyro_vmonf.contracts import Batch

__all__ = ["Adversarial", "AffineImages", "Jitter", "RandomWalk"]


def _units(batch: Batch) -> Tensor | float:
    """Return the standard deviation of each feature where the model knows it, and else 1."""
    model = batch.guide.model
    return 1.0 if model is None else model.standardizer.scale


class Jitter(ShownModule):
    r"""Gaussian noise on every feature, :math:`x + \sigma s \varepsilon`.

    The units :math:`s` are the features' standard deviations where the model is standardised, and
    1 elsewhere.

    Arguments:
        scale: standard deviation :math:`\sigma` of the noise, in these units.

    Example:
        >>> from pyro_vmonf import SoftmaxGuide
        >>> from pyro_vmonf.nn import MLP
        >>> from pyro_vmonf.terms import Consistency
        >>> guide = SoftmaxGuide(MLP(2, 5), [Consistency(Jitter(0.1))])
    """

    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        self.scale = check_number("scale", scale, zero=True)

    def forward(self, batch: Batch) -> Tensor:
        return batch.x + self.scale * _units(batch) * torch.randn_like(batch.x)


class RandomWalk(ShownModule):
    """The end of a random walk that starts at the point, on the graph of nearest neighbours.

    Points that long walks connect belong together, however far apart they are. Clusters may have
    any shape, as long as each is connected and no two are joined.

    Arguments:
        x: all rows ``(N, *event_shape)``, which ``index`` counts. Each feature is divided by its
            standard deviation before distances are taken.
        neighbors: nearest neighbours that a point is linked to. Links go both ways.
        length: largest number of steps. The number of each walk is uniform from 1 to this.
        walks: walks from each row, drawn once. A step of training picks one of them.

    Raises:
        ValueError: if there are not more rows than neighbours, or, in the call, if the positions of
            the rows are unknown.

    References:
        Lovász (1993), Random walks on graphs: a survey.

    Example:
        >>> walk = RandomWalk(torch.randn(100, 2))
        >>> walk.ends.shape
        torch.Size([100, 64])
    """

    x: Tensor
    _ends: Tensor | None

    def __init__(
        self,
        x: Any,
        *,
        neighbors: int = 10,
        length: int = 64,
        walks: int = 64,
    ) -> None:
        super().__init__()
        check_positive("length", length)
        check_positive("walks", walks)
        self.neighbors = neighbors
        self.length = length
        self.walks = walks
        # The graph belongs to the data, not to the model: it is not saved with it. A file that is
        # opened does not need its walks.
        rows = as_tensor("x", x)
        if not rows.isfinite().all():
            raise ValueError("x has rows that are not finite; a walk needs rows without gaps")
        self.register_buffer("x", rows, persistent=False)
        self.register_buffer("_ends", None if from_file.get() else self._walk(), persistent=False)

    @property
    def ends(self) -> Tensor:
        """Positions ``(N, walks)`` where the walks from each row end."""
        if self._ends is None:
            self._ends = self._walk()
        return self._ends

    def check_rows(self, x: Tensor, index: Tensor | None) -> None:
        """Refuse rows of a run that are others than those of the graph.

        Arguments:
            x: some rows of the run.
            index: their positions in the whole.

        Raises:
            ValueError: if the graph has other rows at these positions.
        """
        if x.shape[1:] != self.x.shape[1:]:
            raise ValueError(
                f"the graph has rows of shape {tuple(self.x.shape[1:])}, and the run rows of shape "
                f"{tuple(x.shape[1:])}; expected the same rows, and a step of a sequence has no "
                "position"
            )
        if index is None:
            return
        inside = index < len(self.x)
        here = self.x[index[inside]].to(x.dtype)
        # Rows of another precision are the same but for rounding, which a number far from zero and
        # the spread of its column both have.
        eps = max(torch.finfo(rows.dtype).eps for rows in (x, self.x))
        rounding = 8 * eps * here.abs() + 1e-5 * here.std(0, correction=0)
        if not (inside.all() and ((here - x[inside]).abs() <= rounding).all()):
            raise ValueError(
                f"the RandomWalk was built of {len(self.x)} other rows, or of these in another "
                "order; build it of the rows of the fit: RandomWalk(x)"
            )

    def train(self, mode: bool = True) -> RandomWalk:
        """Set the mode; the walks of an opened file are drawn before it trains."""
        if mode:
            self.ends  # noqa: B018
        return super().train(mode)

    def _walk(self) -> Tensor:
        """Draw the walks."""
        x, walks, length = self.x, self.walks, self.length
        nearest = nearest_neighbors(x, self.neighbors)
        start = torch.arange(len(x), device=x.device).repeat_interleave(self.neighbors)
        pairs = torch.stack((start, nearest.flatten()))
        pairs = torch.unique(torch.cat((pairs, pairs.flip(0)), 1), dim=1)  # sorted by start
        degree = torch.bincount(pairs[0], minlength=len(x))
        first = degree.cumsum(0) - degree
        at = torch.arange(len(x), device=x.device)[:, None].expand(-1, walks)
        lengths = torch.randint(1, length + 1, at.shape, device=x.device)
        for step in range(length):
            choice = (torch.rand(at.shape, device=x.device) * degree[at]).long()
            at = torch.where(step < lengths, pairs[1][first[at] + choice], at)
        return at

    def forward(self, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError(
                "a random walk starts from the row's position in the data; pass index and size to "
                "the guide, or rows in memory to fit (a DataLoader gives no positions)"
            )
        shape = batch.x.shape[: batch.x.dim() - self.x.dim() + 1]  # with the plates around the rows
        index = batch.index.reshape(-1, *(1,) * (-1 - batch.dim)).expand(shape)
        which = torch.randint(self.walks, shape, device=index.device)
        return self.x[self.ends[index, which]].to(batch.x.dtype)


class Adversarial(ShownModule):
    r"""A step in the direction in which the guide's answer changes most.

    .. math::
        x + \epsilon \, \arg\max_{\|r\| = 1} KL(q(c|x) \| q(c|x + \xi r))

    A power method finds the direction.

    Arguments:
        epsilon: length :math:`\epsilon` of the step, in units of the features' standard deviations;
            zero where the guide is so sure that its answer has no slope.
        probe: length :math:`\xi` of the probing step, in the same units.
        iterations: number of iterations of the power method.

    References:
        Miyato, Maeda, Koyama, Ishii (2018), Virtual Adversarial Training, arXiv:1704.03976.

    Example:
        >>> from pyro_vmonf import SoftmaxGuide
        >>> from pyro_vmonf.nn import MLP
        >>> from pyro_vmonf.terms import Consistency
        >>> guide = SoftmaxGuide(MLP(2, 5), [Consistency(Adversarial(0.1))])
    """

    def __init__(self, epsilon: float = 0.1, *, probe: float = 1e-2, iterations: int = 1) -> None:
        super().__init__()
        self.epsilon = check_number("epsilon", epsilon, zero=True)
        self.probe = check_number("probe", probe)
        self.iterations = check_positive("iterations", iterations, minimum=0)

    def forward(self, batch: Batch) -> Tensor:
        units, event_dim = _units(batch), batch.x.dim() - batch.log_q.dim() + 1
        axes = tuple(range(-event_dim, 0))

        def unit(direction: Tensor) -> Tensor:
            return direction / direction.square().sum(axes, keepdim=True).sqrt().clamp_min(1e-12)

        direction = unit(torch.randn_like(batch.x))
        log_q = batch.log_q.detach()
        for _ in range(self.iterations):
            with torch.enable_grad():  # also where a loss is only evaluated
                direction = direction.detach().requires_grad_()
                moved = batch.guide.log_q(batch.x + self.probe * units * direction, batch.given)
                gap = (log_q.exp() * (log_q - moved)).sum()
                (gradient,) = torch.autograd.grad(gap, direction)
            direction = unit(gradient)
        return batch.x + self.epsilon * units * direction.detach()


class AffineImages(ShownModule):
    """Small rotations, scalings, shears and shifts of images.

    Arguments:
        image_shape: ``(C, H, W)`` or ``(H, W)`` of a row.
        rotation: largest angle, in degrees.
        scale: largest relative change of size.
        shear: largest shear.
        shift: largest shift, as a share of half the image.

    Example:
        >>> images = torch.rand(7, 64)
        >>> AffineImages((8, 8)).distorted(images).shape
        torch.Size([7, 64])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        rotation: float = 12.0,
        scale: float = 0.15,
        shear: float = 0.2,
        shift: float = 0.1,
    ) -> None:
        super().__init__()
        shape = tuple(image_shape)
        self.image_shape = shape if len(shape) == 3 else (1, *shape)
        self.rotation = check_number("rotation", rotation, zero=True)
        self.scale = check_number("scale", scale, zero=True)
        self.shear = check_number("shear", shear, zero=True)
        self.shift = check_number("shift", shift, zero=True)

    def distorted(self, x: Tensor) -> Tensor:
        """Distort each row in its own way.

        Arguments:
            x: rows ``(*, *event_shape)``, flat or of the image's shape.

        Raises:
            ValueError: if rows are no images of the shape that was given.
        """
        depth, *plane = self.image_shape
        pixels = math.prod(self.image_shape)
        fits = x.shape[-1:] == (pixels,) or tuple(x.shape[-3:]) == self.image_shape
        if not fits and not (depth == 1 and list(x.shape[-2:]) == plane):
            raise ValueError(
                f"rows have shape {tuple(x.shape)}; expected images {self.image_shape}, or flat "
                f"ones of {pixels} pixels"
            )
        images = x.reshape(-1, *self.image_shape)
        count = len(images)

        def within(bound: float) -> Tensor:
            return (2 * torch.rand(count, device=x.device, dtype=x.dtype) - 1) * bound

        angle = within(self.rotation * math.pi / 180)
        wide, high, shear = 1 + within(self.scale), 1 + within(self.scale), within(self.shear)
        cos, sin = angle.cos(), angle.sin()
        ratio = plane[0] / plane[1]  # half the height is one across, half the width one up
        theta = torch.stack(
            (
                torch.stack(
                    (wide * cos, (shear * wide - high * sin) * ratio, within(self.shift)), -1
                ),
                torch.stack((wide * sin / ratio, high * cos, within(self.shift)), -1),
            ),
            -2,
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False).reshape(x.shape)

    def forward(self, batch: Batch) -> Tensor:
        return self.distorted(batch.x)
