"""Seeds that leave the global random state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
        torch.manual_seed(seed)
        yield
