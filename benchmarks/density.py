"""``python -m benchmarks density FOLDER``: held-out log-densities of tables, and anomalies.

Each line of the result is one method on one split of one table: the mean log-density of the test
rows in nats with the standard error over rows, or the area under the ROC curve where the table has
anomalies. Lines that the file has are not done again. :mod:`benchmarks.density_tables` describes
the folder. The flows and this library have the same seconds of one processor, so that other
programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from benchmarks.density_tables import Array, Split, tables
from benchmarks.tables import Row, table, write
from benchmarks.timing import processor_minutes
from pyro_vmonf import VMoNF

RESULTS = Path(__file__).parent / "results" / "density.jsonl"
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of a Gaussian mixture
BANDWIDTHS = np.geomspace(0.03, 3, 21)
HELD_OUT = 0.1
PATIENCE = 20  # epochs of a flow without a better score of its held-out rows
CHUNK = 4096
MOST_ROWS = 50_000  # of kernels
SEARCHED = 15_000  # rows on which a Gaussian mixture chooses its size and its start

Scores = tuple[Array, dict[str, Any]]  # of the test rows, and a record of the fit
Method = Callable[[Split, int, float], Scores]


def ours(split: Split, seed: int, seconds: float) -> Scores:
    """Return log-densities of ``VMoNF.from_data`` by its defaults."""
    with processor_minutes():
        vmonf = VMoNF.from_data(split.train, seed=seed, minutes=seconds / 60, progress=False)
    assert vmonf.history is not None
    names = ("components", "start", "epochs", "held_out", "held_out_start")
    choice = {name: vmonf.history.choice.get(name) for name in names}
    return vmonf.log_prob(split.test).double().numpy(), choice


def gaussian_mixture(split: Split, seed: int, _: float) -> Scores:
    """Return log-densities of a Gaussian mixture: the size of best BIC, the best of five starts.

    Size and start are chosen on at most 15,000 rows, and EM goes on from there on all rows.
    """
    options: dict[str, Any] = {"reg_covar": 1e-3, "random_state": seed, "max_iter": 200}
    some = split.train[np.random.default_rng(seed).permutation(len(split.train))[:SEARCHED]]
    best, size = np.inf, 1
    for number in SIZES:
        found = GaussianMixture(number, **options).fit(some).bic(some)
        if found > best:
            break
        best, size = found, number
    model = GaussianMixture(size, n_init=5, **options).fit(some)
    if len(some) < len(split.train):
        options |= {"weights_init": model.weights_, "means_init": model.means_}
        options["precisions_init"] = model.precisions_
        model = GaussianMixture(size, **options).fit(split.train)
    return model.score_samples(split.test), {"components": size}


def kernels(train: torch.Tensor, x: torch.Tensor, bandwidths: Sequence[float]) -> torch.Tensor:
    """Return log-densities ``(len(bandwidths), N)`` of rows under Gaussian kernels."""
    found = []
    for part in x.split(CHUNK // 8):
        squared = torch.cdist(part, train).square_()
        found.append(torch.stack([(squared * (-0.5 / h**2)).logsumexp(1) for h in bandwidths]))
    h = torch.tensor(bandwidths, dtype=train.dtype)
    width = train.shape[1]
    constant = width * h.log() + 0.5 * width * np.log(2 * np.pi) + np.log(len(train))
    return torch.cat(found, 1) - constant[:, None]


def kernel_density(split: Split, seed: int, _: float) -> Scores:
    """Return log-densities under Gaussian kernels whose bandwidth held-out rows choose."""
    train, held = apart(split.train, seed)
    scores = kernels(train[:MOST_ROWS], held[:CHUNK], BANDWIDTHS.tolist()).mean(1)
    h = float(BANDWIDTHS[int(scores.argmax())])
    every = torch.as_tensor(split.train, dtype=torch.float32)[:MOST_ROWS]
    x = torch.as_tensor(split.test, dtype=torch.float32)
    return kernels(every, x, [h])[0].double().numpy(), {"bandwidth": h}


def apart(x: Array, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows for training and held-out rows."""
    order = np.random.default_rng(seed).permutation(len(x))
    rows = torch.as_tensor(x[order], dtype=torch.float32)
    held = round(HELD_OUT * len(x))
    return rows[held:], rows[:held]


def trained(make: Callable[[int], Any]) -> Method:
    """Return the method that trains a flow of zuko and keeps the state best on held-out rows."""

    def method(split: Split, seed: int, seconds: float) -> Scores:
        end = time.process_time() + seconds
        train, held = apart(split.train, seed)
        held = held[: 5 * CHUNK]
        torch.manual_seed(seed)
        flow = make(train.shape[1])
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        best, state, epoch, since = -np.inf, flow.state_dict(), 0, 0
        while time.process_time() < end and since < PATIENCE:
            flow.train()
            for index in torch.randperm(len(train)).split(256):
                loss = -flow().log_prob(train[index]).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
                optimizer.step()
                if time.process_time() > end:
                    break
            score = float(scored(flow, held).mean())
            epoch, since = epoch + 1, since + 1
            if score > best:
                best, since = score, 0
                state = {name: value.clone() for name, value in flow.state_dict().items()}
        flow.load_state_dict(state)
        x = torch.as_tensor(split.test, dtype=torch.float32)
        return scored(flow, x).double().numpy(), {"epochs": epoch, "held_out": best}

    return method


@torch.no_grad()
def scored(flow: Any, x: torch.Tensor) -> torch.Tensor:
    """Return log-densities in chunks."""
    return torch.cat([flow.eval()().log_prob(part) for part in x.split(CHUNK)])


def maf(features: int) -> Any:
    """Return a masked autoregressive flow of five layers."""
    import zuko

    return zuko.flows.MAF(features, transforms=5, hidden_features=(64, 64))


def nsf(features: int) -> Any:
    """Return a neural spline flow of five layers."""
    import zuko

    return zuko.flows.NSF(features, transforms=5, bins=8, hidden_features=(64, 64))


def isolation_forest(split: Split, seed: int, _: float) -> Scores:
    """Return minus the anomaly scores of a forest."""
    return IsolationForest(random_state=seed).fit(split.train).score_samples(split.test), {}


def neighbours(split: Split, seed: int, _: float) -> Scores:
    """Return minus the distance to the fifth neighbour."""
    found = NearestNeighbors(n_neighbors=5).fit(split.train).kneighbors(split.test)
    return -found[0][:, -1], {}


DENSITIES: dict[str, Method] = {
    "ours": ours,
    "gaussian_mixture": gaussian_mixture,
    "kernel_density": kernel_density,
    "maf": trained(maf),
    "nsf": trained(nsf),
}
ANOMALIES: dict[str, Method] = {"isolation_forest": isolation_forest, "neighbours": neighbours}


def row(name: str, number: int, method: str, split: Split, seconds: float) -> Row:
    """Return what a method reaches on a split."""
    begun = time.process_time()
    scores, record = (DENSITIES | ANOMALIES)[method](split, number, seconds)
    found: Row = {"table": name, "split": number, "method": method}
    found |= {"rows": len(split.train), "columns": split.train.shape[1]}
    if split.unusual is None:
        error = scores.std(ddof=1) / len(scores) ** 0.5
        found |= {"nats": round(float(scores.mean()), 4), "error": round(float(error), 4)}
        found["worst"] = round(float(scores.min()), 1)
    else:
        unusual = np.clip(-scores, -1e300, 1e300)  # a density may be zero
        found["auroc"] = round(float(roc_auc_score(split.unusual, unusual)), 4)
    found["seconds"] = round(time.process_time() - begun, 1)
    return found | {"budget": seconds, **record}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return the mean over splits of each method on each table, and its error."""
    found: list[Row] = []
    for name in dict.fromkeys(row["table"] for row in rows):
        line: Row = {"table": name}
        for method in DENSITIES | ANOMALIES:
            own = [r for r in rows if (r["table"], r["method"]) == (name, method)]
            values = [r["nats"] if "nats" in r else r["auroc"] for r in own]
            line[method] = f"{mean(values):.3f}" if values else ""
            if len(values) > 1:
                line[method] += f" ± {stdev(values) / len(values) ** 0.5:.3f}"
            line["splits"] = max(line.get("splits", 0), len(values))
        found.append(line)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Go through tables, splits and methods; lines that the file has are not done again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks density", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", help="some of the tables, as protein,pol")
    parser.add_argument("--splits", type=int, default=10, help="of each table")
    parser.add_argument("--methods", help="some of the methods, as ours,nsf")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a fit of flows")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = given.json.read_text().splitlines() if given.json.exists() else []
    done = [json.loads(line) for line in lines]
    seen = {(r["table"], r["split"], r["method"]) for r in done}
    found = tables(given.folder)
    for name in given.tables.split(",") if given.tables else found:
        make, count = found[name]
        for number in range(min(count, given.splits)):
            split = make(number)
            methods = DENSITIES if split.unusual is None else DENSITIES | ANOMALIES
            for method in given.methods.split(",") if given.methods else methods:
                if (name, number, method) not in seen:
                    done.append(row(name, number, method, split, given.seconds))
                    print(json.dumps(done[-1]), flush=True)
                    write(done[-1:], given.json)
    print(table(summary(done)))


if __name__ == "__main__":
    main()
