"""The distribution of a base behind a chain of transforms."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, constraints, transform_to

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf.contracts import optional
from pyro_vmonf.distributions.entries import Partial, joined
from pyro_vmonf.distributions.estimates import Estimated, cdf_of, check_share, check_single, icdf_of
from pyro_vmonf.distributions.partial import PROBED, importance, observe
from pyro_vmonf.distributions.support import behind, inside, is_real, possible, support_of
from pyro_vmonf.transforms.base import FlowTransform

# Coordinates in which a map of one feature is asked for its direction.
LOOKED_AT = (-2.0, -0.5, 0.0, 0.5, 2.0)


def _layout(transform: Transform) -> Hashable:
    """Return a key that transforms share where they are inverted together."""
    layout = getattr(transform, "layout", None)
    return id(transform) if layout is None else layout


class FlowDistribution(Estimated):
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
        batch_shape = broadcast(base.batch_shape, *shapes)
        super().__init__(batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        if not self.transforms:
            return self.base.support
        supports = [support_of(self.base), *(t.codomain for t in self.transforms)]
        return behind(supports, self.transforms, len(self.event_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> FlowDistribution:
        return FlowDistribution(self.base.expand(Size(batch_shape)), self.transforms)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        runs = self._runs()
        last = runs.pop() if runs and self._scores_in_columns(runs[-1][0]) else None
        z, log_det, good = self._pull(x, runs)
        if last is None:
            value = self.base.log_prob(z)
        else:
            columns, slopes = last[0].inverse_in_columns(last, z)  # type: ignore[attr-defined]
            slopes = slopes + self.base.log_prob_of_columns(columns)  # type: ignore[attr-defined]
            value = columns.restore(slopes).squeeze(-1)
        return possible(value if log_det is None else value + log_det, good)

    def _scores_in_columns(self, transform: Transform) -> bool:
        """Return whether the base scores what this transform leaves in columns."""
        return (
            getattr(transform, "in_columns", False)
            and hasattr(self.base, "log_prob_of_columns")
            and self.base.batch_shape == transform.batch_shape  # type: ignore[attr-defined]
            and is_real(transform.codomain)
        )

    def _runs(self) -> list[list[Transform]]:
        """Return the transforms from data to base, those that are inverted together as one run."""
        return [list(run) for _, run in groupby(reversed(self.transforms), key=_layout)]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Map rows to the base and back: what differs from ``x`` is the inversion's error."""
        if isinstance(self.base, FlowDistribution):
            z = self._pull(x)[0]
            return self._push(self.base.reconstruct(z))
        return self._push(self._pull(x)[0])

    def _pull(
        self, x: Tensor, runs: Sequence[list[Transform]] | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the base's value, the log-determinant on the way to it, and what is possible.

        A point outside the range of a transform has no value there; another one stands in.
        """
        total: Tensor | None = None
        allowed: Tensor | None = None
        for run in self._runs() if runs is None else runs:
            transform = run[0]
            x, good = inside(transform.codomain, x, len(self.event_shape))
            if good is not None:
                allowed = good if allowed is None else allowed & good
            if isinstance(transform, FlowTransform):
                x, log_det = transform.inverse_of_run(run, x)  # type: ignore[arg-type]
            else:
                z = transform.inv(x)
                log_det = -transform.log_abs_det_jacobian(z, x)
                inner = len(self.event_shape) - transform.domain.event_dim
                log_det = log_det.flatten(-inner).sum(-1) if inner else log_det
                x = z
            total = log_det if total is None else total + log_det
        return x, total, allowed

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return what is known of rows with missing entries: see :class:`Partial`.

        A row is exact where as many base values are known as entries are there: they then have the
        law of these entries. Other rows are importance-weighted.

        Arguments:
            x: rows ``(*, 1, D)`` or ``(*, K, D)``, with NaN for missing entries.
            draws: of each missing entry of rows that are not exact.
        """
        z, total = x, x.new_zeros(())
        for transform in reversed(self.transforms):
            back = optional(transform, "inverse_of_observed", lambda _: None)(z)
            if back is None:
                return importance(self, x, draws)
            z, log_det = back
            total = total + log_det
        exact = z.isnan().sum(-1) == x.isnan().sum(-1)
        exact = exact.expand(broadcast(x.shape[:-1], self.batch_shape))
        if not exact.any():
            return importance(self, x, draws)
        inner = observe(self.base, z, draws)
        missing, affine = x.isnan(), all(hasattr(t, "loc_and_scale") for t in self.transforms)

        def draw(number: int) -> Tensor:
            return torch.where(missing, self._push(inner.draw(number)), x)

        def mean() -> Tensor:
            pushed = self._push(inner.mean()) if affine else draw(PROBED).mean(0)
            return torch.where(missing, pushed, x)

        log_prob = (inner.log_prob + total).expand(exact.shape)
        found = Partial(log_prob, inner.error, inner.effective, mean, draw)
        return found if exact.all() else joined(exact, found, importance(self, x, draws))

    def _push(self, z: Tensor) -> Tensor:
        for transform in self.transforms:
            z = transform(z)
        return z

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._push(self._expanded_base().sample(Size(sample_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._push(self._expanded_base().rsample(Size(sample_shape)))

    def _scalings(self, what: str, estimate: str) -> list[tuple[Tensor, Tensor]]:
        """Return loc and scale of each transform, where all move each feature on its own."""
        scalings = [getattr(t, "loc_and_scale", None) for t in self.transforms]
        if None in scalings:
            self._refuse(what, estimate)
        return [scaling() for scaling in scalings]  # type: ignore[misc]

    def _whole(self, value: Tensor) -> Tensor:
        return value.expand(*self.batch_shape, *self.event_shape)

    @property
    def mean(self) -> Tensor:
        mean = self.base.mean
        for loc, scale in self._scalings("mean", "mean_estimate(draws=, seed=)"):
            mean = loc + scale * mean
        return self._whole(mean)

    @property
    def variance(self) -> Tensor:
        estimate = "mean_estimate(draws=, seed=, of=) with a function of the draws"
        variance = self.base.variance
        for _, scale in self._scalings("variance", estimate):
            variance = scale.square() * variance
        return self._whole(variance)

    def entropy(self) -> Tensor:
        entropy = self.base.entropy()
        for _, scale in self._scalings("entropy", "entropy_estimate(draws=, seed=)"):
            entropy = entropy + scale.abs().log().flatten(-len(self.event_shape)).sum(-1)
        return entropy.expand(self.batch_shape)

    def _rises(self) -> Tensor:
        """Return whether the one feature rises with that of the base, ``(*)``.

        Each transform is looked at on its own, in the middle of its domain: far out a slope is too
        small for a number.
        """
        falls = torch.zeros(self.batch_shape, dtype=torch.bool)
        with torch.inference_mode(False), torch.enable_grad(), local_seed(0):
            like = self._expanded_base().sample((len(LOOKED_AT),))
            points = like.new_tensor(LOOKED_AT).reshape(-1, *(1,) * (like.dim() - 1))
            for transform in self.transforms:
                z = transform_to(transform.domain)(points.expand_as(like)).detach().requires_grad_()
                pushed = type(self)(self.base, [transform])._push(z)
                (slope,) = torch.autograd.grad(pushed.sum(), z)
                falls = falls.to(like.device) ^ (slope.sign().sum(0).squeeze(-1) < 0)
        return ~falls

    def cdf(self, x: Tensor) -> Tensor:
        r"""Return :math:`P(X \le x)` ``(*)`` of rows ``(*, 1)``."""
        check_single(self)
        check_event(x, self.event_shape)
        z, _, good = self._pull(x)
        share = cdf_of(self.base, z)
        share = torch.where(self._rises(), share, 1 - share)
        if good is None:
            return share
        inner = transform_to(self.support)(torch.zeros_like(z)).squeeze(-1)
        return torch.where(good, share, (x.squeeze(-1) > inner).to(share))

    def icdf(self, share: Tensor) -> Tensor:
        """Return the quantiles ``(*, 1)`` at shares ``(*)``."""
        check_single(self)
        check_share(share)
        return self._push(icdf_of(self.base, torch.where(self._rises(), share, 1 - share)))

    def _expanded_base(self) -> Distribution:
        same = self.base.batch_shape == self.batch_shape
        return self.base if same else self.base.expand(self.batch_shape)
