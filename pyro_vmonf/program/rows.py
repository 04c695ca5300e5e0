"""The plate of the rows, and the evidence that they carry."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.runtime import _inspect, am_i_wrapped, get_plates
from torch import Tensor

from pyro_vmonf._utils.evidence import check_values


def in_plate() -> bool:
    """Return whether an enclosing plate is vectorised."""
    return any(frame.vectorized for frame in get_plates())


def free_dim() -> int:
    """Return the first dimension from the right that no enclosing plate holds."""
    taken = {frame.dim for frame in get_plates()}
    return next(dim for dim in itertools.count(-1, -1) if dim not in taken)


def enclosing() -> tuple[float, Tensor | None]:
    """Return what the handlers around a program say of its rows.

    Returns:
        The share of the data that subsampled plates draw, and how much each row counts by masks
        and scales ``(*)``; ``None`` where all count alike. A scale of one number is left out, since
        it scales the prior as well.
    """
    if not am_i_wrapped():
        return 1.0, None
    found = _inspect()
    share, weight = 1.0, None
    for frame in found["cond_indep_stack"]:
        share *= (frame.size if frame.vectorized else 1) / (frame.full_size or frame.size)
    scale, mask = found["scale"], found["mask"]
    if isinstance(scale, Tensor) and scale.numel() > 1:
        weight = scale
    if mask is not None:
        weight = torch.as_tensor(mask) * (1.0 if weight is None else weight)
    return share, weight


def _validates(values: Tensor) -> bool:
    """Return whether Pyro validates, and values can be looked at: nothing traces or maps them."""
    return (
        is_validation_enabled()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )


def _check_dims(name: str, value: Tensor | None, allowed: int, wanted: str) -> None:
    """Refuse what has more dimensions than the rows: it would lie on that of the components.

    Raises:
        ValueError: if it does.
    """
    if value is not None and value.dim() > allowed:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, more dimensions than the rows; pass {wanted}"
        )


@contextmanager
def data_plate(
    name: str,
    x: Tensor | None,
    event_shape: Sequence[int],
    *,
    index: Tensor | None = None,
    size: int | None = None,
    sample_weight: Tensor | None = None,
    y: Tensor | None = None,
) -> Iterator[Any]:
    """Enter the plate of the rows, at the first dimension that no enclosing plate holds.

    Arguments:
        name: name of the plate.
        x: rows ``(*, *event_shape)``, or ``None`` to generate.
        event_shape: shape of one row.
        index: positions ``(B,)`` of the rows among ``size``; their own order by default.
        size: number of rows of the whole data set; those given by default.
        sample_weight: non-negative weights that broadcast with ``*``.
        y: labels ``(*)`` or log-likelihoods ``(*, K)``, whose dimensions are looked at.

    Raises:
        ValueError: if the shape of ``x``, ``y`` or ``sample_weight`` does not fit, or the number of
            rows cannot be known.
    """
    dim = free_dim()
    allowed = max([-dim, *(-frame.dim for frame in get_plates() if frame.dim is not None)])
    if x is not None:
        allowed = max(allowed, x.dim() - len(event_shape))
    _check_dims("sample_weight", sample_weight, allowed, "one weight a row, (N,)")
    shapes = "labels (N,), or log-likelihoods (N, K)"
    _check_dims("y", y, allowed + (y is not None and y.is_floating_point()), shapes)
    rows = None
    if x is not None:
        event_dim = len(event_shape)
        if tuple(x.shape[x.dim() - event_dim :]) != tuple(event_shape):
            raise ValueError(
                f"x has shape {tuple(x.shape)} but one row of the components has shape "
                f"{tuple(event_shape)}; pass x of shape (N, {', '.join(map(str, event_shape))})"
            )
        if x.dim() - event_dim < -dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; inside the plates that enclose the mixture its "
                f"rows are on dimension {dim - event_dim}"
            )
        rows = x.shape[dim - event_dim]
    if size is None:
        if rows is None:
            raise ValueError("there is no x; pass size, the number of rows to generate")
        if index is not None:
            raise ValueError("index was given without size; pass size, the rows of the whole data")
        size = rows
    if rows is not None and size < rows:
        raise ValueError(f"size is {size} but x has {rows} rows; pass the rows of the whole data")
    if index is None and rows is not None and rows != size:
        index = torch.arange(rows)
    with pyro.plate(name, size, subsample=index, dim=dim) as positions:
        if sample_weight is None:
            yield positions
        else:
            if _validates(sample_weight) and not bool((sample_weight >= 0).all()):
                raise ValueError("sample_weight has negative values or NaN; expected at least 0")
            counted = sample_weight > 0  # Pyro scales by positive numbers only
            weight = sample_weight.where(counted, torch.ones_like(sample_weight))
            mask = poutine.mask(mask=counted)  # type: ignore[call-overload]
            with mask, poutine.scale(scale=weight):
                yield positions


@dataclass(frozen=True)
class Rows:
    """The rows as a guide sees them: the arguments of the call of the program.

    Arguments:
        x: rows ``(*, *event_shape)``.
        y: their labels ``(*)`` or log-likelihoods ``(*, K)``.
        index, size: their positions ``(B,)`` in the whole data set, and its rows.
        sample_weight: their weights, which broadcast with ``*``.
        given: their context ``(*, H)``.
        fraction: the share of the data set's rows that they are.
        outer: how much they count by masks and scales around the program, which broadcasts with
            ``*``.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor | None
    size: int | None
    sample_weight: Tensor | None
    given: Tensor | None
    fraction: float = 1.0
    outer: Tensor | None = None

    def counted(self) -> Tensor | None:
        """Return how much each row counts, by its weight and by what is around the program."""
        if self.outer is None or self.sample_weight is None:
            return self.sample_weight if self.outer is None else self.outer.to(self.x)
        return self.sample_weight * self.outer

    def plate(self, name: str, event_shape: Sequence[int]) -> AbstractContextManager[Any]:
        """Return the plate of the rows: see :func:`data_plate`."""
        return data_plate(
            name,
            self.x,
            event_shape,
            index=self.index,
            size=self.size,
            sample_weight=self.sample_weight,
            y=self.y,
        )


def log_evidence(y: Tensor, num_components: int, dtype: torch.dtype) -> Tensor:
    """Return what ``y`` says of each row's component, as log p(y|c) of shape ``(*, K)``.

    Arguments:
        y: integer labels ``(*)``, −1 for unlabelled; or log-likelihoods ``(*, K)``, of which those
            that are −∞ rule a component out.
        num_components: number of components *K*.
        dtype: floating dtype of the result.

    Raises:
        TypeError: if labels are truth values.
        ValueError: if log-likelihoods do not have K columns; and, where Pyro validates, if labels
            are out of range or log-likelihoods say nothing.

    Example:
        >>> log_evidence(torch.tensor([-1, 1]), 2, torch.float32)
        tensor([[0., 0.],
                [-inf, 0.]])
    """
    if y.dtype == torch.bool:
        raise TypeError(
            f"y has dtype {y.dtype}; expected whole numbers of components, such as y.long()"
        )
    if y.is_floating_point() and y.shape[-1:] != (num_components,):
        raise ValueError(
            f"y holds log-likelihoods of shape {tuple(y.shape)}; expected "
            f"(N, {num_components}), or integer labels of shape (N,)"
        )
    if _validates(y):
        check_values(y, num_components)
    if y.is_floating_point():
        return y.to(dtype)
    classes = torch.arange(num_components, device=y.device)
    excluded = (y.unsqueeze(-1) != classes) & (y.unsqueeze(-1) >= 0)
    return torch.zeros(excluded.shape, dtype=dtype, device=y.device).masked_fill(
        excluded, -torch.inf
    )


def with_evidence(log_q: Tensor, y: Tensor | None) -> Tensor:
    """Return the normalised sum of a log-posterior ``(*, K)`` and the evidence, if there is any."""
    if y is None:
        return log_q
    return (log_q + log_evidence(y, log_q.shape[-1], log_q.dtype)).log_softmax(-1)


def posterior_of_joint(joint: Tensor, log_weights: Tensor, y: Tensor | None) -> Tensor:
    r"""Return :math:`\log p(c \mid x, y)` from :math:`\log p(c, x)` ``(*, K)`` and evidence."""
    # A row so far off that no component has a density for it keeps the prior.
    nowhere = (joint == -torch.inf).all(-1, keepdim=True)
    joint = torch.where(nowhere, log_weights, joint)
    if y is not None:
        joint = joint + log_evidence(y, joint.shape[-1], joint.dtype)
    return joint.log_softmax(-1)
