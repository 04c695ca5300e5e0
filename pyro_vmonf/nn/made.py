"""Masked networks (MADE); their products skip the masked blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmonf._utils.graphs import is_captured
from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_widths
from pyro_vmonf.nn.mlp import Activation, Linear, activation_named, linear_of_columns, to_columns


class Block(NamedTuple):
    """A range of outputs of a mask, and the inputs that they see.

    Arguments:
        first: first output.
        last: the output after the last one.
        parts: ranges of inputs, each with its first input, the one after its last, and whether
            some of the outputs do not see all of it.
    """

    first: int
    last: int
    parts: list[tuple[int, int, bool]]


class Blocks(NamedTuple):
    """The blocks of a mask ``(out, in)``; all that is outside of them is masked.

    Arguments:
        outputs: a block for each range of outputs, with the inputs that they see.
        inputs: a block of the transposed mask for each range of inputs, with the outputs that see
            them.
    """

    outputs: list[Block]
    inputs: list[Block]


def blocks_of(mask: Tensor, *, rows: int = 48, most: int = 8) -> Blocks:
    """Divide the outputs of a mask, and its inputs, into ranges.

    Sorted degrees make a mask triangular, and nearly half of it is outside of the blocks. Most of a
    block is a part that all its outputs see. A small or unsorted mask is one block.

    Arguments:
        mask: booleans ``(out, in)``.
        rows: the smallest number of outputs, or inputs, of a block.
        most: the largest number of blocks.

    Example:
        >>> blocks_of(torch.ones(4, 4).tril().bool(), rows=2).outputs[1]
        Block(first=2, last=4, parts=[(0, 3, False), (3, 4, True)])
    """
    return Blocks(_ranges(mask, rows, most), _ranges(mask.mT, rows, most))


def _ranges(mask: Tensor, rows: int, most: int) -> list[Block]:
    """Return a block for each range of rows, with an empty part where everything is masked."""
    out = mask.shape[0]
    count = max(min(out // rows, most), 1)
    return [
        Block(first, last, _parts(mask[first:last]))
        for first, last in pairwise(out * i // count for i in range(count + 1))
    ]


def _parts(mask: Tensor) -> list[tuple[int, int, bool]]:
    """Divide the columns that some row sees into those before, in and after what all rows see."""
    seen, whole = mask.any(0).nonzero(), mask.all(0).nonzero()
    start, end = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0)
    first, last = (int(whole[0]), int(whole[-1]) + 1) if len(whole) else (end, end)
    if last - first > len(whole):  # another column is between them
        first = last = end
    parts = ((start, first, True), (first, last, False), (last, end, True))
    return [part for part in parts if part[0] < part[1]] or [(0, 0, False)]


class _BlockwiseProduct(torch.autograd.Function):
    """``(weight * mask) @ x + bias`` for columns, a block at a time.

    Weights are multiplied with their mask only where a part of a block is masked: to read and write
    them takes longer than their product with a batch.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, blocks: Blocks) -> Tensor:
        return _product(weight, mask, x, bias.unsqueeze(-1), blocks.outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, mask, ctx.blocks = inputs
        ctx.save_for_backward(x, weight, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mask = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative follows: nothing in place
            by_x = (weight * mask).mT @ grad
            return by_x, (grad @ x.mT) * mask, grad.sum(2), None, None
        by_x = None
        if ctx.needs_input_grad[0]:
            zeros = grad.new_zeros(1, weight.shape[2], 1)
            by_x = _product(weight.mT, mask.mT, grad, zeros, ctx.blocks.inputs)
        by_weight = _by_weight(x, weight, grad, mask, ctx.blocks.outputs)
        return by_x, by_weight, grad.sum(2), None, None


def _product(weight: Tensor, mask: Tensor, x: Tensor, shift: Tensor, blocks: list[Block]) -> Tensor:
    """Return ``(weight * mask) @ x + shift``."""
    found = []
    for first, last, parts in blocks:
        total = shift[:, first:last]
        for start, end, masked in parts:
            own = weight[:, first:last, start:end]
            own = own * mask[first:last, start:end] if masked else own
            total = torch.baddbmm(total, own, x[:, start:end])
        found.append(total)
    return torch.cat(found, 1)


def _by_weight(
    x: Tensor, weight: Tensor, grad: Tensor, mask: Tensor, blocks: list[Block]
) -> Tensor:
    """Return the gradient of the weights, zero where they are masked.

    A compiler makes a kernel that asks each number for its block of what is written block by block.
    """
    captured = is_captured(weight)
    result = grad.new_empty(weight.shape)
    rows = []
    for first, last, parts in blocks:
        wide = []
        for start, end, masked in parts:
            part = grad[:, first:last] @ x[:, start:end].mT
            part = part * mask[first:last, start:end] if masked else part
            if captured:
                wide.append(part)
            else:
                result[:, first:last, start:end] = part
        start, end = parts[0][0], parts[-1][1]
        if captured:
            rows.append(F.pad(torch.cat(wide, 2), (start, weight.shape[2] - end)))
        else:
            result[:, first:last, :start] = 0.0
            result[:, first:last, end:] = 0.0
    return torch.cat(rows, 1) if captured else result


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, blocks: Blocks) -> Tensor:
    r"""Return :math:`(W \odot M) x + b` for columns.

    Arguments:
        x: columns ``(groups, in, rows)``.
        weight: matrices ``(*batch, out, in)``, one for each group.
        bias: vectors ``(*batch, out)``.
        mask: zeros and ones ``(out, in)``, in the dtype of the weights.
        blocks: the blocks of the mask, from :func:`blocks_of`.

    Returns:
        Columns ``(groups, out, rows)``.
    """
    if len(blocks.outputs) < 2 or torch.compiler.is_compiling():
        return linear_of_columns(x, weight * mask, bias)
    weight, bias = weight.reshape(-1, *weight.shape[-2:]), bias.reshape(-1, bias.shape[-1])
    return _BlockwiseProduct.apply(x, weight, bias, mask, blocks)  # type: ignore[no-any-return]


def hidden_degrees(features: int, width: int, first: int = 1) -> Tensor:
    """Return the degree of each hidden unit, the number of features that it sees, ascending.

    Arguments:
        features: number of features *D*.
        width: number of units.
        first: degree of the first unit; 0 if there is a context.

    Example:
        >>> hidden_degrees(4, 6)
        tensor([1, 1, 2, 2, 3, 3])
    """
    return first + torch.arange(width) * max(features - first, 1) // max(width, 1)


class MaskedMLP(ShownModule):
    r"""MADE: a perceptron whose outputs for feature *i* depend only on the features before *i*.

    A hidden unit of degree *m* sees the features of rank at most *m*; an output of rank *i* sees
    the units of degree below *i*. The degrees are even and sorted, so a layer may be narrower than
    the input.

    Arguments:
        features: number of features *D*.
        parameters: outputs for each feature, *P*.
        hidden: widths of the hidden layers.
        order: permutation of ``range(D)``; ``order[i]`` is the feature that comes *i*-th.
        activation: name of the activation between layers.
        context_features: inputs *H* beside the features, which every output sees.
        batch_shape: one network for each index of this shape.

    References:
        Germain, Gregor, Murray, Larochelle (2015), MADE: Masked Autoencoder for Distribution
        Estimation, arXiv:1502.03509.

    Example:
        >>> MaskedMLP(3, 2, hidden=(2,), batch_shape=(5,))(torch.randn(7, 1, 3)).shape
        torch.Size([7, 5, 3, 2])
    """

    blocks: list[Blocks]

    def __init__(
        self,
        features: int,
        parameters: int,
        *,
        hidden: Sequence[int] = (64, 64),
        order: Sequence[int] | None = None,
        activation: Activation = "relu",
        context_features: int = 0,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.features = features
        self.context_features = context_features
        self.parameters_per_feature = parameters
        self.hidden = check_widths("hidden", hidden)
        self.batch_shape = torch.Size(batch_shape)
        self.activate = activation_named(activation)
        widths = (context_features + features, *self.hidden, features * parameters)
        self.layers = nn.ModuleList(
            Linear(m, n, batch_shape=batch_shape) for m, n in pairwise(widths)
        )
        rank = torch.empty(features, dtype=torch.long)
        rank[torch.as_tensor(range(features) if order is None else order)] = torch.arange(features)
        degrees = [torch.cat((torch.zeros(context_features, dtype=torch.long), rank + 1))]
        degrees += [hidden_degrees(features, width, self.first_degree) for width in self.hidden]
        masks = [b[:, None] >= a for a, b in pairwise(degrees)]
        masks.append((rank + 1)[:, None].repeat_interleave(parameters, 0) > degrees[-1])
        for i, mask in enumerate(masks):
            self.register_buffer(f"mask_{i}", mask)
        _see_masks(self)
        self.register_load_state_dict_post_hook(_see_masks)

    @property
    def first_degree(self) -> int:
        """The number of features that the first hidden units see."""
        return 0 if self.context_features else 1

    def masked_weights(self) -> list[Tensor]:
        """Return the weights ``(*batch, out, in)`` of each layer, zero where they are masked."""
        return [
            layer.weight * getattr(self, f"mask_{i}")  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters ``(*, D, P)`` for inputs ``(*, H + D)``."""
        columns, restore = to_columns(x, self.batch_shape)
        out = restore(self._of_inputs(columns).flatten(1, 2))
        return out.unflatten(-1, (self.features, self.parameters_per_feature))

    def of_columns(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the parameters ``(groups, D, P, rows)`` for columns ``(groups, D, rows)``."""
        return self._of_inputs(x if context is None else torch.cat((context, x), 1))

    def _of_inputs(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = self.activate(x) if i else x
            mask: Tensor = getattr(self, f"mask_{i}").to(x.dtype)
            x = masked_linear(x, layer.weight, layer.bias, mask, self.blocks[i])  # type: ignore[arg-type]
        return x.unflatten(1, (self.features, self.parameters_per_feature))


def _see_masks(network: MaskedMLP, _: object = None) -> None:
    layers = range(len(network.layers))
    network.blocks = [blocks_of(getattr(network, f"mask_{i}").cpu()) for i in layers]
