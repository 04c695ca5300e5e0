"""``python -m benchmarks calibration``: simulation-based calibration of this library's posteriors.

Each line of the result is an inference of a mixture's weights or of a flow's parameters, with data
sets from the prior. The exact posteriors are calibrated. The variational ones are as narrow as
their independence makes them, and the line of each shows it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pyro.distributions import Dirichlet, MultivariateNormal, Normal
from torch import Tensor

from benchmarks.tables import Row, table, write
from pyro_vmonf import ExactGuide, FlowMixture, Gaussian, RandomBank, RealNVP, VMoNF
from pyro_vmonf.interop.draws import draws_of_guide
from pyro_vmonf.interop.sbc import Calibration, simulation_based_calibration

RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"
DRAWS = 99
ROWS = 20
PROPOSED = 10_000  # parameters in each round of importance sampling
ROUNDS = 6
CONCENTRATION = torch.tensor([2.0, 2.0])

Posterior = dict[str, Tensor]


def two_gaussians(distance: float) -> FlowMixture:
    """Return two normals of unit variance, whose weights have a Dirichlet prior."""
    bank = Gaussian(1, 2)
    bank.set_(torch.tensor([[-distance / 2], [distance / 2]]), torch.ones(2, 1, 1))
    bank.requires_grad_(False)
    return FlowMixture(bank, Dirichlet(CONCENTRATION))


def weights_given_components(c: Tensor) -> Posterior:
    """Return draws of the exact posterior where the component of each row is known."""
    return {"weights": Dirichlet(CONCENTRATION + c.bincount(minlength=2)).sample((DRAWS,))}


def weights_by_quadrature(x: Tensor, distance: float) -> Posterior:
    """Return draws of the exact posterior where the components are not known."""
    share = (torch.arange(4000) + 0.5) / 4000
    weights = torch.stack((share, 1 - share), -1)
    components = two_gaussians(distance).components().log_prob(x.unsqueeze(-2))
    log_density = Dirichlet(CONCENTRATION).log_prob(weights)
    log_density = log_density + (weights.log()[:, None] + components).logsumexp(-1).sum(-1)
    index = log_density.softmax(0).multinomial(DRAWS, replacement=True)
    return {"weights": weights[index]}


def weights_by_fit(x: Tensor, distance: float) -> Posterior:
    """Return draws of the Dirichlet that this library fits."""
    model = two_gaussians(distance)
    pair = VMoNF(model, ExactGuide())
    pair.fit(x, steps=20, standardize=False, progress=False)
    return {"weights": draws_of_guide(pair, DRAWS, None).sites["weights"][0]}


def flow(components: int = 1) -> RealNVP:
    """Return a small flow: two coupling layers, each with a linear network."""
    return RealNVP(2, components, blocks=2, hidden=())


def flow_program() -> Callable[[], Tensor]:
    """Return the program that draws a flow's parameters and rows."""
    return partial(FlowMixture(RandomBank(flow(), Normal(0.0, 0.5))), size=ROWS)


@torch.no_grad()
def flow_posterior(x: Tensor) -> Posterior:
    """Return draws of a flow's parameters by adaptive importance sampling (Cappé et al., 2004).

    Half of the proposals come from the prior, so that no mode is missed, and half from a normal
    with the moments of the weighted draws before. The draws are the components of one bank, which
    scores the rows under all of them.
    """
    bank = flow(PROPOSED)
    sizes = [value[0].numel() for value in bank.parameters()]
    eye = torch.eye(sum(sizes))
    prior = fitted = MultivariateNormal(torch.zeros(len(eye)), 0.25 * eye)
    for _ in range(ROUNDS):
        drawn = torch.cat([q.sample((PROPOSED // 2,)) for q in (prior, fitted)])
        for value, part in zip(bank.parameters(), drawn.split(sizes, 1), strict=True):
            value.copy_(part.reshape(value.shape))
        log_joint = prior.log_prob(drawn) + bank().log_prob(x[:, None]).sum(0)
        log_q = torch.stack([q.log_prob(drawn) for q in (prior, fitted)]).logsumexp(0)
        weight = (log_joint - log_q).softmax(0)
        fitted = MultivariateNormal(
            weight @ drawn, 1.5 * drawn.mT.cov(aweights=weight) + 1e-4 * eye
        )
    index = weight.multinomial(DRAWS, replacement=True)
    return {f"bank.{name}": value[index, None] for name, value in bank.named_parameters()}


def flow_by_fit(x: Tensor) -> Posterior:
    """Return draws of the mean-field posterior that this library fits."""
    bank = RandomBank(flow(), Normal(0.0, 0.5), scale=0.1)
    pair = VMoNF(FlowMixture(bank))
    pair.fit(x, steps=150, lr=0.05, standardize=False, progress=False)
    sites = draws_of_guide(pair, DRAWS, None).sites
    return {name: value[0] for name, value in sites.items()}


def runs() -> dict[str, tuple[Callable[[], Any], Callable[[Tensor], Posterior], str]]:
    """Return the program, the inference and the data site of each line."""
    found: dict[str, Any] = {
        "weights, components known, exact": (
            partial(two_gaussians(1.0), size=ROWS),
            weights_given_components,
            "c",
        )
    }
    found["flow, importance sampling"] = (flow_program(), flow_posterior, "x")
    for name, infer in (("quadrature", weights_by_quadrature), ("fit", weights_by_fit)):
        for distance in (1.0, 6.0):
            program = partial(two_gaussians(distance), size=ROWS)
            title = f"weights, distance {distance:g}, {name}"
            found[title] = (program, partial(infer, distance=distance), "x")
    found["flow, fit"] = (flow_program(), flow_by_fit, "x")
    return found


def spread(found: Calibration) -> float:
    """Return the variance of the ranks over that of uniform ones: above 1 if draws are narrow."""
    uniform = ((found.draws + 1) ** 2 - 1) / 12
    return mean(float(r.double().var(0).mean()) for r in found.ranks.values()) / uniform


def main(arguments: Sequence[str] | None = None) -> None:
    """Go through the inferences; lines that the file has are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks calibration", description=__doc__)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = given.json.read_text().splitlines() if given.json.exists() else []
    done: list[Row] = [json.loads(line) for line in lines]
    for name, (program, infer, data) in runs().items():
        if name in {row["run"] for row in done}:
            continue
        begun = time.perf_counter()
        found = simulation_based_calibration(
            program, infer, data=data, replicates=given.replicates, progress=False
        )
        row: Row = {
            "run": name,
            "replicates": found.replicates,
            "draws": found.draws,
            "scalars": sum(ranks[0].numel() for ranks in found.ranks.values()),
            "p_value": float(f"{found.p_value:.3g}"),
            "spread": round(spread(found), 3),
            "seconds": round(time.perf_counter() - begun, 1),
        }
        done.append(row)
        print(json.dumps(row), flush=True)
        write([row], given.json)
    print(table(done))


if __name__ == "__main__":
    main()
