"""``python -m benchmarks posteriordb``: two posteriors of posteriordb, by three inferences.

A Gaussian mixture (``low_dim_gauss_mix``) is a mixture of this library with random parameters. A
hidden Markov model (``hmm_example``) is a plain Pyro program with its forward recursion. NUTS and
importance sampling have to agree with the reference means within four standard errors of both. The
variational fits have no such promise: ``gap`` is their distance in standard deviations of the
posterior, and ``spread`` their standard deviation over it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn
from torch.distributions import ExpTransform

from benchmarks.tables import Row, table, write
from pyro_vmonf import FlowMixture, RandomBank, VMoNF
from pyro_vmonf._utils.contexts import local_seed, own_store
from pyro_vmonf.interop.draws import draws_of_guide

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results" / "posteriordb.jsonl"

# Means, their standard errors, and standard deviations of the reference draws.
REFERENCE: dict[str, dict[str, tuple[float, float, float]]] = {
    "low_dim_gauss_mix": {
        "mu[1]": (-2.7335145, 0.0004164, 0.0420429),
        "mu[2]": (2.8698319, 0.0005596, 0.0546006),
        "sigma[1]": (1.0280739, 0.0003159, 0.0314359),
        "sigma[2]": (1.0238215, 0.0004146, 0.0404819),
        "theta": (0.6215493, 0.0001544, 0.0154802),
    },
    "hmm_example": {
        "theta1[1]": (0.6666452, 0.0010023, 0.1012256),
        "theta2[1]": (0.0731326, 0.0002857, 0.0284411),
        "mu[1]": (3.0215168, 0.0022236, 0.2244417),
        "mu[2]": (8.8272819, 0.0011172, 0.1105727),
    },
}

STEPS = ((600, 2e-2), (400, 2e-3))  # of a variational fit, with their step sizes

Sites = dict[str, Tensor]


def data(name: str) -> Tensor:
    """Return the observations of a posterior ``(N,)``."""
    return torch.tensor(json.loads((FOLDER / "data" / f"{name}.json").read_text())["y"])


class Normals(nn.Module):
    """A bank of two normals, whose means start on either side of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([[-3.0], [3.0]]))
        self.log_scale = nn.Parameter(torch.zeros(2, 1))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the two normals."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


def gaussians() -> FlowMixture:
    """Return the mixture of ``low_dim_gauss_mix``.

    The means have no order here. The other order is a second mode, as high and far away, which
    none of the inferences visits from its start.
    """

    def prior(name: str, _: Tensor) -> Any:
        if name == "loc":
            return dist.Normal(0.0, 2.0)
        return dist.TransformedDistribution(dist.HalfNormal(2.0), [ExpTransform().inv])

    return FlowMixture(RandomBank(Normals(), prior), dist.Dirichlet(torch.full((2,), 5.0)))


def of_gaussians(sites: Sites) -> Sites:
    """Return the parameters of ``low_dim_gauss_mix`` by their names."""
    loc, scale, weights = (
        sites[name].reshape(-1, 2) for name in ("bank.loc", "bank.log_scale", "weights")
    )
    found = {f"mu[{k + 1}]": loc[:, k] for k in range(2)}
    return (
        found | {f"sigma[{k + 1}]": scale[:, k].exp() for k in range(2)} | {"theta": weights[:, 0]}
    )


def log_evidence(transition: Tensor, emission: Tensor) -> Tensor:
    """Return the log-probability of a chain's observations, whose first state has no prior.

    Neighbouring steps are joined in pairs, so there are log N products in place of N.

    Arguments:
        transition: log-probabilities ``(K, K)`` of the next state.
        emission: log-densities ``(N, K)`` of at least two observations.
    """
    steps = transition + emission[1:, None, :]
    while len(steps) > 1:
        odd = steps[len(steps) - len(steps) % 2 :]
        first, second = steps[: len(steps) - len(odd)].unflatten(0, (-1, 2)).unbind(1)
        joined = (first.unsqueeze(-1) + second.unsqueeze(-3)).logsumexp(-2)
        steps = torch.cat((joined, odd))
    return (emission[0, :, None] + steps[0]).logsumexp((0, 1))


def chain(y: Tensor) -> None:
    """Draw the parameters of ``hmm_example`` and account for its observations."""
    rows = [pyro.sample(f"theta{k}", dist.Dirichlet(torch.ones(2))) for k in (1, 2)]
    flat = dist.Exponential(torch.tensor(1.0)).mask(False)  # positive, of density one
    low, gap = pyro.sample("low", flat), pyro.sample("gap", flat)  # the means are in order
    mu = torch.stack((low, low + gap))
    pyro.factor("means", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emission = dist.Normal(mu, 1.0).log_prob(y.unsqueeze(-1))
    pyro.factor("chain", log_evidence(torch.stack(rows).log(), emission))


def of_chain(sites: Sites) -> Sites:
    """Return the parameters of ``hmm_example`` by their names."""
    low = sites["low"].flatten()
    found = {f"theta{k}[1]": sites[f"theta{k}"].reshape(-1, 2)[:, 0] for k in (1, 2)}
    return found | {"mu[1]": low, "mu[2]": low + sites["gap"].flatten()}


@dataclass(frozen=True)
class Problem:
    """A program, its observations, its first values, and the parameters in its sites."""

    program: Callable[..., Any]
    y: Tensor
    start: dict[str, Tensor]
    parameters: Callable[[Sites], Sites]


def problem(name: str) -> Problem:
    """Return a posterior of posteriordb."""
    y = data(name)
    if name == "hmm_example":
        start = {"low": torch.tensor(3.0), "gap": torch.tensor(6.0)}
        return Problem(chain, y, start, of_chain)
    model = gaussians()
    start = {
        "bank.loc": model.bank.bank.loc.detach().clone(),  # type: ignore[union-attr]
        "bank.log_scale": torch.zeros(2, 1),
        "weights": torch.full((2,), 0.5),
    }
    return Problem(model, y.unsqueeze(-1), start, of_gaussians)


Estimates = dict[str, tuple[float, float, float]]  # mean, its standard error, standard deviation


def by_nuts(given: Problem, draws: int = 1000) -> Estimates:
    """Return the moments of draws of NUTS."""
    kernel = NUTS(given.program, init_strategy=init_to_value(values=given.start))
    mcmc = MCMC(kernel, draws, warmup_steps=draws // 2, disable_progbar=True)
    mcmc.run(given.y)
    found: Estimates = {}
    for name, value in given.parameters(mcmc.get_samples()).items():
        size = float(effective_sample_size(value.unsqueeze(0)))
        found[name] = (float(value.mean()), float(value.std()) / size**0.5, float(value.std()))
    return found


def by_importance(given: Problem, draws: int = 2000) -> Estimates:
    """Return moments by importance sampling around the mode, with tails of Student's t."""
    strategy = init_to_value(values=given.start)
    first, potential, transforms, _ = initialize_model(
        given.program, (given.y,), init_strategy=strategy
    )
    names, shapes = list(first), [value.shape for value in first.values()]
    sizes = [shape.numel() for shape in shapes]

    def energy(free: Tensor) -> Tensor:
        parts = zip(free.split(sizes), shapes, strict=True)
        values = dict(zip(names, (part.reshape(shape) for part, shape in parts), strict=True))
        found: Tensor = potential(values)
        return found

    mode = torch.cat([value.detach().flatten() for value in first.values()]).requires_grad_()
    optimizer = torch.optim.LBFGS([mode], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = energy(mode)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    mode = mode.detach()
    hessian = torch.autograd.functional.hessian(energy, mode)
    proposal = dist.MultivariateStudentT(8.0, mode, torch.linalg.cholesky(hessian.inverse()))
    with torch.no_grad():
        drawn = proposal.sample((draws,))
        log_weight = torch.stack([-energy(free) for free in drawn]) - proposal.log_prob(drawn)
    weight = log_weight.softmax(0)
    sites = {
        name: transforms[name].inv(part.reshape(-1, *shape))
        for name, part, shape in zip(names, drawn.split(sizes, 1), shapes, strict=True)
    }
    found: Estimates = {}
    for name, value in given.parameters(sites).items():
        away = value - weight @ value
        error, spread = ((w @ away.square()).sqrt() for w in (weight.square(), weight))
        found[name] = (float(weight @ value), float(error), float(spread))
    return found


def by_fit(given: Problem, kind: type[Any], draws: int = 2000) -> Estimates:
    """Return moments of draws of an autoguide, which ``VMoNF.fit`` or Pyro's ``SVI`` trains."""
    start = init_to_value(values=given.start)
    if isinstance(given.program, FlowMixture):
        guide = kind(poutine.block(given.program, hide=["c"]), init_loc_fn=start)
        pair = VMoNF(given.program, guide)
        for steps, lr in STEPS:
            pair.fit(given.y, steps=steps, lr=lr, standardize=False, progress=False)
        sites = {name: v[0] for name, v in draws_of_guide(pair, draws, 0).sites.items()}
    else:
        guide = kind(given.program, init_loc_fn=start)
        for steps, lr in STEPS:
            svi = SVI(given.program, guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
            for _ in range(steps):
                svi.step(given.y)
        sites = Predictive(guide, num_samples=draws)(given.y)
    return {
        name: (float(value.mean()), float(value.std()) / draws**0.5, float(value.std()))
        for name, value in given.parameters({n: v.detach() for n, v in sites.items()}).items()
    }


INFERENCES: dict[str, Callable[[Problem], Estimates]] = {
    "NUTS": by_nuts,
    "importance sampling": by_importance,
    "AutoMultivariateNormal": lambda given: by_fit(given, AutoMultivariateNormal),
    "AutoNormal": lambda given: by_fit(given, AutoNormal),
}


def compared(name: str, inference: str, found: Estimates, seconds: float) -> list[Row]:
    """Return a row for each parameter: estimate, reference, and their distance."""
    rows: list[Row] = []
    for parameter, (reference, own_error, spread) in REFERENCE[name].items():
        value, error, deviation = found[parameter]
        both = (error**2 + own_error**2) ** 0.5
        rows.append({
            "posterior": name,
            "inference": inference,
            "parameter": parameter,
            "mean": round(value, 4),
            "reference": round(reference, 4),
            "errors": round(abs(value - reference) / both, 2),
            "gap": round((value - reference) / spread, 3),
            "spread": round(deviation / spread, 3),
            "seconds": round(seconds, 1),
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Go through posteriors and inferences; lines that the file has are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks posteriordb", description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    path = parser.parse_args(arguments).json
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = path.read_text().splitlines() if path.exists() else []
    done: list[Row] = [json.loads(line) for line in lines]
    for name in REFERENCE:
        for inference, infer in INFERENCES.items():
            if (name, inference) in {(row["posterior"], row["inference"]) for row in done}:
                continue
            begun = time.perf_counter()
            with own_store(), local_seed(0):
                found = infer(problem(name))
            rows = compared(name, inference, found, time.perf_counter() - begun)
            print(table(rows), flush=True)
            done += rows
            write(rows, path)


if __name__ == "__main__":
    main()
