"""Warnings that point to the line of the user."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

import pyro
import torch

# Frames of these lie between the line of the user and the one that warns.
WITHIN = tuple(
    os.path.dirname(path) + os.sep
    for path in (os.path.dirname(__file__), torch.__file__, pyro.__file__)
)


def warn(*sentences: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the line outside of the package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_within(frame.f_code.co_filename):
        level, frame = level + 1, frame.f_back
    for sentence in sentences:
        warnings.warn(sentence, category, stacklevel=level)


def _is_within(file: str) -> bool:
    """Return whether a file is of this library, or of one that calls it on the user's behalf."""
    return file == contextlib.__file__ or file.startswith(WITHIN)
