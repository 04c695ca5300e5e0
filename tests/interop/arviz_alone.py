"""The calls that a user makes, in an environment of ArviZ alone: ``python arviz_alone.py FOLDER``.

The folder holds ``arrays.npz`` and ``rest.json``, the arguments that ``to_inference_data`` gives to
``to_arviz`` of ``pyro_vmonf/interop/groups.py``. That file is loaded by its path, as the package
needs torch.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import arviz as az
import numpy as np
import xarray as xr


def groups_of_arviz() -> Any:
    """Load the file that makes ArviZ's groups."""
    path = Path(__file__).parents[2] / "pyro_vmonf" / "interop" / "groups.py"
    spec = importlib.util.spec_from_file_location("groups", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(folder: Path, name: str) -> Any:
    """Convert one saved fit."""
    rest = json.loads((folder / f"{name}.json").read_text())
    groups: dict[str, dict[str, Any]] = {}
    with np.load(folder / f"{name}.npz") as arrays:
        for key in arrays.files:
            group, variable = key.split("/")
            groups.setdefault(group, {})[variable] = arrays[key]
    return groups_of_arviz().to_arviz(az, groups, *rest)


def refused(call: Any, *arguments: Any) -> str:
    """Return the words with which a call is refused."""
    try:
        call(*arguments)
    except TypeError as error:
        return str(error)
    raise AssertionError("the call was not refused")


def main(folder: Path) -> None:
    """Make every call on the fits of a folder."""
    assert "torch" not in sys.modules
    warnings.simplefilter("error", RuntimeWarning)
    data, other, point = read(folder, "random"), read(folder, "other"), read(folder, "point")
    assert isinstance(data, xr.DataTree)

    # The weights are the parameters: one row each, with the mean of the draws.
    summary = az.summary(data, round_to="none")
    assert list(summary.index) == ["weights[0]", "weights[1]", "weights[2]"]
    np.testing.assert_allclose(
        summary["mean"], data.posterior["weights"].mean(("chain", "draw")), rtol=1e-6
    )
    az.plot_trace(data)
    az.plot_ppc_dist(data)

    # Leave-one-out, against importance weights 1/p of each row.
    log_likelihood = data.log_likelihood["x"].values.reshape(-1, data.sizes.get("row", 40))
    plain = -np.log(np.exp(-log_likelihood).mean(0)).sum()
    loo = az.loo(data)
    assert abs(loo.elpd - plain) < 0.05, (loo.elpd, plain)
    table = az.compare({"data": data, "other": other})
    assert set(table.index) == {"data", "other"}

    # Chains of two fits side by side, a table, a file.
    joined = xr.concat(
        [data, other], dim="chain", data_vars="minimal", coords="minimal", compat="override"
    )
    assert joined.posterior.sizes["chain"] == 2, joined
    frame = az.dataset_to_dataframe(data.posterior.dataset)
    assert frame.shape == (200, 3), frame.shape
    data.to_netcdf(folder / "fit.nc")
    back = az.from_netcdf(folder / "fit.nc")
    xr.testing.assert_identical(back.load(), data)

    # A point estimate has no draws to reweight.
    assert list(az.summary(point).index) == ["weights[0]", "weights[1]", "weights[2]"]
    az.plot_ppc_dist(point, num_samples=1)
    assert "log likelihood not found" in refused(az.loo, point)
    point.to_netcdf(folder / "point.nc")
    sys.stdout.write(f"ArviZ {az.__version__}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
