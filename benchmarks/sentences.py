"""Sentences of the pages that hold numbers of the committed results."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.text import SIZES, filled_lines, markdown, read, section, share, step


def ratios() -> str:
    """Return how many times as long as its peers a step takes, over the configurations."""
    ms = {config: step(config) for config in SIZES}

    def times(own: str, peer: str) -> str:
        known = [c for c, row in ms.items() if own in row and peer in row]
        *most, last = (f"{ms[c][own] / ms[c][peer]:.2f} on `{c}`" for c in known)
        return f"{', '.join(most)} and {last}"

    said = {
        "A step from Python, over the step by hand": times("library", "limit"),
        "A compiled step, over the step of a JAX scan": times("library compiled", "jax scanned"),
        "A compiled step, over the step of jitted JAX": times("library compiled", "jax"),
        "A compiled step, over the step from Python": times("library compiled", "library"),
    }
    return "\n".join(f"- {what}: {numbers}." for what, numbers in said.items())


def other_times() -> str:
    """Return what a whole fit, many components, many rows, restarts and draws cost."""
    [fit, compiled] = [row for row in section("whole_fit") if row[0] == "pinwheel"]
    scaling = {row[0]: row for row in section("scaling")}
    one, many = scaling["K=1"], scaling["K=64"]
    top = float(scaling["K=256, top=4"][2]) / float(scaling["K=8"][2])
    scored = next(row for row in section("score") if row[0].endswith("log_prob"))
    [eight] = [row[3] for row in section("restarts") if row[0] == "R=8"]
    draws = {row[1]: row for row in section("sample") if row[0] == "D=784"}
    half = next(row[2] for row in section("sample") if row[:2] == ["D=392", "library"])
    said = [
        f"A thousand steps of `fit` with hold-out and history take {float(fit[4]):.2f} times a "
        f"thousand bare steps. Compiled they take {float(compiled[4]):.2f} times as long as "
        "compiled bare steps. An epoch has five steps here, and after each epoch the held-out rows "
        "are measured from Python.",
        f"From one to 64 components the time per component falls from {float(one[3]):.1f} to "
        f"{float(many[3]):.2f} ms. With 256 components and `top=4` a step takes {top:.1f} times "
        "the step of 8.",
        f"A million rows are scored in {float(scored[2]) / 1000:.1f} s.",
        f"Eight restarts in one batch take {eight} times one fit.",
        f"A draw of 16 points from a MAF of 784 features takes {float(draws['library'][2]):.0f} ms,"
        f" and {float(half):.0f} ms from one of 392. It is {float(draws['zuko'][3]):.0f} times as "
        f"fast as zuko and {float(draws['pyro'][3]):.0f} times as fast as Pyro.",
    ]
    return "\n".join(f"- {sentence}" for sentence in said)


def curve() -> str:
    """Return the bits a dimension of pixel-by-pixel flows after ten and sixty minutes."""
    points = read("images-curve-mnist-pixels.json")

    def after(minutes: float) -> float:
        return float(
            min(points, key=lambda p: abs(p["cpu_seconds"] - 60 * minutes))["bits_per_dim"]
        )

    return filled_lines(
        f"`mnist-pixels` stood at {after(10):.2f} in training after ten minutes of the processor,",
        f"and at {after(60):.2f} after sixty.",
    )


def taught() -> str:
    """Return what the likelihood does to the clusters of a taught guide."""
    rows = read("images-turns.json")
    first = rows["in turn: taught, then its clusters are fitted"]["accuracy, guide"]
    then = rows["in turn, then the whole ELBO moves both"]
    return filled_lines(
        "The likelihood does harm where it reaches the guide. The taught guide falls from",
        f"{share(first)} to {share(then['accuracy, guide'])} in {then['steps']} steps of the",
        "whole ELBO: its thousands of nats an image drown the terms. The recipes therefore go in",
        "turn, with `elbo_gradient=0` and `top=1`, and a row trains the flow of its own",
        "component alone.",
    )


def posteriors_agree() -> str:
    """Return how far the inferences are from the reference draws."""
    rows = read("posteriordb.jsonl")
    exact = max(row["errors"] for row in rows if "Auto" not in row["inference"])
    gap = max(abs(row["gap"]) for row in rows if "Auto" in row["inference"])
    return filled_lines(
        f"NUTS and importance sampling are within {exact:.1f} Monte-Carlo errors of the",
        "reference. The variational fits take 1,000 steps of one draw each, and their means are",
        f"up to {gap:.1f} standard deviations away. `AutoNormal` has no correlations, so some of",
        "its posteriors are too narrow.",
    )


def densities_compared() -> str:
    """Return where the density of the default is ahead, and where it is not."""
    rows = [row for row in read("density.jsonl") if "nats" in row]
    first = [row for row in rows if not row["split"]]
    tables = list(dict.fromkeys(row["table"] for row in first))
    best = {t: max((r for r in first if r["table"] == t), key=lambda r: r["nats"]) for t in tables}
    ahead = [t for t in tables if best[t]["method"] == "ours"]
    [behind] = [t for t in tables if t not in ahead]
    own = next(r["nats"] for r in first if r["table"] == behind and r["method"] == "ours")
    longest = max(row["seconds"] for row in first if row["method"] == "ours")
    nats: dict[str, list[float]] = {}
    for row in rows:
        if row["table"] == "winequality-red":
            nats.setdefault(row["method"], []).append(row["nats"])
    means = {method: mean(values) for method, values in nats.items()}
    large = read("bsds300.json")
    return "\n\n".join(
        (
            filled_lines(
                "One split is no mean over folds: read differences of the size of the errors as",
                f"none. `from_data` has the best score on {len(ahead)} of the {len(tables)}",
                f"tables. On `{behind}`, whose columns hold many equal values, the best flow is",
                f"{best[behind]['nats'] - own:.1f} nats ahead: the search of the start took more",
                f"than half of the time there. The longest call took {longest:.0f} seconds of the",
                "60 it was asked for, since the search is not cut short.",
                f"On three splits of `winequality-red` the means are {means['ours']:.2f} for",
                f"`from_data`, {means['kernel_density']:.2f} for kernels, {means['maf']:.2f} and",
                f"{means['nsf']:.2f} for the flows of zuko, and {means['gaussian_mixture']:.2f}",
                "for the Gaussian mixture.",
            ),
            filled_lines(
                "On patches of BSDS300 (a million rows, 63 columns) `from_data` with",
                f"`minutes={large['minutes']}` of one processor has {large['nats']:.2f} nats on",
                f"the test patches, ± {large['error']:.2f}, and {large['held_out']:.2f} on",
                "patches of held-out training images. The mixtures of Student's t, which grow on",
                "all rows, bring all of it; the flows add nothing in this time. A masked",
                "autoregressive flow with a mixture as its base has 156.4 after hours on a GPU",
                "(Papamakarios, Pavlakou, Murray, 2017, arXiv:1705.07057).",
            ),
        )
    )


def costs() -> str:
    """Return the counts of a step's cost, beside the formulas."""

    def number(value: float) -> str:
        return f"{value / 1e6:.2f}" if value < 1e8 else f"{value / 1e6:.0f}"

    body = []
    for row in read("costs.jsonl"):
        (p, products, kept), (p2, products2, kept2) = row["formula"], row["counted"]
        pairs = f"{number(products)}; {number(products2)}", f"{number(kept)}; {number(kept2)}"
        body.append([row["bank"], f"{p:,}; {p2:,}", *pairs])
    columns = ["bank", "parameters: formula, counted", "million multiply-adds: formula, counted"]
    return markdown(" | ".join([*columns, "million numbers kept: formula, counted"]), body)


EXAMPLES = {
    "vae": "prior of a VAE of 8×8 digits",
    "hmm": "emissions of a hidden Markov model, Viterbi by `infer_discrete`",
    "regression": "residuals with several modes",
    "two": "two mixtures, two views of the same rows, labels for one view",
    "nested": "a mixture of mixtures",
    "topics": "shares of groups, hierarchical Dirichlet",
    "tree": "states that children take from their parents, summed out by `pyro.markov`",
}


def examples() -> str:
    """Return the numbers of the examples, with the mixture and without."""
    body = []
    for name, numbers in read("examples.json").items():
        found = "; ".join(f"{what}: {value:.3f}" for what, value in numbers.items())
        body.append([f"`{name}.py`: {EXAMPLES[name]}", found.replace(": -", ": −")])
    return markdown("`examples/` | on held-out data", body)


def unknown_k() -> str:
    """Return what is left of ten components on the easy pinwheel."""
    runs = read("unknown-k.json")
    right = sum(run["above_one_percent"] == 5 for run in runs)
    low, high = (share(f(run["accuracy"] for run in runs), 4) for f in (min, max))
    return filled_lines(
        f"**Five components are left on {right} of {len(runs)} seeds** (accuracy {low} to",
        f"{high}). The joining decides: two pieces of one wing exchange several times as many",
        "walks as two wings. A sparse prior and consistency alone end with more components. A",
        "flow that covers half a wing gains more likelihood than the prior charges for it, and",
        "nothing makes one flow grow over the other half.",
    )


def starts_compared() -> str:
    """Return which start the objective would keep."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in read("restart-objective.json"):
        runs.setdefault(run["experiment"], []).append(run)
    found = {}
    for name, rows in runs.items():
        accuracies = [row["accuracy"] for row in rows]
        kept = max(rows, key=lambda row: row["objective"])["accuracy"]
        found[name] = [share(value) for value in (min(accuracies), max(accuracies), kept)]
    (low, high, kept), (low2, high2, _) = found["pinwheel"], found["circles"]
    return filled_lines(
        "`benchmarks/restart_objective.py` fits ten random starts for 1,000 steps, without the",
        "spectral one. It asks which start each held-out score would keep. On the pinwheel there",
        f"is little to choose: accuracies are {low} to {high}, and the objective keeps {kept}. On",
        f"two circles no start finds them ({low2} to {high2}), so no score helps. The start",
        "decides there. On MNIST the choice counts, and `pretrain_` keeps the best of 6 runs on",
        "all digits and of 3 on the digits 0 to 4.",
    )
