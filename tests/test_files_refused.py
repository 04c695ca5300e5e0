"""Files that are not what a pair wrote: each is refused by a ValueError, or loads what it says."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf import MAF, FlowMixture, RealNVP, SoftmaxGuide, VMoNF, files
from pyro_vmonf.distortions import Jitter
from pyro_vmonf.nn import MLP
from pyro_vmonf.schedules import linear_decay
from pyro_vmonf.terms import Balance, Consistency
from tests.test_files import little_memory

K, D = 3, 2


def pair() -> VMoNF:
    torch.manual_seed(0)
    terms = [Balance(weight=linear_decay(5)), Consistency(Jitter(0.2))]
    guide = SoftmaxGuide(MLP(D, K, hidden=(4,)), terms)
    return VMoNF(FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), "learned"), guide)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "pair.pt"
    vmonf = pair()
    vmonf.fit(torch.randn(30, D), epochs=2, progress=False, seed=0)
    vmonf.save(path)
    return path.read_bytes()


def content_of(written: bytes) -> dict[str, Any]:
    return torch.load(io.BytesIO(written), weights_only=True)  # type: ignore[no-any-return]


def equal(one: Any, other: Any) -> bool:
    """Whether the first has all of the second, tensors by their numbers; a default may be new."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and all(equal(one[key], other[key]) for key in other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def loads_to_itself_or_is_refused(path: Path, content: dict[str, Any] | None) -> bool:
    """Load a file; return whether it was refused. ``None`` stands for content that is unknown."""
    try:
        loaded = VMoNF.load(path)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        return True
    if content is not None:
        assert equal(files.describe(loaded.model), content["description"]["model"])
        assert equal(files.describe(loaded.guide), content["description"]["guide"])
        state = loaded.state_dict()
        assert equal(dict(state), dict(content["state"]))
        assert all(state[name].dtype == v.dtype for name, v in content["state"].items())
    return False


def test_truncated_files_are_refused(written: bytes, tmp_path: Path) -> None:
    draw = random.Random(1)
    path = tmp_path / "pair.pt"
    for _ in range(60):
        path.write_bytes(written[: draw.randrange(len(written))])
        assert loads_to_itself_or_is_refused(path, None)


def test_changed_bytes_are_refused_or_change_nothing(written: bytes, tmp_path: Path) -> None:
    draw, path = random.Random(2), tmp_path / "pair.pt"
    content, refused = content_of(written), 0
    for _ in range(80):
        changed = bytearray(written)
        for _ in range(draw.choice([1, 3, 20])):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        if draw.random() < 0.3:  # a piece that is missing or twice there
            start, size = draw.randrange(len(changed)), draw.randrange(1, 200)
            changed[start : start + size] = changed[start : start + size] * draw.choice([0, 2])
        path.write_bytes(bytes(changed))
        refused += loads_to_itself_or_is_refused(path, content)
    assert refused > 60


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in dictionaries and lists."""
    yield path
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from places(item, (*path, key))


PUT: list[Any] = [
    *(0, 1, 2, 3, -1, 7, 64, 10**5, 10**9, 10**30, 1.5, -0.5, 1e308, float("nan"), float("inf")),
    *(None, True, "", "relu", "RealNVP", [], [1], [10**4] * 3, {}, {"part": "MLP"}),
    *(torch.zeros(3), torch.tensor(float("nan")), torch.zeros(1).expand(10**9)),
    {"part": "Flow", "arguments": {"transforms": [], "base": None}},
    {"distribution": "Normal", "arguments": {"loc": torch.zeros(2), "scale": -torch.ones(2)}},
]


def test_changed_values_are_refused_or_are_what_the_file_says(
    written: bytes, tmp_path: Path
) -> None:
    """Every place of description, state and history takes values that it should not have."""
    draw, path = random.Random(3), tmp_path / "pair.pt"
    original = content_of(written)
    everywhere = [p for p in places(original) if p and p != ("description",)]
    refused = 0
    for case in range(200):
        content = copy.deepcopy(original)
        place = everywhere[case % len(everywhere)]
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = draw.choice(PUT)
        files.write(content, path)
        with little_memory(300):
            refused += loads_to_itself_or_is_refused(path, content)
    assert refused > 100


# What a file may claim.


def claims(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Callable[[bytes], Any]:
    def changed(written: bytes) -> dict[str, Any]:
        content = content_of(written)
        change(content, content["description"]["model"]["arguments"]["bank"])
        return content

    return changed


def pad(content: dict[str, Any], numbers: int = 10**6) -> None:
    content["state"]["pad"] = torch.zeros(numbers)


def eye(content: dict[str, Any], bank: dict[str, Any]) -> None:
    pad(content)
    bank["part"] = "Flow"
    affine = {"part": "Affine", "arguments": {"features": 60_000, "batch_shape": []}}
    base = {"part": "StandardNormal", "arguments": {"features": 60_000, "components": 3}}
    bank["arguments"] = {"transforms": [affine], "base": base}


def wide(content: dict[str, Any], bank: dict[str, Any]) -> None:
    pad(content)
    arguments = files.describe(MAF(D, 1, blocks=1))["arguments"]
    bank.update(part="MAF", arguments={**arguments, "features": 60_000, "hidden": [60_000]})


def many(content: dict[str, Any], bank: dict[str, Any]) -> None:
    pad(content)
    bank["arguments"]["blocks"] = 10**6 - 100


def strides(content: dict[str, Any], bank: dict[str, Any]) -> None:
    content["state"]["pad"] = torch.zeros(1).expand(10**12)


def shared(content: dict[str, Any], bank: dict[str, Any]) -> None:
    """The same list in each list, so that its size doubles with each."""
    value: list[Any] = [1, 1]
    for _ in range(40):
        value = [value, value]
    bank["arguments"]["hidden"] = value


def endless(content: dict[str, Any], bank: dict[str, Any]) -> None:
    value: list[Any] = []
    value.append(value)
    bank["arguments"]["hidden"] = value


def nested(content: dict[str, Any], bank: dict[str, Any]) -> None:
    base: Any = None
    for _ in range(100):
        base = {"part": "Flow", "arguments": {"transforms": [], "base": base}}
    bank.update(part="Flow", arguments={"transforms": [], "base": base})


def without_numbers(content: dict[str, Any], bank: dict[str, Any]) -> None:
    bank["arguments"]["transforms"] = [{"part": "Logit", "arguments": {}}] * 10**5


def units(content: dict[str, Any], bank: dict[str, Any]) -> None:
    content["state"]["model.standardizer.scale"].zero_()


def temperature(content: dict[str, Any], bank: dict[str, Any]) -> None:
    content["state"]["guide.temperature"].fill_(-1.0)


CLAIMS = [eye, wide, many, strides, shared, endless, nested, without_numbers, units, temperature]


@pytest.mark.parametrize("change", CLAIMS, ids=lambda change: change.__name__)
def test_what_a_file_claims_is_not_made(
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    written: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "pair.pt"
    content = claims(change)(written)
    with open(path, "wb") as file:
        torch.save(content, file)
    made: list[object] = []
    init = torch.nn.Module.__init__

    def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        made.append(None)
        init(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__init__", counted)
    with little_memory(300), pytest.raises(ValueError, match=r"pair\.pt"):
        VMoNF.load(path)
    assert len(made) < 200  # the time is that of few parts


def test_numbers_that_are_not_finite_are_refused_or_told(written: bytes, tmp_path: Path) -> None:
    path, content = tmp_path / "pair.pt", content_of(written)
    for name, value in content["state"].items():
        if not value.is_floating_point():
            continue
        changed = copy.deepcopy(content)
        changed["state"][name].view(-1)[0] = float("nan")
        files.write(changed, path)
        with pytest.raises(ValueError, match=f"not finite: {name}"):
            VMoNF.load(path)
    vmonf = pair()
    with torch.no_grad():
        vmonf.guide.network.layers[0].bias[0] = float("inf")  # type: ignore[union-attr, index]
    vmonf.save(path)
    with pytest.warns(RuntimeWarning, match=r"not finite: guide\.network\.layers\.0\.bias$"):
        loaded = VMoNF.load(path)
    assert equal(dict(loaded.state_dict()), dict(vmonf.state_dict()))


TEXT = "<img src=x onerror=alert(1)>"


def test_text_of_a_file_is_escaped(written: bytes, tmp_path: Path) -> None:
    path, content = tmp_path / "pair.pt", content_of(written)
    content["history"]["stopped"] = content["history"]["road"] = TEXT
    content["history"]["terms"][TEXT] = [0.0, 0.0]
    files.write(content, path)
    loaded = VMoNF.load(path)
    assert loaded.history is not None
    assert loaded.history.stopped == TEXT
    for shown in (loaded, loaded.history, loaded.report(torch.randn(9, D))):
        if hasattr(shown, "_repr_html_"):
            assert "<img" not in shown._repr_html_()
    for name in content["history"]:
        if name not in ("stopped", "road"):
            changed = copy.deepcopy(content)
            changed["history"][name] = TEXT
            files.write(changed, path)
            with pytest.raises(ValueError, match=f"history has {name}="):
                VMoNF.load(path)
