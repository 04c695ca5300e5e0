"""Blocks with a seed, a store or a mode of their own, which leave everything else as it was.

Pyro's handlers and its param store, torch's generators and the filters of warnings belong to the
process, not to a thread. Only one thread at a time is in any of these blocks.
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

import pyro
import torch
from torch import nn

_lock = threading.RLock()
from_file: ContextVar[bool] = ContextVar("from_file", default=False)  # a part is built anew


def _renew() -> None:
    """Replace the lock in a forked process, where the thread that may hold it does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def alone() -> Iterator[None]:
    """Keep other threads out of a block that changes what belongs to the whole process.

    Example:
        >>> with alone(), alone():  # a thread does not wait for itself
        ...     pass
    """
    with _lock:
        yield


@contextmanager
def own_store() -> Iterator[None]:
    """Run a block with an empty param store, and put the former one back after it."""
    store = pyro.get_param_store()
    with alone():
        try:
            with store.scope():
                yield
        finally:
            # The store takes from its tensors what a running ``SVI`` asks them: a look gives it.
            for name in list(store.keys()):
                store[name]


@contextmanager
def own_filters() -> Iterator[None]:
    """Run a block with filters of warnings of its own."""
    with alone(), warnings.catch_warnings():
        yield


@functools.cache
def _algebra() -> Any:
    """Return what sets the threads of the linear algebra of NumPy and SciPy."""
    import scipy.linalg  # noqa: F401 - it brings a library of its own
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block with one thread for linear algebra: on small matrices two wait for each other.

    With two of them a search of Gaussians in 50 rows takes three times as much of the processor.
    """
    with alone(), _algebra().limit(limits=1):
        yield


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with so many threads of torch; in small steps several wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checked_seed(seed: Any) -> int:
    """Return a seed of torch's generators.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is out of range.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed is {seed!r}; expected a whole number or None")
    if not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"seed is {seed}; expected a number of at most 64 bits")
    return int(seed)


@contextmanager
def local_seed(seed: int | None) -> Iterator[None]:
    """Run a block with torch's generators seeded, and restore them after it; ``None`` does nothing.

    Example:
        >>> with local_seed(0):
        ...     first = torch.rand(1)
        >>> with local_seed(0):
        ...     print(bool(torch.rand(1) == first))
        True
    """
    if seed is None:
        yield
        return
    seed = checked_seed(seed)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with alone(), torch.random.fork_rng(devices=devices):
        if devices:
            torch.manual_seed(seed)
        else:  # torch.manual_seed would write down a traceback for each device that is not there
            torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    with alone():
        modes = [(part, part.training) for part in module.modules()]
        try:
            module.train(training)
            yield
        finally:
            for part, before in modes:
                if part.training is not before:  # setting an attribute of a module is slow
                    part.training = before


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module in ``eval()`` for a block, and every part of it back as it was.

    Example:
        >>> module = torch.nn.Dropout()
        >>> with evaluating(module):
        ...     print(module.training)
        False
        >>> module.training
        True
    """
    return _mode(module, training=False)


@contextmanager
def left_alone(module: nn.Module) -> Iterator[None]:
    """Run a module in ``eval()`` without gradients for its parameters, in a block."""
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with evaluating(module):
        try:
            for parameter in free:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in free:
                parameter.requires_grad_()


def training(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module in ``train()`` for a block, and every part of it back as it was."""
    return _mode(module, training=True)
