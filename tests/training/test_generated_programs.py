"""Generated Pyro programs: ``fit`` trains the value and gradient of ``TraceEnum_ELBO``, or raises.

A program is a mixture with random further parts: latents (global or of each row, discrete or not),
observations, plates below and around, masks, scales, ``condition`` and ``do``.
"""

from __future__ import annotations

import copy
import random
import textwrap
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from pyro_vmonf import ExactGuide, FlowMixture, Gaussian, MarginalGuide, SoftmaxGuide, VMoNF, select
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.nn import MLP
from pyro_vmonf.terms import Balance, Classification, Confidence
from pyro_vmonf.training.objective import Objective

N, K, PROGRAMS, CHUNKS = 5, 2, 204, 12
DEPTH = 3  # plates around each other, at most
PARALLEL: dict[str, Any] = {"infer": {"enumerate": "parallel"}}
Plan = dict[str, Any]

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore")]

CHOICES: dict[str, list[Any]] = {
    "guide": ["softmax", "terms", "top", "shared", "exact", "none"],
    "weights": ["uniform", "learned", "dirichlet"],
    "written": [False, True],  # the sites by hand, or those of the library
    "y": [None, None, "labels", "evidence"],
    "minibatch": [False, False, True],
    "sample_weight": [False, False, False, True],
    "outer": [None, None, None, None, "outer"],
    "repeats": [None, None, "below", "beside"],  # a plate of readings below c, or beside it
    "latents": [
        [], [], [], ["switch"], ["scale"], ["outlier"], ["shift"], ["coin"], ["outlier", "scale"],
        ["switch", "outlier"], ["shift", "scale"], ["outlier", "other"],
    ],
    "covered": [True, True, True, False],  # whether the guide draws continuous latents
    "coin": ["reparametrised", "drawn", "enumerated"],  # how the guide draws a coin
    "reading": [None, "of c", "of the row", "global"],
    "mask": [None, None, None, "reading", "all", "model"],
    "scaled": [None, None, None, "reading", "all", "model"],
    "handler": [None] * 8 + ["condition c", "do c", "condition latent", "condition weights"],
}  # fmt: skip


def plan_of(number: int) -> Plan:
    draw = random.Random(number)
    plan = {name: draw.choice(values) for name, values in CHOICES.items()}
    plan["number"] = number
    return plan


def handlers(plan: Plan, part: str, mask: Tensor) -> ExitStack:
    """The mask and the scale of a part of the program, if it has them."""
    stack = ExitStack()
    if plan["mask"] == part:
        stack.enter_context(poutine.mask(mask=mask))
    if plan["scaled"] == part:
        stack.enter_context(poutine.scale(scale=1.7))
    return stack


class Generated(FlowMixture):
    """The mixture and what a plan adds to it."""

    def __init__(self, plan: Plan, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.plan = plan
        self.loc = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Any = None, y: Any = None, **options: Any) -> Any:
        plan, rows = self.plan, x.shape[-2]
        with ExitStack() as stack:
            if plan["outer"]:
                stack.enter_context(pyro.plate(plan["outer"], 2, dim=-3))
            stack.enter_context(handlers(plan, "all", torch.tensor(True)))
            body = self.body
            if plan["handler"] == "condition latent":
                known = {"switch": torch.ones(()), "scale": torch.tensor(1.3)}
                body = poutine.condition(body, known)
            body(x, y, options, torch.arange(rows) % 2 == 0)

    def body(self, x: Tensor, y: Any, options: Any, mask: Tensor) -> None:
        drawn = self.latents(self.plan)
        with handlers(self.plan, "model", mask):
            self.mixture_part(x, y, options, drawn)

    def latents(self, plan: Plan) -> dict[str, Any]:
        """The global ones."""
        drawn: dict[str, Any] = {}
        if "switch" in plan["latents"]:
            drawn["switch"] = pyro.sample("switch", dist.Bernoulli(self.loc.sigmoid()), **PARALLEL)
        if "scale" in plan["latents"]:
            drawn["scale"] = pyro.sample("scale", dist.LogNormal(self.loc, 1.0))
        if "coin" in plan["latents"]:
            infer = {} if plan["covered"] or plan["coin"] == "drawn" else PARALLEL
            drawn["coin"] = pyro.sample("coin", dist.Bernoulli(self.loc.sigmoid()), **infer)
        return drawn

    def mixture_part(self, x: Tensor, y: Any, options: Any, drawn: dict[str, Any]) -> None:
        plan, rows = self.plan, x.shape[-2]
        own = self.written if plan["written"] else super().forward
        if plan["handler"] == "condition c":
            own = poutine.condition(own, {"c": torch.arange(rows) % K})
        elif plan["handler"] == "do c":
            own = poutine.do(own, {"c": torch.arange(rows) % K})
        elif plan["handler"] == "condition weights":
            own = poutine.condition(own, {"weights": torch.tensor([0.3, 0.7])})
        if plan["written"]:
            own(x, drawn)
            return
        own(x, y, **options)
        with pyro.plate("others", rows, dim=-1):
            self.of_the_rows(x, drawn, None)

    def written(self, x: Tensor, drawn: dict[str, Any]) -> None:
        rows = x.shape[-2]
        log_weights, components = self.weights(), self.components()
        with pyro.plate("data", rows, dim=-1):
            c = pyro.sample("c", dist.Categorical(logits=log_weights), **PARALLEL)
            if self.plan["repeats"] == "below":
                with pyro.plate("repeats", 3, dim=-2):
                    readings = torch.stack((x, x + 1, x.roll(1, -2)), -3)
                    pyro.sample("x", select(components, c), obs=readings)
            else:
                pyro.sample("x", select(components, c), obs=x)
            self.of_the_rows(x, drawn, c)

    def of_the_rows(self, x: Tensor, drawn: dict[str, Any], c: Any) -> None:
        """Latents and readings of each row, inside of a plate."""
        plan, mean = self.plan, self.loc * torch.ones(())
        for name in ("outlier", "other"):
            if name in plan["latents"]:
                z = pyro.sample(name, dist.Bernoulli(torch.tensor(0.3)), **PARALLEL)
                mean = mean + 2.0 * z
        if "shift" in plan["latents"]:
            mean = mean + pyro.sample("shift", dist.Normal(self.loc, torch.ones(x.shape[-2])))
        mean = mean + drawn.get("switch", 0.0) + drawn.get("coin", 0.0)
        if c is not None and plan["reading"] == "of c":
            mean = mean + 3.0 * c
        scale = drawn.get("scale", torch.ones(()))
        if plan["reading"] in ("of c", "of the row") or plan["latents"]:
            with handlers(plan, "reading", x[..., 0] > 0):
                pyro.sample("t", dist.Normal(mean, scale), obs=x[..., 1])
        if plan["repeats"] == "beside":
            with pyro.plate("readings", 2, dim=-2):
                fixed = torch.stack((x[..., 0], x[..., 1]), -2)
                pyro.sample("u", dist.Normal(self.loc, scale), obs=fixed)


class WithGlobal(Generated):
    def latents(self, plan: Plan) -> dict[str, Any]:
        drawn = super().latents(plan)
        if plan["reading"] == "global":
            pyro.sample(
                "g", dist.Normal(self.loc + drawn.get("switch", 0.0), 1.0), obs=torch.ones(())
            )
        return drawn


def covering(kind: type, plan: Plan) -> type:
    """A guide that draws what the plan lets it draw beside c."""

    class Covering(kind):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.own = nn.Parameter(torch.tensor(0.2))

        def forward(self, x: Any = None, y: Any = None, **options: Any) -> None:
            rows = x.shape[-2]
            with ExitStack() as stack:
                if plan["outer"]:
                    stack.enter_context(pyro.plate(plan["outer"], 2, dim=-3))
                stack.enter_context(handlers(plan, "all", torch.tensor(True)))
                if plan["covered"]:
                    self.draw(rows)
                super().forward(x, y, **options)

        def draw(self, rows: int) -> None:
            if "scale" in plan["latents"]:
                pyro.sample("scale", dist.LogNormal(self.own, 0.5))
            if "shift" in plan["latents"]:
                with pyro.plate("others", rows, dim=-1):
                    pyro.sample("shift", dist.Normal(self.own * torch.ones(rows), 0.7))
            if "coin" in plan["latents"]:
                how = PARALLEL if plan["coin"] == "enumerated" else {}
                pyro.sample("coin", dist.Bernoulli(self.own.sigmoid()), **how)

    return Covering


def pair_of(plan: Plan) -> VMoNF:
    torch.manual_seed(plan["number"])
    weights: Any = (
        dist.Dirichlet(torch.ones(K)) if plan["weights"] == "dirichlet" else plan["weights"]
    )
    model = WithGlobal(plan, Gaussian(2, K), weights)
    terms = (
        [Classification(), Balance(weight=0.5), Confidence()] if plan["guide"] == "terms" else []
    )
    network: Callable[[], MLP] = lambda: MLP(2, K, hidden=(2,))  # noqa: E731
    guide = {
        "softmax": lambda: covering(SoftmaxGuide, plan)(network(), terms),
        "terms": lambda: covering(SoftmaxGuide, plan)(network(), terms),
        "top": lambda: covering(SoftmaxGuide, plan)(network(), terms, top=1),
        "shared": lambda: covering(SoftmaxGuide, plan)(network(), terms, elbo_gradient=0.4),
        "exact": lambda: covering(ExactGuide, plan)(),
        "none": lambda: covering(MarginalGuide, plan)() if plan["latents"] else None,
    }[plan["guide"]]()
    vmonf = VMoNF(model, guide).double()
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vmonf


def arguments_of(plan: Plan) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(plan["number"])
    arguments: dict[str, Any] = {"x": torch.randn(N, 2, generator=generator) * 2}
    if plan["written"]:
        return arguments
    if plan["y"] == "labels":
        arguments["y"] = torch.tensor([0, -1, 1, -1, -1])
    elif plan["y"] == "evidence":
        arguments["y"] = torch.randn(N, K, generator=generator)
    if plan["minibatch"]:
        arguments |= {"index": torch.tensor([3, 1, 7, 0, 9]), "size": 11}
    if plan["sample_weight"]:
        arguments["sample_weight"] = torch.tensor([0.5, 2.0, 0.0, 1.0, 0.3])
    return arguments


def gradients(value: Tensor, module: nn.Module) -> dict[str, Tensor]:
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not value.requires_grad:
        return {name: torch.zeros_like(p) for name, p in named.items()}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def uncovered(plan: Plan) -> set[str]:
    """The latents that neither the guide draws nor anybody enumerates."""
    known = {"scale"} if plan["handler"] == "condition latent" else set()
    loose = {"scale", "shift"} | ({"coin"} if plan["coin"] == "drawn" else set())
    return set() if plan["covered"] else loose & set(plan["latents"]) - known


def pyro_s(vmonf: VMoNF, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and gradient of Pyro's own ELBO.

    Raises:
        Exception: if Pyro refuses the program.
    """
    vmonf = copy.deepcopy(vmonf)
    pyro.clear_param_store()
    with local_seed(3):
        loss = TraceEnum_ELBO(max_plate_nesting=DEPTH).differentiable_loss(
            vmonf.model, vmonf.guide, **arguments
        )
    loss = torch.as_tensor(loss)
    return -loss.detach(), gradients(-loss, vmonf)


def ours(
    vmonf: VMoNF, arguments: dict[str, Any], fast: bool
) -> tuple[Tensor, dict[str, Tensor], str]:
    """Value and gradient of what ``fit`` trains, and its road."""
    vmonf = copy.deepcopy(vmonf)
    pyro.clear_param_store()
    objective = Objective(vmonf.model, vmonf.guide)
    objective.prepare_(arguments, fast)
    with local_seed(3):
        value = torch.stack([torch.as_tensor(v) for v in objective(**arguments).values()]).sum()
    return value.detach(), gradients(value, vmonf), objective.road


def why_refused(plan: Plan, vmonf: VMoNF, arguments: dict[str, Any], error: Exception) -> str:
    """Check that a refusal is due: Pyro refuses too, or what it computes bounds nothing."""
    said = str(error)
    if "bounds nothing" in said:
        assert plan["handler"], f"{plan}: {error}"
        return "more drawn"
    if "nobody enumerates" in said:
        loose = uncovered(plan)
        assert any(f"draws {name!r}" in said for name in loose), f"{plan}: {error}"
        assert any(f'pyro.sample("{name}", ' in said for name in loose)
        return "uncovered"
    with pytest.raises(type(error)):
        pyro_s(vmonf, arguments)
    return "refused by Pyro"


def outcome(plan: Plan) -> str:
    """Compare a program with Pyro; return what became of it."""
    vmonf, arguments = pair_of(plan), arguments_of(plan)
    try:
        value, gradient, road = ours(vmonf, arguments, fast=plan["number"] % 5 > 0)
    except Exception as error:  # of the program, of Pyro, or of the guard
        return why_refused(plan, vmonf, arguments, error)
    assert not uncovered(plan), f"{plan}: a latent without a posterior is taken"
    wanted, expected = pyro_s(vmonf, arguments)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-9, msg=lambda m: f"{plan}: {m}")
    for name, g in gradient.items():
        torch.testing.assert_close(
            g, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}, {plan}: {m}"
        )
    return "short" if road == "short" else "long"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_objective_is_that_of_pyro_or_raises(chunk: int) -> None:
    found = [outcome(plan_of(number)) for number in range(chunk, PROGRAMS, CHUNKS)]
    compared = found.count("short") + found.count("long")
    assert compared >= 5, found


def test_the_guide_that_the_error_shows_covers_the_latent() -> None:
    plan = dict.fromkeys(CHOICES) | {
        "number": 0, "latents": ["scale", "shift"], "weights": "learned", "written": True,
        "guide": "softmax",
    }  # fmt: skip
    torch.manual_seed(0)
    kind: type = SoftmaxGuide
    for name in ("scale", "shift"):
        model = WithGlobal(plan, Gaussian(2, K), "learned")
        vmonf = VMoNF(model, kind(MLP(2, K, hidden=(2,))))
        with pytest.raises(ValueError, match=f"draws '{name}', which the guide") as refusal:
            vmonf.fit(torch.randn(9, 2), epochs=1, progress=False)
        code = textwrap.dedent(str(refusal.value).partition("\n")[2])
        room: dict[str, Any] = {kind.__name__: kind, "torch": torch, "pyro": pyro, "dist": dist}
        exec(code, room)
        kind = room["Guide"]
        kind.__name__ = f"With{name}"
    vmonf = VMoNF(WithGlobal(plan, Gaussian(2, K), "learned"), kind(MLP(2, K, hidden=(2,))))
    history = vmonf.fit(torch.randn(9, 2), epochs=2, progress=False)
    assert torch.tensor(history.elbo).isfinite().all()
    assert history.terms.keys() >= {"scale", "shift"}
