"""The bridge to ArviZ, and what an import of the package costs."""

from __future__ import annotations

import os
import subprocess
import sys

import arviz as az
import numpy as np
import pytest
import torch
from pyro.distributions import Dirichlet

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.nn import MLP

K, D, N, SEQUENCES = 3, 2, 11, 60


def pair(guided: bool = True) -> VMoNF:
    vmonf = VMoNF(
        FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), Dirichlet(torch.tensor([1.0, 2.0, 3.0]))),
        SoftmaxGuide(MLP(D, K), temperature=0.5) if guided else None,
    )
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vmonf


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_groups_hold_what_the_verbs_return(guided: bool, exact: bool) -> None:
    vmonf, x = pair(guided), torch.randn(N, D)
    mean = vmonf.model.weights.log_mean().exp().detach()
    data = to_inference_data(vmonf, x, exact=exact, posterior={"weights": mean[None]})
    groups = {"posterior", "responsibilities", "log_likelihood", "observed_data"}
    assert set(data.groups()) == groups

    responsibilities = data["responsibilities"]["responsibilities"]
    assert responsibilities.dims == ("chain", "draw", "row", "component")
    assert responsibilities.shape == (1, 1, N, K)
    expected = vmonf.predict_proba(x, exact=exact).numpy()
    np.testing.assert_allclose(responsibilities[0, 0], expected, rtol=1e-5, atol=1e-7)

    weights = data.posterior["weights"]
    assert weights.dims == ("chain", "draw", "component")
    np.testing.assert_array_equal(weights[0, 0], mean)

    log_likelihood = data.log_likelihood["x"]
    assert log_likelihood.dims == ("chain", "draw", "row")
    np.testing.assert_allclose(log_likelihood[0, 0], vmonf.log_prob(x).numpy(), rtol=1e-5)

    assert data.observed_data["x"].dims == ("row", "feature")
    np.testing.assert_array_equal(data.observed_data["x"], x.numpy())
    assert "y" not in data.observed_data
    for name, size in {"row": N, "component": K, "feature": D}.items():
        assert data.observed_data.coords.get(name, data.posterior.coords.get(name)).size == size
    assert data.attrs["responsibilities"] == (
        "guide" if guided and not exact else "exact posterior"
    )


@pytest.mark.parametrize("y", [torch.arange(N) % 4 - 1, torch.randn(N, K)], ids=["labels", "soft"])
def test_evidence_is_kept_and_enters_the_responsibilities(y: torch.Tensor) -> None:
    vmonf, x = pair(), torch.randn(N, D)
    data = to_inference_data(vmonf, x, y, draws=2)
    assert data.observed_data["y"].dims == ("row", "component")[: y.dim()]
    np.testing.assert_array_equal(data.observed_data["y"], y.numpy())
    found = data["responsibilities"]["responsibilities"][0, 0]
    np.testing.assert_array_equal(found, vmonf.predict_proba(x, y).numpy())
    assert not np.allclose(found, vmonf.predict_proba(x).numpy())


def test_chunks_give_the_same_values() -> None:
    vmonf, x = pair(), torch.randn(N, D)
    whole, parts = (to_inference_data(vmonf, x, draws=2, chunk_size=size) for size in (N, 4))
    for group, name in (("responsibilities", "responsibilities"), ("log_likelihood", "x")):
        np.testing.assert_allclose(whole[group][name], parts[group][name], rtol=1e-5)


def test_rows_are_checked() -> None:
    with pytest.raises(ValueError, match="x has 3 features but the components have 2"):
        to_inference_data(pair(), torch.randn(N, 3))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a process of its own prints, as this one has long imported everything."""
    code = """
import sys, pyro
before = set(sys.modules)
import pyro_vmonf, pyro_vmonf.interop.arviz
import pyro_vmonf.distortions, pyro_vmonf.em, pyro_vmonf.metrics, pyro_vmonf.starts
packages = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(packages - sys.stdlib_module_names))

import torch
from pyro_vmonf import FlowMixture, RealNVP, VMoNF
from pyro_vmonf.interop.arviz import to_inference_data
x = torch.zeros(5, 2)
pair = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)))
print(sorted(to_inference_data(pair, x, held_out=x).groups()))
"""
    # An empty cache: ArviZ keeps the day of its last announcement there.
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | cache,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_package_imports_nothing_heavy_beyond_pyro(printed: list[str]) -> None:
    """Figures, ArviZ, scikit-learn, scipy and zuko come when they are asked for."""
    assert printed[0] == "['pyro_vmonf']"


def test_converts_without_a_warning_even_on_the_first_import_of_the_day(printed: list[str]) -> None:
    groups = ["held_out", "observed_data", "point_log_likelihood", "posterior", "responsibilities"]
    assert printed[1] == str(groups)


def sequences() -> tuple[MarkovVMoNF, torch.Tensor]:
    """A fitted chain with random rows, and sequences of two lengths."""
    rows = Dirichlet(torch.ones(K)), Dirichlet(torch.ones(K, K))
    vmonf = MarkovVMoNF(MarkovMixture(Gaussian(D, K), *rows))
    x = vmonf.model.padded(torch.randn(SEQUENCES, 4, D), [4] * (SEQUENCES - 1) + [2])
    vmonf.fit(x, epochs=2, progress=False, seed=0)
    return vmonf, x


def test_a_chain_has_its_rows_and_its_sequences() -> None:
    vmonf, x = sequences()
    data = to_inference_data(vmonf, x, draws=5, predictive=True, held_out=x[:2])
    assert set(data.posterior.data_vars) == {"initial", "transition"}
    assert data.posterior["transition"].dims == ("chain", "draw", "component_before", "component")
    np.testing.assert_allclose(data.posterior["transition"].sum("component"), 1, rtol=1e-5)
    assert float(data.posterior["transition"].std("draw").min()) > 0
    proba = data["responsibilities"]["responsibilities"]
    assert proba.dims == ("chain", "draw", "row", "step", "component")
    assert proba.shape == (1, 5, SEQUENCES, 4, K)
    assert not proba[0, :, -1, 2:].any(), "nothing after the end"
    for draw in range(5):
        given = {
            f"weights.after_{k}": torch.from_numpy(data.posterior["transition"][0, draw, k].values)
            for k in range(K)
        }
        given["weights.initial"] = torch.from_numpy(data.posterior["initial"][0, draw].values)
        under = vmonf.condition(given)
        found = data.log_likelihood["x"][0, draw]
        assert found.dims == ("row",)
        np.testing.assert_allclose(found, under.log_prob(x), rtol=1e-5)
        np.testing.assert_allclose(proba[0, draw], under.predict_proba(x), atol=1e-5)
    drawn = data.posterior_predictive["x"]
    assert drawn.dims == ("chain", "draw", "row", "step", "feature")
    np.testing.assert_array_equal(np.isnan(drawn[0, 0]), x.isnan())
    np.testing.assert_array_equal(data.held_out["log_prob"], data.log_likelihood["x"][..., :2])
    assert az.loo(to_inference_data(vmonf, x, draws=100)).n_data_points == SEQUENCES
    assert len(az.summary(data)) == K + K * K
    with pytest.raises(ValueError, match=r"steps of sequences have no labels.* lengths=\.\.\."):
        to_inference_data(vmonf, x, y=torch.zeros(N, dtype=torch.long))


def test_lengths_say_where_the_sequences_end() -> None:
    vmonf, x = sequences()
    lengths = [4] * (SEQUENCES - 1) + [2]
    padded, said = (
        to_inference_data(vmonf, rows, draws=5, predictive=True, lengths=given)
        for rows, given in ((x, None), (x.nan_to_num(7.0), lengths))
    )
    for group in ("responsibilities", "log_likelihood", "posterior_predictive", "observed_data"):
        assert said[group].equals(padded[group]), group
    pair = VMoNF(FlowMixture(Gaussian(D, K)))
    with pytest.raises(ValueError, match="rows of a FlowMixture are no sequences"):
        to_inference_data(pair, torch.randn(N, D), lengths=lengths)


def test_a_chain_without_random_parts_is_a_point() -> None:
    vmonf = MarkovVMoNF(MarkovMixture(Gaussian(D, K), "learned", "learned"))
    x = torch.randn(N, 4, D)
    with pytest.warns(UserWarning, match="point estimate"):
        data = to_inference_data(vmonf, x)
    np.testing.assert_allclose(data["point_log_likelihood"]["x"][0, 0], vmonf.log_prob(x))
    np.testing.assert_allclose(
        data["responsibilities"]["responsibilities"][0, 0], vmonf.predict_proba(x), atol=1e-6
    )
