"""The command line, on quick runs, and the experiments behind it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pyro_vmonf import Flow, Glow, MAFMoG
from pyro_vmonf.__main__ import main
from pyro_vmonf.experiments import EXPERIMENTS, Experiment, recipes
from pyro_vmonf.experiments.draws import Data, Settings, draw_mnist
from pyro_vmonf.experiments.images import recipe as image_recipe
from pyro_vmonf.experiments.recipes import Recipe
from pyro_vmonf.experiments.run import Curve, run
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.training.fit import Progress

SAMPLE = Path(__file__).parents[1] / "data" / "mnist"
SCORES = {
    "accuracy",
    "accuracy_exact",
    "nmi",
    "ari",
    "accuracy_test",
    "accuracy_exact_test",
    "nmi_test",
    "ari_test",
    "elbo",
    "log_prob",
    "log_prob_test",
    "seconds",
    "seconds_clustering",
}


def test_list_names_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    names = (
        "pinwheel pinwheel-easy pinwheel-3 circles circles-semi mnist-04 mnist mnist-semi "
        "mnist-glow mnist-pixels mnist-maf-mog"
    )
    for name in names.split():
        assert name in printed


def test_run_writes_metrics_figures_and_animation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    arguments = ["run", "pinwheel-3", "--recipe", "thesis", "--seeds", "0,1", "--per-wing", "40"]
    assert main([*arguments, "--quick", "--out", str(tmp_path)]) == 0
    for seed in (0, 1):
        folder = tmp_path / "pinwheel-3" / f"seed-{seed}"
        scores = json.loads((folder / "metrics.json").read_text())
        assert scores.keys() == SCORES | {"kl_to_truth", "kl_to_truth_se"}
        assert scores["elbo"] <= scores["log_prob"]
        for name in ("data", "clusters", "samples", "density", "history", "terms"):
            assert (folder / f"{name}.png").stat().st_size > 1000
        assert (folder / "training.gif").read_bytes()[:4] == b"GIF8"
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:7]] == [
        "seed",
        "0",
        "1",
        "mean",
        "min",
        "max",
    ]


@pytest.mark.parametrize("recipe", ["thesis", "best"])
def test_images_come_with_a_table_a_grid_and_bits(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    small = Experiment("small images", small_digits, EXPERIMENTS["mnist-04"].recipes)
    monkeypatch.setitem(EXPERIMENTS, "mnist-04", small)
    arguments = ["run", "mnist-04", "--recipe", recipe, "--quick", "--data", str(SAMPLE)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "mnist-04" / "seed-0"
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores.keys() == SCORES | {"bits_per_dim"}
    assert 0 < scores["bits_per_dim"] < 100
    assert (folder / "samples.png").exists()
    assert (folder / "contingency.txt").read_text().strip() in capsys.readouterr().out


def small_digits(settings: Settings) -> Data:
    """A quarter of the sample of MNIST at 8×8, so that a MAF over it trains in no time."""
    whole = EXPERIMENTS["mnist-semi"].draw(settings)

    def shrink(x: torch.Tensor) -> torch.Tensor:
        images = x[::4].unflatten(1, (1, 28, 28))
        return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)

    x, x_test = shrink(whole.x), shrink(whole.x_test)
    return Data(
        x,
        whole.labels[::4],
        x_test,
        whole.labels_test[::4],
        10,
        image_shape=(8, 8),
        levels=(256 * x).clamp(0, 255).byte(),
    )


def small_images(settings: Settings) -> Data:
    """The same as images of one channel."""
    flat = small_digits(settings)
    assert flat.levels is not None
    x, x_test, levels = (v.unflatten(1, (1, 8, 8)) for v in (flat.x, flat.x_test, flat.levels))
    return replace(flat, x=x, x_test=x_test, levels=levels)


@pytest.mark.parametrize("name", ["mnist-glow", "mnist-pixels", "mnist-maf-mog"])
def test_recipes_of_images_build_what_they_say(name: str) -> None:
    data = (small_digits if name == "mnist-maf-mog" else small_images)(Settings(data=SAMPLE))
    vmonf = EXPERIMENTS[name].recipes["best"].build(data)
    assert vmonf.model.event_shape == data.x.shape[1:]
    assert vmonf.component_log_prob(data.x[:2]).isfinite().all()
    assert vmonf.predict(data.x[:2]).shape == (2,)


@pytest.mark.parametrize("name", ["mnist-glow", "mnist-maf-mog"])
def test_an_interrupted_run_of_images_is_resumed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bank(event_shape: tuple[int, ...], components: int) -> Flow:
        if len(event_shape) == 3:
            return Glow(event_shape, components, blocks=1, channels=4)
        return MAFMoG(event_shape[0], components, blocks=1, hidden=(4,), mixtures=2)

    draw = small_digits if name == "mnist-maf-mog" else small_images
    short = image_recipe(bank, steps=6, quick=6, batch_size=25, lr=1e-3)
    short = replace(short, teach=None)
    monkeypatch.setitem(EXPERIMENTS, name, Experiment("small images", draw, {"best": short}))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    arguments = ["run", name, "--quick", "--data", str(SAMPLE)]

    def scores(folder: Path, *more: str) -> dict[str, float]:
        assert main([*arguments, "--out", str(folder), *more]) == 0
        return json.loads((folder / name / "seed-0" / "metrics.json").read_text())

    whole = scores(tmp_path / "whole")
    assert whole.keys() == SCORES | {"bits_per_dim"}
    curve = json.loads((tmp_path / "whole" / name / "seed-0" / "curve.json").read_text())
    assert [row["step"] for row in curve] == [4, 6]

    record = Curve.__call__

    def interrupted(self: Curve, progress: Progress) -> None:
        record(self, progress)
        if progress.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Curve, "__call__", interrupted)
    assert main([*arguments, "--out", str(tmp_path / "half")]) == 130
    monkeypatch.setattr(Curve, "__call__", record)
    resumed = scores(tmp_path / "half", "--resume")
    assert resumed["log_prob_test"] == whole["log_prob_test"]
    assert resumed["accuracy"] == whole["accuracy"]
    capsys.readouterr()


def test_a_recipe_that_an_experiment_lacks_gets_a_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "mnist-glow", "--recipe", "thesis"]) == 2
    assert "mnist-glow has no recipe 'thesis'; choose one of best" in capsys.readouterr().err


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make quick runs quicker still."""
    monkeypatch.setattr(recipes, "warm_start_", partial(warm_start_, steps=5))
    for name, experiment in EXPERIMENTS.items():
        short = {
            key: replace(r, quick={**r.quick, "steps" if "steps" in r.quick else "epochs": 2})
            for key, r in experiment.recipes.items()
        }
        monkeypatch.setitem(EXPERIMENTS, name, Experiment(experiment.title, experiment.draw, short))


@pytest.mark.parametrize("recipe", ["thesis", "best"])
@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if not n.startswith("mnist")])
def test_every_toy_experiment_runs(name: str, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)
    settings = Settings(seed=1, per_wing=32, quick=True)
    experiment = EXPERIMENTS[name]
    data = experiment.draw(settings)
    result = run(data, experiment.recipes[recipe], settings, progress=False)
    assert result.scores.keys() >= SCORES
    assert all(value == value for value in result.scores.values())


@pytest.mark.parametrize(
    ("name", "seed", "changed", "wanted"),
    [
        ("pinwheel", 0, {}, 0.97),
        ("pinwheel", 1, {"steps": 200, "lr": 0.01}, 0.97),
        ("circles", 0, {}, 0.99),
        ("circles-semi", 1, {"steps": 80, "lr": 0.01}, 0.99),
    ],
)
def test_a_part_of_a_recipe_finds_the_clusters(
    name: str, seed: int, changed: dict[str, Any], wanted: float
) -> None:
    """The quick run as it is, on one seed; on others fewer and larger steps."""
    settings = Settings(seed=seed, quick=True)
    experiment = EXPERIMENTS[name]
    data, recipe = experiment.draw(settings), experiment.recipes["best"]
    short = replace(recipe, quick={**recipe.quick, **changed})
    result = run(data, short, settings, progress=False)
    assert result.scores["accuracy"] >= wanted
    assert result.scores["accuracy_test"] >= wanted - 0.01


def test_the_settings_of_the_thesis() -> None:
    """Chapter 5, to the letter."""
    cases = {
        "pinwheel": (2560, 5, 8, (8,), (3,), 400, 512, 1e-3),
        "circles": (1024, 2, 10, (8,), (16, 16), 500, 128, 1e-3),
        "circles-semi": (1056, 2, 10, (8,), (16, 16), 500, 128, 1e-3),
    }
    for name, (rows, components, blocks, hidden, guide, epochs, batch, lr) in cases.items():
        experiment = EXPERIMENTS[name]
        data, recipe = experiment.draw(Settings()), experiment.recipes["thesis"]
        vmonf = recipe.build(data)
        assert len(data.x) == rows
        assert vmonf.model.num_components == components
        bank, network = vmonf.model.bank, vmonf.guide.network
        assert (bank.blocks, bank.hidden, network.hidden) == (blocks, hidden, guide)
        options = recipe.options
        assert (options["epochs"], options["batch_size"], options["lr"]) == (epochs, batch, lr)
    semi = EXPERIMENTS["circles-semi"].draw(Settings())
    assert semi.y is not None
    assert semi.y[semi.y >= 0].bincount().tolist() == [16, 16]
    eleven = EXPERIMENTS["circles-semi"].draw(Settings(labels=11))
    assert eleven.y is not None
    assert eleven.y[eleven.y >= 0].bincount().tolist() == [6, 5]


def test_mnist_holds_images_out_and_labels_as_many_of_each_digit() -> None:
    settings = Settings(data=SAMPLE, labels=20)
    data = EXPERIMENTS["mnist-semi"].draw(settings)
    assert data.y is not None
    known = data.y >= 0
    assert data.labels[known].bincount().tolist() == [2] * 10
    assert torch.equal(data.y[known], data.labels[known])
    assert data.image_shape == (28, 28)
    assert data.x.shape == (400, 784)


def test_seeds_draw_data_and_initialisation() -> None:
    experiment = EXPERIMENTS["pinwheel"]
    recipe = Recipe(experiment.recipes["thesis"].build, {"epochs": 1})
    settings = [Settings(seed, per_wing=20, quick=True) for seed in (0, 0, 1)]
    one, again, other = (
        run(experiment.draw(each), recipe, each, progress=False) for each in settings
    )
    assert torch.equal(one.data.x, again.data.x)
    assert one.scores["elbo"] == again.scores["elbo"]
    assert not torch.equal(one.data.x, other.data.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"], "invalid choice: 'nope'"),
        (["run", "circles", "--seeds", "a"], "no list of seeds"),
        (["run", "circles", "--per-wing", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_get_a_reason(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_data_gets_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "mnist-04", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "download_mnist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_that_the_digits_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="--labels is 9; expected as many for each of 10 digits"):
        draw_mnist(Settings(labels=9, data=SAMPLE), labelled=100)
