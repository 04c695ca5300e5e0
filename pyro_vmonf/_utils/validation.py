"""Checks of a user's input: tensors of the model's kind, or an error with a reason."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from pyro_vmonf._utils.contexts import own_filters
from pyro_vmonf._utils.frames import as_frame, is_frame, numeric, ordered
from pyro_vmonf._utils.plain import plain
from pyro_vmonf._utils.warned import warn

LOST_ALONE = 1e-2  # of the one context there is, above which rounding is said
LOST = 1e-3  # of a column's standard deviation, above which rounding is refused
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch cannot compare


def floating_buffer(module: nn.Module) -> Tensor:
    """Return a floating tensor of the module, whose dtype and device the data are to have."""
    for tensor in chain(module.parameters(), module.buffers()):  # most often the first one
        if tensor.is_floating_point():
            return tensor
    return torch.empty(0)


def listed(positions: Tensor, limit: int = 5) -> str:
    """Return the first few positions as text."""
    shown = ", ".join(str(int(i)) for i in positions[:limit])
    return shown + (f" and {len(positions) - limit} more" if len(positions) > limit else "")


def _to_tensor(values: Any) -> Tensor:
    """Return an array as a tensor, of the same memory where that can be (a memory-mapped file)."""
    array = np.asarray(values)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with own_filters():  # of arrays that are read-only: nothing here writes to them
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(array)


def _bad_rows(x: Tensor, missing: bool = False, chunk_size: int = 2**18) -> Tensor:
    """Return the positions of rows that are not finite, without a mask of the whole array.

    Arguments:
        x: the rows.
        missing: let NaN pass.
        chunk_size: rows that are looked at together.
    """
    is_bad = torch.isinf if missing else lambda part: ~part.isfinite()
    bad = [is_bad(part).flatten(1).any(1) for part in x.split(chunk_size)]
    return torch.cat(bad).nonzero().squeeze(1)


def has_gaps(x: Tensor) -> bool:
    """Return whether rows have missing entries, NaN; nobody looks while a graph is made."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    while is_functorch_wrapped_tensor(x):  # under torch.vmap nobody branches by a part of the rows
        x = get_unwrapped(x)
    return bool(x.isnan().any())


def as_tensor(name: str, values: Any, *, missing: bool = False) -> Tensor:
    """Return a user's numbers as a tensor; columns that are numbered from 0 on by their numbers.

    Arguments:
        name: of the argument, for messages.
        values: the numbers.
        missing: missing values of a frame become NaN.

    Raises:
        TypeError: if they are no array of real numbers, a column of a frame is none, or entries
            are masked.
        ValueError: if a column of a frame has missing values.
    """
    if isinstance(values, Iterator):
        raise TypeError(
            f"{name} is a {type(values).__name__}, which can be gone through only once; pass its "
            "rows as one array, such as torch.stack(list(rows)), or a DataLoader"
        )
    values = numeric(ordered(values, None), name, missing=missing)
    if isinstance(values, Tensor) and values.layout is not torch.strided:
        raise TypeError(f"{name} is a sparse tensor; pass {name}.to_dense()")
    try:
        # A frame's numbers may lie column by column; sums then end in other last digits.
        whole = isinstance(values, Tensor)
        values = values.detach() if whole else _to_tensor(values).contiguous()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} is a {type(values).__name__} that is no numeric array; pass a tensor or numpy "
            f"array ({error})"
        ) from error
    if values.is_complex():
        raise TypeError(f"{name} has dtype {values.dtype}; expected real numbers")
    if values.dtype in UNSIGNED:
        values = values.to(torch.int64)
        if bool((values < 0).any()):
            raise ValueError(f"{name} has whole numbers beyond the largest of torch.int64")
    return values


def check_rows(
    x: Any,
    event_shape: Sequence[int],
    like: Tensor,
    *,
    keeps: Callable[[Tensor], bool] | None = None,
    first: int = 0,
    missing: bool = False,
) -> Tensor:
    """Return the rows ``(N, *event_shape)`` as a tensor with the dtype and device of ``like``.

    Arguments:
        x: the rows.
        event_shape: shape of one.
        like: a tensor of the model's kind.
        keeps: function that says whether rows in float64 stay in float64.
        first: number of the first row, for messages.
        missing: let NaN pass, the mark of a missing entry.

    Raises:
        TypeError: if ``x`` is no array of real floating numbers.
        ValueError: if it is empty, has the wrong shape, or has rows that are not finite.
    """
    x = as_tensor("x", x, missing=missing)
    if not x.is_floating_point():
        way = "x / 255 of images" if x.dtype == torch.uint8 else "x.float()"
        raise TypeError(
            f"x has dtype {x.dtype}; the flows are densities of real numbers: pass floating-point "
            f"rows, such as {way} (integer data want dequantising first)"
        )
    if x.is_meta or x.dtype.itemsize < 2:
        what = "values, on the device meta" if x.is_meta else f"digits enough, with dtype {x.dtype}"
        raise TypeError(f"x has no {what}; pass rows of float32 or float64")
    shape = tuple(event_shape)
    if x.dim() != len(shape) + 1 or tuple(x.shape[1:]) != shape:
        wanted = f"(N, {', '.join(map(str, shape))})"
        if x.dim() == 2 and len(shape) == 1:
            raise ValueError(
                f"x has {x.shape[1]} features but the components have {shape[0]}; "
                f"pass features={x.shape[1]} to the bank or select columns"
            )
        raise ValueError(f"x has shape {tuple(x.shape)}; expected {wanted}")
    if len(x) == 0:
        raise ValueError(f"x has no rows (shape {tuple(x.shape)}); pass at least one")
    x = x.detach().to(like.device)
    bad = _bad_rows(x, missing)
    if len(bad):
        found = "infinite values" if missing else "NaN or infinite values"
        raise ValueError(
            f"x has {found} in {len(bad)} of {len(x)} rows: {listed(bad + first)}; "
            "remove them, or impute them, as vmonf.impute(x).x does with NaN"
        )
    if keeps is not None and x.dtype == torch.float64 != like.dtype and keeps(x):
        return x
    converted = x.to(like.dtype)
    bad = bad if converted is x else _bad_rows(converted, missing)
    if len(bad):
        raise ValueError(
            f"rows {listed(bad + first)} of x overflow {like.dtype}; rescale them, or use "
            "model.double()"
        )
    return converted


def check_gaps(x: Tensor, names: Sequence[Any] | None = None, weight: Tensor | None = None) -> None:
    """Refuse rows and columns without any entry to learn from, among the rows that count.

    Raises:
        ValueError: if there are any.
    """
    if not has_gaps(x):
        return
    gaps, counts = x.isnan(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    counts = counts if weight is None else weight > 0
    columns = gaps[counts].all(0).nonzero().squeeze(1)
    if len(columns):
        named = listed(columns) if names is None else ", ".join(str(names[c]) for c in columns[:5])
        among = "" if weight is None else " in the rows that count"
        raise ValueError(f"column {named} of x has no entry{among}, only NaN; leave it out")
    rows = (gaps.all(1) & counts).nonzero().squeeze(1)
    if len(rows):
        raise ValueError(
            f"rows {listed(rows)} of x have no entry, only NaN ({len(rows)} of {len(x)} rows); "
            "leave them out: the verbs give them the weights as their posterior"
        )


def check_positive(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``.

    Raises:
        ValueError: otherwise.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}")
    return int(value)


def check_simplex(name: str, value: Tensor) -> None:
    """Refuse vectors ``(*, K)`` whose entries are negative or have another sum than one.

    Raises:
        ValueError: if there is one.
    """
    total = value.detach().double().sum(-1)
    allowed = max(1e-4, value.shape[-1] * torch.finfo(value.dtype).eps)  # of rounding
    if not bool(((total - 1).abs() <= allowed).all()) or bool((value < 0).any()):
        raise ValueError(
            f"{name} have entries from {float(value.min()):.4g} to {float(value.max()):.4g} and "
            f"sums from {float(total.min()):.4g} to {float(total.max()):.4g}; expected numbers of "
            "at least 0 whose sum is 1"
        )


def check_widths(name: str, values: Any) -> tuple[int, ...]:
    """Return the widths of layers as a tuple of positive integers.

    Raises:
        ValueError: if they are something else.
    """
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray | Tensor):
        raise ValueError(f"{name} is {values!r}; expected the widths of layers, such as (32, 32)")
    numbers_in = plain(list(values)) if not isinstance(values, Tensor) else values.tolist()
    return tuple(check_positive(f"{name}={tuple(numbers_in)}, width", w) for w in numbers_in)


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an image as a tuple of three positive numbers.

    Raises:
        ValueError: if it is something else.
    """
    shape = tuple(image_shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape is {shape}; expected (C, H, W), such as (1, 28, 28)")
    for size in shape:
        check_positive("image_shape", size)
    return shape


def check_unconditional(name: str, context_features: int) -> None:
    """Refuse a mixture that depends on a context, where none is taken.

    Raises:
        ValueError: if it does.
    """
    if context_features:
        raise ValueError(
            f"{name} is not for mixtures that depend on a context (of {context_features} features "
            "here); use log_prob, predict_proba and sample, which take given="
        )


def check_alone(name: str, of_sequences: bool) -> None:
    """Refuse a chain, where a mixture of single rows is taken.

    Raises:
        TypeError: if it is one.
    """
    if of_sequences:
        raise TypeError(
            f"{name} is for mixtures of rows, and this pair is of sequences; vmonf.alone() is the "
            "mixture of its single steps"
        )


def check_context(context: Tensor | None, features: int) -> None:
    """Refuse a context where none is taken, the lack of one where one is, and other sizes.

    Raises:
        ValueError: if it does not fit.
    """
    if context is None and not features:
        return
    if context is None:
        raise ValueError(
            f"the mixture depends on a context of {features} features; pass given=, of shape "
            f"(N, {features})"
        )
    if not features:
        raise ValueError(
            f"a context of shape {tuple(context.shape)} was given, but the mixture takes none; "
            "build it with FlowMixture(..., context_features=H)"
        )
    if context.shape[-1:] != (features,):
        raise ValueError(f"the context has shape {tuple(context.shape)}; expected (N, {features})")


def check_context_rows(
    context: Any, rows: int | None, features: int, like: Tensor
) -> Tensor | None:
    """Return the rows' context ``(N, H)`` as a tensor of the model's kind; ``None`` if none is due.

    Raises:
        TypeError: if it is no array of real floating numbers.
        ValueError: if it does not fit, or has values that are not finite.
    """
    if context is None or not features:
        check_context(context, features)
        return None
    if is_frame(as_frame(context)):
        raise TypeError(
            "the context is a frame, whose order of columns is not kept; pass its columns as an "
            "array: frame[[...]].to_numpy()"
        )
    try:
        given, context = context, check_rows(context, (features,), like)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the context does not fit: {error}") from error
    _check_digits(as_tensor("the context", given), context)
    if rows is not None and len(context) != rows:
        raise ValueError(f"the context has {len(context)} rows but x has {rows}; pass one a row")
    return context


def _check_digits(given: Tensor, context: Tensor) -> None:
    """Refuse a context whose columns lose their digits in the kind of the model.

    Rows that are all alike, or one alone, have no spread to compare with: there it warns.

    Raises:
        ValueError: if a column does.
    """
    if given.dtype == context.dtype:
        return
    lost, spread = (given - context.to(given)).abs().amax(0), given.std(0, correction=0)
    bad = torch.where(spread > 0, lost > LOST * spread, lost > LOST_ALONE)
    for c in bad.nonzero().squeeze(1).tolist()[:1]:
        message = (
            f"column {c} of the context, about {float(given[:, c].double().mean()):.10g}, loses "
            f"its digits in {context.dtype} ({float(lost[c]):.2g} of it); subtract a constant from "
            "it, or keep the pair in float64"
        )
        if spread[c] > 0:
            raise ValueError(message)
        warn(message)


def check_number(name: str, value: Any, *, zero: bool = False) -> float:
    """Return ``value`` if it is a finite number above zero, or at least zero.

    Raises:
        ValueError: otherwise.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        wanted = "at least" if zero else "above"
        raise ValueError(f"{name} is {value!r}; it must be a finite number {wanted} zero")
    return float(value)
