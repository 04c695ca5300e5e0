"""A regression whose residuals have several modes: a mixture of experts, with and without flows."""

from __future__ import annotations

import torch

from examples.data import branches
from pyro_vmonf import Flow, FlowMixture, GatedWeights, VMoNF
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import ContextAffine, SplineAutoregressive


def experts(components: int, flow: bool) -> VMoNF:
    """Return K regressions, gated by the input, with Gaussian residuals or those of a flow."""
    shape = (components,)
    regression = ContextAffine(1, 1, hidden=(32,), activation="tanh", batch_shape=shape)
    residual = [SplineAutoregressive(1, hidden=(), batch_shape=shape)] if flow else []
    bank = Flow([*residual, regression], base=StandardNormal(1, components))
    gate = GatedWeights(MLP(1, components, hidden=(16,)), components)
    return VMoNF(FlowMixture(bank, gate, context_features=1))


def run(*, quick: bool, seed: int) -> dict[str, float]:
    """Return the held-out log-likelihood a row of three regressions."""
    (h, y), (h_test, y_test) = branches(1000, seed), branches(5000, seed + 1000)
    numbers = {}
    for name, components, flow in (
        ("one Gaussian", 1, False),
        ("three Gaussian experts", 3, False),
        ("three experts with flows", 3, True),
    ):
        torch.manual_seed(seed)
        vmonf = experts(components, flow)
        vmonf.fit(y, given=h, epochs=20 if quick else 300, batch_size=200, lr=1e-2, progress=False)
        held_out = vmonf.log_prob(y_test, given=h_test).mean()
        numbers[f"{name}, held-out log-likelihood"] = float(held_out)
    return numbers
