"""Points outside a support have density zero, and fixed components keep their units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform, SigmoidTransform
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import Flow, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF, select
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import Logit

K, D = 2, 2
INSIDE = torch.tensor([[0.2, 0.3], [0.7, 0.9], [0.5, 0.5]])
OUTSIDE = torch.tensor([[1.2, 0.2], [-0.1, 0.5], [2.0, -3.0]])
BOX = dist.Uniform(torch.zeros(D), torch.ones(D)).to_event(1)


def bounded() -> FlowMixture:
    flow = RealNVP(D, K, blocks=2)
    return FlowMixture(Flow([*flow.transforms, Logit(alpha=0.0)], base=flow.base))


CHAINS: dict[str, tuple[list[Any], Tensor, Tensor]] = {
    "sigmoid": ([SigmoidTransform()], INSIDE, OUTSIDE),
    "exp": ([ExpTransform()], INSIDE, -INSIDE),
    "exp, then moved": ([ExpTransform(), AffineTransform(3.0, 2.0)], 3 + INSIDE, INSIDE),
    "moved, then sigmoid": ([AffineTransform(3.0, 2.0), SigmoidTransform()], INSIDE, OUTSIDE),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_has_no_density_outside_of_its_range(chain: str) -> None:
    transforms, inside, outside = CHAINS[chain]
    base = dist.Normal(torch.zeros(K, D), 1.0).to_event(1)
    flow = FlowDistribution(base, transforms)
    x = torch.cat((inside, outside)).unsqueeze(1).requires_grad_()
    value = flow.log_prob(x)
    of_torch = torch.distributions.TransformedDistribution(base, transforms, validate_args=False)
    expected = of_torch.log_prob(inside.unsqueeze(1))
    torch.testing.assert_close(value[: len(inside)], expected)
    assert (value[len(inside) :] == -torch.inf).all()
    (gradient,) = torch.autograd.grad(value[: len(inside)].sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("guide", ["softmax", "none"])
def test_the_verbs_say_that_rows_are_outside(guide: str) -> None:
    vmonf = VMoNF(bounded(), SoftmaxGuide(MLP(D, K)) if guide == "softmax" else None)
    x = torch.cat((INSIDE, OUTSIDE))
    message = r"rows 3, 4, 5 lie outside the support of every component \(3 of 6 rows\)"
    with pytest.warns(RuntimeWarning, match=message):
        log_prob = vmonf.log_prob(x)
    with pytest.warns(RuntimeWarning, match=message):
        proba = vmonf.predict_proba(x)
    with pytest.warns(RuntimeWarning, match=message):
        cluster = vmonf.predict(x, exact=True)
    assert log_prob[:3].isfinite().all()
    assert (log_prob[3:] == -torch.inf).all()
    torch.testing.assert_close(proba[3:], torch.full((3, K), 1 / K))
    assert (cluster[:3] >= 0).all()
    assert (cluster[3:] == -1).all()


def test_fit_names_the_rows_and_leaves_the_pair_alone() -> None:
    vmonf = VMoNF(bounded(), SoftmaxGuide(MLP(D, K)))
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match=r"rows 3, 4, 5 of x lie outside"):
        vmonf.fit(torch.cat((INSIDE, OUTSIDE)), epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in vmonf.state_dict().items())


def test_fit_names_the_rows_of_a_loader() -> None:
    x = torch.cat((INSIDE, INSIDE, OUTSIDE))
    loader = DataLoader(TensorDataset(x), batch_size=4)
    with pytest.raises(ValueError, match=r"rows 6, 7 of x lie outside"):
        VMoNF(bounded()).fit(loader, epochs=1, progress=False)


FIXED: dict[str, Callable[[], Any]] = {
    "box": lambda: dist.Uniform(torch.zeros(D), torch.tensor([40.0, 20.0])).to_event(1),
    "StudentT": lambda: dist.StudentT(3.0, torch.tensor([20.0, 10.0]), 5.0).to_event(1),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("fixed", FIXED)
def test_a_fixed_component_keeps_its_units_and_gets_its_share(fixed: str, place: int) -> None:
    generator = torch.Generator().manual_seed(0)
    cluster = torch.randn(300, D, generator=generator) * 0.5 + torch.tensor([20.0, 5.0])
    clutter = torch.rand(60, D, generator=generator) * torch.tensor([40.0, 20.0])
    x = torch.cat((cluster, clutter))
    parts: list[Any] = [Gaussian(D, 1)]
    parts.insert(place, FIXED[fixed]())
    vmonf = VMoNF(FlowMixture(parts, "learned"))
    vmonf.fit(x, epochs=150, lr=3e-2, progress=False, seed=0)
    own = vmonf.component_log_prob(x)[:, place]
    torch.testing.assert_close(own, FIXED[fixed]().log_prob(x))
    assert abs(float(vmonf.model.weights().exp()[place].detach()) - 1 / 6) < 0.05
    if fixed == "box":
        far = torch.tensor([[50.0, 5.0]])
        assert vmonf.component_log_prob(far)[0, place] == -torch.inf
        assert vmonf.log_prob(far).isfinite().all()


def test_a_fixed_bank_is_scored_in_raw_units() -> None:
    bank = dist.Normal(torch.tensor([[100.0, 0.0], [110.0, 5.0]]), 1.0).to_event(1)
    vmonf = VMoNF(FlowMixture(bank, "learned"), SoftmaxGuide(MLP(D, K)))
    x = bank.expand([40, K]).sample().flatten(0, 1)
    vmonf.fit(x, epochs=1, progress=False, seed=0)
    torch.testing.assert_close(vmonf.component_log_prob(x), bank.log_prob(x.unsqueeze(1)))


WRONG = [(5, 1), (5,), (5, 3), (1,), (2, 5), ()]


@pytest.mark.parametrize("shape", WRONG)
def test_points_of_another_shape_are_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    model = FlowMixture([RealNVP(D, 1, blocks=2), BOX])
    vmonf = VMoNF(model, SoftmaxGuide(MLP(D, K)))
    x = torch.full(shape, 0.5)
    verbs: list[Callable[[Tensor], Any]] = [
        model.marginal().log_prob,
        model.components().log_prob,
        model.bank().log_prob,
        RealNVP(D, K, blocks=2)().log_prob,
        model.log_posterior,
        vmonf.guide.log_q,
        vmonf.guide.log_posterior,
        select(model.components(), torch.zeros((), dtype=torch.long)).log_prob,
        vmonf.log_prob,
        vmonf.component_log_prob,
        vmonf.predict,
        vmonf.predict_proba,
        vmonf.elbo,
        vmonf.model,
    ]
    for verb in verbs:
        with pytest.raises(ValueError, match=r"shape|features"):
            verb(x)
