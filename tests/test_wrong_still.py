"""Answers that a fifth reader found wrong, and the right ones."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Exponential,
    Independent,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Poisson,
    Uniform,
)

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Gaussian,
    MAFMoG,
    MixtureComponent,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf.datasets import TwoCircles, pinwheel
from pyro_vmonf.dequantization import Dequantized
from pyro_vmonf.distortions import RandomWalk
from pyro_vmonf.distributions.partial import observe
from pyro_vmonf.flows import GaussianMixtures, StandardNormal
from pyro_vmonf.flows.functional import WithParameters
from pyro_vmonf.interop.serving import Scores
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.interop.tables import read_table
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import ContextAffine, PReLU
from pyro_vmonf.transforms.mixture_of_gaussians import MixtureOfGaussians

UNTRAINED: dict[str, Any] = {"seed": 0, "minutes": 1e-6, "progress": False}


def blobs(rows: int = 300, seed: int = 0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, 2)) + 9 * np.eye(3)[np.arange(rows) % 3][:, :2]


@pytest.mark.parametrize("n_init", [1, 2])
def test_a_short_batch_counts_by_its_rows(n_init: int) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3))).double()
    x = torch.as_tensor(blobs(110))
    options: dict[str, Any] = {"n_init": n_init, "lr": 1e-30, "temperature": 1.0, "held_out": 0.0}
    history = vmonf.fit(x, epochs=2, batch_size=50, seed=0, progress=False, **options)
    assert history.elbo[-1] == pytest.approx(float(vmonf.elbo(x).mean()), rel=1e-9)


def test_few_rows_are_named() -> None:
    with pytest.warns(UserWarning, match="x has 2 rows for 1 component: with fewer than 10 rows"):
        VMoNF.from_data(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), components=1, **UNTRAINED)


def test_drawn_rows_of_the_background_have_its_label() -> None:
    x = np.concatenate((blobs(), 1e4 * np.array([[1.0, 0], [0, -1], [2, 2]])))
    with pytest.warns(UserWarning, match="far from all others"):
        found = FlowMixtureClustering(3, background="auto", minutes=1e-6, random_state=0).fit(x)
    rows, labels = found.sample(2000)
    assert set(labels) == {-1, 0, 1, 2}
    assert (found.predict(rows)[labels == -1] == -1).mean() > 0.95


# Components


def experts(count: int) -> Flow:
    affine = ContextAffine(2, 3, batch_shape=(count,))
    flow = Flow([affine], base=StandardNormal(2, count)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


def test_a_mixture_with_a_context_is_one_component_of_each_row() -> None:
    torch.manual_seed(0)
    inner = FlowMixture(experts(2), context_features=3).double()
    outer = VMoNF(FlowMixture(MixtureComponent(inner), context_features=3).double())
    h, x = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    alone = VMoNF(inner).log_prob(x, given=h)
    torch.testing.assert_close(outer.log_prob(x, given=h), alone, rtol=1e-12, atol=0)
    assert outer.model.num_components == 1
    assert outer.predict_proba(x, given=h).shape == (4, 1)
    both = FlowMixture([MixtureComponent(inner), experts(3)], context_features=3).double()
    joint = VMoNF(both).component_log_prob(x, given=h)
    torch.testing.assert_close(joint[:, 0], alone, rtol=1e-12, atol=1e-12)


def test_a_bank_whose_components_are_the_rows_is_refused() -> None:
    class OfRows(nn.Module):
        def forward(self, context: Tensor) -> Distribution:
            return Independent(Normal(context[:, :2], 1.0), 1)

    with pytest.raises(ValueError, match=r"\(3,\).* for 3 rows of context; expected batch_shape"):
        FlowMixture(OfRows(), context_features=3)


def test_a_bank_of_another_number_of_components_is_refused() -> None:
    model = FlowMixture(Gaussian(2, 1))
    former = model.bank
    for bank in (Gaussian(2, 4), Gaussian(3, 1)):
        with pytest.raises(ValueError, match="build a new FlowMixture"):
            model.bank = bank
        assert model.bank is former
    counts = Independent(Poisson(torch.ones(1, 2)), 1)
    with pytest.raises(ValueError, match="components are discrete"):
        model.bank = counts  # type: ignore[assignment]
    assert model.bank is former
    model.bank = Independent(Uniform(torch.zeros(1, 2), 1.0), 1)  # type: ignore[assignment]
    assert model.bounded
    assert model.marginal().log_prob(torch.full((1, 2), 0.5)).item() == 0


def test_a_frozen_copy_follows_fixed_components_and_settings() -> None:
    def at(place: float) -> Distribution:
        return Independent(Normal(torch.full((2, 2), place), 1.0), 1)

    model = FlowMixture(at(0.0))
    model.marginal(frozen=True)
    model.bank = at(5.0)  # type: ignore[assignment]
    x = torch.zeros(1, 2)
    assert torch.equal(model.marginal(frozen=True).log_prob(x), model.marginal().log_prob(x))
    model = FlowMixture(RealNVP(2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    frozen = model.frozen()
    assert model.frozen() is frozen
    for transform in model.bank.transforms:  # type: ignore[union-attr]
        transform.univariate.bound = 0.1
    assert torch.equal(model.marginal(frozen=True).log_prob(x), model.marginal().log_prob(x))


def test_a_file_says_what_it_does_not_hold(tmp_path: Path) -> None:
    changes: list[Callable[[Any], object]] = [
        lambda bank: setattr(bank.transforms[0].univariate, "bound", 1.0),
        lambda bank: bank.transforms.append(PReLU(2)),
    ]
    for change in changes:
        vmonf, twin = VMoNF(FlowMixture(RealNVP(2, 3))), VMoNF(FlowMixture(RealNVP(2, 3)))
        change(vmonf.model.bank)
        change(twin.model.bank)
        with pytest.warns(UserWarning, match="was changed after it was built"):
            vmonf.save(tmp_path / "pair.pt")
        with pytest.raises(ValueError, match="into=vmonf"):
            VMoNF.load(tmp_path / "pair.pt")
        VMoNF.load(tmp_path / "pair.pt", into=twin)
        x = torch.randn(5, 2)
        assert torch.equal(twin.log_prob(x), vmonf.log_prob(x))


# Densities


@pytest.mark.parametrize("way", ["inverse", "forward"])
def test_mixtures_of_gaussians_have_second_derivatives(way: str) -> None:
    draw = torch.Generator().manual_seed(0)
    function = getattr(MixtureOfGaussians(2, 3.0), way)
    x = torch.randn(2, 2, generator=draw).double().requires_grad_()
    theta = (0.5 * torch.randn(2, 6, 2, generator=draw).double()).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, theta))
    assert torch.autograd.gradgradcheck(function, (x, theta))


def test_a_density_of_mixtures_of_gaussians_has_a_hessian() -> None:
    torch.manual_seed(0)
    bank = MAFMoG(2, 1, base=Gaussian(2, 1)).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    density, x = FlowMixture(bank).marginal().log_prob, torch.tensor([0.3, -0.7]).double()
    found = torch.autograd.functional.hessian(density, x)
    steps = 1e-5 * torch.eye(2).double()
    slopes = [
        torch.autograd.functional.jacobian(density, x + e)  # type: ignore[no-untyped-call]
        - torch.autograd.functional.jacobian(density, x - e)  # type: ignore[no-untyped-call]
        for e in steps
    ]
    torch.testing.assert_close(found, torch.stack(slopes) / 2e-5, rtol=1e-7, atol=1e-8)


def test_distribution_functions_end_at_the_ends_of_supports() -> None:
    both = [Independent(Uniform(torch.tensor([low]), low + 1), 1) for low in (0.0, 2.0)]
    marginal = FlowMixture(both).marginal()
    x = torch.tensor([[-1.0], [0.5], [1.5], [2.5], [9.0]])
    assert marginal.cdf(x).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(
        marginal.icdf(torch.tensor([0.25, 0.75])), torch.tensor([[0.5], [2.5]])
    )
    parts = [
        Exponential(torch.ones(1)),
        Normal(torch.zeros(1), 1.0),
        LogNormal(torch.zeros(1), 1.0),
    ]
    marginal = FlowMixture([Independent(part, 1) for part in parts]).marginal()
    below = Normal(0.0, 1.0).cdf(torch.tensor(-1.0)) / 3
    torch.testing.assert_close(marginal.cdf(torch.tensor([[-1.0]]))[0], below)


def test_mixtures_of_torch_are_components() -> None:
    loc = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    inner = MixtureSameFamily(
        Categorical(torch.ones(2, 3).double()), Independent(Normal(loc, 1.0), 1)
    )
    x = torch.zeros(1, 2).double()
    expected = (inner.log_prob(x).logsumexp(-1) - np.log(2)).reshape(1)
    for bank in (inner, [inner]):
        model = FlowMixture(bank).double()
        assert not model.bounded
        torch.testing.assert_close(VMoNF(model).log_prob(x), expected, rtol=1e-12, atol=0)
    low = torch.arange(3.0).reshape(1, 3, 1).expand(2, 3, 2)
    box = MixtureSameFamily(Categorical(torch.ones(2, 3)), Independent(Uniform(low, 9.0), 1))
    with pytest.warns(RuntimeWarning, match="outside the support"):
        found = VMoNF(FlowMixture(box)).log_prob(torch.tensor([[5.0, 5.0], [-1.0, -1.0]]))
    exact = -2 * torch.tensor([9.0, 8.0, 7.0]).log()
    torch.testing.assert_close(found[0], exact.logsumexp(0) - np.log(3))
    assert found[1] == -torch.inf


def test_mixtures_of_gaussians_have_moments() -> None:
    torch.manual_seed(0)
    bank = GaussianMixtures(2, 3, 4).double()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = bank()
    weight, loc = found.log_weights.exp().unsqueeze(-1), found.loc
    covariance = torch.linalg.inv(found.whitening.mT @ found.whitening)
    mean = (weight * loc).sum(1)
    second = (weight * (covariance.diagonal(dim1=-2, dim2=-1) + loc.square())).sum(1)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, second - mean.square(), rtol=1e-10, atol=1e-10)
    with pytest.raises(NotImplementedError, match="mean_estimate"):
        FlowMixture(RealNVP(2, 3, base=GaussianMixtures(2, 3, 4))).marginal().mean  # noqa: B018


def test_a_bank_with_other_parameters_is_exact_where_the_bank_is() -> None:
    torch.manual_seed(0)
    bank, loc = Gaussian(2, 3), torch.randn(3, 2)
    x = torch.randn(6, 1, 2)
    x[..., 1] = torch.nan
    found = observe(WithParameters(bank, {"loc": loc}), x, draws=4)
    with torch.no_grad():
        bank.loc.copy_(loc)
    known = observe(bank(), x, draws=4)
    assert torch.equal(found.log_prob, known.log_prob)
    assert torch.equal(found.mean(), known.mean())
    assert not found.error.any()
    assert torch.equal(WithParameters(bank, {"loc": loc + 1}).mean, loc + 1)


# Rows


@pytest.mark.parametrize("weighted", [False, True])
def test_small_units_are_units(weighted: bool) -> None:
    x = np.concatenate((blobs(60)[:, :1], blobs(60)[:, :1] + 8))
    weight = np.where(np.arange(120) % 2, 1.0, 2.0) if weighted else None
    known = VMoNF(FlowMixture(Gaussian(1, 2))).double()
    known.model.standardize_(x, weight)
    for size in (1e-30, 1e-170):
        vmonf = VMoNF(FlowMixture(Gaussian(1, 2))).double()
        vmonf.model.standardize_(x * size, weight)
        scale = vmonf.model.standardizer.scale / size
        torch.testing.assert_close(scale, known.model.standardizer.scale, rtol=1e-12, atol=0)
    for size in (1e-46, 1e-170):
        with pytest.raises(ValueError, match=r"below the numbers of torch\.float32"):
            VMoNF(FlowMixture(Gaussian(1, 2))).fit(x * size, epochs=1, progress=False)
        with pytest.raises(ValueError, match=r"below the numbers of torch\.float32"):
            VMoNF.from_data(x * size, components=2, **UNTRAINED)


def test_the_background_has_the_share_of_its_weight() -> None:
    x = np.concatenate((blobs(120), [[200.0, 300.0], [-250.0, 400.0]]))
    weight = np.concatenate((np.full(120, 10.0), [1.0, 1.0]))
    options = {"components": 3, "background": True, **UNTRAINED}
    with pytest.warns(UserWarning, match="far from all others"):
        vmonf = VMoNF.from_data(x, sample_weight=weight, **options)
    share = vmonf.model.weights.log_mean().exp()[-1]
    assert float(share.detach()) == pytest.approx(2 / 1202, rel=1e-5)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_unsigned_numbers_are_numbers(kind: type) -> None:
    y = (np.arange(60) % 2).astype(kind)
    assert accuracy(y, y) == 1.0
    model = FlowMixture(Gaussian(2, 2), "learned")
    fit_em(model, blobs(60), sample_weight=y + kind(1), seed=0, max_iter=2)
    with pytest.raises(ValueError, match=r"beyond the largest of torch\.int64"):
        accuracy(np.full(60, 2**64 - 1, dtype=np.uint64), y)


def test_arguments_that_mean_nothing_are_refused() -> None:
    x = blobs(60)
    gaps = np.where(x > 9, np.nan, x)
    model = FlowMixture(Gaussian(2, 2), "learned")
    with pytest.raises(ValueError, match=r"ridge is -0\.3"):
        fit_em(model, x, ridge=-0.3)
    fit_em(model, x, responsibilities=np.full((60, 2), 0.5) + 0.1 * (x > 4), max_iter=2)
    with pytest.raises(ValueError, match="not finite; a walk needs rows"):
        RandomWalk(gaps)
    assert RandomWalk(x).ends.shape == (60, 64)
    with pytest.raises(ValueError, match="expected two, the outer one first"):
        TwoCircles(radii=(2.0, 1.0, 0.3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise is -1"):
        TwoCircles(noise=-1)
    with pytest.raises(ValueError, match="per_wing is -1"):
        pinwheel(3, -1)
    levels = torch.randint(256, (4, 2))
    with pytest.raises(ValueError, match="batch_size is 0"):
        Dequantized(VMoNF(FlowMixture(RealNVP(2, 2)))).fit(levels, batch_size=0, flows=True)


def test_positions_of_held_out_rows_may_be_a_list() -> None:
    for held_out in ([0, 1, 2], range(3)):
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
        history = vmonf.fit(blobs(60), held_out=held_out, epochs=1, progress=False, seed=0)  # type: ignore[arg-type]
        assert len(history.held_out) == 1


def test_scores_for_serving_are_those_of_the_verbs_after_a_fit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.9), nn.Linear(8, 3))
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(network)).train()
    x = torch.randn(9, 2)
    assert torch.equal(Scores(vmonf)(x)[1], vmonf.predict_proba(x))


# Tables and the estimator


def test_labels_stand_as_they_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    for labels, classes in (
        (["None", "Heavy", "NA", ""], ["Heavy", "NA", "None"]),
        (["01", "1", "", "1"], ["01", "1"]),
        (["TRUE", "true", "", "x"], ["TRUE", "true", "x"]),
        (["9007199254740993", "9007199254740992", "", "1"], None),
    ):
        frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 5.0], "b": [4.0, 1.0, 2.0, 2.0], "s": labels})
        frame.to_csv(file, index=False)
        table = read_table(file, label="s")
        assert table.names == (classes or sorted(set(labels) - {""}))
        assert table.y is not None
        assert [table.names[c] if c >= 0 else "" for c in table.y.tolist()] == labels
    assert any("class named NA" in line for line in _said(file, ["NA", "x", "", "y"]))


def _said(file: Path, labels: list[str]) -> list[str]:
    rows = "".join(f"{i},{i * i},{label}\n" for i, label in enumerate(labels))
    file.write_text("a,b,s\n" + rows)
    return read_table(file, label="s").said


def test_blank_lines_of_a_packed_file_are_no_rows(tmp_path: Path) -> None:
    text = "\n\na,b\n1,2\n3,4\n5,inf\n\n\n"
    with gzip.open(tmp_path / "table.csv.gz", "wt") as file:
        file.write(text)
    table = read_table(tmp_path / "table.csv.gz")
    assert table.whole == 3
    assert any("1 of 3 rows have no number or an infinite one" in line for line in table.said)


def test_a_refused_fit_leaves_the_estimator_as_it_was() -> None:
    frame = pd.DataFrame(blobs(120), columns=[7, 5])
    options: dict[str, Any] = {"flow": "gaussian", "max_iter": 4, "random_state": 0}
    found = FlowMixtureClustering(3, use_labels=True, **options)
    found.fit(frame, np.where(np.arange(120) < 30, np.arange(120) % 3, -1))
    before = found.score_samples(frame), found.classes_.tolist()
    with pytest.raises(ValueError, match="minimum of 2"):
        found.fit(frame[[5, 7]][:1])
    with pytest.raises(ValueError, match="5 classes"):
        found.fit(frame, np.arange(120) % 5)
    assert np.array_equal(found.score_samples(frame), before[0])
    assert found.classes_.tolist() == before[1]
    assert found.labels_used_


def test_the_estimator_takes_rows_in_any_order_of_memory() -> None:
    x = blobs(60)
    for view in (x[::-1], x[:, ::-1]):
        found = FlowMixtureClustering(3, flow="gaussian", max_iter=2, random_state=0)
        again = FlowMixtureClustering(3, flow="gaussian", max_iter=2, random_state=0)
        assert np.array_equal(found.fit(view).labels_, again.fit(view.copy()).labels_)
    with pytest.raises(ValueError, match="n_samples=60 is below n_components=200"):
        FlowMixtureClustering(np.int64(200)).fit(x)  # type: ignore[arg-type]
