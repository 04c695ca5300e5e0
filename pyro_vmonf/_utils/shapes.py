"""Shapes of batches and of single points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """Return the broadcast shape; equal shapes, the usual case, take a short path."""
    # No set: sizes that torch.export leaves open have no hash.
    longer = [tuple(shape) for shape in shapes if len(shape)]
    if any(shape != longer[0] for shape in longer):
        return torch.broadcast_shapes(*longer)
    return torch.Size(longer[0] if longer else ())


def check_event(x: Tensor, event_shape: Sequence[int]) -> None:
    """Refuse points that would broadcast to the shape of one event.

    Raises:
        ValueError: if the last dimensions of ``x`` are not the event shape.
    """
    count = len(event_shape)
    if x.dim() < count or x.shape[x.dim() - count :] != tuple(event_shape):
        raise ValueError(
            f"x has shape {tuple(x.shape)} but one point has shape {tuple(event_shape)}; pass x of "
            f"shape (*, {', '.join(map(str, event_shape))})"
        )
