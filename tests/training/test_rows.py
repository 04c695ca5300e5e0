"""Rows on their way in: loaders, data sets, weights, digits, columns."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.training.loaders import LoaderSource

K, D, N = 3, 2, 60
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4 - 1
WEIGHT = torch.rand(N, generator=torch.Generator().manual_seed(1)) + 0.5
QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def pair(weights: Any = "learned", make: Any = None) -> VMoNF:
    torch.manual_seed(0)
    bank = RealNVP(D, K, blocks=2, hidden=(4,)) if make is None else make(D, K)
    return VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(D, K, hidden=(4,))))


def state(vmonf: VMoNF) -> list[Tensor]:
    return [value.clone() for value in vmonf.state_dict().values()]


def same(one: VMoNF, other: VMoNF) -> bool:
    return all(map(torch.equal, state(one), state(other)))


def close(one: VMoNF, other: VMoNF) -> None:
    for mine, theirs in zip(state(one), state(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class Pairs(Dataset[Any]):
    """A data set of torch that yields what a function makes of a row's number."""

    def __init__(self, make: Callable[[int], Any], size: int = N) -> None:
        self.make, self.size = make, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if index >= self.size:
            raise IndexError
        return self.make(index)


class Recording(Gaussian):
    """A bank that starts from data: it keeps the weighted means of the rows."""

    moments: Tensor

    def __init__(self, features: int, components: int) -> None:
        super().__init__(features, components)
        self.register_buffer("moments", torch.zeros(components, features))

    def start_(self, x: Tensor, weight: Tensor | None = None) -> None:
        assert weight is not None
        self.moments.copy_(weight.mT @ x / weight.sum(0).unsqueeze(1))


class Stream(IterableDataset[Any]):
    """Rows one after the other, anew in each pass."""

    def __iter__(self) -> Iterator[Any]:
        return iter(X)


class Once(IterableDataset[Any]):
    """Rows that can be gone through once."""

    def __init__(self) -> None:
        self.rows = iter(X)

    def __iter__(self) -> Iterator[Any]:
        return self.rows


FORMS: dict[str, tuple[tuple[Tensor, ...], dict[str, Tensor]]] = {
    "x": ((X,), {}),
    "x, y": ((X, Y), {"y": Y}),
    "x, y, weight": ((X, Y, WEIGHT), {"y": Y, "sample_weight": WEIGHT}),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_loader_gives_what_the_same_rows_in_memory_give(form: str) -> None:
    tensors, arguments = FORMS[form]
    known, loader, memory = pair(), pair(), pair()
    known.fit(X, **arguments, epochs=5, batch_size=N, **QUIET)
    loader.fit(DataLoader(TensorDataset(*tensors), batch_size=N), epochs=5, **QUIET)
    memory.fit(TensorDataset(*tensors), epochs=5, batch_size=N, **QUIET)
    close(loader, known)
    assert same(memory, known)
    plain = pair()
    plain.fit(X, epochs=5, batch_size=N, **QUIET)
    assert same(plain, known) == (form == "x")  # labels and weights change the fit


def test_a_loader_of_one_tensor_in_a_list_is_rows() -> None:
    bare, listed = pair(), pair()
    bare.fit(DataLoader(X, batch_size=N), epochs=2, **QUIET)  # type: ignore[arg-type]
    listed.fit(DataLoader(TensorDataset(X), batch_size=N), epochs=2, **QUIET)
    assert same(bare, listed)


def test_a_data_set_is_gone_through_in_shuffled_batches() -> None:
    one, other, memory = pair(), pair(), pair()
    rows = Pairs(lambda i: (X[i], Y[i], WEIGHT[i]))
    assert one.fit(rows, epochs=2, batch_size=25, **QUIET).step == [3, 6]
    other.fit(rows, epochs=2, batch_size=25, **QUIET)
    assert same(one, other)
    part = Subset(TensorDataset(X, Y), range(30))
    assert memory.fit(part, epochs=1, batch_size=10, **QUIET).step == [3]
    restarted = pair().fit(rows, epochs=1, n_init=2, **QUIET)
    assert len(restarted.restarts) == 2
    both = pair().fit(TensorDataset(X, Y, WEIGHT), epochs=1, n_init=2, **QUIET)
    apart = pair().fit(X, Y, sample_weight=WEIGHT, epochs=1, n_init=2, **QUIET)
    assert both.restarts == apart.restarts


REFUSED: dict[str, tuple[Any, str]] = {
    "a dictionary": (Pairs(lambda i: {"x": X[i], "y": Y[i]}), r"dict with 'x', 'y'; expected x, "),
    "four parts": (TensorDataset(X, Y, WEIGHT, WEIGHT), r"of 4; expected x, \(x, y\)"),
    "rows in a pair": (Pairs(lambda i: ((X[i], X[i]), Y[i])), "of 2; expected x"),
    "weights for labels": (TensorDataset(X, WEIGHT), "weights of rows are sample_weight"),
    "negative weights": (TensorDataset(X, Y, -WEIGHT), "negative or non-finite values"),
    "weights of another shape": (TensorDataset(X, Y, X), "sample_weight has shape"),
    "no weight above zero": (TensorDataset(X, Y, 0 * WEIGHT), "zero for every row"),
    "labels out of range": (TensorDataset(X, Y + 3), "is out of range"),
    "three columns": (TensorDataset(torch.ones(N, 3)), "x has 3 features"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("how", ["loader", "data set"])
def test_other_batches_are_refused(name: str, how: str) -> None:
    rows, message = REFUSED[name]
    vmonf, before = pair(), pair()
    with pytest.raises((TypeError, ValueError), match=message):
        vmonf.fit(DataLoader(rows, batch_size=20) if how == "loader" else rows, epochs=1, **QUIET)
    assert same(vmonf, before)


def test_labels_and_weights_come_once_and_alike() -> None:
    rows = TensorDataset(X, Y, WEIGHT)
    for more in ({"y": Y}, {"sample_weight": WEIGHT}):
        with pytest.raises(ValueError, match="pass them once"):
            pair().fit(rows, **more, epochs=1, **QUIET)
        with pytest.raises(ValueError, match="go with rows in memory"):
            pair().fit(DataLoader(rows), **more, epochs=1, **QUIET)
    batches: Any = DataLoader(
        Pairs(lambda i: (X[:20], Y[:20]) if i else X[:20], 3), batch_size=None
    )
    with pytest.raises(ValueError, match=r"batch 1 .* has y: True and weights: False"):
        pair().fit(batches, epochs=1, **QUIET)


@pytest.mark.parametrize("how", ["loader", "tensors"])
def test_weights_in_a_loader_need_a_guide_that_takes_them(how: str) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)))
    rows = TensorDataset(X, Y, WEIGHT)
    with pytest.raises(ValueError, match="sample_weight needs a guide"):
        vmonf.fit(DataLoader(rows) if how == "loader" else rows, epochs=1, **QUIET)
    assert not vmonf.model.standardizer.fitted


EVERYTHING = torch.cat((X, torch.randn(200, D)))
SOME = list(range(N))
LOADERS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "rows": (lambda: DataLoader(X, batch_size=25), N, 3),  # type: ignore[arg-type]
    "drop_last": (lambda: DataLoader(X, batch_size=25, drop_last=True), 50, 2),  # type: ignore[arg-type]
    "a sampler of some": (
        lambda: DataLoader(EVERYTHING, batch_size=25, sampler=SubsetRandomSampler(SOME)),  # type: ignore[arg-type]
        N,
        3,
    ),
    "more draws than rows": (
        lambda: DataLoader(X, batch_size=25, sampler=RandomSampler(X, True, 130)),  # type: ignore[arg-type]
        130,
        6,
    ),
    "weighted draws": (
        lambda: DataLoader(X, batch_size=7, sampler=WeightedRandomSampler([1.0] * N, 20)),  # type: ignore[arg-type]
        20,
        3,
    ),
    "batches of a sampler": (
        lambda: DataLoader(EVERYTHING, batch_sampler=BatchSampler(SOME, 25, drop_last=True)),  # type: ignore[arg-type]
        50,
        2,
    ),
    "batches of one's own": (
        lambda: DataLoader(EVERYTHING, batch_sampler=[[0, 1, 2], [3, 4], [5, 6, 7, 8]]),  # type: ignore[arg-type]
        9,
        3,
    ),
    "the data set makes batches": (
        lambda: DataLoader(Pairs(lambda i: X[20 * i : 20 * i + 20], 3), batch_size=None),
        N,
        3,
    ),
    "a stream": (lambda: DataLoader(Stream(), batch_size=25), N, 3),
    "a stream, drop_last": (lambda: DataLoader(Stream(), batch_size=25, drop_last=True), 50, 2),
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_counts_the_rows_that_it_yields(name: str) -> None:
    make, size, batches = LOADERS[name]
    source = LoaderSource(make(), pair().model, 512)
    assert (source.size, source.batches) == (size, batches)
    assert sum(len(batch["x"]) for batch in source.epoch(torch.Generator())) == size


def test_a_prior_weighs_the_same_beside_a_sampler_of_some_rows() -> None:
    found = []
    start = pair(Dirichlet(torch.tensor([1.0, 5.0, 9.0])))
    start.fit(X, epochs=5, lr=0.05, **QUIET)  # the posterior leaves the prior
    for loader in (
        DataLoader(X, batch_size=N),  # type: ignore[arg-type]
        DataLoader(EVERYTHING, batch_size=N, sampler=SOME),  # type: ignore[arg-type]
    ):
        history = copy.deepcopy(start).fit(loader, epochs=3, lr=1e-9, **QUIET)
        found.append(sum(history.terms["weights"]))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert abs(found[0]) > 1e-4


def test_a_stream_that_runs_dry_says_so() -> None:
    vmonf, before = pair(), pair()
    with pytest.raises(ValueError, match="gone through only once"):
        vmonf.fit(DataLoader(Once(), batch_size=25), epochs=2, **QUIET)
    with pytest.raises(ValueError, match="gone through only once"):
        vmonf.fit(Once(), epochs=2, **QUIET)
    with pytest.raises(TypeError, match="gone through only once"):
        vmonf.fit(iter(X), epochs=2, **QUIET)
    with pytest.raises(TypeError, match="generator, which can be gone through only once"):
        vmonf.log_prob(row for row in X)
    with pytest.raises(ValueError, match="yields no batch"):
        vmonf.fit(DataLoader(X, batch_size=N + 1, drop_last=True), epochs=2, **QUIET)  # type: ignore[arg-type]
    assert same(vmonf, before)


@pytest.mark.parametrize(
    ("place", "value"), list(itertools.product([0, 24, 25, 59], ["nan", "inf"]))
)
def test_bad_rows_of_a_loader_have_their_own_number(place: int, value: str) -> None:
    spoilt = X.clone()
    spoilt[place, 1] = float(value)
    vmonf, before = pair(), pair()
    message = rf"batch {place // 25} of the DataLoader.* 1 of \d+ rows: {place};"
    with pytest.raises(ValueError, match=message):
        vmonf.fit(DataLoader(spoilt, batch_size=25), epochs=1, **QUIET)  # type: ignore[arg-type]
    assert same(vmonf, before)


FAR = 1e4 * torch.randn(15, D, generator=torch.Generator().manual_seed(3))
MIXED = torch.randperm(N + 15, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("bank", "uneven"), [("plain", True), ("started from data", False)], ids=str
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"held_out": 0.2},
        {"held_out": "positions"},
        {"keep": "best"},
        {"n_init": 2},
        {"pretrain_epochs": 1},
        {"interleave": True},
    ],
    ids=str,
)
def test_a_fit_with_rows_of_weight_zero_is_the_fit_without(
    options: dict[str, Any], bank: str, uneven: bool
) -> None:
    weight = torch.cat((WEIGHT if uneven else torch.ones(N), torch.zeros(15)))[MIXED]
    x, y = torch.cat((X, FAR))[MIXED], torch.cat((Y, torch.zeros(15, dtype=torch.long)))[MIXED]
    counts = weight > 0
    with_them, without = (pair(make=None if bank == "plain" else Recording) for _ in "ab")
    own = dict(options)
    if "held_out" in options and options["held_out"] == "positions":
        chosen = counts.nonzero().squeeze(1)[:12]
        own["held_out"], options = chosen, {"held_out": torch.arange(12)}
    common: dict[str, Any] = {"epochs": 3, "batch_size": 20, **QUIET}
    with_them.fit(x, y, sample_weight=weight, **own, **common)
    without.fit(x[counts], y[counts], sample_weight=weight[counts], **options, **common)
    assert same(with_them, without)
    assert bank == "plain" or with_them.model.bank.moments.abs().sum() > 0


def test_a_warm_start_counts_rows_by_their_weight() -> None:
    weight = torch.cat((torch.ones(N), torch.zeros(15)))
    x, clusters = torch.cat((X, FAR)), torch.arange(N + 15) % K
    for first in (None, clusters):
        one, other = pair(), pair()
        warm_start_(one.guide, x, first, sample_weight=weight, steps=5, seed=0)  # type: ignore[arg-type]
        own = None if first is None else first[:N]
        warm_start_(other.guide, X, own, steps=5, seed=0)  # type: ignore[arg-type]
        for mine, theirs in zip(state(one), state(other), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="zero for every row"):
        warm_start_(pair().guide, X, sample_weight=0 * WEIGHT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x has 2 rows but"):
        pair().fit(X, sample_weight=(torch.arange(N) < 2).float(), **QUIET)


@pytest.mark.parametrize("fast", [True, False])
def test_the_history_of_a_loader_counts_rows_with_a_weight_alone(fast: bool) -> None:
    weight = WEIGHT * (torch.arange(N) % 3 > 0)
    options = {**QUIET, "epochs": 2, "lr": 0.0, "temperature": 1.0, "keep": "best", "fast": fast}
    memory = pair("uniform").fit(X, Y, sample_weight=weight, batch_size=20, **options)
    loader = DataLoader(TensorDataset(X, Y, weight), batch_size=20)
    found = pair("uniform").fit(loader, **options)
    assert found.elbo == pytest.approx(memory.elbo, rel=1e-5)
    assert found.objective == pytest.approx(memory.objective, rel=1e-5)
    assert found.start == pytest.approx(memory.start, rel=1e-5)
    for name, values in memory.terms.items():
        assert found.terms[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize(("steps", "compiled"), [(1, False), (2, False), (3, False), (3, True)])
def test_a_run_that_ends_within_an_epoch_counts_the_rows_of_its_steps(
    steps: int, compiled: bool
) -> None:
    weight = torch.ones(20)
    weight[10:19] = 0.0
    vmonf = pair("uniform")
    vmonf.model.standardize_(X[:20])
    options: dict[str, Any] = {**QUIET, "lr": 1e-12, "temperature": 1.0, "compile": compiled}
    loader = DataLoader(TensorDataset(X[:20], Y[:20].clamp(max=-1), weight), batch_size=10)
    history = vmonf.fit(loader, steps=steps, **options)
    elbo = vmonf.elbo(X[:20]).double()
    first = float(elbo[:10].mean())
    both = float((elbo[:10].sum() + elbo[19]) / 11)
    expected = {1: [first], 2: [both], 3: [both, first]}[steps]
    assert history.elbo == pytest.approx(expected, rel=1e-5)
