"""The base class of all transforms: a module that maps base to data and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Self, TypedDict, cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf._utils.repr import Recorded, arguments_of
from pyro_vmonf._utils.shapes import broadcast
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.contracts import optional
from pyro_vmonf.nn.columns import Columns
from pyro_vmonf.nn.made import MaskedMLP
from pyro_vmonf.nn.mlp import MLP, Activation, Linear, start_near_zero, to_columns

Restore = Callable[[Tensor], Tensor]


class FlowTransform(Recorded, TransformModule):
    r"""A bijection :math:`x = h(z)` from base to data, with its log-determinant.

    To implement a transform, derive from this class, pass ``batch_shape`` on, and write the two
    methods :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`. The parameters have
    ``batch_shape`` on their left: ``()`` is shared by all components, ``(K,)`` is one for each of K
    components, and a tensor ``(*, D)`` that comes in broadcasts with it on the right of ``*``.

    ``batched_buffers`` names the buffers that also have ``batch_shape``. Restarts call
    ``reset_parameters``, which draws the parameters of the transform anew.

    One call of :meth:`inverse_of_run` inverts neighbours in a chain with the same ``layout``, which
    can pass on their values in a form of their own; with ``in_columns`` it can leave them so, for a
    base that scores :class:`~pyro_vmonf.nn.columns.Columns`. A transform has no cache.

    Arguments:
        batch_shape: the batch shape of the parameters.
    """

    bijective = True
    batched_buffers: ClassVar[tuple[str, ...]] = ()
    layout: Hashable | None = None
    in_columns = False
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.batch_shape = torch.Size(batch_shape)

    def condition(self, context: Tensor) -> FlowTransform:
        """Return the transform for rows with a context ``(*, H)``, or itself if it takes none.

        Arguments:
            context: tensor whose ``*`` broadcasts with the ``*`` of the rows.

        Raises:
            ValueError: if the context has another number of features than the transform takes.
        """
        return self

    def _with_context(self, context: Tensor) -> Self:
        """Return a copy with the same parameters and a context."""
        bound = copy.copy(self)
        bound.__dict__["context"] = context
        return bound

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`h(z)` of shape ``(*, D)`` and :math:`\log|\det\partial h|` of shape
        ``(*)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no forward_and_log_det, which draws need; write it"
        )

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`h^{-1}(x)` of shape ``(*, D)`` and :math:`\log|\det\partial h^{-1}|` of
        shape ``(*)``."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse_and_log_det, which densities need; write it"
        )

    def inverse_of_run(self, run: Sequence[FlowTransform], x: Tensor) -> tuple[Tensor, Tensor]:
        """Invert transforms of this one's layout, from data to base, this one first."""
        total: Tensor | float = 0.0
        for transform in run:
            x, log_det = transform.inverse_and_log_det(x)
            total = total + log_det
        return x, total  # type: ignore[return-value]

    def inverse_in_columns(self, run: Sequence[FlowTransform], x: Tensor) -> tuple[Columns, Tensor]:
        """Invert as :meth:`inverse_of_run` does, and leave the points as columns.

        Transforms with ``in_columns`` have it. The log-determinants are ``(groups, 1, rows)``.
        """
        raise NotImplementedError

    def inverse_of_observed(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return base values that entries which are there determine, and their log-determinant.

        ``None``, the default, says that the transform does not know. Then all values count as
        unknown.

        Arguments:
            x: rows ``(*, D)``, with NaN for missing entries; unknown values come back as NaN too.
        """
        return None

    def start_(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Start from data, as a normalisation does, and return the inverses of the rows.

        Arguments:
            x: rows on the side of the data, ``(*, *event_shape)``.
            weight: weight of each row for each component, ``(*)``; equal by default.
        """
        return self.inverse_and_log_det(x)[0]

    @property
    def waits(self) -> bool:
        """True while a buffer ``started`` of the transform is false: :meth:`start_` has not run."""
        return not self._buffers.get("started", True)

    def _call(self, z: Tensor) -> Tensor:
        return self.forward_and_log_det(z)[0]

    def _inverse(self, x: Tensor) -> Tensor:
        return self.inverse_and_log_det(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at base ``x``, from data ``y``, which is fast for a MAF."""
        return -self.inverse_and_log_det(y)[1]

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        return self  # a transform has no cache

    def extra_repr(self) -> str:
        return arguments_of(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def conditioned(transform: Any, context: Tensor | None) -> Any:
    """Return a transform for rows with a context; one that takes no context stays itself."""
    if context is None:
        return transform
    return optional(transform, "condition", lambda _: transform)(context)


def constant_log_det(log_det: Tensor, x: Tensor, event_dim: int = 1) -> Tensor:
    """Return a constant log-determinant with the batch shape of ``x``."""
    return log_det.expand(broadcast(log_det.shape, x.shape[: x.dim() - event_dim]))


class NetworkOptions(TypedDict, total=False):
    """The arguments that the transforms with a network share."""

    hidden: Sequence[int]
    activation: Activation
    context_features: int
    batch_shape: Sequence[int]


class Conditional(FlowTransform):
    """A transform whose network sees features, and the context of the rows if there is one.

    A subclass writes :meth:`_through`, which sends rows through a run of such transforms.

    Arguments:
        context_features: number of features *H* of the context; 0 if there is none.
        batch_shape: the batch shape of the parameters.
    """

    network: MLP | MaskedMLP
    hidden: tuple[int, ...]
    activation: Activation
    context: Tensor | None = None

    def __init__(self, *, context_features: int, batch_shape: Sequence[int]) -> None:
        super().__init__(batch_shape=batch_shape)
        self.context_features = check_positive("context_features", context_features, minimum=0)

    def reset_parameters(self) -> None:
        """Draw the network anew, near the identity."""
        layers = cast("Sequence[Linear]", self.network.layers)
        for layer in layers:
            layer.reset_parameters()
        start_near_zero(layers[-1])

    def sees(self) -> bool:
        """Return whether the network looks at its features: a last layer of zero does not."""
        return bool(self.network.layers[-1].weight.any())  # type: ignore[union-attr, operator]

    def condition(self, context: Tensor) -> FlowTransform:
        if not self.context_features:
            return self
        if context.shape[-1:] != (self.context_features,):
            raise ValueError(
                f"the context has shape {tuple(context.shape)}; this {type(self).__name__} takes "
                f"(*, {self.context_features})"
            )
        return self._with_context(context)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _as_rows(*self._through([self], z, inverse=False))

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _as_rows(*self._through([self], x, inverse=True))

    def inverse_of_run(self, run: Sequence[FlowTransform], x: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout is None:
            return super().inverse_of_run(run, x)
        return _as_rows(*self._through(run, x, inverse=True))

    def inverse_in_columns(self, run: Sequence[FlowTransform], x: Tensor) -> tuple[Columns, Tensor]:
        return self._through(run, x, inverse=True)

    def _through(
        self, run: Sequence[FlowTransform], rows: Tensor, *, inverse: bool
    ) -> tuple[Columns, Tensor]:
        """Return columns and log-determinants ``(groups, 1, rows)``."""
        raise NotImplementedError

    def columns_of(self, rows: Tensor) -> tuple[Tensor, Tensor | None, Restore]:
        """Return rows and context as columns, and the inverse function: see :func:`to_columns`.

        Raises:
            ValueError: if the transform takes a context and has none.
        """
        context = self.context
        if not self.context_features:
            columns, restore = to_columns(rows, self.batch_shape)
            return columns, None, restore
        if context is None:
            raise ValueError(
                f"this {type(self).__name__} takes a context of {self.context_features} features; "
                "call the bank with it, or pass given= to the mixture"
            )
        shape = torch.broadcast_shapes(rows.shape[:-1], context.shape[:-1])
        columns, restore = to_columns(rows.expand(*shape, rows.shape[-1]), self.batch_shape)
        beside, _ = to_columns(context.expand(*shape, context.shape[-1]), self.batch_shape)
        return columns, beside, restore


def _as_rows(columns: Columns, log_det: Tensor) -> tuple[Tensor, Tensor]:
    return columns.rows(), columns.restore(log_det).squeeze(-1)
