"""``python -m benchmarks NAME``: speed and quality, side by side in one process."""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import warnings
from pathlib import Path

import pyro
import torch

from benchmarks import (
    calibration,
    chains,
    criterion,
    density,
    plane,
    posteriordb,
    quality,
    restarts,
    sample,
    scaling,
    score,
    step,
    whole_fit,
)
from benchmarks.tables import Options, table, write

MODULES = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (step, whole_fit, sample, score, scaling, restarts, quality, criterion, plane)
}
PROGRAMS = {
    "calibration": calibration,
    "chains": chains,
    "density": density,
    "posteriordb": posteriordb,
}  # with options of their own


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Run one benchmark, print its tables, and write its rows where they are wanted."""
    if sys.argv[1:2] and sys.argv[1] in PROGRAMS:
        PROGRAMS[sys.argv[1]].main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*MODULES, *PROGRAMS])
    parser.add_argument("--config", help="one configuration, or a folder of sets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="file to which rows are added, one a line")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    options = Options(given.config, given.threads, given.device, given.repeats)
    name = torch.cuda.get_device_name() if given.device == "cuda" else processor()
    print(
        f"## {given.name}\n\n{MODULES[given.name].__doc__}\n\n"
        f"{datetime.date.today()}, {name}, threads: {given.threads}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, pyro {pyro.__version__}\n"
    )
    for rows in MODULES[given.name].run(options):
        print(table(rows) + "\n", flush=True)
        if given.json is not None:
            write(rows, given.json)


if __name__ == "__main__":
    main()
