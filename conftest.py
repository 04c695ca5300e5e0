"""A clean Pyro for every test and docstring example.

The process that hands out the tests reads this file first and runs none, so torch is imported late.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator

# No window is opened, whatever backend the machine prefers.
os.environ.setdefault("MPLBACKEND", "Agg")

# One thread for each worker: more of them wait for each other.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest

# Every worker imports what may have examples. This file has none, and Lightning is slow to import.
# A process that knows a second device is one of its own.
collect_ignore = ["pyro_vmonf/interop/lightning.py", "tests/second_device.py"]

# Thousands of collected tests stay to the end: no garbage collection looks at them.
gc.disable()


def pytest_collection_finish() -> None:
    """Begin with garbage collection where the tests begin."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def steps_without_compiler() -> None:
    """Run captured steps operation by operation: to compile one takes longer than any test.

    No step is captured because it is slow on a busy machine. Tests of either ask for it.
    """
    import torch

    from pyro_vmonf.training import compiling, graphs

    compiling.FROM_CACHE = math.inf
    if not torch.cuda.is_available():
        graphs.compiled = lambda graph, inputs: graph


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Start each test from the same seed and an empty param store, with Pyro's validation on."""
    import pyro
    import torch

    torch.set_num_threads(1)
    pyro.clear_param_store()
    # torch.manual_seed writes down a traceback for each device that is not there.
    seeded = torch if torch.cuda.is_available() else torch.default_generator
    seeded.manual_seed(0)
    with pyro.validation_enabled():
        yield
    pyro.clear_param_store()


@pytest.fixture
def float64() -> Iterator[None]:
    """Build modules in float64 for tests against an exact oracle."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def names_in_examples(doctest_namespace: dict[str, object]) -> None:
    """What docstring examples may take for granted."""
    import torch

    doctest_namespace["torch"] = torch
