"""``python -m benchmarks.pages``: write the results of ``benchmarks/results`` into the pages.

A page holds ``<!-- numbers: NAME -->`` and ``<!-- end -->``. The function of that name writes the
text between them, so the same result has the same digits on every page. With ``--check`` nothing is
written, and a page that differs is an error.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import held_out, sentences
from benchmarks.text import (
    ROOT,
    SIZES,
    filled_lines,
    markdown,
    milliseconds,
    processor_of,
    read,
    share,
    signed,
    step,
)

BLOCK = re.compile(r"(<!-- numbers: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Table = list[list[str]]


def by_set() -> list[dict[str, Any]]:
    """Return a row for each clustering set: numbers are means over its seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read("clustering.jsonl"):
        found.setdefault(row["set"], []).append(row)
    return [
        {
            key: value if isinstance(value, str) else mean(row[key] for row in rows)
            for key, value in rows[0].items()
        }
        for rows in found.values()
    ]


def clusters() -> dict[str, str]:
    """Return the scores over all clustering sets, as every page writes them."""
    rows = by_set()
    peers = read("clustering-peers.jsonl")
    gains = [r["nats"] - r["nats_gaussians"] for r in rows if math.isfinite(r["nats"])]
    seconds = [row["seconds"] for row in rows]
    runs = [row for row in read("clustering.jsonl") if math.isfinite(row["nats"])]
    losses = [row["nats_gaussians"] - row["nats"] for row in runs]
    found = {key: share(mean(row[key] for row in rows)) for key in ("ari", "ari_unknown")}
    for name in ("gaussian_mixture", "spectral", "lumbermark", "kmeans", "hdbscan"):
        found[name] = share(mean(row[name] for row in peers))
    return found | {
        "sets": str(len(rows)),
        "found": str(sum(row["components_found"] == row["components"] for row in rows)),
        "gain": share(median(gains)),
        "worse": str(sum(loss > 0.05 for loss in losses)),
        "runs": str(len(losses)),
        "seconds": f"{median(seconds):.0f}",
        "longest": f"{max(seconds):.0f}",
    }


def front() -> str:
    """Return the README's table."""
    s, few = clusters(), few_labelled()
    return (
        markdown(
            "measure | default of this library | others",
            [
                [
                    f"clusters of {s['sets']} public sets, K given: mean adjusted Rand index",
                    f"**{s['ari']}**",
                    f"Lumbermark (cut spanning trees) {s['lumbermark']}, "
                    f"spectral clustering {s['spectral']}, "
                    f"`GaussianMixture` {s['gaussian_mixture']}, k-means {s['kmeans']}",
                ],
                [
                    "the same sets, K not given, by a rule that was chosen on them",
                    s["ari_unknown"],
                    f"HDBSCAN with its defaults {s['hdbscan']}",
                ],
                [
                    f"{few['sets']} of the sets with at most ten labels a class: the other rows",
                    few["ari"],
                    f"without labels {few['without']}",
                ],
                [
                    "held-out log-density, median gain over a Gaussian mixture chosen by BIC",
                    f"{s['gain']} nats a row",
                    "the Gaussian mixture is better by more than .05 in "
                    f"{s['worse']} of {s['runs']} runs",
                ],
                [
                    "one fit, one thread: median, longest",
                    f"{s['seconds']} s, {s['longest']} s",
                    "k-means and `GaussianMixture` are faster",
                ],
            ],
        )
        + "\n\n"
        + steps()
        + "\n\n"
        + filled_lines(
            "The sets are those of clustering-data-v1, each with three seeds. The constants of the",
            "default were fixed before these runs; expect less of the rule for K elsewhere. An",
            "index of 1 is perfect, and 0 is chance.",
        )
    )


WAYS = {
    "library": "this library",
    "library compiled": "compiled",
    "limit": "torch by hand",
    "limit compiled": "by hand, density compiled",
    "jax": "JAX, jitted",
    "jax scanned": "JAX, scanned",
    "zuko": "K zuko flows",
    "normflows": "K normflows",
    "torchflows": "K torchflows",
    "flowjax scanned": "flowjax's mixture, scanned",
    "pyro": "K Pyro flows",
}


def step_table(
    times: Mapping[str, Mapping[str, float]], columns: Mapping[str, str], where: str
) -> str:
    """Return the milliseconds of a training step, for each configuration and way to write it."""
    rows = []
    for config, ms in times.items():
        cells = [milliseconds(ms[way]) if way in ms else "–" for way in columns]
        rows.append([f"{coded(config)}: {SIZES[config]}", *cells])
    return markdown(" | ".join((f"ms a step, {where}", *columns.values())), rows)


def steps() -> str:
    """Return the milliseconds of a training step on the CPU."""
    where = f"one thread of an {processor_of('step')}"
    return step_table({config: step(config) for config in SIZES}, WAYS, where)


def gpu() -> str:
    """Return the milliseconds of a training step on a GPU."""
    times: dict[str, dict[str, float]] = {}
    for row in read("gpu.jsonl"):
        times.setdefault(row["config"], {})[row["peer"]] = row["median_ms"]
    ways = ("library", "library compiled", "limit", "jax", "jax scanned", "zuko", "normflows")
    return step_table(times, {way: WAYS[way] for way in ways}, "a GPU")


FAMILIES = {
    "random mixtures": "63 random mixtures",
    "pinwheel .25": "pinwheel, rate .25",
    "pinwheel .4": "pinwheel, rate .4",
    "two circles": "two circles",
    "32 labels": "two circles, 32 labels",
    "11 labels": "two circles, 11 labels",
    "real": "39 real sets, as a test",
}


def criterion() -> str:
    """Return the mean index of the chosen start, by the weight of the valleys."""
    weights = ("0.0", "0.05", "0.1", "0.2", "0.3", "0.5", "1.0")
    body = []
    for row in read("criterion.jsonl"):
        found = [share(row[f"weight {weight}"]) for weight in weights]
        found[2] = f"**{found[2]}**"
        body.append([FAMILIES[row["family"]], *found, share(row["oracle"])])
    head = "weight of the valleys | 0 | .05 | **.1** | .2 | .3 | .5 | 1 | best candidate"
    return markdown(head, body)


def by_one_call() -> str:
    """Return the accuracy of one call on the sets of the thesis."""
    rows = read("plane.jsonl")
    body = []
    for key in dict.fromkeys(row["set"] for row in rows):
        found = [row["accuracy"] for row in rows if row["set"] == key]
        body.append([FAMILIES[key], share(mean(found), 4), share(min(found), 4)])
    return markdown("set | mean | worst", body)


def summary() -> str:
    """Return the sentences above the table of all sets."""
    s = clusters()
    return filled_lines(
        f"The mean adjusted Rand index over the {s['sets']} sets is {s['ari']} with K given. On",
        f"the same sets `GaussianMixture` has {s['gaussian_mixture']}, k-means {s['kmeans']},",
        f"spectral clustering {s['spectral']} and Lumbermark {s['lumbermark']}. Without K the",
        f"mean is {s['ari_unknown']} (HDBSCAN with its defaults {s['hdbscan']}), and",
        f"{s['found']} sets get the K of their reference under every seed. The held-out",
        "log-density is above",
        f"that of a Gaussian mixture chosen by BIC: the median gain is {s['gain']} nats a row.",
        f"It is below by more than .05 in {s['worse']} of {s['runs']} runs.",
    )


def by_seed() -> str:
    """Return what changes between seeds, and between start and trained guide."""
    runs = read("clustering.jsonl")
    seeds = sorted({run["seed"] for run in runs})

    def of_seeds(key: str) -> str:
        return ", ".join(share(mean(r[key] for r in runs if r["seed"] == s)) for s in seeds)

    changes = [run["ari"] - run["ari_start"] for run in runs]
    clusters, start, ari, exact = (
        share(mean(run[key] for run in runs))
        for key in ("ari_clusters", "ari_start", "ari", "ari_exact")
    )
    return filled_lines(
        f"Seeds {', '.join(map(str, seeds))} have {of_seeds('ari')} with K given, and",
        f"{of_seeds('ari_unknown')} without. The start decides: its clusters have",
        f"{clusters}, the posterior of their densities {start}, the trained guide {ari} and the",
        f"posterior of the trained flows {exact}. The guide loses at most",
        f"{share(-min(changes))} against its beginning in any run; the mean change is",
        f"{signed(mean(changes))}.",
    )


def few_labelled() -> dict[str, str]:
    """Return the indices of the rows without labels, and the number of sets."""
    rows = read("few-labels.jsonl")
    ari, without = (share(mean(row[key] for row in rows)) for key in ("ari", "ari_without"))
    return {"ari": ari, "without": without, "sets": str(len({row["set"] for row in rows}))}


def few_labels() -> str:
    """Return what a few labels bring."""
    found = few_labelled()
    change = [row["ari"] - row["ari_without"] for row in read("few-labels.jsonl")]
    return filled_lines(
        f"The mean adjusted Rand index of the rows without labels is {found['ari']} on the",
        f"{found['sets']} sets with at most 5,000 rows. Without labels the",
        f"same rows have {found['without']}. Labels gain more than .02 in",
        f"{sum(c > 0.02 for c in change)} runs, and lose more in {sum(c < -0.02 for c in change)};",
        f"the least change is {signed(min(change))}.",
    )


def held_out_rows() -> str:
    """Return the log-densities of test rows of the sets for clustering."""
    rows = read("held-out.jsonl")
    found, splits = held_out.summary(rows), len(rows) / len({row["set"] for row in rows})
    return filled_lines(
        f"On a fifth of the rows as a test, {splits:.1f} times a set on average, the median gain",
        f"is {found['median_gain']:.3f} nats a row on the {found['sets']} sets of real numbers.",
        "Sets that are worse by more than .05 nats and two standard errors of the difference:",
        f"{found['worse']}. On {found['not_below_kernels']} sets kernels are not better. The",
        "Gaussian mixture has the size of the best BIC and the best of five starts on the rows",
        "that train, and held-out rows choose the bandwidth of the kernels.",
    )


def thinned() -> str:
    """Return the accuracy on thinned digits, by set."""
    shares = {
        "equal": "equal",
        "unequal": "17, 14, 10, 9, 9, 8, 9, 9, 8, 9 of 102",
        "long tail": "long tail, 3,000 down to 380",
    }
    three, rows, body = "{:.3f}".format, read("thinned.jsonl"), []
    for name, said in shares.items():
        own = [row for row in rows if row["set"] == name]
        seeds = ", ".join(three(row["accuracy"]) for row in own)
        mean_of = three(mean(row["accuracy"] for row in own))
        body.append([f"{own[0]['images']:,}", said, mean_of, seeds])
    columns = ["images", "shares of the classes", "mean accuracy", "each seed"]
    return markdown(" | ".join(columns), body)


def sets() -> str:
    """Return the table of all sets."""
    two, rows = "{:.2f}".format, by_set()
    body = [
        [
            row["set"],
            *(f"{row[key]:.0f}" for key in ("rows", "columns", "components")),
            row["start"],
            two(row["ari_start"]),
            two(row["ari"]),
            f"{row['ari_unknown']:.2f} ({row['components_found']:.0f})",
            *(
                two(row[key]) if math.isfinite(row[key]) else "–"
                for key in ("nats", "nats_start", "nats_gaussians")
            ),
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    means = [f"{mean(row[key] for row in rows):.3f}" for key in ("ari_start", "ari", "ari_unknown")]
    body.append(["**mean**", "", "", "", "", *means, "", "", "", ""])
    head = (
        "set | rows | columns | K | start | ARI of the start | ARI | ARI, K unknown (K found) | "
        "held-out nats a row | of its start | of a Gaussian mixture | seconds"
    )
    return markdown(head, body)


PLANE = {
    "pinwheel": "pinwheel-best",
    "pinwheel-easy": "pinwheel-easy-best",
    "pinwheel-easy --per-wing 8192": "pinwheel-easy-8192-best",
    "circles": "circles-best",
    "circles-semi (32 labels)": "circles-semi-best",
    "circles-semi --labels 11": "circles-semi-11-best",
}
THESIS = {
    "pinwheel": "pinwheel-thesis",
    "pinwheel-3": "pinwheel-3-thesis",
    "circles": "circles-thesis",
    "circles-semi (32 labels)": "circles-semi-thesis",
}
IMAGES = {
    "mnist-04 (digits 0 to 4)": "mnist-04-best",
    "mnist": "mnist-best",
    "mnist-semi (100 labels)": "mnist-semi-100-best",
    "mnist-semi --labels 1000": "mnist-semi-1000-best",
    "mnist-pixels": "mnist-pixels-best",
    "mnist-glow --quick": "mnist-glow-best-quick",
    "mnist-maf-mog --quick": "mnist-maf-mog-best-quick",
}


def coded(name: str) -> str:
    """Return the name of an experiment with its command as code."""
    command, bracket, rest = name.partition(" (")
    return f"`{command}`" + (f", {rest[:-1]}" if bracket else "")


def spread(run: dict[str, Any], key: str, digits: int) -> str:
    """Return mean and range over the seeds."""
    middle, low, high = (share(run[part][key], digits) for part in ("mean", "min", "max"))
    return middle if len(run["seeds"]) == 1 else f"{middle} ({low} to {high})"


def plane(runs: dict[str, str]) -> str:
    """Return the table of experiments in the plane."""
    body = []
    for name, file in runs.items():
        run = read(f"{file}.json")
        cells = [coded(name), str(len(run["seeds"])), spread(run, "accuracy", 4)]
        cells += [share(run["mean"]["accuracy_exact"], 4), share(run["mean"]["nmi"])]
        cells += [spread(run, "kl_to_truth", 3), f"{median(run['scores']['seconds']):.0f}"]
        body.append(cells)
    head = (
        "experiment | seeds | accuracy: mean (range) | by Bayes' rule | NMI | KL in nats: mean "
        "(range) | seconds, median"
    )
    return markdown(head, body)


def images() -> str:
    """Return the table of experiments on images."""
    body = []
    for name, file in IMAGES.items():
        run = read(f"{file}.json")
        cells = [coded(name), str(len(run["seeds"]))]
        cells += [spread(run, key, 4) for key in ("accuracy", "accuracy_test")]
        cells += [share(run["mean"]["nmi"]), share(run["mean"]["accuracy_exact"])]
        cells += [f"{run['mean']['bits_per_dim']:.2f}", f"{median(run['scores']['seconds']):.0f}"]
        body.append(cells)
    head = (
        "experiment | seeds | accuracy, fitted images: mean (range) | accuracy, test images | NMI "
        "| by Bayes' rule | bits a dimension, test | seconds, median"
    )
    return markdown(head, body)


def ablation() -> str:
    """Return the table of recipes that lack one piece."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in read("ablation.json"):
        found.setdefault((row["experiment"], row["variant"]), []).append(row)
    body = []
    for (experiment, variant), rows in sorted(found.items(), key=lambda item: item[0][0]):
        scores = [row["accuracy"] for row in rows]
        kl = [row["kl_to_truth"] for row in rows if "kl_to_truth" in row]
        body.append([experiment, variant, share(mean(scores)), share(min(scores))])
        body[-1].append(share(mean(kl)) if kl else "")
    return markdown("experiment | variant | accuracy: mean | worst | KL: mean", body)


def nested(name: str) -> str:
    """Return a file of rows with names as a table."""
    rows = read(name)
    columns = list(max(rows.values(), key=len))
    body = [
        [
            row,
            *(
                f"{values[key]:,}" if isinstance(values.get(key), int) else str(values.get(key, ""))
                for key in columns
            ),
        ]
        for row, values in rows.items()
    ]
    return markdown(" | ".join(["", *columns]).strip() or "", body)


def calibration() -> str:
    """Return the table of inferences that were calibrated by simulation."""
    body = [
        [row["run"], str(row["scalars"]), f"{row['p_value']:.2g}", f"{row['spread']:.2f}"]
        for row in read("calibration.jsonl")
    ]
    return markdown("parameters, inference | scalars | p-value | spread of the ranks", body)


def chains() -> str:
    """Return the accuracies of a chain and of the mixture of its flows."""
    rows = read("chains.jsonl")
    body = [
        [said, share(mean(row[key] for row in rows)), ", ".join(share(row[key]) for row in rows)]
        for said, key in (
            ("mixture: each step by itself", "mixture"),
            ("chain: the most probable path", "chain"),
        )
    ]
    return markdown("flows, right states | mean | each seed", body)


def posteriors() -> str:
    """Return the table of posteriors of posteriordb: a row for each parameter."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in read("posteriordb.jsonl"):
        found.setdefault((row["posterior"], row["parameter"]), {})[row["inference"]] = row
    inferences = list(next(iter(found.values())))
    body = []
    for (posterior, parameter), rows in found.items():
        cells = [f"`{posterior}`, {parameter}", f"{next(iter(rows.values()))['reference']:.4f}"]
        for name in inferences:
            row = rows.get(name)
            if row is None:
                cells.append("")
                continue
            exact = "Auto" not in name
            said = f"{row['errors']:.1f}" if exact else f"{row['gap']:+.2f}, {row['spread']:.2f}"
            cells.append(f"{row['mean']:.4f} ({said})")
        body.append(cells)
    return markdown(" | ".join(["parameter", "reference", *inferences]), body)


def densities() -> str:
    """Return the table of held-out log-densities."""
    rows = [row for row in read("density.jsonl") if "nats" in row]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    body = []
    for name in dict.fromkeys(row["table"] for row in rows):
        own = {row["method"]: row for row in rows if row["table"] == name and not row["split"]}
        first = next(iter(own.values()))
        cells = [name, f"{first['rows']:,} × {first['columns']}"]
        cells += [
            f"{own[m]['nats']:.2f} ± {own[m]['error']:.2f}" if m in own else "" for m in methods
        ]
        body.append(cells)
    names = [method.replace("_", " ") for method in methods]
    return markdown(" | ".join(["table", "rows, columns", *names]), body)


def anomalies() -> str:
    """Return the table of areas under the ROC curve, means over splits."""
    rows = read("anomalies.jsonl")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    areas: dict[str, list[float]] = {method: [] for method in methods}
    body = []
    for name in sorted({row["table"] for row in rows}, key=lambda name: int(name.split("_")[0])):
        own = [row for row in rows if row["table"] == name]
        cells = [name.partition("_")[2], f"{own[0]['rows']:,} × {own[0]['columns']}"]
        for method in methods:
            areas[method].append(mean(r["auroc"] for r in own if r["method"] == method))
            cells.append(f"{areas[method][-1]:.3f}")
        body.append(cells)
    body.append(["**mean**", "", *(f"{mean(areas[method]):.3f}" for method in methods)])
    names = [method.replace("_", " ") for method in methods]
    return markdown(" | ".join(["table", "rows, columns", *names]), body)


def matrix() -> str:
    """Return the outcomes of the cells of the table of parts, counted for each verb."""
    found = read("matrix.json")
    outcomes, cells = found["outcomes"], found["cells"].values()
    body = []
    for place, verb in enumerate(found["verbs"]):
        counts = [sum(row[place] == str(i) for row in cells) for i in range(len(outcomes))]
        body.append([verb, *(f"{count:,}" if count else "" for count in counts)])
    sums = ["".join(cells).count(str(i)) for i in range(len(outcomes))]
    body.append(["**all**", *(f"{count:,}" for count in sums)])
    return markdown(" | ".join(["verb", *outcomes]), body)


BLOCKS: dict[str, Callable[[], str]] = {
    "matrix": matrix,
    "anomalies": anomalies,
    "calibration": calibration,
    "chains": chains,
    "posteriors": posteriors,
    "densities": densities,
    "front": front,
    "clusters": summary,
    "clustering-sets": sets,
    "seeds": by_seed,
    "few-labels": few_labels,
    "held-out": held_out_rows,
    "thinned": thinned,
    "steps": steps,
    "gpu": gpu,
    "step-ratios": sentences.ratios,
    "other-times": sentences.other_times,
    "curve": sentences.curve,
    "taught": sentences.taught,
    "posteriors-agree": sentences.posteriors_agree,
    "densities-compared": sentences.densities_compared,
    "costs": sentences.costs,
    "examples": sentences.examples,
    "unknown-k": sentences.unknown_k,
    "starts-compared": sentences.starts_compared,
    "criterion": criterion,
    "one-call": by_one_call,
    "plane": lambda: plane(PLANE),
    "thesis": lambda: plane(THESIS),
    "images": images,
    "ablation": ablation,
    "banks": lambda: nested("images-banks.json"),
    "turns": lambda: nested("images-turns.json"),
    "anomaly": lambda: nested("images-anomaly.json"),
    "way": lambda: nested("images-way.json"),
}


def filled(text: str) -> str:
    """Return a page with its numbers."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{BLOCKS[m[2]]()}\n\n{m[3]}", text)


def pages() -> list[Path]:
    """Return the pages that can hold numbers."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if before != after:
            if check:
                parser.exit(1, f"{page} differs from the results; run python -m benchmarks.pages\n")
            page.write_text(after)


if __name__ == "__main__":
    main()
