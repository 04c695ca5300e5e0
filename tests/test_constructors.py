"""Constructors: every argument is an attribute of its name, and a file follows the attribute."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import pyro_vmonf
from pyro_vmonf import FlowMixture, VMoNF, components, files, transforms
from pyro_vmonf._utils.repr import Recorded
from pyro_vmonf.distortions import Jitter
from pyro_vmonf.flows import Gaussian, RandomBank, StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import FlowTransform, PReLU
from pyro_vmonf.weights import GammaDirichlet, RandomWeights

K, D = 3, 2
IMAGE = (1, 4, 4)
# These parts have a user's function among their arguments, which no file holds, or are abstract.
NO_FILE = {
    *("Replicated", "CustomTerm", "Term", "Weights", "BoundGuide", "FlowTransform", "Posterior"),
    *("ImageTransform", "Autoregressive", "Coupling", "ImageAutoregressive", "ImageCoupling"),
    *("History", "PyroGuide"),
}
EXAMPLES: dict[str, Callable[[], Any]] = {
    "features": lambda: D,
    "components": lambda: K,
    "in_features": lambda: D,
    "out_features": lambda: K,
    "image_shape": lambda: (2, 4, 4),
    "event_shape": lambda: (D,),
    "index": lambda: torch.tensor([1, 0]),
    "num_components": lambda: K,
    "num_groups": lambda: 4,
    "observed": lambda: torch.ones(K) / K,
    "probs": lambda: torch.ones(K) / K,
    "concentration": lambda: torch.ones(K),
    "bank": lambda: Gaussian(D, K),
    "network": lambda: MLP(D, K),
    "parts": lambda: [Gaussian(D, 1), Gaussian(D, 2)],
    "transforms": lambda: [PReLU(D)],
    "x": lambda: torch.randn(20, D),
    "distort": Jitter,
    "value": lambda: 1.0,
    "rate": lambda: 0.1,
    "initial": lambda: 1.0,
    "steps": lambda: 3,
    "context_features": lambda: 2,
    "prior": lambda: torch.ones(K),
    "distribution": lambda: Normal(torch.zeros(D), 1.0),
    "model": lambda: FlowMixture(Gaussian(D, K)),
}
OWN: dict[str, dict[str, Any]] = {
    "ActNorm": {"channels": 4},
    "ObservedBank": {
        "bank": RandomBank(Gaussian(D, K)),
        "names": ["loc"],
        "values": [torch.zeros(K, D)],
    },
    "ConditionedWeights": {
        "weights": RandomWeights(GammaDirichlet(K)),
        "names": ["weights_concentration"],
        "values": [torch.tensor(2.0)],
    },
    "InvertibleConvolution": {"channels": 4},
    "MarkovMixture": {"initial": "learned", "transition": "learned"},
    "Split": {"transforms": [transforms.ActNorm(2)]},
    "Squeezed": {"transforms": [transforms.ActNorm(4)]},
}


def built(name: str) -> Any:
    part = files.parts()[name]
    parameters = inspect.signature(part).parameters
    given = {key: make() for key, make in EXAMPLES.items() if key in parameters}
    if "transforms" in parameters and "base" in parameters:
        given["base"] = StandardNormal(D, K)
    return part(**{**given, **OWN.get(name, {})})


def other(value: Any) -> Any:
    """Another value of the same kind, or the value itself where there is no plain other one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "?"
    if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
        return torch.Size([*value, 1]) if isinstance(value, torch.Size) else (*value, 1)
    return value


def arguments(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = files.describe(part)["arguments"]
    return found


@pytest.mark.parametrize("name", sorted(set(files.parts()) - NO_FILE))
def test_a_file_says_what_the_attributes_say(name: str) -> None:
    part = built(name)
    before = arguments(part)
    changed = {}
    for key in before:
        value = getattr(part, key)
        new = other(value)
        if new is value:
            continue
        try:
            object.__setattr__(part, key, new)
        except AttributeError:  # a property of torch's, which follows another attribute
            continue
        changed[key] = list(new) if isinstance(new, tuple) else new
    after = arguments(part)
    assert after.keys() == before.keys()
    assert {key: after[key] for key in changed} == changed


BANKS: dict[str, Callable[[], nn.Module]] = {
    "RealNVP": lambda: pyro_vmonf.RealNVP(D, K, hidden=[4], blocks=2),
    "MAF": lambda: pyro_vmonf.MAF(D, K, hidden=[4], blocks=2, shared=1),
    "NSF": lambda: pyro_vmonf.NSF(D, K, hidden=(4,), blocks=2, bins=4, shared_at="base"),
    "AutoregressiveNSF": lambda: pyro_vmonf.AutoregressiveNSF(D, K, hidden=(4,), bound=3.0),
    "MAFMoG": lambda: pyro_vmonf.MAFMoG(D, K, hidden=(4,), blocks=2, mixtures=2),
    "RotatedRealNVP": lambda: pyro_vmonf.RotatedRealNVP(K, blocks=2, hidden=(4,)),
    "Glow": lambda: pyro_vmonf.Glow(IMAGE, K, blocks=1, channels=4, scales=1),
    "ImageNSF": lambda: pyro_vmonf.ImageNSF(IMAGE, K, blocks=1, channels=4, bins=4),
    "MultiScaleRealNVP": lambda: pyro_vmonf.MultiScaleRealNVP(IMAGE, K, blocks=1, channels=4),
    "PixelFlow": lambda: pyro_vmonf.PixelFlow(IMAGE, K, channels=4, depth=1, squeezes=1),
    "Gaussian": lambda: Gaussian(D, K),
    "GaussianMixtures": lambda: pyro_vmonf.flows.GaussianMixtures(D, K, 2),
    "StudentMixtures": lambda: pyro_vmonf.flows.StudentMixtures(D, K, 2),
}


@pytest.mark.parametrize("name", BANKS)
def test_a_pruned_pair_comes_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(BANKS[name]()))
    components.take_components_(vmonf, torch.tensor([2, 0]))
    assert arguments(vmonf.model.bank)["components"] == 2
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    x = torch.randn(5, *vmonf.model.event_shape)
    assert torch.equal(loaded.log_prob(x), vmonf.log_prob(x))
    assert torch.equal(loaded.component_log_prob(x), vmonf.component_log_prob(x))
    assert repr(loaded) == repr(vmonf)


@pytest.mark.parametrize("name", BANKS)
def test_copies_keep_the_arguments(name: str) -> None:
    bank = BANKS[name]()
    described = files.describe(bank)["arguments"]
    for twin in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        found = files.describe(twin)["arguments"]
        assert {k: v for k, v in found.items() if k != "base"} == {
            k: v for k, v in described.items() if k != "base"
        }


# Signatures.


def test_options_are_in_the_signature_and_in_no_other_name() -> None:
    parameters = inspect.signature(pyro_vmonf.NSF).parameters
    assert list(parameters) == [
        *("features", "components", "blocks", "hidden", "bins", "activation"),
        *("bound", "base", "context_features", "shared", "shared_at"),
    ]
    assert parameters["bound"].default == 5.0
    assert list(inspect.signature(transforms.SplineCoupling).parameters) == [
        *("features", "bins", "bound", "mask", "hidden", "activation", "networks"),
        *("context_features", "batch_shape"),
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pyro_vmonf.NSF(D, K, knots=3), r"NSF.__init__\(\) got an unexpected .* 'knots'"),
        (lambda: pyro_vmonf.NSF(D), r"NSF.__init__\(\) missing .* 'components'"),
        (lambda: pyro_vmonf.NSF(D, K, 3), r"NSF.__init__\(\) too many positional arguments"),
        (lambda: transforms.AffineCoupling(D, univariate=None), "unexpected .* 'univariate'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


# Classes of a user's own.


class Shift(FlowTransform):
    def __init__(
        self,
        by: Any,
        inner: nn.Module,
        sizes: Any = (1, 2),
        parameters: int = 3,
        *rest: Any,
        **more: Any,
    ) -> None:
        super().__init__(batch_shape=more.pop("shape", ()))
        self.register_buffer("by", torch.as_tensor(by))
        self.layers = nn.ModuleList([inner])


def test_a_class_of_ones_own_records_plain_arguments_alone() -> None:
    shift = Shift([1.0, 2.0], nn.Linear(1, 1), [3, 4], shape=(K,))
    assert torch.equal(shift.by, torch.tensor([1.0, 2.0]))
    assert shift.sizes == (3, 4)
    assert callable(shift.parameters)
    assert set(shift.state_dict()) == {"by", "layers.0.weight", "layers.0.bias"}
    assert not any(hasattr(shift, name) for name in ("inner", "rest", "more", "shape"))


def test_what_a_class_sets_itself_stays() -> None:
    class Half(Recorded):
        def __init__(self, width: int) -> None:
            self.width = width // 2

    class Quarter(Half):
        def __init__(self, width: int, name: str = "quarter") -> None:
            super().__init__(width // 2)

    quarter = Quarter(width=8)
    assert (quarter.width, quarter.name) == (2, "quarter")  # type: ignore[attr-defined]


def test_arguments_are_there_once_the_base_class_is_made() -> None:
    class Twice(pyro_vmonf.RealNVP):
        def __init__(self, hidden: int = 4) -> None:
            super().__init__(D, K, hidden=(hidden,), blocks=2)
            self.twice = 2 * self.blocks

    bank = Twice()
    assert (bank.blocks, bank.twice, bank.hidden) == (2, 4, 4)
    assert "_given" not in vars(bank)
