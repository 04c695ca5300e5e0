"""Mixtures of Gaussians as components, and the network that begins at their posterior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.flows import GaussianMixtures, submixtures
from pyro_vmonf.nn import StartedNetwork
from pyro_vmonf.nn.mlp import start_near_zero
from pyro_vmonf.starts.gaussians import GaussianFit

K, M, D = 3, 2, 2


def parts(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for c in range(K):
        size = min(c + 1, count)
        factor = torch.randn(size, D, D, generator=generator).double()
        weights = torch.rand(size, generator=generator).double() + 0.1
        covariances = factor @ factor.mT + 0.1 * torch.eye(D)
        means = torch.randn(size, D, generator=generator).double()
        found.append((weights / weights.sum(), means, covariances))
    return found


def bank() -> GaussianMixtures:
    made = GaussianMixtures(D, K, M).double()
    for c, part in enumerate(parts(M)):
        made.set_(c, *part)
    return made


def test_density_is_that_of_torch() -> None:
    x = torch.randn(7, D).double()
    found = bank()().log_prob(x.unsqueeze(1))
    for c, (weights, means, covariances) in enumerate(parts(M)):
        expected = MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances))
        torch.testing.assert_close(found[:, c], expected.log_prob(x), rtol=1e-9, atol=1e-9)


def test_gaussians_that_are_not_used_get_no_gradient() -> None:
    made = bank()
    made().log_prob(torch.randn(7, 1, D).double()).sum().backward()
    for parameter in made.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert not made.loc.grad[0, 1].any()
    assert made.loc.grad[1, 1].any()


def test_draws_have_the_moments() -> None:
    torch.manual_seed(0)
    draws = bank()().sample((40_000,))
    for c, (weights, means, covariances) in enumerate(parts(M)):
        mean = weights @ means
        apart = means - mean
        cov = torch.einsum("m,mij->ij", weights, covariances) + torch.einsum(
            "m,mi,mj->ij", weights, apart, apart
        )
        scale = cov.diagonal().sqrt()
        assert ((draws[:, c].mean(0) - mean).abs() < 0.03 * scale).all()
        assert (draws[:, c].T.cov() - cov).abs().max() < 0.05 * cov.diagonal().max()


def test_as_a_base_it_is_the_flow_at_the_identity() -> None:
    flow = RealNVP(D, K, blocks=2, base=bank()).double()
    for transform in flow.transforms:
        start_near_zero(transform.network.layers[-1], 0.0)
    x = torch.randn(5, 1, D).double()
    torch.testing.assert_close(flow().log_prob(x), bank()().log_prob(x))


def started() -> StartedNetwork:
    network = StartedNetwork(D, K, M).double()
    densities = [GaussianFit(*(v.numpy() for v in part), 0) for part in parts(M)]
    network.set_([-1.0, -2.0, -0.5], densities)
    return network


def test_network_begins_at_the_posterior() -> None:
    x = torch.randn(6, D).double()
    joint = bank()().log_prob(x.unsqueeze(1)) + torch.tensor([-1.0, -2.0, -0.5]).double()
    torch.testing.assert_close(started()(x), joint, rtol=1e-9, atol=1e-9)
    network = started()
    with torch.no_grad():
        network.residual.layers[-1].bias.add_(torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(network(x)[:, 0], joint[:, 0] + 1.0)
    network.reset_parameters()
    torch.testing.assert_close(network(x), joint)


def test_pair_is_saved_and_loaded(tmp_path: object) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(bank(), "learned"), SoftmaxGuide(started())).double()
    vmonf.save(f"{tmp_path}/pair.pt")
    loaded = VMoNF.load(f"{tmp_path}/pair.pt")
    x = torch.randn(6, D).double()
    assert torch.equal(loaded.log_prob(x), vmonf.log_prob(x))
    assert torch.equal(loaded.predict_proba(x), vmonf.predict_proba(x))


def test_more_gaussians_than_there_are_places_are_refused() -> None:
    made = bank()
    with pytest.raises(ValueError, match="3 Gaussians were given; a component has 2"):
        made.set_(0, torch.ones(3), torch.zeros(3, D), torch.eye(D).expand(3, D, D))


@pytest.mark.parametrize("bad", [0, -1, 2.5])
def test_number_of_gaussians_is_checked(bad: float) -> None:
    with pytest.raises((ValueError, TypeError), match="mixtures"):
        GaussianMixtures(D, K, bad)  # type: ignore[arg-type]


def test_many_gaussians_score_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient the memory is bounded; the numbers are the same."""
    x = torch.randn(29, D, generator=torch.Generator().manual_seed(1)).double()
    model = FlowMixture(RealNVP(D, K, blocks=2, base=bank())).double()
    for rows in (x.unsqueeze(1), x.unsqueeze(1).expand(-1, K, -1), x[0]):
        whole = bank()().log_prob(rows)
        flows = model.components().log_prob(rows)
        for most in (1, 100, 10**9):
            monkeypatch.setattr(submixtures, "LARGEST", most)
            with torch.no_grad():
                torch.testing.assert_close(bank()().log_prob(rows), whole, rtol=1e-12, atol=1e-12)
                found = model.components().log_prob(rows)
                torch.testing.assert_close(found, flows, rtol=1e-12, atol=1e-12)
