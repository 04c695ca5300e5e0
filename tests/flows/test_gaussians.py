"""An affine bank is a Gaussian mixture: gradients and EM reach the same likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from pyro_vmonf import Flow, FlowMixture, Gaussian, LearnedWeights, VMoNF
from pyro_vmonf.flows import StandardNormal
from pyro_vmonf.transforms import Affine

K, D = 3, 2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_affine_bank_reaches_the_likelihood_of_em(seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [4.0, 1.0], [1.0, 5.0]])
    shapes = random.normal(size=(K, D, D))
    counts = (200, 120, 80)
    x = np.concatenate(
        [
            c + random.normal(size=(n, D)) @ a
            for c, a, n in zip(centres, shapes, counts, strict=True)
        ]
    )
    start = x[random.choice(len(x), K, replace=False)]
    em = GaussianMixture(
        K,
        means_init=start,
        weights_init=np.full(K, 1 / K),
        precisions_init=np.tile(np.eye(D), (K, 1, 1)),
        max_iter=500,
        tol=1e-8,
    ).fit(x)

    affine = Affine(D, batch_shape=(K,))
    with torch.no_grad():  # the same start: unit covariances at the same means
        affine.permutation.copy_(torch.arange(D).expand(K, D))
        affine.signs.fill_(1.0)
        for parameter in (affine.lower, affine.upper, affine.log_scale):
            parameter.zero_()
        affine.shift.copy_(torch.as_tensor(start))
    bank = Flow([affine], base=StandardNormal(D, K))
    # Steps of one size for weights and components, as the oracle takes them.
    vmonf = VMoNF(FlowMixture(bank, LearnedWeights(K, "gradient")))
    vmonf.fit(
        torch.as_tensor(x),
        epochs=400,
        batch_size=len(x),
        lr=0.05,
        standardize=False,
        progress=False,
    )
    assert vmonf.log_prob(x).mean() == pytest.approx(em.score(x), abs=0.01)


@pytest.mark.parametrize(
    ("loc", "covariance"),
    [
        (torch.ones(3, 2), torch.eye(3).expand(3, 3, 3)),
        (torch.ones(2), torch.eye(2)),
        (torch.ones(3, 2), torch.eye(2).expand(2, 2, 2)),
        (torch.ones(3, 2), -torch.eye(2).expand(3, 2, 2)),
    ],
)
def test_means_that_are_refused_change_nothing(loc: torch.Tensor, covariance: torch.Tensor) -> None:
    bank = Gaussian(2, 3)
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    with pytest.raises(ValueError, match="covariance"):
        bank.set_(loc, covariance)
    assert all(torch.equal(bank.state_dict()[name], value) for name, value in before.items())
