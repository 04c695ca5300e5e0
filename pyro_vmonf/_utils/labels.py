"""Labels of rows, and the marks of rows without one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyro_vmonf._utils.frames import check_masks

Array = np.ndarray[Any, Any]
MARKS = ("-1", "-1.0", "<NA>")  # of rows without a label, beside None, as texts


def marked(y: Any) -> tuple[Array, Array]:
    """Return labels of one kind, and which of the rows carry one.

    Marks of a row without a label are −1 and ``None``; among texts also ``"-1"``, NaN and NA.

    Raises:
        TypeError: if labels are masked.
        ValueError: if there is a NaN beside numbers.
    """
    check_masks("y", y)
    values = np.asarray(y)
    if values.dtype.kind in "OUST" and values.ndim == 1:
        values = np.asarray(y, dtype=object)  # NumPy makes text of numbers beside texts
        known = np.array([not (v is None or str(v) in MARKS) for v in values], dtype=bool)
        text = any(isinstance(v, str) for v in values[known])
        if text:
            known &= np.array([not _is_nan(v) for v in values])
        labels = np.array([str(v) if text else v for v in values[known].tolist()])
        values = np.zeros(values.shape, dtype=labels.dtype)
        values[known] = labels
    else:
        known = values != -1
    if any(map(_is_nan, values[known].flat)):
        raise ValueError("y contains NaN; the mark of an unlabelled row is -1")
    return values, known


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)


def is_mark(classes: Array, components: int | str) -> bool:
    """Return whether −1 beside these classes can only be the mark of an unlabelled row.

    It can be a class beside 1 (outliers), or beside 0 and 1 (signs). It cannot beside texts, beside
    three classes or more, or where the components would not suffice for it.
    """
    sure = classes.dtype.kind in "OUS" or len(classes) > 2
    return sure or (not isinstance(components, str) and len(classes) + 1 > components)
