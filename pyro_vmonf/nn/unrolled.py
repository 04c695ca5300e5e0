"""An autoregressive network with its own outputs as inputs, in the time of one pass."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from pyro_vmonf.nn.made import MaskedMLP, hidden_degrees
from pyro_vmonf.nn.mlp import Linear


class _Known:
    """The features ``(G, n, N)`` known so far, of a fixed final width.

    New features are written in place without gradients, and concatenated with them.
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


def _layers_in_order(
    network: MaskedMLP, order: Tensor
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return weights and biases of all layers, and of the outputs, for features in their order."""
    features, per_feature = network.features, network.parameters_per_feature
    layers = cast("list[Linear]", list(network.layers))
    # One step may complete units of several degrees, so the masks are necessary here as well.
    weights = [weight.reshape(-1, *weight.shape[-2:]) for weight in network.masked_weights()]
    biases = [layer.bias.reshape(-1, layer.bias.shape[-1], 1) for layer in layers]
    beside = network.context_features
    come = torch.cat((torch.arange(beside, device=order.device), beside + order))
    weights[0] = weights[0].index_select(-1, come)  # inputs in their order
    out, out_bias = (
        last[-1].unflatten(1, (features, per_feature)).index_select(1, order).flatten(1, 2)
        for last in (weights, biases)
    )
    return weights, biases, out, out_bias


def unroll(
    network: MaskedMLP,
    order: Tensor,
    z: Tensor,
    emit: Callable[[Tensor, Tensor], Tensor],
    context: Tensor | None = None,
) -> Tensor:
    """Compute features one after the other, from the network's outputs for the features before.

    Hidden units are sorted by degree, so new features complete a slice of them. Each unit is
    computed once, when its inputs exist: all steps together cost one pass. Features without a new
    unit of the last hidden layer between them do not see each other, and are one step.

    Arguments:
        network: the network, with its parameters ``(*batch, out, in)``.
        order: the first feature, the second, and so on, ``(D,)``.
        z: columns ``(G, D, N)``, one group for each index of the network's batch.
        emit: function from some features ``(G, n, N)`` of ``z`` and their parameters
            ``(G, n, P, N)`` to their values ``(G, n, N)``; calls follow the order of the features.
        context: the context of the rows, ``(G, H, N)``.

    Returns:
        The values ``(G, D, N)``.
    """
    features, per_feature = network.features, network.parameters_per_feature
    beside = network.context_features
    weights, biases, out, out_bias = _layers_in_order(network, order)
    # The number of complete units of each layer for each number of known features.
    known = torch.arange(features + 1)
    complete = [
        torch.searchsorted(
            hidden_degrees(features, width, network.first_degree), known, right=True
        ).tolist()
        for width in network.hidden
    ]
    inputs = _Known(z, beside + features)
    hidden = [_Known(z, width) for width in network.hidden]
    z = z.index_select(1, order)
    seen = complete[-1] if hidden else known.tolist()
    steps = [i for i in range(features) if i == 0 or seen[i] != seen[i - 1]]

    def complete_units(before: list[int], after: list[int]) -> None:
        for i, (below, above) in enumerate(pairwise((inputs, *hidden))):
            first, end = before[i], after[i]
            if first < end:
                incoming = below()
                weight = weights[i][:, first:end, : incoming.shape[1]]
                bias = biases[i][:, first:end]
                above.add(network.activate(torch.baddbmm(bias, weight, incoming)))

    if context is not None:
        inputs.add(context)
    complete_units([0] * len(hidden), [units[0] for units in complete])
    values: list[Tensor] = []
    for start, stop in pairwise((*steps, features)):
        last = hidden[-1]() if hidden else inputs()
        rows = slice(start * per_feature, stop * per_feature)
        theta = torch.baddbmm(out_bias[:, rows], out[:, rows, : last.shape[1]], last)
        value = emit(z[:, start:stop], theta.unflatten(1, (stop - start, per_feature)))
        values.append(value)
        inputs.add(value)
        complete_units([units[start] for units in complete], [units[stop] for units in complete])
    return torch.cat(values, 1).index_select(1, order.argsort())
