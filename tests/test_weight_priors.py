"""Priors and posteriors of weights, against closed forms and integrals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pyro.distributions import Dirichlet, LogisticNormal
from torch import Tensor
from torch.distributions import Distribution, Normal, StickBreakingTransform, biject_to

from pyro_vmonf.weight_priors import (
    DirichletPosterior,
    NormalPosterior,
    PointPosterior,
    Posterior,
    StickBreaking,
    SticksPosterior,
    as_prior,
    posterior_of,
)

pytestmark = pytest.mark.usefixtures("float64")


def sticks(k: int = 4) -> StickBreaking:
    torch.manual_seed(3)
    return StickBreaking(0.5 + torch.rand(k - 1).double(), 0.5 + 2 * torch.rand(k - 1).double())


def test_sticks_of_a_dirichlet_are_the_dirichlet() -> None:
    alpha = torch.tensor([0.7, 2.0, 1.3, 3.1]).double()
    rest = alpha.flip(0).cumsum(0).flip(0)[1:]
    one, other = StickBreaking(alpha[:-1], rest), Dirichlet(alpha)
    pi = other.sample((50,))
    torch.testing.assert_close(one.log_prob(pi), other.log_prob(pi), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.mean, other.mean)
    expected = alpha.digamma() - alpha.sum().digamma()
    torch.testing.assert_close(one.mean_log, expected)


def test_the_density_of_sticks_integrates_to_one() -> None:
    prior = StickBreaking(torch.tensor([1.5, 2.0]).double(), torch.tensor([3.0, 1.2]).double())
    grid = (torch.arange(1000).double() + 0.5) / 1000
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    inside = a + b < 1
    pi = torch.stack((a, b, 1 - a - b), -1)[inside]
    assert prior.log_prob(pi).exp().sum() / 1e6 == pytest.approx(1, abs=2e-3)


def test_draws_of_sticks_have_their_moments() -> None:
    prior = sticks()
    draws = prior.sample((200_000,))
    torch.testing.assert_close(draws.sum(-1), torch.ones(200_000).double())
    error = draws.std(0) / 200_000**0.5
    assert ((draws.mean(0) - prior.mean).abs() < 5 * error).all()
    error = draws.log().std(0) / 200_000**0.5
    assert ((draws.log().mean(0) - prior.mean_log).abs() < 5 * error).all()


def test_draws_of_sticks_are_differentiable() -> None:
    a = torch.ones(3).double().requires_grad_()
    prior = StickBreaking(a, 2 * torch.ones(3).double())
    prior.rsample((10,)).log().sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert prior.expand((5,)).sample((2,)).shape == (2, 5, 4)


def test_the_process_halves_the_stick() -> None:
    prior = StickBreaking.process(5, 1.0)
    torch.testing.assert_close(prior.mean, torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16]))


def test_tiny_pieces_keep_a_finite_density() -> None:
    prior = StickBreaking(torch.full((3,), 0.01).double(), torch.full((3,), 0.01).double())
    pi = prior.sample((1000,))
    assert pi.log().isfinite().all()
    assert prior.log_prob(pi).isfinite().all()
    assert Dirichlet(torch.full((4,), 0.01)).sample((1000,)).clamp_min(1e-38).log().isfinite().all()


PRIORS: dict[str, Callable[[], Distribution]] = {
    "dirichlet": lambda: Dirichlet(torch.tensor([1.0, 2.0, 0.5, 4.0])),
    "sticks": sticks,
    "logistic-normal": lambda: LogisticNormal(torch.zeros(3), torch.ones(3)),
}
POSTERIORS: dict[str, type[Posterior]] = {
    "dirichlet": DirichletPosterior,
    "sticks": SticksPosterior,
    "point": PointPosterior,
    "normal": NormalPosterior,
}


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_means_are_those_of_the_draws(prior: str, posterior: str) -> None:
    made = POSTERIORS[posterior](PRIORS[prior]())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        draws: Tensor = made().sample((100_000,))
        error = 5 * draws.std(0) / 100_000**0.5 + (2e-3 if posterior == "normal" else 1e-9)
        assert ((draws.mean(0) - made.log_mean().exp()).abs() < error).all()
        error = 5 * draws.log().std(0) / 100_000**0.5 + (5e-3 if posterior == "normal" else 1e-9)
        assert ((draws.log().mean(0) - made.mean_log()).abs() < error).all()


@pytest.mark.parametrize("prior", ["dirichlet", "sticks"])
def test_a_posterior_of_the_priors_family_starts_at_the_prior(prior: str) -> None:
    made = PRIORS[prior]()
    posterior = posterior_of(as_prior(made))
    pi = made.sample((10,))
    torch.testing.assert_close(posterior().log_prob(pi), made.log_prob(pi))
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.add_(1)
    posterior.reset_parameters()  # type: ignore[operator]
    torch.testing.assert_close(posterior().log_prob(pi), made.log_prob(pi))


def test_the_normal_posterior_is_what_an_autoguide_has() -> None:
    posterior = NormalPosterior(PRIORS["logistic-normal"]())
    z = torch.randn(20, 3)
    pi = biject_to(torch.distributions.constraints.simplex)(z)
    normal = Normal(posterior.loc, posterior.log_scale.exp()).log_prob(z).sum(-1)
    expected = normal - StickBreakingTransform().log_abs_det_jacobian(z, pi)
    torch.testing.assert_close(posterior().log_prob(pi), expected)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Dirichlet(torch.ones(2, 3)), r"batch_shape \(2,\)"),
        (Normal(torch.zeros(3), 1.0), "on the simplex"),
        (torch.tensor([1.0, -1.0]), "positive"),
        (torch.ones(2, 2), "vector of K"),
    ],
)
def test_what_is_no_prior_of_weights_is_refused(prior: Distribution, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_prior(prior)
