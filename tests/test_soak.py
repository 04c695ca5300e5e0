"""The same again gives the same, to the bit, and leaves nothing behind."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyro
import pytest
import torch

from benchmarks.soak import soak
from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP

X = torch.randn(90, 2, generator=torch.Generator().manual_seed(0))


def test_nothing_grows_in_a_few_rounds() -> None:
    found = soak(0.0, warm_up=2)
    assert found["rounds"] == 3


def fitted(**options: Any) -> VMoNF:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3)))
    with torch.no_grad():
        for i, parameter in enumerate(vmonf.parameters()):
            parameter.copy_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            )
    vmonf.fit(X, **({"epochs": 3, "batch_size": 32, "seed": 5, "progress": False} | options))
    return vmonf


@pytest.mark.parametrize("options", [{}, {"n_init": 3}, {"held_out": 0.2, "keep": "best"}])
def test_a_seed_is_all_that_a_fit_depends_on(options: dict[str, Any]) -> None:
    first = fitted(**options)
    torch.manual_seed(77)
    torch.randn(100)
    pyro.param("something", torch.zeros(3))
    fitted(epochs=1, seed=1)  # any number of other fits in between
    again = fitted(**options)
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert first.history is not None
    assert again.history is not None
    assert first.history.elbo == again.history.elbo


def test_global_state_is_left_alone() -> None:
    dtype = torch.get_default_dtype()
    vmonf = fitted()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    vmonf.fit(X, epochs=2, seed=5, progress=False)
    vmonf.sample(5, seed=0)
    vmonf.report(X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.get_default_dtype() == dtype
    assert pyro.settings.get("validate_distributions_pyro") in (True, False)
    assert not list(pyro.get_param_store().keys())


def test_two_fits_in_two_threads_one_after_the_other_are_the_same() -> None:
    expected = fitted()
    found: list[VMoNF] = []
    thread = threading.Thread(target=lambda: found.append(fitted()))
    thread.start()
    thread.join()
    for one, other in zip(found[0].parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
