"""An autoregressive network fed with its own outputs, in the time of a single pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from pyro_vmonf.made import MaskedMLP, hidden_degrees
from pyro_vmonf.nn import Linear


class _Known:
    """Features ``(G, n, N)`` that are there so far, of a width that is known.

    They are written in place where nobody differentiates, and joined where somebody does.
    """

    def __init__(self, like: Tensor, width: int) -> None:
        self.count = 0
        self.grown: Tensor | None = like.new_empty(like.shape[0], 0, like.shape[2])
        self.whole: Tensor | None = None
        if not torch.is_grad_enabled():
            self.whole = like.new_empty(like.shape[0], width, like.shape[2])

    def add(self, features: Tensor) -> None:
        first, self.count = self.count, self.count + features.shape[1]
        if self.whole is not None:
            self.whole[:, first : self.count] = features
        else:
            assert self.grown is not None
            self.grown = torch.cat((self.grown, features), 1)

    def __call__(self) -> Tensor:
        if self.whole is not None:
            return self.whole[:, : self.count]
        assert self.grown is not None
        return self.grown


def unroll(
    network: MaskedMLP, order: Tensor, z: Tensor, emit: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Compute features one after the other, each from the network's outputs for those before it.

    Hidden units are sorted by degree, so those that a new feature completes are a slice, and each
    is computed once, as soon as its inputs exist: the D steps together cost one pass.

    Arguments:
        network: the network, with its parameters ``(*batch, out, in)``.
        order: the feature ``(D,)`` that comes first, second, and so on.
        z: columns ``(G, D, N)`` in as many groups as the network has parameters for.
        emit: function from a feature ``(G, N)`` of ``z`` and its parameters ``(G, P, N)`` to its
            value ``(G, N)``; called in the order of the features.

    Returns:
        The values ``(G, D, N)``.
    """
    features, per_feature = network.features, network.parameters_per_feature
    layers = cast("list[Linear]", list(network.layers))
    weights = [layer.weight.reshape(-1, *layer.weight.shape[-2:]) for layer in layers]
    biases = [layer.bias.reshape(-1, layer.bias.shape[-1], 1) for layer in layers]
    weights[0] = weights[0].index_select(-1, order)  # inputs in the order in which they come
    out = weights[-1].unflatten(-2, (features, per_feature))
    out_bias = biases[-1].unflatten(-2, (features, per_feature))
    # How many units of each layer are complete once so many features are known.
    known = torch.arange(features + 1)
    complete = [
        torch.searchsorted(hidden_degrees(features, width), known, right=True).tolist()
        for width in network.hidden
    ]
    inputs = _Known(z, features)
    hidden = [_Known(z, width) for width in network.hidden]
    values: list[Tensor] = []
    for step, feature in enumerate(order.tolist()):
        last = hidden[-1]() if hidden else inputs()
        weight = out[:, feature, :, : last.shape[1]]
        theta = torch.baddbmm(out_bias[:, feature], weight, last)
        value = emit(z[:, feature], theta)
        values.append(value)
        inputs.add(value.unsqueeze(1))
        for i, (below, above) in enumerate(pairwise((inputs, *hidden))):
            first, end = complete[i][step], complete[i][step + 1]
            if first < end:
                incoming = below()
                weight = weights[i][:, first:end, : incoming.shape[1]]
                bias = biases[i][:, first:end]
                above.add(network.activate(torch.baddbmm(bias, weight, incoming)))
    return torch.stack(values, 1).index_select(1, order.argsort())
