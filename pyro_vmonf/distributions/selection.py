"""One of K components, chosen by an index tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import Categorical
from torch import Size, Tensor
from torch.distributions import Distribution, constraints, register_kl

from pyro_vmonf._utils.repr import ShownDistribution
from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf.distributions.support import of_any
from pyro_vmonf.program import is_enumerated


def _places(c: Tensor, count: int) -> tuple[Tensor, int]:
    """Return each entry's place among those of its component, and the most places of any.

    Raises:
        ValueError: if an entry is no number of a component.
    """
    try:
        counts = torch.bincount(c, minlength=count)
    except RuntimeError:  # a number below zero, or none that is whole
        counts = c.new_zeros(0)
    if len(counts) != count:
        raise ValueError(
            f"c has dtype {c.dtype} and numbers from {c.min():g} to {c.max():g}; expected whole "
            f"numbers from 0 to {count - 1}, those of the components"
        )
    order = c.argsort(stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(c)
    place[order] = torch.arange(c.numel(), device=c.device) - first[c[order]]
    return place, int(counts.max())


def grouped_draw(components: Distribution, c: Tensor, reparametrized: bool = False) -> Tensor:
    """Draw one event for each entry of ``c``, from its component.

    Each component is drawn as often as the most wanted one is needed, so balanced components cost
    one draw a row rather than K.
    """
    event_dim, count = len(components.event_shape), components.batch_shape[-1]
    if len(components.batch_shape) > 1:  # every row has parameters of its own
        rows = components.expand(Size((*c.shape, count)))
        draws = rows.rsample() if reparametrized else rows.sample()
        index = c.reshape(*c.shape, *(1,) * (event_dim + 1))
        return torch.take_along_dim(draws, index, -1 - event_dim).squeeze(-1 - event_dim)
    flat = c.reshape(-1)
    place, places = _places(flat, count)
    shape = Size((places,))
    draws = components.rsample(shape) if reparametrized else components.sample(shape)
    return draws[place, flat].reshape(*c.shape, *components.event_shape)


def _grouped_log_prob(components: Distribution, c: Tensor, x: Tensor) -> Tensor:
    """Return log p(x|c) of the shape of ``c``, with the densities asked for and no others.

    Rows are lined up by component, so each component sees as many as the most wanted one has.

    Arguments:
        components: distribution with ``batch_shape`` ``(K,)``.
        c: integers ``(*)``.
        x: rows whose batch shape broadcasts with ``*``.
    """
    event_shape, count = components.event_shape, components.batch_shape[-1]
    batch_shape = x.shape[: x.dim() - len(event_shape)]
    total = math.prod(batch_shape)
    rows = torch.arange(total, device=x.device).reshape(batch_shape)
    rows, flat = rows.expand(c.shape).reshape(-1), c.reshape(-1)
    place, places = _places(flat, count)
    if places >= total:  # grouping saves nothing
        return pick(components.log_prob(x.unsqueeze(-1 - len(event_shape))), c)
    wanted = torch.zeros(places, count, dtype=torch.long, device=x.device)
    wanted[place, flat] = rows  # empty places score the first row, which is then left out
    grouped = x.reshape(total, *event_shape)[wanted]
    return components.log_prob(grouped)[place, flat].reshape(c.shape)


def pick(table: Tensor, c: Tensor) -> Tensor:
    """Return ``table[..., c]`` of shape ``(*)``, for ``table`` ``(*, K)`` and ``c`` ``(*)``.

    An enumerated ``c`` (all of 0 to K - 1, on a dimension of its own) only moves the last dimension
    there; anything else is gathered.
    """
    count = table.shape[-1]
    if is_enumerated(c, count) and c.dim() >= table.dim():
        return table[(None,) * (c.dim() - table.dim() + 1)].transpose(0, -1).squeeze(-1)
    shape = broadcast(table.shape[:-1], c.shape)
    return table.expand(*shape, count).gather(-1, c.expand(shape).unsqueeze(-1)).squeeze(-1)


class Selected(ShownDistribution):
    """The component that the index tensor ``c`` picks: see :func:`select`."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self, components: Distribution, c: Tensor, batch_shape: Sequence[int] | None = None
    ) -> None:
        self.components = components
        self.c = c
        if batch_shape is None:
            batch_shape = broadcast(components.batch_shape[:-1], c.shape)
        super().__init__(Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.components.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return of_any(self.components.support, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Selected:
        return Selected(self.components, self.c, batch_shape)

    def _of_its_component(self, values: Tensor) -> Tensor:
        """Return the values ``(*, K, *event_shape)`` of the components that ``c`` picks."""
        axis = -1 - self.event_dim
        c = self.c.expand(self.batch_shape)
        index = c.reshape(*c.shape, *(1,) * (self.event_dim + 1))
        values = values.expand(*c.shape, *values.shape[axis:])
        return torch.take_along_dim(values, index, axis).squeeze(axis)

    @property
    def mean(self) -> Tensor:
        return self._of_its_component(self.components.mean)

    @property
    def variance(self) -> Tensor:
        return self._of_its_component(self.components.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        batch_shape = x.shape[: x.dim() - self.event_dim]
        shape = broadcast(batch_shape, self.batch_shape)
        private = len(self.components.batch_shape) > 1
        if private or is_enumerated(self.c, self.components.batch_shape[-1]):
            picked = pick(self.components.log_prob(x.unsqueeze(-1 - self.event_dim)), self.c)
        else:
            picked = _grouped_log_prob(self.components, self.c.expand(shape), x)
        return picked.expand(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        c = self.c.expand((*sample_shape, *self.batch_shape))
        return grouped_draw(self.components, c)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        c = self.c.expand((*sample_shape, *self.batch_shape))
        return grouped_draw(self.components, c, reparametrized=True)


class Clusters(Categorical):
    """The posterior of the component of each row, whose number is a name and has no mean."""

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError("a component has no mean; use probs, mode or entropy()")

    @property
    def variance(self) -> Tensor:
        raise NotImplementedError("a component has no variance; use probs, mode or entropy()")


@register_kl(Clusters, Clusters)
def _divergence(p: Clusters, q: Clusters) -> Tensor:
    """Return KL(p ‖ q) from log-probabilities, which have digits where probabilities are zero."""
    terms = p.probs * (p.logits - q.logits)
    return torch.where(p.probs == 0, torch.zeros_like(terms), terms).sum(-1)


def select(components: Distribution, c: Tensor) -> Selected:
    r"""Return :math:`p(x \mid c)` for an index tensor ``c``, observed, sampled or enumerated.

    For an enumerated ``c`` the K densities of each point are computed once and then indexed. For
    any other, points are grouped by component and only the densities asked for are computed.

    Arguments:
        components: distribution with ``batch_shape`` ``(*, K)``.
        c: integers in 0 to K - 1, of a shape that broadcasts with ``*``.

    Raises:
        TypeError: if ``c`` is no tensor.
        ValueError: if ``components`` has no batch dimension for K; at the density or the draw, if
            ``c`` holds something else than numbers of components.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> components = Independent(Normal(torch.zeros(5, 2), 1.0), 1)
        >>> select(components, torch.tensor([4, 0, 0])).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    if not isinstance(c, Tensor):
        raise TypeError(f"c is {c!r}; pass an index tensor, such as torch.tensor({c!r})")
    if not components.batch_shape:
        raise ValueError(
            f"components has batch_shape () and event_shape {tuple(components.event_shape)}; "
            "expected (*, K), with the K components on the last batch dimension"
        )
    return Selected(components, c)
