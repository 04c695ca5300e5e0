"""The affine map between raw units and units of one standard deviation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf.transforms.base import FlowTransform, constant_log_det


class Standardize(FlowTransform):
    r"""The shared affine map :math:`x = \mathrm{loc} + \mathrm{scale} \cdot z`, identity at first.

    Arguments:
        event_shape: shape of one row, ``(D,)`` or ``(C, H, W)``.
        batch_shape: one map for each index of this shape.

    Example:
        >>> transform = Standardize((2,))
        >>> transform.fit_(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
        >>> transform.loc, transform.scale  # a constant column keeps its scale
        (tensor([1., 5.]), tensor([1., 1.]))
    """

    loc: Tensor
    scale: Tensor
    fitted: Tensor

    def __init__(self, event_shape: Sequence[int], *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=batch_shape)
        self.event_shape = torch.Size(event_shape)
        self.register_buffer("loc", torch.zeros(*self.batch_shape, *self.event_shape))
        self.register_buffer("scale", torch.ones(*self.batch_shape, *self.event_shape))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.real, len(self.event_shape))

    codomain = domain  # type: ignore[assignment]

    @torch.no_grad()
    def fit_(self, x: Tensor) -> None:
        """Take the mean and standard deviation of each feature of rows ``(N, *event_shape)``.

        Raises:
            ValueError: if they are not finite; the map is then unchanged.
        """
        rows = x.reshape(-1, *self.event_shape)
        largest = torch.maximum(rows.amax(0).abs(), rows.amin(0).abs())
        self._take(rows.mean(0), rows.std(0, unbiased=False), largest)

    @torch.no_grad()
    def fit_batches_(self, batches: Iterable[Tensor]) -> int:
        """Take them in one pass through batches of rows, and return the number of rows.

        References:
            Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance.
        """
        count = 0
        mean, squares, largest = (torch.zeros_like(self.loc, dtype=torch.float64) for _ in range(3))
        for batch in batches:
            rows = batch.reshape(-1, *self.event_shape).double()
            own, new = rows.mean(0), count + len(rows)
            gap = own - mean
            squares += (rows - own).square().sum(0) + gap.square() * count * len(rows) / new
            mean += gap * len(rows) / new
            largest = torch.maximum(largest, rows.abs().amax(0))
            count = new
        if count:
            self._take(mean, (squares / count).sqrt(), largest)
        return count

    def _take(self, mean: Tensor, scale: Tensor, largest: Tensor) -> None:
        if not (mean.isfinite().all() and scale.isfinite().all()):
            raise ValueError(
                f"the rows reach {float(largest.max()):.3g}, and their mean or spread is beyond "
                f"{self.loc.dtype}; rescale them, or use model.double()"
            )
        # A column whose spread is within rounding keeps its scale.
        floor = torch.finfo(self.loc.dtype).eps * largest * 10
        self.loc.copy_(mean)
        self.scale.copy_(torch.where(scale > floor, scale, torch.ones_like(scale)))
        self.fitted.fill_(True)

    def _log_det(self, x: Tensor) -> Tensor:
        log_det = self.scale.log().flatten(len(self.batch_shape)).sum(-1)
        return constant_log_det(log_det, x, len(self.event_shape))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + self.scale * z, self._log_det(z)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x - self.loc) / self.scale, -self._log_det(x)
