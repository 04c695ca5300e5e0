"""The plain arguments of the parts of a pair, which its state does not hold."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property

from pyro_vmonf.files.description import arguments_of, parts
from pyro_vmonf.flows.transformed import TransformedFlow
from pyro_vmonf.terms import Term

PLAIN = (bool, int, float, str, type(None))
HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
FEW = 8  # numbers of a fixed tensor that are named one by one
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w.])")
ROUNDING = 4e-7  # of numbers in a text, relative
# Attributes of distributions and transforms that follow from others, or from the last call.
COMPUTED = ("_batch_shape", "_event_shape", "_validate_args", "training")
Settings = dict[str, dict[str, Any]]


def settings_of(module: nn.Module, terms: bool = True) -> Settings:
    """Return what each part was built with, by its name: numbers, texts, fixed distributions.

    Of a part of the library these are the arguments of its constructor or what its ``settings()``
    returns, of a layer of torch what its ``repr`` shows. Other parts have no settings that are
    known.

    Arguments:
        module: the pair.
        terms: those of the guide's terms too.
    """
    found: Settings = {}
    for name, part in module.named_modules():
        kind: type = type(part)
        if isinstance(part, Term) and not terms:
            continue
        if isinstance(part, TransformedFlow):
            found[name] = _of_part(part, part.settings())
        elif parts().get(kind.__name__) is kind:
            found[name] = _of_part(
                part, {key: getattr(part, key, None) for key in arguments_of(kind)}
            )
        elif kind.__module__.startswith("torch.nn.modules.") and not isinstance(part, HOLDERS):
            found[name] = {"part": kind.__name__, "arguments": part.extra_repr()}
    return found


def _of_part(part: nn.Module, own: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: _plain(value) for key, value in own.items()}
    known = {key: value for key, value in plain.items() if value is not NotImplemented}
    return {"part": type(part).__name__, **known}


def difference(mine: Settings, theirs: Any, whole: bool = False) -> str:
    """Return the first setting that differs from those of a file; empty if none does.

    Arguments:
        mine: of the pair.
        theirs: of the file.
        whole: both have the same parts.

    Raises:
        ValueError: if those of the file are no settings.
    """
    if not isinstance(theirs, Mapping) or not all(
        isinstance(own, Mapping) and all(isinstance(v, PLAIN) for v in own.values())
        for own in theirs.values()
    ):
        raise ValueError("its 'settings' are no settings of parts")
    if whole and (apart := sorted(mine.keys() ^ theirs.keys())):
        where = "it" if apart[0] in mine else "the file"
        return f"only {where} has {apart[0]}, a {(mine | dict(theirs))[apart[0]].get('part')}"
    for name, own in mine.items():
        other = theirs.get(name, {})
        for key in own.keys() & other.keys():
            if not _is_same(own[key], other[key]):
                return f"{name or 'it'} has {key}={own[key]!r} and the file has {other[key]!r}"
    return ""


def _is_same(mine: Any, theirs: Any) -> bool:
    """Return whether settings are equal, texts but for the last digit of numbers in float32."""
    if mine == theirs or not (isinstance(mine, str) and isinstance(theirs, str)):
        return bool(mine == theirs)
    if NUMBER.sub("", mine) != NUMBER.sub("", theirs):
        return False
    pairs = zip(NUMBER.findall(mine), NUMBER.findall(theirs), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=ROUNDING) for a, b in pairs)


def _plain(value: Any) -> Any:
    """Return a setting as a number or a text; ``NotImplemented`` for what has none."""
    if isinstance(value, PLAIN):
        return value
    transforms = isinstance(value, list) and any(isinstance(item, Transform) for item in value)
    if transforms or isinstance(value, (Distribution, Transform)):
        return _text(value)
    is_schedule = dataclasses.is_dataclass(value) and not isinstance(value, type)
    is_tuple = isinstance(value, tuple) and all(isinstance(item, PLAIN) for item in value)
    return repr(value) if is_schedule or is_tuple else NotImplemented


def _text(value: Any) -> str:
    """Return a fixed distribution, or a part of one, as a text with the digits of its numbers."""
    if isinstance(value, Tensor):
        numbers = value.detach().double().flatten()
        text = ", ".join(f"{number:.9g}" for number in numbers[:FEW].tolist())
        if len(numbers) > FEW:
            whole = ", ".join(f"{number:.5g}" for number in numbers.tolist())
            digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
            text = f"{text}, and others: sum {numbers.sum():.9g}, digest x{digest}"
        return f"[{text}]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if not isinstance(value, (Distribution, Transform)):
        plain = isinstance(value, (*PLAIN, torch.dtype))
        return f"{value:.9g}" if isinstance(value, float) else repr(value) if plain else ""
    kind = type(value)
    own = {
        name.lstrip("_"): part
        for name, part in vars(value).items()
        if name not in COMPUTED
        and not name.startswith("_" if isinstance(value, nn.Module) else "_cache")
        and not (name == "_inv" and not isinstance(value, _InverseTransform))
        and not isinstance(part, (dict, torch.Size))
        and not isinstance(getattr(kind, name, None), lazy_property)
    }
    if "logits" in getattr(value, "arg_constraints", {}):  # which stand for probabilities too
        own = {name: own[name] for name in own.keys() - {"param", "probs"}}
        own["logits"] = value.logits  # type: ignore[union-attr]
    return f"{kind.__name__}({', '.join(f'{k}={_text(own[k])}' for k in sorted(own))})"
