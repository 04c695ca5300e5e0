"""Verbs of a pair whose model has a program of its own: right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    MarginalGuide,
    MixtureComponent,
    SoftmaxGuide,
    VMoNF,
    information_criteria,
    select,
)
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.nn.mlp import MLP
from pyro_vmonf.report import component_report
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


MEMBERS: dict[str, Callable[[FlowMixture], Any]] = {
    "marginal": lambda model: model.marginal(),
    "marginal ": lambda model: model.marginal(frozen=True),
    "mixture": lambda model: model.mixture(),
    "mixture ": lambda model: information_criteria(model, X),
    "log_posterior": lambda model: model.log_posterior(X),
    "log_posterior ": lambda model: ExactGuide(model).log_posterior(X),
    "log_posterior  ": lambda model: MarginalGuide(model).log_q(X),
    "MixtureComponent": lambda model: MixtureComponent(model),
    "predict_proba": lambda model: component_report(VMoNF(model), X),
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


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("kind", [Shifted, Drawn])
def test_member_of_the_model_is_refused_by_name(kind: type[FlowMixture], member: str) -> None:
    """Of the model itself, and of what takes one."""
    words = rf"^{member.strip()} rests .*, but {kind.__name__} has .*override"
    with pytest.raises(TypeError, match=words):
        MEMBERS[member](pair(kind).model)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("kind", [Whole, Other, FlowMixture])
def test_member_that_follows_is_used(kind: type[FlowMixture], member: str) -> None:
    MEMBERS[member](pair(kind).model)


class Mixed(Shifted):
    """The mixture is overridden, and the components are not."""

    def mixture(self, given: Tensor | None = None) -> Marginal:
        plain = super().mixture(given)
        return Marginal(plain.log_weights, shifted(plain.components))


def test_overridden_mixture_may_use_that_of_its_base() -> None:
    """And the components of the base are those of the bank, as they say."""
    model, plain = pair(Mixed).model, pair(FlowMixture).model
    own, other = model.marginal().log_prob(X), plain.marginal().log_prob(X - SHIFT)
    torch.testing.assert_close(own, other, rtol=0, atol=1e-12)
    assert torch.equal(
        model.components().log_prob(X[:, None]), plain.components().log_prob(X[:, None])
    )


@pytest.mark.parametrize("kind", [Shifted, Drawn])
def test_fit_with_the_exact_guide_goes_by_the_program(kind: type[FlowMixture]) -> None:
    model = pair(kind).model
    vmonf = VMoNF(model, ExactGuide())
    assert len(vmonf.fit(X, epochs=2, progress=False, seed=0).elbo) == 2


class Built(FlowMixture):
    """A program of its own that is built from members of its base: its rows have the weight 2."""

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        with pyro.plate(self.site("data"), len(X), dim=-1), pyro.poutine.scale(scale=2.0):
            c = pyro.sample(
                self.site("c"),
                dist.Categorical(logits=self.mixture().log_weights),
                infer={"enumerate": "parallel"},
            )
            return pyro.sample(self.site("x"), select(self.components(), c), obs=x)


def test_program_may_use_members_of_its_base() -> None:
    model, plain = pair(Built).model, pair(FlowMixture).model
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    with pyro.get_param_store().scope():
        bound = -elbo.loss(model, lambda *_: None, X)
    assert bound == pytest.approx(2 * float(plain.marginal().log_prob(X).detach().sum()), abs=1e-9)
    for member in ("marginal", "mixture", "log_posterior"):
        with pytest.raises(TypeError, match=rf"^{member} rests"):
            MEMBERS[member](model)


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
    for call in MEMBERS.values():
        call(pair(Beside).model)
    torch.testing.assert_close(pair(Beside).log_prob(X), pair(FlowMixture).log_prob(X))
