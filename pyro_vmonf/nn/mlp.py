"""Networks with a batch of parameters: one matrix product a layer for K networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_widths

Activation = Literal["relu", "tanh", "silu", "gelu", "elu", "softplus"]

# An activation whose gradient needs only its result overwrites the output of its layer. This saves
# a large tensor, and a good part of the time.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "tanh": torch.tanh_,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "softplus": F.softplus,
}


def activation_named(name: str) -> Callable[[Tensor], Tensor]:
    """Return the activation of a name; it may overwrite its argument.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation is {name!r}; choose one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def to_columns(x: Tensor, batch_shape: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Arrange the rows of ``x`` with the same parameters side by side, as columns.

    A dimension of ``x`` over a parameter dimension larger than one is a *group*, and one batched
    product serves all groups; every other dimension holds *rows*. Rows are contiguous in memory:
    halves of the features, outputs of several networks and parameters of one feature are views. All
    layers use this order, so there is no copy between them.

    Arguments:
        x: tensor ``(*, in)`` whose ``*`` broadcasts with ``batch_shape``, aligned on the right.
        batch_shape: the batch shape of the parameters.

    Returns:
        The tensor ``(groups, in, rows)``, and the function from ``(groups, out, rows)`` to
        ``(*, out)``.
    """
    depth = max(x.dim() - 1, len(batch_shape))
    sizes = (1,) * (depth - len(batch_shape)) + tuple(batch_shape)
    x = x[(None,) * (depth + 1 - x.dim())]
    groups = [i for i in range(depth) if sizes[i] > 1]
    rows = [i for i in range(depth) if sizes[i] <= 1]
    shape = [sizes[i] for i in groups] + [x.shape[i] for i in rows]
    inverse = [(groups + rows).index(i) for i in range(depth)] + [depth]

    def restore(out: Tensor) -> Tensor:
        return out.mT.reshape(*shape, out.shape[-2]).permute(inverse)

    x = x.permute(*groups, depth, *rows).contiguous()  # one copy before the expansion, not K
    x = x.expand(*shape[: len(groups)], *x.shape[len(groups) :])
    count = math.prod(shape[len(groups) :])
    return x.reshape(math.prod(sizes), x.shape[len(groups)], count), restore


def linear_of_columns(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return :math:`W x + b` for columns, in one matrix product.

    Consecutive matrices share a group of columns if there are several for each group; their outputs
    are side by side. The next layer has as many matrices, and separates them.

    Arguments:
        x: columns ``(groups, in, rows)``, or the output of such a layer.
        weight: matrices ``(*batch, out, in)``, one for each group or a multiple.
        bias: vectors ``(*batch, out)``.

    Returns:
        Columns ``(groups, matrices / groups * out, rows)``, a new tensor.
    """
    width = weight.shape[-1]
    if x.shape[1] != width:
        x = x.reshape(x.shape[0] * x.shape[1] // width, width, x.shape[2])
    groups = x.shape[0]
    together = math.prod(weight.shape[:-1]) // max(groups, 1)
    return torch.baddbmm(bias.view(groups, together, 1), weight.view(groups, together, width), x)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Return :math:`W x + b` for a batch of matrices, in one matrix product.

    Arguments:
        x: tensor ``(*, in)``.
        weight: tensor ``(*batch, out, in)``; ``batch`` broadcasts with ``*``.
        bias: tensor ``(*batch, out)``.

    Returns:
        Tensor ``(*, out)`` with ``*`` broadcast against ``batch``.

    Example:
        >>> x, weight, bias = torch.randn(7, 1, 3), torch.randn(5, 4, 3), torch.zeros(5, 4)
        >>> linear(x, weight, bias).shape
        torch.Size([7, 5, 4])
    """
    batch_shape = weight.shape[:-2]
    if math.prod(batch_shape) == 1:
        x = x[(None,) * (len(batch_shape) + 1 - x.dim())]
        return F.linear(x, weight.reshape(weight.shape[-2:]), bias.reshape(bias.shape[-1:]))
    columns, restore = to_columns(x, batch_shape)
    return restore(linear_of_columns(columns, weight, bias))


@torch.no_grad()
def start_near_zero(layer: Linear, scale: float = 0.1) -> None:
    """Scale the last layer of a conditioner down, so that its transform starts near the identity.

    At the scale of torch a MAF over 784 logits starts some 10¹⁶ nats away from the data. At zero
    all K components would be equal, and stay equal without a guide.
    """
    layer.weight.mul_(scale)
    layer.bias.mul_(scale)


class Linear(nn.Module):
    r"""A batch of affine maps :math:`x \mapsto W x + b`.

    Arguments:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        batch_shape: one map for each index of this shape; ``()`` is :class:`torch.nn.Linear`.

    Example:
        >>> Linear(3, 4, batch_shape=(5,))(torch.randn(7, 1, 3)).shape
        torch.Size([7, 5, 4])
    """

    def __init__(
        self, in_features: int, out_features: int, *, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.batch_shape = torch.Size(batch_shape)
        self.weight = nn.Parameter(torch.empty(*self.batch_shape, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(*self.batch_shape, out_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew, as :class:`torch.nn.Linear` does."""
        bound = 1 / math.sqrt(max(self.in_features, 1))
        self.weight.uniform_(-bound, bound)
        self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def of_columns(self, x: Tensor) -> Tensor:
        """Return columns: see :func:`linear_of_columns`."""
        return linear_of_columns(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"{self.in_features}, {self.out_features}{batch}"


class MLP(ShownModule):
    """A multilayer perceptron, or a batch of them.

    Arguments:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        hidden: widths of the hidden layers; ``()`` is an affine map.
        activation: name of the activation between layers.
        batch_shape: one perceptron for each index of this shape.

    Example:
        >>> MLP(2, 5, hidden=(3,))(torch.randn(7, 2)).shape
        torch.Size([7, 5])
        >>> MLP(2, 4, hidden=(8,), batch_shape=(5,))(torch.randn(7, 1, 2)).shape
        torch.Size([7, 5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: Activation = "relu",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.hidden = check_widths("hidden", hidden)
        self.activation = activation
        self.batch_shape = torch.Size(batch_shape)
        self._activate = activation_named(activation)
        widths = (in_features, *self.hidden, out_features)
        self.layers = nn.ModuleList(
            Linear(m, n, batch_shape=batch_shape) for m, n in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        if math.prod(self.batch_shape) > 1:
            columns, restore = to_columns(x, self.batch_shape)
            return restore(self.of_columns(columns))
        *hidden, last = self.layers
        for layer in hidden:
            x = self._activate(layer(x))
        return last(x)

    def of_columns(self, x: Tensor) -> Tensor:
        """Return columns, side by side where networks share them: :func:`linear_of_columns`."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self._activate(layer.of_columns(x))  # type: ignore[operator]
        return last.of_columns(x)  # type: ignore[operator]


class ConvEncoder(ShownModule):
    """A small convolutional classifier: two convolutions of stride two, one hidden layer.

    Batch normalisation follows each of them. Without it a guide that learns from its terms alone
    mostly ends in a poor clustering (``docs/clustering.md``).

    Arguments:
        image_shape: ``(channels, height, width)``; flattened images ``(*, C·H·W)`` are reshaped.
        out_features: size of the output's last dimension.
        channels: channels of the two convolutions.
        hidden: width of the hidden layer.
        batch_norm: normalise the layers; in ``eval()`` no row depends on another.

    Raises:
        ValueError: if the images have another shape.

    Example:
        >>> ConvEncoder((1, 8, 8), 5)(torch.randn(7, 64)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        *,
        channels: Sequence[int] = (16, 32),
        hidden: int = 128,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.image_shape = torch.Size(image_shape)
        self.out_features = out_features
        self.channels = tuple(channels)
        self.hidden = hidden
        self.batch_norm = batch_norm
        depth, height, width = self.image_shape
        first, second = self.channels
        size = second * math.ceil(math.ceil(height / 2) / 2) * math.ceil(math.ceil(width / 2) / 2)
        layers: list[nn.Module] = []
        for incoming, outgoing in ((depth, first), (first, second)):
            layers.append(nn.Conv2d(incoming, outgoing, 3, stride=2, padding=1))
            layers += [nn.BatchNorm2d(outgoing)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
        layers += [nn.Flatten(), nn.Linear(size, hidden)]
        layers += [nn.BatchNorm1d(hidden)] if batch_norm else []
        self.layers = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(hidden, out_features))

    def features(self, x: Tensor) -> Tensor:
        """Return the hidden layer ``(*, hidden)`` of images ``(*, C, H, W)`` or flattened ones.

        Raises:
            ValueError: if the images have another shape.
        """
        flat = x.shape[-3:] != self.image_shape
        if flat and x.shape[-1:] != (self.image_shape.numel(),):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected images (*, "
                f"{', '.join(map(str, self.image_shape))}), or flat ones "
                f"(*, {self.image_shape.numel()})"
            )
        batch_shape = x.shape[:-1] if flat else x.shape[:-3]
        found: Tensor = self.layers[:-1](x.reshape(-1, *self.image_shape))
        return found.reshape(*batch_shape, self.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[-1](self.features(x))
