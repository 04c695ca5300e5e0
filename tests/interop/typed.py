"""A user's program, which mypy checks with the package: ``make lint``. It is not run."""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Batch, CustomTerm


def penalty(batch: Batch) -> Tensor:
    """Return what each row pays."""
    return batch.log_q.square().sum(-1)


def program(x: Tensor) -> None:
    """Fit, ask and draw."""
    guide = SoftmaxGuide(MLP(2, 5), terms=[Balance(), CustomTerm(penalty)])
    vmonf = VMoNF(FlowMixture(RealNVP(2, 5, blocks=2), "learned"), guide)
    assert_type(vmonf.fit(x, epochs=10).elbo, list[float])
    assert_type(vmonf.predict(x), torch.Tensor)
    assert_type(vmonf.sample(3), tuple[torch.Tensor, torch.Tensor])
    assert_type(VMoNF.from_data(x), VMoNF)
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, 3)))
    assert_type(chain.predict_proba(x), torch.Tensor)
    # An error that mypy no longer finds is an ignored line too many.
    vmonf.sample("three")  # type: ignore[arg-type]
    FlowMixture()  # type: ignore[call-arg]
    vmonf.fit(x, epochs="ten")  # type: ignore[arg-type]
    vmonf.fit(x, epoch=10)  # type: ignore[call-arg]
