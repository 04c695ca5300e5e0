"""Densities of the entries that are there, and the law of the missing ones, by exact oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, StudentT

from pyro_vmonf import MAF, NSF, Flow, Gaussian, MAFMoG, RealNVP, Stack
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.distributions.ellipses import Ellipses
from pyro_vmonf.distributions.entries import Partial
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.distributions.partial import Observed, importance, observe
from pyro_vmonf.flows import GaussianMixtures, StandardNormal
from pyro_vmonf.transforms import Permutation, Standardize
from pyro_vmonf.transforms.base import FlowTransform

K, D = 3, 4
NAN = torch.nan


def drawn(bank: nn.Module, scale: float = 0.4) -> nn.Module:
    """Return a bank in float64 with random parameters."""
    with local_seed(0), torch.no_grad():
        for parameter in bank.double().parameters():
            parameter.normal_(0, scale)
    return bank


def rows(count: int = 7, width: int = D) -> tuple[Tensor, Tensor]:
    """Return rows and the same with gaps, the first without any and the last without an entry."""
    with local_seed(1):
        x = torch.randn(count, width).double()
        gaps = torch.rand(count, width) < 0.4
    gaps[0], gaps[-1] = False, True
    return x, x.masked_fill(gaps, NAN)


@pytest.mark.parametrize("unit", [1.0, 50.0])
def test_marginals_of_gaussians_are_those_of_scipy(unit: float) -> None:
    """Behind units, too: only the columns that are there have a Jacobian."""
    bank = drawn(Gaussian(D, K))
    units = Standardize((D,)).double()
    units.loc.fill_(3 * unit)
    units.scale.copy_(unit * torch.arange(1.0, D + 1))
    components = FlowDistribution(bank(), [units])
    _, gaps = rows()
    found = observe(components, (3 * unit + unit * gaps).unsqueeze(1), 1)
    covariances = bank().covariance_matrix * torch.outer(units.scale, units.scale)
    for n, row in enumerate(gaps):
        there = ~row.isnan()
        x, expected = (3 * unit + unit * row)[there].numpy(), torch.zeros(K).double()
        for c in range(K if there.any() else 0):
            mean = (units.loc + units.scale * bank.loc[c])[there].detach().numpy()
            covariance = covariances[c][there][:, there].detach().numpy()
            expected[c] = float(multivariate_normal(mean, covariance).logpdf(x))
        torch.testing.assert_close(found.log_prob[n].detach(), expected, rtol=0, atol=1e-10)
    assert not found.error.any()
    assert (found.effective == 1).all()


def test_draws_of_a_gaussian_have_the_moments_of_the_conditional() -> None:
    bank = drawn(Gaussian(3, 2), 0.7)
    x = torch.tensor([[[0.5, NAN, NAN]]]).double()
    found = observe(bank(), x, 1)
    with local_seed(0):
        draws = found.draw(40_000).squeeze(1).detach()
    for c in range(2):
        mean, full = bank.loc[c].detach(), bank().covariance_matrix[c].detach()
        gain = full[1:, 0] / full[0, 0]
        expected = mean[1:] + gain * (0.5 - mean[0])
        covariance = full[1:, 1:] - torch.outer(gain, full[0, 1:])
        torch.testing.assert_close(found.mean()[0, c, 1:].detach(), expected, rtol=0, atol=1e-10)
        error = (covariance.diagonal() / 40_000).sqrt()
        assert ((draws[:, c, 1:].mean(0) - expected).abs() < 4.5 * error).all()
        torch.testing.assert_close(draws[:, c, 1:].T.cov(), covariance, rtol=0.05, atol=0.02)
        assert (draws[:, c, 0] == 0.5).all()


def test_mixtures_of_gaussians_are_the_sums_of_their_parts() -> None:
    bank = drawn(GaussianMixtures(D, K, 2))
    _, gaps = rows()
    found = observe(bank(), gaps.unsqueeze(1), 1).log_prob
    one = bank()
    parts = []
    for m in range(2):
        factor = torch.linalg.inv(one.whitening[:, m])
        normal = Gaussian(D, K).double()
        normal.set_(one.loc[:, m].detach(), (factor @ factor.mT).detach())
        parts.append(one.log_weights[:, m] + observe(normal(), gaps.unsqueeze(1), 1).log_prob)
    torch.testing.assert_close(found, torch.stack(parts).logsumexp(0), rtol=0, atol=1e-10)


def quadrature(components: Distribution, row: Tensor) -> Tensor:
    """Return the log-density of one entry of a row in the plane, by the trapezoidal rule."""
    grid = torch.linspace(-40, 40, 40_001).double()
    place = int(row.isnan().nonzero())
    points = row.repeat(len(grid), 1)
    points[:, place] = grid
    with torch.no_grad():
        density = components.log_prob(points.unsqueeze(1)).exp()
    return torch.trapezoid(density, grid, dim=0).log()


PLANE = torch.tensor([[0.3, NAN], [-1.0, NAN], [NAN, 0.7], [NAN, -0.4]]).double()
FLOWS: dict[str, Callable[[], nn.Module]] = {
    "RealNVP": lambda: RealNVP(2, 2, blocks=3, hidden=(8,)),
    "MAF": lambda: MAF(2, 2, blocks=2, hidden=(8,)),
    "NSF": lambda: NSF(2, 2, blocks=2, hidden=(8,)),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_is_its_quadrature_within_the_standard_error(kind: str) -> None:
    components = drawn(FLOWS[kind](), 0.3)()
    with local_seed(0):
        found = observe(components, PLANE.unsqueeze(1), 4000)
    expected = torch.stack([quadrature(components, row) for row in PLANE])
    assert (found.error > 0).all()
    assert ((found.log_prob - expected).abs() < 4 * found.error + 1e-6).all()
    assert ((found.effective > 0.02) & (found.effective <= 1)).all()


# One layer is exact where the entries that are missing come last; these are exact by the row.
EXACT: dict[str, tuple[Callable[[], nn.Module], list[bool]]] = {
    "MAF": (lambda: MAF(2, 2, blocks=1, hidden=(8,)), [True, True, False, False]),
    "mixture conditionals": (
        lambda: MAFMoG(2, 2, blocks=1, hidden=(8,), mixtures=2),
        [True, True, False, False],
    ),
    "over mixtures": (
        lambda: MAF(2, 2, blocks=1, base=GaussianMixtures(2, 2, 2)),
        [True, True, False, False],
    ),
    "turned": (
        lambda: Flow(
            [*MAF(2, 2, blocks=1).transforms, Permutation(2, order=(1, 0))],
            base=StandardNormal(2, 2),
        ),
        [False, False, True, True],
    ),
    "coupling": (lambda: RealNVP(2, 2, blocks=1, hidden=(8,)), [True, True, False, False]),
}


@pytest.mark.parametrize("kind", EXACT)
def test_flows_are_exact_where_missing_entries_come_last(kind: str) -> None:
    make, exact = EXACT[kind]
    components = drawn(make(), 0.3)()
    with local_seed(0):
        found = observe(components, PLANE.unsqueeze(1), 4000)
    assert (found.error == 0).all(1).tolist() == exact
    expected = torch.stack([quadrature(components, row) for row in PLANE])
    assert ((found.log_prob - expected).abs() < 4 * found.error + 1e-7).all()


def test_draws_of_an_exact_flow_are_those_of_its_conditional() -> None:
    """The importance-weighted mean of the same entries agrees with the mean of the draws."""
    components = drawn(MAF(2, 2, blocks=1, hidden=(8,)), 0.3)()
    with local_seed(0):
        draws = observe(components, PLANE[:1].unsqueeze(1), 1).draw(20_000)
        other = importance(components, PLANE[:1].unsqueeze(1), 20_000)
    error = draws.std(0) / 20_000**0.5
    weighted = error / other.effective.unsqueeze(-1).sqrt()
    gap = (draws.mean(0) - other.mean()).abs()
    assert (gap <= 4 * (error.square() + weighted.square()).sqrt() + 1e-12).all()


@pytest.mark.parametrize(
    "make",
    [lambda: RealNVP(D, K, blocks=2), lambda: NSF(D, K, blocks=2), lambda: MAF(D, K, blocks=2)],
)
def test_layers_at_the_identity_leave_the_marginals_of_their_base_exact(
    make: Callable[[], nn.Module],
) -> None:
    bank = make().double()
    for transform in bank.transforms:
        for parameter in transform.network.layers[-1].parameters():
            parameter.data.zero_()
    bank.base = drawn(GaussianMixtures(D, K, 2))
    _, gaps = rows()
    found = observe(bank(), gaps.unsqueeze(1), 2)
    expected = observe(bank.base(), gaps.unsqueeze(1), 2)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-10)
    assert not found.error.any()


def test_a_stack_asks_each_part() -> None:
    parts = [
        drawn(Gaussian(D, 2)),
        drawn(RealNVP(D, 1, blocks=2)),
        Independent(StudentT(3.0, torch.zeros(D)), 1),
    ]
    _, gaps = rows()
    bank = Stack(parts).double()
    with local_seed(0):
        found = observe(bank(), gaps.unsqueeze(1), 50)
        draws = found.draw(5)
    exact = observe(parts[0](), gaps.unsqueeze(1), 1).log_prob
    torch.testing.assert_close(found.log_prob[:, :2], exact)
    assert not found.error[:, :2].any()
    assert (found.error[1:-1, 2:] > 0).any(0).all()
    assert draws.shape == (5, len(gaps), 4, D)
    assert found.mean().isfinite().all()


def test_the_bound_is_below_the_likelihood_and_equal_for_the_exact_conditional() -> None:
    components = drawn(Gaussian(2, 2), 0.7)()
    x = PLANE.unsqueeze(1)
    exact = observe(components, x, 1).log_prob
    own = Ellipses(
        torch.zeros(2, 1).double(), components.loc.unsqueeze(1), components.scale_tril.unsqueeze(1)
    )
    with local_seed(0):
        equal = importance(components, x, 1, proposal=own).log_prob
        means = {s: bound(components, x, s) for s in (1, 8)}
    torch.testing.assert_close(equal, exact, rtol=0, atol=1e-10)
    for mean, error in means.values():
        assert (mean < exact + 4 * error).all()
    assert (means[1][0] < means[8][0]).all()  # more draws, a tighter bound


def bound(components: Distribution, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the estimates of the log-density, and its standard error."""
    found = torch.stack([importance(components, x, draws).log_prob for _ in range(300)]).detach()
    return found.mean(0), found.std(0) / 300**0.5


def test_whole_rows_keep_their_density_and_gradients_are_finite() -> None:
    for bank in (drawn(RealNVP(D, K, blocks=2)), drawn(Gaussian(D, K)), drawn(MAF(D, K, blocks=2))):
        x, gaps = rows()
        components = Observed(bank(), 4)
        with local_seed(0):
            found = components.log_prob(gaps.unsqueeze(1))
        torch.testing.assert_close(found[0], bank().log_prob(x[0]))
        torch.testing.assert_close(found[-1].detach(), torch.zeros(K).double())
        found.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in bank.parameters())


class Folded(FlowTransform):
    """A transform that says nothing of missing entries."""

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * z, z.new_full(z.shape[:-1], z.shape[-1]) * 0.6931471805599453

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x / 2, x.new_full(x.shape[:-1], -x.shape[-1]) * 0.6931471805599453


def test_a_transform_of_a_user_is_importance_weighted() -> None:
    bank = Flow([Folded()], base=StandardNormal(2, 1)).double()
    with local_seed(0):
        found: Partial = observe(bank(), PLANE.unsqueeze(1), 4000)
    normal = torch.distributions.Normal(0.0, 2.0)
    expected = normal.log_prob(PLANE.nan_to_num(0.0).sum(1)).unsqueeze(1)
    assert ((found.log_prob - expected).abs() < 4 * found.error).all()
    assert (found.effective > 0.7).all()
