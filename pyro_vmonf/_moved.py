"""Names of earlier versions: an import from the old place gives the same object and a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

# Modules of ``pyro_vmonf`` by their old names, and where their names are now.
MOVED = {
    "animation": "plots.animation",
    "banks": "flows.stack",
    "constants": "flows.constant",
    "convolutions": "nn.convolutions",
    "distributed": "interop.ddp",
    "draws": "experiments.draws",
    "elbo": "training.objective",
    "estimator": "interop.sklearn",
    "fitting": "training.fit",
    "flow": "flows.base",
    "foreign": "flows",
    "gaussians": "flows",
    "history": "training.history",
    "image_recipes": "experiments.images",
    "images": "flows",
    "inference_data": "interop.arviz",
    "lightning": "interop.lightning",
    "made": "nn.made",
    "palette": "plots.palette",
    "pixel_flow": "flows",
    "pixels": "nn.pixels",
    "plane": "plots.window",
    "posterior_draws": "interop.draws",
    "pretraining": "starts",
    "random_bank": "flows",
    "recipes": "experiments.recipes",
    "reseeding": "starts",
    "restarts": "training.restarts",
    "rotated": "flows",
    "running": "experiments.run",
    "saving": "files",
    "scopes": "_utils.contexts",
    "simplex": "weight_priors",
    "temperature": "schedules",
    "together": "training.together",
    "transformed": "flows.transformed",
    "truncated": "distributions",
}


class MovedModule(ModuleType):
    """A module that stands at an old place and hands out the names of the new one.

    Arguments:
        old, new: names below ``pyro_vmonf``.
    """

    def __init__(self, old: str, new: str) -> None:
        super().__init__(f"pyro_vmonf.{old}", f"Moved to :mod:`pyro_vmonf.{new}`.")
        self.__dict__["_new"] = f"pyro_vmonf.{new}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new = self.__dict__["_new"]
        value = getattr(importlib.import_module(new), name)
        warnings.warn(
            f"{self.__name__}.{name} has moved: import it from {new}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value


def install(package: ModuleType) -> None:
    """Put a module at each old place below a package."""
    for old, new in MOVED.items():
        module = sys.modules[f"{package.__name__}.{old}"] = MovedModule(old, new)
        setattr(package, old, module)
