"""Files that hold a pair: a description of its parts, and their state; never any code."""

from __future__ import annotations

import inspect
import numbers
import os
import pickle
import tempfile
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf import (
    banks,
    components,
    distortions,
    flows,
    guides,
    model,
    temperature,
    terms,
    transforms,
    weights,
)
from pyro_vmonf import nn as networks

FORMAT = 1

# Every part keeps its constructor's arguments as attributes of the same names, so that what is
# described is what stands there now.
PARTS: dict[str, type] = {
    part.__name__: part
    for part in (
        flows.AutoregressiveNSF,
        flows.Flow,
        flows.Gaussian,
        flows.MAF,
        flows.NSF,
        flows.RealNVP,
        banks.Stack,
        components.Picked,
        flows.StandardNormal,
        guides.MarginalGuide,
        guides.SoftmaxGuide,
        model.FlowMixture,
        networks.ConvEncoder,
        networks.MLP,
        distortions.Adversarial,
        distortions.AffineImages,
        distortions.Jitter,
        distortions.RandomWalk,
        temperature.Constant,
        temperature.ExponentialDecay,
        temperature.Linear,
        terms.Balance,
        terms.Classification,
        terms.Confidence,
        terms.Consistency,
        transforms.Affine,
        transforms.AffineAutoregressive,
        transforms.AffineCoupling,
        transforms.BatchNorm,
        transforms.Logit,
        transforms.PReLU,
        transforms.Permutation,
        transforms.SplineAutoregressive,
        transforms.SplineCoupling,
        transforms.Standardize,
        weights.FixedWeights,
        weights.LearnedWeights,
        weights.RandomWeights,
    )
}
_REBOUND = {"model"}  # the guide's reference to its model, which the pair makes


def describe(value: Any) -> Any:
    """Return a part, and those in it, as plain data.

    Raises:
        TypeError: if a part is not one of the library's.
    """
    if isinstance(value, (nn.ModuleList, list, tuple)):
        return [describe(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, numbers.Integral):  # numpy's
        return int(value)
    if isinstance(value, Tensor):
        return value.detach().cpu()
    part = type(value)
    if PARTS.get(part.__name__) is not part:
        raise TypeError(f"{part.__module__}.{part.__qualname__} is not a part of pyro_vmonf")
    names = [n for n in inspect.signature(part).parameters if n not in _REBOUND]
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
    name = description.get("part")
    if name not in PARTS:
        raise ValueError(f"the file names the part {name!r}, which this version does not have")
    return PARTS[name](**{k: build(v) for k, v in description["arguments"].items()})


def save(vmonf: Any, path: str | os.PathLike[str]) -> None:
    """Write a pair to ``path``, all or nothing."""
    try:
        description: Any = {"model": describe(vmonf.model), "guide": describe(vmonf.guide)}
    except TypeError as error:
        description = None  # the state alone, to be loaded into a built pair
        warnings.warn(f"{error}; load the file with VMoNF.load(path, into=vmonf)", stacklevel=3)
    content = {"format": FORMAT, "description": description, "state": vmonf.state_dict()}
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], *, into: Any = None) -> Any:
    """Return the pair that ``path`` holds, or ``into`` filled from it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not such a file, or does not fit ``into``.
    """
    from pyro_vmonf.vmonf import VMoNF

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a saved VMoNF: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{os.fspath(path)} has format {found!r}; expected {FORMAT}")
    if into is None:
        if content["description"] is None:
            raise ValueError(
                f"{os.fspath(path)} holds modules that are not pyro_vmonf's; build the pair and "
                "pass it: VMoNF.load(path, into=vmonf)"
            )
        with torch.random.fork_rng(devices=[]):
            into = VMoNF(
                build(content["description"]["model"]), build(content["description"]["guide"])
            )
    for value in content["state"].values():
        if value.is_floating_point():
            into.to(value.dtype)
            break
    try:
        into.load_state_dict(content["state"])
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)} does not fit the pair: {error}") from error
    return into
