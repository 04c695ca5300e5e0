"""Other ways to write the same training step: a function of no arguments for each peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import limit
from benchmarks.configurations import BINS, BOUND, CONFIGURATIONS, Configuration
from benchmarks.jax_peers import jax_step
from benchmarks.mixture_peers import TorchflowsFlow, flowjax_step
from benchmarks.timing import Several
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.training.compiling import Compiled
from pyro_vmonf.training.data import TensorSource
from pyro_vmonf.training.gradients import NotCaptured
from pyro_vmonf.training.objective import Objective
from pyro_vmonf.training.plan import Plan, Run
from pyro_vmonf.training.trainer import Trainer

Step = Callable[[], Any]


def adam(parameters: Any) -> torch.optim.Adam:
    """Return the optimiser that every peer has."""
    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


def library(
    c: Configuration, device: str, *, compile: bool = False, top: int | None = None
) -> Several:
    """Return a step of ``fit``, on the road that it takes, with its safeguards and its record.

    The compiled one is a call of as many steps as the graph takes at once.
    """
    pair = c.pair(top).to(device)
    x = c.batch().to(device)
    arguments: dict[str, Any] = {
        "x": x,
        "y": None,
        "index": torch.arange(c.rows, device=device),
        "size": 4 * c.rows,
        "sample_weight": None,
    }
    objective = Objective(pair.model, pair.guide)
    objective.prepare_(arguments)
    pair.model.incomplete = False  # as fit says of rows without gaps
    trained = [p for p in objective.parameters() if p.requires_grad]
    optimizer = adam(trained)
    lanes = Compiled(objective, None, trained, optimizer)
    at_once = lanes.build_(arguments, lambda graph: True).steps if compile else 1
    run = Run(TensorSource(x, None, None, c.rows, arguments["index"]), torch.Generator())
    objective.train()
    plan = Plan(temperature=lambda step: 1.0)
    trainer = Trainer(lanes, [run], optimizer, None, plan)

    def step() -> None:
        with pyro.validation_enabled(False):
            for _ in range(at_once):
                trainer.anneal(1)
                trainer.step([arguments])

    return Several(step, at_once)


def closed_form(
    c: Configuration, device: str, bank: nn.Module, log_prob: Callable[[Tensor], Tensor]
) -> Step:
    """Return a step that minimises the ELBO's closed form, given log p(x|c) as ``(K, N)``."""
    network = c.network().to(device)
    optimizer = adam([*bank.parameters(), *network.parameters()])
    x = c.batch().to(device)

    def step() -> None:
        log_q = network(x).log_softmax(-1).mT
        loss = (log_q.exp() * (log_q - log_prob(x))).sum(0).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def limit_step(c: Configuration, device: str, compile: bool = False) -> Step:
    """Return the hand-written step."""
    bank = limit.bank(c).to(device)
    return closed_form(c, device, bank, torch.compile(bank) if compile else bank)


def in_a_loop(make: Callable[[Configuration], nn.Module]) -> Callable[..., Step]:
    """Return the peer that goes through K flows, each of which scores rows when it is called."""

    def peer(c: Configuration, device: str) -> Step:
        if c.gaussians:
            raise NotImplementedError("the loops have a standard normal as their base")
        flows = nn.ModuleList(make(c) for _ in range(c.components)).to(device)
        return closed_form(c, device, flows, lambda x: torch.stack([f(x) for f in flows]))

    return peer


class PlainFlow(nn.Module):
    """One flow of torch's own layers, rows first, the way it is usually written."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        self.c = c
        half = c.features // 2
        if c.family == "maf":
            masks = limit.Masked(c)
            self.register_buffer("into", masks.into)
            self.register_buffer("out", masks.out)
            sizes = [(c.features, 2 * c.features)]
        elif c.family == "affine":
            sizes = [(half, half)] * 2
        else:
            sizes = [(half, half * (3 * BINS - 1))]
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(m, c.hidden), nn.ReLU(), nn.Linear(c.hidden, n))
                for m, n in sizes
            )
            for _ in range(c.blocks)
        )
        for block in self.blocks:
            for network in block:  # type: ignore[union-attr]
                network[-1].weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for i, networks in enumerate(self.blocks):
            if self.c.family == "maf":
                first, _, last = networks[0]  # type: ignore[index]
                units = F.linear(x, first.weight * self.into, first.bias).relu()
                theta = F.linear(units, last.weight * self.out, last.bias)
                raw, shift = theta.chunk(2, -1)
                x, log_slope = self.shifted(x, raw, shift)
                x = x.flip(-1)
            else:
                halves = [x[:, 0::2], x[:, 1::2]]
                passive, active = halves[i % 2], halves[1 - i % 2]
                theta = [network(passive) for network in networks]  # type: ignore[union-attr]
                if self.c.family == "affine":
                    halves[1 - i % 2], log_slope = self.shifted(active, *theta)
                else:
                    # zuko's own splines, which any loop could use
                    raw = theta[0].unflatten(-1, (passive.shape[-1], -1))
                    halves[1 - i % 2], log_slope = splined(active, raw)
                x = torch.stack(halves, -1).flatten(1)
            total = total + log_slope
        return total - 0.5 * (x.square().sum(-1) + self.c.features * limit.LOG_TWO_PI)

    @staticmethod
    def shifted(x: Tensor, raw: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Move x towards the base."""
        scale = BOUND * torch.tanh(raw / BOUND)
        return (x - shift) * torch.exp(-scale), -scale.sum(-1)


def splined(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Move x by rational-quadratic splines of zuko."""
    from zuko.transforms import MonotonicRQSTransform

    spline = MonotonicRQSTransform(*raw.split((BINS, BINS, BINS - 1), -1), bound=BOUND)
    z, log_slope = spline.call_and_ladj(x)
    return z, log_slope.sum(-1)


class ZukoFlow(nn.Module):
    """zuko's flow of the same family, widths and depth."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        import zuko

        options = {"transforms": c.blocks, "hidden_features": (c.hidden,)}
        if c.family == "affine":
            self.flow = zuko.flows.RealNVP(c.features, **options)
        elif c.family == "maf":
            self.flow = zuko.flows.MAF(c.features, **options)
        else:  # two passes make it a coupling
            self.flow = zuko.flows.NSF(c.features, bins=BINS, passes=2, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)


class NormflowsFlow(nn.Module):
    """normflows' flow of the same family, widths and depth."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        import normflows as nf

        half = c.features // 2
        self.flows = nn.ModuleList()
        self.towards_data = c.family == "maf"
        for _ in range(c.blocks):
            if c.family == "affine":
                network = nf.nets.MLP([half, c.hidden, c.features], init_zeros=True)
                self.flows += [
                    nf.flows.AffineCouplingBlock(network),
                    nf.flows.Permute(c.features, "swap"),
                ]
            elif c.family == "maf":  # its forward pass is the fast one, so it serves as the inverse
                self.flows.append(
                    nf.flows.MaskedAffineAutoregressive(
                        c.features, c.hidden, num_blocks=1, use_residual_blocks=False
                    )
                )
            else:
                self.flows += [
                    nf.flows.CoupledRationalQuadraticSpline(
                        c.features, 1, c.hidden, num_bins=BINS, tail_bound=BOUND
                    ),
                    nf.flows.Permute(c.features, "swap"),
                ]
        self.base = nf.distributions.base.DiagGaussian(c.features, trainable=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for flow in reversed(self.flows):
            x, log_det = flow(x) if self.towards_data else flow.inverse(x)
            total = total + log_det
        return total + self.base.log_prob(x)


def pyro_flows(c: Configuration, device: str) -> tuple[nn.ModuleList, Callable[[], list[Any]]]:
    """Return K flows of Pyro's transforms, and the function that makes their distributions."""
    if c.family == "maf" or c.gaussians:
        raise NotImplementedError("Pyro's autoregressive networks are at least as wide as the rows")
    half = c.features // 2
    chains, modules = [], nn.ModuleList()
    for _ in range(c.components):
        chain: list[Any] = []
        for _ in range(c.blocks):
            if c.family == "affine":
                network = pyro.nn.DenseNN(half, [c.hidden], [half, half])
                block = T.AffineCoupling(half, network)
            else:
                sizes = [half * BINS, half * BINS, half * (BINS - 1)]
                block = T.SplineCoupling(
                    c.features,
                    half,
                    pyro.nn.DenseNN(half, [c.hidden], sizes),
                    count_bins=BINS,
                    bound=BOUND,
                    order="quadratic",
                    identity=True,
                )
            modules.append(block)
            turned = torch.arange(c.features, device=device).roll(half)
            chain += [block, T.Permute(turned)]
        chains.append(chain)

    def make() -> list[Any]:
        base = dist.Normal(torch.zeros(c.features, device=device), 1.0).to_event(1)
        return [dist.TransformedDistribution(base, chain) for chain in chains]

    return modules, make


def pyro_step(c: Configuration, device: str) -> Step:
    """Return the step of K Pyro flows in a loop, under TraceEnum_ELBO."""
    flows, make = pyro_flows(c, device)
    network = c.network()
    both = nn.ModuleList([flows, network]).to(device)
    optimizer = adam(both.parameters())
    rows = c.batch().to(device)

    def model(x: Tensor) -> None:
        with pyro.plate("data", c.rows):
            weights = x.new_full((c.components,), 1 / c.components)
            index = pyro.sample(
                "c", dist.Categorical(weights), infer={"enumerate": "parallel"}
            ).reshape(-1)
            table = torch.stack([flow.log_prob(x) for flow in make()])
            pyro.factor("x", table[index])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", c.rows):
            q = dist.Categorical(logits=network(x))
            pyro.sample("c", q, infer={"enumerate": "parallel"})

    elbo = TraceEnum_ELBO(max_plate_nesting=1)

    def step() -> None:
        with pyro.validation_enabled(False):
            # A new tensor, as in training: the transforms would return the last one's graph.
            loss = elbo.differentiable_loss(model, guide, rows.clone())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return step


def products_step(c: Configuration, device: str) -> Step:
    """Return the bare products of a MAF's step."""
    if c.family != "maf":
        raise NotImplementedError("measured for the MAF, whose products are most of its step")
    return limit.products(c, device)


PEERS: dict[str, Callable[..., Step]] = {
    "library": library,
    "library compiled": lambda c, d: library(c, d, compile=True),
    "jax": jax_step,
    "jax scanned": lambda c, d: jax_step(c, d, scanned=True),
    "limit": limit_step,
    "limit compiled": lambda c, d: limit_step(c, d, compile=True),
    "loop": in_a_loop(PlainFlow),
    "pyro": pyro_step,
    "zuko": in_a_loop(ZukoFlow),
    "normflows": in_a_loop(NormflowsFlow),
    "torchflows": in_a_loop(TorchflowsFlow),
    "flowjax scanned": flowjax_step,
    "products": products_step,
}


def steps_of(name: str, device: str, peers: list[str]) -> dict[str, Step]:
    """Return the steps of those of a configuration's peers that can be built."""
    steps: dict[str, Step] = {}
    for peer in peers:
        with local_seed(0):
            try:
                steps[peer] = PEERS[peer](CONFIGURATIONS[name], device)
            except (NotImplementedError, NotCaptured) as reason:
                print(f"{name}: no {peer}: {reason}\n")
    return steps
