"""The map between the unit interval and the real line, for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.nn import functional as F

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.transforms.base import FlowTransform


class OpenInterval(constraints.interval):
    """The numbers between two ends, which are no part of it."""

    def check(self, value: Tensor) -> Tensor:
        return (self.lower_bound < value) & (value < self.upper_bound)


def _closed(support: OpenInterval) -> constraints.interval:
    return constraints.interval(support.lower_bound, support.upper_bound)


biject_to.register(OpenInterval, lambda support: biject_to(_closed(support)))
transform_to.register(OpenInterval, lambda support: transform_to(_closed(support)))


def _ends(margin: float, dtype: torch.dtype) -> tuple[float, float]:
    """Return the first and the last number of the interval, whose ends are no part of it."""
    numbers = torch.finfo(dtype)
    low = -margin * (1 - numbers.eps) if margin else numbers.tiny
    return low, (1 + margin) * (1 - numbers.eps)


class Logit(FlowTransform):
    r"""The map of pixels in [0, 1] to the real line and back.

    .. math::
        z = \mathrm{logit}(\alpha + (1 - 2\alpha) x), \qquad
        \log|\partial x / \partial z| = \log\sigma(z) + \log\sigma(-z) - \log(1 - 2\alpha)

    It belongs at the data end of a chain. Whole grey levels need
    :func:`pyro_vmonf.datasets.dequantize` first; that step is random and no bijection.

    Arguments:
        alpha: distance of the ends of the interval from 0 and 1, in [0, 1/2).
        event_dim: dimensions of one row: 1 for flat images, 3 for ``(C, H, W)``.
        batch_shape: the batch shape, as for every transform; the map has no parameters.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Raises:
        ValueError: if ``alpha`` is outside [0, 1/2).

    Example:
        >>> Logit(alpha=0.0).inv(torch.tensor([0.5]))
        tensor([0.])
    """

    def __init__(
        self, *, alpha: float = 1e-6, event_dim: int = 1, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha is {alpha}; expected a number in [0, 0.5)")
        self.alpha = alpha
        self._event_dim = check_positive("event_dim", event_dim)

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(constraints.real, self._event_dim)

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        margin = self.alpha / (1 - 2 * self.alpha)
        return constraints.independent(OpenInterval(-margin, 1 + margin), self._event_dim)

    def _expanded(self, x: Tensor) -> Tensor:
        event = (1,) * self._event_dim
        return x.expand(torch.broadcast_shapes(x.shape, (*self.batch_shape, *event)))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = self._expanded(z)
        width = 1 - 2 * self.alpha
        log_det = F.logsigmoid(z) + F.logsigmoid(-z) - torch.log(z.new_tensor(width))
        x = (torch.sigmoid(z) - self.alpha) / width
        # A sigmoid that rounds to an end of the interval stays inside of it.
        x = x.clamp(*_ends(self.alpha / width, x.dtype))
        return x, log_det.flatten(-self._event_dim).sum(-1)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._expanded(x)
        width = 1 - 2 * self.alpha
        # Each side from its own end: close to one, a difference of one has few digits.
        tiny = torch.finfo(x.dtype).tiny
        log_y = (self.alpha + width * x).clamp(min=tiny).log()
        log_rest = (self.alpha + width * (1 - x)).clamp(min=tiny).log()
        log_det = torch.log(x.new_tensor(width)) - log_y - log_rest
        return log_y - log_rest, log_det.flatten(-self._event_dim).sum(-1)
