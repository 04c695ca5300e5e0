"""Each test begins and ends without figures, and the global state is at hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib import rcParams


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    plt.close("all")  # of tests in other folders
    yield
    plt.close("all")


@pytest.fixture
def global_state() -> Callable[[], list[Any]]:
    def state() -> list[Any]:
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
        return [torch.get_rng_state().tolist(), random.getstate(), str(numpy_state), dict(rcParams)]

    return state
