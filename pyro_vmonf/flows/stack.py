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


def probed(bank: nn.Module, features: int, like: Tensor) -> Distribution:
    """Return what a bank returns for one row, and check that its K is no number of rows.

    Arguments:
        bank: the bank.
        features: features of the context of a row; 0 without one.
        like: a tensor of the kind of the context.

    Raises:
        ValueError: if it has no batch dimension for K.
    """
    counts = (1, 3) if features else (1,)
    found = [component_of(bank, like.new_zeros(n, features) if features else None) for n in counts]
    shapes = [tuple(part.batch_shape) for part in found]
    if shapes[0] and len({shape[-1] for shape in shapes}) == 1:
        return found[0]
    rows = f" for {counts[-1]} rows of context" if features else ""
    raise ValueError(
        f"the bank's distribution has batch_shape {shapes[-1]} and event_shape "
        f"{tuple(found[0].event_shape)}{rows}; expected batch_shape (*, K)"
    )


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
