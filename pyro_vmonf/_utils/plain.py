"""Plain data: what a file holds and reads back as it was."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

AS_IT_IS = (bool, int, float, str, torch.Size)


def plain(
    value: Any,
    *,
    arrays: bool = True,
    tensors: Callable[[Tensor], Any] | None = None,
) -> Any:
    """Return a value with Python's own numbers and strings in place of others.

    NumPy scalars become numbers, arrays become tensors, paths become strings. Subclasses of
    ``int``, ``float`` and ``str`` become these. It goes through dictionaries, lists and tuples, and
    leaves anything else alone.

    Arguments:
        value: any value.
        arrays: ``False`` leaves NumPy arrays alone too.
        tensors: what a tensor becomes; by default it stays.

    Example:
        >>> plain({"lr": np.float64(0.5), "sizes": (np.int64(3), np.True_)})
        {'lr': 0.5, 'sizes': (3, True)}
    """

    def within(value: Any) -> Any:
        if value is None or type(value) in AS_IT_IS:
            return value
        if isinstance(value, Tensor):
            return value if tensors is None else tensors(value)
        if isinstance(value, list):
            return [within(item) for item in value]
        if isinstance(value, tuple):
            return tuple(within(item) for item in value)
        if isinstance(value, dict):
            made = copy.copy(value)  # a state's dictionary has its versions as an attribute
            made.clear()
            made.update((plain(key), within(item)) for key, item in value.items())
            return made
        if isinstance(value, np.ndarray):
            return _plain_array(value) if arrays else value
        return _plain_number(value)

    return within(value)


def _plain_number(value: Any) -> Any:
    """Return a number or a text as one of Python's own; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _plain_array(array: np.ndarray[Any, Any]) -> Any:
    """Return an array as a tensor, or as lists where it holds no numbers."""
    if array.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(array).copy()).reshape(array.shape)
    return plain(array.tolist())
