"""Blocks with a seed or in eval mode, which leave everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


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
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seed))
        yield


@contextmanager
def _mode(module: nn.Module, training: bool) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, before in modes:
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


def training(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module in ``train()`` for a block, and every part of it back as it was."""
    return _mode(module, training=True)
