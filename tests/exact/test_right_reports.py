"""Reports and pictures: right values where wrong ones were found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF, fit_em
from pyro_vmonf.flows import Flow
from pyro_vmonf.interop.page import _clusters, page
from pyro_vmonf.interop.tables import Table, read_table
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import plot_clusters, plot_density, plot_fit, plot_uncertainty
from pyro_vmonf.plots.animation import Recorder
from pyro_vmonf.plots.window import widths
from pyro_vmonf.report import touching
from pyro_vmonf.transforms import Logit
from tests.samples import UNTRAINED, sixty_rows, three_blobs, two_blobs, two_numpy_blobs


def test_gap_of_the_report_is_the_loss_of_the_elbo() -> None:
    x = two_blobs(features=32, apart=20.0)
    vmonf = VMoNF(FlowMixture(Gaussian(32, 2), "learned"), SoftmaxGuide(MLP(32, 2)))
    fit_em(vmonf.model, x, seed=0)
    loss = float((vmonf.log_prob(x) - vmonf.elbo(x)).mean())
    assert loss > 1000
    assert vmonf.report(x).gap == pytest.approx(loss, rel=1e-4)


def test_means_of_clusters_are_those_of_the_numbers_that_are_there() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan, 5.0, 7.0], "b": [np.nan, np.nan, 2.0, 4.0]})
    clusters = torch.tensor([0, 0, 1, 1])
    table = Table(frame, 4, np.arange(4))
    found = re.sub(r"<[^>]+>", " ", _clusters(table, torch.eye(2)[clusters], clusters)).split()
    assert "nan" not in found
    assert found[found.index("a") + 1 :][:2] == ["1", "6"]
    assert found[found.index("b") + 1 :][:2] == ["–", "3"]


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.parametrize("weighted", [False, True])
def test_unsure_rows_are_rows_of_the_table(weighted: bool) -> None:
    x = two_numpy_blobs(6000 if not weighted else 300, apart=2.5)
    weight = np.repeat([0.01, 5.0], 300) if weighted else None
    vmonf = VMoNF.from_data(x, components=2, sample_weight=weight, **UNTRAINED)
    unsure = int((vmonf.predict_proba(x).amax(1) < 0.9).sum())
    assert f"{unsure} of {len(x)} rows unsure" in vmonf.report().summary()


def two_scales() -> tuple[VMoNF, pd.DataFrame]:
    x = sixty_rows(50).numpy() + np.array([0.0, 100.0])
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
    x = sixty_rows(90) + 4.0 * (torch.arange(90) % 3)[:, None]
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


def test_touching_clusters_have_the_numbers_of_the_components() -> None:
    x = three_blobs()
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
    vmonf = VMoNF.from_data(three_blobs(), components=3, seed=0, minutes=0.02, progress=False)
    assert len(vmonf.prune_(three_blobs()[:30], below=0.3)) < 3
    with pytest.raises(ValueError, match="fitted again or pruned"):
        vmonf.report()
    with pytest.raises(ValueError, match="no component would stay"):
        VMoNF(FlowMixture(Gaussian(2, 3))).prune_(three_blobs(), below=0.99)


@pytest.mark.filterwarnings("ignore:rows .* lie outside")
def test_a_row_outside_leaves_the_gap_a_number() -> None:
    torch.manual_seed(0)
    flows = RealNVP(2, 2, blocks=1)
    bank = Flow([*flows.transforms, Logit()], base=flows.base)
    x = torch.rand(30, 2)
    x[3] = 2.0
    assert math.isfinite(VMoNF(FlowMixture(bank)).report(x).gap)


@pytest.mark.parametrize("features", [["a", "b"], [0.0, 1.0], [0]])
def test_features_that_are_no_numbers_are_refused(features: list[Any]) -> None:
    with pytest.raises(ValueError, match="two or more numbers from 0 to 2"):
        VMoNF(FlowMixture(Gaussian(3, 2))).plot(sixty_rows(30, 3), features=features)


def test_an_extent_has_four_ends() -> None:
    with pytest.raises(ValueError, match="left, right, bottom, top"):
        plot_density(VMoNF(FlowMixture(Gaussian(2, 2))), extent=(1, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [1.0, 2.0])
def test_a_shallow_density_is_drawn(depth: float) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    plot_density(vmonf, depth=depth, resolution=20, ax=Figure().subplots())


def test_empty_intervals_have_a_width() -> None:
    assert widths(np.array([2.0, 0.0, 1.0]), np.array([2.0, 0.0, 4.0])).tolist() == [2e-6, 1e-6, 3]


def test_touching_clusters_do_not_depend_on_the_scale_of_weights() -> None:
    q = torch.tensor([[0.6, 0.4], [0.45, 0.55], [0.9, 0.1], [0.1, 0.9]])
    one, small = (touching(q, scale * torch.ones(4)) for scale in (1.0, 1e-20))
    assert one["touching"] == small["touching"]
    assert one["touching"]
