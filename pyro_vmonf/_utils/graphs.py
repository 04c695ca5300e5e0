"""Functions of tensors as one graph of operations, and compiled graphs."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_vmonf._utils.contexts import own_filters

LOOP = "torch.ops.higher_order.while_loop"  # a graph in a graph, which the key of the cache knows


class Shapes:
    """Inputs of a graph without their values, with one length that may be open.

    Arguments:
        inputs: tensors.
        open: for each of them, the dimension of the open length, which is the same in all; or
            ``None``.

    Attributes:
        inputs: for :func:`captured` and :func:`compiled`.
    """

    def __init__(self, inputs: Sequence[Tensor], open: Sequence[int | None]) -> None:
        from torch._dynamo.source import ConstantSource
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import (
            DimDynamic,
            ShapeEnv,
            StatelessSymbolicContext,
        )

        self.env = ShapeEnv(allow_scalar_outputs=False)
        mode = FakeTensorMode(shape_env=self.env, allow_non_fake_inputs=True)
        self.inputs: list[Tensor] = []
        for number, (value, place) in enumerate(zip(inputs, open, strict=True)):
            if place is None:
                fake = mode.from_tensor(value.detach(), static_shapes=True)
            else:
                lengths = [DimDynamic.STATIC] * value.dim()
                lengths[place] = DimDynamic.DUCK
                context: Any = StatelessSymbolicContext(dynamic_sizes=lengths)
                source = ConstantSource(f"input_{number}")
                fake = mode.from_tensor(value.detach(), source=source, symbolic_context=context)
            self.inputs.append(fake)

    def allow(self, length: int) -> bool:
        """Return whether what was captured and compiled holds for another length.

        Arguments:
            length: in place of the open one.
        """
        if not self.env.var_to_range:
            return False
        [[symbol, bounds], *others] = self.env.var_to_range.items()
        return (
            not others
            and symbol not in self.env.replacements
            and length in bounds
            and all(bool(guard.expr.subs(symbol, length)) for guard in self.env.guards)
        )


def captured(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return the operations that a function does on inputs of some :class:`Shapes`.

    Derivatives are included. Python runs once: the graph holds the branches that it took. A branch
    by the value of a tensor is refused.

    Raises:
        RuntimeError: if the function cannot be captured.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.fx.experimental.proxy_tensor import make_fx

    capture = make_fx(function, APART, tracing_mode="fake", _allow_non_fake_inputs=True)
    # A part that torch.compile took on its own runs plainly inside of the graph.
    with torch.compiler.set_stance("force_eager"), enable_python_dispatcher():
        try:
            return capture(*inputs)
        except DataDependentOutputException as error:
            raise RuntimeError("Python asks for the value of a tensor") from error


def is_captured(value: Tensor) -> bool:
    """Return whether a tensor has a shape and no values: operations on it become a graph."""
    from torch._subclasses.fake_tensor import is_fake

    return is_fake(value)


def repeated(body: fx.GraphModule, count: int) -> fx.GraphModule:
    """Return a loop of a captured body as a graph, with the same inputs and outputs.

    Arguments:
        body: from a state, a number and others to the next state; it goes on as long as the first
            entry of the state is below the number. No two tensors of the state share memory.
        count: tensors of the state.
    """
    from torch._higher_order_ops.while_loop import while_loop_op

    module, graph, turn = nn.Module(), fx.Graph(), copy.deepcopy(body.graph)
    places = turn.find_nodes(op="placeholder")
    used = [graph.placeholder(node.name) for node in places]
    # Each input costs time in each turn, and a loop takes no constants.
    for node, value in list(zip(places, used, strict=True))[count + 1 :]:
        if not node.users:
            turn.erase_node(node)
            used.remove(value)
    for node in turn.find_nodes(op="get_attr"):
        with turn.inserting_after(turn.find_nodes(op="placeholder")[-1]):
            node.replace_all_uses_with(turn.placeholder(f"own_{node.name}"))
        turn.erase_node(node)
        setattr(module, node.name, getattr(body, str(node.target)))
        used.append(graph.get_attr(node.name))
    [end] = turn.find_nodes(op="output")
    end.args = (tuple(end.args[0]),)
    condition = fx.Graph()
    first, *_ = (condition.placeholder(node.name) for node in turn.find_nodes(op="placeholder"))
    times = condition.find_nodes(op="placeholder")[count]
    condition.output(condition.call_function(torch.ops.aten.lt.Tensor, (first, times)))
    module.goes_on, module.turn = (fx.GraphModule(nn.Module(), g) for g in (condition, turn))
    parts = (graph.get_attr("goes_on"), graph.get_attr("turn"))
    results = graph.call_function(while_loop_op, (*parts, tuple(used[:count]), tuple(used[count:])))
    graph.output([graph.call_function(getitem, (results, i)) for i in range(count)])
    return fx.GraphModule(module, graph)


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
    """Return a graph as machine code for inputs of some :class:`Shapes`; it needs a C++ compiler.

    Random numbers are those of torch. The code is kept in the compiler's cache on disk.

    Raises:
        RuntimeError: if the graph cannot be compiled.
    """
    from torch import _inductor
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._subclasses.fake_tensor import FakeTensor

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
    [mode] = {value.fake_mode for value in inputs if isinstance(value, FakeTensor)}
    shapes = TracingContext(mode)
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
