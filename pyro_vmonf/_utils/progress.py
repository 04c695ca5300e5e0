"""Progress bars."""

from __future__ import annotations

import warnings
from typing import Any


def progress_bar(total: int | None, enabled: bool, title: str) -> Any:
    """Return tqdm's bar for so many steps, or one that shows nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm.auto warns where ipywidgets is missing
        from tqdm.auto import tqdm
    return tqdm(total=total, disable=not enabled, desc=title, leave=False, mininterval=0.2)
