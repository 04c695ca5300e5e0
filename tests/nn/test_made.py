"""Products that skip what a mask forbids, against the masked matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_vmonf.nn.made import MaskedMLP, blocks_of, masked_linear
from pyro_vmonf.transforms import AffineAutoregressive

pytestmark = pytest.mark.usefixtures("float64")
G, OUT, IN, ROWS = 3, 100, 30, 7

MASKS = {
    "lower": torch.ones(OUT, IN).tril(IN - OUT).bool(),
    "upper": torch.ones(OUT, IN).triu().bool(),
    "random": torch.rand(OUT, IN, generator=torch.Generator().manual_seed(0)) < 0.3,
    "nothing": torch.zeros(OUT, IN).bool(),
    "everything": torch.ones(OUT, IN).bool(),
}


def inputs() -> list[Tensor]:
    shapes = [(G, IN, ROWS), (G, OUT, IN), (G, OUT)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def dense(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return (weight * mask) @ x + bias.unsqueeze(-1)


@pytest.mark.parametrize("name", MASKS)
def test_blocks_hold_all_that_a_mask_allows(name: str) -> None:
    mask = MASKS[name]
    blocks = blocks_of(mask, rows=10)
    for ranges, allowed in ((blocks.outputs, mask), (blocks.inputs, mask.mT)):
        covered = torch.zeros_like(allowed)
        for first, last, parts in ranges:
            for start, end, masked in parts:
                covered[first:last, start:end] = True
                assert masked or allowed[first:last, start:end].all()
        assert not (allowed & ~covered).any()
        assert not covered.any() or name != "nothing"
        if name == "lower":
            assert covered.double().mean() < 0.3


@pytest.mark.parametrize("name", MASKS)
def test_value_and_gradients_are_those_of_the_masked_matrix(name: str) -> None:
    mask, given = MASKS[name], inputs()
    blocks = blocks_of(mask, rows=10)
    found = masked_linear(*given, mask.double(), blocks)
    wanted = dense(*given, mask)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), given),
        torch.autograd.grad((wanted * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_can_be_differentiated_again() -> None:
    mask, given = MASKS["lower"], inputs()
    blocks = blocks_of(mask, rows=10)
    results = []
    for product in (
        lambda *g: masked_linear(*g, mask.double(), blocks),
        lambda *g: dense(*g, mask),
    ):
        value = product(*given).sin().sum()
        slopes = torch.autograd.grad(value, given, create_graph=True)
        squares = sum(s.square().sum() for s in slopes)
        results.append(torch.autograd.grad(squares, given))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


def test_a_stack_of_networks_under_vmap_is_each_of_them() -> None:
    mask = MASKS["lower"].double()
    blocks = blocks_of(MASKS["lower"], rows=10)
    stacked = [torch.randn(4, *g.shape, requires_grad=True) for g in inputs()]
    found = torch.vmap(lambda *g: masked_linear(*g, mask, blocks))(*stacked)
    wanted = torch.stack([dense(*(s[i] for s in stacked), mask) for i in range(4)])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad(found.square().sum(), stacked)
    theirs = torch.autograd.grad(wanted.square().sum(), stacked)
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [range(60), range(59, -1, -1), torch.randperm(60).tolist()])
def test_wide_layers_return_to_the_data(order: list[int]) -> None:
    transform = AffineAutoregressive(60, order=list(order), hidden=(120,), batch_shape=(2,))
    assert len(transform.network.blocks[0].outputs) == 2
    x = torch.randn(5, 1, 60)
    z, log_det = transform.inverse_and_log_det(x)
    returned, back = transform.forward_and_log_det(z)
    torch.testing.assert_close(returned, x.expand_as(returned), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, -log_det, rtol=1e-9, atol=1e-9)


def test_a_loaded_order_brings_its_blocks() -> None:
    one = MaskedMLP(60, 2, hidden=(120,), order=list(range(59, -1, -1)))
    other = MaskedMLP(60, 2, hidden=(120,))
    assert one.blocks != other.blocks
    other.load_state_dict(one.state_dict())
    assert one.blocks == other.blocks
    x = torch.randn(3, 60)
    torch.testing.assert_close(other(x), one(x))
