"""Parts as plain data, and parts from it: constructors' arguments, read off their attributes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from types import ModuleType
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf import (
    chains,
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
from pyro_vmonf._utils.plain import plain
from pyro_vmonf.flows import constant

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
    chains,
)
# Distributions that a file may hold, with their arguments and the attributes that keep those.
DISTRIBUTIONS: dict[str, tuple[type[Distribution], dict[str, str]]] = {
    part.__name__: (part, {name.split("=")[0]: name.split("=")[-1] for name in names.split()})
    for part, names in (
        (dist.Categorical, "logits"),
        (dist.Dirichlet, "concentration"),
        (dist.Independent, "base_distribution=base_dist reinterpreted_batch_ndims"),
        (dist.Laplace, "loc scale"),
        (
            dist.MixtureSameFamily,
            "mixture_distribution component_distribution",
        ),
        (dist.MultivariateNormal, "loc covariance_matrix"),
        (dist.Normal, "loc scale"),
        (dist.StudentT, "df loc scale"),
        (dist.Uniform, "low high"),
        (weight_priors.OnSimplex, "distribution"),
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


@functools.cache
def arguments_of(part: type) -> tuple[str, ...]:
    """Return the names of the arguments of a part's constructor."""
    return tuple(inspect.signature(part).parameters)


def describe(value: Any, known: list[nn.Module] | None = None) -> Any:
    """Return a part, and those in it, as plain data.

    Arguments:
        value: the part.
        known: the modules that were described, in the order in which :func:`build` makes them; one
            that comes again is named by its number.

    Raises:
        TypeError: if a part is not one of the library's.
    """
    known = [] if known is None else known
    value = plain(value)
    if isinstance(value, (nn.ModuleList, list, tuple)):
        return [describe(item, known) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    for number, one in enumerate(known):
        if one is value:
            return {"same": number}
    part: type = type(value)
    if isinstance(value, Distribution) and part.__name__ in DISTRIBUTIONS:
        _, kept = DISTRIBUTIONS[part.__name__]
        arguments = {key: describe(getattr(value, name), known) for key, name in kept.items()}
        return {"distribution": part.__name__, "arguments": arguments}
    bound = {"model"} if isinstance(value, _REBOUND) else set()
    own = parts().get(part.__name__) is part
    names = [n for n in arguments_of(part) if n not in bound] if own else []
    if not own or not all(hasattr(value, n) for n in names):
        raise TypeError(f"{part.__module__}.{part.__qualname__} is not a part of pyro_vmonf")
    arguments = {n: describe(getattr(value, n), known) for n in names}
    if isinstance(value, nn.Module):
        known.append(value)
    return {"part": part.__name__, "arguments": arguments}


def build(description: Any, made: list[nn.Module] | None = None) -> Any:
    """Return the part that :func:`describe` described, with fresh parameters.

    Arguments:
        description: of the part.
        made: the modules that were made before.

    Raises:
        ValueError: if it names a part that does not exist.
    """
    made = [] if made is None else made
    if isinstance(description, list):
        return [build(item, made) for item in description]
    if not isinstance(description, dict):
        return description
    if "same" in description:
        number = description["same"]
        if not isinstance(number, int) or not 0 <= number < len(made):
            raise ValueError(f"the file names its part {number!r}, and has {len(made)} before it")
        return made[number]
    if description.get("distribution") in DISTRIBUTIONS:
        kind, _ = DISTRIBUTIONS[description["distribution"]]
        return kind(**{k: build(v, made) for k, v in description["arguments"].items()})
    name = description.get("part")
    part = parts().get(name) if isinstance(name, str) else None
    if part is None:
        raise ValueError(f"the file names the part {name!r}, which this version does not have")
    found = part(**{k: build(v, made) for k, v in description["arguments"].items()})
    if isinstance(found, nn.Module):
        made.append(found)
    return found


def agrees(found: Any, description: Any) -> bool:
    """Return whether what was built says of itself what a file says; it may have more arguments.

    Of tensors the shapes count: the state holds their numbers. A part that comes again is looked at
    where it comes first.
    """
    if isinstance(found, dict) and "same" in found:
        return isinstance(description, dict)
    if isinstance(description, Tensor):
        return isinstance(found, Tensor) and found.shape == description.shape
    if isinstance(description, dict):
        return isinstance(found, dict) and all(
            name in found and agrees(found[name], value) for name, value in description.items()
        )
    if isinstance(description, (list, tuple)):
        same = isinstance(found, (list, tuple)) and len(found) == len(description)
        return same and all(map(agrees, found, description))
    return not isinstance(found, (Tensor, dict, list)) and bool(found == description)
