"""What the benchmarks hand in: rows, as a table for people and as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    config: str | None = None
    threads: int = 1
    device: str = "cpu"
    repeats: int = 50


Row = dict[str, Any]


def compared(config: str, times: dict[str, float], options: Options) -> list[Row]:
    """Return a row for each peer, with its median over this library's."""
    return [
        {
            "config": config,
            "peer": peer,
            "median_ms": round(value, 3),
            "ratio": round(value / times["library"], 3),
            "threads": options.threads,
            "device": options.device,
        }
        for peer, value in times.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown, with the columns of the first."""
    columns = [key for key in rows[0] if key not in ("threads", "device")]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(rows: Iterable[Row], path: Path) -> None:
    """Add rows to a file, one JSON object a line."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
