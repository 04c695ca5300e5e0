"""Draws, predictions, training and held-out scores for ArviZ, before and since its 1.0."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import xarray
from pyro.distributions import Dirichlet, Normal
from pyro.infer import MCMC, NUTS, Predictive

from pyro_vmonf import (
    FixedWeights,
    FlowMixture,
    Gaussian,
    RandomBank,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.interop import arviz as bridge
from pyro_vmonf.interop.arviz import NOTE, NOTE_ON_DRAWS, POINT, to_inference_data
from pyro_vmonf.nn import MLP
from pyro_vmonf.training.history import History

K, D, N, S = 3, 2, 11, 6


@pytest.fixture(scope="module")
def az() -> Any:
    return pytest.importorskip("arviz")


def pair(guided: bool = True, random_bank: bool = False, weights: Any = None) -> VMoNF:
    bank: Any = RealNVP(D, K, blocks=2, hidden=(4,))
    weights = Dirichlet(torch.tensor([1.0, 2.0, 3.0])) if weights is None else weights
    model = FlowMixture(RandomBank(bank, scale=0.3) if random_bank else bank, weights)
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D, K), temperature=0.5) if guided else None)
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vmonf


def samples(chains: int = 2) -> torch.Tensor:
    """What an MCMC of the weights returns."""
    return Dirichlet(torch.ones(K)).sample((chains, S))


# Draws of the random parts.


@pytest.mark.parametrize("guided", [True, False])
def test_everything_follows_under_each_draw_of_the_weights(guided: bool) -> None:
    vmonf, x, weights = pair(guided), torch.randn(N, D), samples()
    y = torch.arange(N) % 4 - 1
    data = to_inference_data(vmonf, x, y, exact=not guided, posterior={"weights": weights})
    np.testing.assert_array_equal(data.posterior["weights"], weights)
    components = vmonf.component_log_prob(x)
    joint = weights.log()[:, :, None] + components
    np.testing.assert_allclose(data.log_likelihood["x"], joint.logsumexp(-1), rtol=1e-5)
    excluded = (y[:, None] >= 0) & (y[:, None] != torch.arange(K))
    expected = joint.masked_fill(excluded, -torch.inf).softmax(-1)
    if guided:
        expected = vmonf.predict_proba(x, y).expand(2, 1, N, K)
    found = data["responsibilities"]["responsibilities"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert found.dims == ("chain", "draw", "row", "component")
    assert data.attrs["note"] == NOTE_ON_DRAWS


def test_draws_are_from_the_posterior_of_the_guide() -> None:
    vmonf, x = pair(), torch.randn(N, D)
    data = to_inference_data(vmonf, x, draws=300)
    weights = torch.as_tensor(data.posterior["weights"].values)
    assert weights.shape == (1, 300, K)
    posterior = vmonf.model.weights.posterior()
    error = (posterior.variance / 300).sqrt()
    assert ((weights.mean((0, 1)) - posterior.mean).abs() < 5 * error).all()
    again = to_inference_data(vmonf, x, draws=300).posterior["weights"]
    np.testing.assert_array_equal(weights, again)
    other = to_inference_data(vmonf, x, draws=300, seed=1).posterior["weights"]
    assert not np.array_equal(weights, other)


def test_a_random_bank_is_drawn_with_the_weights() -> None:
    vmonf, x = pair(random_bank=True, guided=False), torch.randn(N, D)
    data = to_inference_data(vmonf, x, draws=S, held_out=x, chunk_size=4)
    names = {f"bank.{name}" for name, _ in vmonf.model.bank.bank.named_parameters()}
    assert set(data.posterior.data_vars) == {"weights"} | names
    log_prob = []
    for draw in range(S):
        values = {
            name: torch.as_tensor(data.posterior[name].values[0, draw])
            for name in {"weights"} | names
        }
        conditioned = pyro.poutine.condition(vmonf.model, data=values)
        elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        terms = [
            -elbo.loss(conditioned, lambda *_, **__: None, row[None]) for row in x
        ]  # with the priors of the values, which the prior alone gives too
        prior = sum(
            float(site["fn"].log_prob(site["value"]).sum())
            for name, site in pyro.poutine.trace(conditioned).get_trace(x).nodes.items()
            if name in values
        )
        log_prob.append([term - prior for term in terms])
    np.testing.assert_allclose(data.log_likelihood["x"][0], log_prob, rtol=1e-3, atol=1e-3)
    assert "note" not in data.attrs
    held_out = data["held_out"]["log_prob"]
    assert held_out.dims == ("chain", "draw", "held_out_row")
    np.testing.assert_allclose(held_out, data.log_likelihood["x"], rtol=1e-5)


def test_samples_of_nuts() -> None:
    """The rows are far from doubt, so the posterior is Dirichlet(1 + counts)."""
    vmonf = VMoNF(FlowMixture(Gaussian(1, 2), torch.distributions.Dirichlet(torch.ones(2))))
    vmonf.model.bank.set_(torch.tensor([[-50.0], [50.0]]), torch.ones(2, 1, 1))
    vmonf.requires_grad_(False).eval()
    x = torch.tensor([-50.0, 50.0, 50.0, 49.0, 51.0, -49.0])[:, None]
    kernel = NUTS(vmonf.model, jit_compile=False, max_plate_nesting=1)
    mcmc = MCMC(kernel, num_samples=60, warmup_steps=30, disable_progbar=True)
    mcmc.run(x)
    flat = to_inference_data(vmonf, x, posterior=mcmc.get_samples())
    chains = to_inference_data(vmonf, x, posterior=mcmc.get_samples(group_by_chain=True))
    np.testing.assert_array_equal(flat.posterior["weights"], chains.posterior["weights"])
    assert flat.posterior["weights"].shape == (1, 60, 2)
    expected = flat.posterior["weights"].values[0, :, [0, 1, 1, 1, 1, 0]].T
    components = vmonf.component_log_prob(x).amax(-1).numpy()
    np.testing.assert_allclose(
        flat.log_likelihood["x"][0], np.log(expected) + components, rtol=1e-5
    )


def test_names_of_a_nested_pair() -> None:
    outer = pyro.nn.PyroModule()
    outer.prior = pair(guided=False)
    x = torch.randn(N, D)
    data = to_inference_data(outer.prior, x, posterior={"prior.weights": samples()})
    np.testing.assert_array_equal(data.posterior["weights"].shape, (2, S, K))
    assert "prior.weights" not in data.posterior


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"draws": 2, "posterior": {"weights": samples()}}, "pass one of them"),
        ({"posterior": {"pi": samples()}}, "posterior holds pi; expected .*: weights"),
        ({"posterior": {}}, "posterior holds nothing; expected"),
        (
            {"posterior": {"weights": samples()[..., :2]}},
            r"shape \(2, 6, 2\); expected \(draws, 3\)",
        ),
        ({"posterior": {"weights": torch.ones(3)}}, r"shape \(3,\); expected \(draws, 3\)"),
        ({"posterior": {"weights": torch.ones(S, 1, K) / K}}, r"more chains than draws.*squeeze"),
        ({"predictive": -1}, "predictive is -1"),
        ({"held_out": torch.zeros(4, 3)}, "x has 3 features but the components have 2"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_inference_data(pair(), torch.randn(N, D), **options)


@pytest.mark.parametrize("options", [{"draws": 3}, {"posterior": {"weights": samples()}}])
def test_what_is_not_random_has_no_draws(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="its LearnedWeights are a point estimate"):
        to_inference_data(pair(weights="learned"), torch.randn(N, D), **options)


def test_global_state_is_left_alone() -> None:
    vmonf, x = pair(random_bank=True).train(), torch.randn(N, D)
    pyro.clear_param_store()
    pyro.param("theirs", torch.tensor(1.0))
    before = torch.get_rng_state().clone()
    to_inference_data(vmonf, x, draws=2, predictive=2)
    assert torch.get_rng_state().equal(before)
    assert list(pyro.get_param_store().keys()) == ["theirs"]
    assert all(module.training for module in vmonf.modules())


# Predictions.


@pytest.mark.parametrize(("predictive", "sets"), [(True, 1), (3, 3)])
def test_predictions_have_the_shape_of_the_data(predictive: Any, sets: int) -> None:
    vmonf, x = pair(), torch.randn(N, D)
    data = to_inference_data(vmonf, x, posterior={"weights": samples()}, predictive=predictive)
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "row", "feature")
    assert data.posterior_predictive["x"].shape == (2, S * sets, N, D)
    assert "posterior_predictive" not in to_inference_data(vmonf, x)


def test_predictions_follow_their_draw() -> None:
    """Under draws that leave one component each, every row is that component's."""
    vmonf = VMoNF(FlowMixture(Gaussian(1, 2), Dirichlet(torch.ones(2))))
    vmonf.model.bank.set_(torch.tensor([[-50.0], [50.0]]), torch.ones(2, 1, 1))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    x = torch.zeros(40, 1)
    data = to_inference_data(vmonf, x, posterior={"weights": weights}, predictive=2)
    signs = np.sign(data.posterior_predictive["x"].values[0, ..., 0])
    np.testing.assert_array_equal(signs, np.repeat([[-1], [1], [-1]], 2, 0).repeat(40, 1))
    sets = data.posterior_predictive["x"].values[0]
    assert not np.array_equal(sets[0], sets[1])


def test_images_have_a_dimension_a_feature() -> None:
    vmonf = VMoNF(FlowMixture(Normal(torch.zeros(K, 1, 4, 5), 1.0).to_event(3)))
    x = torch.zeros(N, 1, 4, 5)
    data = to_inference_data(vmonf, x, predictive=True, held_out=x)
    dims = ("row", "feature_0", "feature_1", "feature_2")
    assert data.observed_data["x"].dims == dims
    assert data.posterior_predictive["x"].dims == ("chain", "draw", *dims)


# Training and held-out rows.


def point(vmonf: VMoNF) -> VMoNF:
    """The same pair with its weights at their mean, without a prior."""
    fixed = copy.deepcopy(vmonf)
    fixed.model.weights = FixedWeights(vmonf.model.weights.log_mean().exp().detach())
    return fixed


def fitted() -> tuple[VMoNF, torch.Tensor]:
    vmonf, x = pair(), torch.randn(40, D)
    vmonf.fit(x, epochs=3, held_out=0.25, progress=False, seed=0)
    return vmonf, x


def test_the_record_of_the_fit_stands_among_the_constants() -> None:
    vmonf, x = fitted()
    training, history = to_inference_data(vmonf, x)["constant_data"], vmonf.history
    assert history is not None
    for name in ("elbo", "objective", "temperature"):
        assert training[name].dims == ("epoch",)
        np.testing.assert_array_equal(training[name], getattr(history, name))
    np.testing.assert_array_equal(training["held_out_elbo"], history.held_out)
    np.testing.assert_array_equal(training["epoch"], history.epoch)
    np.testing.assert_array_equal(training["step"], history.step)
    for name, values in history.terms.items():
        np.testing.assert_array_equal(training["terms"].sel(term=name), values)
    assert training.attrs["seconds"] == history.seconds
    history.held_out = []
    assert "held_out_elbo" not in to_inference_data(vmonf, x)["constant_data"]


def test_a_held_out_score_stands_beside_the_in_sample_one() -> None:
    vmonf, x = fitted()
    new = torch.randn(9, D)
    data = to_inference_data(vmonf, x, held_out=new)
    found = data["held_out"]["log_prob"].values
    mean = np.log(np.exp(found.astype(float)).mean((0, 1)))
    assert data.attrs["held_out_log_prob_mean"] == pytest.approx(mean.mean(), rel=1e-6)
    data = to_inference_data(point(vmonf), x, held_out=new)
    np.testing.assert_allclose(data["held_out"]["log_prob"][0, 0], vmonf.log_prob(new), rtol=1e-5)
    for name, rows in (("in_sample", x), ("held_out", new)):
        log_prob = vmonf.log_prob(rows).double()
        mean, error = log_prob.mean(), log_prob.std() / math.sqrt(len(rows))
        assert data.attrs[f"{name}_log_prob_mean"] == pytest.approx(float(mean), rel=1e-5)
        assert data.attrs[f"{name}_log_prob_se"] == pytest.approx(float(error), rel=1e-5)
    assert "held_out_log_prob_mean" not in to_inference_data(vmonf, x).attrs


def test_the_score_over_draws_is_that_of_the_mean_density() -> None:
    """A mixture is linear in its weights: the mean density is that under the mean weights."""
    vmonf, x, weights = pair(), torch.randn(N, D), samples()
    data = to_inference_data(vmonf, x, posterior={"weights": weights}, held_out=x)
    mean = (weights.mean((0, 1)).log() + vmonf.component_log_prob(x)).logsumexp(-1)
    for name in ("in_sample", "held_out"):
        assert data.attrs[f"{name}_log_prob_mean"] == pytest.approx(float(mean.mean()), rel=1e-5)


# What ArviZ does with it.


def test_file_and_back(tmp_path: Path, az: Any) -> None:
    vmonf, x = fitted()
    data = to_inference_data(vmonf, x, draws=S, predictive=True, held_out=x)
    data.to_netcdf(str(tmp_path / "fit.nc"))
    back = az.from_netcdf(str(tmp_path / "fit.nc"))
    assert back.groups() == data.groups()
    assert {"constant_data", "held_out", "posterior_predictive"} < set(back.groups())
    for group in data.groups():
        xarray.testing.assert_equal(back[group], data[group])
    assert back.attrs["held_out_log_prob_mean"] == data.attrs["held_out_log_prob_mean"]


def test_draws_are_taken_by_default_where_parts_are_random(monkeypatch: Any) -> None:
    monkeypatch.setattr(bridge, "DRAWS", 7)
    data = to_inference_data(pair(), torch.randn(N, D))
    assert data.posterior["weights"].shape == (1, 7, K)
    assert data.log_likelihood["x"].shape == (1, 7, N)


def test_a_point_estimate_is_no_draw_for_loo_and_says_so(az: Any) -> None:
    vmonf, x = point(pair()), torch.randn(N, D)
    with pytest.warns(UserWarning, match=r"draws=.*held_out=x_test|held_out=x_test.*draws="):
        data = to_inference_data(vmonf, x)
    assert data.attrs["note"] == NOTE
    np.testing.assert_array_equal(data[POINT]["x"][0, 0], vmonf.log_prob(x))
    for refused in (az.loo, az.waic):
        with pytest.raises(TypeError, match="log likelihood not found"):
            refused(data)
    to_inference_data(vmonf, x, held_out=x)  # has the score: nothing to say


@pytest.mark.filterwarnings("ignore:The (inplace|copy) keyword")  # ArviZ's own use of pandas
@pytest.mark.parametrize("random", [False, True])
def test_chains_join_and_become_a_table(random: bool, az: Any) -> None:
    vmonf, x = fitted()
    vmonf = vmonf if random else point(vmonf)
    options: dict[str, Any] = {"held_out": x, "predictive": True}
    options |= {"draws": S} if random else {}
    parts = [to_inference_data(vmonf, x, seed=seed, **options) for seed in (0, 1)]
    both = az.concat(*parts, dim="chain")
    for group in ("posterior", "held_out", "responsibilities", "posterior_predictive"):
        for name, variable in both[group].data_vars.items():
            expected = np.concatenate([part[group][name].values for part in parts])
            np.testing.assert_array_equal(variable, expected)
    frame = both.to_dataframe(groups=["posterior", "held_out"])
    assert len(frame) == 2 * (S if random else 1)
    weights = frame[[c for c in frame.columns if "weights" in str(c)]].to_numpy()
    np.testing.assert_array_equal(weights, both.posterior["weights"].values.reshape(-1, K))
    assert len(both.to_dataframe()) == len(frame)


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ's own
def test_a_summary_has_one_row_for_each_weight(az: Any) -> None:
    vmonf, x = fitted()
    summary = az.summary(to_inference_data(vmonf, x, draws=60))
    assert list(summary.index) == [f"weights[{c}]" for c in range(K)]
    axes = az.plot_trace(to_inference_data(vmonf, x, draws=S))
    assert axes.shape == (1, 2)


def test_a_pair_without_training_goes_to_a_file(tmp_path: Path, az: Any) -> None:
    """``None`` has no place in a file."""
    vmonf, x = fitted()
    vmonf.history = History(kept=None)
    data = to_inference_data(vmonf, x, draws=S)
    data.to_netcdf(str(tmp_path / "fit.nc"))
    assert az.from_netcdf(str(tmp_path / "fit.nc"))["constant_data"].attrs["kept"] == "start"


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ's own use of pandas
def test_compare_is_by_the_leave_one_out_score(az: Any) -> None:
    """Rows far from doubt: without its own row a component has 59 of 119, and a prior count."""
    x = torch.cat((torch.randn(60, 1) - 20, torch.randn(60, 1) + 20))
    found = {}
    for name, variance in (("right", 1.0), ("wide", 1.5)):
        vmonf = VMoNF(FlowMixture(Gaussian(1, 2), Dirichlet(torch.ones(2))))
        vmonf.model.bank.set_(torch.tensor([[-20.0], [20.0]]), variance * torch.ones(2, 1, 1))
        posterior = Dirichlet(torch.tensor([61.0, 61.0])).sample((4, 250))
        found[name] = to_inference_data(vmonf, x, posterior={"weights": posterior})
        components = vmonf.component_log_prob(x).amax(-1).double()
        expected = components.sum() + 120 * math.log(60 / 121)
        assert az.loo(found[name]).elpd_loo == pytest.approx(float(expected), abs=0.2)
    assert list(az.compare(found).index) == ["right", "wide"]


@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ's own
def test_plot_ppc(az: Any) -> None:
    import matplotlib.pyplot as plt

    data = to_inference_data(pair(), torch.randn(N, D), draws=S, predictive=True)
    ax = az.plot_ppc(data, num_pp_samples=S)
    assert len(ax.get_lines()) > 1
    plt.close("all")


# ArviZ 1.0 and later, which needs a newer Python than the oldest that is supported here.


@pytest.fixture
def new_arviz(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("arviz")
    module.__version__ = "1.2.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "arviz", module)


@pytest.mark.parametrize("random_bank", [False, True])
def test_a_tree_of_the_same_groups_since_1_0(random_bank: bool, az: Any, request: Any) -> None:
    vmonf, x = pair(random_bank=random_bank), torch.randn(N, D)
    vmonf.fit(x, epochs=2, progress=False, seed=0)
    y = torch.arange(N) % 4 - 1
    options: dict[str, Any] = {"draws": S, "predictive": 2, "held_out": x}
    old = to_inference_data(vmonf, x, y, **options)
    request.getfixturevalue("new_arviz")
    new = to_inference_data(vmonf, x, y, **options)
    assert isinstance(new, xarray.DataTree)
    assert set(new.children) == set(old.groups())
    for group in old.groups():
        for name, variable in old[group].data_vars.items():
            xarray.testing.assert_equal(new[group][name], variable)
    assert new.attrs == old.attrs
    assert ("note" in new.attrs) != random_bank


def test_the_calls_of_arviz_1_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion and the calls run in an environment of ArviZ alone."""
    python = Path(os.environ.get("ARVIZ_PYTHON", ".venv-arviz/bin/python"))
    if not python.exists():
        pytest.skip(f"there is no {python} with ArviZ 1.0 or later: `make arviz` builds it")

    def saved(_: Any, groups: Any, *rest: Any) -> None:
        arrays = {f"{g}/{name}": a for g, held in groups.items() for name, a in held.items()}
        np.savez(tmp_path / f"{case}.npz", **arrays)
        (tmp_path / f"{case}.json").write_text(json.dumps(rest))

    monkeypatch.setattr(bridge, "to_arviz", saved)
    for case in ("random", "other", "point"):
        vmonf, x = fitted()
        vmonf = point(vmonf) if case == "point" else vmonf
        options = {} if case == "point" else {"draws": 200}
        to_inference_data(vmonf, x, predictive=True, held_out=x, **options)
    script = Path(__file__).with_name("arviz_alone.py")
    done = subprocess.run([python, script, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ArviZ 1.")


def test_predictive_of_pyro_needs_one_dimension_less() -> None:
    vmonf, x = pair(guided=False), torch.randn(N, D)
    drawn = Predictive(vmonf.model, guide=vmonf.guide, num_samples=S)(x)["weights"]
    data = to_inference_data(vmonf, x, posterior={"weights": drawn.squeeze(1)})
    np.testing.assert_allclose(data.posterior["weights"][0], drawn[:, 0].detach())
