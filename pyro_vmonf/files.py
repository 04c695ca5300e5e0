"""Files that hold a pair: a description of its parts, and their state; never any code.

A file is written whole or not at all. Reading one runs nothing that is in it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmonf import (
    components,
    distortions,
    flows,
    guides,
    model,
    schedules,
    terms,
    transforms,
    weight_priors,
    weights,
)
from pyro_vmonf import nn as networks
from pyro_vmonf._utils.contexts import alone
from pyro_vmonf._utils.plain import plain
from pyro_vmonf._version import __version__
from pyro_vmonf.flows import constant

KIND = "fitted mixture"
FORMAT = 2

# Where the parts of a file are looked up. Every part keeps its constructor's arguments as
# attributes of the same names, so a description is of the part as it is now.
ROOMS: tuple[ModuleType, ...] = (
    flows,
    constant,
    transforms,
    networks,
    weights,
    weight_priors,
    guides,
    terms,
    distortions,
    schedules,
    components,
    model,
)
# Distributions that a file may hold, with their arguments and the attributes that keep those.
DISTRIBUTIONS: dict[str, tuple[type[Distribution], dict[str, str]]] = {
    part.__name__: (part, {name.split("=")[0]: name.split("=")[-1] for name in names.split()})
    for part, names in (
        (dist.Dirichlet, "concentration"),
        (dist.Independent, "base_distribution=base_dist reinterpreted_batch_ndims"),
        (dist.Laplace, "loc scale"),
        (dist.MultivariateNormal, "loc covariance_matrix"),
        (dist.Normal, "loc scale"),
        (dist.StudentT, "df loc scale"),
        (dist.Uniform, "low high"),
        (weight_priors.StickBreaking, "a b"),
    )
}
_REBOUND = (guides.BoundGuide,)  # parts whose reference to the model the pair makes anew


@functools.cache
def parts() -> dict[str, type]:
    """Return the library's classes that a file may name."""
    return {
        name: value
        for room in ROOMS
        for name, value in vars(room).items()
        if isinstance(value, type)
        and value.__module__.startswith(room.__name__)
        and (issubclass(value, nn.Module) or dataclasses.is_dataclass(value))
    }


def describe(value: Any) -> Any:
    """Return a part, and those in it, as plain data.

    Raises:
        TypeError: if a part is not one of the library's.
    """
    value = plain(value)
    if isinstance(value, (nn.ModuleList, list, tuple)):
        return [describe(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    part = type(value)
    if isinstance(value, Distribution) and part.__name__ in DISTRIBUTIONS:
        _, kept = DISTRIBUTIONS[part.__name__]
        arguments = {key: describe(getattr(value, name)) for key, name in kept.items()}
        return {"distribution": part.__name__, "arguments": arguments}
    bound = {"model"} if isinstance(value, _REBOUND) else set()
    names = [n for n in inspect.signature(part).parameters if n not in bound]
    if parts().get(part.__name__) is not part or not all(hasattr(value, n) for n in names):
        raise TypeError(f"{part.__module__}.{part.__qualname__} is not a part of pyro_vmonf")
    return {"part": part.__name__, "arguments": {n: describe(getattr(value, n)) for n in names}}


def build(description: Any) -> Any:
    """Return the part that :func:`describe` described, with fresh parameters.

    Raises:
        ValueError: if it names a part that does not exist.
    """
    if isinstance(description, list):
        return [build(item) for item in description]
    if not isinstance(description, dict):
        return description
    if description.get("distribution") in DISTRIBUTIONS:
        made, _ = DISTRIBUTIONS[description["distribution"]]
        return made(**{k: build(v) for k, v in description["arguments"].items()})
    name = description.get("part")
    part = parts().get(name) if isinstance(name, str) else None
    if part is None:
        raise ValueError(f"the file names the part {name!r}, which this version does not have")
    return part(**{k: build(v) for k, v in description["arguments"].items()})


def save(vmonf: Any, path: str | os.PathLike[str]) -> None:
    """Write a pair, with the history of its last fit, to ``path``, all or nothing.

    Raises:
        ValueError: if there is no such folder, or it cannot be written to.
        OSError: if the file cannot be written; one that was there before is then untouched.
    """
    try:
        description: Any = {"model": describe(vmonf.model), "guide": describe(vmonf.guide)}
    except TypeError as error:
        description = None  # the state alone, to be loaded into a built pair
        warnings.warn(f"{error}; load the file with VMoNF.load(path, into=vmonf)", stacklevel=3)
    content = {
        "kind": KIND,
        "format": FORMAT,
        "version": __version__,
        "description": description,
        "state": vmonf.state_dict(),
        "history": None if vmonf.history is None else dataclasses.asdict(vmonf.history),
    }
    write(content, path)


def load(
    path: str | os.PathLike[str],
    pair: Callable[[Any, Any], Any],
    history: Callable[..., Any],
    *,
    into: Any = None,
) -> Any:
    """Return the pair that ``path`` holds, or ``into`` filled from it.

    Arguments:
        path: the file.
        pair: the class of the pair, called with model and guide.
        history: the class of its history, called with the fields.
        into: a built pair to fill.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not such a file, or does not fit ``into``, which is then as it
            was.
    """
    content, name = read(path, KIND), os.fspath(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{name} has format {content.get('format')!r} (pyro_vmonf {content.get('version')}); "
            f"this version reads format {FORMAT}"
        )
    if into is None and content.get("description") is None:
        raise ValueError(
            f"{name} holds modules that are not pyro_vmonf's; build the pair and pass it: "
            "VMoNF.load(path, into=vmonf)"
        )
    try:
        state = content["state"]
        dtype = next((v.dtype for v in state.values() if v.is_floating_point()), None)
        if into is None:
            description = content["description"]
            room = 64 + sum(value.numel() for value in state.values())
            with alone(), torch.random.fork_rng(devices=[]), Bounded(room):
                check_sizes(description, room)
                into = pair(build(description["model"]), build(description["guide"]))
            into.to(dtype)
        past = content["history"]
        recorded = None if past is None else history(**past)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{name} describes no pair that could be built: {error}") from error
    before = {key: value.clone() for key, value in into.state_dict().items()}
    try:
        into.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        into.load_state_dict(before)
        raise ValueError(f"{name} does not fit the pair: {error}") from error
    into.to(dtype)
    into.history = recorded
    return into


# Arguments that are sizes: none of them can exceed the numbers that the file holds.
SIZES = {
    "bins", "blocks", "channels", "components", "context_features", "event_shape", "features",
    "hidden", "image_shape", "in_features", "num_components", "out_features", "draws", "top",
    "scales", "depth", "shared", "first", "mixtures",
}  # fmt: skip


def check_sizes(description: Any, room: int) -> None:
    """Refuse a description with sizes that the file's own state could not fill.

    Raises:
        ValueError: if there are such.
    """
    if isinstance(description, list):
        for item in description:
            check_sizes(item, room)
    if not isinstance(description, dict):
        return
    for name, value in description.items():
        numbers_in = value if isinstance(value, list) else [value]
        if name in SIZES and any(isinstance(n, int) and abs(n) > room for n in numbers_in):
            raise ValueError(f"it declares {name}={value}, and holds {room} numbers")
        check_sizes(value, room)


class Bounded(TorchDispatchMode):
    """A block in which no tensor may be made that is larger than the file's whole state.

    Arguments:
        room: the largest number of elements.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = 16 * room + 2**20

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes = args[0] if args and isinstance(args[0], (list, tuple)) else ()
        if all(isinstance(n, int) for n in sizes) and math.prod(sizes) > self.room:
            raise ValueError(f"it declares a tensor of shape {list(sizes)}")
        return func(*args, **(kwargs or {}))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that nothing could be written to.

    Raises:
        ValueError: if its folder does not exist or cannot be written to, or it is a folder itself.
    """
    path = Path(path)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{path} cannot be written: expected a file's name in a folder that exists and can be "
            "written to"
        )


def write(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors and plain data; the file that was there stays until the new one is whole.

    Raises:
        OSError: if it cannot be written, because the disk is full for example. What was there
            before is then still there.
    """
    check_writable(path)
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save(plain(content), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(
            f"{path} could not be written; the former file is untouched ({error})"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk as well
        folder = os.open(path.absolute().parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Return what :func:`write` wrote, with tensors on the CPU.

    Arguments:
        path: the file.
        kind: what its ``kind`` has to be.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another kind, or would unpack to more than it should.
    """
    name = os.fspath(path)
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the reader
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} cannot be read as a {kind} of pyro_vmonf: {reason}") from error
    found = content.get("kind") if isinstance(content, dict) else type(content).__name__
    if not isinstance(content, dict) or found != kind:
        raise ValueError(f"{name} cannot be read as a {kind} of pyro_vmonf: it holds {found!r}")
    return content


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse an archive that is compressed, declares more than its own size, or has changed."""
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"its part {entry.filename} declares {entry.file_size} bytes")
        damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong")
