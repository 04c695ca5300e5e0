"""What each piece of the recipes buys: ``python benchmarks/ablation.py FILE --data DIR``.

For pinwheel and circles the best recipe at half its steps, with one piece left out; for MNIST's ten
digits the guide alone after 800 steps from one start. Writes one row for each run to FILE, and
prints a table of mean and worst accuracy; runs that FILE holds are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyro_vmonf import FlowMixture, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.experiments import EXPERIMENTS
from pyro_vmonf.experiments.draws import Data, Settings
from pyro_vmonf.experiments.recipes import Recipe
from pyro_vmonf.experiments.run import run
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import ConvEncoder
from pyro_vmonf.schedules import Linear
from pyro_vmonf.starts import pretrain_
from pyro_vmonf.terms import Balance, Consistency, Term

STEPS, GUIDE_STEPS = 1500, 800


def without(recipe: Recipe, dropped: type[Term]) -> Recipe:
    """Return the recipe without one kind of term."""

    def build(data: Data) -> VMoNF:
        vmonf = recipe.build(data)
        assert isinstance(vmonf.guide, SoftmaxGuide)
        kept = [term for term in vmonf.guide.terms if not isinstance(term, dropped)]
        vmonf.guide.terms = torch.nn.ModuleList(kept)
        return vmonf

    return replace(recipe, build=build)


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "the recipe": lambda r: r,
    "no spectral start": lambda r: replace(r, teach=None),
    "no consistency": lambda r: without(r, Consistency),
    "no balance": lambda r: without(r, Balance),
    "no annealing": lambda r: replace(r, options={**r.options, "temperature": 1.0}),
    "the ELBO alone": lambda r: replace(without(without(r, Consistency), Balance), teach=None),
}


def toy(name: str, variant: str, seed: int) -> dict[str, Any]:
    """Run a variant of a toy experiment's recipe."""
    recipe = VARIANTS[variant](EXPERIMENTS[name].recipes["best"])

    def build(data: Data) -> VMoNF:
        vmonf = recipe.build(data)
        assert isinstance(vmonf.guide, SoftmaxGuide)
        for term in vmonf.guide.terms:
            if isinstance(term.weight, Linear):  # the weights' schedules are shortened as well
                term.weight = replace(term.weight, steps=STEPS)
        return vmonf

    shorter = {
        "steps": STEPS,
        "scheduler": lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
    }
    settings = Settings(seed)
    data = EXPERIMENTS[name].draw(settings)
    shortened = replace(recipe, build=build, options={**recipe.options, **shorter})
    result = run(data, shortened, settings)
    return {key: result.scores[key] for key in ("accuracy", "kl_to_truth")}


GUIDES: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "no batch norm": {"batch_norm": False},
    "one distorted copy": {"augment": False},
    "balance of weight 1": {"balance": 1.0},
    "stronger distortions": {"strength": 1.5},
}


def digits(data: Data, variant: str, seed: int) -> dict[str, Any]:
    """Teach a variant of MNIST's guide."""
    options = {"batch_norm": True, "augment": True, "balance": 3.0, "strength": 1.0}
    options |= GUIDES[variant]
    by = options["strength"]
    with local_seed(seed):
        distort = AffineImages(
            (28, 28), rotation=12 * by, scale=0.15 * by, shear=0.2 * by, shift=0.2 * by
        )
        guide = SoftmaxGuide(ConvEncoder((1, 28, 28), 10, batch_norm=bool(options["batch_norm"])))
        vmonf = VMoNF(FlowMixture(StandardNormal(784, 10)), guide)
        vmonf.model.bounded = True  # pixels keep their units
        pretrain_(
            guide,
            data.x,
            terms=[Consistency(distort), Balance(weight=options["balance"])],
            augment=distort.distorted if options["augment"] else None,
            steps=GUIDE_STEPS,
        )
    return {"accuracy": accuracy(data.labels, vmonf.predict(data.x))}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Return mean and worst accuracy of each variant, as Markdown."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["experiment"], row["variant"]), []).append(row)
    lines = [
        "| experiment | variant | seeds | accuracy: mean, worst | KL: mean |",
        "|" + "---|" * 5,
    ]
    for (experiment, variant), found in groups.items():
        scores = [row["accuracy"] for row in found]
        divergence = mean(row.get("kl_to_truth", math.nan) for row in found)
        shown = "" if math.isnan(divergence) else f"{divergence:.3f}"
        lines.append(
            f"| {experiment} | {variant} | {len(found)} | {mean(scores):.3f}, {min(scores):.3f} "
            f"| {shown} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, help="MNIST's folder; without it, no MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows = json.loads(options.file.read_text()) if options.file.exists() else []

    def keep(experiment: str, variant: str, seed: int, make: Callable[[], dict[str, Any]]) -> None:
        key = {"experiment": experiment, "variant": variant, "seed": seed}
        if not any(key.items() <= row.items() for row in rows):
            rows.append({**key, **{k: round(v, 4) for k, v in make().items()}})
            options.file.write_text(json.dumps(rows, indent=1) + "\n")
            print(rows[-1], flush=True)

    for name in ("pinwheel", "circles"):
        for variant in VARIANTS:
            for seed in seeds:
                keep(name, variant, seed, lambda n=name, v=variant, s=seed: toy(n, v, s))
    if options.data is not None:
        data = EXPERIMENTS["mnist"].draw(Settings(data=options.data))
        for variant in GUIDES:
            for seed in seeds:
                keep("mnist", variant, seed, lambda v=variant, s=seed: digits(data, v, s))
    names = dict.fromkeys([*VARIANTS, *GUIDES])
    order = {name: i for i, name in enumerate(names)}
    print(table(sorted(rows, key=lambda r: (r["experiment"], order[r["variant"]]))))


if __name__ == "__main__":
    main()
