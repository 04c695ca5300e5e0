"""Data frames: names of columns, and columns that are numbers. Pandas itself is not needed."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.warned import warn

EXACT = 2**53  # beyond which float64 has no digit for each whole number
# What makes numbers of the times of polars, by their dtype.
SECONDS = {"Date": "dt.epoch('s')", "Datetime": "dt.epoch('s')", "Duration": "dt.total_seconds()"}
Name = str | int
Names = tuple[Name, ...]


class NamedColumns:
    """The names of the columns of a fit, which shallow copies of an object have in common."""

    @property
    def feature_names(self) -> Names | None:
        """The names of the frame that it was fitted on; ``None`` if there was none."""
        return self._columns()[0]

    @feature_names.setter
    def feature_names(self, names: Names | None) -> None:
        self._columns()[0] = names

    def _columns(self) -> list[Names | None]:
        own = self.__dict__  # that of an earlier version has the names themselves
        found: list[Names | None] = own.setdefault("_names", [own.pop("feature_names", None)])
        return found

    def shares_columns_(self, other: NamedColumns) -> None:
        """Have the names of another object, also those that it gets later."""
        self.__dict__["_names"] = other._columns()


def is_frame(x: Any) -> bool:
    """Return whether ``x`` is a data frame."""
    return hasattr(x, "columns") and (hasattr(x, "iloc") or hasattr(x, "to_numpy"))


def as_frame(x: Any) -> Any:
    """Return a table of Arrow, or a labelled array of xarray, as a data frame of pandas.

    Raises:
        TypeError: if it is a lazy frame, which has no rows yet.
    """
    if hasattr(x, "collect_schema") and hasattr(x, "collect"):
        raise TypeError(f"a {type(x).__name__} has no rows yet; pass what its collect() returns")
    is_table = hasattr(x, "column_names") or (hasattr(x, "coords") and getattr(x, "ndim", 0) == 2)
    return x.to_pandas() if is_table and hasattr(x, "to_pandas") else x


def _labels(x: Any) -> Names:
    """Return the labels of a frame's columns, in their order; other kinds by their ``repr``."""
    return tuple(
        str(label) if isinstance(label, str) else int(label) if _is_whole(label) else repr(label)
        for label in (x.columns if is_frame(x) else getattr(x, "column_names", ()))
    )


def _is_whole(label: Any) -> bool:
    return isinstance(label, Integral) and not isinstance(label, bool | np.bool_)


def names_of(x: Any) -> Names | None:
    """Return the names of a frame's columns; ``None`` if they are not distinct.

    The numbers from 0 on are positions, and no names.
    """
    labels = _labels(x if hasattr(x, "column_names") else as_frame(x))
    distinct = set(labels)
    if not labels or len(distinct) < len(labels) or distinct == set(range(len(labels))):
        return None
    return labels


def ordered(x: Any, names: Names | None) -> Any:
    """Return a frame with the columns of the fit in their order; anything else as it is.

    Columns that are numbered from 0 on are put in the order of their numbers.

    Raises:
        ValueError: if columns are missing, or there are others.
    """
    x = as_frame(x)
    labels = _labels(x)
    if not labels:
        return x
    if names_of(x) is None and not any(isinstance(name, int) for name in names or ()):
        numbered = len(set(labels)) == len(labels)
        return _take(x, labels, tuple(range(len(labels)))) if numbered else x
    if names is None or labels == names:
        return x
    missing = [name for name in names if name not in labels]
    extra = [name for name in labels if name not in names]
    if missing or extra:
        said = [f"lacks the columns {missing}"] if missing else []
        said += [f"has the columns {extra}, which the fit did not see"] if extra else []
        raise ValueError(f"x {' and '.join(said)}; pass the columns {list(names)}")
    return _take(x, labels, names)


def _take(x: Any, labels: Names, wanted: Names) -> Any:
    """Return a frame with its columns in the order of some labels."""
    if labels == wanted:
        return x
    places = [labels.index(name) for name in wanted]
    return x.iloc[:, places] if hasattr(x, "iloc") else x[list(wanted)]


def numeric(x: Any, name: str = "x", *, missing: bool = False) -> Any:
    """Return a frame whose columns are all numbers: nullable ones and booleans become floats.

    Arguments:
        x: the frame, or anything else, which stays as it is.
        name: of the argument, for messages.
        missing: missing values of nullable columns become NaN.

    Raises:
        TypeError: if a column is no number, or a masked array has masked entries.
        ValueError: if a nullable column has missing values where none may be.
    """
    x = as_frame(x)
    check_masks(name, x)
    if not is_frame(x):
        return x
    if not hasattr(x, "iloc"):
        return _of_polars(x, name)
    plain = True
    for number, (column, dtype) in enumerate(zip(x.columns, x.dtypes, strict=True)):
        own = isinstance(dtype, np.dtype)
        kind = getattr(dtype, "kind", "O")
        if kind not in "iufb":
            raise TypeError(
                f"column {column!r} of {name} has dtype {dtype}; the flows are densities of real "
                f"numbers: {_mended(column, str(dtype), kind)}"
            )
        if kind in "iu" and own:
            _warn_of_digits(x.iloc[:, number], column, name)
        gaps: list[int] = []
        if not own and not missing:
            gaps = np.flatnonzero(np.asarray(x.iloc[:, number].isna())).tolist()
        if gaps:
            raise ValueError(
                f"column {column!r} of {name} has missing values in rows {_listed(gaps)}; fill "
                f"them, or leave the rows out by frame.dropna(subset=[{column!r}])"
            )
        plain = plain and own and kind == "f"
    if plain:
        return x
    if missing and hasattr(x, "to_numpy"):  # nullable columns have a mark of their own
        whole = x.to_numpy(dtype=np.float64, na_value=np.nan)
        return type(x)(whole, index=x.index, columns=x.columns)
    return x.astype(np.float64)


def as_table(x: Any, columns: Names | None) -> Any:
    """Return rows as scikit-learn reads them: a frame with distinct names, or an array.

    Arguments:
        x: the rows; missing values of a frame become NaN.
        columns: the order of the columns of a frame.
    """
    x = numeric(ordered(x, columns), missing=True)
    if isinstance(x, Tensor):
        return (x.float() if x.dtype == torch.bfloat16 else x).detach().cpu().numpy()
    return np.asarray(x) if is_frame(x) and names_of(x) is None else x


def check_masks(name: str, values: Any) -> None:
    """Refuse a masked array with masked entries: the numbers under the mask mean nothing.

    Raises:
        TypeError: if there are some.
    """
    if np.ma.is_masked(values):  # type: ignore[no-untyped-call]
        raise TypeError(
            f"{name} is a masked array with masked entries; remove or impute them, or pass "
            f"{name}.filled(numpy.nan) where entries may be missing"
        )


def _warn_of_digits(values: Any, column: Any, name: str) -> None:
    """Warn of whole numbers for which a frame of floats has no digits."""
    if values.max() > EXACT or values.min() < -EXACT:
        warn(
            f"column {column!r} of {name} has whole numbers beyond 2^53, of which the last digits "
            f"are lost; take off an offset first, such as frame[{column!r}] - "
            f"frame[{column!r}].min()"
        )


def _of_polars(x: Any, name: str) -> Any:
    """Return a frame without positions of rows, such as one of polars, with floats alone.

    Raises:
        TypeError: if a column is no number.
    """
    floats: dict[Any, type[float]] = {}
    for column, dtype in zip(x.columns, getattr(x, "dtypes", ()), strict=False):
        kind = str(dtype).partition("(")[0]
        if not hasattr(dtype, "is_numeric") or kind.startswith("Float"):
            continue  # of another library, or as it should be
        if not dtype.is_numeric() and kind != "Boolean":
            taken = f"take frame[{column!r}].{SECONDS[kind]}" if kind in SECONDS else "drop it"
            raise TypeError(
                f"column {column!r} of {name} has dtype {dtype}; the flows are densities of real "
                f"numbers: {taken}, or pass numbers in place of it"
            )
        floats[column] = float
    return x.cast(floats) if floats else x


def _mended(column: Any, dtype: str, kind: str) -> str:
    """Return the call that makes numbers of a column."""
    this = f"frame[{column!r}]"
    if kind == "M":
        return f"take ({this} - {this}.min()).dt.total_seconds()"
    if kind == "m":
        return f"take {this}.dt.total_seconds()"
    if kind == "c":
        return f"take {this}.to_numpy().real and .imag"
    coded = f"pandas.get_dummies(frame, columns=[{column!r}], dtype=float)"
    named = f"drop it, pass it as y, or take {coded}, whose columns have no density"
    if dtype == "category":
        return named
    return f"take {this}.astype(float) where it holds numbers; where it holds names, {named}"


def _listed(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return shown + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
