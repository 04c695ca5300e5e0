"""The command line: tables in files, and the experiments of paper and thesis."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch

from pyro_vmonf._utils.contexts import torch_threads
from pyro_vmonf._version import __version__
from pyro_vmonf.experiments.data import EXPERIMENTS
from pyro_vmonf.experiments.draws import Settings
from pyro_vmonf.experiments.run import Result, run, write
from pyro_vmonf.interop.commands import EXIT, RUN, add_commands, folder, run_command

TEXT = """\
Variational mixtures of normalizing flows: clusters whose shapes bend, with their density."""
MORE = """\
begin with:
  python -m pyro_vmonf fit table.csv --out out/table
  python -m pyro_vmonf fit --help"""
RUN_TEXT = """\
Run an experiment of paper or thesis: print its scores, and write metrics, figures and the saved
pair of each seed to OUT/NAME/seed-SEED."""
RUN_MORE = """\
examples:
  python -m pyro_vmonf run pinwheel
  python -m pyro_vmonf run circles --recipe thesis --seeds 0,1,2 --out out"""
COLUMNS = (
    ("accuracy", "accuracy"),
    ("accuracy_test", "test"),
    ("accuracy_exact", "exact"),
    ("nmi", "NMI"),
    ("ari", "ARI"),
    ("elbo", "ELBO"),
    ("log_prob_test", "log p test"),
    ("kl_to_truth", "KL"),
    ("bits_per_dim", "bits/dim"),
    ("seconds", "seconds"),
)


def seeds(text: str) -> list[int]:
    """Read a list of seeds such as ``0,1,2``."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0 or max(numbers) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 0,1,2")
    return numbers


def positive(text: str) -> int:
    """Read a number of at least one."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command that runs an experiment."""
    command = commands.add_parser(
        "run",
        help="run one of these experiments",
        description=RUN_TEXT,
        epilog=f"{RUN_MORE}\n\n{EXIT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "name",
        choices=sorted(EXPERIMENTS),
        metavar="NAME",
        help="one of the names that `python -m pyro_vmonf list` prints",
    )
    command.add_argument(
        "--recipe",
        choices=("thesis", "best"),
        default="best",
        help="settings of the thesis, or those that find the clusters best (default)",
    )
    command.add_argument(
        "--seeds", type=seeds, default=[0], help="a run for each, such as 0,1,2 (default: 0)"
    )
    command.add_argument("--per-wing", type=positive, help="points of each wing or circle")
    command.add_argument("--labels", type=positive, help="labelled rows (-semi experiments)")
    command.add_argument(
        "--data", type=Path, default=Path("data/mnist"), help="MNIST's folder (default: data/mnist)"
    )
    command.add_argument(
        "--out", type=Path, default=Path("out"), help="folder of the results (default: out)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    command.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of images"
    )
    command.add_argument("--quick", action="store_true", help="a short run")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(
        prog="python -m pyro_vmonf",
        description=TEXT,
        epilog=f"{MORE}\n\n{EXIT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"pyro_vmonf {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    add_commands(commands, positive)
    commands.add_parser("list", help="list the experiments of paper and thesis")
    add_run(commands)
    return root


def row(label: str, scores: dict[str, float]) -> str:
    """Return one line of the table."""
    shown = [(key, title) for key, title in COLUMNS if key in scores]
    return f"{label:>6}  " + "  ".join(f"{scores[k]:{max(len(t), 8)}.4f}" for k, t in shown)


def header(scores: dict[str, float]) -> str:
    """Return the head of the table."""
    shown = [title for key, title in COLUMNS if key in scores]
    return f"{'seed':>6}  " + "  ".join(f"{title:>{max(len(title), 8)}}" for title in shown)


def run_seeds(options: argparse.Namespace) -> list[Result]:
    """Run an experiment for each seed, and print a row of scores."""
    from pyro_vmonf.plots.animation import Recorder

    experiment = EXPERIMENTS[options.name]
    if options.recipe not in experiment.recipes:
        raise ValueError(
            f"{options.name} has no recipe {options.recipe!r}; choose one of "
            f"{', '.join(experiment.recipes)}"
        )
    recipe = experiment.recipes[options.recipe]
    if options.labels and "semi" not in options.name:
        raise ValueError(f"{options.name} has no labels; leave out --labels, or run a -semi one")
    print(f"{options.name}, recipe {options.recipe}: {experiment.title}")
    results: list[Result] = []
    for seed in options.seeds:
        settings = Settings(seed, options.per_wing, options.labels, options.data, options.quick)
        data = experiment.draw(settings)
        recorder = None if data.image_shape else Recorder(data.x, every=10)
        callbacks = () if recorder is None else (recorder,)
        place = options.out / options.name / f"seed-{seed}"
        checkpoint = place / "checkpoint.pt" if recipe.fresh_noise else None
        if checkpoint is not None and not options.resume:
            for path in (checkpoint, place / "curve.json"):
                path.unlink(missing_ok=True)
        threads = torch.get_num_threads() if data.image_shape else 1
        with folder(place), torch_threads(threads):
            result = run(
                data,
                recipe,
                settings,
                device=options.device,
                callbacks=callbacks,
                checkpoint=checkpoint,
            )
            write(result, place, recorder)
        if not results:
            print(header(result.scores))
        print(row(str(seed), result.scores), flush=True)
        if result.data.image_shape is not None:
            print((place / "contingency.txt").read_text(), end="")
        results.append(result)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = parser().parse_args(arguments)
    if options.command is None:
        parser().print_help(sys.stderr)
        return 2
    if options.command == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:14} {experiment.title}")
        return 0
    if options.command in RUN:
        return _status(lambda: run_command(options))
    results: list[Result] = []
    status = _status(lambda: results.extend(run_seeds(options)))
    if status:
        return status
    if len(results) > 1:
        keys = results[0].scores.keys()
        print(row("mean", {k: mean(r.scores[k] for r in results) for k in keys}))
        print(row("min", {k: min(r.scores[k] for r in results) for k in keys}))
        print(row("max", {k: max(r.scores[k] for r in results) for k in keys}))
    print(f"figures and metrics.json are in {options.out / options.name}")
    return 0


def _status(command: Callable[[], object]) -> int:
    """Run a command and return its exit status."""
    try:
        command()
    except KeyboardInterrupt:
        print("interrupted before all files were written", file=sys.stderr)
        return 130
    except (FileNotFoundError, ImportError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
