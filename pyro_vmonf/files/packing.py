"""Small tensors of a file as pieces of one vector: each tensor of its own takes time to read."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.plain import plain

SMALL = 2**16  # bytes of a tensor that is a piece of a vector
LONG = 16  # numbers of a list that is a piece of a vector
NUMBER = 32  # bytes of a number in a list
MARK = ()  # before the name of a mark: no tuple of texts and numbers begins like this
VECTORS, TENSOR, LIST = "vectors", "tensor in a vector", "list in a vector"


def packed(content: dict[str, Any]) -> dict[str, Any]:
    """Return plain content with marks for small tensors and long lists, and their numbers apart.

    There is a vector for each kind of number. A mark has the place of its vector in their list, the
    place of its first number there, and its shape.
    """
    vectors: dict[Any, list[Tensor]] = {}
    marks: dict[Any, tuple[Any, ...]] = {}
    lengths: Counter[Any] = Counter()

    def mark(tensor: Tensor, name: str) -> Any:
        kind, views = (tensor.dtype, tensor.device), (tensor.is_neg(), tensor.is_conj())
        place = (name, tensor.data_ptr(), tensor.shape, tensor.stride(), kind, views)
        if place not in marks:  # the names of a tied parameter have one piece
            pieces = vectors.setdefault(kind, [])
            pieces.append(tensor.reshape(-1))
            marks[place] = (MARK, name, list(vectors).index(kind), lengths[kind], *tensor.shape)
            lengths[kind] += tensor.numel()
        return marks[place]

    def tensor(value: Tensor) -> Any:
        strided = type(value) is Tensor and value.layout is torch.strided
        is_small = strided and not value.requires_grad and 0 < value.nbytes <= SMALL
        return mark(value, TENSOR) if is_small else value

    def numbers(value: list[Any]) -> Any:
        kinds = set(map(type, value)) if len(value) >= LONG else set()
        if kinds == {float}:
            return mark(torch.tensor(value, dtype=torch.float64), LIST)
        return value

    marked = plain(content, tensors=tensor, lists=numbers)
    return {**marked, VECTORS: [torch.cat(pieces) for pieces in vectors.values()]}


def unpacked(content: Any, most: int) -> Any:
    """Return what was packed; content of an earlier version, which has no marks, as it is.

    Arguments:
        content: what a file holds; its dictionaries and lists are changed.
        most: the bytes that its pieces may have together.

    Raises:
        ValueError: if they have more, or a mark names numbers that are not there.
    """
    if not isinstance(content, dict) or VECTORS not in content:
        return content
    vectors = content.pop(VECTORS)
    made: dict[int, Any] = {}  # by the identity of what was packed, which may come again
    left = most

    def piece(name: str, number: int, start: int, *shape: int) -> Any:
        nonlocal left
        length, vector = math.prod(shape), vectors[number]
        if min(number, start, *shape, 0) < 0 or start + length > len(vector):
            raise ValueError(f"it holds no numbers of shape {list(shape)} where it says")
        left -= length * (vector.element_size() if name == TENSOR else NUMBER)
        if left < 0:
            raise ValueError(f"its numbers declare more than {most} bytes")
        found = vector[start : start + length].reshape(shape)
        return found.clone() if name == TENSOR else found.tolist()  # a tensor of its own

    def whole(value: Any) -> Any:
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in made:
            return made[id(value)]
        if isinstance(value, tuple):
            made[id(value)] = piece(*value[1:]) if _is_mark(value) else tuple(map(whole, value))
            return made[id(value)]
        made[id(value)] = value
        for place, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[place] = whole(item)
        return value

    return whole(content)


def _is_mark(value: tuple[Any, ...]) -> bool:
    """Return whether a tuple stands for numbers of a vector."""
    begins = len(value) > 3 and isinstance(value[0], tuple) and isinstance(value[1], str)
    return begins and value[:2] in ((MARK, TENSOR), (MARK, LIST))
