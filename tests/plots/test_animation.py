"""The recorder and its animation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pyro_vmonf import FlowMixture, History, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots.animation import Recorder
from pyro_vmonf.training.fit import Progress

K = 3


def pair(features: int = 2, components: int = K) -> VMoNF:
    """A pair whose modules are in ``train()``, and draw random numbers there."""
    network = nn.Sequential(nn.Dropout(0.5), MLP(features, components))
    bank = RealNVP(features, components, blocks=2, hidden=(4,))
    return VMoNF(FlowMixture(bank), SoftmaxGuide(network)).train()


def fit(vmonf: VMoNF, x: torch.Tensor, **options: Any) -> History:
    return vmonf.fit(x, batch_size=20, progress=False, seed=3, **options)


def test_recorder_leaves_the_run_as_it_is() -> None:
    x, results = torch.randn(40, 2), []
    for callbacks in ([], [Recorder(x, every=1, num_samples=5, resolution=5)]):
        torch.manual_seed(1)
        vmonf = pair()
        modes: list[bool] = []
        watch = lambda progress: modes.extend(m.training for m in progress.model.modules())  # noqa: B023, E731
        history = fit(vmonf, x, epochs=4, callbacks=[*callbacks, watch])
        assert all(modes)
        results.append((vmonf.state_dict(), history.elbo, torch.get_rng_state().tolist()))
    plain, recorded = results
    assert plain[1:] == recorded[1:]
    for name, value in plain[0].items():
        assert value.equal(recorded[0][name]), f"{name} differs"


def test_recorder_keeps_the_first_epoch_and_every_nth() -> None:
    recorder = Recorder(every=3, num_samples=7, resolution=5)
    history = fit(pair(), torch.randn(40, 2), epochs=9, callbacks=[recorder])
    assert [frame.epochs for frame in recorder.frames] == [1, 3, 6, 9]
    assert [frame.elbo for frame in recorder.frames] == [history.elbo[i] for i in (0, 2, 5, 8)]
    for frame in recorder.frames:
        assert frame.samples.shape == (7, 2)
        assert frame.components.shape == (7,)
        assert frame.regions.shape == (5, 5)
        assert frame.regions.max() < K


def test_recorder_sees_what_the_verbs_return() -> None:
    vmonf, recorder = pair(), Recorder(every=1, num_samples=50, seed=5)
    recorder(
        Progress(0, 1, vmonf.model, vmonf.guide, History(epoch=[0], elbo=[-1.0], temperature=[1.0]))
    )
    (frame,) = recorder.frames
    x, c = vmonf.sample(50, seed=5)
    np.testing.assert_array_equal(frame.samples, x)
    np.testing.assert_array_equal(frame.components, c)
    left, right, bottom, top = recorder.extent or (0.0,) * 4
    share = (np.arange(200) + 0.5) / 200
    row = np.stack((left + share * (right - left), np.full(200, bottom + (top - bottom) / 400)), 1)
    np.testing.assert_array_equal(frame.regions[0], vmonf.predict(row))


@pytest.mark.parametrize("with_points", [True, False])
def test_recorder_writes_a_small_gif(
    with_points: bool, tmp_path: Path, global_state: Callable[[], list[Any]]
) -> None:
    x = torch.randn(40, 2)
    recorder = Recorder(x if with_points else None, every=2, num_samples=200)
    vmonf = VMoNF(pair().model)
    fit(vmonf, x, epochs=6, lr=0.05, callbacks=[recorder])
    path = tmp_path / "training.gif"
    state = global_state()
    recorder.save_gif(path, size=2.0)
    assert global_state() == state
    assert not plt.get_fignums()
    assert path.stat().st_size < 40_000 * len(recorder.frames)
    with Image.open(path) as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
    assert len(durations) == len(recorder.frames) == 4
    assert durations[-1] >= 2000 > durations[0], "it does not stay on the last frame"


def test_recorder_says_what_is_wrong() -> None:
    with pytest.raises(RuntimeError, match="pass the recorder to fit"):
        Recorder().save_gif("training.gif")
    with pytest.raises(ValueError, match="every is 0"):
        Recorder(every=0)
    with pytest.raises(ValueError, match=r"Recorder draws the plane .*\(3,\)"):
        fit(pair(features=3), torch.randn(40, 3), epochs=1, callbacks=[Recorder()])


def test_a_recorder_holds_one_run() -> None:
    vmonf, x = pair(), torch.randn(20, 2)
    recorder = Recorder(x, every=1, num_samples=4, resolution=5)
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="a Recorder holds one run, and n_init is 2"):
        vmonf.fit(x, epochs=2, n_init=2, callbacks=recorder, progress=False)
    assert all(torch.equal(before[name], value) for name, value in vmonf.state_dict().items())
    for epochs in (3, 2):
        vmonf.fit(x, epochs=epochs, callbacks=[recorder], progress=False)
    assert [frame.epochs for frame in recorder.frames] == [1, 2]
