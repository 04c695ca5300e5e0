"""Log-densities in float32 where numbers are far, few or repeated: equal to those in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vmonf import MAF, NSF, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP

BANKS: dict[str, Callable[..., Any]] = {
    "RealNVP": lambda d, k: RealNVP(d, k, blocks=2, hidden=(4,)),
    "MAF": lambda d, k: MAF(d, k, blocks=2, hidden=(4,)),
    "NSF": lambda d, k: NSF(d, k, blocks=2, hidden=(4,)),
    "Gaussian": lambda d, k: Gaussian(d, k),
}
ROWS: dict[str, Callable[[int], Tensor]] = {
    "near": lambda d: torch.randn(20, d),
    "far": lambda d: torch.randn(20, d) * torch.logspace(0, 18, 20).unsqueeze(-1),
    "repeated": lambda d: torch.ones(20, d),
    "one row": lambda d: torch.randn(1, d),
    "zeros": lambda d: torch.zeros(3, d),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(
    ("bank", "features"),  # a coupling has two parts, and needs two features
    [*((bank, 2) for bank in BANKS), ("MAF", 1), ("Gaussian", 1)],
)
def test_densities_in_float32_are_those_in_float64(
    bank: str, features: int, components: int, rows: str
) -> None:
    torch.manual_seed(0)
    model = FlowMixture(BANKS[bank](features, components), "learned")
    vmonf = VMoNF(model, SoftmaxGuide(MLP(features, components)))
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    exact = copy.deepcopy(vmonf).double()
    x = ROWS[rows](features)
    found, expected = vmonf.log_prob(x), exact.log_prob(x.double())
    assert not found.isnan().any()
    assert (found < torch.inf).all()
    both = found.isfinite() & expected.isfinite()
    assert both.any()
    torch.testing.assert_close(found[both].double(), expected[both], rtol=1e-4, atol=1e-4)
    for proba in (vmonf.predict_proba(x), vmonf.predict_proba(x, exact=True)):
        torch.testing.assert_close(proba.sum(-1), torch.ones(len(x)))
