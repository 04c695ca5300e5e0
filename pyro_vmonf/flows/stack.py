"""Different components side by side, and short forms of banks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf.contracts import optional
from pyro_vmonf.distributions.stacked import StackedDistribution
from pyro_vmonf.flows.constant import ConstantDistribution
from pyro_vmonf.program import Registered

Bank = nn.Module | Distribution | Sequence[nn.Module | Distribution]


def as_bank(bank: Bank) -> nn.Module:
    """Return a bank as a module.

    Arguments:
        bank: a module, which comes back itself; a distribution; or a list of them, side by side.

    Raises:
        TypeError: for anything else.

    Example:
        >>> from torch.distributions import Independent, Laplace, Normal
        >>> parts = [Independent(d(torch.zeros(2), torch.ones(2)), 1) for d in (Normal, Laplace)]
        >>> as_bank(parts)().batch_shape
        torch.Size([2])
    """
    if isinstance(bank, nn.Module):
        return bank
    if isinstance(bank, Distribution):
        return ConstantDistribution(bank)
    if isinstance(bank, (list, tuple)):
        return Stack(bank)
    raise TypeError(
        f"the bank is a {type(bank).__name__}; expected a module whose call returns a "
        "distribution, a distribution, or a list of them"
    )


def component_of(bank: nn.Module, context: Tensor | None = None) -> Distribution:
    """Return the components of a bank; fixed ones stay in raw units."""
    make = optional(bank, "as_component", bank)
    return make() if context is None else make(context)  # type: ignore[no-any-return]


class Stack(Registered):
    """A bank of different components: other banks side by side (thesis 4.2, footnote 1).

    Arguments:
        parts: distributions of ``batch_shape`` ``()`` or ``(K_i,)``, or modules whose call returns
            one.

    Raises:
        ValueError: if there are no parts.

    Example:
        >>> from pyro_vmonf import NSF, Gaussian, RealNVP
        >>> Stack([Gaussian(2, 1), RealNVP(2, 3), NSF(2, 1)])().batch_shape
        torch.Size([5])
    """

    def __init__(self, parts: Sequence[nn.Module | Distribution]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("no components were given; pass at least one bank")
        self.parts = nn.ModuleList(as_bank(part) for part in parts)

    def forward(self, context: Tensor | None = None) -> StackedDistribution:
        return StackedDistribution([component_of(part, context) for part in self.parts])
