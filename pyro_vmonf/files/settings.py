"""The plain arguments of the parts of a pair, which its state does not hold."""

from __future__ import annotations

import dataclasses
import hashlib
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
            if own[key] != other[key]:
                return f"{name or 'it'} has {key}={own[key]!r} and the file has {other[key]!r}"
    return ""


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
    """Return a fixed distribution, or a part of one, as a text with five digits of its numbers."""
    if isinstance(value, Tensor):
        numbers = [f"{number:.5g}" for number in value.detach().double().flatten().tolist()]
        text = ", ".join(numbers)
        if len(numbers) > FEW:
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            text = f"{', '.join(numbers[:FEW])}, and others: {digest}"
        return f"[{text}]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    if not isinstance(value, (Distribution, Transform)):
        plain = isinstance(value, (*PLAIN, torch.dtype))
        return f"{value:.5g}" if isinstance(value, float) else repr(value) if plain else ""
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
