"""Simulation-based calibration: exact posteriors pass, wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from matplotlib.figure import Figure
from pyro.distributions import Dirichlet, Normal
from scipy.stats import chisquare
from torch import Tensor

from benchmarks.calibration import flow_posterior, flow_program
from pyro_vmonf import FlowMixture, Gaussian
from pyro_vmonf.interop.sbc import Calibration, simulation_based_calibration

K, ROWS, DRAWS = 3, 20, 99
CONCENTRATION = torch.tensor([1.0, 2.0, 3.0])
calibrate = partial(simulation_based_calibration, progress=False)


def mixture() -> Callable[[], Tensor]:
    return partial(FlowMixture(Gaussian(1, K), Dirichlet(CONCENTRATION)), size=ROWS)


def weights_given(c: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    """The posterior of the weights under known components; exact for a factor of 1."""
    counts = c.bincount(minlength=K)
    return {"weights": Dirichlet(factor * (CONCENTRATION + counts)).sample((DRAWS,))}


def normal() -> None:
    mean = pyro.sample("mean", Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", Normal(mean, 1.0).to_event(1))


def mean_given(x: Tensor, shift: float = 0.0, scale: float = 0.5**0.5) -> dict[str, Tensor]:
    return {"mean": Normal(x / 2 + shift, scale).sample((DRAWS,))}


def test_the_exact_posterior_of_the_weights_passes() -> None:
    found = calibrate(mixture(), weights_given, data="c")
    assert found.ranks["weights"].shape == (500, K)
    assert (found.replicates, found.draws) == (500, DRAWS)
    assert found.p_value > 0.01


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_weights_that_are_too_wide_or_too_narrow_are_rejected(factor: float) -> None:
    assert calibrate(mixture(), partial(weights_given, factor=factor), data="c").p_value < 1e-6


@pytest.mark.parametrize("wrong", [{"shift": 0.3}, {"scale": 0.5}, {"scale": 1.0}])
def test_wrong_normals_are_rejected(wrong: dict[str, float]) -> None:
    assert calibrate(normal, mean_given).p_value > 0.01
    assert calibrate(normal, partial(mean_given, **wrong)).p_value < 1e-6


def test_the_parameters_of_a_flow() -> None:
    known: dict[tuple[float, ...], dict[str, Tensor]] = {}  # the second run has the same rows

    def exact(x: Tensor) -> dict[str, Tensor]:
        key = tuple(x.flatten().tolist())
        known[key] = known.get(key) or flow_posterior(x)
        return known[key]

    def narrow(x: Tensor) -> dict[str, Tensor]:
        return {name: v.mean(0) + 0.3 * (v - v.mean(0)) for name, v in exact(x).items()}

    found = calibrate(flow_program(), exact, replicates=40)
    assert sum(ranks[0].numel() for ranks in found.ranks.values()) == 8
    assert found.p_value > 0.01
    assert calibrate(flow_program(), narrow, replicates=40).p_value < 1e-3
    assert len(known) == 40


def test_ranks_count_the_draws_below() -> None:
    values = torch.linspace(-3, 3, 7)

    def grid(x: Tensor) -> dict[str, Tensor]:
        return {"mean": values[:, None].expand(-1, 2)}

    seen: list[Tensor] = []

    def recorded() -> None:
        mean = pyro.sample("mean", Normal(torch.zeros(2), 1.0).to_event(1))
        seen.append(mean)
        pyro.sample("x", Normal(mean, 1.0).to_event(1))

    found = calibrate(recorded, grid, replicates=5)
    true = torch.stack(seen)
    assert torch.equal(found.ranks["mean"], (values < true[..., None]).sum(-1))
    thinned = calibrate(normal, grid, replicates=5, draws=3)
    assert torch.equal(
        thinned.ranks["mean"], (torch.tensor([-3.0, 0, 3]) < true[..., None]).sum(-1)
    )


def test_ties_are_broken_at_random() -> None:
    def coin() -> None:
        pyro.sample("side", pyro.distributions.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", Normal(0.0, 1.0))

    for seed in range(3):  # the rank among equal draws of the posterior is uniform
        found = calibrate(
            coin, lambda x: {"side": torch.bernoulli(torch.full((20,), 0.5))}, seed=seed
        )
        assert found.p_value > 0.01


def test_the_p_value_is_that_of_scipy() -> None:
    ranks = torch.randint(100, (400, 2), generator=torch.Generator().manual_seed(0))
    found = Calibration({"a": ranks}, draws=99).p_values(bins=8)["a"]
    expected = torch.bincount(torch.arange(100) * 8 // 100) * 4.0
    for scalar, p in zip(ranks.T, found, strict=True):
        observed = torch.bincount(scalar * 8 // 100, minlength=8)
        assert float(p) == pytest.approx(chisquare(observed, expected).pvalue, rel=1e-5)
    assert "400 data sets, 99 draws" in str(Calibration({"a": ranks}, draws=99))


def test_the_band_holds_whole_curves() -> None:
    ranks = torch.randint(100, (300, 200), generator=torch.Generator().manual_seed(1))
    ax = Calibration({"a": ranks}, draws=99).plot(level=0.9, ax=Figure().subplots())
    edges = torch.as_tensor(ax.collections[0].get_paths()[0].vertices)
    curves = torch.as_tensor(np.stack([line.get_ydata() for line in ax.get_lines()]))
    places = torch.as_tensor(ax.get_lines()[0].get_xdata())
    at = [edges[(edges[:, 0] - place).abs() < 1e-9, 1] for place in places]
    low, high = torch.stack([y.min() for y in at]), torch.stack([y.max() for y in at])
    inside = ((curves >= low - 1e-9) & (curves <= high + 1e-9)).all(1).double().mean()
    assert 0.83 < inside < 0.97


def test_the_global_state_stays_and_a_seed_repeats() -> None:
    pyro.param("own", torch.ones(1))
    state = torch.get_rng_state()

    def leaving(x: Tensor) -> dict[str, Tensor]:
        assert not list(pyro.get_param_store())
        pyro.param("left", torch.zeros(1))
        return mean_given(x)

    first = calibrate(normal, leaving, replicates=3, seed=1).ranks["mean"]
    assert list(pyro.get_param_store()) == ["own"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, calibrate(normal, leaving, replicates=3, seed=1).ranks["mean"])
    pyro.clear_param_store()


WRONG: dict[str, tuple[dict[str, Any], Mapping[str, Tensor], str]] = {
    "data": ({"data": "z"}, {}, "no site 'z'"),
    "sites": ({"sites": ["scale"]}, {}, "no site 'scale'"),
    "left out": ({"sites": ["mean"]}, {}, "'mean' is not both"),
    "unknown": ({}, {"scale": torch.zeros(9, 2)}, "'scale' is not both"),
    "shape": ({}, {"mean": torch.zeros(9)}, r"shape \(9,\); expected \(draws, 2\)"),
    "nan": ({}, {"mean": torch.full((9, 2), torch.nan)}, "NaN in 'mean' in replicate 0"),
    "draws": ({"draws": 10}, {"mean": torch.zeros(9, 2)}, "draws is 10; infer returned 9"),
    "nothing": ({}, {}, "no sites"),
    "replicates": ({"replicates": 0}, {}, "replicates is 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    options, returned, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        calibrate(normal, lambda x: returned, **options)


def test_a_changing_number_of_draws_and_bins_are_refused() -> None:
    def changing(x: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros(9 + int(x[0] > 0), 2)}

    with pytest.raises(ValueError, match=r"\[9, 10\] draws"):
        calibrate(normal, changing)
    for bins in (1, 11):
        with pytest.raises(ValueError, match=f"bins is {bins}; expected 2 to 10"):
            Calibration({"a": torch.zeros(40, dtype=torch.long)}, draws=9).p_values(bins)


def test_arviz_draws_the_ranks() -> None:
    arviz = pytest.importorskip("arviz")
    ranks = torch.arange(500) % 100
    found = Calibration({"a": ranks, "b": ranks[:, None].repeat(1, 2)}, draws=99)
    group = found.to_inference_data()["prior_sbc"]
    assert dict(group["b"].sizes) == {"chain": 1, "draw": 500, "b_dim_0": 2}
    values = group["a"].to_numpy().ravel()
    assert values.tolist() == ((ranks.double() + 0.5) / 100).tolist()
    points = np.linspace(0.01, 1, 100)
    ax = arviz.plot_ecdf(values, eval_points=points, cdf=lambda x: x, difference=True)
    assert abs(ax.get_lines()[0].get_ydata()).max() < 0.02


def test_ranks_of_sites_are_of_the_same_data_sets() -> None:
    ranks = torch.arange(300) % 11
    with pytest.raises(ValueError, match="the same number R of data sets"):
        Calibration({"a": ranks, "b": ranks.repeat(2)}, draws=10)
    for bad in (ranks[:0], torch.zeros(300, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="at least one scalar"):
            Calibration({"a": bad}, draws=10)
    bytes_ = Calibration({"a": ranks.to(torch.uint8)}, draws=10)
    assert bytes_.p_value == Calibration({"a": ranks}, draws=10).p_value


def test_data_are_drawn_with_the_trained_parameters() -> None:
    """The model is that of the store, and inference has a store of its own."""
    seen = []

    def model() -> None:
        scale = pyro.param("scale", torch.tensor(1.0))
        value = pyro.sample("value", Normal(0.0, scale))
        pyro.sample("x", Normal(value, 1.0))

    def exact(x: Tensor) -> dict[str, Tensor]:
        assert "scale" not in pyro.get_param_store()
        seen.append(float(x))
        return {"value": Normal(81 / 82 * x, (81 / 82) ** 0.5).sample((19,))}

    pyro.param("scale", torch.tensor(9.0))
    simulation_based_calibration(model, exact, replicates=200, progress=False)
    assert torch.tensor(seen).std() == pytest.approx(82**0.5, rel=0.2)
    assert pyro.param("scale") == 9
