"""Frames from files of text, whatever program wrote them."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_vmonf._utils.contexts import own_filters

MARKS = (";", "\t", "|")  # that separate columns where commas do not
DAMAGES = (ValueError, EOFError, re.error, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
PACKED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MORE = "Length of header"  # what pandas says of lines that have more fields than the header


def read_delimited(path: Path, separator: str | None, label: str | None) -> tuple[Any, list[str]]:
    """Return the whole file as a frame of pandas, with the labels as they stand there.

    Arguments:
        path: the file.
        separator: between the columns; by default a comma, or a tab in ``.tsv``.
        label: the column of the labels.

    Returns:
        The frame, and the names in the header that come more than once.

    Raises:
        ValueError: if it is no table with a header.
    """
    mark = separator or ("\t" if path.suffix.lower() == ".tsv" else ",")
    # A blank line is a row without numbers, so that the others keep their positions.
    options: dict[str, Any] = {"sep": mark, "skip_blank_lines": False}
    if len(mark) > 1:  # a regular expression
        options["engine"] = "python"
    try:
        header, lines = _lines(path, mark if len(mark) == 1 else ",")
        others = [other for other in MARKS if len(header) == 1 and other in header[0]]
        if others and separator is None:
            raise ValueError(f"it has one column, {header[0]!r}; pass --separator {others[0]!r}")
        read = _reader(path, options | lines)
        frame = _without_blanks(read())
        [label] = there([label], frame)
        if label in frame:  # a class may be named NA, and 01 is another one than 1
            frame[label] = read(dtype=str, keep_default_na=False)[label]
    except DAMAGES as error:  # pandas' own errors are ValueErrors
        said = str(error).strip() or type(error).__name__
        if isinstance(error, UnicodeDecodeError):
            said = "it is no text in UTF-8; expected CSV, or Parquet in a file named *.parquet"
        raise ValueError(f"{path} is no CSV with a header: {said}") from error
    except OSError as error:
        if path.suffix.lower() not in PACKED:
            raise
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    return frame, sorted({name for name in header if header.count(name) > 1})


def there(names: Sequence[Any], frame: Any) -> list[Any]:
    """Return names as they stand in a header, which may have spaces around them."""
    plain = [str(c).strip() for c in frame.columns]
    return [
        frame.columns[plain.index(name)]
        if name not in frame.columns and plain.count(name) == 1
        else name
        for name in names
    ]


def _without_blanks(frame: Any) -> Any:
    """Return a frame whose cells of spaces are empty, since the others may be numbers."""
    import pandas

    for name in frame.columns[[kind.kind not in "iufb" for kind in frame.dtypes]]:
        text = frame[name]
        filled = text.where(text.astype(str).str.strip() != "")
        numbers = pandas.to_numeric(filled, errors="coerce")
        if len(filled) > int(filled.count()) and numbers.count() == filled.count():
            frame[name] = numbers
    return frame


def _lines(path: Path, mark: str) -> tuple[list[str], dict[str, Any]]:
    """Return the header, and the options that leave out blank lines before it and at the end.

    A record between quotes may have several lines.
    """
    suffix = path.suffix.lower()
    if suffix in (".zip", ".zst"):
        return [], {}
    header: list[str] = []
    first, last = None, 0
    opened = PACKED.get(suffix, open)
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            for number, cells in enumerate(csv.reader(file, delimiter=mark)):
                if len(cells) > 1 or any(cell.strip() for cell in cells):
                    if first is None:
                        first, header = number, cells
                    last = number
        except csv.Error:  # pandas says what is wrong
            return [], {}
    return header, {} if first is None else {"skiprows": first, "nrows": last - first}


def _reader(path: Path, options: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that reads the file, without names of rows, and takes further options.

    Lines may have one field more than the header. The first field is then a name of the row, as R
    writes it, or the last one is always empty.

    Raises:
        ValueError: if it is neither.
    """
    import pandas

    def of_header(**more: Any) -> Any:
        with own_filters():
            warnings.filterwarnings("ignore", MORE, pandas.errors.ParserWarning)
            return pandas.read_csv(path, index_col=False, **options, **more)

    def with_names_of_rows(**more: Any) -> Any:
        return pandas.read_csv(path, **options, **more).reset_index(drop=True)

    with own_filters():
        warnings.filterwarnings("error", MORE, pandas.errors.ParserWarning)
        try:
            frame = pandas.read_csv(path, index_col=False, **options)
            return lambda **more: of_header(**more) if more else frame
        except pandas.errors.ParserWarning:
            frame = pandas.read_csv(path, **options)
    if frame[frame.columns[-1]].isna().all():
        return of_header
    names = frame.index
    if names.nlevels == 1 and names.is_unique:
        text = names.dtype.kind not in "iufb"
        if text or list(names) in countings(len(names)):
            return with_names_of_rows
    raise ValueError(
        f"its lines have more fields than its header, which names {len(frame.columns)} columns; "
        "name every column, or remove the fields"
    )


def countings(count: int) -> tuple[list[int], list[int]]:
    """Return the numbers of things, from 0 and from 1."""
    return list(range(count)), list(range(1, count + 1))
