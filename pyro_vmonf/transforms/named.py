"""Couplings and autoregressive transforms with a fixed map."""

from __future__ import annotations

from typing import Unpack

from pyro_vmonf.transforms.autoregressive import Autoregressive, AutoregressiveOptions
from pyro_vmonf.transforms.coupling import Coupling, CouplingOptions
from pyro_vmonf.transforms.mixture_of_gaussians import MixtureOfGaussians
from pyro_vmonf.transforms.univariate import RationalQuadratic, ShiftAndScale


class AffineCoupling(Coupling):
    r"""The coupling :math:`x_1 = z_1 \odot e^{s(z_2)} + t(z_2)` (thesis 3.4.4).

    Arguments:
        features, mask, hidden, activation, context_features, batch_shape: as for
            :class:`Coupling`.
        networks: 2 for *s* and *t* of separate networks, which is the default, or 1 for both of one
            network.
        bound: the largest log-scale.

    References:
        Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP, arXiv:1605.08803.

    Example:
        >>> transform = AffineCoupling(2, batch_shape=(5,))
        >>> x, log_det = transform.forward_and_log_det(torch.randn(7, 1, 2))
        >>> x.shape, log_det.shape
        (torch.Size([7, 5, 2]), torch.Size([7, 5]))
    """

    bound: float

    def __init__(
        self,
        features: int,
        *,
        bound: float = 5.0,
        networks: int = 2,
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__(features, ShiftAndScale(bound), networks=networks, **options)


class SplineCoupling(Coupling):
    """A coupling by rational-quadratic splines, the identity outside ``[-bound, bound]``.

    Arguments:
        features, mask, hidden, activation, context_features, batch_shape: as for
            :class:`Coupling`.
        bins: number of pieces of each spline.
        bound: the map is the identity outside ``[-bound, bound]``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> SplineCoupling(2, batch_shape=(5,)).inv(torch.randn(7, 1, 2)).shape
        torch.Size([7, 5, 2])
    """

    bins: int
    bound: float

    def __init__(
        self,
        features: int,
        *,
        bins: int = 8,
        bound: float = 5.0,
        **options: Unpack[CouplingOptions],
    ) -> None:
        super().__init__(features, RationalQuadratic(bins, bound), **options)


class AffineAutoregressive(Autoregressive):
    r"""The layer of a MAF, :math:`x_i = z_i e^{\alpha_i} + \mu_i` (thesis 3.4.5).

    Arguments:
        features, order, hidden, activation, context_features, batch_shape: as for
            :class:`Autoregressive`.
        bound: the largest log-scale.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked Autoregressive Flow for Density Estimation,
        arXiv:1705.07057.

    Example:
        >>> AffineAutoregressive(3, hidden=(2,), batch_shape=(5,)).inv(torch.randn(7, 1, 3)).shape
        torch.Size([7, 5, 3])
    """

    bound: float

    def __init__(
        self, features: int, *, bound: float = 5.0, **options: Unpack[AutoregressiveOptions]
    ) -> None:
        super().__init__(features, ShiftAndScale(bound), **options)


class SplineAutoregressive(Autoregressive):
    """An autoregressive layer whose map is a rational-quadratic spline.

    Arguments:
        features, order, hidden, activation, context_features, batch_shape: as for
            :class:`Autoregressive`.
        bins: number of pieces of each spline.
        bound: the map is the identity outside ``[-bound, bound]``.

    References:
        Durkan, Bekasov, Murray, Papamakarios (2019), Neural Spline Flows, arXiv:1906.04032.

    Example:
        >>> SplineAutoregressive(1, batch_shape=(5,)).inv(torch.randn(7, 1, 1)).shape
        torch.Size([7, 5, 1])
    """

    bins: int
    bound: float

    def __init__(
        self,
        features: int,
        *,
        bins: int = 8,
        bound: float = 5.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        super().__init__(features, RationalQuadratic(bins, bound), **options)


class MixtureAutoregressive(Autoregressive):
    """An autoregressive layer that makes the conditional of each feature a mixture of Gaussians.

    The layer has to be next to a standard normal base. Alone it is a MADE with mixtures of
    Gaussians; further layers towards the data make a MAF with mixtures of Gaussians.

    Arguments:
        features, order, hidden, activation, context_features, batch_shape: as for
            :class:`Autoregressive`.
        mixtures: number of Gaussians of each feature.
        bound: the largest log-scale.

    References:
        Papamakarios, Pavlakou, Murray (2017), Masked Autoregressive Flow for Density Estimation,
        arXiv:1705.07057.

    Example:
        >>> MixtureAutoregressive(3, mixtures=2, batch_shape=(5,)).inv(torch.randn(7, 1, 3)).shape
        torch.Size([7, 5, 3])
    """

    mixtures: int
    bound: float

    def __init__(
        self,
        features: int,
        *,
        mixtures: int = 10,
        bound: float = 5.0,
        **options: Unpack[AutoregressiveOptions],
    ) -> None:
        super().__init__(features, MixtureOfGaussians(mixtures, bound), **options)
