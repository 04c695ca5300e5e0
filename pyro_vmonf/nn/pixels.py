"""Masked convolutional networks: the output at a pixel depends on the pixels before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.convolutions import Precision, Way, check_precision, convolve, lowered, to_maps

Place = tuple[int, int]
Known = dict[Place, Tensor]  # a tensor (groups, channels, rows) for each known pixel


class MaskedConvolution(nn.Module):
    """A batch of convolutions that see the pixels above and at the left, in raster order.

    Each input and output belongs to a channel of the image. At the pixel itself an output sees the
    inputs of earlier channels; it sees its own channel unless the layer is ``strict``.

    Arguments:
        inputs: the channel of the image for each input.
        outputs: the channel of the image for each output.
        size: width of the kernels, odd; their height above the pixel is half of it.
        strict: leave out the output's own channel.
        way: ``"grouped"`` or ``"loop"``.
        batch_shape: one convolution for each index of this shape.

    References:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel Recurrent Neural Networks,
        arXiv:1601.06759.
    """

    mask: Tensor

    def __init__(
        self,
        inputs: Tensor,
        outputs: Tensor,
        *,
        size: int,
        strict: bool = False,
        way: Way = "grouped",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if check_positive("size", size) % 2 == 0:
            raise ValueError(f"size is {size}; kernels have an odd width")
        self.size = size
        self.way = way
        self.batch_shape = torch.Size(batch_shape)
        reach = size // 2
        mask = torch.ones(len(outputs), len(inputs), reach + 1, size)
        mask[..., -1, reach + 1 :] = 0
        own = inputs < outputs[:, None] if strict else inputs <= outputs[:, None]
        mask[..., -1, reach] = own.float()
        self.register_buffer("mask", mask, persistent=False)
        self.weight = nn.Parameter(torch.empty(*self.batch_shape, *mask.shape))
        self.bias = nn.Parameter(torch.empty(*self.batch_shape, len(outputs)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters anew, as :class:`torch.nn.Conv2d` does."""
        bound = 1 / math.sqrt(max(int(self.mask[-1].count_nonzero()), 1))
        self.weight.uniform_(-bound, bound)
        self.bias.uniform_(-bound, bound)

    def of_maps(self, x: Tensor) -> Tensor:
        """Return maps ``(rows, groups·out, H, W)`` for maps ``(rows, groups·in, H, W)``."""
        weight = (self.weight * self.mask).to(x.dtype)
        out = convolve(x, weight, self.bias.to(x.dtype), self.way)
        return out[..., : x.shape[-2], :]

    def pixelwise(self, groups: int) -> Callable[[Known, Place], Tensor]:
        """Return the function from known pixels to the output ``(groups, out, rows)`` at a pixel.

        It uses the pixels before, and the pixel itself if it is known.
        """
        reach = self.size // 2
        count = reach * self.size + reach + 1
        weight = (self.weight * self.mask).flatten(-2)
        weight = weight.reshape(-1, *weight.shape[-3:]).expand(groups, -1, -1, -1)
        bias = self.bias.reshape(-1, self.bias.shape[-1], 1).expand(groups, -1, -1)

        def at(known: Known, place: Place) -> Tensor:
            row, column = place
            near = [
                (row + tap // self.size - reach, column + tap % self.size - reach)
                for tap in range(count)
            ]
            taps = [tap for tap, other in enumerate(near) if other in known]
            seen = torch.cat([known[near[tap]] for tap in taps], 1)
            kernel = weight[..., taps].transpose(-1, -2).flatten(-2)
            return torch.baddbmm(bias, kernel, seen)

        return at


class PixelNetwork(nn.Module):
    r"""A batch of residual networks of masked convolutions, with parameters for every pixel.

    A strict layer of width ``first``, ``blocks`` times :math:`h + f(\mathrm{relu}(h))` with a
    masked 3×3 and a 1×1 convolution in *f*, a 1×1 layer, and a separate bias for each place in the
    image.

    Arguments:
        image_shape: ``(C, H, W)``.
        parameters: number *P* of outputs for each number of the image.
        channels: width of the network, preferably a multiple of *C*.
        blocks: number of residual blocks.
        first: width of the first layer's kernels.
        shared_trunk: share every layer but the last between the components; it is then computed
            once, and not for each of them.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``eval()`` uses that of the input.
        batch_shape: one network for each index of this shape.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        parameters: int,
        *,
        channels: int,
        blocks: int,
        first: int,
        shared_trunk: bool = False,
        way: Way = "grouped",
        precision: Precision = "float32",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.image_shape = torch.Size(image_shape)
        depth, height, width = self.image_shape
        if check_positive("channels", channels) < depth:
            raise ValueError(f"channels is {channels}; expected at least the image's {depth}")
        check_positive("blocks", blocks, minimum=0)
        self.parameters_per_pixel = parameters
        self.precision = check_precision(precision)
        self.batch_shape = torch.Size(batch_shape)
        of_image = torch.arange(depth)
        hidden = torch.arange(channels) * depth // channels
        out = of_image.repeat_interleave(parameters)

        def layer(
            inputs: Tensor, outputs: Tensor, size: int, shape: Sequence[int], strict: bool = False
        ) -> MaskedConvolution:
            return MaskedConvolution(
                inputs, outputs, size=size, strict=strict, way=way, batch_shape=shape
            )

        trunk_shape = () if shared_trunk else self.batch_shape

        # Only the first layer is strict: its outputs do not depend on their own channel.
        self.first = layer(of_image, hidden, first, trunk_shape, strict=True)
        self.inner = nn.ModuleList(
            layer(hidden, hidden, size, trunk_shape) for _ in range(blocks) for size in (3, 1)
        )
        self.last = layer(hidden, out, 1, self.batch_shape)
        self.place = nn.Parameter(torch.zeros(*self.batch_shape, len(out), height, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the network anew, near zero."""
        for part in (self.first, *self.inner, self.last):
            part.reset_parameters()  # type: ignore[operator]
        self.last.weight.mul_(0.1)
        self.last.bias.mul_(0.1)
        self.place.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the parameters ``(*, C·P, H, W)`` for images ``(*, C, H, W)``."""
        maps, restore = to_maps(lowered(x, self), self.first.batch_shape)
        hidden = self.first.of_maps(maps)
        for wide, narrow in zip(self.inner[::2], self.inner[1::2], strict=True):
            step = wide.of_maps(torch.relu(hidden))  # type: ignore[operator]
            hidden = hidden + narrow.of_maps(torch.relu(step))  # type: ignore[operator]
        maps, restore = to_maps(torch.relu(restore(hidden)), self.batch_shape)
        return restore(self.last.of_maps(maps)).to(x.dtype) + self.place

    def unroll(self, z: Tensor, emit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Compute an image pixel by pixel, from the network's outputs for the pixels before.

        Each layer keeps its values and computes every pixel once: one pass in all for an image of
        one channel.

        Arguments:
            z: images ``(groups, C, rows, H, W)``.
            emit: function from one number of each row ``(groups, 1, rows)`` of ``z`` and its
                parameters ``(groups, 1, P, rows)`` to its value ``(groups, 1, rows)``.

        Returns:
            The values, of the shape of ``z``.
        """
        depth, height, width = self.image_shape
        groups = len(z)
        first, last = self.first.pixelwise(groups), self.last.pixelwise(groups)
        inner = [part.pixelwise(groups) for part in self.inner]  # type: ignore[operator]
        place = self.place.reshape(-1, depth, self.parameters_per_pixel, 1, height, width)
        image: Known = {}
        kept: list[Known] = [{} for _ in inner[::2]]

        def parameters(at: Place) -> Tensor:
            hidden = first(image, at)
            for known, wide, narrow in zip(kept, inner[::2], inner[1::2], strict=True):
                known[at] = torch.relu(hidden)
                hidden = hidden + narrow({at: torch.relu(wide(known, at))}, at)
            return last({at: torch.relu(hidden)}, at)

        for at in ((row, column) for row in range(height) for column in range(width)):
            here = torch.zeros_like(z[..., 0, 0])
            for channel in range(depth):
                # The mask hides the later channels of the pixel.
                image[at] = here
                theta = parameters(at).unflatten(1, (depth, -1))[:, channel]
                theta = theta + place[:, channel, ..., at[0], at[1]]
                own = slice(channel, channel + 1)
                value = emit(z[:, own, :, at[0], at[1]], theta.unsqueeze(1))
                here = torch.cat((here[:, :channel], value, here[:, channel + 1 :]), 1)
            image[at] = here
        values = torch.stack(list(image.values()), -1)
        return values.unflatten(-1, (height, width))
