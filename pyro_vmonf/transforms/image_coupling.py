"""Couplings of images: some channels or pixels move the others through a convolutional network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.convolutions import ConvolutionOptions, Precision, ResidualNetwork, Way, to_maps
from pyro_vmonf.transforms.coupling import checkerboard_mask
from pyro_vmonf.transforms.image import ImageTransform
from pyro_vmonf.transforms.univariate import RationalQuadratic, ShiftAndScale, Univariate

Pattern = Literal["channels", "checkerboard"]


class Channels(nn.Module):
    """The pattern of channels: the first half stays, or the second half if flipped.

    Arguments:
        image_shape: ``(C, H, W)``, with two channels at least.
        flip: keep the second half.

    Raises:
        ValueError: if the images have one channel.
    """

    def __init__(self, image_shape: Sequence[int], flip: bool) -> None:
        super().__init__()
        channels = image_shape[0]
        if channels < 2:
            raise ValueError(
                f"images have shape {tuple(image_shape)}; a channel-wise coupling needs two "
                "channels: squeeze them, or use pattern='checkerboard'"
            )
        self.flip = flip
        self.sizes = (channels // 2, channels - channels // 2)
        self.seen, self.moved = self.sizes[::-1] if flip else self.sizes

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's input and the moving part of images ``(rows, groups, C, H, W)``."""
        first, second = images.split(self.sizes, 2)
        return (second, first) if self.flip else (first, second)

    def join(self, images: Tensor, moved: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images with the moved part, and the sum of the log-slopes."""
        stays, _ = self.split(images)
        halves = (moved, stays) if self.flip else (stays, moved)
        return torch.cat(halves, 2), log_slope.sum((-1, -2, -3))


class Checkerboard(nn.Module):
    """The pattern of a checkerboard: every second pixel stays, or the others if flipped.

    The network sees the pixels that stay, zeros in place of the others, and the pattern itself.

    Arguments:
        image_shape: ``(C, H, W)``.
        flip: keep the other pixels.
    """

    stays: Tensor
    batch_shape = torch.Size(())

    def __init__(self, image_shape: Sequence[int], flip: bool) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.seen, self.moved = channels + 1, channels
        stays = checkerboard_mask(height, width, flip).reshape(1, height, width)
        self.register_buffer("stays", stays, persistent=False)

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's input and the moving part of images ``(rows, groups, C, H, W)``."""
        pattern = self.stays.to(images.dtype).expand(*images.shape[:2], *self.stays.shape)
        return torch.cat((images * pattern, pattern), 2), images

    def join(self, images: Tensor, moved: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images with the moved part, and the sum of the log-slopes."""
        log_slope = torch.where(self.stays, 0.0, log_slope)
        return torch.where(self.stays, images, moved), log_slope.sum((-1, -2, -3))


PATTERNS: dict[str, type[Channels] | type[Checkerboard]] = {
    "channels": Channels,
    "checkerboard": Checkerboard,
}


class ImageCouplingOptions(ConvolutionOptions, total=False):
    """The arguments of an :class:`ImageCoupling` beside the images and their map."""

    pattern: Pattern
    flip: bool
    context_channels: int


class ImageCoupling(ImageTransform):
    r"""A monotone map of some channels or pixels, with parameters computed from the others.

    .. math::
        x_2 = z_2, \qquad x_1 = h(z_1; \theta(z_2)), \qquad
        \log|\det| = \sum_i \log h'(z_{1,i})

    Arguments:
        image_shape: ``(C, H, W)``.
        univariate: the map *h*.
        pattern: ``"channels"`` moves half of the channels, ``"checkerboard"`` every second pixel.
        flip: move the others.
        channels: width of the residual convolutional network that computes θ.
        blocks: number of its residual blocks.
        context_channels: channels of the context, an image of the same height and width: see
            :meth:`condition`.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``eval()`` uses that of the input.
        batch_shape: one transform for each index of this shape.

    Raises:
        ValueError: if the pattern is unknown or does not fit the images.
    """

    pattern: Pattern
    flip: bool
    channels: int
    blocks: int
    way: Way
    precision: Precision

    def __init__(
        self,
        image_shape: Sequence[int],
        univariate: Univariate,
        *,
        pattern: Pattern = "channels",
        flip: bool = False,
        channels: int = 32,
        blocks: int = 1,
        context_channels: int = 0,
        way: Way = "grouped",
        precision: Precision = "float32",
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(batch_shape=batch_shape)
        self.context: Tensor | None = None
        if pattern not in PATTERNS:
            raise ValueError(f"pattern is {pattern!r}; choose one of {', '.join(PATTERNS)}")
        self.image_shape = torch.Size(image_shape)
        self.univariate = univariate
        self.context_channels = check_positive("context_channels", context_channels, minimum=0)
        halves = PATTERNS[pattern](self.image_shape, flip)
        self.halves = halves
        self.network = ResidualNetwork(
            halves.seen + context_channels,
            halves.moved * univariate.parameters,
            channels=channels,
            blocks=blocks,
            way=way,
            precision=precision,
            batch_shape=batch_shape,
        )

    def reset_parameters(self) -> None:
        """Draw the network anew, near the identity."""
        self.network.reset_parameters()

    def condition(self, context: Tensor) -> ImageCoupling:
        """Return the coupling for rows with a context ``(*, context_channels, H, W)``.

        Raises:
            ValueError: if the context has another number of channels.
        """
        if not self.context_channels:
            return self
        if context.dim() < 3 or context.shape[-3] != self.context_channels:
            raise ValueError(
                f"the context has shape {tuple(context.shape)}; this coupling takes images of "
                f"{self.context_channels} channels"
            )
        return self._with_context(context)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(z, inverse=False)

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._through(x, inverse=True)

    def _through(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        move = self.univariate.inverse if inverse else self.univariate.forward
        maps, restore = to_maps(x, self.batch_shape)
        images = maps.unflatten(1, (self.batch_shape.numel(), -1))
        seen, active = self.halves.split(images)  # type: ignore[operator]
        if self.context_channels:
            seen = torch.cat((seen, self._context_beside(x)), 2)
        theta = self.network.of_maps(seen.flatten(1, 2))
        # The order in memory: rows, groups, channels, parameters, pixels.
        theta = theta.unflatten(1, (*active.shape[1:3], -1)).flatten(-2)
        moved, log_slope = move(active.flatten(-2), theta)
        moved, log_slope = (t.unflatten(-1, active.shape[-2:]) for t in (moved, log_slope))
        images, total = self.halves.join(images, moved, log_slope)  # type: ignore[operator]
        total = restore(total[..., None, None])
        return restore(images.flatten(1, 2)), total.flatten(-3).squeeze(-1)

    def _context_beside(self, x: Tensor) -> Tensor:
        """Return the context as maps ``(rows, groups, C, H, W)``, one for each row of ``x``."""
        if self.context is None:
            raise ValueError(
                f"this coupling takes a context of {self.context_channels} channels; call "
                "condition(images) first"
            )
        shape = torch.broadcast_shapes(x.shape[:-3], self.context.shape[:-3])
        maps, _ = to_maps(self.context.expand(*shape, *self.context.shape[-3:]), self.batch_shape)
        return maps.unflatten(1, (self.batch_shape.numel(), -1))


class AffineImageCoupling(ImageCoupling):
    r"""The coupling :math:`x_1 = z_1 \odot e^{s(z_2)} + t(z_2)` of images.

    Arguments:
        image_shape, pattern, flip, channels, blocks, context_channels, way, precision, batch_shape:
            as for :class:`ImageCoupling`.
        bound: the largest log-scale.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> transform = AffineImageCoupling((4, 6, 6), batch_shape=(5,))
        >>> x, log_det = transform.forward_and_log_det(torch.randn(7, 1, 4, 6, 6))
        >>> x.shape, log_det.shape
        (torch.Size([7, 5, 4, 6, 6]), torch.Size([7, 5]))
    """

    bound: float

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        bound: float = 2.0,
        **options: Unpack[ImageCouplingOptions],
    ) -> None:
        super().__init__(image_shape, ShiftAndScale(bound), **options)


class SplineImageCoupling(ImageCoupling):
    """A coupling of images by rational-quadratic splines, the identity outside a box.

    Arguments:
        image_shape, pattern, flip, channels, blocks, context_channels, way, precision, batch_shape:
            as for :class:`ImageCoupling`.
        bins: number of pieces of each spline.
        bound: the map is the identity outside ``[-bound, bound]``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> transform = SplineImageCoupling((1, 6, 6), pattern="checkerboard", batch_shape=(5,))
        >>> transform.inv(torch.randn(7, 1, 1, 6, 6)).shape
        torch.Size([7, 5, 1, 6, 6])
    """

    bins: int
    bound: float

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        bins: int = 8,
        bound: float = 4.0,
        **options: Unpack[ImageCouplingOptions],
    ) -> None:
        super().__init__(image_shape, RationalQuadratic(bins, bound), **options)
