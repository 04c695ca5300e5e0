"""Different distributions side by side on the last batch dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf.distributions.entries import Partial
from pyro_vmonf.distributions.estimates import Estimated, cdf_of, icdf_of
from pyro_vmonf.distributions.partial import observe
from pyro_vmonf.distributions.support import Several, in_units, is_real


class StackedDistribution(Estimated):
    """Different distributions side by side on the last batch dimension.

    Arguments:
        parts: distributions with the same event shape; ``batch_shape`` ``(*, K_i)`` counts as K_i
            components, ``()`` as one.

    Raises:
        ValueError: if there are none, or their event shapes differ.

    Example:
        >>> from torch.distributions import Independent, Laplace, Normal
        >>> parts = [Independent(d(torch.zeros(2), torch.ones(2)), 1) for d in (Normal, Laplace)]
        >>> stacked(parts).log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, parts: Sequence[Distribution]) -> None:
        if not parts:
            raise ValueError("no components were given; pass at least one distribution")
        shapes = {tuple(map(int, p.event_shape)) for p in parts}  # tensors while torch traces
        if len(shapes) > 1:
            raise ValueError(
                f"components have event shapes {sorted(shapes)}; expected a single one"
            )
        self.sizes = [p.batch_shape[-1] if p.batch_shape else 1 for p in parts]
        left = broadcast(*(p.batch_shape[:-1] for p in parts))
        wanted = [Size((*left, size)) for size in self.sizes]
        self.parts = [
            p if p.batch_shape == shape else p.expand(shape)
            for p, shape in zip(parts, wanted, strict=True)
        ]
        batch_shape = Size((*left, sum(self.sizes)))
        super().__init__(batch_shape, self.parts[0].event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(p.has_rsample for p in self.parts)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        whole = [part.support for part in self.parts if is_real(part.support)]
        if whole or len(self.parts) == 1:
            return (whole or [self.parts[0].support])[0]
        return Several([part.support for part in self.parts], self.sizes, len(self.event_shape))

    def in_units(self, put: Callable[[Distribution], Distribution]) -> Distribution:
        """Put the parts behind the units of the rows, but for those with units of their own."""
        parts = [in_units(part, put) for part in self.parts]
        moved = [new is not old for new, old in zip(parts, self.parts, strict=True)]
        return put(self) if all(moved) else StackedDistribution(parts)

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], -1 - len(self.event_shape))

    @property
    def variance(self) -> Tensor:
        return torch.cat([part.variance for part in self.parts], -1 - len(self.event_shape))

    def entropy(self) -> Tensor:
        return torch.cat([part.entropy() for part in self.parts], -1)

    def cdf(self, x: Tensor) -> Tensor:
        r"""Return :math:`P(X \le x)` ``(*, K)`` of rows ``(*, K, 1)``."""
        each = zip(self.parts, self._of_each(x), strict=True)
        return torch.cat([cdf_of(part, own) for part, own in each], -1)

    def icdf(self, share: Tensor) -> Tensor:
        """Return the quantiles ``(*, K, 1)`` at shares ``(*, K)``."""
        shared = share.shape[-1:] == (1,)
        shares = [share] * len(self.parts) if shared else share.split(self.sizes, -1)
        each = zip(self.parts, shares, strict=True)
        return torch.cat([icdf_of(part, own) for part, own in each], -2)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> StackedDistribution:
        left = tuple(batch_shape)[:-1]
        return StackedDistribution(
            [p.expand(Size((*left, k))) for p, k in zip(self.parts, self.sizes, strict=True)]
        )

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        xs = self._of_each(x)
        return torch.cat([p.log_prob(x) for p, x in zip(self.parts, xs, strict=True)], -1)

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return what each part says of rows with missing entries: see :class:`Partial`."""
        xs = self._of_each(x)
        found = [observe(p, x, draws) for p, x in zip(self.parts, xs, strict=True)]
        return Partial(
            torch.cat([f.log_prob for f in found], -1),
            torch.cat([f.error for f in found], -1),
            torch.cat([f.effective for f in found], -1),
            lambda: torch.cat([f.mean() for f in found], -2),
            lambda number: torch.cat([f.draw(number) for f in found], -2),
        )

    def _of_each(self, x: Tensor) -> Sequence[Tensor]:
        """Return the points that each part scores."""
        axis = -1 - len(self.event_shape)
        shared = x.dim() < -axis or x.shape[axis] == 1
        return [x] * len(self.parts) if shared else x.split(self.sizes, axis)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = [p.sample(Size(sample_shape)) for p in self.parts]
        return torch.cat(draws, -1 - len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = [p.rsample(Size(sample_shape)) for p in self.parts]
        return torch.cat(draws, -1 - len(self.event_shape))


stacked = StackedDistribution
