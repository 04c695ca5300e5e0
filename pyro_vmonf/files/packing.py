"""Small tensors of a file in one storage: each storage is a part of the archive and takes time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.plain import plain

SMALL = 2**16  # bytes of a tensor that shares a storage with others


def packed(content: Any) -> Any:
    """Return plain content whose small tensors of one kind lie side by side in one storage.

    Bytes stay apart: they may be the state of a generator, which has to lie at the beginning.
    """
    kinds: dict[Any, dict[Any, Tensor]] = {}

    def collected(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) is not None:
            kinds.setdefault((tensor.dtype, tensor.device), {})[place] = tensor
        return tensor

    content = plain(content, tensors=collected)
    views: dict[Any, Tensor] = {}
    for found in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in found.values()])
        start = 0
        for place, tensor in found.items():
            views[place] = flat[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
    return plain(content, tensors=lambda tensor: views.get(_place(tensor), tensor))


def _place(tensor: Tensor) -> Any:
    """Return where the numbers of a small tensor lie, one for all of its names; or ``None``."""
    strided = type(tensor) is Tensor and tensor.layout is torch.strided
    is_own = strided and not tensor.requires_grad and tensor.dtype is not torch.uint8
    if not (is_own and 0 < tensor.nbytes <= SMALL):
        return None
    view = (tensor.shape, tensor.stride(), tensor.is_neg(), tensor.is_conj())
    return tensor.data_ptr(), tensor.dtype, tensor.device, view
