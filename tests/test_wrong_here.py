"""Right values where a tenth reader found wrong ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, Uniform

from pyro_vmonf import (
    MAF,
    ExactGuide,
    FlowMixture,
    Gaussian,
    MAFMoG,
    MarkovMixture,
    MarkovVMoNF,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf.flows import Flow
from pyro_vmonf.interop.tables import read_table
from pyro_vmonf.metrics import kl_divergence, kl_to_truth
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import plot_density
from pyro_vmonf.starts import Reseed, warm_start_
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.transforms import Logit
from pyro_vmonf.weights import LearnedWeights


def rows(count: int = 60, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def blobs(count: int = 90) -> Tensor:
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    return centres.repeat_interleave(count // 3, 0) + rows(count)


# Rows with gaps.


def normal(z: Tensor, scale: float) -> Tensor:
    return -0.5 * (z / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 3e-4, 1e-5])
def test_columns_that_nearly_follow_from_others_keep_their_digits(
    spread: float, dtype: torch.dtype
) -> None:
    bank = Gaussian(3, 1)
    with torch.no_grad():
        bank.loc.zero_()
        bank.lower.zero_()
        bank.lower[0, 1, 0] = 1.0
        bank.log_scale.copy_(torch.tensor([[0.0, math.log(spread), 0.0]]))
    vmonf = VMoNF(FlowMixture(bank)).to(dtype)
    first, noise = rows(500, 1), rows(500, 1, seed=1)
    x = torch.cat((first, first + spread * noise, rows(500, 1, seed=2)), 1).to(dtype)
    gap = x.clone()
    gap[:, 2] = torch.nan
    one, two = x.double()[:, 0], x.double()[:, 1]
    expected = normal(one, 1.0) + normal(two - one, spread)
    found = vmonf.partial_log_prob(gap)
    torch.testing.assert_close(found.log_prob.double(), expected, rtol=0, atol=2e-5)
    gap = x.clone()
    gap[:, 0] = torch.nan  # the others say what it is
    shown = vmonf.impute(gap).x[:, 0].double()
    torch.testing.assert_close(shown, two / (1 + spread**2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["flows", "list"])
def test_a_row_without_an_entry_has_the_weights_and_no_density(kind: str) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.2, 0.8])
    heavy = dist.StudentT(torch.tensor(2.0), torch.zeros(2), 5 * torch.ones(2)).to_event(1)
    bank = [Gaussian(2, 1), heavy] if kind == "list" else RealNVP(2, 2)
    vmonf = VMoNF(FlowMixture(bank, weights))
    empty = torch.full((3, 2), torch.nan)
    found = vmonf.partial_log_prob(empty)
    torch.testing.assert_close(found.log_prob, torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.error, torch.zeros(3))
    torch.testing.assert_close(vmonf.predict_proba(empty, exact=True), weights.expand(3, 2))


# Reports.


def test_touching_clusters_have_the_numbers_of_the_components() -> None:
    x = blobs()
    vmonf = VMoNF.from_data(x, components=3, seed=0, minutes=0.02, progress=False)
    assert vmonf.history is not None
    vmonf.history.choice["touching"] = {"0 and 1": 0.2, "0 and 2": 0.1}
    before = vmonf.predict_proba(x)
    vmonf.align_(torch.tensor([2, 0, 1])[vmonf.predict(x)], x)
    after = vmonf.predict_proba(x)
    place = [int((after - before[:, [c]]).abs().sum(0).argmin()) for c in range(3)]
    pairs = {
        " and ".join(map(str, sorted((place[0], place[c])))): share
        for c, share in ((1, 0.2), (2, 0.1))
    }
    assert vmonf.history.choice["touching"] == pairs
    assert str(vmonf.report()).startswith("3 components")


def test_a_pruned_pair_does_not_report_what_it_was() -> None:
    vmonf = VMoNF.from_data(blobs(), components=3, seed=0, minutes=0.02, progress=False)
    assert len(vmonf.prune_(blobs()[:30], below=0.3)) < 3
    with pytest.raises(ValueError, match="fitted again or pruned"):
        vmonf.report()
    with pytest.raises(ValueError, match="no component would stay"):
        VMoNF(FlowMixture(Gaussian(2, 3))).prune_(blobs(), below=0.99)


@pytest.mark.filterwarnings("ignore:rows .* lie outside")
def test_a_row_outside_leaves_the_gap_a_number() -> None:
    torch.manual_seed(0)
    flows = RealNVP(2, 2, blocks=1)
    bank = Flow([*flows.transforms, Logit()], base=flows.base)
    x = torch.rand(30, 2)
    x[3] = 2.0
    assert math.isfinite(VMoNF(FlowMixture(bank)).report(x).gap)


# Evidence and weights of rows.


@pytest.mark.parametrize("verb", ["predict_proba", "fit"])
@pytest.mark.parametrize("constant", [-1e6, -1e8, -1e39])
def test_log_likelihoods_that_lose_their_digits_are_refused(constant: float, verb: str) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    y = torch.tensor([0.0, 0.33, -torch.inf], dtype=torch.float64).expand(30, 3)
    options: dict[str, Any] = {"epochs": 1, "progress": False} if verb == "fit" else {}
    with pytest.raises(ValueError, match="take off the largest of each row"):
        getattr(vmonf, verb)(rows(30), y + constant, **options)
    double = vmonf.double()
    if constant > -1e7:
        found = double.predict_proba(rows(30).double(), y + constant)
        torch.testing.assert_close(found, double.predict_proba(rows(30).double(), y))


@pytest.mark.parametrize("weight", [1e-46, 1e38])
@pytest.mark.parametrize("verb", ["fit", "from_data"])
def test_weights_that_a_dtype_cannot_hold_are_named(verb: str, weight: float) -> None:
    options: dict[str, Any] = {"sample_weight": np.full(60, weight), "progress": False}
    owner = VMoNF if verb == "from_data" else VMoNF(FlowMixture(Gaussian(2, 2)), ExactGuide())
    options |= {"components": 2} if verb == "from_data" else {}
    with pytest.raises(ValueError, match="divide them by their mean"):
        getattr(owner, verb)(rows(), **options)


def test_em_counts_the_pseudo_rows_of_the_weights() -> None:
    x = torch.cat((rows(200) - 20, rows(100) + 20))
    model = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(model, x, seed=0)
    found = model.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1100 / 2300, 1200 / 2300]))
    weighted = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(weighted, x, sample_weight=torch.full((300,), 2.0), seed=0)
    found = weighted.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1200 / 2600, 1400 / 2600]))


def test_em_refuses_frozen_parameters() -> None:
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.requires_grad_(False)
    before = model.bank.loc.clone()
    with pytest.raises(ValueError, match=r"bank.loc.* are frozen"):
        fit_em(model, rows(), seed=0)
    assert torch.equal(model.bank.loc, before)


# Rows far away.


@pytest.mark.parametrize("bank", [MAF, MAFMoG, RealNVP])
def test_the_largest_numbers_have_no_density(bank: Any) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(bank(2, 2)))
    vmonf.fit(rows(), epochs=2, progress=False)
    far = torch.tensor([[s, -s] for s in (1e30, 1e35, 1e37, 3e38)])
    assert (vmonf.log_prob(far) == -torch.inf).all()
    assert (vmonf.component_log_prob(far) == -torch.inf).all()
    weights = vmonf.model.weights.log_mean().exp()
    torch.testing.assert_close(vmonf.predict_proba(far), weights.expand(4, 2))


# Starts.


def gated() -> VMoNF:
    return VMoNF(FlowMixture(RealNVP(2, 3), "learned", context_features=1), SoftmaxGuide(MLP(3, 3)))


def chain() -> MarkovVMoNF:
    return MarkovVMoNF(MarkovMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))


@pytest.mark.parametrize(
    ("pair", "kind", "said"),
    [(gated, ValueError, "depend on a context"), (chain, TypeError, "of sequences")],
)
def test_lessons_of_rows_refuse_other_pairs(pair: Any, kind: type[Exception], said: str) -> None:
    vmonf = pair()
    with pytest.raises(kind, match=said):
        warm_start_(vmonf.guide, rows(), torch.arange(60) % 3)
    with pytest.raises(kind, match=said):
        pretrain_(vmonf.guide, rows(), terms=[lambda batch: batch.log_q.sum(-1)])
    x, options = (
        (rows(), {"given": rows(60, 1)}) if pair is gated else (rows(20).reshape(4, 5, 2), {})
    )
    with pytest.raises(kind, match=said):
        vmonf.fit(x, epochs=3, callbacks=Reseed(x), progress=False, **options)
    assert len(vmonf.history.epoch) == 1  # at once, and not after the first ten epochs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"y": pd.Series([0, 1, None] * 20, dtype="Int64")}, "y"),
        ({"y": np.array([0.0, 1.0, np.nan] * 20)}, "expected integer labels"),
        ({"sample_weight": np.eye(60)[3], "components": 1}, "1 rows have a sample_weight"),
        ({"x": np.zeros((50, 0)), "components": 2}, "without a column"),
    ],
)
def test_from_data_says_what_is_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        VMoNF.from_data(**{"x": rows(), "progress": False, **options})


# Pairs.


def test_a_new_model_takes_the_units_that_the_guide_has_learnt_in() -> None:
    torch.manual_seed(0)
    x = pd.DataFrame(100 * blobs().numpy() + 5000, columns=["a", "b"])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    vmonf.fit(x, epochs=3, progress=False)
    before = vmonf.predict_proba(x)
    vmonf.model = FlowMixture(RealNVP(2, 3))
    assert torch.equal(vmonf.predict_proba(x[["b", "a"]]), before)
    assert vmonf.log_prob(x).isfinite().all()
    own = FlowMixture(Gaussian(2, 3))
    own.standardize_(x)
    units = own.standardizer.scale.clone() * 2
    own.standardizer.scale.copy_(units)
    vmonf.model = own
    assert torch.equal(vmonf.model.standardizer.scale, units)
    flows = RealNVP(2, 3)
    with pytest.warns(RuntimeWarning, match="fit the pair again"):
        vmonf.model = FlowMixture(Flow([*flows.transforms, Logit()], base=flows.base))


# Divergences, pictures, tables.


def test_a_divergence_from_what_lacks_a_part_is_infinite() -> None:
    found = kl_divergence(Uniform(0.0, 2.0), Uniform(0.0, 1.0), seed=0)
    assert [float(v) for v in found] == [torch.inf, 0.0]
    mean, error = kl_divergence(Normal(0.0, 1.0), Gamma(2.0, 1.0), seed=0)
    assert (float(mean), float(error)) == (torch.inf, 0.0)
    assert kl_to_truth(torch.zeros(3), torch.tensor([0.0, -torch.inf, 0.0])) == (torch.inf, 0.0)
    mean, error = kl_divergence(Uniform(0.0, 1.0), Uniform(0.0, 2.0), seed=0)
    assert float(mean) == pytest.approx(math.log(2))


@pytest.mark.parametrize("features", [["a", "b"], [0.0, 1.0], [0]])
def test_features_that_are_no_numbers_are_refused(features: list[Any]) -> None:
    with pytest.raises(ValueError, match="two or more numbers from 0 to 2"):
        VMoNF(FlowMixture(Gaussian(3, 2))).plot(rows(30, 3), features=features)


def test_an_extent_has_four_ends() -> None:
    with pytest.raises(ValueError, match="left, right, bottom, top"):
        plot_density(VMoNF(FlowMixture(Gaussian(2, 2))), extent=(1, 2))  # type: ignore[arg-type]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(ValueError, match="is no table in Parquet"):
        read_table(path)
