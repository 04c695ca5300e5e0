"""Files that hold a pair: a description of its parts, and their state; never any code."""

from __future__ import annotations

import inspect
import numbers
import os
import pickle
import tempfile
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf import (
    banks,
    components,
    constants,
    distortions,
    flows,
    guides,
    model,
    random_bank,
    rotated,
    simplex,
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
        random_bank.RandomBank,
        rotated.RotatedRealNVP,
        guides.ExactGuide,
        guides.MarginalGuide,
        guides.SoftmaxGuide,
        model.FlowMixture,
        model.MixtureComponent,
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
        transforms.ContextAffine,
        transforms.Logit,
        transforms.PReLU,
        transforms.Permutation,
        transforms.Rotation,
        transforms.SplineAutoregressive,
        transforms.SplineCoupling,
        transforms.Standardize,
        weights.FixedWeights,
        weights.LearnedWeights,
        weights.RandomWeights,
        weights.UpdatedWeights,
        weights.GatedWeights,
        simplex.DirichletPosterior,
        simplex.SticksPosterior,
        simplex.PointPosterior,
        simplex.NormalPosterior,
        simplex.DirichletPrior,
        constants.ConstantDistribution,
    )
}
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
        (simplex.StickBreaking, "a b"),
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
    if isinstance(value, Distribution) and part.__name__ in DISTRIBUTIONS:
        _, kept = DISTRIBUTIONS[part.__name__]
        arguments = {key: describe(getattr(value, name)) for key, name in kept.items()}
        return {"distribution": part.__name__, "arguments": arguments}
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
    if description.get("distribution") in DISTRIBUTIONS:
        made, _ = DISTRIBUTIONS[description["distribution"]]
        return made(**{k: build(v) for k, v in description["arguments"].items()})
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
