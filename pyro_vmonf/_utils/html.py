"""HTML for notebooks, without scripts: lines through numbers, and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def sparkline(values: Sequence[float], *, width: int = 240, height: int = 40) -> str:
    """Return a line through numbers as an SVG, without those that are not finite.

    Example:
        >>> print(sparkline([1.0, 3.0, 2.0], width=22, height=12))  # doctest: +ELLIPSIS
        <svg ...><polyline points="1.0,11.0 11.0,1.0 21.0,6.0" .../></svg>
    """
    points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    low, high = min((v for _, v in points), default=0.0), max((v for _, v in points), default=0.0)
    across = (width - 2) / max(len(values) - 1, 1)
    up = (height - 2) / ((high - low) or 1.0)
    line = " ".join(f"{1 + across * i:.1f},{1 + up * (high - v):.1f}" for i, v in points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return names and texts as the rows of a table."""
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th>'
        f'<td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f"<table><tbody>{cells}</tbody></table>"
