"""What components have in common: trunks at either end, one wing turned K ways."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pyro_vmonf import (
    MAF,
    NSF,
    AutoregressiveNSF,
    Flow,
    FlowMixture,
    Gaussian,
    MarginalGuide,
    RealNVP,
    RotatedRealNVP,
    VMoNF,
)
from pyro_vmonf.datasets import pinwheel
from pyro_vmonf.em import num_parameters
from pyro_vmonf.transforms import Rotation

K, D = 3, 4
FAMILIES: dict[str, type[RealNVP | MAF | NSF | AutoregressiveNSF]] = {
    "RealNVP": RealNVP,
    "MAF": MAF,
    "NSF": NSF,
    "AutoregressiveNSF": AutoregressiveNSF,
}


@pytest.mark.parametrize("end", ["data", "base"])
@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trunk_is_the_same_for_all(family: str, shared: int, end: str) -> None:
    make = FAMILIES[family]
    bank = make(D, K, blocks=3, hidden=(4,), shared=shared, shared_at=end).double()  # type: ignore[arg-type]
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.5)
    common = [t for t in bank.transforms if t.batch_shape == ()]
    assert len(common) == shared
    if shared:
        assert (bank.transforms[-1] if end == "data" else bank.transforms[0]) in common
    # the private twin: the trunk's parameters copied K times
    twin = make(D, K, blocks=3, hidden=(4,)).double()
    for own, copied in zip(bank.transforms, twin.transforms, strict=True):
        for one, other in zip(own.parameters(), copied.parameters(), strict=True):
            with torch.no_grad():
                other.copy_(one.expand_as(other) if own.batch_shape == () else one)
    x = torch.randn(7, 1, D, dtype=torch.float64)
    torch.testing.assert_close(bank().log_prob(x), twin().log_prob(x), rtol=1e-9, atol=1e-9)
    z = torch.randn(7, K, D, dtype=torch.float64)
    torch.testing.assert_close(bank()._push(z), twin()._push(z), rtol=1e-9, atol=1e-9)
    bank().log_prob(x).sum().backward()
    twin().log_prob(x).sum().backward()
    for own, copied in zip(bank.transforms, twin.transforms, strict=True):
        for one, other in zip(own.parameters(), copied.parameters(), strict=True):
            summed = other.grad.sum(0) if own.batch_shape == () else other.grad
            torch.testing.assert_close(one.grad, summed.reshape(one.shape), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("shared", "end"), [(4, "data"), (-1, "data"), (1, "middle")])
def test_errors(shared: int, end: str) -> None:
    with pytest.raises(
        ValueError, match=f"shared is {shared} of 3 blocks and shared_at is '{end}'"
    ):
        RealNVP(D, K, blocks=3, shared=shared, shared_at=end)  # type: ignore[arg-type]


def test_rotations_turn_the_plane_alone() -> None:
    transform = Rotation(D, batch_shape=(K,)).double()
    z = torch.randn(7, 1, D, dtype=torch.float64)
    x, log_det = transform.forward_and_log_det(z)
    assert x.shape == (7, K, D)
    assert torch.equal(log_det, torch.zeros(7, K, dtype=torch.float64))
    torch.testing.assert_close(x[..., :2].norm(dim=-1), z[..., :2].norm(dim=-1).expand(7, K))
    assert torch.equal(x[..., 2:], z[..., 2:].expand(7, K, D - 2))
    torch.testing.assert_close(transform.inverse_and_log_det(x)[0], z.expand_as(x))
    for c in range(K):
        jacobian = torch.autograd.functional.jacobian(lambda v, c=c: transform(v)[c], z[0, 0])
        torch.testing.assert_close(jacobian.det(), torch.tensor(1.0).double())
    with torch.no_grad():
        transform.angle.zero_()
    transform.reset_parameters()
    torch.testing.assert_close(transform.angle, 2 * torch.pi * torch.arange(K).double() / K)


def test_the_wings_are_one_wing() -> None:
    bank = RotatedRealNVP(5, blocks=2, hidden=(4,)).double()
    for parameter in bank.parameters():
        nn.init.normal_(parameter, std=0.5)
    bank.transforms[-1].reset_parameters()
    turn = 2 * torch.pi / torch.tensor(5.0).double()
    rotation = torch.stack(
        (torch.stack((turn.cos(), -turn.sin())), torch.stack((turn.sin(), turn.cos())))
    )
    x = torch.randn(9, 1, 2, dtype=torch.float64)
    one, other = bank().log_prob(x), bank().log_prob(x @ rotation.mT)
    torch.testing.assert_close(other[:, 1:], one[:, :-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other[:, 0], one[:, -1], rtol=1e-9, atol=1e-9)


def _held_out(make: Callable[[], Flow], seed: int) -> float:
    x, wing = pinwheel(wings=5, per_wing=40, rate=0.25, seed=seed)
    fresh, _ = pinwheel(wings=5, per_wing=400, rate=0.25, seed=100 + seed)
    torch.manual_seed(seed)
    model = FlowMixture(make())
    vmonf = VMoNF(model, MarginalGuide(model))
    vmonf.fit(x, (-wing) % 5, epochs=150, batch_size=200, lr=1e-2, progress=False, seed=seed)
    return float(vmonf.log_prob(fresh).mean())


def test_one_wing_learns_from_the_rows_of_all() -> None:
    """With 40 rows a wing, five flows of their own know less than one that is turned."""
    for seed in range(2):
        turned = _held_out(lambda: RotatedRealNVP(5, blocks=4, hidden=(8,)), seed)
        private = _held_out(lambda: RealNVP(2, 5, blocks=4, hidden=(8,)), seed)
        assert turned > private + 0.2


def test_tied_parameters_count_once() -> None:
    one, other = Gaussian(2, 1), Gaussian(2, 1)
    other.log_scale, other.lower = one.log_scale, one.lower  # one covariance
    model = FlowMixture([one, other], "learned")
    assert num_parameters(model) == 2 + 2 + 3 + 1
    assert all(parameter.requires_grad for parameter in model.bank.parameters())
    assert num_parameters(FlowMixture([one, one], "learned")) == 2 + 3 + 1
