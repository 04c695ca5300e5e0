"""Banks of K multi-scale convolutional flows, for images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import nn
from torch.distributions import Distribution

from pyro_vmonf._utils.validation import check_image_shape, check_positive
from pyro_vmonf.flows.base import Flow, Shape, base_bank, batch_shapes
from pyro_vmonf.nn.convolutions import Precision, Way
from pyro_vmonf.transforms import (
    ActNorm,
    AffineImageCoupling,
    FlowTransform,
    ImageCoupling,
    InvertibleConvolution,
    SplineImageCoupling,
    Split,
    Squeezed,
)
from pyro_vmonf.transforms.image_coupling import ImageCouplingOptions, Pattern

Chain = list[FlowTransform]


@dataclass(frozen=True)
class Plan:
    """The settings that all scales of a flow share.

    Attributes:
        own: the batch shape of each block, from base to data; a shared block has ``()``.
        private: the batch shape ``(K,)`` of a part that is never shared.
        couple: the function from the shape of the images to a coupling; it takes the pattern, the
            flip and the batch shape by name.
    """

    own: Sequence[Shape]
    private: Shape
    couple: Callable[..., ImageCoupling]


# A function of the image shape, the number of scales left, and the plan; it returns a chain.
Scale = Callable[[Shape, int, Plan], Chain]


def coarser(scale: Scale, shape: Shape, scales: int, plan: Plan) -> Chain:
    """Return the base end of a scale: all coarser scales, on half of the channels.

    A coupling gives the channels that leave their location and scale, from the channels that stay.
    """
    if scales == 1:
        return []
    inner = scale((shape[0] // 2, *shape[1:]), scales - 1, plan)
    return [Split(inner), plan.couple(shape, batch_shape=plan.private)]


def glow_scale(shape: Shape, scales: int, plan: Plan) -> Chain:
    """Return blocks of channel-wise coupling, 1×1 convolution and normalisation, base to data."""
    shape = _squeezed(shape)
    chain = coarser(glow_scale, shape, scales, plan)
    for i, batch_shape in enumerate(plan.own):
        chain += [
            plan.couple(shape, flip=i % 2 == 1, batch_shape=batch_shape),
            InvertibleConvolution(shape[0], batch_shape=batch_shape),
            ActNorm(shape[0], batch_shape=batch_shape),
        ]
    return [Squeezed(chain)]


def realnvp_scale(shape: Shape, scales: int, plan: Plan) -> Chain:
    """Return couplings of channels after a squeeze, then of a checkerboard, base to data."""

    def couplings(shape: Shape, pattern: Pattern) -> Chain:
        chain: Chain = []
        for i, batch_shape in enumerate(plan.own):
            flip = i % 2 == 1
            chain += [
                plan.couple(shape, pattern=pattern, flip=flip, batch_shape=batch_shape),
                ActNorm(shape[0], batch_shape=batch_shape),
            ]
        return chain

    deep = _squeezed(shape)
    inner = coarser(realnvp_scale, deep, scales, plan)
    return [
        Squeezed([*inner, *couplings(deep, "channels")]),
        *couplings(shape, "checkerboard"),
    ]


def _squeezed(shape: Shape) -> Shape:
    return (4 * shape[0], shape[1] // 2, shape[2] // 2)


class LayerOptions(ImageCouplingOptions, total=False):
    """The arguments that a bank passes to each of its couplings."""

    bound: float


class ImageOptions(TypedDict, total=False):
    """The arguments that the banks for images share."""

    scales: int
    channels: int
    depth: int
    shared: int
    base: nn.Module | Distribution | None
    way: Way
    precision: Precision


class MultiScaleFlow(Flow):
    """A bank of scales inside of each other, each half as fine.

    A subclass writes :meth:`coupling`, and may write another :meth:`chain`.
    """

    image_shape: torch.Size
    components: int
    scales: int
    blocks: int
    channels: int
    depth: int
    shared: int
    bound: float
    way: Way
    precision: Precision

    def __init__(
        self,
        image_shape: Sequence[int],
        components: int,
        blocks: int,
        bound: float,
        *,
        scales: int = 2,
        channels: int = 32,
        depth: int = 1,
        shared: int = 0,
        base: nn.Module | Distribution | None = None,
        way: Way = "grouped",
        precision: Precision = "float32",
    ) -> None:
        shape, components = check_image_shape(image_shape), check_positive("components", components)
        if any(size % 2 ** check_positive("scales", scales) for size in shape[1:]):
            raise ValueError(
                f"images are {shape[1]} by {shape[2]}, which {scales} scales cannot halve that "
                "often; use fewer scales, or pad the images"
            )
        couple = partial(
            self.coupling,
            channels=channels,
            blocks=depth,
            bound=bound,
            way=way,
            precision=precision,
        )
        own = batch_shapes(check_positive("blocks", blocks), shared, components)
        chain = self.chain(shape, scales, Plan(own, (components,), couple))
        super().__init__(chain, base=base_bank(base, shape, components))
        self.image_shape = torch.Size(shape)

    def chain(self, shape: Shape, scales: int, plan: Plan) -> Chain:
        """Return the chain of all scales, from base to data."""
        return glow_scale(shape, scales, plan)

    def coupling(self, shape: Shape, **options: Unpack[LayerOptions]) -> ImageCoupling:
        """Return a coupling of images of a shape."""
        raise NotImplementedError


class Glow(MultiScaleFlow):
    """The bank of K Glows: blocks of normalisation, 1×1 convolution and affine coupling.

    Its images are real numbers. Pixels in [0, 1] need a
    :class:`~pyro_vmonf.transforms.Logit` at the data end:
    ``Flow([*glow.transforms, Logit(event_dim=3)], base=glow.base)``. ``fit`` starts the
    normalisations from the data.

    Arguments:
        image_shape: ``(C, H, W)``; each scale halves height and width.
        components: number of components *K*.
        scales: number of scales *L*.
        blocks: number of blocks at each scale.
        channels: width of the residual network of each coupling.
        depth: number of residual blocks of that network.
        shared: number of blocks of each scale that all components share, next to the data.
        bound: the largest log-scale of a coupling.
        base: bank or distribution at the start of the chain; K standard normals by default.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``"bfloat16"`` is faster. In
            ``eval()`` they use the precision of the input.

    Raises:
        ValueError: if the size of the images has too few factors of two, or the base or a number
            does not fit.

    References:
        Kingma, Dhariwal (2018), Glow: Generative Flow with Invertible 1x1 Convolutions,
        arXiv:1807.03039.

    Example:
        >>> Glow((1, 8, 8), components=5, blocks=1)().log_prob(torch.zeros(7, 1, 1, 8, 8)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        components: int,
        *,
        blocks: int = 4,
        bound: float = 2.0,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(image_shape, components, blocks, bound, **options)

    def coupling(self, shape: Shape, **options: Unpack[LayerOptions]) -> ImageCoupling:
        return AffineImageCoupling(shape, **options)


class ImageNSF(MultiScaleFlow):
    """The bank of K spline flows of images: :class:`Glow` with rational-quadratic couplings.

    Arguments:
        image_shape, components, scales, blocks, channels, depth, shared, base, way, precision: as
            for :class:`Glow`.
        bins: number of pieces of each spline.
        bound: the splines are the identity outside ``[-bound, bound]``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> ImageNSF((1, 8, 8), components=5, blocks=1)().sample((7,)).shape
        torch.Size([7, 5, 1, 8, 8])
    """

    bins: int

    def __init__(
        self,
        image_shape: Sequence[int],
        components: int,
        *,
        blocks: int = 4,
        bins: int = 8,
        bound: float = 4.0,
        **options: Unpack[ImageOptions],
    ) -> None:
        self.bins = bins
        super().__init__(image_shape, components, blocks, bound, **options)

    def coupling(self, shape: Shape, **options: Unpack[LayerOptions]) -> ImageCoupling:
        return SplineImageCoupling(shape, bins=self.bins, **options)


class MultiScaleRealNVP(MultiScaleFlow):
    """The bank of K multi-scale RealNVPs: checkerboard couplings, squeeze, channel-wise couplings.

    An activation normalisation replaces the batch normalisation of the paper, because the latter
    couples the rows of a batch.

    Arguments:
        image_shape, components, scales, channels, depth, bound, base, way, precision: as for
            :class:`Glow`.
        blocks: number of couplings of each pattern at each scale.
        shared: number of couplings of each pattern and scale that all components share, next to
            the data.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> bank = MultiScaleRealNVP((1, 8, 8), components=5, blocks=1)
        >>> bank().log_prob(torch.zeros(7, 1, 1, 8, 8)).shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        components: int,
        *,
        blocks: int = 3,
        bound: float = 2.0,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(image_shape, components, blocks, bound, **options)

    def coupling(self, shape: Shape, **options: Unpack[LayerOptions]) -> ImageCoupling:
        return AffineImageCoupling(shape, **options)

    def chain(self, shape: Shape, scales: int, plan: Plan) -> Chain:
        return realnvp_scale(shape, scales, plan)
