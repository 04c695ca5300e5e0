"""The bank of K flows that go through an image pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.validation import check_image_shape, check_positive
from pyro_vmonf.flows.base import Flow, base_bank, batch_shapes
from pyro_vmonf.nn.convolutions import Precision, Way
from pyro_vmonf.transforms import (
    FlowTransform,
    Logit,
    SplineImageAutoregressive,
    Squeezed,
    Standardize,
    squeeze,
)

ROWS_FOR_UNITS = 10_000


class PixelFlow(Flow):
    """The bank of K pixel-by-pixel spline flows, by masked convolutional networks.

    The network of a pixel sees all pixels before it, above and at the left. The densities are far
    better than those of couplings for the same work, and a sample takes one small step for each
    pixel. A squeeze turns a square of four pixels into one pixel with four channels; the same
    width then costs a quarter.

    Arguments:
        image_shape: ``(C, H, W)``.
        components: number of components *K*.
        blocks: autoregressive layers; every second one goes through the image backwards.
        channels: width of each network.
        depth: number of residual blocks of each network.
        first: width of the kernels of its first layer, odd.
        squeezes: number of times that the resolution is halved.
        shared_trunk: share every layer of the networks but the last between the components; it is
            then computed once, and not K times.
        shared: number of layers that all components share, next to the data.
        bins: number of pieces of each spline.
        bound: the splines are the identity outside ``[-bound, bound]``.
        base: bank or distribution at the start of the chain; K standard normals by default.
        way: how to compute the convolutions, ``"grouped"`` or ``"loop"``.
        precision: precision of the convolutions in ``train()``; ``"bfloat16"`` is faster. In
            ``eval()`` they use the precision of the input.

    References:
        van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel Recurrent Neural Networks,
        arXiv:1601.06759; Durkan, Bekasov, Murray, Papamakarios (2019), arXiv:1906.04032.

    Example:
        >>> PixelFlow((1, 8, 8), components=5)().log_prob(torch.zeros(7, 1, 1, 8, 8)).shape
        torch.Size([7, 5])
    """

    image_shape: torch.Size
    components: int
    blocks: int
    channels: int
    depth: int
    first: int
    squeezes: int
    shared_trunk: bool
    shared: int
    bins: int
    bound: float
    way: Way
    precision: Precision

    def __init__(
        self,
        image_shape: Sequence[int],
        components: int,
        *,
        blocks: int = 1,
        channels: int = 32,
        depth: int = 4,
        first: int = 5,
        squeezes: int = 0,
        shared_trunk: bool = False,
        shared: int = 0,
        bins: int = 8,
        bound: float = 4.0,
        base: nn.Module | Distribution | None = None,
        way: Way = "grouped",
        precision: Precision = "float32",
    ) -> None:
        shape, components = check_image_shape(image_shape), check_positive("components", components)
        own = batch_shapes(check_positive("blocks", blocks), shared, components)
        inner = torch.empty(shape)
        for _ in range(check_positive("squeezes", squeezes, minimum=0)):
            inner = squeeze(inner)
        chain: list[FlowTransform] = [
            SplineImageAutoregressive(
                inner.shape,
                backwards=i % 2 == 1,
                channels=channels,
                blocks=depth,
                first=first,
                shared_trunk=shared_trunk,
                bins=bins,
                bound=bound,
                way=way,
                precision=precision,
                batch_shape=batch_shape,
            )
            for i, batch_shape in enumerate(own)
        ]
        for _ in range(squeezes):
            chain = [Squeezed(chain)]
        super().__init__(chain, base=base_bank(base, shape, components))
        self.image_shape = torch.Size(shape)


def behind_pixels(bank: Flow, x: Tensor) -> Flow:
    """Return a bank for pixels in [0, 1), from a bank for their standardised logits.

    Arguments:
        bank: flows of logits.
        x: images ``(N, *event_shape)`` in [0, 1), from which the units come.
    """
    event_shape = tuple(x.shape[1:])
    pixels, units = Logit(event_dim=len(event_shape)), Standardize(event_shape)
    units.fit_(pixels.inv(x[:ROWS_FOR_UNITS]))
    return Flow([*bank.transforms, units, pixels], base=bank.base)  # type: ignore[list-item]
