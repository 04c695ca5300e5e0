"""The commands of the command line that work on tables in files."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyro_vmonf._utils.contexts import own_filters
from pyro_vmonf.interop.tables import (
    Table,
    columns_of,
    read_table,
    samples,
    scores,
    write_table,
)
from pyro_vmonf.vmonf import VMoNF

MODEL, CLUSTERS, REPORT, NOTES = "model.pt", "clusters.csv", "report.html", "fit.json"

EXIT = """\
exit status:
  0    the command did what it says
  1    the fit failed, or the disk did
  2    the arguments or the table do not fit; nothing is written
  130  interrupted by Ctrl-C"""

FIT = """\
Cluster the rows of a table, and fit their density.

The start, the densities, the number of clusters and the length of the fit are chosen by the data.
Columns without numbers are left out, and the command says so. Missing numbers are summed out; a row
without any number is left out."""

FIT_MORE = f"""\
files in DIR:
  {CLUSTERS}  for each row of the table: its cluster, the probability of the cluster, the
                log-density of the row in nats (low ones are unusual), and the probability of each
                cluster
  {REPORT}   pictures and numbers, in one page
  {MODEL}      the fitted pair: `score`, `sample` and `report` take it, VMoNF.load reads it
  {NOTES}      the arguments, the columns and what the command said, as JSON

examples:
  python -m pyro_vmonf fit wine.csv --out out/wine
  python -m pyro_vmonf fit wine.csv --out out/wine --drop id --components 3
  python -m pyro_vmonf fit cells.parquet --out out/cells --label type --minutes 5

{EXIT}"""

SCORE = """\
Find the cluster and the log-density of the rows of another table, by a pair that `fit` saved.

The columns are found by their names. The order of the rows stays."""

SCORE_MORE = f"""\
examples:
  python -m pyro_vmonf score out/wine new.csv
  python -m pyro_vmonf score out/wine new.csv --out new-clusters.csv

{EXIT}"""

SAMPLE = """\
Draw new rows from a fitted pair, with the cluster of each."""

SAMPLE_MORE = f"""\
examples:
  python -m pyro_vmonf sample out/wine --number 1000 --seed 0 --out drawn.csv
  python -m pyro_vmonf sample out/wine --number 10 --cluster 2

{EXIT}"""

PAGE = f"""\
Write {REPORT} for a fitted pair and a table: the one of the fit, or another one."""

PAGE_MORE = f"""\
examples:
  python -m pyro_vmonf report out/wine wine.csv
  python -m pyro_vmonf report out/wine new.csv --out new.html

{EXIT}"""


def add_commands(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the commands to the sub-parsers of a parser."""

    def command(name: str, summary: str, text: str, more: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=more,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return added

    def table_of(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("table", type=Path, metavar="TABLE", help="CSV or Parquet file")
        parser.add_argument("--separator", metavar="CHARACTER", help="between columns of a CSV")

    def fitted_of(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "fitted", type=Path, metavar="FIT", help="folder or file of a saved pair"
        )

    fit = command("fit", "cluster a table and fit its density", FIT, FIT_MORE)
    table_of(fit)
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    fit.add_argument("--columns", type=_names, default=[], help="columns to use, such as a,b,c")
    fit.add_argument("--drop", type=_names, default=[], help="columns to leave out, such as id")
    fit.add_argument("--label", metavar="COLUMN", help="column of known classes, empty if unknown")
    fit.add_argument("--components", type=positive, metavar="K", help="number of clusters")
    fit.add_argument("--minutes", type=_minutes, default=1.0, help="time for the fit (1)")
    fit.add_argument("--seed", type=seed, default=0, help="of every choice and draw (0)")
    fit.add_argument("--quiet", action="store_true", help="print nothing but errors")
    score = command("score", "clusters and log-densities of other rows", SCORE, SCORE_MORE)
    fitted_of(score)
    table_of(score)
    score.add_argument("--out", type=Path, metavar="FILE", help="CSV or Parquet; default: print")
    sample = command("sample", "draw new rows", SAMPLE, SAMPLE_MORE)
    fitted_of(sample)
    sample.add_argument("--number", "-n", type=positive, default=1000, help="rows to draw (1000)")
    sample.add_argument("--cluster", type=int, metavar="C", help="draw from this cluster alone")
    sample.add_argument("--seed", type=seed, help="of the draws")
    sample.add_argument("--out", type=Path, metavar="FILE", help="CSV or Parquet; default: print")
    report = command("report", f"write {REPORT}", PAGE, PAGE_MORE)
    fitted_of(report)
    table_of(report)
    report.add_argument("--out", type=Path, metavar="FILE", help=f"default: {REPORT} beside FIT")


def _names(text: str) -> list[str]:
    """Read names between commas; one with a comma stands between quotes."""
    [names] = csv.reader([text], skipinitialspace=True)
    return [name.strip() for name in names if name.strip()]


def seed(text: str) -> int:
    """Read a seed, which torch holds in 64 bits."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed; expected a number from 0 to 2^63-1")
    return value


def _minutes(text: str) -> float:
    """Read a time above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return value


def run_command(options: argparse.Namespace) -> None:
    """Run one of the commands.

    Raises:
        OSError: if a file cannot be read or written.
        ValueError: if arguments, table and pair do not fit.
    """
    RUN[options.command](options)


def _fit(options: argparse.Namespace) -> None:
    out: Path = options.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; pass a folder to --out")
    table = read_table(
        options.table,
        columns=options.columns,
        drop=options.drop,
        label=options.label,
        separator=options.separator,
    )
    say = _silent if options.quiet else _say
    rows, columns = table.frame.shape
    say(f"{options.table}: {rows:,} rows of {columns} columns")
    for line in table.said:
        say(f"note: {line}")
    say(f"fitting, {options.minutes:g} minutes at most")
    shown = not options.quiet
    with folder(out), noted() as notes:
        vmonf = VMoNF.from_data(
            table.frame,
            table.y,
            components=options.components,
            seed=options.seed,
            minutes=options.minutes,
            progress=shown,
        )
        for line in notes:
            say(f"note: {line}")
        vmonf.save(out / MODEL)
        write_table(scores(vmonf, table, shown), out / CLUSTERS)
        _write_page(vmonf, table, options.table.name, out / REPORT, notes, shown)
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    kept = {
        "arguments": arguments,
        "columns": list(table.frame.columns),
        "labels": table.names,
        "notes": [*table.said, *notes],
        "choice": {} if vmonf.history is None else vmonf.history.choice,
    }
    (out / NOTES).write_text(json.dumps(kept, indent=2) + "\n")
    say(str(vmonf.report()))
    say(f"{CLUSTERS}, {REPORT}, {MODEL} and {NOTES} are in {out}")


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """Make a folder for results before they take time, and remove it if there are none.

    Raises:
        OSError: if files cannot be written there.
    """
    new = [part for part in (path, *path.parents) if not part.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be made: {error.strerror}; pass another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise OSError(f"{path} cannot be written to; pass another --out")
    try:
        yield
    finally:
        for part in new:
            with suppress(OSError):  # it holds results
                part.rmdir()


def _score(options: argparse.Namespace) -> None:
    vmonf = _load(options.fitted)
    with noted() as notes:
        table = columns_of(vmonf, options.table, options.separator)
        found = scores(vmonf, table)
    of_columns = ("rows", "named", "digits")  # and not of what a fit would do with them
    for line in [*(s for s in table.said if any(word in s for word in of_columns)), *notes]:
        _say(f"note: {line}")
    _give(found, options.out)


def _sample(options: argparse.Namespace) -> None:
    vmonf = _load(options.fitted)
    _give(samples(vmonf, options.number, options.seed, options.cluster), options.out)


def _report(options: argparse.Namespace) -> None:
    vmonf = _load(options.fitted)
    folder = options.fitted if options.fitted.is_dir() else options.fitted.parent
    with noted() as notes:
        table = columns_of(vmonf, options.table, options.separator)
        said = folder / NOTES
        if said.exists():
            table.names = json.loads(said.read_text()).get("labels", [])
        path = options.out or folder / REPORT
        _write_page(vmonf, table, options.table.name, path, notes)
    _say(f"wrote {path}")


RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": _fit,
    "score": _score,
    "sample": _sample,
    "report": _report,
}


def _write_page(
    vmonf: VMoNF,
    table: Table,
    title: str,
    path: Path,
    notes: Sequence[str],
    progress: bool = True,
) -> None:
    from pyro_vmonf.interop.page import page  # imports matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(vmonf, table, title, notes, progress), encoding="utf-8")


def _load(path: Path) -> VMoNF:
    """Load a pair from its file, or from the folder of a fit."""
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"there is no {file}; pass the folder that `fit --out` wrote, or a file of vmonf.save"
        )
    vmonf = VMoNF.load(file)
    if len(vmonf.model.event_shape) != 1 or vmonf.model.context_features:
        raise ValueError(f"{file} holds no mixture over the rows of a table")
    return vmonf


def _give(frame: Any, path: Path | None) -> None:
    """Write a frame to a file, or print it."""
    if path is None:
        sys.stdout.write(frame.to_csv(index=False))
    else:
        write_table(frame, path)
        _say(f"wrote {len(frame):,} rows to {path}")


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect the warnings of a block as sentences, each once."""
    notes: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in notes:
            notes.append(str(message))

    with own_filters():
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.showwarning = show
        yield notes


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _silent(line: str) -> None:
    pass
