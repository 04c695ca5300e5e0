"""Distributions with K components on the last batch dimension, and how one of them is picked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, constraints

from pyro_vmonf.shown import ShownDistribution
from pyro_vmonf.transforms.base import FlowTransform


def _broadcast(*shapes: Sequence[int]) -> Size:
    """Return what shapes broadcast to; mostly they are one and the same, which is fast."""
    distinct = {tuple(shape) for shape in shapes if len(shape)}
    if len(distinct) > 1:
        return torch.broadcast_shapes(*distinct)
    return Size(distinct.pop() if distinct else ())


def _layout(transform: Transform) -> Hashable:
    """Return a key that transforms share where they are inverted together."""
    layout = getattr(transform, "layout", None)
    return id(transform) if layout is None else layout


class FlowDistribution(ShownDistribution):
    r"""The distribution of :math:`x = h_L \circ \dots \circ h_1(z)` for z drawn from a base.

    .. math::
        \log p(x) = \log f_Z(z) + \sum_\ell \log|\det\partial h_\ell^{-1}|

    (thesis 3.10). Transforms with ``batch_shape=()`` at the data end are inverted once per point,
    before the point meets the K components.

    Arguments:
        base: distribution with ``batch_shape`` ``(*, K)``.
        transforms: from base to data; each a :class:`FlowTransform` or any torch ``Transform``.

    Example:
        >>> from pyro_vmonf.transforms import AffineCoupling
        >>> base = torch.distributions.Normal(torch.zeros(5, 2), 1.0)
        >>> base = torch.distributions.Independent(base, 1)
        >>> flows = FlowDistribution(base, [AffineCoupling(2, batch_shape=(5,))])
        >>> flows.log_prob(torch.randn(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base: Distribution, transforms: Sequence[Transform]) -> None:
        self.base = base
        self.transforms = list(transforms)
        shapes = [getattr(t, "batch_shape", ()) for t in self.transforms]
        batch_shape = _broadcast(base.batch_shape, *shapes)
        super().__init__(batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.transforms[-1].codomain if self.transforms else self.base.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> FlowDistribution:
        return FlowDistribution(self.base.expand(Size(batch_shape)), self.transforms)

    def log_prob(self, x: Tensor) -> Tensor:
        z, log_det = self._pull(x)
        return self.base.log_prob(z) + log_det

    def reconstruct(self, x: Tensor) -> Tensor:
        """Map rows to the base and back: what differs from ``x`` is the inversion's error."""
        if isinstance(self.base, FlowDistribution):
            z, _ = self._pull(x)
            return self._push(self.base.reconstruct(z))
        return self._push(self._pull(x)[0])

    def _pull(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the base's value and the log-determinant on the way to it."""
        total: Tensor | float = 0.0
        for _, run in groupby(reversed(self.transforms), key=_layout):
            transform, *others = run
            if isinstance(transform, FlowTransform):
                x, log_det = transform.inverse_of_run([transform, *others], x)  # type: ignore[list-item]
            else:
                z = transform.inv(x)
                log_det = -transform.log_abs_det_jacobian(z, x)
                inner = len(self.event_shape) - transform.domain.event_dim
                log_det = log_det.flatten(-inner).sum(-1) if inner else log_det
                x = z
            total = total + log_det
        return x, total

    def _push(self, z: Tensor) -> Tensor:
        for transform in self.transforms:
            z = transform(z)
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._push(self._expanded_base().sample(Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._push(self._expanded_base().rsample(Size(sample_shape)))

    def _expanded_base(self) -> Distribution:
        same = self.base.batch_shape == self.batch_shape
        return self.base if same else self.base.expand(self.batch_shape)


class StackedDistribution(ShownDistribution):
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
        shapes = {tuple(p.event_shape) for p in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"components have event shapes {sorted(shapes)}; expected a single one"
            )
        self.sizes = [p.batch_shape[-1] if p.batch_shape else 1 for p in parts]
        left = _broadcast(*(p.batch_shape[:-1] for p in parts))
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
        return self.parts[0].support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> StackedDistribution:
        left = tuple(batch_shape)[:-1]
        return StackedDistribution(
            [p.expand(Size((*left, k))) for p, k in zip(self.parts, self.sizes, strict=True)]
        )

    def log_prob(self, x: Tensor) -> Tensor:
        axis = -1 - len(self.event_shape)
        shared = x.dim() < -axis or x.shape[axis] == 1
        xs = [x] * len(self.parts) if shared else x.split(self.sizes, axis)
        return torch.cat([p.log_prob(x) for p, x in zip(self.parts, xs, strict=True)], -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = [p.sample(Size(sample_shape)) for p in self.parts]
        return torch.cat(draws, -1 - len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        draws = [p.rsample(Size(sample_shape)) for p in self.parts]
        return torch.cat(draws, -1 - len(self.event_shape))


stacked = StackedDistribution


def _places(c: Tensor, count: int) -> tuple[Tensor, int]:
    """Return each entry's place among those of its component, and the most places of any."""
    counts = torch.bincount(c, minlength=count)
    order = c.argsort(stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(c)
    place[order] = torch.arange(c.numel(), device=c.device) - first[c[order]]
    return place, int(counts.max())


def _grouped_draw(components: Distribution, c: Tensor, reparametrized: bool = False) -> Tensor:
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


def _enumerated(c: Tensor, count: int) -> bool:
    """Whether ``c`` holds all of 0 to K - 1 on a dimension of its own."""
    return hasattr(c, "_pyro_categorical_support") and c.numel() == count == c.shape[0]


def pick(table: Tensor, c: Tensor) -> Tensor:
    """Return ``table[..., c]`` of shape ``(*)``, for ``table`` ``(*, K)`` and ``c`` ``(*)``.

    An enumerated ``c`` (all of 0 to K - 1, on a dimension of its own) only moves the last dimension
    there; anything else is gathered.
    """
    count = table.shape[-1]
    if _enumerated(c, count) and c.dim() >= table.dim():
        return table[(None,) * (c.dim() - table.dim() + 1)].transpose(0, -1).squeeze(-1)
    shape = _broadcast(table.shape[:-1], c.shape)
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
            batch_shape = _broadcast(components.batch_shape[:-1], c.shape)
        super().__init__(Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.components.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.components.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Selected:
        return Selected(self.components, self.c, batch_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        batch_shape = x.shape[: x.dim() - self.event_dim]
        shape = _broadcast(batch_shape, self.batch_shape)
        private = len(self.components.batch_shape) > 1
        if private or _enumerated(self.c, self.components.batch_shape[-1]):
            picked = pick(self.components.log_prob(x.unsqueeze(-1 - self.event_dim)), self.c)
        else:
            picked = _grouped_log_prob(self.components, self.c.expand(shape), x)
        return picked.expand(shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        c = self.c.expand(*sample_shape, *self.batch_shape)
        return _grouped_draw(self.components, c)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        c = self.c.expand(*sample_shape, *self.batch_shape)
        return _grouped_draw(self.components, c, reparametrized=True)


def select(components: Distribution, c: Tensor) -> Selected:
    r"""Return :math:`p(x \mid c)` for an index tensor ``c``, observed, sampled or enumerated.

    For an enumerated ``c`` the K densities of each point are computed once and then indexed. For
    any other, points are grouped by component and only the densities asked for are computed.

    Arguments:
        components: distribution with ``batch_shape`` ``(*, K)``.
        c: integers in 0 to K - 1, of a shape that broadcasts with ``*``.

    Raises:
        ValueError: if ``components`` has no batch dimension for K.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> components = Independent(Normal(torch.zeros(5, 2), 1.0), 1)
        >>> select(components, torch.tensor([4, 0, 0])).log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    if not components.batch_shape:
        raise ValueError(
            f"components has batch_shape () and event_shape {tuple(components.event_shape)}; "
            "expected (*, K), with the K components on the last batch dimension"
        )
    return Selected(components, c)


class Marginal(ShownDistribution):
    r"""The mixture with the component summed out, :math:`p(x) = \sum_c \pi_c\, p(x \mid c)`.

    Its support is that of the components, so autoguides and NUTS accept it; it draws the component
    first and then only what that component needs.

    Arguments:
        log_weights: tensor ``(*, K)`` of :math:`\log\pi`.
        components: distribution with ``batch_shape`` ``(*, K)``.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> components = Independent(Normal(torch.zeros(5, 2), 1.0), 1)
        >>> mixture = Marginal(torch.full((5,), 0.2).log(), components)
        >>> mixture.log_prob(torch.zeros(3, 2)).shape, mixture.sample((4,)).shape
        (torch.Size([3]), torch.Size([4, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        log_weights: Tensor,
        components: Distribution,
        batch_shape: Sequence[int] | None = None,
    ) -> None:
        self.log_weights = log_weights
        self.components = components
        if batch_shape is None:
            batch_shape = _broadcast(log_weights.shape[:-1], components.batch_shape[:-1])
        super().__init__(Size(batch_shape), components.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self.components.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Marginal:
        return Marginal(self.log_weights, self.components, batch_shape)

    def joint_log_prob(self, x: Tensor) -> Tensor:
        r"""Return :math:`\log\pi_c + \log p(x \mid c)` of shape ``(*, K)``."""
        return self.log_weights + self.components.log_prob(x.unsqueeze(-1 - self.event_dim))

    def log_prob(self, x: Tensor) -> Tensor:
        log_prob = self.joint_log_prob(x).logsumexp(-1)
        return log_prob.expand(_broadcast(log_prob.shape, self.batch_shape))

    def sample_with_component(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw points ``(*, *event_shape)`` and the component ``(*)`` that each came from."""
        with torch.no_grad():
            count = self.log_weights.shape[-1]
            log_weights = self.log_weights.expand(*self.batch_shape, count)
            c = torch.distributions.Categorical(logits=log_weights).sample(Size(sample_shape))
            return _grouped_draw(self.components, c), c

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample_with_component(sample_shape)[0]
