"""Files that hold a pair: a description of its parts, and their state; never any code."""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import os
import warnings
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vmonf import (
    banks,
    components,
    constants,
    distortions,
    files,
    flows,
    guides,
    images,
    model,
    pixel_flow,
    random_bank,
    rotated,
    simplex,
    temperature,
    terms,
    transforms,
    weights,
)
from pyro_vmonf import nn as networks
from pyro_vmonf._version import __version__
from pyro_vmonf.history import History

KIND = "fitted mixture"
FORMAT = 2

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
        flows.MAFMoG,
        flows.StandardNormal,
        images.Glow,
        images.ImageNSF,
        images.MultiScaleRealNVP,
        pixel_flow.PixelFlow,
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
        transforms.ActNorm,
        transforms.Affine,
        transforms.AffineImageAutoregressive,
        transforms.AffineImageCoupling,
        transforms.AffineAutoregressive,
        transforms.AffineCoupling,
        transforms.BatchNorm,
        transforms.ContextAffine,
        transforms.InvertibleConvolution,
        transforms.Logit,
        transforms.MixtureAutoregressive,
        transforms.PReLU,
        transforms.Permutation,
        transforms.Rotation,
        transforms.SplineAutoregressive,
        transforms.SplineCoupling,
        transforms.SplineImageAutoregressive,
        transforms.SplineImageCoupling,
        transforms.Split,
        transforms.Squeezed,
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
    files.write(content, path)


def load(path: str | os.PathLike[str], *, into: Any = None) -> Any:
    """Return the pair that ``path`` holds, or ``into`` filled from it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, not such a file, or does not fit ``into``, which is then as it
            was.
    """
    from pyro_vmonf.vmonf import VMoNF

    content, name = files.read(path, KIND), os.fspath(path)
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
            with torch.random.fork_rng(devices=[]), Bounded(room):
                check_sizes(description, room)
                into = VMoNF(build(description["model"]), build(description["guide"]))
            into.to(dtype)
        past = content["history"]
        history = None if past is None else History(**past)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{name} describes no pair that could be built: {error}") from error
    before = {key: value.clone() for key, value in into.state_dict().items()}
    try:
        into.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        into.load_state_dict(before)
        raise ValueError(f"{name} does not fit the pair: {error}") from error
    into.to(dtype)
    into.history = history
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
