"""Densities outside of a support: zero, and never a number that is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints, transform_to
from torch.distributions.transforms import ComposeTransform

from pyro_vmonf._utils.shapes import check_event
from pyro_vmonf.distributions.estimates import Asking


def whole_of(support: Any) -> Any:
    """Return the support of a mixture of torch as that of any of its components."""
    if isinstance(support, constraints.independent):
        inner = whole_of(support.base_constraint)
        if inner is support.base_constraint:
            return support
        return constraints.independent(inner, support.reinterpreted_batch_ndims)
    if not isinstance(support, constraints.MixtureSameFamilyConstraint):
        return support
    base = support.base_constraint
    return base if is_real(base) else AnyOf(base, support.event_dim)


def support_of(found: Distribution) -> Any:
    """Return the support of a distribution; the whole space if it names none."""
    try:
        support = found.support
    except NotImplementedError:
        support = None
    space = constraints.independent(constraints.real, len(found.event_shape))
    return space if support is None else support


def is_same(one: Any, other: Any) -> bool:
    """Return whether two supports are the same set, and stay so in training."""
    if is_real(one) and is_real(other):
        return True
    while isinstance(one, constraints.independent) and isinstance(other, constraints.independent):
        one, other = one.base_constraint, other.base_constraint
    if one is other:
        return True
    ends, others = vars(one), vars(other)
    if type(one) is not type(other) or ends.keys() != others.keys():
        return False
    if not all(isinstance(end, int | float | Tensor) for end in (*ends.values(), *others.values())):
        return False
    pairs = [(torch.as_tensor(end), torch.as_tensor(others[name])) for name, end in ends.items()]
    return all(torch.equal(a, b) and not (a.requires_grad or b.requires_grad) for a, b in pairs)


def is_real(support: Any) -> bool:
    """Return whether a support is the whole space."""
    support = whole_of(support)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real or support is constraints.real_vector


def is_bounded(components: Distribution) -> bool:
    """Return whether components live on a part of the space.

    Raises:
        ValueError: if they live on whole numbers, which have no density.
    """
    support = components.support
    if getattr(support, "is_discrete", False):
        raise ValueError(
            f"the components are discrete ({type(support).__name__}); expected densities: add "
            "noise to counts (datasets.dequantize) and take continuous components, or write a "
            "Pyro mixture of discrete ones"
        )
    return not is_real(support)


def is_in(support: Any, x: Tensor, event_dim: int) -> Tensor:
    """Return which points ``(*, *event_shape)`` lie in a support, ``(*)``."""
    good: Tensor = support.check(x)
    inner = event_dim - support.event_dim  # of a support of single numbers
    return good.flatten(-inner).all(-1) if inner > 0 else good


def inside(support: Any, x: Tensor, event_dim: int) -> tuple[Tensor, Tensor | None]:
    """Return points of a support in place of those outside of it, and which ones are inside.

    Arguments:
        support: a constraint.
        x: points ``(*, *event_shape)``.
        event_dim: dimensions of one point.

    Returns:
        The points, and which are inside ``(*)``; ``None`` if the support is the whole space.
    """
    support = whole_of(support)
    if is_real(support):
        return x, None
    good = is_in(support, x, event_dim)
    some = transform_to(support)(torch.zeros_like(x))
    return torch.where(good.reshape(*good.shape, *(1,) * event_dim), x, some), good


class Several(constraints.Constraint):
    """The supports of components side by side, each of which checks for itself.

    Arguments:
        supports: of the parts; :meth:`check` joins their answers on the last dimension.
        sizes: number of components of each part.
        event_dim: dimensions of one point.
    """

    def __init__(self, supports: Sequence[Any], sizes: Sequence[int], event_dim: int) -> None:
        self.supports = list(supports)
        self.sizes = list(sizes)
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        axis = -1 - self.event_dim
        shared = value.dim() < -axis or value.shape[axis] == 1
        parts = [value] * len(self.sizes) if shared else value.split(self.sizes, axis)
        found = []
        for support, size, x in zip(self.supports, self.sizes, parts, strict=True):
            good = is_in(support, x, self.event_dim)
            found.append(good.expand(*good.shape[:-1], size))
        return torch.cat(found, -1)


class AnyOf(constraints.Constraint):
    """The points that lie in the support of at least one component.

    Arguments:
        supports: of the components, which are the last batch dimension of its bounds.
        event_dim: dimensions of one point.
    """

    def __init__(self, supports: Any, event_dim: int) -> None:
        self.supports = supports
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        return is_in(self.supports, value.unsqueeze(-1 - self.event_dim), self.event_dim).any(-1)

    def hull(self) -> Any:
        """Return the smallest interval that holds all supports, for unconstrained coordinates.

        Raises:
            NotImplementedError: if they are no intervals.
        """
        base = self.supports
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        ends = {name: torch.as_tensor(end) for name, end in vars(base).items()}
        axis = -1 - self.event_dim
        if not ends.keys() or not ends.keys() <= {"lower_bound", "upper_bound"}:
            raise NotImplementedError(
                "the components have supports of different kinds, for which there are no "
                "unconstrained coordinates"
            )
        if "lower_bound" in ends and ends["lower_bound"].dim() >= -axis:
            ends["lower_bound"] = ends["lower_bound"].amin(axis)
        if "upper_bound" in ends and ends["upper_bound"].dim() >= -axis:
            ends["upper_bound"] = ends["upper_bound"].amax(axis)
        return constraints.independent(type(base)(**ends), self.event_dim)


biject_to.register(AnyOf, lambda support: biject_to(support.hull()))
transform_to.register(AnyOf, lambda support: transform_to(support.hull()))


class Behind(constraints.Constraint):
    """The points that transforms make of a bounded set.

    Arguments:
        base: the support before them.
        transforms: from there to data, in their order.
        event_dim: dimensions of one point.
    """

    def __init__(self, base: Any, transforms: Sequence[Transform], event_dim: int) -> None:
        self.base = base
        self.transforms = list(transforms)
        self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return is_in(self.base, value, self.event_dim)

    def coordinates(self) -> Transform:
        """Return the transform from unconstrained coordinates."""
        return ComposeTransform([transform_to(self.base), *self.transforms])


biject_to.register(Behind, Behind.coordinates)
transform_to.register(Behind, Behind.coordinates)


def behind(supports: Sequence[Any], transforms: Sequence[Transform], event_dim: int) -> Any:
    """Return the support of a chain.

    Arguments:
        supports: that of the base, and the codomain of each transform.
        transforms: from base to data.
        event_dim: dimensions of one point.
    """
    for number in reversed(range(len(supports))):
        if not is_real(supports[number]):
            after = transforms[number:]
            return Behind(supports[number], after, event_dim) if after else supports[number]
    return supports[-1]


def of_any(support: Any, event_dim: int) -> Any:
    """Return the support of a mixture: that of its components, if all of them have the same."""
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    ends = [value for value in vars(base).values() if isinstance(value, Tensor)]
    batched = any(value.dim() > event_dim for value in ends)
    several = batched or isinstance(base, Several | Behind)
    return AnyOf(support, event_dim) if several else support


class OwnUnits(Asking):
    """A distribution that a user gave in raw units, whose density is zero outside its support.

    Arguments:
        base: the distribution.
    """

    in_raw_units = True

    def __init__(self, base: Distribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        return whole_of(self.base.support)

    def _ask(self, function: Callable[[Distribution], Any]) -> Any:
        return function(self.base)

    def expand(self, batch_shape: Any, _instance: object = None) -> OwnUnits:
        return OwnUnits(self.base.expand(torch.Size(batch_shape)))

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        x, good = inside(self.support, x, len(self.event_shape))
        return possible(self.base.log_prob(x), good)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))


def possible(value: Tensor, good: Tensor | None) -> Tensor:
    """Return log-densities that are minus infinity outside."""
    return value if good is None else torch.where(good, value, -torch.inf)


def of_far_rows(value: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """Return log-densities ``(*, K)`` that are minus infinity where rows are too far for a number.

    Arguments:
        value: NaN where a map of rows overflowed.
        x: rows ``(*, 1, *event_shape)`` or ``(*, K, *event_shape)``.
        event_dim: dimensions of one row.
    """
    most = torch.finfo(x.dtype).max ** 0.5  # the square of a larger number is infinite
    far = (x.abs() > most).flatten(x.dim() - event_dim).any(-1) if event_dim else x.abs() > most
    return torch.where(value.isnan() & far, -torch.inf, value)


def in_units(components: Distribution, put: Callable[[Distribution], Distribution]) -> Distribution:
    """Put components behind the units of the rows, but for those that have units of their own."""
    own = getattr(components, "in_units", None)
    if own is not None:  # of components of different kinds
        return own(put)  # type: ignore[no-any-return]
    raw = getattr(components, "in_raw_units", False) or not is_real(components.support)
    return components if raw else put(components)
