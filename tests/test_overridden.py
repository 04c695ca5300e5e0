"""Verbs of a pair whose model has a program of its own: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.nn.mlp import MLP
from pyro_vmonf.training.fit import fit

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
SHIFT = 3.0

VERBS: dict[str, Callable[[VMoNF], Any]] = {
    "predict_proba": lambda vmonf: vmonf.predict_proba(X, exact=True),
    "log_prob": lambda vmonf: vmonf.log_prob(X),
    "component_log_prob": lambda vmonf: vmonf.component_log_prob(X),
    "elbo": lambda vmonf: vmonf.elbo(X),
    "sample": lambda vmonf: vmonf.sample(5, seed=0),
    "report": lambda vmonf: vmonf.report(X),
    "marginal": lambda vmonf: vmonf.marginal(),
}


class Shifted(FlowMixture):
    """Rows are what the mixture draws, and a constant more."""

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        return super().forward(None if x is None else x - SHIFT, *args, **kwargs)


class Drawn(FlowMixture):
    """The same by the parts that the program draws."""

    def draw_parts(self, given: Tensor | None = None) -> Any:
        weights, components = super().draw_parts(given)
        return weights, shifted(components)


class Whole(Shifted):
    """With the members that the verbs use."""

    def components(self, given: Tensor | None = None) -> Any:
        return shifted(super().components(given))

    def mixture(self, given: Tensor | None = None) -> Marginal:
        return Marginal(self.weights.log_mean(given), self.components(given))


class Again(Whole):
    """A class whose program is newer than the members of its base."""

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        return super().forward(x, *args, **kwargs)


class Other(FlowMixture):
    """A method of its own, that no program uses."""

    def describe(self) -> str:
        return "other"


def shifted(components: Any) -> Any:
    move = dist.transforms.AffineTransform(SHIFT, 1.0, event_dim=1)
    return dist.TransformedDistribution(components, [move])


def pair(kind: type[FlowMixture], guide: bool = False) -> VMoNF:
    torch.manual_seed(0)
    model = kind(Gaussian(2, 3), "learned")
    return VMoNF(model, SoftmaxGuide(MLP(2, 3)) if guide else None).double()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [Shifted, Drawn, Again])
def test_verb_is_refused_by_name(kind: type[FlowMixture], verb: str) -> None:
    for guide in (False, True):
        vmonf = pair(kind, guide)
        with pytest.raises(
            TypeError, match=rf"^{verb} rests .*, but {kind.__name__} has .*override"
        ):
            VERBS[verb](vmonf)


def test_program_of_an_object_is_refused() -> None:
    vmonf = pair(FlowMixture)
    object.__setattr__(vmonf.model, "forward", lambda x: x)
    with pytest.raises(TypeError, match="log_prob rests"):
        vmonf.log_prob(X)


@pytest.mark.parametrize("kind", [Shifted, Drawn])
def test_exact_predict_is_refused_and_the_guide_is_not(kind: type[FlowMixture]) -> None:
    with pytest.raises(TypeError, match="predict_proba rests"):
        pair(kind).predict(X)
    vmonf, plain = pair(kind, guide=True), pair(FlowMixture, guide=True)
    assert torch.equal(vmonf.predict_proba(X), plain.predict_proba(X))
    assert torch.equal(vmonf.predict(X), plain.predict(X))


@pytest.mark.parametrize("guide", [False, True])
@pytest.mark.parametrize("kind", [Whole, Other])
def test_overridden_members_are_used(kind: type[FlowMixture], guide: bool) -> None:
    """Against the plain mixture at the rows less the constant, and against the program."""
    vmonf, plain = pair(kind, guide), pair(FlowMixture, guide)
    x = X - SHIFT if kind is Whole else X
    torch.testing.assert_close(vmonf.log_prob(X), plain.log_prob(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        vmonf.component_log_prob(X), plain.component_log_prob(x), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        vmonf.predict_proba(X, exact=True), plain.predict_proba(x, exact=True), rtol=0, atol=1e-12
    )
    if not guide:
        torch.testing.assert_close(vmonf.elbo(X), plain.elbo(x), rtol=0, atol=1e-12)
    moved, expected = vmonf.sample(5, seed=0)[0], plain.sample(5, seed=0)[0]
    if kind is Whole:
        expected = expected + SHIFT
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    with pyro.get_param_store().scope():
        bound = -elbo.loss(vmonf.model, lambda *_: None, X)
    assert bound == pytest.approx(float(vmonf.log_prob(X).sum()), abs=1e-9)
    vmonf.report(X)
    for verb in VERBS.values():
        verb(vmonf)


@pytest.mark.parametrize("guide", [False, True])
@pytest.mark.parametrize("kind", [Shifted, Drawn, Whole])
def test_fit_calls_no_refused_verb(kind: type[FlowMixture], guide: bool) -> None:
    vmonf = pair(kind, guide)
    options: dict[str, Any] = {"epochs": 2, "progress": False, "seed": 0, "held_out": 0.25}
    assert len(vmonf.fit(X, **options).held_out) == 2
    assert len(fit(vmonf.model, vmonf.guide, X, **options).held_out) == 2
    assert len(vmonf.fit(X, n_init=2, **options).restarts) == 2


class Beside(FlowMixture):
    """The program of the mixture, and a measurement beside it."""

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        rows = super().forward(x, *args, **kwargs)
        pyro.sample("level", dist.Normal(rows.mean(), 1.0), obs=torch.zeros(()))
        return rows


@pytest.mark.parametrize("verb", VERBS)
def test_sites_beside_the_mixture_leave_the_verbs_right(verb: str) -> None:
    VERBS[verb](pair(Beside))
    torch.testing.assert_close(pair(Beside).log_prob(X), pair(FlowMixture).log_prob(X))
