"""The base class of transforms of images, squeezes and splits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vmonf.transforms.base import FlowTransform


class ImageTransform(FlowTransform):
    """A bijection of images ``(*, C, H, W)``; :class:`FlowTransform` describes its methods.

    Arguments:
        batch_shape: the batch shape of the parameters.
    """

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)


def squeeze(x: Tensor) -> Tensor:
    """Turn each square of 2×2 pixels into four channels: ``(*, C, H, W)`` to ``(*, 4C, H/2, W/2)``.

    Raises:
        ValueError: if height or width is odd.

    Example:
        >>> squeeze(torch.arange(4.0).reshape(1, 2, 2)).flatten().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    depth, height, width = x.shape[-3:]
    if height % 2 or width % 2:
        raise ValueError(
            f"images are {height} by {width} at this scale; an even height and width are needed: "
            "pad the images, or use fewer scales"
        )
    squares = x.reshape(*x.shape[:-2], height // 2, 2, width // 2, 2)
    moved = squares.movedim((-3, -1), (-4, -3))
    return moved.reshape(*x.shape[:-3], 4 * depth, height // 2, width // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """Return the inverse of :func:`squeeze`."""
    depth, height, width = x.shape[-3:]
    squares = x.reshape(*x.shape[:-3], depth // 4, 2, 2, height, width)
    moved = squares.movedim((-4, -3), (-3, -1))
    return moved.reshape(*x.shape[:-3], depth // 4, 2 * height, 2 * width)


class _Nested(ImageTransform):
    """A chain of transforms of images, from base to data, as one transform."""

    def __init__(self, transforms: Sequence[FlowTransform]) -> None:
        shapes = [tuple(transform.batch_shape) for transform in transforms]
        super().__init__(batch_shape=torch.broadcast_shapes((), *shapes))
        self.transforms = nn.ModuleList(transforms)

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)  # with the chain

    @property
    def waits(self) -> bool:
        return any(transform.waits for transform in self.transforms)

    def _forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[:-3])
        for transform in self.transforms:
            z, log_det = transform.forward_and_log_det(z)  # type: ignore[operator]
            total = total + log_det
        return z, total

    def _inverse_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[:-3])
        for transform in reversed(self.transforms):
            x, log_det = transform.inverse_and_log_det(x)  # type: ignore[operator]
            total = total + log_det
        return x, total

    def _start(self, x: Tensor, weight: Tensor | None) -> Tensor:
        for transform in reversed(self.transforms):
            x = transform.start_(x, weight)  # type: ignore[operator]
        return x


class Squeezed(_Nested):
    """A chain at half the resolution: each square of 2×2 pixels is one pixel with four channels.

    Arguments:
        transforms: the chain, from base to data, of images ``(4C, H/2, W/2)``.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> from pyro_vmonf.transforms import InvertibleConvolution
        >>> Squeezed([InvertibleConvolution(4, batch_shape=(5,))])(torch.randn(7, 1, 1, 6, 6)).shape
        torch.Size([7, 5, 1, 6, 6])
    """

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = self._forward(squeeze(z))
        return unsqueeze(x), log_det

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self._inverse_of(squeeze(x))
        return unsqueeze(z), log_det

    def start_(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return unsqueeze(self._start(squeeze(x), weight))


class Split(_Nested):
    """A chain for the first half of the channels; the other half stays as it is.

    A multi-scale flow holds its coarser scales in it. A channel-wise coupling at its data end gives
    the other half location and scale, from the first half.

    Arguments:
        transforms: the chain, from base to data, of images with half the channels.

    Raises:
        ValueError: if the images have an odd number of channels.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> from pyro_vmonf.transforms import InvertibleConvolution
        >>> x = torch.randn(7, 4, 6, 6)
        >>> bool((Split([InvertibleConvolution(2)])(x)[:, 2:] == x[:, 2:]).all())
        True
    """

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        kept, others = _halves(z)
        kept, log_det = self._forward(kept)
        return _join(kept, others), log_det

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, others = _halves(x)
        kept, log_det = self._inverse_of(kept)
        return _join(kept, others), log_det

    def start_(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        kept, others = _halves(x)
        return _join(self._start(kept, weight), others)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-3] % 2:
        raise ValueError(f"images have {x.shape[-3]} channels; a split needs an even number")
    kept, others = x.chunk(2, -3)
    return kept, others


def _join(kept: Tensor, others: Tensor) -> Tensor:
    """Join the halves; a shared half is repeated for the components of the other."""
    shape = torch.broadcast_shapes(kept.shape[:-3], others.shape[:-3])
    return torch.cat(
        (kept.expand(*shape, *kept.shape[-3:]), others.expand(*shape, *others.shape[-3:])), -3
    )
