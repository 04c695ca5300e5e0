"""Every parameter that a Pyro program depends on is in the store, under a name of its own."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, Gaussian, RandomBank, RealNVP, SoftmaxGuide, VMoNF, select
from pyro_vmonf.flows.stack import as_bank
from pyro_vmonf.nn import MLP

D, K, N = 2, 3, 40
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0)) + 1.0
Program = Callable[[], Any]


def fresh() -> VMoNF:
    bank = RealNVP(D, K, blocks=2, hidden=(4,))
    return VMoNF(FlowMixture(bank, "learned"), SoftmaxGuide(MLP(D, K, hidden=(4,))))


def of_components(components: Callable[[], Any], name: str) -> Program:
    def model() -> None:
        with pyro.plate(f"rows {name}", N):
            uniform = dist.Categorical(torch.ones(K))
            c = pyro.sample(f"c {name}", uniform, infer={"enumerate": "parallel"})
            pyro.sample(f"x {name}", select(components(), c), obs=X)

    return model


def of_marginal(marginal: Callable[[], Any], name: str) -> Program:
    def model() -> None:
        with pyro.plate(f"rows {name}", N):
            pyro.sample(f"x {name}", marginal(), obs=X)

    return model


class Own(FlowMixture):
    """A mixture of a user, whose program has a parameter more."""

    def __init__(self) -> None:
        super().__init__(RealNVP(D, K, blocks=2, hidden=(4,)), "learned")
        self.shift = nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        with pyro.plate("rows " + self.name, N):
            shifted = dist.TransformedDistribution(
                self.marginal(), [dist.transforms.AffineTransform(self.shift, 1.0, event_dim=1)]
            )
            return pyro.sample("x " + self.name, shifted, obs=X)


class PlainBank(nn.Module):
    """A bank of a user, that knows nothing of Pyro."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(K, D))

    def forward(self, context: Tensor | None = None) -> Any:
        return dist.Normal(self.loc, 1.0).to_event(1)


def nested(name: str) -> tuple[Program, nn.Module]:
    outer = PyroModule("outer " + name)
    outer.prior = fresh()
    return of_marginal(lambda: outer.prior.marginal(), name), outer.prior.model


def conditioned(name: str) -> tuple[Program, nn.Module]:
    vmonf = fresh()
    vmonf._pyro_name = "pair " + name
    vmonf.name_children_()
    run = poutine.condition(vmonf.model, {vmonf.model.site("x"): X})
    return (lambda: run(size=N)), vmonf.model


def own(name: str) -> tuple[Program, nn.Module]:
    model = Own()
    model.name = name
    return model, model


def loaded(name: str) -> tuple[Program, nn.Module]:
    path = Path("pair.pt")
    fresh().save(path)
    model = VMoNF.load(path).model
    return of_marginal(model.marginal, name), model


def way(get: Callable[[], tuple[Any, nn.Module]], kind: Any) -> Callable[[str], Any]:
    def make(name: str) -> tuple[Program, nn.Module]:
        part, module = get()
        return kind(part, name), module

    return make


def _(attribute: str) -> Callable[[], tuple[Any, nn.Module]]:
    def get() -> tuple[Any, nn.Module]:
        model = fresh().model
        return getattr(model, attribute), model

    return get


def copied() -> tuple[Any, nn.Module]:
    first = fresh().model
    with poutine.trace():
        first.marginal()  # it has a name
    model = copy.deepcopy(first)
    return model.marginal, model


def bare(bank: nn.Module) -> tuple[Any, nn.Module]:
    return bank, bank


def read(model: FlowMixture) -> tuple[Any, nn.Module]:
    return (lambda: model.bank()), model.bank


WAYS: dict[str, Callable[[str], tuple[Program, nn.Module]]] = {
    "marginal": way(_("marginal"), of_marginal),
    "components": way(_("components"), of_components),
    "bank of a model": way(lambda: read(FlowMixture(PlainBank())), of_components),
    "RealNVP": way(lambda: bare(RealNVP(D, K, blocks=2, hidden=(4,))), of_components),
    "Gaussian": way(lambda: bare(Gaussian(D, K)), of_components),
    "Stack": way(lambda: bare(as_bank([Gaussian(D, 1), Gaussian(D, 2)])), of_components),
    "RandomBank": way(lambda: bare(RandomBank(Gaussian(D, K), scale=None)), of_components),
    "copied": way(copied, of_marginal),
    "nested": nested,
    "conditioned": conditioned,
    "own forward": own,
    "loaded": loaded,
}


def used(loss: Tensor, module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    return [
        (name, p)
        for (name, p), g in zip(parameters.items(), found, strict=True)
        if g is not None and g.any()
    ]


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("kind", WAYS)
def test_what_a_program_depends_on_moves_and_two_do_not_disturb_each_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (first, a), (second, b) = WAYS[kind]("1"), WAYS[kind]("2")

    def both() -> None:
        first()
        second()

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(both, lambda: None)
    depends = [used(loss, module) for module in (a, b)]
    assert [name for name, _ in depends[0]] == [name for name, _ in depends[1]]
    assert len(depends[0]) >= 1
    before = [[p.detach().clone() for _, p in own] for own in depends]
    pyro.clear_param_store()
    adam = pyro.optim.Adam({"lr": 1e-2})
    svi = SVI(both, lambda: None, adam, TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(2):
        svi.step()
    for own, old in zip(depends, before, strict=True):
        for (name, p), value in zip(own, old, strict=True):
            assert not torch.equal(p, value), name


@pytest.mark.parametrize("network", ["MLP", "a Pyro module"])
def test_two_guides_train_side_by_side(network: str) -> None:
    def make() -> VMoNF:
        net = MLP(D, K) if network == "MLP" else PyroModule[nn.Linear](D, K)
        return VMoNF(FlowMixture(Gaussian(D, K), "learned"), SoftmaxGuide(net))

    class Two(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = make(), make()

    two = Two()
    before = {n: p.detach().clone() for n, p in two.named_parameters()}

    def model() -> None:
        two.a.model(X)
        two.b.model(X)

    def guide() -> None:
        two.a.guide(X)
        two.b.guide(X)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(2):
        svi.step()
    for name, p in two.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_names_are_numbered_and_leave_with_their_module() -> None:
    def names() -> set[str]:
        return {name.split(".")[0] for name in pyro.get_param_store().keys()}  # noqa: SIM118

    first, second = fresh(), fresh()
    kinds = []
    for vmonf in (first, second, copy.deepcopy(first)):
        before = names()
        TraceEnum_ELBO(max_plate_nesting=1).loss(vmonf.model, vmonf.guide, X)
        [model, guide] = sorted(names() - before)
        assert model.startswith("FlowMixture_")
        assert guide.startswith("SoftmaxGuide_")
        kinds.append(model)
    assert len(set(kinds)) == 3
    del first, second, vmonf
    gc.collect()
    assert not names()


def test_site_names_stay() -> None:
    vmonf = fresh()
    trace = poutine.trace(vmonf.model).get_trace(X)
    assert {n for n, s in trace.nodes.items() if s["type"] == "sample"} == {"data", "c", "x"}
    assert not [n for n, s in trace.nodes.items() if s["type"] == "param" and "_" not in n]


def test_a_distribution_outside_of_a_program_leaves_no_entry() -> None:
    model = fresh().model
    model.marginal().log_prob(X)
    model.components()
    model.bank()
    model(size=3)
    assert not pyro.get_param_store().keys()


def test_a_frozen_marginal_is_copied_once_for_each_state() -> None:
    """NUTS calls it at every step."""
    model = fresh().model
    first = model.marginal(frozen=True)
    assert model.marginal(frozen=True).components.transforms is not None
    kept = model.frozen()
    assert model.frozen() is kept
    svi = SVI(
        of_marginal(model.marginal, "1"), lambda: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()
    )
    value = first.log_prob(X)
    svi.step()
    assert model.frozen() is not kept
    assert torch.equal(first.log_prob(X), value)


class Wide(nn.Module):
    """A bank that computes with more than parameters."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, 2))
        self._private = 1.0
        self.wide: Tensor
        self.register_buffer("wide", torch.ones(1), persistent=False)

    def forward(self) -> Any:
        spread = torch.ones(2, 2) * self._private * self.wide * self.scale
        return dist.Normal(self.loc, spread).to_event(1)

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


CHANGES: dict[str, Any] = {
    "private": lambda bank: setattr(bank, "_private", 3.0),
    "of the class": lambda bank: setattr(bank, "scale", 3.0),
    "in no file": lambda bank: bank.wide.fill_(3.0),
    "hook": lambda bank: bank.register_forward_hook(
        lambda module, arguments, found: dist.Normal(0.0, 3 * torch.ones(2, 2)).to_event(1)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_frozen_marginal_sees_what_is_no_parameter(change: str) -> None:
    bank = Wide()
    model = FlowMixture(bank)
    kept = model.frozen()
    assert model.frozen() is kept
    CHANGES[change](bank)
    expected = dist.Normal(0.0, 3.0).log_prob(torch.zeros(2)).sum()
    found = model.marginal(frozen=True).log_prob(torch.zeros(1, 2))
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(model.marginal().log_prob(torch.zeros(1, 2))[0], expected)
