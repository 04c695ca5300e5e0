"""``python -m benchmarks.soak --minutes M``: fit, save, load, score and refit, and watch for leaks.

Every round is the same, so its results have to be the same to the bit, and memory, open files and
Pyro's param store must not grow.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.nn import MLP


def megabytes() -> float:
    """Return the memory that the process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def one_round(folder: Path) -> list[torch.Tensor]:
    """Return what a round of everything comes to."""
    x, _ = pinwheel(wings=3, per_wing=100, seed=0)
    with local_seed(0):
        model = FlowMixture(RealNVP(2, 3, blocks=4), dist.Dirichlet(torch.ones(3)))
        vmonf = VMoNF(model, SoftmaxGuide(MLP(2, 3)))
    vmonf.fit(x, epochs=10, seed=1, checkpoint=folder / "run.pt", progress=False)
    vmonf.save(folder / "pair.pt")
    loaded = VMoNF.load(folder / "pair.pt")
    loaded.fit(x, epochs=5, n_init=2, seed=2, progress=False)
    svi = pyro.infer.SVI(
        loaded.model,
        loaded.guide,
        pyro.optim.Adam({"lr": 1e-3}),
        pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
    )
    with pyro.get_param_store().scope(), local_seed(3):
        svi.step(x)
    points, _ = loaded.sample(50, seed=4)
    return [vmonf.log_prob(x), loaded.predict_proba(x), loaded.log_prob(x), points]


def soak(minutes: float, warm_up: int = 10) -> dict[str, float]:
    """Run rounds for a time; return their number and what grew.

    Raises:
        AssertionError: if a round differs from the first, or something leaks.
    """
    end = time.monotonic() + 60 * minutes
    rounds, first, held, files = 0, None, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end or rounds <= warm_up:
            found = one_round(Path(folder))
            rounds += 1
            first = found if first is None else first
            assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True)), rounds
            assert not list(pyro.get_param_store().keys())
            if rounds == warm_up:
                gc.collect()
                held, files = megabytes(), len(os.listdir("/proc/self/fd"))
        gc.collect()
        grown, opened = megabytes() - held, len(os.listdir("/proc/self/fd")) - files
    assert opened <= 0, f"{opened} more files are open"
    assert grown < 30, f"{grown:.0f} MB more are held after {rounds - warm_up} rounds"
    return {"rounds": rounds, "megabytes_grown": grown, "files_opened": opened}


def main() -> None:
    """Soak for as long as is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    torch.set_num_threads(1)
    print(soak(parser.parse_args().minutes))


if __name__ == "__main__":
    main()
