"""Guides and posteriors: right values where wrong ones were found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.flows import Flow
from pyro_vmonf.guides import drawn
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import Logit
from pyro_vmonf.weights import Weights
from tests.samples import (
    NO_EPOCHS,
    N,
    X,
    clustered_rows,
    sixty_rows,
    three_blobs,
    two_blobs,
    two_gaussians,
)

K = 3
D = 2


def test_posterior_at_the_smallest_temperature_is_certain() -> None:
    vmonf = two_gaussians()
    with torch.no_grad():
        for parameter in vmonf.guide.parameters():
            parameter.mul_(50)
    vmonf.guide.set_temperature_(1e-40)
    proba = vmonf.predict_proba(two_blobs())
    assert torch.equal(proba.amax(-1), torch.ones(N))


def test_probabilities_of_low_precision_are_taken() -> None:
    x = X.to(torch.bfloat16)
    vmonf = VMoNF(FlowMixture(Gaussian(2, K)), SoftmaxGuide(torch.nn.Linear(2, K)))
    assert vmonf.to(torch.bfloat16).predict_proba(x).shape == (180, K)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K)))
    next(vmonf.guide.network.parameters()).data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="sum is nan"):
        vmonf.predict(clustered_rows())


HIDING: dict[str, Callable[[FlowMixture], Any]] = {
    kind.__name__: lambda model, kind=kind: kind(poutine.block(model, hide=["c"]))  # type: ignore[misc]
    for kind in (
        *(AutoNormal, AutoDelta, AutoMultivariateNormal),
        *(AutoIAFNormal, AutoStructured, AutoGaussian),
    )
}
HIDING["function"] = lambda model: (
    lambda: pyro.sample(
        "weights",
        dist.Dirichlet(pyro.param("a", torch.ones(K), constraint=dist.constraints.positive)),
    )
)
HIDING["list"] = lambda model: [SoftmaxGuide(MLP(D, K)), HIDING["AutoNormal"](model)]


@pytest.mark.parametrize("name", HIDING)
def test_restarts_of_guides_that_build_themselves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "DRAWS", 8)
    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    vmonf = VMoNF(model, HIDING[name](model))
    for _ in range(2):  # before and after they are built
        history = vmonf.fit(clustered_rows(20), n_init=2, **NO_EPOCHS)
        assert len(history.restarts) == 2


def test_a_partial_function_as_a_guide_is_saved_beside_its_program(tmp_path: Any) -> None:
    def program(scale: float) -> None:
        pyro.sample("weights", dist.Dirichlet(scale * torch.ones(K)))

    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    vmonf = VMoNF(model, partial(program, 2.0))
    vmonf.fit(clustered_rows(), **NO_EPOCHS)
    with pytest.warns(UserWarning, match="into=vmonf"):
        vmonf.save(tmp_path / "pair")


class Softmax(Weights):
    r"""Weights :math:`\mathrm{softmax}(z)` of a normal z."""

    in_program = True
    num_components = K

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(K))

    def forward(self, context: Tensor | None = None) -> Tensor:
        z: Tensor = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
        return z.log_softmax(-1)

    def guide(self) -> None:
        pyro.sample("z", dist.Normal(self.loc, 0.1).to_event(1))

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return self.loc.log_softmax(-1)


@pytest.mark.parametrize("auto", [False, True])
def test_sites_of_ones_own_weights_are_observed(auto: bool) -> None:
    model = FlowMixture(Gaussian(D, K), Softmax())
    vmonf = VMoNF(model, HIDING["AutoNormal"](model) if auto else None)
    z = torch.tensor([0.0, 1.0, 2.0])
    known = vmonf.condition({"z": z})
    known.fit(clustered_rows(), **NO_EPOCHS)
    torch.testing.assert_close(known.model.weights.log_mean(), z.log_softmax(-1))
    site = poutine.trace(known.model).get_trace(clustered_rows()).nodes["z"]
    assert site["is_observed"]
    assert torch.equal(site["value"], z)
    x = clustered_rows(5)
    joint = z.log_softmax(-1) + known.component_log_prob(x)
    torch.testing.assert_close(known.log_prob(x), joint.logsumexp(-1))
    with pytest.raises(ValueError, match=r"weights draw \(z\)"):
        vmonf.condition({"weights": z})


def joined(model: FlowMixture) -> AutoGuideList:
    def of_c(x: Tensor, **_: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(K) / K))

    guides = AutoGuideList(model)
    guides.append(HIDING["AutoNormal"](model))
    guides.append(of_c)
    return guides


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: AutoNormalMessenger(poutine.block(model, hide=["c"])), "runs the model"),
        (joined, r"pass a guide of c beside it: guide=\[SoftmaxGuide"),
        (lambda model: lambda data: None, "takes 'data'; expected arguments of the model: x, y"),
    ],
)
def test_guides_that_cannot_serve_say_why(make: Any, said: str) -> None:
    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K)))
    with pytest.raises((TypeError, ValueError), match=said):
        VMoNF(model, make(model)).fit(clustered_rows(), **NO_EPOCHS)


def test_a_function_may_take_what_there_is_none_of() -> None:
    def program(x: Tensor, y: Tensor | None) -> None:
        assert y is None
        pyro.sample("weights", dist.Dirichlet(torch.ones(K)))

    vmonf = VMoNF(FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K))), program)
    vmonf.fit(clustered_rows(), **NO_EPOCHS)


def test_a_guide_of_another_pair_is_refused() -> None:
    x = 10 * sixty_rows(40) + 50
    first = VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2)))
    first.fit(x, epochs=2, progress=False)
    before = first.predict_proba(x)
    second = VMoNF(FlowMixture(Gaussian(2, 2)))
    with pytest.raises(ValueError, match="the guide belongs to another pair"):
        VMoNF(FlowMixture(Gaussian(2, 2)), first.guide)
    with pytest.raises(ValueError, match="the guide belongs to another pair"):
        second.guide = first.guide
    assert torch.equal(first.predict_proba(x), before)
    first.guide = first.guide
    taken = copy.deepcopy(first.guide)
    taken.bind_(None)
    second.guide = taken
    assert second.guide.model is second.model


def test_a_new_model_takes_the_units_that_the_guide_has_learnt_in() -> None:
    torch.manual_seed(0)
    x = pd.DataFrame(100 * three_blobs().numpy() + 5000, columns=["a", "b"])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    vmonf.fit(x, epochs=3, progress=False)
    before = vmonf.predict_proba(x)
    vmonf.model = FlowMixture(RealNVP(2, 3, blocks=2))
    assert torch.equal(vmonf.predict_proba(x[["b", "a"]]), before)
    assert vmonf.log_prob(x).isfinite().all()
    own = FlowMixture(Gaussian(2, 3))
    own.standardize_(x)
    units = own.standardizer.scale.clone() * 2
    own.standardizer.scale.copy_(units)
    vmonf.model = own
    assert torch.equal(vmonf.model.standardizer.scale, units)
    flows = RealNVP(2, 3, blocks=2)
    with pytest.warns(RuntimeWarning, match="fit the pair again"):
        vmonf.model = FlowMixture(Flow([*flows.transforms, Logit()], base=flows.base))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_keeps_small_probabilities(dtype: torch.dtype) -> None:
    model = FlowMixture(Gaussian(1, 2))
    model.bank.set_(torch.tensor([[-8.0], [8.0]]), torch.ones(2, 1, 1))  # type: ignore[operator]
    vmonf = VMoNF(model, SoftmaxGuide(nn.Linear(1, 2))).to(dtype)
    with torch.no_grad():
        for parameter in vmonf.guide.parameters():
            parameter.zero_()
    x = torch.tensor([[7.0]]).to(dtype)
    exact = vmonf.posterior(x, exact=True)
    assert float(exact.log_prob(torch.tensor([0]))) == pytest.approx(-112, rel=1e-6)
    divergence = torch.distributions.kl_divergence(vmonf.posterior(x), exact)
    assert float(divergence) == pytest.approx(56 - math.log(2), rel=1e-6)
    proba = vmonf.predict_proba(x, exact=True)
    assert proba.equal(exact.logits.exp())
