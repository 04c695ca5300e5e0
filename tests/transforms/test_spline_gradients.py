"""The closed gradient of a spline's inverse, against that of torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyro_vmonf.transforms import RationalQuadratic, spline

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # Forward mode loads parts of torch that this torch itself calls deprecated.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]


def values_and_parameters(bins: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Values inside and outside of the box, and parameters of a spline for each."""
    x = torch.linspace(-4, 4, 23) + 0.01 * torch.randn(2, 23)
    return x.requires_grad_(), (spread * torch.randn(2, 3 * bins - 1, 23)).requires_grad_()


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("bins", [1, 2, 8])
def test_it_is_the_gradient_of_the_formula(bins: int, spread: float) -> None:
    univariate = RationalQuadratic(bins, 3.0)
    given = values_and_parameters(bins, spread)
    outer = [torch.randn(2, 23), torch.randn(2, 23)]
    found = torch.autograd.grad(univariate.inverse(*given), given, outer)
    wanted = torch.autograd.grad(spline._inverse(*given, univariate.box)[:2], given, outer)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("part", [0, 1])
def test_one_of_the_two_outputs_is_enough(part: int) -> None:
    univariate = RationalQuadratic(4, 3.0)
    given = values_and_parameters(4)
    found = torch.autograd.grad(univariate.inverse(*given)[part].sum(), given)
    formula = spline._inverse(*given, univariate.box)[:2][part]
    for one, other in zip(found, torch.autograd.grad(formula.sum(), given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bins", [1, 3])
def test_first_and_second_derivatives_are_those_of_differences(bins: int) -> None:
    univariate = RationalQuadratic(bins, 3.0)
    x, theta = (value[:1, ..., ::4].detach() for value in values_and_parameters(bins))
    given = (x.requires_grad_(), theta.requires_grad_())
    assert torch.autograd.gradcheck(univariate.inverse, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(univariate.inverse, given)


def test_a_map_over_rows_and_a_hessian_are_those_of_the_formula() -> None:
    univariate = RationalQuadratic(5, 3.0)
    x, theta = (value.detach() for value in values_and_parameters(5))

    def of_inverse(x: Tensor, theta: Tensor) -> Tensor:
        return torch.stack(univariate.inverse(x, theta)).sum()

    def of_formula(x: Tensor, theta: Tensor) -> Tensor:
        return torch.stack(spline._inverse(x, theta, univariate.box)[:2]).sum()

    for derived in (torch.func.grad, torch.func.hessian):
        found, wanted = (torch.func.vmap(derived(f, 1))(x, theta) for f in (of_inverse, of_formula))
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
