"""Right values where an eighth and a ninth reader found wrong ones."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import Gamma, Independent, MultivariateNormal

from pyro_vmonf import (
    ExactGuide,
    Flow,
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
    information_criteria,
    select,
)
from pyro_vmonf.em import num_parameters
from pyro_vmonf.interop.page import page
from pyro_vmonf.interop.serving import export
from pyro_vmonf.interop.tables import columns_of, read_table, samples
from pyro_vmonf.metrics import kl_divergence
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import plot_clusters, plot_fit, plot_uncertainty
from pyro_vmonf.plots.animation import Recorder
from pyro_vmonf.transforms import Logit


def rows(count: int = 60, width: int = 2) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


# Files.

COLUMNS = {
    "constant": torch.ones(60, 1),
    "two values": (torch.arange(60) % 2)[:, None].float(),
    "whole": (torch.arange(60) % 7)[:, None].float(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_pair_of_columns_that_are_no_real_numbers_comes_back(kind: str, tmp_path: Path) -> None:
    x = torch.cat([rows(), COLUMNS[kind]], 1)
    vmonf = VMoNF.from_data(x, components=1, seed=0, minutes=0.02, progress=False)
    assert vmonf.history is not None
    assert vmonf.history.choice["columns"]
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert loaded.history is not None
    assert loaded.history.choice == vmonf.history.choice
    assert torch.equal(loaded.log_prob(x), vmonf.log_prob(x))
    assert str(loaded.report()) == str(vmonf.report())


# Pictures.


def two_scales() -> tuple[VMoNF, pd.DataFrame]:
    x = rows(50).numpy() + np.array([0.0, 100.0])
    frame = pd.DataFrame(x, columns=["a", "b"])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), "learned"))
    fit_em(vmonf.model, frame, seed=0)
    return vmonf, frame


def drawn(ax: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])


@pytest.mark.parametrize("picture", ["responsibilities", "clusters"])
def test_dots_have_the_columns_in_the_order_of_the_fit(picture: str) -> None:
    vmonf, frame = two_scales()
    turned, ax = frame[["b", "a"]], Figure().subplots()
    if picture == "clusters":
        plot_clusters(vmonf, turned, ax=ax)
    else:
        vmonf.plot_responsibilities(turned, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    dots = drawn(ax)
    order = dots[:, 0].argsort()
    np.testing.assert_allclose(dots[order], frame.to_numpy()[frame["a"].argsort()], rtol=1e-5)


def test_a_recorder_has_the_columns_in_the_order_of_the_fit() -> None:
    _, frame = two_scales()
    vmonf, recorder = VMoNF(FlowMixture(Gaussian(2, 2))), Recorder(frame[["b", "a"]], resolution=5)
    vmonf.fit(frame, epochs=1, callbacks=[recorder], progress=False)
    np.testing.assert_allclose(recorder.points, frame.to_numpy(), rtol=1e-5)


def with_gaps() -> tuple[VMoNF, Tensor]:
    x = rows(90) + 4.0 * (torch.arange(90) % 3)[:, None]
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3)))
    fit_em(vmonf.model, x, seed=0)
    x[::3, 1] = torch.nan
    return vmonf, x


def test_pictures_of_gaps_show_the_clusters_of_the_rows() -> None:
    vmonf, x = with_gaps()
    ax = plot_fit(vmonf, x, ax=Figure().subplots())
    held = vmonf.predict(x).bincount(minlength=3)
    assert (held != vmonf.predict(vmonf.impute(x).x).bincount(minlength=3)).any()
    sizes = [len(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) > 1]
    assert sorted(sizes) == sorted(held[held > 0].tolist())


def test_the_page_judges_rows_with_gaps_by_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmonf, x = with_gaps()
    path = tmp_path / "table.csv"
    pd.DataFrame(x.numpy(), columns=["a", "b"]).to_csv(path, index=False)
    given = []

    def seen(pair: VMoNF, rows: Any, **more: Any) -> Any:
        given.append(rows)
        return plot_uncertainty(pair, rows, **more)

    monkeypatch.setattr("pyro_vmonf.interop.page.plot_uncertainty", seen)
    page(vmonf, read_table(path), "table", progress=False)
    torch.testing.assert_close(torch.as_tensor(given[0].to_numpy()).float(), x, equal_nan=True)


# Distributions.


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saturated_logit_stays_in_its_interval(alpha: float, dtype: torch.dtype) -> None:
    logit = Logit(alpha=alpha)
    x = logit(torch.tensor([[-1e4, -40.0, 0.0, 40.0, 1e4]], dtype=dtype))
    assert logit.codomain.check(x).all()
    vmonf = VMoNF(FlowMixture(Flow([logit.to(dtype)], base=Gaussian(2, 1)))).to(dtype)
    with torch.no_grad():
        vmonf.model.bank.base.loc.fill_(20.0)  # type: ignore[operator, union-attr]
    marginal = vmonf.marginal()
    assert marginal.log_prob(marginal.sample((1000,))).isfinite().all()
    assert kl_divergence(marginal, marginal, draws=100, seed=0) == (0.0, 0.0)


@pytest.mark.parametrize("c", [[0, -1], [0, 3], [0.0, 1.0]])
def test_numbers_of_no_component_are_refused(c: list[float]) -> None:
    components = Gaussian(2, 3)()
    with pytest.raises(ValueError, match=r"c has dtype .* numbers from .* to .*; expected whole"):
        select(components, torch.tensor(c)).log_prob(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="those of the components"):
        select(components, torch.tensor(c)).sample()


def of_factor(slope: float, spread: float) -> VMoNF:
    """Return two components of :math:`x_2 = a x_1 + s z`, and an independent :math:`x_3`."""
    factor = torch.eye(3)
    factor[1, :2] = torch.tensor([slope, spread])
    return VMoNF(
        FlowMixture(MultivariateNormal(torch.zeros(2, 3), scale_tril=factor.expand(2, 3, 3)))
    )


def test_a_covariance_that_is_singular_to_rounding_is_named() -> None:
    near = torch.tensor([[0.5, torch.nan, 1.0]])
    assert of_factor(1.0, 1e-4).impute(near).x[0, 1] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="singular to rounding"):
        of_factor(1.0, 1e-9).impute(near)


def test_parts_that_torch_cannot_trace_are_named() -> None:
    bank = Independent(Gamma(torch.ones(3, 2), 1.0, validate_args=True), 1)
    with pytest.raises(ValueError, match=r"torch\.export cannot trace this pair"):
        export(VMoNF(FlowMixture(bank)))
    assert export(VMoNF(FlowMixture(RealNVP(2, 2, blocks=1))))


# Tables.


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("e.tsv", "a\tb\n1\t2\n3\t4\n\t\n", 3),
        ("e.csv", 't,b,c\n"p\nq",2,1\n"r\ns",4,2\n\n\n', 2),
        ("e.csv", "a,b\n1,2\n\n3,4\n\n\n", 3),
        ("e.csv", "\n\na,b\n1,2\n3,4\n", 2),
        ("e.csv", "a,b\n1,2\n,\n", 2),
    ],
)
def test_a_file_has_its_number_of_rows(tmp_path: Path, name: str, text: str, count: int) -> None:
    assert read_table(written(tmp_path / name, text)).whole == count


def test_classes_that_are_numbers_have_the_order_of_numbers(tmp_path: Path) -> None:
    lines = "\n".join(f"{i / 7},{i % 12}" for i in range(36))
    table = read_table(written(tmp_path / "t.csv", "x,y\n" + lines), label="y")
    assert table.names == [str(i) for i in range(12)]
    assert table.y is not None
    assert table.y.tolist() == [i % 12 for i in range(36)]
    text = "x,y\n1,b\n2,10\n3,inf\n4,9\n5,a\n"
    mixed = read_table(written(tmp_path / "m.csv", text), label="y")
    assert mixed.names == ["9", "10", "a", "b", "inf"]


def test_samples_never_replace_a_column() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    vmonf.model.feature_names = ("cluster", "cluster_of_pair")
    frame = samples(vmonf, 5, seed=0)
    assert list(frame) == ["cluster", "cluster_of_pair", "cluster_of_pair_of_pair"]
    x, c = vmonf.sample(5, seed=0)
    np.testing.assert_allclose(frame.iloc[:, :2].to_numpy(), x.numpy())
    assert frame.iloc[:, 2].tolist() == c.tolist()


def test_names_of_a_parquet_file_may_be_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "i.parquet"
    pd.DataFrame(rows().numpy(), columns=[5, 9]).to_parquet(path)
    table = read_table(path)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    vmonf.fit(table.frame, epochs=1, progress=False)
    assert list(columns_of(vmonf, path).frame) == ["5", "9"]
    assert not table.said


# Pairs, and runs that go on.


def test_a_guide_of_another_pair_is_refused() -> None:
    x = 10 * rows(40) + 50
    first = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    first.fit(x, epochs=2, progress=False)
    before = first.predict_proba(x)
    second = VMoNF(FlowMixture(Gaussian(2, 2)))
    with pytest.raises(ValueError, match="the guide belongs to another pair"):
        VMoNF(FlowMixture(Gaussian(2, 2)), first.guide)
    with pytest.raises(ValueError, match="the guide belongs to another pair"):
        second.guide = first.guide
    assert torch.equal(first.predict_proba(x), before)
    first.guide = first.guide
    taken = copy.deepcopy(first.guide)
    taken.bind_(None)
    second.guide = taken
    assert second.guide.model is second.model


@pytest.mark.parametrize("reason", ["minutes", "callback"])
def test_a_run_that_a_limit_ended_goes_on(reason: str, tmp_path: Path) -> None:
    def fitted(epochs: int = 6, **more: Any) -> VMoNF:
        torch.manual_seed(0)
        vmonf = VMoNF(FlowMixture(Gaussian(2, 2), "learned"), SoftmaxGuide(MLP(2, 2)))
        vmonf.fit(rows(), epochs=epochs, seed=0, progress=False, compile=False, **more)
        return vmonf

    path = tmp_path / "run.pt"
    limit = (
        {"minutes": 1e-9}
        if reason == "minutes"
        else {"callbacks": [lambda progress: progress.epoch == 1]}
    )
    cut = fitted(checkpoint=path, **limit)
    assert cut.history is not None
    assert cut.history.stopped
    assert len(cut.history.epoch) < 6
    if reason == "minutes":  # the same limit is over
        assert len(fitted(resume=path, **limit).history.epoch) == len(cut.history.epoch)  # type: ignore[union-attr]
    whole, resumed = fitted(), fitted(resume=path)
    assert resumed.history is not None
    assert resumed.history.stopped == ""
    assert len(resumed.history.epoch) == 6
    assert torch.equal(resumed.log_prob(rows()), whole.log_prob(rows()))


def test_only_true_stops_a_run() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    for value in (-1.5, torch.zeros(3), "no", None, False):
        history = vmonf.fit(rows(), epochs=2, callbacks=[lambda _, v=value: v], progress=False)
        assert (len(history.epoch), history.stopped) == (2, "")
    history = vmonf.fit(rows(), epochs=2, callbacks=[lambda _: np.bool_(True)], progress=False)
    assert len(history.epoch) == 1


def test_criteria_of_a_chain_are_those_of_its_sequences() -> None:
    torch.manual_seed(0)
    model, x = MarkovMixture(Gaussian(2, 3), "learned"), torch.randn(6, 5, 2)
    found = information_criteria(model, x)
    total = float(MarkovVMoNF(model).log_prob(x).double().sum())
    free = num_parameters(model)
    assert found["aic"] == pytest.approx(2 * free - 2 * total, rel=1e-6)
    assert found["bic"] == pytest.approx(free * math.log(6) - 2 * total, rel=1e-6)


def test_counts_that_are_forgotten_stay_so_in_a_file(tmp_path: Path) -> None:
    x = rows(40)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), "learned"), ExactGuide())
    vmonf.fit(x[:20], epochs=3, progress=False, seed=0)
    fit_em(vmonf.model, x, seed=0)
    vmonf.save(tmp_path / "pair.pt")
    found = []
    for pair in (vmonf, copy.deepcopy(vmonf), VMoNF.load(tmp_path / "pair.pt")):
        pyro.clear_param_store()
        pair.train()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-12}), TraceEnum_ELBO())
        svi.step(x[:10], size=40, index=torch.arange(10))
        found.append(pair.model.weights.log_mean().detach().exp())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
