"""A second device that the CPU plays, as a plugin of pytest: ``-p second_device``.

A tensor on it has a storage of its own without data. The data lie in a tensor of the CPU, which
:data:`DATA` finds by the storage. Each operation takes the data, runs on the CPU, and puts its
results onto the device. Tensors of two devices in one operation are an error, as on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
DATA: dict[int, Tensor] = {}
LIBRARIES: list[torch.library.Library] = []  # they live as long as the process
aten = torch.ops.aten
# The strides of a tensor on the device are those of its shape, whatever those of its data are.
RESHAPE = {"aten::view", "aten::_unsafe_view", "aten::_reshape_alias"}
# A CPU tensor may say which entries are meant.
INDEX = {"aten::index", "aten::_unsafe_index", "aten::index_put_", "aten::_index_put_impl_"}
WITHOUT_NUMBERS = {"aten::cat", "aten::stack"}  # a CPU tensor with one number is no number here
PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.layout}  # no tensor, no generator
SHARED = {"detach", "detach_", "alias", "lift", "lift_fresh"}  # torch's own keep the storage


def is_there(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def data(value: Any) -> Any:
    return DATA[value.untyped_storage()._cdata] if is_there(value) else value


def put(value: Tensor) -> Tensor:
    result = torch._C._acc.create_empty_tensor(value.shape, value.dtype)
    DATA[result.untyped_storage()._cdata] = value
    return result


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to what an argument or a result holds, in a list or by itself."""
    if type(value) in PLAIN:
        return value
    return type(value)(map(function, value)) if type(value) in (list, tuple) else function(value)


def check(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if type(value) in PLAIN:
            continue
        for leaf in value if type(value) in (list, tuple) else (value,):
            if isinstance(leaf, Tensor):
                tensors.append(leaf)
            elif isinstance(leaf, torch.Generator):
                raise RuntimeError(
                    f"{name}: expected a generator of the device {NAME}, and got one of cpu"
                )
    for tensor in tensors:
        if tensor.device.type == NAME:
            continue
        number = tensor.dim() == 0 and name not in WITHOUT_NUMBERS
        if not (number or (name in INDEX and is_there(args[0]))):
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, and got one of shape "
                f"{tuple(tensor.shape)} on {tensor.device} beside the device {NAME}"
            )
    return tensors


@functools.cache
def read(op: Any) -> tuple[str, bool, list[tuple[int, str]]]:
    """Return an operation's name, whether its results are views, and what it writes to."""
    schema = op._schema
    viewing = any(returned.alias_info is not None for returned in schema.returns)
    written = [
        (i, argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return schema.name, viewing, written


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    name, viewing, targets = read(op)
    if name in ("aten::_copy_from", "aten::copy_"):
        source, target = args[:2] if name == "aten::_copy_from" else args[1::-1]
        data(target).copy_(data(source))
        return target
    there = bool(check(name, args, kwargs))
    if "device" in kwargs:
        device = kwargs["device"]
        there = there if device is None else torch.device(device).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner = tuple(mapped(data, value) for value in args)
    options = {key: mapped(data, value) for key, value in kwargs.items()}
    if name in RESHAPE:
        op, inner = aten.reshape.default, inner[:2]
    elif name == "aten::_fused_adam_":
        inner = (inner[0], [gradient.contiguous() for gradient in inner[1]], *inner[2:])
    found = op(*inner, **options)
    written = {}
    for i, argument in targets:
        value = args[i] if i < len(args) else kwargs.get(argument)
        if isinstance(value, Tensor):
            written[id(data(value))] = value
            if value.shape != data(value).shape:
                value.data = put(data(value))

    def result(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in written:
            return written[id(value)]
        return put(value if viewing else value.contiguous()) if there else value

    return mapped(result, found)


def copied(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return the deep copy of a class, for tensors of the device too."""

    def copy(self: Tensor, memo: dict[int, Any]) -> Any:
        if not is_there(self):
            return own(self, memo)
        if id(self) not in memo:
            twin = self.detach().clone()
            if isinstance(self, nn.Parameter):
                memo[id(self)] = nn.Parameter(twin, self.requires_grad)
            else:
                memo[id(self)] = twin.requires_grad_(self.requires_grad)
        return memo[id(self)]

    return copy


def register() -> tuple[torch.library.Library, torch.library.Library]:
    _setup_privateuseone_for_python_backend(NAME)
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(run, "PrivateUse1")
    names: set[str] = set()
    for key in ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"):
        names.update(torch._C._dispatch_get_registrations_for_dispatch_key(key))
    for space, _, called in (name.partition("::") for name in names):
        packet, _, overload = called.partition(".")
        if space != "aten" or packet in {*SHARED, "_copy_from", "copy_", "_to_copy"}:
            continue
        op = getattr(getattr(aten, packet), overload or "default", None)
        if op is not None:  # torch would compose it of others by the strides
            own.impl(called, functools.partial(run, op), "PrivateUse1")
    for kind in (Tensor, nn.Parameter):
        kind.__deepcopy__ = copied(kind.__deepcopy__)  # type: ignore[method-assign]
    return every, own


def pytest_configure() -> None:
    """Register the device before a test is imported."""
    LIBRARIES.extend(register())
