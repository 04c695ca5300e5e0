"""What every transform of the library is: a module that maps base to data and back."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import constraints


class FlowTransform(TransformModule):
    r"""A bijection :math:`x = h(z)` from base to data, which computes its log-determinant with it.

    To implement a transform, derive from this class, pass ``batch_shape`` on, and write the two
    methods :meth:`forward_and_log_det` and :meth:`inverse_and_log_det`. The parameters have
    ``batch_shape`` on their left: ``()`` is shared by all components, ``(K,)`` is one for each of K
    components, and a tensor ``(*, D)`` that comes in broadcasts with it on the right of ``*``.

    Buffers that also have it are named in ``batched_buffers``; where restarts are wanted,
    :meth:`reset_parameters` draws the transform's own parameters anew.

    Neighbours in a chain with the same ``layout`` are inverted by one call of
    :meth:`inverse_of_run`, so that they can hand on their values in a form of their own.

    Nothing is cached, so no value outlives an optimiser's step.

    Arguments:
        batch_shape: the batch shape of the parameters.
    """

    bijective = True
    batched_buffers: ClassVar[tuple[str, ...]] = ()
    layout: Hashable | None = None
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.batch_shape = torch.Size(batch_shape)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`h(z)` of shape ``(*, D)`` and :math:`\log|\det\partial h|` of shape
        ``(*)``."""
        raise NotImplementedError

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`h^{-1}(x)` of shape ``(*, D)`` and :math:`\log|\det\partial h^{-1}|` of
        shape ``(*)``."""
        raise NotImplementedError

    def inverse_of_run(self, run: Sequence[FlowTransform], x: Tensor) -> tuple[Tensor, Tensor]:
        """Invert transforms of this one's layout, from data to base, this one first."""
        total: Tensor | float = 0.0
        for transform in run:
            x, log_det = transform.inverse_and_log_det(x)
            total = total + log_det
        return x, total  # type: ignore[return-value]

    def _call(self, z: Tensor) -> Tensor:
        return self.forward_and_log_det(z)[0]

    def _inverse(self, x: Tensor) -> Tensor:
        return self.inverse_and_log_det(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at base ``x``, from data ``y`` (a MAF's cheap side)."""
        return -self.inverse_and_log_det(y)[1]

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        return self  # keeping no cache is part of the contract

    def extra_repr(self) -> str:
        return f"batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""


def constant_log_det(log_det: Tensor, x: Tensor, event_dim: int = 1) -> Tensor:
    """Give a log-determinant that does not depend on ``x`` the batch shape of ``x``."""
    return log_det.expand(torch.broadcast_shapes(log_det.shape, x.shape[: x.dim() - event_dim]))
