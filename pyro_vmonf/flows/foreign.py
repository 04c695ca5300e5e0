"""Flows of other libraries, and modules of a user, as the components of a bank."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import (
    Distribution,
    Normal,
    Transform,
    TransformedDistribution,
    constraints,
)
from torch.func import functional_call

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_filters, training
from pyro_vmonf._utils.sameness import difference
from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.distributions.estimates import Estimated
from pyro_vmonf.distributions.support import (
    Several,
    inside,
    is_real,
    is_same,
    possible,
    support_of,
)
from pyro_vmonf.flows.constant import ConstantDistribution
from pyro_vmonf.flows.functional import Use
from pyro_vmonf.flows.transformed import TransformedFlow
from pyro_vmonf.program import Registered

Component = nn.Module | Distribution | Transform | Sequence[Transform]

DRAWS = 64  # by which a bounded support is confirmed


class Replicated(Registered):
    """A bank of K components that a function makes one by one: flows of any library.

    One batched call computes the K densities where a check at construction allows it: the
    components differ only in the values of their tensors, and one call gives the same values and
    gradients as K calls. Otherwise the bank calls the components one after the other; ``repr``
    shows the reason. Draws always come from one component after the other. The check holds for the
    components as they are at construction: their parameters may change, but no other attribute.

    Tensors of transforms that are no modules, such as a permutation, are buffers of the bank, and a
    ``torch.nn.Parameter`` among them is trained.

    Arguments:
        factory: function that returns a new component: a module whose call returns a distribution
            of ``batch_shape`` ``()`` (zuko's flows are such, and take a context), a distribution, a
            ``TransformedDistribution``, or transforms from base to data.
        components: number of components *K*.
        features: number of features *D*; needed for bare transforms, which get a standard normal
            base.
        reverse: for transforms: run each of them from data to base. Pyro's planar, radial,
            Sylvester, polynomial and neural autoregressive transforms score data only this way,
            and its masked autoregressive ones need a pass for each feature otherwise. In return
            they draw slowly, or not at all.
        vectorize: ``False`` calls the components one after the other in any case.
        context_features: features *H* of the rows' context, if the components take one.
        support: the support of the components, if their distributions have none. By default it is
            that of their base where this is bounded and holds their draws (the torus of zuko's
            circular splines), and the whole space otherwise. Rows of a bounded support keep their
            units.

    Raises:
        TypeError: if the function returns something else.
        ValueError: if a component cannot score data, or has a batch shape.

    Example:
        >>> from pyro.distributions.transforms import affine_coupling
        >>> bank = Replicated(lambda: [affine_coupling(2), affine_coupling(2)], 5, features=2)
        >>> bank().log_prob(torch.zeros(7, 1, 2)).shape, bank.vectorized
        (torch.Size([7, 5]), True)
    """

    def __init__(
        self,
        factory: Callable[[], Component],
        components: int,
        *,
        features: int | None = None,
        reverse: bool = False,
        vectorize: bool = True,
        context_features: int = 0,
        support: constraints.Constraint | None = None,
    ) -> None:
        super().__init__()
        self.support = support
        self.components = check_positive("components", components)
        parts = [_as_module(factory(), features, reverse) for _ in range(components)]
        self.context_features = check_positive("context_features", context_features, minimum=0)
        for part in parts:
            _check(part, context_features)
        self.domain = _bounded_domain(parts[0], context_features) if support is None else support
        self.parts = nn.ModuleList(parts)
        with torch.no_grad():
            probe = _probe(parts[0], context_features, 1)
            first, *others = [Use(part)(support_of, probe) for part in parts]
        self.event_dim: int = Use(parts[0])(lambda d: len(d.event_shape), probe)
        # Each component then has a support of its own.
        self.apart = self.domain is None and not all(is_same(first, own) for own in others)
        self.why_not = _why_not(parts, context_features) if vectorize else "vectorize=False"

    @property
    def vectorized(self) -> bool:
        """True if one batched call computes the K densities."""
        return self.why_not is None

    def forward(self, context: Tensor | None = None) -> ReplicatedDistribution:
        parts, domain = list(self.parts), self.domain
        if self.apart:
            found = [Use(part)(support_of, context) for part in parts]
            domain = Several(found, [1] * len(found), self.event_dim)
        return ReplicatedDistribution(parts, context, self.vectorized, support=domain)

    def extra_repr(self) -> str:
        how = "in one call" if self.vectorized else f"one after the other ({self.why_not})"
        return f"components={self.components}, {how}"


class ReplicatedDistribution(Estimated):
    """K distributions of K modules, side by side on the last batch dimension.

    Arguments:
        parts: the modules.
        context: the context ``(*, H)`` of the rows, an argument of each call.
        vectorized: compute the densities in one batched call.
        batch_shape: ``(*, K)`` by default.
        support: the support of the components by default, or the whole space if they have none.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        parts: Sequence[nn.Module],
        context: Tensor | None,
        vectorized: bool,
        batch_shape: Sequence[int] | None = None,
        support: constraints.Constraint | None = None,
    ) -> None:
        self.parts = list(parts)
        self.context = context
        self.vectorized = vectorized
        like = self._of(0)
        shape = (*like.batch_shape, len(parts)) if batch_shape is None else batch_shape
        self._support = support_of(like) if support is None else support
        self._reparametrized = like.has_rsample
        super().__init__(Size(shape), like.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self._reparametrized

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        return self._support

    def expand(
        self, batch_shape: Sequence[int], _instance: object = None
    ) -> ReplicatedDistribution:
        return ReplicatedDistribution(
            self.parts, self.context, self.vectorized, batch_shape, self._support
        )

    def _of(self, number: int) -> Distribution:
        return Use(self.parts[number])(lambda d: d, self.context)  # type: ignore[no-any-return]

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        axis = -1 - len(self.event_shape)
        if isinstance(self._support, Several):
            return self._log_prob_apart(x, self._support.supports)
        x, good = inside(self._support, x, len(self.event_shape))
        shared = x.shape[axis] == 1
        if self.vectorized:
            rows = x.squeeze(axis).unsqueeze(0).expand(len(self.parts), *x.squeeze(axis).shape)
            log_prob = self._in_one_call(rows if shared else x.movedim(axis, 0))
        else:
            xs = [x.squeeze(axis)] * len(self.parts) if shared else x.unbind(axis)
            each = [self._of(i).log_prob(own) for i, own in enumerate(xs)]
            log_prob = torch.stack(torch.broadcast_tensors(*each), -1)
        log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
        return possible(log_prob, good)

    def _log_prob_apart(self, x: Tensor, supports: Sequence[Any]) -> Tensor:
        """Return the densities of components that have supports of their own."""
        event_dim = len(self.event_shape)
        each, xs = [], x.expand(broadcast(x.shape, (len(self.parts), *self.event_shape)))
        for i, own in enumerate(xs.unbind(-1 - event_dim)):
            row, good = inside(supports[i], own, event_dim)
            each.append(possible(self._of(i).log_prob(row), good))
        log_prob = torch.stack(torch.broadcast_tensors(*each), -1)
        return log_prob.expand(broadcast(log_prob.shape, self.batch_shape))

    def _in_one_call(self, x: Tensor) -> Tensor:
        """Return the densities ``(*, K)`` of rows ``(K, *, *event_shape)``."""
        # Each call stacks anew, because the components keep their own parameters.
        states = [dict(Use(part).named_parameters()) for part in self.parts]
        parameters = {name: torch.stack([s[name] for s in states]) for name in states[0]}
        held = [dict(Use(part).named_buffers()) for part in self.parts]
        buffers, lies = {}, {}
        for name, first in held[0].items():
            # Equal buffers, such as masks, get no batch: some code reads their values.
            same = all(torch.equal(first, other[name]) for other in held[1:])
            buffers[name] = first if same else torch.stack([other[name] for other in held])
            lies[name] = None if same else 0
        template = Use(self.parts[0])

        def score(parameters: Any, buffers: Any, rows: Tensor) -> Tensor:
            state = {**parameters, **buffers}
            function = lambda found: found.log_prob(rows)  # noqa: E731
            result: Tensor = functional_call(template, state, (function, self.context))
            return result

        every = torch.vmap(score, in_dims=(0, lies, 0), out_dims=-1)
        result: Tensor = every(parameters, buffers, x)
        return result

    def _draws(self, sample_shape: Sequence[int], draw: str) -> Tensor:
        count = self.batch_shape[:-1]
        each = []
        for i in range(len(self.parts)):
            part = self._of(i)
            part = part if part.batch_shape == count else part.expand(count)
            each.append(getattr(part, draw)(Size(sample_shape)))
        return torch.stack(each, -1 - len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._draws(sample_shape, "sample")

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._draws(sample_shape, "rsample")


def _as_module(component: Component, features: int | None, reverse: bool) -> nn.Module:
    """Return a component as a module."""
    if isinstance(component, nn.Module) and not isinstance(component, Transform):
        return component
    if isinstance(component, TransformedDistribution):
        return TransformedFlow(component.transforms, component.base_dist, reverse=reverse)
    if isinstance(component, Distribution):
        return ConstantDistribution(component)
    transforms = [component] if isinstance(component, Transform) else component
    if not isinstance(transforms, (list, tuple)) or not all(
        isinstance(t, (Transform, ConditionalTransform)) for t in transforms
    ):
        raise TypeError(
            f"the factory returned a {type(component).__name__}; expected a module whose call "
            "returns a distribution, a distribution, or transforms"
        )
    if features is None:
        raise ValueError("the factory returned bare transforms; pass features=, the number of them")
    normal = Normal(torch.zeros(features), 1.0, validate_args=False)
    base = torch.distributions.Independent(normal, 1, validate_args=False)
    return TransformedFlow(transforms, base, reverse=reverse)


def _probe(part: nn.Module, context_features: int, rows: int) -> Tensor | None:
    if not context_features:
        return None
    like = next(part.parameters(), torch.zeros(()))
    with local_seed(0):
        return torch.randn(rows, context_features).to(like)


def _check(part: nn.Module, context_features: int) -> None:
    """Refuse a component that returns no distribution, has a batch, or cannot score data."""
    context = _probe(part, context_features, 2)
    batch_shape = (2,) if context_features else ()
    with evaluating(part), torch.no_grad():
        found = Use(part)(lambda d: d, context)
    if not isinstance(found, Distribution):
        raise TypeError(
            f"a component's call returned a {type(found).__name__}; expected a distribution"
        )
    if found.batch_shape != batch_shape:
        raise ValueError(
            f"a component has batch_shape {tuple(found.batch_shape)} and event_shape "
            f"{tuple(found.event_shape)}; expected batch_shape {batch_shape}: K components come "
            "from K calls of the factory, and a distribution of batch_shape (K,) is a bank as it is"
        )
    rows = torch.zeros(2, *found.event_shape)
    rows = rows.to(next(part.parameters(), rows))
    try:
        with evaluating(part), torch.no_grad():
            Use(part)(lambda d: d.log_prob(rows), context)
    except (KeyError, NotImplementedError) as error:
        names = [type(t).__name__ for t in getattr(part, "transforms", [found])]
        raise ValueError(
            f"{', '.join(dict.fromkeys(names))}: this cannot score data ({error}). Pass "
            "reverse=True, which runs the transforms from data to base and gives up drawing, or "
            "take a flow that goes both ways: RealNVP, NSF, MAF"
        ) from error


def _bounded_domain(part: nn.Module, context_features: int) -> constraints.Constraint | None:
    """Return the bounded set of a component whose distribution does not name its support."""
    context = _probe(part, context_features, 1)
    with evaluating(part), local_seed(0), torch.no_grad():
        found = Use(part)(lambda d: d, context)
        support = getattr(getattr(found, "base", None), "support", None)
        if _names_its_support(found) or support is None or is_real(support):
            return None
        draws = found.sample((DRAWS,))
        return support if bool(support.check(draws).all()) else None


def _why_not(parts: Sequence[nn.Module], context_features: int) -> str | None:
    """Return the reason against one batched call of K components, or ``None`` if there is none."""
    for other in parts[1:]:
        found = difference(parts[0], other)
        if found is not None:
            return f"they differ in {found}"
    if not any(True for _ in parts[0].parameters()):
        return "there are no parameters to stack"
    count = 3 * len(parts)
    context = _probe(parts[0], context_features, count)
    for mode in (evaluating, training):
        trial = nn.ModuleList(copy.deepcopy(list(parts)))
        buffers = [b.clone() for b in trial.buffers()]
        try:
            with local_seed(0), mode(trial):
                x = _rows(trial, context, count)
                looped = _value_and_gradients(trial, x, context, vectorized=False)
        except (RuntimeError, ValueError) as error:
            return f"they could not be tried: {_first_words(error)}"
        now = list(trial.buffers())
        if not all(torch.equal(b, old) for b, old in zip(now, buffers, strict=True)):
            return "their buffers change when they are called"
        try:
            with local_seed(0), mode(trial), own_filters():
                warnings.simplefilter("error")  # vmap warns where it falls back to a loop
                together = _value_and_gradients(trial, x, context, vectorized=True)
        except Exception as error:
            return f"torch.vmap does not take them: {_first_words(error)}"
        for value, batched in zip(looped, together, strict=True):
            if not torch.allclose(value, batched, rtol=1e-4, atol=1e-5, equal_nan=True):
                return "one call of all gave other values than one call of each"
    return None


def _first_words(error: Exception) -> str:
    return (str(error).strip().partition(". ")[0].splitlines() or [type(error).__name__])[0]


def _rows(parts: nn.ModuleList, context: Tensor | None, count: int) -> Tensor:
    """Return rows ``(count, 1, *event_shape)``, in the support if the components can draw."""
    distribution = ReplicatedDistribution(list(parts), context, vectorized=False)
    like = next(parts.parameters())
    with torch.no_grad():
        try:
            draws = distribution.sample(() if context is not None else (3,))
        except (NotImplementedError, RuntimeError, KeyError):
            draws = torch.full((1,), torch.nan)
        if not draws.isfinite().all():
            return torch.randn(count, 1, *distribution.event_shape).to(like)
        if context is not None:
            return draws[:, :1].to(like)
        return draws.flatten(0, 1).unsqueeze(1).to(like)


def _value_and_gradients(
    parts: nn.ModuleList, x: Tensor, context: Tensor | None, *, vectorized: bool
) -> list[Tensor]:
    log_prob = ReplicatedDistribution(list(parts), context, vectorized).log_prob(x)
    parameters = [p for p in parts.parameters() if p.requires_grad]
    if not parameters or not log_prob.requires_grad:
        return [log_prob]
    scale = torch.linspace(1, 2, log_prob.numel(), dtype=x.dtype, device=x.device)
    total = (log_prob * scale.reshape(log_prob.shape)).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [log_prob, *(torch.zeros(()) if g is None else g for g in gradients)]


def _names_its_support(found: Distribution) -> bool:
    try:
        return found.support is not None
    except NotImplementedError:
        return False
