"""Autoregressive sampling in one pass, against a full pass for each feature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_vmonf import MAF, AutoregressiveNSF
from pyro_vmonf.transforms import AffineAutoregressive, SplineAutoregressive
from pyro_vmonf.transforms.autoregressive import Autoregressive

pytestmark = pytest.mark.usefixtures("float64")
D = 7


def naive(transform: Autoregressive, z: Tensor) -> tuple[Tensor, Tensor]:
    """Run the whole network once for each feature."""
    x = torch.zeros(torch.broadcast_shapes(z.shape, (*transform.batch_shape, D)))
    slopes = []
    for i in transform.order.tolist():
        theta = transform.network(x)[..., i, :]
        rows = z[..., i].expand(x.shape[:-1]).unsqueeze(-2)
        moved = transform.univariate.forward(rows, theta.mT.unsqueeze(-3))
        value, slope = (part.squeeze(-2) for part in moved)
        x = torch.stack([value if j == i else x[..., j] for j in range(D)], -1)
        slopes.append(slope)
    return x, torch.stack(slopes).sum(0)


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 1, 3)])
@pytest.mark.parametrize("hidden", [(), (2,), (5,), (16, 3), (4, 9, 8)])
@pytest.mark.parametrize("kind", [AffineAutoregressive, SplineAutoregressive])
@pytest.mark.parametrize("differentiated", [True, False])
def test_one_pass_draws_what_many_do(
    kind: type, hidden: tuple[int, ...], batch_shape: tuple[int, ...], differentiated: bool
) -> None:
    order = torch.randperm(D)
    transform = kind(D, order=order, hidden=hidden, batch_shape=batch_shape)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    z = torch.randn(4, *(1 for _ in batch_shape), D)
    wanted, log_det = naive(transform, z)
    with torch.set_grad_enabled(differentiated):
        found, found_log_det = transform.forward_and_log_det(z)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_log_det, log_det, rtol=1e-10, atol=1e-10)
    if differentiated:
        parameters = list(transform.parameters())
        mine, theirs = (
            torch.autograd.grad((x.sin() + d.unsqueeze(-1)).sum(), parameters, allow_unused=True)
            for x, d in ((found, found_log_det), (wanted, log_det))
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bank", [MAF, AutoregressiveNSF])
def test_each_hidden_unit_is_computed_once(bank: type) -> None:
    flow = bank(D, 3, blocks=1, hidden=(12, 5))
    network = flow.transforms[0].network
    activate, columns = network.activate, []

    def counting(x: Tensor) -> Tensor:
        columns.append(x.shape[1])
        return activate(x)

    network.activate = counting
    flow().sample((6,))
    assert sum(columns) == 12 + 5
