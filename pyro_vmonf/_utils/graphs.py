"""Functions of tensors as one graph of operations, and compiled graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vmonf._utils.contexts import own_filters


def captured(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return the operations that a function does on inputs of these shapes, derivatives included.

    Python runs once: the graph holds the branches that it took. A branch by the value of a tensor
    is refused.

    Raises:
        RuntimeError: if the function cannot be captured.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    # A part that torch.compile took on its own runs plainly inside of the graph.
    with torch.compiler.set_stance("force_eager"):
        return make_fx(function, decomposition_table=APART)(*inputs)


def _sum_and_product(
    bias: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """Return batches of products plus a bias.

    As one operation it copies the bias to every row first. Apart, the sum is a part of the kernel
    that follows.
    """
    product = torch.bmm(one, other)
    return (bias if beta == 1 else beta * bias) + (product if alpha == 1 else alpha * product)


APART: dict[Any, Callable[..., Tensor]] = {torch.ops.aten.baddbmm.default: _sum_and_product}


def compiled(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """Return a graph as machine code for inputs of these shapes; it needs a C++ compiler.

    Random numbers are those of torch. The code is kept in the compiler's cache on disk.

    Raises:
        RuntimeError: if the graph cannot be compiled.
    """
    import torch._inductor
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # The cache on disk wants the shapes of a tracing context. Processes of the compiler's own take
    # longer to start than a step to compile.
    options: dict[str, str | int | bool] = {
        "fallback_random": True, "size_asserts": False, "compile_threads": 1
    }  # fmt: skip
    if all(value.device.type == "cpu" for value in inputs):
        options["cpp_wrapper"] = True  # the calls of the kernels are machine code as well
        options["cpp.vec_isa_ok"] = True  # the processor says it; ten small programs would ask
    shapes = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))
    with own_filters(), _quiet("torch._inductor"), tracing(shapes), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # of the compiler, about itself
        found: Callable[..., list[Tensor]] = torch._inductor.compile(
            graph, list(inputs), options=options
        )
    return found


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger pass errors alone in a block: the compiler warns of its own parts."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(before)
