"""The bridge to ArviZ, and what an import of the package costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro.distributions import Dirichlet

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.arviz import to_inference_data
from pyro_vmonf.nn import MLP

K, D, N = 3, 2, 11


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


def run(code: str, **environment: str) -> str:
    """Run code in a process of its own, as this one has long imported both."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_imports_nothing_heavy_beyond_pyro() -> None:
    """Figures, ArviZ, scikit-learn and scipy come when they are asked for."""
    code = """
import sys, pyro
before = set(sys.modules)
import pyro_vmonf, pyro_vmonf.interop.arviz
import pyro_vmonf.distortions, pyro_vmonf.em, pyro_vmonf.metrics, pyro_vmonf.starts
packages = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(packages - sys.stdlib_module_names))
"""
    assert run(code) == "['pyro_vmonf']"


def test_converts_without_a_warning_even_on_the_first_import_of_the_day(tmp_path: Path) -> None:
    code = """
import torch
from pyro_vmonf import FlowMixture, RealNVP, VMoNF
from pyro_vmonf.interop.arviz import to_inference_data
x = torch.zeros(5, 2)
print(sorted(to_inference_data(VMoNF(FlowMixture(RealNVP(2, 3))), x, held_out=x).groups()))
"""
    # An empty cache: ArviZ keeps the day of its last announcement there.
    found = run(code, XDG_CACHE_HOME=str(tmp_path))
    groups = ["held_out", "observed_data", "point_log_likelihood", "posterior", "responsibilities"]
    assert found == str(groups)
