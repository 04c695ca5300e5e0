"""Noise that turns levels into densities, with every bit accounted for."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_vmonf import Flow, FlowMixture, PixelFlow, SoftmaxGuide, VMoNF
from pyro_vmonf.datasets import DequantizedImages
from pyro_vmonf.dequantization import (
    Dequantized,
    UniformDequantization,
    VariationalDequantization,
)
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.nn import ConvEncoder
from pyro_vmonf.training.fit import Callback, Progress
from pyro_vmonf.transforms import Logit

SHAPE = (1, 4, 4)
D = math.prod(SHAPE)


def pair() -> VMoNF:
    flow = PixelFlow(SHAPE, 2, channels=4, depth=1, first=3, bins=3)
    bank = Flow([*flow.transforms, Logit(alpha=0.01, event_dim=3)], base=flow.base)  # type: ignore[list-item]
    return VMoNF(FlowMixture(bank))


def images(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)


@pytest.mark.usefixtures("float64")
def test_uniform_noise_of_a_density_that_is_constant_on_levels_is_exact() -> None:
    # p(x) = 1 on the unit cube gives every image the probability 256^-D, whatever the noise.
    uniform = torch.distributions.Uniform(torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE))
    vmonf = VMoNF(FlowMixture(torch.distributions.Independent(uniform, 3)))
    for samples in (1, 5):
        found = Dequantized(vmonf).log_prob(images(), samples=samples, seed=0)
        torch.testing.assert_close(found, torch.full((8,), -D * math.log(256)))
    assert math.isclose(Dequantized(vmonf).bits_per_dim(images()), 8.0)


@pytest.mark.usefixtures("float64")
def test_probabilities_of_all_levels_sum_to_one() -> None:
    # One pixel: the integral over the noise is a grid's, and log_prob's mean over many samples.
    normal = torch.distributions.Normal(torch.full((1, 1, 1, 1), 0.45), 0.002)
    vmonf = VMoNF(FlowMixture(torch.distributions.Independent(normal, 3)))
    levels = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    log_prob = Dequantized(vmonf).log_prob(levels, samples=4000, seed=0)
    edges = torch.arange(257) / 256
    exact = torch.diff(torch.distributions.Normal(0.45, 0.002).cdf(edges))
    near = exact > 1e-3
    torch.testing.assert_close(log_prob[near].exp(), exact[near], rtol=0.1, atol=0)
    assert abs(float(log_prob.exp().sum()) - 1) < 0.02


def test_more_samples_tighten_the_bound() -> None:
    torch.manual_seed(0)
    vmonf, rows = pair(), images(64)
    bounds = [
        float(Dequantized(vmonf).log_prob(rows, samples=s, seed=0).mean()) for s in (1, 8, 64)
    ]
    assert bounds[0] < bounds[1] < bounds[2]


@pytest.mark.usefixtures("float64")
def test_variational_noise_is_a_density_on_the_unit_cube() -> None:
    torch.manual_seed(0)
    noise = VariationalDequantization((1, 2, 2), couplings=2, channels=4)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    q = noise(torch.tensor([0.0, 50.0, 200.0, 255.0]).reshape(1, 1, 2, 2))
    u = q.rsample((2000,))
    assert (u > 0).all()
    assert (u < 1).all()
    uniform = torch.rand(200_000, 1, 1, 2, 2)
    mass = q.log_prob(uniform).exp().detach()
    error = float(mass.std() / math.sqrt(len(mass)))
    assert abs(float(mass.mean()) - 1) < 5 * error
    assert error < 0.02


@pytest.mark.parametrize("scale", [0.15, 0.2, 0.3, 1.0])
def test_the_density_of_a_draw_is_never_too_small(scale: float) -> None:
    """The mean of 1/q over draws of q is at most the volume of the cube, one."""
    torch.manual_seed(0)
    noise = VariationalDequantization((1, 2, 2), channels=16)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        q = noise(torch.zeros(20_000, 1, 2, 2))
        u = q.sample()
        log_mean = float((-q.log_prob(u)).logsumexp(0)) - math.log(len(u))
    assert log_mean < 0.5
    assert (u > 0).all()
    assert (u < 1).all()


@pytest.mark.usefixtures("float64")
def test_a_draw_has_the_density_of_its_value() -> None:
    torch.manual_seed(0)
    noise = VariationalDequantization((1, 2, 2), channels=4)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    q = noise(torch.rand(5, 1, 2, 2) * 255)
    u = q.rsample((100,))
    own = q.log_prob(u)
    torch.testing.assert_close(own, q.log_prob(u.clone()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own, q.expand((5,)).log_prob(u), rtol=1e-9, atol=1e-9)


def test_training_does_not_pass_the_probability_itself() -> None:
    """Level 0 has the probability 256^-0.05 a pixel under Beta(0.05, 1)."""
    ones = torch.ones(2, 1, 2, 2)
    beta = torch.distributions.Beta(0.05 * ones, ones)
    vmonf = VMoNF(FlowMixture(torch.distributions.Independent(beta, 3)))
    rows = torch.zeros(64, 1, 2, 2, dtype=torch.uint8)
    torch.manual_seed(0)
    dequantized = Dequantized(vmonf, VariationalDequantization((1, 2, 2), channels=16))
    dequantized.fit(rows, steps=80, lr=3e-3, batch_size=64, seed=0, progress=False)
    assert 0.05 * 8 - 0.02 < dequantized.bits_per_dim(rows, samples=20, seed=0) < 1.0


def test_the_lightest_level_has_a_finite_density_under_a_bare_logit() -> None:
    flow = Flow([Logit(alpha=0.0, event_dim=3)], base=StandardNormal((1, 32, 32), 2))
    light = torch.full((400, 1, 32, 32), 255, dtype=torch.uint8)
    found = Dequantized(VMoNF(FlowMixture(flow))).log_prob(light, seed=0)
    assert found.isfinite().all()
    # The mean log-density of one pixel over the noise, by the midpoint rule.
    dark = (1 - (torch.arange(10**6).double() + 0.5) / 10**6) / 256  # 1 - pixel
    logit = (1 - dark).log() - dark.log()
    density = -0.5 * logit**2 - 0.5 * math.log(2 * math.pi) - (1 - dark).log() - dark.log()
    exact = float(density.mean()) - math.log(256)
    assert float(found.mean()) / 1024 == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float64])
def test_levels_of_any_kind(dtype: torch.dtype) -> None:
    rows = images()
    dequantized = Dequantized(pair())
    expected = dequantized.log_prob(rows, seed=0)
    assert dequantized.log_prob(rows.to(dtype), seed=0).equal(expected)
    with pytest.raises(ValueError, match="has no rows"):
        dequantized.log_prob(rows[:0])


def test_variational_noise_sees_the_image() -> None:
    noise = VariationalDequantization(SHAPE, channels=4)
    u = torch.rand(1, *SHAPE)
    dark, light = torch.zeros(1, *SHAPE), torch.full((1, *SHAPE), 255.0)
    assert not noise(dark).log_prob(u).equal(noise(light).log_prob(u))


def test_learned_noise_tightens_the_bound() -> None:
    torch.manual_seed(0)
    rows = torch.zeros(64, *SHAPE, dtype=torch.uint8)
    rows[:, :, 1:3, 1:3] = torch.randint(100, 256, (64, 1, 2, 2), dtype=torch.uint8)
    vmonf = pair()
    vmonf.fit(DequantizedImages(rows).loader(32, 0), epochs=12, lr=1e-2, seed=0, progress=False)
    before = {key: value.clone() for key, value in vmonf.state_dict().items()}
    dequantized = Dequantized(vmonf, VariationalDequantization(SHAPE, channels=8))
    history = dequantized.fit(rows, steps=60, lr=2e-2, batch_size=64, seed=0, progress=False)
    assert len(history) == 60
    assert all(value.equal(before[key]) for key, value in vmonf.state_dict().items())
    uniform = Dequantized(vmonf).bits_per_dim(rows, samples=8, seed=1)
    learned = dequantized.bits_per_dim(rows, samples=8, seed=1)
    assert learned < uniform - 0.005


def test_the_program_trains_flows_as_well_under_plain_svi() -> None:
    torch.manual_seed(0)
    dequantized = Dequantized(pair(), VariationalDequantization(SHAPE, channels=4))
    rows = images(16).float()
    pyro.clear_param_store()
    elbo = pyro.infer.Trace_ELBO()
    svi = pyro.infer.SVI(dequantized.model, dequantized.guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    before = [p.clone() for p in dequantized.parameters()]
    svi.step(rows[:8], index=torch.arange(8), size=16)
    pyro.clear_param_store()
    moved = [not p.equal(b) for p, b in zip(dequantized.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.rand(3, *SHAPE), "no whole levels"),
        (torch.full((3, *SHAPE), 256), "expected 0 to 255"),
        (torch.zeros(3, 4, 4), r"expected \(N, \*\(1, 4, 4\)\)"),
    ],
)
def test_refuses_what_is_no_image_of_levels(given: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dequantized(pair()).log_prob(given)


def test_uniform_noise_has_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="uniform noise has no parameters"):
        Dequantized(pair()).fit(images(), steps=1, progress=False)
    assert (
        UniformDequantization()(torch.zeros(2, *SHAPE)).log_prob(torch.rand(2, *SHAPE)).eq(0).all()
    )


def test_a_loader_dequantises_anew_and_can_be_resumed(tmp_path: Path) -> None:
    rows = images(20)
    loader = DequantizedImages(rows).loader(8, seed=3)
    assert isinstance(loader, DataLoader)
    first, second = list(loader), list(loader)
    assert [len(batch) for batch in first] == [8, 8, 4]
    assert not torch.cat(first).sort(0).values.equal(torch.cat(second).sort(0).values)
    levels = (torch.cat(first) * 256).floor().flatten(1).sum(1).sort().values
    assert levels.equal(rows.flatten(1).sum(1).float().sort().values)

    def run(path: str, *callbacks: Callback) -> VMoNF:
        torch.manual_seed(0)
        vmonf = VMoNF(pair().model, SoftmaxGuide(ConvEncoder(SHAPE, 2)))
        vmonf.fit(
            DequantizedImages(rows).loader(8, seed=3),
            epochs=4,
            callbacks=callbacks,
            temperature=1.0,
            seed=0,
            progress=False,
            checkpoint=tmp_path / path,
            resume=tmp_path / path,
        )
        return vmonf

    whole = run("whole.pt").state_dict()

    def interrupt(progress: Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("half.pt", interrupt)
    resumed = run("half.pt").state_dict()
    for name, value in whole.items():
        assert resumed[name].equal(value), name
