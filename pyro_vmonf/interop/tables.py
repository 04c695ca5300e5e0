"""Tables in files: their rows as numbers, and what a fitted pair says of each row."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.frames import EXACT
from pyro_vmonf._utils.labels import MARKS, is_mark
from pyro_vmonf._utils.progress import parts
from pyro_vmonf.interop.delimited import countings, read_delimited, there
from pyro_vmonf.vmonf import VMoNF

PARQUET = (".parquet", ".pq")
LIKE_NONE = ("na", "n/a", "nan", "none", "null", "unknown", "?", "-1")  # that may mean no class


@dataclass
class Table:
    """The rows of a file that a fit uses.

    Attributes:
        frame: the numeric columns, NaN for a missing number; rows without any number left out.
        whole: the number of rows in the file.
        rows: the position in the file of each row of the frame.
        y: labels ``(N,)`` with −1 for unlabelled, or ``None``.
        names: the names of the labels.
        said: what was left out, and why.
    """

    frame: Any
    whole: int
    rows: np.ndarray[Any, Any]
    y: Tensor | None = None
    names: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def read_table(
    path: str | os.PathLike[str],
    *,
    columns: list[str] | tuple[str, ...] = (),
    drop: Sequence[str] = (),
    label: str | None = None,
    separator: str | None = None,
) -> Table:
    """Read a CSV or Parquet file as rows of numbers.

    Arguments:
        path: the file; ``.parquet`` and ``.pq`` are Parquet, ``.tsv`` has tabs, the others commas.
        columns: the columns to use; by default all that hold numbers.
        drop: columns to leave out.
        label: column of the labels, empty where a row has none.
        separator: between the columns of a CSV.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if pandas, or pyarrow for Parquet, is missing.
        ValueError: if columns are missing or hold no numbers, or no row has one.
    """
    whole, twice = _read(Path(path), separator, label)
    names = list(columns)  # of the fit
    columns, drop = there(columns, whole), there(drop, whole)
    [label] = there([label], whole)
    if not len(whole):
        raise ValueError(f"{path} has no row below its header")
    _check_roles(columns, drop, label)
    asked = [*columns, *drop, *([label] if label else [])]
    missing = [name for name in asked if name not in whole.columns]
    if missing:
        every = ", ".join(map(str, whole.columns))
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {every}")
    numbers = [c for c in whole.columns if whole[c].dtype.kind in "iufb"]
    chosen = [c for c in (columns or numbers) if c not in drop and c != label]
    text = [c for c in columns if c not in numbers]
    if text:
        raise ValueError(_of_text(whole, text, path))
    if not chosen:
        raise ValueError(f"{path} has no column of numbers to fit; its columns are {_kinds(whole)}")
    text = [c for c in whole.columns if not (columns or c in numbers or c in drop or c == label)]
    said = _notes(whole, twice, chosen, text, Path(path).suffix.lower() not in PARQUET)
    frame = whole[chosen].astype(np.float64)
    frame.columns = names or [str(c) for c in chosen]
    values = frame.to_numpy()
    gaps = np.isnan(values)
    kept = ~gaps.all(1) & ~np.isinf(values).any(1)
    if not kept.any():
        raise ValueError(f"no row of {path} has a finite number in {', '.join(map(str, chosen))}")
    if not kept.all():
        what = f"{int((~kept).sum())} of {len(frame)} rows have no number or an infinite one"
        said.append(f"{what}, and are left out")
    if gaps[kept].any():
        count = int(gaps[kept].any(1).sum())
        said.append(f"{count} of {len(frame)} rows lack a number, and the fit sums it out")
    said += [_counts(name) for name in frame.columns if _is_counter(frame[name].to_numpy())]
    rows = np.flatnonzero(kept)
    table = Table(frame[kept].reset_index(drop=True), len(whole), rows, said=said)
    if label is not None:
        table.y, table.names = _labels(whole[label][kept])
        table.said += [
            f"column {label!r} has a class named {name}; leave cells without a class empty"
            for name in table.names
            if name.lower() in LIKE_NONE
        ]
    return table


def _of_text(whole: Any, text: list[Any], path: Any) -> str:
    """Return the words about columns with text, and the first such cell."""
    import pandas

    cells = whole[text[0]]
    odd = pandas.to_numeric(cells, errors="coerce").isna() & cells.notna()
    row = int(odd.to_numpy().argmax())
    return (
        f"columns {', '.join(text)} of {path} are not all numbers: {text[0]} has "
        f"{cells.iloc[row]!r} in row {row}. Mend such cells, fit without the columns, or write "
        "their categories as columns of 0 and 1"
    )


def _check_roles(columns: Sequence[Any], drop: Sequence[Any], label: str | None) -> None:
    """Refuse a column that has two roles, or one role twice.

    Raises:
        ValueError: if there is one.
    """
    if label in columns:
        raise ValueError(f"column {label} is the label; leave it out of --columns")
    if both := ", ".join(name for name in columns if name in drop):
        raise ValueError(f"{both} is in --columns and in --drop; name each column in one of them")
    if again := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"--columns names {', '.join(again)} twice; name each column once")


def _notes(whole: Any, twice: list[str], chosen: list[Any], text: list[Any], header: bool) -> Any:
    """Return what is to be said of the columns of a file: those chosen, and those left out."""
    said = [
        f"several columns are named {name}; the later ones are called {name}.1 and so on"
        for name in twice
    ]
    if header and _are_numbers(chosen):
        said.append(
            f"the first line, {', '.join(map(str, whole.columns))}, is taken as the names of the "
            "columns; if it is a row, add a line with names before it"
        )
    if text:
        said.append(f"columns without numbers are left out: {', '.join(map(str, text))}")
        said += filter(None, (_spoilt(name, whole[name]) for name in text))
    said += [
        f"column {name!r} has whole numbers beyond 2^53, of which the last digits are lost"
        for name in chosen
        if _loses_digits(whole[name])
    ]
    return said


def _loses_digits(column: Any) -> bool:
    """Return whether float64 cannot hold a column of whole numbers; gaps have made them floats."""
    kind = column.dtype.kind
    there = column.dropna()
    is_whole = kind in "iu" or (kind == "f" and len(there) < len(column) and (there % 1 == 0).all())
    return bool(is_whole and ((there.abs() > EXACT) & (there.abs() < 2.0**64)).any())


def _labels(column: Any) -> tuple[Tensor, list[str]]:
    """Return the numbers of the classes ``(N,)``, −1 for rows without one, and their names.

    Raises:
        ValueError: if the column holds measurements.
    """
    import pandas

    known = column.astype("string").str.strip()
    labelled = known[~known.isin((*MARKS, ""))].dropna()
    classes = labelled.unique().astype(object)
    values = np.asarray(pandas.to_numeric(classes, errors="coerce"), dtype=float)
    broken = np.isfinite(values) & (values != np.floor(values))
    if 2 * len(classes) > len(labelled) and broken.any():
        raise ValueError(
            f"column {column.name!r} has {len(classes)} different values in {len(labelled)} rows, "
            f"such as {classes[broken][0]}; pass a column of classes to --label"
        )
    if is_mark(np.asarray(classes) if np.isnan(values).any() else values, "auto"):
        known = known.where(~known.isin(MARKS))
    names = sorted((name for name in known.dropna().unique().tolist() if name), key=_in_order)
    numbers = {name: i for i, name in enumerate(names)}
    return torch.tensor([numbers.get(name, -1) for name in known.fillna("").tolist()]), names


def _in_order(name: str) -> tuple[bool, float, str]:
    """Return the place of a class among others: numbers by size, then texts."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (False, number, name) if math.isfinite(number) else (True, 0.0, name)


def _read(path: Path, separator: str | None, label: str | None) -> tuple[Any, list[str]]:
    """Return the whole file as a frame of pandas, and the names that several columns have."""
    import pandas

    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; pass a CSV or Parquet file")
    if path.suffix.lower() in PARQUET:
        try:
            frame = pandas.read_parquet(path)
            return frame.set_axis([str(name) for name in frame.columns], axis=1), []
        except ImportError as error:
            raise ImportError(
                f"{path} is Parquet, which pandas reads with pyarrow: pip install pyarrow, or "
                "convert the table to CSV"
            ) from error
        except Exception as error:  # pyarrow has errors of many kinds for it
            raise ValueError(f"{path} is no table in Parquet: {str(error).strip()}") from error
    return read_delimited(path, separator, label)


def _are_numbers(names: Any) -> bool:
    """Return whether all names of columns are numbers, and not those of their positions."""
    # pandas writes .1 behind a name that comes again.
    numbers = all(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?(\.\d+)?", str(n), re.I) for n in names)
    positions = [list(map(str, found)) for found in countings(len(names))]
    return numbers and list(map(str, names)) not in positions


def _kinds(frame: Any) -> str:
    return ", ".join(f"{c} ({frame[c].dtype})" for c in frame.columns)


def _is_counter(values: np.ndarray[Any, Any]) -> bool:
    """Return whether numbers count the rows: each is one more than the last."""
    return len(values) > 2 and bool((np.diff(values) == 1).all())


def _counts(name: str) -> str:
    drop = f"--drop {shlex.quote(name)}"
    return f"column {name!r} counts the rows, and shapes the clusters; {drop} leaves it out"


def _spoilt(name: str, column: Any) -> str:
    """Return what keeps a column from numbers, if most of its cells hold one; empty if not."""
    import pandas

    text = column.dropna().astype(str).str.strip()
    grouped = text.str.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
    if grouped.any() and (grouped | ~text.str.contains(",")).all():
        said = f"column {name!r} has numbers with commas, such as {text[grouped].iloc[0]}"
        return f"{said}; write them without, and with a point before decimals"
    if text.str.fullmatch(r"[-+]?\d*,\d+").any():
        said = f"column {name!r} has decimal commas, such as {text.iloc[0]}"
        return f"{said}; write the numbers with a decimal point"
    bad = text[pandas.to_numeric(text, errors="coerce").isna()]
    if not 0 < 2 * len(bad) < len(text):
        return ""
    said = f"column {name!r} has {bad.iloc[0]!r} in row {bad.index[0]}, beside numbers"
    return f"{said}; empty such cells ({len(bad)}), and the fit sums them out"


def columns_of(vmonf: VMoNF, path: str | os.PathLike[str], separator: str | None = None) -> Table:
    """Read the columns of a file that a pair was fitted on.

    Raises:
        ValueError: if some are missing, or their number is not that of the fit.
    """
    names = vmonf.model.feature_names
    table = read_table(path, columns=[str(name) for name in names or ()], separator=separator)
    width = vmonf.model.event_shape[0]
    if table.frame.shape[1] != width:
        raise ValueError(
            f"{path} has {table.frame.shape[1]} columns of numbers and the pair was fitted on "
            f"{width}, whose names it does not know"
        )
    if names is None:
        table.frame = table.frame.to_numpy()
    return table


def scores(vmonf: VMoNF, table: Table, progress: bool = True) -> Any:
    """Return a frame with one line for each row of the file.

    Its columns are ``row``, the position in the file from 0; ``cluster``; ``probability`` of the
    cluster under the guide; ``log_density`` in nats; and ``p_0``, ``p_1`` and so on. Rows that were
    left out have empty cells. A bar shows in a terminal, unless ``progress`` is off.
    """
    import pandas

    with parts(["probabilities", "densities", "clusters"], "score", progress) as done:
        q = vmonf.predict_proba(table.frame)
        done()
        log_prob = vmonf.log_prob(table.frame)
        done()
        clusters = vmonf.predict(table.frame)
        done()
    found = pandas.DataFrame(q.cpu().numpy(), columns=[f"p_{c}" for c in range(q.shape[1])])
    found.insert(0, "log_density", log_prob.cpu().numpy())
    found.insert(0, "probability", q.amax(-1).cpu().numpy())
    found.insert(0, "cluster", pandas.array(clusters.tolist(), dtype="Int64"))
    found.index = pandas.Index(table.rows)
    found = found.reindex(range(table.whole))
    return found.rename_axis("row").reset_index()


def samples(vmonf: VMoNF, number: int, seed: int | None = None, cluster: int | None = None) -> Any:
    """Return a frame of points that the mixture draws, with the column ``cluster`` at its end.

    It is ``cluster_of_pair`` where the rows have a column ``cluster`` themselves, and so on.
    """
    import pandas

    x, c = vmonf.sample(number, seed=seed, component=cluster)
    width = x.shape[1]
    names = vmonf.model.feature_names or [f"x_{i}" for i in range(width)]
    frame = pandas.DataFrame(x.cpu().numpy(), columns=list(names))
    name = "cluster"
    while name in frame:
        name += "_of_pair"
    frame[name] = c.tolist()
    return frame


def write_table(frame: Any, path: str | os.PathLike[str]) -> None:
    """Write a frame as Parquet where the name of the file says so, and as CSV otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in PARQUET:
        try:
            frame.to_parquet(path, index=False)
        except ImportError as error:
            raise ImportError(
                "Parquet needs pyarrow: pip install pyarrow, or name a .csv"
            ) from error
    else:
        frame.to_csv(path, index=False)
