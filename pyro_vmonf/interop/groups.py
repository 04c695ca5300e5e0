"""ArviZ's groups from arrays, before and since ArviZ 1.0.

The file imports nothing of torch or Pyro: the tests run it in an environment of ArviZ alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# ArviZ's tools join groups of draws by chain and draw; they take groups of constants as they are.
CONSTANTS = "constant_data"


def to_arviz(
    arviz: Any,
    groups: Mapping[str, Mapping[str, Array]],
    dims: Mapping[str, list[str]],
    sizes: Mapping[str, int],
    attrs: Mapping[str, Any],
    constants: dict[str, Any] | None = None,
) -> Any:
    """Return arrays as an ``InferenceData``, or as a ``DataTree`` since ArviZ 1.0.

    Arguments:
        arviz: the module, of either kind.
        groups: arrays by group and variable: ``(chain, draw, *)`` where the group holds draws, and
            ``(*)`` where its name ends in ``data``.
        dims: the further dimensions of the variables, by name.
        sizes: the size of each further dimension.
        attrs: attributes of the whole.
        constants: the group without draws, in the form of ``xarray.Dataset.from_dict``.
    """
    import xarray

    datasets = {
        name: _dataset(name, variables, dims, sizes, attrs) for name, variables in groups.items()
    }
    if constants is not None:
        datasets[CONSTANTS] = xarray.Dataset.from_dict(constants)
    if int(arviz.__version__.split(".")[0]) >= 1:
        return xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=dict(attrs)), **datasets})
    return arviz.InferenceData(attrs=dict(attrs), **datasets)


def _dataset(
    group: str,
    variables: Mapping[str, Array],
    dims: Mapping[str, list[str]],
    sizes: Mapping[str, int],
    attrs: Mapping[str, Any],
) -> Any:
    """Return one group as an xarray ``Dataset``."""
    import xarray

    first = [] if group.endswith("data") else ["chain", "draw"]
    found = {}
    for name, value in variables.items():
        own = [*first, *dims.get(name, [])]
        # ArviZ's names for dimensions that nobody named.
        own += [f"{name}_dim_{i}" for i in range(value.ndim - len(own))]
        own = own[: value.ndim]
        found[name] = xarray.DataArray(
            value,
            dims=own,
            coords={d: np.arange(sizes.get(d, n)) for d, n in zip(own, value.shape, strict=True)},
        )
    library = {name: attrs[name] for name in attrs if name.startswith("inference_library")}
    return xarray.Dataset(found, attrs=library)
