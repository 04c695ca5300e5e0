"""Convolutional networks with a batch of parameters: K of them are one grouped convolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive

Way = Literal["grouped", "loop"]
Precision = Literal["float32", "bfloat16"]


class ConvolutionOptions(TypedDict, total=False):
    """The arguments that the convolutional networks share."""

    channels: int
    blocks: int
    way: Way
    precision: Precision
    batch_shape: Sequence[int]


def to_maps(x: Tensor, batch_shape: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Arrange maps with different parameters side by side, as channels of one image.

    A dimension of ``x`` over a parameter dimension larger than one is a *group*; every other
    dimension holds *rows*. The usual case, one dimension of components at the right, needs no copy.

    Arguments:
        x: images ``(*, C, H, W)`` whose ``*`` broadcasts with ``batch_shape``, aligned on the
            right.
        batch_shape: the batch shape of the parameters.

    Returns:
        The maps ``(rows, groups·C, H, W)``, and the inverse function, which returns maps of any
        channels and sizes as ``(*, C', H', W')``.

    Example:
        >>> maps, restore = to_maps(torch.randn(7, 1, 4, 6, 6), (5,))
        >>> maps.shape, restore(maps[:, :10]).shape
        (torch.Size([7, 20, 6, 6]), torch.Size([7, 5, 2, 6, 6]))
    """
    depth = max(x.dim() - 3, len(batch_shape))
    sizes = (1,) * (depth - len(batch_shape)) + tuple(batch_shape)
    x = x[(None,) * (depth + 3 - x.dim())]
    groups = [i for i in range(depth) if sizes[i] > 1]
    rows = [i for i in range(depth) if sizes[i] <= 1]
    outer = [x.shape[i] for i in rows] + [sizes[i] for i in groups]
    back = [(rows + groups).index(i) for i in range(depth)]
    image = [depth, depth + 1, depth + 2]

    def restore(out: Tensor) -> Tensor:
        return out.reshape(*outer, -1, *out.shape[-2:]).permute(*back, *image)

    x = x.permute(*rows, *groups, *image).expand(*outer, *x.shape[-3:])
    count = math.prod(outer[: len(rows)])
    return x.reshape(count, math.prod(sizes) * x.shape[-3], *x.shape[-2:]), restore


def check_precision(precision: Precision) -> Precision:
    """Return the precision.

    Raises:
        ValueError: if it is unknown.
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; expected 'float32' or 'bfloat16'")
    return precision


def lowered(x: Tensor, network: nn.Module) -> Tensor:
    """Return an input in the ``precision`` of the network in ``train()``, unchanged in ``eval()``.

    Only the networks use the lower precision, because a density sums thousands of numbers.
    """
    low = network.training and network.precision == "bfloat16"
    return x.bfloat16() if low else x


def convolve(x: Tensor, weight: Tensor, bias: Tensor, way: Way = "grouped") -> Tensor:
    """Return the convolution of each group with its kernels, padded with zeros on every side.

    Arguments:
        x: maps ``(rows, groups·in, H, W)``.
        weight: kernels ``(*batch, out, in, h, k)`` of odd width *k*, one batch index a group.
        bias: vectors ``(*batch, out)``.
        way: one grouped convolution, or a loop over the groups; the results agree to rounding.

    Returns:
        Maps ``(rows, groups·out, H', W)``; where *h = k*, *H' = H*.
    """
    out, depth, padding = weight.shape[-4], weight.shape[-3], weight.shape[-1] // 2
    kernels, shifts = weight.reshape(-1, *weight.shape[-3:]), bias.reshape(-1)
    groups = kernels.shape[0] // out
    if way == "grouped" or groups == 1:
        return F.conv2d(x, kernels, shifts, padding=padding, groups=groups)
    parts = zip(x.split(depth, 1), kernels.split(out), shifts.split(out), strict=True)
    return torch.cat([F.conv2d(*part, padding=padding) for part in parts], 1)


class Convolution(ShownModule):
    """A batch of convolutions of stride one that keep an image's height and width.

    Arguments:
        in_channels: channels of the input.
        out_channels: channels of the output.
        size: height and width of the kernels, odd.
        way: ``"grouped"`` or ``"loop"``; ``benchmarks/RESULTS.md`` compares them.
        batch_shape: one convolution for each index of this shape.

    Example:
        >>> Convolution(4, 2, batch_shape=(5,))(torch.randn(7, 1, 4, 6, 6)).shape
        torch.Size([7, 5, 2, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        size: int = 3,
        way: Way = "grouped",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        if check_positive("size", size) % 2 == 0:
            raise ValueError(f"size is {size}; kernels have an odd height and width")
        if way not in ("grouped", "loop"):
            raise ValueError(f"way is {way!r}; expected 'grouped' or 'loop'")
        self.size = size
        self.way = way
        self.batch_shape = torch.Size(batch_shape)
        kernels = (*self.batch_shape, out_channels, in_channels, size, size)
        self.weight = nn.Parameter(torch.empty(kernels))
        self.bias = nn.Parameter(torch.empty(*self.batch_shape, out_channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew, as :class:`torch.nn.Conv2d` does."""
        bound = 1 / math.sqrt(max(self.in_channels * self.size**2, 1))
        self.weight.uniform_(-bound, bound)
        self.bias.uniform_(-bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        maps, restore = to_maps(x, self.batch_shape)
        return restore(self.of_maps(maps))

    def of_maps(self, x: Tensor) -> Tensor:
        """Return maps: see :func:`convolve`."""
        return convolve(x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.way)


class ResidualNetwork(ShownModule):
    r"""A batch of residual convolutional networks, for the couplings of images.

    A convolution to ``channels`` maps, ``blocks`` times :math:`h + f(\mathrm{relu}(h))` with a
    3×3 and a 1×1 convolution in *f*, and a 3×3 convolution to the output. Its output is near zero
    at first, so that a coupling is near the identity.

    Arguments:
        in_channels: channels of the input.
        out_channels: channels of the output.
        channels: width of the network.
        blocks: number of residual blocks.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``eval()`` uses that of the input.
        batch_shape: one network for each index of this shape.

    References:
        He, Zhang, Ren, Sun (2016), Identity Mappings in Deep Residual Networks, arXiv:1603.05027.

    Example:
        >>> network = ResidualNetwork(4, 2, channels=8, batch_shape=(5,))
        >>> network(torch.randn(7, 1, 4, 6, 6)).shape
        torch.Size([7, 5, 2, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 32,
        blocks: int = 1,
        way: Way = "grouped",
        precision: Precision = "float32",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.channels = check_positive("channels", channels)
        self.blocks = check_positive("blocks", blocks, minimum=0)
        self.way = way
        self.precision = check_precision(precision)
        self.batch_shape = torch.Size(batch_shape)

        def convolution(incoming: int, outgoing: int, size: int = 3) -> Convolution:
            return Convolution(incoming, outgoing, size=size, way=way, batch_shape=batch_shape)

        self.first = convolution(in_channels, channels)
        self.inner = nn.ModuleList(
            convolution(channels, channels, size) for _ in range(blocks) for size in (3, 1)
        )
        self.last = convolution(channels, out_channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the network anew, near zero."""
        for part in (self.first, *self.inner, self.last):
            part.reset_parameters()  # type: ignore[operator]
        self.last.weight.mul_(0.1)
        self.last.bias.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        maps, restore = to_maps(x, self.batch_shape)
        return restore(self.of_maps(maps))

    def of_maps(self, x: Tensor) -> Tensor:
        """Return maps ``(rows, groups·out, H, W)`` for maps ``(rows, groups·in, H, W)``."""
        hidden = self.first.of_maps(lowered(x, self))
        for i in range(0, len(self.inner), 2):
            wide, narrow = self.inner[i], self.inner[i + 1]
            step = wide.of_maps(torch.relu(hidden))  # type: ignore[operator]
            hidden = hidden + narrow.of_maps(torch.relu(step))  # type: ignore[operator]
        return self.last.of_maps(torch.relu(hidden)).to(x.dtype)
