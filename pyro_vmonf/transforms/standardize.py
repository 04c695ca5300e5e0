"""The affine map between raw units and units of one standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf._utils.validation import has_gaps
from pyro_vmonf.transforms.base import FlowTransform, constant_log_det

LOST = 1e-5  # rounding of a mean in float32, in units of the spread, above which digits are lost


def loses_digits(loc: Tensor, scale: Tensor) -> bool:
    """Return whether values around ``loc`` lose digits of their spread in float32."""
    if loc.is_meta:
        return False
    kind = torch.finfo(torch.float32)
    small = (scale != 0) & (scale.abs() < kind.tiny)  # which fit_ refuses
    return bool(((kind.eps * loc.abs() > LOST * scale.abs()) | small).any())


def check_spread(scale: Tensor, dtype: torch.dtype) -> None:
    """Refuse standard deviations that are below the numbers of a dtype.

    Raises:
        ValueError: if there is one.
    """
    small = scale[scale < torch.finfo(dtype).tiny]
    if len(small):
        raise ValueError(
            f"a column has a spread of {float(small.min()):.3g}, which is below the numbers of "
            f"{dtype}; rescale it, or use model.double()"
        )


def _moments_of_gaps(rows: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the entries that are there."""
    counts = (~rows.isnan()).double()
    if weight is not None:
        counts = counts * weight.double().reshape(-1, *(1,) * (rows.dim() - 1))
    share = counts / counts.sum(0)
    filled = rows.double().nan_to_num(0.0)
    unit = _unit(filled)
    filled = filled / unit
    mean = (share * filled).sum(0)
    return mean * unit, (share * (filled - mean).square()).sum(0).sqrt() * unit


def _unit(rows: Tensor) -> Tensor:
    """Return a power of two near the size of each feature; squares in it do not vanish."""
    largest = torch.maximum(rows.amax(0).abs(), rows.amin(0).abs())
    known = torch.where(largest.isfinite(), largest, 0.0)
    return torch.ldexp(torch.ones_like(largest), known.frexp().exponent)


class Standardize(FlowTransform):
    r"""The shared affine map :math:`x = \mathrm{loc} + \mathrm{scale} \cdot z`, identity at first.

    Rows may have more digits than the module has: times since 1970 in float64, before a module in
    float32. Their units are taken off in float64, and ``loc`` is then kept in float64. ``scale``
    has the dtype of the module. ``inv(x)`` has rows in units of one standard deviation.

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

    def loc_and_scale(self) -> tuple[Tensor, Tensor]:
        """Return the two numbers of each feature, for moments in closed form."""
        loc = self.loc.to(self.scale)
        rounding = torch.finfo(loc.dtype).eps * loc.abs()
        # Moments are differences of means, which the precision of the scale may not hold.
        return (self.loc if bool((rounding > LOST * self.scale).any()) else loc), self.scale

    @torch.no_grad()
    def fit_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take the mean and standard deviation of each feature of rows ``(N, *event_shape)``.

        Missing entries, NaN, do not count.

        Arguments:
            x: the rows.
            weight: how much each row counts ``(N,)``; all alike by default.

        Raises:
            ValueError: if they are not finite; the map is then unchanged.
        """
        rows = x.reshape(-1, *self.event_shape)
        if has_gaps(rows):
            largest = rows.abs().nan_to_num(0.0).amax(0)
            self._take(*_moments_of_gaps(rows, weight), largest, rows.dtype)
            return
        if weight is not None and bool((weight != weight[:1]).any()):
            self.fit_batches_([(rows, weight)])
            return
        largest = torch.maximum(rows.amax(0).abs(), rows.amin(0).abs())
        spread = rows.std(0, unbiased=False)
        small = largest < torch.finfo(rows.dtype).tiny ** 0.25  # their squares may vanish
        if bool((small & (largest > 0)).any()):
            unit = _unit(rows)
            spread = torch.where(small, (rows / unit).std(0, unbiased=False) * unit, spread)
        self._take(rows.mean(0), spread, largest, rows.dtype)

    @torch.no_grad()
    def fit_batches_(self, batches: Iterable[Tensor | tuple[Tensor, Tensor | None]]) -> int:
        """Take them in one pass through batches of rows, and return the number of rows.

        Arguments:
            batches: rows, or pairs of rows and how much each counts.

        References:
            Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance.
        """
        count, total, dtype, unit = 0, 0.0, self.scale.dtype, None
        mean, squares, largest = (torch.zeros_like(self.loc, dtype=torch.float64) for _ in range(3))
        for batch in batches:
            x, weight = (batch, None) if isinstance(batch, Tensor) else batch
            rows, dtype = x.reshape(-1, *self.event_shape).double(), x.dtype
            if not len(rows):
                continue
            unit = _unit(rows) if unit is None else unit
            rows = rows / unit
            count += len(rows)
            if weight is None:
                share, own = float(len(rows)), rows.mean(0)
                spread = (rows - own).square().sum(0)
            else:
                counts = weight.double().reshape(-1, *(1,) * (rows.dim() - 1))
                share = float(counts.sum())
                if not share:
                    continue
                rows = torch.where(counts > 0, rows, rows[counts.argmax()])
                own = (counts * rows).sum(0) / share
                spread = (counts * (rows - own).square()).sum(0)
            gap, total = own - mean, total + share
            squares += spread + gap.square() * (total - share) * share / total
            mean += gap * share / total
            largest = torch.maximum(largest, rows.abs().amax(0))
        if count and not total:
            raise ValueError("sample_weight is zero for every row; some have to count")
        if unit is not None:
            self._take(mean * unit, (squares / total).sqrt() * unit, largest * unit, dtype)
        return count

    def _take(self, mean: Tensor, scale: Tensor, largest: Tensor, dtype: torch.dtype) -> None:
        if not (mean.isfinite().all() and scale.to(self.scale.dtype).isfinite().all()):
            raise ValueError(
                f"the rows reach {float(largest.max()):.3g}, and their mean or spread is beyond "
                f"{self.scale.dtype}; rescale them, or use model.double()"
            )
        # A column whose spread is within rounding keeps its scale.
        floor = torch.finfo(dtype).eps * largest * 10
        check_spread(scale[scale > floor], self.scale.dtype)
        self.scale.copy_(torch.where(scale > floor, scale, torch.ones_like(scale)))
        self._set_loc(mean)
        self.fitted.fill_(True)

    def _set_loc(self, loc: Tensor) -> None:
        """Keep ``loc`` in float64 if the module's own dtype has too few digits for it."""
        wide = loc.dtype == torch.float64 and loses_digits(loc, self.scale)
        dtype = torch.float64 if wide else self.scale.dtype
        if self.loc.dtype == dtype and self.loc.device == loc.device:
            self.loc.copy_(loc)
        else:
            self.loc = loc.to(dtype, copy=True)

    def needs_digits(self, x: Tensor) -> bool:
        """Return whether rows in float64 lose digits of their spread in the module's own dtype."""
        if bool(self.fitted):
            return self.loc.dtype != self.scale.dtype
        if has_gaps(x):
            return loses_digits(*_moments_of_gaps(x, None))
        return bool(len(x)) and loses_digits(x.mean(0), x.std(0, unbiased=False))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardize:
        loc = self.loc
        super()._apply(fn, recurse)
        if loc.dtype == torch.float64 != self.loc.dtype:
            self._set_loc(loc.to(self.scale.device))
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}loc")
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            self.loc = self.loc.double()
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._set_loc(self.loc)

    def _log_det(self, x: Tensor) -> Tensor:
        log_det = self.scale.log().flatten(len(self.batch_shape)).sum(-1)
        return constant_log_det(log_det, x, len(self.event_shape))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + self.scale * z, self._log_det(z)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(x), -self._log_det(x)

    def filled(self, x: Tensor) -> Tensor:
        """Return rows with the mean of each feature in place of missing entries."""
        return torch.where(x.isnan(), self.loc.to(x), x)

    def inverse_of_observed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(x), -torch.where(x.isnan(), 0.0, self.scale.log()).sum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return ((x - self.loc) / self.scale).to(self.scale.dtype)
