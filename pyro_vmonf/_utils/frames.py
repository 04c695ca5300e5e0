"""Data frames: names of columns, and columns that are numbers. Pandas itself is not needed."""

from __future__ import annotations

from typing import Any

import numpy as np

Names = tuple[str, ...]


def is_frame(x: Any) -> bool:
    """Return whether ``x`` is a data frame."""
    return hasattr(x, "columns") and (hasattr(x, "iloc") or hasattr(x, "to_numpy"))


def names_of(x: Any) -> Names | None:
    """Return the names of a frame's columns; ``None`` if they are no distinct strings."""
    names = tuple(x.columns) if is_frame(x) else ()
    if not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(str(name) for name in names) if len(set(names)) == len(names) else None


def ordered(x: Any, names: Names | None) -> Any:
    """Return a frame with the columns of the fit in their order; anything else as it is.

    Raises:
        ValueError: if columns are missing, or there are others.
    """
    found = names_of(x)
    if names is None or found is None or found == names:
        return x
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        said = [f"lacks the columns {missing}"] if missing else []
        said += [f"has the columns {extra}, which the fit did not see"] if extra else []
        raise ValueError(f"x {' and '.join(said)}; pass the columns {list(names)}")
    return x[list(names)]


def numeric(x: Any, name: str = "x") -> Any:
    """Return a frame whose columns are all numbers: nullable ones and booleans become floats.

    Raises:
        TypeError: if a column is no number.
        ValueError: if a nullable column has missing values.
    """
    if not is_frame(x) or not hasattr(x, "iloc"):
        return x
    plain = True
    for number, (column, dtype) in enumerate(zip(x.columns, x.dtypes, strict=True)):
        own = isinstance(dtype, np.dtype)
        kind = getattr(dtype, "kind", "O")
        if kind not in "iufb":
            raise TypeError(
                f"column {column!r} of {name} has dtype {dtype}; the flows are densities of real "
                f"numbers: {_mended(column, str(dtype), kind)}"
            )
        missing: list[int] = []
        if not own:
            missing = np.flatnonzero(np.asarray(x.iloc[:, number].isna())).tolist()
        if missing:
            raise ValueError(
                f"column {column!r} of {name} has missing values in rows {_listed(missing)}; fill "
                f"them, or leave the rows out by frame.dropna(subset=[{column!r}])"
            )
        plain = plain and own and kind == "f"
    return x if plain else x.astype(np.float64)


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
    if dtype == "category":
        return f"take {coded}"
    return f"take {this}.astype(float) where it holds numbers, and {coded} where it holds names"


def _listed(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return shown + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")
