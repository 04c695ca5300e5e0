"""A pair on a GPU says what the same pair says on the CPU.

Where there is no GPU the CPU plays one: see ``second_device.py``.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from torch import nn

import pyro_vmonf
from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    GammaDirichlet,
    GatedWeights,
    Gaussian,
    GroupWeights,
    MarginalGuide,
    MarkovMixture,
    MarkovVMoNF,
    MixtureComponent,
    PyroGuide,
    RandomBank,
    RandomWeights,
    RealNVP,
    Replicated,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
    fit_em,
    information_criteria,
)
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.distortions import Adversarial, AffineImages, Jitter, RandomWalk
from pyro_vmonf.interop.serving import export
from pyro_vmonf.nn import MLP, StartedNetwork
from pyro_vmonf.starts import pretrain_, spectral_clusters, warm_start_
from pyro_vmonf.terms import Agreement, Balance, Classification, Confidence, Consistency
from pyro_vmonf.training import unread
from pyro_vmonf.vmonf import automatic, pictures
from pyro_vmonf.weight_priors import PointPosterior

PLAYED = torch._C._get_privateuse1_backend_name() == "second"
THERE = torch.device("second" if PLAYED else "cuda", 0)
there_is_one = pytest.mark.skipif(
    not (PLAYED or torch.cuda.is_available()), reason="there is no second device"
)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
K, D, N = 3, 2, 60
IMAGE = (1, 4, 4)
PLACE = torch.arange(N) % K
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1)) + 4 * PLACE[:, None]
Y = torch.where(torch.arange(N) < 9, PLACE, -1)
OPTIONS: dict[str, Any] = {"batch_size": 30, "progress": False, "seed": 0, "compile": False}


@pytest.mark.skipif(PLAYED or torch.cuda.is_available(), reason="there is a second device")
@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="torch registers no devices in Python")
def test_on_a_device_that_the_cpu_plays() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "second_device", __file__]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [*command, "--tb=short", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


def background() -> Any:
    wide = dist.StudentT(torch.tensor(2.0), torch.zeros(D), 5 * torch.ones(D), validate_args=False)
    return wide.to_event(1)


BANKS: dict[str, Callable[[], Any]] = {
    "RealNVP": lambda: RealNVP(D, K, hidden=[4], blocks=2),
    "MAF": lambda: pyro_vmonf.MAF(D, K, hidden=[4], blocks=2, shared=1),
    "NSF": lambda: pyro_vmonf.NSF(D, K, hidden=(4,), blocks=2, bins=4, shared_at="base"),
    "AutoregressiveNSF": lambda: pyro_vmonf.AutoregressiveNSF(D, K, hidden=(4,), bound=3.0),
    "MAFMoG": lambda: pyro_vmonf.MAFMoG(D, K, hidden=(4,), blocks=2, mixtures=2),
    "RotatedRealNVP": lambda: pyro_vmonf.RotatedRealNVP(K, blocks=2, hidden=(4,)),
    "Gaussian": lambda: Gaussian(D, K),
    "GaussianMixtures": lambda: pyro_vmonf.flows.GaussianMixtures(D, K, 2),
    "StudentMixtures": lambda: pyro_vmonf.flows.StudentMixtures(D, K, 2),
    "Pyro": lambda: Replicated(
        lambda: dist.transforms.affine_coupling(D, hidden_dims=[4]), K, features=D
    ),
    "mixed list": lambda: [Gaussian(D, 1), RealNVP(D, 1, blocks=1), background()],
    "mixture of mixtures": lambda: [
        MixtureComponent(FlowMixture(Gaussian(D, 2), "learned")),
        RealNVP(D, K - 1, blocks=1),
    ],
    "RandomBank": lambda: RandomBank(RealNVP(D, K, blocks=1, hidden=(3,))),
    "Glow": lambda: pyro_vmonf.Glow(IMAGE, K, blocks=1, channels=4, scales=1),
    "ImageNSF": lambda: pyro_vmonf.ImageNSF(IMAGE, K, blocks=1, channels=4, bins=4),
    "MultiScaleRealNVP": lambda: pyro_vmonf.MultiScaleRealNVP(IMAGE, K, blocks=1, channels=4),
    "PixelFlow": lambda: pyro_vmonf.PixelFlow(IMAGE, K, channels=4, depth=1, squeezes=1),
}
WEIGHTS: dict[str, Callable[[], Any]] = {
    "uniform": lambda: "uniform",
    "learned": lambda: "learned",
    "updated": lambda: "updated",
    "Dirichlet": lambda: dist.Dirichlet(torch.ones(K)),
    "GammaDirichlet": lambda: RandomWeights(GammaDirichlet(K)),
    "sticks": lambda: StickBreaking.process(K, 2.0),
    "own prior": lambda: dist.LogisticNormal(torch.zeros(K - 1), torch.ones(K - 1)),
    "point": lambda: RandomWeights(2 * torch.ones(K), posterior=PointPosterior(2 * torch.ones(K))),
}


def network() -> nn.Module:
    return MLP(D, K, hidden=(4,))


GUIDES: dict[str, Callable[[], Any]] = {
    "softmax": lambda: SoftmaxGuide(
        network(), [Classification(), Balance(), Confidence(weight=0.1)]
    ),
    "top": lambda: SoftmaxGuide(network(), temperature=0.5, top=2),
    "distorted": lambda: SoftmaxGuide(
        network(), [Consistency(Jitter()), Consistency(Adversarial())]
    ),
    "exact": ExactGuide,
    "marginal": MarginalGuide,
}


PAIRS = [(weights, "softmax") for weights in WEIGHTS] + [("learned", guide) for guide in GUIDES]
if PLAYED:  # by Python, which is slow: one of a kind
    for alike in ("MAF", "MAFMoG", "NSF", "ImageNSF", "MultiScaleRealNVP", "PixelFlow"):
        del BANKS[alike]
    PAIRS = [pair for pair in PAIRS if pair[0] not in ("updated", "own prior", "point", "uniform")]


def both(make: Callable[[], VMoNF]) -> tuple[VMoNF, VMoNF]:
    """Return the same pair on the CPU and on the device."""
    torch.manual_seed(0)
    here = make().double()
    return here, copy.deepcopy(here).to(THERE)


def simple() -> VMoNF:
    return VMoNF(FlowMixture(Gaussian(D, K), "learned"), SoftmaxGuide(network()))


def assert_same(there: Any, here: Any, tolerance: float = 1e-9) -> None:
    assert there.device == THERE
    torch.testing.assert_close(there.detach().cpu(), here, rtol=tolerance, atol=tolerance)


def assert_same_state(there: VMoNF, here: VMoNF) -> None:
    expected = here.state_dict()
    for name, value in there.state_dict().items():
        assert_same(value, expected[name], 1e-6)


@there_is_one
@pytest.mark.parametrize("name", BANKS)
def test_banks(name: str) -> None:
    here, there = both(lambda: VMoNF(FlowMixture(BANKS[name](), "learned"), ExactGuide()))
    shape = tuple(here.model.event_shape)
    x = X.double() if shape == (D,) else torch.rand(N, *shape).double()
    for verb in ("log_prob", "component_log_prob", "predict_proba"):
        assert_same(getattr(there, verb)(x), getattr(here, verb)(x))
    assert all(value.device == THERE for value in there.sample(5))
    assert_same(there.predict(x.to(THERE)), here.predict(x))
    for vmonf in (here, there):
        vmonf.fit(x, steps=3, **OPTIONS)
    if name != "RandomBank":  # its draws are those of the device
        assert_same_state(there, here)


@there_is_one
@pytest.mark.parametrize(("weights", "guide"), sorted(set(PAIRS)))
def test_weights_and_guides(weights: str, guide: str) -> None:
    here, there = both(
        lambda: VMoNF(FlowMixture(Gaussian(D, K), WEIGHTS[weights]()), GUIDES[guide]())
    )
    assert_same(there.predict_proba(X, Y), here.predict_proba(X, Y))
    assert_same(there.elbo(X), here.elbo(X))
    for vmonf in (here, there):
        vmonf.fit(X, None if guide == "marginal" else Y, epochs=2, held_out=0.2, **OPTIONS)
        assert vmonf.log_prob(X).isfinite().all()
    assert str(there.report(X))


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": {"fast": False},
    "interleaved": {"interleave": True, "pretrain_epochs": 1},
    "weighted": {"sample_weight": torch.linspace(0.5, 1.5, N)},
    "patient": {"held_out": torch.arange(9), "patience": 1, "keep": "best"},
    "clipped": {"clip_norm": 0.5, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)},
    "SGD": {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3)},
    "Adam of torch": {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-3)},
    "compiled": {"compile": True},
}
READ = ("clipped", "SGD", "Adam of torch")  # steps of these are read one by one


@there_is_one
@pytest.mark.parametrize("name", FITS)
def test_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if PLAYED and name == "compiled":
        pytest.skip("no compiler writes programs for the device")
    here, there = both(
        lambda: VMoNF(
            FlowMixture(RealNVP(D, K, blocks=1, hidden=(4,)), "learned"),
            SoftmaxGuide(network(), [Classification()]),
        )
    )
    options = {**OPTIONS, "epochs": 3, **FITS[name]}
    waits: list[bool] = []
    own = unread.has_to_wait
    monkeypatch.setattr(
        unread, "has_to_wait", lambda *given: waits.append(own(*given)) or waits[-1]
    )
    alone = here.fit(X, Y, **options)
    history = there.fit(X.to(THERE), Y.to(THERE), **options)
    assert waits == [True, name in READ]
    assert history.elbo == pytest.approx(alone.elbo, rel=1e-6)
    assert history.road == alone.road
    assert_same_state(there, here)


@there_is_one
def test_starts_run_together() -> None:
    _, there = both(simple)
    history = there.fit(X, n_init=3, held_out=0.2, epochs=3, **OPTIONS)
    assert len(history.restarts) == 3
    assert there.predict(X).device == THERE


@there_is_one
def test_missing_values() -> None:
    x = X.clone()
    x[::7, 1] = torch.nan
    here, there = both(lambda: VMoNF(FlowMixture(Gaussian(D, K), "learned")))
    for vmonf in (here, there):
        vmonf.fit(x, epochs=2, **OPTIONS)
    assert_same(there.log_prob(x), here.log_prob(x), 1e-6)
    assert all(value.device == THERE for value in there.impute(x))


@there_is_one
def test_plain_svi() -> None:
    _, there = both(simple)
    svi = SVI(there.model, there.guide, pyro.optim.Adam({"lr": 0.1}), TraceEnum_ELBO())
    values = [svi.step(X.double().to(THERE)) for _ in range(8)]
    assert values[-1] < values[0]


@there_is_one
def test_a_guide_of_pyro() -> None:
    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.ones(K))).to(THERE)
    hidden = pyro.poutine.block(model, hide=["c"])
    vmonf = VMoNF(model, PyroGuide([AutoDelta(hidden), ExactGuide()])).to(THERE)
    vmonf.fit(X, steps=3, **OPTIONS)
    assert vmonf.predict(X).device == THERE


@there_is_one
@pytest.mark.parametrize("kind", ["gated", "groups"])
def test_weights_of_a_row(kind: str) -> None:
    given = torch.randn(N, 4) if kind == "gated" else (torch.arange(N) % 4)[:, None].float()
    width = given.shape[1]
    weights = GatedWeights(nn.Linear(4, K), K) if kind == "gated" else GroupWeights(4, K)
    model = FlowMixture(Gaussian(D, K), weights, context_features=width)
    here, there = both(lambda: VMoNF(model, SoftmaxGuide(MLP(D + width, K))))
    for vmonf in (here, there):
        vmonf.fit(X, given=given, epochs=2, **OPTIONS)
    assert_same(there.log_prob(X, given=given), here.log_prob(X, given=given), 1e-6)


@there_is_one
def test_chains() -> None:
    x = torch.randn(6, 5, D)
    here, there = both(
        lambda: MarkovVMoNF(
            MarkovMixture(Gaussian(D, K), "learned", "learned"), SoftmaxGuide(network())
        )
    )
    for vmonf in (here, there):
        vmonf.fit(x, torch.tensor([5, 3, 4, 5, 5, 1]), epochs=2, **OPTIONS)
    assert_same(there.log_prob(x), here.log_prob(x), 1e-6)
    assert_same(there.predict(x), here.predict(x))
    assert all(value.device == THERE for value in there.sample(2, 4))


@on_a_gpu
def test_files(tmp_path: Path) -> None:
    _, there = both(simple)
    twin = copy.deepcopy(there)
    there.fit(X, epochs=4, **OPTIONS)

    def stop(progress: Any) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twin.fit(X, epochs=4, callbacks=stop, checkpoint=tmp_path / "run.pt", **OPTIONS)
    twin.fit(X, epochs=4, resume=tmp_path / "run.pt", **OPTIONS)
    assert_same(twin.log_prob(X), there.log_prob(X).cpu())
    there.save(tmp_path / "pair.pt")
    assert_same(VMoNF.load(tmp_path / "pair.pt").log_prob(X), there.log_prob(X).cpu())


@there_is_one
def test_starts_and_small_parts() -> None:
    _, there = both(simple)
    x, model = X.double().to(THERE), there.model
    fit_em(model, x, n_init=1)
    assert information_criteria(model, x)
    clusters = spectral_clusters(x, K)
    assert clusters.device == THERE
    pretrain_(there.guide, x, Y, terms=[Balance(), Consistency(Jitter())], steps=3)
    there.align_(there.posterior(x).probs, x)
    there.prune_(x)
    marginal = there.marginal()
    assert marginal.log_prob(x).device == marginal.sample((3,)).device == THERE
    terms = [Consistency(RandomWalk(x, neighbors=5)), Agreement()]
    guide = SoftmaxGuide(StartedNetwork(D, model.num_components, 1), terms).double()
    with pytest.raises(ValueError, match=r"a pair lies on one device, .* guide on cpu"):
        there.guide = guide
    there.guide = guide.to(THERE)
    warm_start_(there.guide, x, clusters, steps=3)
    there.fit(x, epochs=2, **OPTIONS)


@there_is_one
def test_pictures() -> None:
    _, there = both(simple)
    there.fit(X, epochs=2, **OPTIONS)
    for name in ("plot", "plot_report", "plot_responsibilities", "plot_uncertainty"):
        getattr(there, name)(X)
    there.plot_components()
    there.plot_history()
    plt.close("all")


@there_is_one
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.parametrize("labelled", [True] if PLAYED else [False, True])
def test_one_call(labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "BLOCKS", 1)
    monkeypatch.setattr(automatic, "HIDDEN", (8,))
    x, y = pinwheel(wings=3, per_wing=40, seed=0)
    known = torch.where(torch.arange(len(x)) % 20 == 0, y, -1).to(THERE) if labelled else None
    options: dict[str, Any] = {"components": 3, "seed": 0, "minutes": 0.005, "progress": False}
    vmonf = VMoNF.from_data(x.to(THERE), known, background=labelled, **options)
    assert vmonf.predict(x).device == vmonf.log_prob(x).device == THERE
    assert str(vmonf.report(x))


@there_is_one
def test_one_call_on_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FEATURE_STEPS", 3)
    monkeypatch.setattr(pictures, "GUIDE_STEPS", 3)
    monkeypatch.setattr(pictures, "MOST_EPOCHS", 1)
    x = torch.randint(256, (60, 1, 8, 8), dtype=torch.uint8)
    vmonf = VMoNF.from_data(x.to(THERE), components=3, seed=0, progress=False)
    assert vmonf.predict(x / 255).device == THERE


@there_is_one
def test_distorted_images() -> None:
    guide = SoftmaxGuide(
        nn.Sequential(nn.Flatten(), MLP(16, K)), [Consistency(AffineImages(IMAGE))]
    )
    _, there = both(lambda: VMoNF(FlowMixture(BANKS["Glow"](), "learned"), guide))
    there.fit(torch.rand(N, *IMAGE), steps=2, **OPTIONS)


@on_a_gpu
def test_an_exported_program() -> None:
    _, there = both(
        lambda: VMoNF(FlowMixture(RealNVP(D, K, blocks=2), "learned"), SoftmaxGuide(network()))
    )
    log_prob, _ = export(there).module()(X.double().to(THERE))
    assert_same(log_prob, there.log_prob(X).cpu())


@on_a_gpu
def test_draws_for_arviz() -> None:
    from pyro_vmonf.interop import arviz

    weights = dist.Dirichlet(torch.ones(K))
    _, there = both(lambda: VMoNF(FlowMixture(Gaussian(D, K), weights), SoftmaxGuide(network())))
    there.fit(X, epochs=1, **OPTIONS)
    assert arviz.to_inference_data(there, X)
