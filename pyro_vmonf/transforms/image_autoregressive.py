"""Autoregressive transforms of images: the pixels before a pixel move it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from pyro_vmonf.nn.convolutions import ConvolutionOptions, Precision, Way, to_maps
from pyro_vmonf.nn.pixels import PixelNetwork
from pyro_vmonf.transforms.image import ImageTransform
from pyro_vmonf.transforms.univariate import RationalQuadratic, ShiftAndScale, Univariate


class ImageAutoregressiveOptions(ConvolutionOptions, total=False):
    """The arguments of an :class:`ImageAutoregressive` beside the images and their map."""

    backwards: bool
    first: int
    shared_trunk: bool


class ImageAutoregressive(ImageTransform):
    r"""A monotone map of each pixel, with parameters computed from the pixels before it.

    .. math::
        x_i = h(z_i; \theta_i(x_{<i})), \qquad \log|\det| = \sum_i \log h'(z_i)

    Each direction costs one pass through the masked convolutional network. The pass towards data
    goes pixel by pixel, and keeps the values of every layer.

    Arguments:
        image_shape: ``(C, H, W)``.
        univariate: the map *h*.
        backwards: start at the last pixel.
        channels: width of the network.
        blocks: number of its residual blocks.
        first: width of the kernels of its first layer, odd.
        shared_trunk: share every layer but the last between the components.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``eval()`` uses that of the input.
        batch_shape: one transform for each index of this shape.

    References:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel Recurrent Neural Networks,
        arXiv:1601.06759.
    """

    backwards: bool
    channels: int
    blocks: int
    first: int
    shared_trunk: bool
    way: Way
    precision: Precision

    def __init__(
        self,
        image_shape: Sequence[int],
        univariate: Univariate,
        *,
        backwards: bool = False,
        channels: int = 32,
        blocks: int = 3,
        first: int = 7,
        shared_trunk: bool = False,
        way: Way = "grouped",
        precision: Precision = "float32",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        self.image_shape = torch.Size(image_shape)
        self.univariate = univariate
        self.network = PixelNetwork(
            image_shape,
            univariate.parameters,
            channels=channels,
            blocks=blocks,
            first=first,
            shared_trunk=shared_trunk,
            way=way,
            precision=precision,
            batch_shape=batch_shape,
        )

    def reset_parameters(self) -> None:
        """Draw the network anew, near the identity."""
        self.network.reset_parameters()

    def _turned(self, images: Tensor) -> Tensor:
        """Move the first pixel to the upper left, or back."""
        return images.flip((-1, -2)) if self.backwards else images

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self._turned(x)
        theta = self.network(x).unflatten(-3, (self.image_shape[0], -1)).flatten(-2)
        z, log_slope = self.univariate.inverse(x.flatten(-2), theta)
        return self._turned(z.unflatten(-1, self.image_shape[1:])), log_slope.sum((-1, -2))

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        maps, restore = to_maps(self._turned(z), self.batch_shape)
        images = maps.unflatten(1, (self.batch_shape.numel(), -1))
        slopes: list[Tensor] = []

        def emit(numbers: Tensor, theta: Tensor) -> Tensor:
            value, slope = self.univariate.forward(numbers, theta)
            slopes.append(slope)
            return value

        x = self.network.unroll(images.permute(1, 2, 0, 3, 4), emit)
        total = restore(torch.cat(slopes, 1).sum(1).mT[..., None, None]).flatten(-3).squeeze(-1)
        return self._turned(restore(x.permute(2, 0, 1, 3, 4).flatten(1, 2))), total


class AffineImageAutoregressive(ImageAutoregressive):
    r"""The layer :math:`x_i = z_i e^{\alpha_i} + \mu_i` of images, by masked convolutions.

    Arguments:
        image_shape, backwards, channels, blocks, first: as for :class:`ImageAutoregressive`.
        shared_trunk, way, precision, batch_shape: as for :class:`ImageAutoregressive`.
        bound: the largest log-scale.

    Example:
        >>> transform = AffineImageAutoregressive((1, 6, 6), batch_shape=(5,))
        >>> transform.inv(torch.randn(7, 1, 1, 6, 6)).shape
        torch.Size([7, 5, 1, 6, 6])
    """

    bound: float

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        bound: float = 5.0,
        **options: Unpack[ImageAutoregressiveOptions],
    ) -> None:
        super().__init__(image_shape, ShiftAndScale(bound), **options)


class SplineImageAutoregressive(ImageAutoregressive):
    """The layer of images whose map is a rational-quadratic spline, by masked convolutions.

    Arguments:
        image_shape, backwards, channels, blocks, first: as for :class:`ImageAutoregressive`.
        shared_trunk, way, precision, batch_shape: as for :class:`ImageAutoregressive`.
        bins: number of pieces of each spline.
        bound: the map is the identity outside ``[-bound, bound]``.

    Example:
        >>> transform = SplineImageAutoregressive((1, 4, 4), batch_shape=(5,))
        >>> transform(torch.randn(7, 1, 1, 4, 4)).shape
        torch.Size([7, 5, 1, 4, 4])
    """

    bins: int
    bound: float

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        bins: int = 8,
        bound: float = 4.0,
        **options: Unpack[ImageAutoregressiveOptions],
    ) -> None:
        super().__init__(image_shape, RationalQuadratic(bins, bound), **options)
