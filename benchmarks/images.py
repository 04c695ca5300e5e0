"""``python -m benchmarks.images NAME --data DIR``: what the ways of modelling images cost and give.

``way``: a training step with grouped convolutions and with a loop over the components.
``banks``: bits per dimension and clusters that banks reach in the same time, after one guide.
``turns``: guide and flows trained in turn, together, and by the likelihood.
``anomaly``: digits 5 to 9 under a mixture of digits 0 to 4.
``curve``: draws ``curve.json`` of runs, copied to ``images-curve-NAME.json``, for the docs.

Times are of the processor, so that other work beside does not count. Results are printed, and kept
in ``benchmarks/results/images-NAME.json``; rows that are there already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Glow,
    ImageNSF,
    MultiScaleRealNVP,
    PixelFlow,
    SoftmaxGuide,
    VMoNF,
    metrics,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import DequantizedImages
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.experiments.draws import Data, Settings, draw_mnist
from pyro_vmonf.experiments.images import one_cycle, teach_undistorted
from pyro_vmonf.flows import MAFMoG
from pyro_vmonf.flows.pixels import behind_pixels
from pyro_vmonf.nn import ConvEncoder
from pyro_vmonf.terms import Balance, Consistency

RESULTS = Path(__file__).parent / "results"
BATCH, TESTED, SHAPE = 256, 1000, (1, 28, 28)
Row = dict[str, float | str]


def kept(name: str, rows: dict[str, Callable[[], Row]]) -> None:
    """Measure the rows that are not there yet, and print and keep all of them."""
    path = RESULTS / f"images-{name}.json"
    found: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    for title, measure in rows.items():
        if title not in found:
            found[title] = measure()
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    columns = list(dict.fromkeys(key for row in found.values() for key in row))
    print("| " + " | ".join(["", *columns]) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for title, row in found.items():
        print("| " + " | ".join([title, *(str(row.get(key, "")) for key in columns)]) + " |")


def median_seconds(steps: list[Callable[[], None]], repeats: int = 7) -> list[float]:
    """Time functions in turn and return the median of each."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(repeats + 1):
        for step, own in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if repeat:
                own.append(time.perf_counter() - start)
    return [sorted(own)[len(own) // 2] for own in times]


def way() -> None:
    """Compare grouped convolutions with a loop, with 32 rows a component."""

    def compare(make: Callable[..., Flow], components: int, precision: str) -> Row:
        steps, values = [], []
        for choice in ("grouped", "loop"):
            torch.manual_seed(0)
            bank = make(SHAPE, components, way=choice, precision=precision)
            x = torch.randn(32, components, *SHAPE)

            def step(bank: Flow = bank, x: Tensor = x) -> None:
                bank.zero_grad()
                (-bank().log_prob(x).mean()).backward()

            steps.append(step)
            with torch.no_grad():
                values.append(bank.eval()().log_prob(x[:4]))
            bank.train()
        grouped, loop = median_seconds(steps)
        gap = float(((values[0] - values[1]).abs() / values[0].abs()).max())
        return {
            "grouped, ms": round(1e3 * grouped),
            "loop, ms": round(1e3 * loop),
            "loop / grouped": round(loop / grouped, 2),
            "largest relative gap": f"{gap:.0e}",
        }

    rows = {}
    for name, make in {
        "Glow, 2 blocks of 32": lambda *a, **k: Glow(*a, blocks=2, **k),
        "PixelFlow, 2 of 32": lambda *a, **k: PixelFlow(*a, depth=2, squeezes=1, **k),
    }.items():
        for components in (1, 5, 10):
            for precision in ("float32", "bfloat16"):
                rows[f"{name}, K = {components}, {precision}"] = (
                    lambda m=make, c=components, p=precision: compare(m, c, p)
                )
    kept("way", rows)


def taught(data: Data, digits: int, out: Path) -> nn.Module:
    """Return the network of a guide that distortions have taught, from a file if there is one."""
    network = ConvEncoder(SHAPE, digits)
    path = out / f"guide-{digits}.pt"
    if not path.exists():
        with local_seed(0):
            network = ConvEncoder(SHAPE, digits)
            bank = behind_pixels(Glow(SHAPE, digits, blocks=1, channels=1), data.x)
            vmonf = VMoNF(FlowMixture(bank), SoftmaxGuide(network))
            teach_undistorted(6 if digits == 10 else 2)(vmonf, data, False)
        out.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def fitted(vmonf: VMoNF, levels: Tensor, minutes: float, lr: float) -> dict[str, float]:
    """Fit for so many minutes of the processor; return steps and seconds a step."""
    loader = DequantizedImages(levels).loader(BATCH, 0)
    start = time.process_time()
    state = {key: value.clone() for key, value in vmonf.state_dict().items()}
    fixed = {"temperature": 1.0} if isinstance(vmonf.guide, SoftmaxGuide) else {}
    vmonf.fit(loader, steps=6, lr=0.0, seed=0, progress=False, **fixed)
    begun = time.process_time() - start
    start = time.process_time()
    vmonf.fit(loader, steps=6, lr=0.0, seed=0, progress=False, **fixed)
    each = min(begun, time.process_time() - start) / 6
    vmonf.load_state_dict(state)
    steps = max(int(60 * minutes / each), 20)
    start = time.process_time()
    vmonf.fit(
        loader,
        steps=steps,
        scheduler=one_cycle(lr, steps),
        clip_norm=1000.0,
        seed=0,
        progress=False,
        **fixed,
    )
    return {"steps": steps, "each": (time.process_time() - start) / steps}


def scores(vmonf: VMoNF, data: Data) -> Row:
    """Return bits per dimension and clusters on the first test images."""
    x, labels = data.x_test[:TESTED], data.labels_test[:TESTED]
    start = time.process_time()
    joint = vmonf.model.weights.log_mean().detach() + vmonf.component_log_prob(x, chunk_size=100)
    seconds = time.process_time() - start
    row: Row = {
        "bits/dim, test": round(metrics.bits_per_dim(joint.logsumexp(-1), 784), 3),
        "ms an image, all K": round(1e3 * seconds / TESTED, 1),
    }
    if joint.shape[-1] > 1:
        row["accuracy, guide"] = round(
            metrics.accuracy(data.labels_test, vmonf.predict(data.x_test)), 4
        )
        row["accuracy, Bayes"] = round(metrics.accuracy(labels, joint.argmax(-1)), 3)
    return row


BANKS: dict[str, tuple[Callable[[int], Flow], int, float]] = {
    "PixelFlow, shared trunk": (
        lambda k: PixelFlow(
            SHAPE, k, channels=48, depth=4, squeezes=1, shared_trunk=True, precision="bfloat16"
        ), 10, 4e-3),
    "PixelFlow, own networks": (
        lambda k: PixelFlow(SHAPE, k, channels=48, depth=4, squeezes=1, precision="bfloat16"),
        10, 4e-3),
    "PixelFlow, own, fewer": (
        lambda k: PixelFlow(SHAPE, k, channels=16, depth=3, squeezes=1, precision="bfloat16"),
        10, 4e-3),
    "PixelFlow, a single flow": (
        lambda k: PixelFlow(SHAPE, k, channels=92, depth=4, squeezes=1, precision="bfloat16"),
        1, 4e-3),
    "ImageNSF, own": (
        lambda k: ImageNSF(SHAPE, k, blocks=4, precision="bfloat16"), 10, 3e-3),
    "MAFMoG (dense, 1 block of 256)": (
        lambda k: MAFMoG(784, k, blocks=1, hidden=(256,)), 10, 2e-3),
    "ImageNSF, 2 of 4 blocks shared": (
        lambda k: ImageNSF(SHAPE, k, blocks=4, shared=2, precision="bfloat16"), 10, 3e-3),
    "ImageNSF, a single flow": (
        lambda k: ImageNSF(SHAPE, k, blocks=4, channels=112, precision="bfloat16"), 1, 3e-3),
    "Glow, own": (lambda k: Glow(SHAPE, k, blocks=4, precision="bfloat16"), 10, 3e-3),
    "MultiScaleRealNVP, own": (
        lambda k: MultiScaleRealNVP(SHAPE, k, blocks=3, precision="bfloat16"), 10, 3e-3),
}  # fmt: skip


def banks(settings: Settings, out: Path, minutes: float) -> None:
    """Compare banks after the same guide and the same time."""
    images, flat = draw_mnist(settings, flat=False), draw_mnist(settings)
    network = taught(images, 10, out)

    def measure(make: Callable[[int], Flow], components: int, lr: float) -> Row:
        data = flat if isinstance(make(1), MAFMoG) else images
        with local_seed(0):
            bank = behind_pixels(make(components), data.x)
        guide = (
            SoftmaxGuide(network, terms=[], elbo_gradient=0.0, top=1) if components > 1 else None
        )
        vmonf = VMoNF(FlowMixture(bank), guide)
        assert data.levels is not None
        network.requires_grad_(False)
        spent = fitted(vmonf, data.levels, minutes, lr)
        return {
            "K": components,
            "parameters": sum(p.numel() for p in bank.parameters()),
            "steps": int(spent["steps"]),
            "ms a step": round(1e3 * spent["each"]),
            **scores(vmonf, data),
        }

    kept("banks", {name: (lambda a=arguments: measure(*a)) for name, arguments in BANKS.items()})


def turns(settings: Settings, out: Path, minutes: float) -> None:
    """Compare ways to train guide and flows: in turn, together, and by the likelihood."""
    data = draw_mnist(settings, flat=False)
    assert data.levels is not None

    def pair(network: nn.Module, **guide: object) -> VMoNF:
        with local_seed(0):
            bank = PixelFlow(
                SHAPE, 10, channels=48, depth=4, squeezes=1, shared_trunk=True, precision="bfloat16"
            )
        return VMoNF(
            FlowMixture(behind_pixels(bank, data.x)),
            SoftmaxGuide(network, **guide),  # type: ignore[arg-type]
        )

    def measure(vmonf: VMoNF) -> Row:
        spent = fitted(vmonf, data.levels, minutes, 4e-3)
        return {"steps": int(spent["steps"]), **scores(vmonf, data)}

    def fresh() -> nn.Module:
        with local_seed(0):
            return ConvEncoder(SHAPE, 10)

    def distorted() -> list[nn.Module]:
        return [Consistency(AffineImages(SHAPE, shift=0.2)), Balance(weight=3.0)]

    kept(
        "turns",
        {
            "in turn: taught, then its clusters are fitted": lambda: measure(
                pair(taught(data, 10, out), terms=[], elbo_gradient=0.0, top=1)
            ),
            "together, the terms alone move the guide": lambda: measure(
                pair(fresh(), terms=distorted(), elbo_gradient=0.0, top=1)
            ),
            "together, and a thousandth of the ELBO's gradient": lambda: measure(
                pair(fresh(), terms=distorted(), elbo_gradient=1e-3)
            ),
            "together, the whole ELBO": lambda: measure(
                pair(fresh(), terms=distorted(), elbo_gradient=1.0)
            ),
            "in turn, then the whole ELBO moves both": lambda: measure(
                pair(taught(data, 10, out), terms=distorted(), elbo_gradient=1.0)
            ),
        },
    )


def anomaly(settings: Settings, out: Path, minutes: float) -> None:
    """Score digits that a mixture of digits 0 to 4 has never seen."""
    data, every = draw_mnist(settings, digits=5, flat=False), draw_mnist(settings, flat=False)
    assert data.levels is not None
    seen, unseen = every.x_test[every.labels_test < 5][:TESTED], every.x_test[every.labels_test > 4]
    unseen = unseen[:TESTED]

    def pair(components: int) -> VMoNF:
        guide = None
        if components > 1:
            guide = SoftmaxGuide(taught(data, 5, out), terms=[], elbo_gradient=0.0, top=1)
        with local_seed(0):
            bank = PixelFlow(
                SHAPE, components, channels=48, depth=4, squeezes=1, shared_trunk=True,
                precision="bfloat16",
            )  # fmt: skip
        vmonf = VMoNF(FlowMixture(behind_pixels(bank, data.x)), guide)
        fitted(vmonf, data.levels, minutes, 4e-3)
        return vmonf

    def areas(vmonf: VMoNF) -> Row:
        def area(score: Callable[[Tensor], Tensor]) -> float:
            return round(metrics.area_under_roc(score(seen), score(unseen)), 3)

        def density(x: Tensor) -> Tensor:
            return -vmonf.log_prob(x, chunk_size=100)

        def entropy(posterior: Tensor) -> Tensor:
            return -(posterior * posterior.clamp_min(1e-12).log()).sum(-1)

        row: Row = {"−log p(x)": area(density)}
        if vmonf.model.num_components > 1:
            distort = AffineImages(SHAPE, shift=0.2)

            def unsteady(x: Tensor) -> Tensor:
                with local_seed(0):
                    copies = [vmonf.predict_proba(distort.distorted(x)) for _ in range(8)]
                return entropy(torch.stack(copies).mean(0))

            row["entropy of q"] = area(lambda x: entropy(vmonf.predict_proba(x)))
            row["entropy of q under distortions"] = area(unsteady)
            scale = [f(seen).std() for f in (density, unsteady)]
            row["both, each over its spread"] = area(
                lambda x: density(x) / scale[0] + unsteady(x) / scale[1]
            )
        return row

    kept(
        "anomaly",
        {"one flow": lambda: areas(pair(1)), "a mixture of five": lambda: areas(pair(5))},
    )


def curve() -> None:
    """Draw bits per dimension of training against minutes of the processor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    ax = figure.subplots()
    for path in sorted(RESULTS.glob("images-curve-*.json")):
        rows = json.loads(path.read_text())
        minutes = [row["cpu_seconds"] / 60 for row in rows]
        bits = [row["bits_per_dim"] for row in rows]
        ax.plot(minutes, bits, marker="o", markersize=3, label=path.stem.split("curve-")[1])
    ax.set_xlabel("minutes of the processor")
    ax.set_ylabel("bits per dimension, training")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(RESULTS.parent.parent / "docs" / "images_curve.png", dpi=120)


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images")
    parser.add_argument("name", choices=("way", "banks", "turns", "anomaly", "curve"))
    parser.add_argument("--data", type=Path, default=Path("data/mnist"))
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(data=options.data)
    if options.name in ("way", "curve"):
        {"way": way, "curve": curve}[options.name]()
    else:
        run = {"banks": banks, "turns": turns, "anomaly": anomaly}[options.name]
        run(settings, options.out, options.minutes)


if __name__ == "__main__":
    main()
