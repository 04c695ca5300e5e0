"""Sums over several processes that train together."""

from __future__ import annotations

from torch import Tensor, distributed


def several_processes() -> bool:
    """Return whether several processes train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, differentiably; alone, the tensor itself.

    Where every process adds the same function of it to its loss, and the gradients are averaged
    over the processes, they are those of one process with all rows.
    """
    if not several_processes():
        return value
    from torch.distributed.nn.functional import all_reduce

    result: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return result


def max_over_processes(value: Tensor) -> Tensor:
    """Return the largest value of a tensor in any process, without a gradient."""
    largest = value.detach().clone()
    if several_processes():
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
    return largest
