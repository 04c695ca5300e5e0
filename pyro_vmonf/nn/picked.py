"""Some outputs of a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Picked(nn.Module):
    """A network with a selection of its outputs, in any order.

    Arguments:
        network: module whose output ends in a dimension of logits.
        index: positions of the selected logits.

    Example:
        >>> network = torch.nn.Identity()
        >>> Picked(network, torch.tensor([2, 0]))(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3., 1.]])
    """

    index: Tensor

    def __init__(self, network: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("index", index.clone())

    def __getattr__(self, name: str) -> Any:
        if name == "remember_":
            return getattr(self.network, name)
        if name == "start":  # logits of a network that knows where it began
            start: Any = self.network.start
            return lambda x: start(x).index_select(-1, self.index)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).index_select(-1, self.index)
