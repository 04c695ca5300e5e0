"""Functions of tensors as one graph of operations, and compiled graphs."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vmonf._utils.contexts import own_filters

LOOP = "torch.ops.higher_order.while_loop"  # a graph in a graph, which the key of the cache knows


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


def repeated(
    body: fx.GraphModule, times: Tensor, state: Sequence[Tensor], others: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return the state after a loop, which is one operation of a graph.

    Arguments:
        body: from state and others to the next state.
        times: up to which the first number of the state is counted.
        state: tensors that the body moves; no two share memory.
        others: those that stay.
    """
    from torch._higher_order_ops.while_loop import while_loop_op

    count = len(state)
    body, others = _tight(body, count, others)
    run: Callable[..., Sequence[Tensor]] = while_loop_op
    return run(
        lambda *inputs: inputs[0] < inputs[count],
        lambda *inputs: tuple(body(*inputs[:count], *inputs[count + 1 :])),
        tuple(state),
        (times, *others),
    )


def _tight(
    body: fx.GraphModule, count: int, others: Sequence[Tensor]
) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return a body without inputs that it does not use, with its constants as inputs; and inputs.

    Each input costs time in each turn of a loop, and a loop takes no constants.
    """
    body = fx.GraphModule(body, copy.deepcopy(body.graph))
    inputs = body.graph.find_nodes(op="placeholder")
    kept = []
    for node, value in zip(inputs[count:], others, strict=True):
        if node.users:
            kept.append(value)
        else:
            body.graph.erase_node(node)
    for node in body.graph.find_nodes(op="get_attr"):
        last = body.graph.find_nodes(op="placeholder")[-1]
        with body.graph.inserting_after(last):
            new = body.graph.placeholder(f"constant_{node.name}")
        node.replace_all_uses_with(new)
        body.graph.erase_node(node)
        kept.append(getattr(body, node.target))
    body.recompile()
    return body, kept


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
    from torch import _inductor
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # The cache on disk wants the shapes of a tracing context. Processes of the compiler's own take
    # longer to start than a step to compile.
    options: dict[str, Any] = {
        "fallback_random": True, "size_asserts": False, "compile_threads": 1
    }  # fmt: skip
    newer: dict[str, Any] = {"unsafe_marked_cacheable_functions": {LOOP: torch.__version__}}
    if all(value.device.type == "cpu" for value in inputs):
        options["cpp_wrapper"] = True  # the calls of the kernels are machine code as well
        options["cpp.vec_isa_ok"] = True  # the processor says it; ten small programs would ask
        # Calls are not worth optimising, and to compile headers once does not pay for two files.
        newer |= {"cpp_wrapper_build_separate": True, "cpp_cache_precompile_headers": False}
    options |= {name: value for name, value in newer.items() if hasattr(config, name)}
    shapes = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))
    with own_filters(), _quiet("torch._inductor"), tracing(shapes), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # of the compiler, about itself
        found: Callable[..., list[Tensor]] = _inductor.compile(graph, list(inputs), options=options)
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
