"""One whole training step, beside the same step written in other ways."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.configurations import CONFIGURATIONS
from benchmarks.peers import PEERS, steps_of
from benchmarks.tables import Options, Row, compared
from benchmarks.timing import interleaved


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of each configuration."""
    for name in CONFIGURATIONS if options.config is None else [options.config]:
        steps = steps_of(name, options.device, list(PEERS))
        times = interleaved(steps, repeats=options.repeats, device=options.device)
        yield compared(name, times, options)
