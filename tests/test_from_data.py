"""``VMoNF.from_data``: one call, and an ordinary pair."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from sklearn.datasets import load_wine, make_moons
from sklearn.metrics import adjusted_rand_score

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.progress import Stages
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.report import ChoiceReport
from pyro_vmonf.starts import growth
from pyro_vmonf.starts.choice import choose, densities_of
from pyro_vmonf.vmonf import automatic, lengths, table


def moons(rows: int = 200, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x, y = make_moons(rows, noise=0.06, random_state=seed)
    return 100 + 5 * x, y


@pytest.fixture(scope="module", autouse=True)
def short_patience() -> Iterator[None]:
    """Let fits give up sooner, as nothing here is about the last hundredth of a nat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lengths, "FEWEST_STEPS", 25)
        yield


@pytest.fixture
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train small flows, and not for long, where no test asks how well they fit."""
    monkeypatch.setattr(automatic, "BLOCKS", 1)
    monkeypatch.setattr(automatic, "HIDDEN", (8,))
    monkeypatch.setattr(lengths, "PATIENCE", 1)
    monkeypatch.setattr(lengths, "FEWEST_STEPS", 3)


@pytest.fixture(scope="module")
def fitted(short_patience: None) -> VMoNF:
    return VMoNF.from_data(moons()[0], components=2, seed=0)


def test_it_is_an_ordinary_pair_that_found_the_moons(fitted: VMoNF, tmp_path: object) -> None:
    x, y = moons()
    assert isinstance(fitted.model, FlowMixture)
    assert isinstance(fitted.guide, SoftmaxGuide)
    assert adjusted_rand_score(y, fitted.predict(x)) > 0.99
    assert adjusted_rand_score(y, fitted.predict(x, exact=True)) > 0.99
    torch.testing.assert_close(
        fitted.model.weights.log_mean().exp(), torch.full((2,), 0.5), rtol=0, atol=0.02
    )
    fresh, labels = moons(seed=1)
    assert adjusted_rand_score(labels, fitted.predict(fresh)) > 0.95
    fitted.save(f"{tmp_path}/pair.pt")
    loaded = VMoNF.load(f"{tmp_path}/pair.pt")
    assert torch.equal(loaded.log_prob(x), fitted.log_prob(x))
    assert str(loaded.report()) == str(fitted.report())


def test_it_is_above_its_start_and_a_gaussian_mixture(fitted: VMoNF) -> None:
    assert fitted.history is not None
    found = fitted.history.choice
    assert found["held_out"] >= found["held_out_start"]
    assert found["held_out"] > found["held_out_gaussians"]
    text = str(fitted.report())
    assert text.startswith("2 components, from the start ")
    assert "held-out log-density" in text
    assert "a Gaussian mixture does as well" not in text


def test_further_steps_of_plain_svi_keep_clusters_and_density(fitted: VMoNF) -> None:
    x, y = moons()
    vmonf = copy.deepcopy(fitted)
    rows = torch.as_tensor(x, dtype=torch.float32)
    before = float(vmonf.log_prob(x).mean())
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    svi = pyro.infer.SVI(vmonf.model, vmonf.guide, pyro.optim.Adam({"lr": 2e-3}), elbo)
    with local_seed(0):
        for _ in range(100):
            svi.step(rows)
    assert adjusted_rand_score(y, vmonf.predict(x)) > 0.98
    assert float(vmonf.log_prob(x).mean()) > before - 0.01


@pytest.mark.usefixtures("short_fits")
def test_rows_of_weight_zero_do_not_count_for_the_number() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(size=(60, 2)) + 9 * k for k in range(3)])
    weight = np.r_[np.ones(120), np.zeros(60)]
    assert VMoNF.from_data(x, sample_weight=weight, seed=0).model.num_components == 2
    by_hand = FlowMixtureClustering(max_iter=1, random_state=0).fit(x, sample_weight=weight)
    assert len(by_hand.weights_) == 2


@pytest.mark.usefixtures("short_fits")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_number_is_found_and_reported() -> None:
    draw = np.random.default_rng(0)
    c = np.arange(240) % 3
    x = draw.normal(size=(240, 2)) + 9 * np.eye(3)[c][:, :2]
    vmonf = VMoNF.from_data(x, seed=0)
    assert vmonf.model.num_components == 3
    assert adjusted_rand_score(c, vmonf.predict(x)) > 0.99
    assert "numbers of components" in str(vmonf.report())


@pytest.mark.usefixtures("short_fits")
def test_labels_name_the_clusters() -> None:
    x, y = moons()
    some = np.where(np.arange(len(y)) % 10 == 0, 1 - y, -1)
    vmonf = VMoNF.from_data(x, some, components=2, seed=0)
    assert (vmonf.predict(x).numpy() == 1 - y).mean() > 0.98


@pytest.mark.usefixtures("short_fits")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_there_is_a_component_for_every_class() -> None:
    x = np.random.default_rng(0).normal(size=(90, 2))
    some = np.where(np.arange(90) % 6 == 0, np.arange(90) // 6 % 5, -1)
    assert VMoNF.from_data(x, some, seed=0).model.num_components == 5


def test_fewer_components_than_asked_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = moons(40)
    monkeypatch.setattr(automatic, "choose", lambda z, count, starts, seed: choose(z, 2, seed=seed))
    with pytest.warns(RuntimeWarning, match="4 components were asked for"):
        vmonf = VMoNF.from_data(x, components=4, seed=0)
    assert vmonf.model.num_components == 2


def test_rows_of_weight_zero_take_no_part(fitted: VMoNF) -> None:
    x, y = moons()
    far = np.concatenate((x, x[:30] + 1000))
    weight = np.r_[np.ones(len(x)), np.zeros(30)]
    vmonf = VMoNF.from_data(far, components=2, sample_weight=weight, seed=0)
    assert adjusted_rand_score(y, vmonf.predict(x)) > 0.98
    for name in ("held_out", "held_out_start", "held_out_gaussians"):
        one, other = (v.history.choice[name] for v in (vmonf, fitted))  # type: ignore[union-attr]
        assert one == pytest.approx(other, abs=0.3), name  # far rows would cost hundreds of nats
    loc = vmonf.model.standardizer.loc.double()
    torch.testing.assert_close(loc, torch.as_tensor(x.mean(0)), rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:column")
def test_wide_small_tables_have_finite_densities() -> None:
    x, y = load_wine(return_X_y=True)
    vmonf = VMoNF.from_data(x, components=3, seed=0)
    assert adjusted_rand_score(y, vmonf.predict(x)) > 0.8
    assert vmonf.log_prob(x).isfinite().all()
    assert vmonf.history is not None
    assert vmonf.history.choice["held_out"] > vmonf.history.choice["held_out_gaussians"] - 0.05


@pytest.mark.usefixtures("short_fits")
def test_seed_gives_the_same_and_frames_keep_their_names() -> None:
    x, _ = moons(120)
    frame = pd.DataFrame(x, columns=["a", "b"])
    one = VMoNF.from_data(frame, components=2, seed=3)
    state = torch.get_rng_state()
    other = VMoNF.from_data(x, components=2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(one.feature_names_in_) == ["a", "b"]
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [2, 3, 10, 40])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_small_tables(rows: int, width: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, width))
    few = pytest.warns(UserWarning, match=f"x has {rows} rows for 2 components")
    with few if rows < 20 else nullcontext():
        vmonf = VMoNF.from_data(x, components=2, seed=0)
    assert vmonf.predict_proba(x).isfinite().all()
    assert vmonf.log_prob(x).isfinite().all()
    assert vmonf.history is not None
    assert vmonf.history.choice["epochs"] == 0


def test_report_says_what_touches_what_is_unsure_and_what_columns_are() -> None:
    draw = np.random.default_rng(0)
    c = np.arange(48) % 3
    x = draw.normal(size=(48, 2)) + np.array([[0.0, 0.0], [3.0, 0.0], [40.0, 0.0]])[c]
    x = np.c_[x, c == 2]
    frame = pd.DataFrame(x, columns=["a", "b", "last"])
    with pytest.warns(UserWarning, match="column 'last' has two values only"):
        vmonf = VMoNF.from_data(frame, components=3, seed=0)
    assert vmonf.history is not None
    found = vmonf.history.choice
    q = vmonf.predict_proba(frame).numpy()
    expected = {}
    for i in range(3):
        for j in range(i + 1, 3):
            given = [q[q.argmax(1) == b, a].sum() / q[:, a].sum() for a, b in ((i, j), (j, i))]
            if max(given) > 0.01:
                expected[f"{i} and {j}"] = max(given)
    assert len(expected) == 1
    assert found["touching"] == pytest.approx(expected, rel=1e-4)
    assert found["unsure"] == (q.max(1) < 0.9).sum() > 0
    assert found["columns"] == {"has two values only": ["last"]}
    text = str(vmonf.report())
    assert text.splitlines()[0] == (
        f"3 components, from the start {found['start']!r}; 1 pair touches; "
        f"{found['unsure']} of 48 rows unsure"
    )
    assert "column last" in text


def test_where_gaussians_do_as_well_it_says_so() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.warns(UserWarning, match=r"sklearn.mixture.GaussianMixture\(1, reg_covar=1e-3\)"):
        vmonf = VMoNF.from_data(x, components=2, seed=0)
    assert vmonf.history is not None
    found = vmonf.history.choice
    assert found["held_out_gaussians"] >= found["held_out"]
    assert "a Gaussian mixture does as well" in str(vmonf.report())


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "x has shape": (np.zeros(5), {}),
    "from_data takes tables": (np.zeros((5, 2, 2)), {}),
    "x has 1 rows": (np.zeros((1, 2)), {"components": 1}),
    "expected at least 9": (np.zeros((5, 2)), {"components": 9}),
    "components is": (np.zeros((5, 2)), {"components": 0}),
    "minutes is": (np.zeros((5, 2)), {"minutes": -1.0}),
    "infinite values": (np.full((5, 2), np.inf), {}),
    "column 0, 1 of x has no entry": (np.full((5, 2), np.nan), {}),
    "zero for every row": (np.zeros((5, 2)), {"sample_weight": np.zeros(5)}),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message: str) -> None:
    x, options = BAD[message]
    with pytest.raises((ValueError, TypeError), match=message):
        VMoNF.from_data(x, **options)


def test_pair_that_was_built_by_hand_has_no_choice() -> None:
    with pytest.raises(ValueError, match="built by hand, or was fitted again"):
        VMoNF(FlowMixture(Gaussian(2, 2))).report()


@pytest.mark.usefixtures("short_fits")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_estimator_is_a_facade() -> None:
    x, y = moons()
    estimator = FlowMixtureClustering(2, random_state=0).fit(x)
    assert adjusted_rand_score(y, estimator.labels_) > 0.99
    assert estimator.history_.choice["start"]
    auto = FlowMixtureClustering(minutes=1e-4, random_state=0).fit(x[:60])
    assert auto.vmonf_.model.num_components == len(auto.weights_)


@pytest.mark.parametrize(
    ("rows", "width", "components", "size"),
    [(500, 2, 5, 256), (60_000, 2, 5, 600), (200_000, 2, 1, 1024), (600, 300, 6, 111)],
)
def test_steps_are_larger_for_long_tables_and_smaller_for_wide_ones(
    rows: int, width: int, components: int, size: int
) -> None:
    found = table.rows_of(torch.randn(rows, width), None, None, components, 0)
    assert lengths.Lessons(found, Stages(60, False, ""), components).batch_size == size


def test_a_long_table_has_more_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "FEWEST_ROWS", 10**9)  # without flows
    monkeypatch.setattr(growth, "FEWEST_ROWS", 20_000)
    monkeypatch.setattr(automatic, "GROWTH", 1e3)
    monkeypatch.setattr(automatic, "MOST_GAUSSIANS", 40)
    draws = np.random.default_rng(0)
    angle = draws.uniform(1, 10, 21_000)
    x = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1)
    x += 0.2 * draws.normal(size=x.shape)
    vmonf = VMoNF.from_data(x, components=1, seed=0, progress=False)
    base, start = vmonf.model.bank.base, vmonf.guide.network
    assert start.mixtures <= 20 < base.mixtures <= 40
    few = densities_of(x[:5000], np.zeros(5000, int), seed=0)[0]
    assert vmonf.log_prob(x).double().mean() > few.log_prob(x).mean()


def test_evidence_counts_in_predict(fitted: VMoNF) -> None:
    x, _ = moons()
    other = torch.where(fitted.predict(x).unsqueeze(1) == torch.arange(2), -1e3, 0.0)
    assert torch.equal(fitted.predict(x, other), 1 - fitted.predict(x))


def test_numbers_that_score_as_well_are_in_the_summary() -> None:
    choice = {"components": 2, "start": "spectral", "numbers": {"2": -1.0, "3": -1.01, "4": -2.0}}
    assert ChoiceReport(choice).summary().endswith("; 3 score as well")


def test_an_interrupt_has_the_pair_that_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = lengths.fit

    def interrupted(*args: Any, **options: Any) -> Any:
        def stop(progress: Any) -> None:
            raise KeyboardInterrupt

        return trained(*args, **{**options, "callbacks": stop})

    monkeypatch.setattr(lengths, "fit", interrupted)
    x = moons(100)[0]
    with pytest.raises(KeyboardInterrupt) as caught:
        VMoNF.from_data(x, components=2, seed=0, progress=False)
    vmonf = vars(caught.value)["vmonf"]
    assert vmonf.history is not None
    assert vmonf.log_prob(x).isfinite().all()
    assert "sys.last_value.vmonf" in caught.value.__notes__[0]
