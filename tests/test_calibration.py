"""Posteriors are as sure as they are right, and a guide that knows the clusters keeps them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP

ROWS = 4000


def two_gaussians(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows of N(-1, 1) and N(1, 1), their components, and the exact posterior."""
    generator = torch.Generator().manual_seed(seed)
    c = torch.randint(2, (ROWS,), generator=generator)
    x = torch.randn(ROWS, 2, generator=generator)
    x[:, 0] += 2.0 * c - 1.0
    return x, c, torch.stack((-2 * x[:, 0], 2 * x[:, 0]), -1).softmax(-1)


def knowing_pair(bank: nn.Module, x: Tensor, posterior: Tensor) -> VMoNF:
    """Return a pair whose guide has learned the exact posterior."""
    vmonf = VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(2, 2)))
    vmonf.model.standardize_(x)
    optimizer = torch.optim.Adam(vmonf.guide.parameters(), 1e-2)
    some = slice(1000)
    for _ in range(200):
        optimizer.zero_grad()
        (-(posterior[some] * vmonf.guide.log_q(x[some])).sum(-1).mean()).backward()
        optimizer.step()
    return vmonf


def accuracy(proba: Tensor, c: Tensor) -> float:
    return float((proba.argmax(-1) == c).double().mean())


def calibration_error(proba: Tensor, c: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error: the mean of |confidence - accuracy| over bins."""
    confidence, best = proba.max(-1)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    off = confidence.double() - (best == c).double()
    return float(torch.zeros(bins, dtype=off.dtype).index_add_(0, bin_of, off).abs().sum() / len(c))


@pytest.mark.parametrize(("bank", "seed"), [(Gaussian, 0), (Gaussian, 1), (RealNVP, 0)])
def test_guide_that_knows_two_overlapping_gaussians_keeps_them(
    bank: Callable[[int, int], nn.Module], seed: int
) -> None:
    torch.manual_seed(seed)
    x, c, posterior = two_gaussians(seed)
    vmonf = knowing_pair(bank(2, 2), x, posterior)
    before = accuracy(vmonf.predict_proba(x), c)
    assert before > 0.82
    vmonf.fit(x, steps=300, lr=3e-3, progress=False, seed=seed)
    for exact in (False, True):
        proba = vmonf.predict_proba(x, exact=exact)
        assert accuracy(proba, c) > before - 0.02
        assert calibration_error(proba, c) < 0.03
    report = vmonf.report(x)
    assert report.confidence == pytest.approx(accuracy(vmonf.predict_proba(x), c), abs=0.03)
    assert f"guide {report.confidence:.3f}" in str(report)


def test_gaussians_start_at_the_clusters_of_a_guide_that_knows_some() -> None:
    x, _, posterior = two_gaussians(0)
    bank = Gaussian(2, 2).double()
    bank.start_(x.double(), posterior.double())
    q, rows = posterior.double(), x.double()
    total = q.sum(0)
    means = q.T @ rows / total[:, None]
    torch.testing.assert_close(bank.loc.detach(), means, rtol=1e-9, atol=1e-9)
    factor = bank.scale_tril().detach()
    second = torch.einsum("nk,nd,ne->kde", q, rows, rows) / total[:, None, None]
    covariance = second - means[:, :, None] * means[:, None, :]
    expected = covariance + 1e-3 * torch.eye(2).double()
    torch.testing.assert_close(factor @ factor.mT, expected, rtol=1e-9, atol=1e-9)


def test_gaussians_that_have_a_form_or_see_no_clusters_stay() -> None:
    x, _, posterior = two_gaussians(0)
    bank = Gaussian(2, 2)
    loc = bank.loc.detach().clone()
    for weight in (None, torch.ones(ROWS, 2), torch.rand(ROWS, 1).expand(-1, 2)):
        bank.start_(x, weight)
        assert torch.equal(bank.loc, loc)
    bank.set_(loc, 2 * torch.eye(2).expand(2, 2, 2))
    bank.start_(x, posterior)
    assert torch.equal(bank.loc, loc)
    bank.reset_parameters()
    bank.start_(x, posterior)
    assert not torch.equal(bank.loc, loc)


def test_new_network_is_no_start() -> None:
    torch.manual_seed(0)
    x, _, _ = two_gaussians(0)
    model = FlowMixture(Gaussian(2, 2))
    loc = model.bank.loc.detach().clone()
    VMoNF(model, SoftmaxGuide(MLP(2, 2))).fit(x, steps=1, lr=1e-12, progress=False, seed=0)
    torch.testing.assert_close(model.bank.loc.detach(), loc, rtol=0, atol=1e-9)
