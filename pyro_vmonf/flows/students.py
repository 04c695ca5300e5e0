"""A bank whose components are mixtures of Student's t."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vmonf.distributions.radial import NormalLaw, StudentLaw
from pyro_vmonf.flows.submixtures import GaussianMixtures

LEAST, MOST = 2.0, 1e3  # degrees of freedom: with more than two there are variances


class StudentMixtures(GaussianMixtures):
    r"""The bank of K mixtures of M multivariate Student's t, whose tails are learned.

    .. math::
        p(x|c) = \sum_m w_{cm} \frac{\Gamma((\nu_{cm} + D)/2)}
        {\Gamma(\nu_{cm}/2) (\nu_{cm}\pi)^{D/2} |\Sigma_{cm}|^{1/2}}
        \Big(1 + \frac{r_{cm}^2(x)}{\nu_{cm}}\Big)^{-(\nu_{cm} + D)/2}, \qquad
        r_{cm}^2(x) = (x - \mu_{cm})^\top \Sigma_{cm}^{-1} (x - \mu_{cm})

    The degrees of freedom :math:`\nu` lie between 2, where the tails are so long that no variance
    is left, and 1,000, which is a Gaussian to three digits.

    Arguments:
        features: number of features *D*.
        components: number of components *K*.
        mixtures: number of t's *M* of a component, at most.

    Source: Peel, McLachlan (2000), Robust mixture modelling using the t distribution.

    Example:
        >>> StudentMixtures(2, 5, 3)().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    def __init__(self, features: int, components: int, mixtures: int = 4) -> None:
        super().__init__(features, components, mixtures)
        self.tail = nn.Parameter(torch.zeros(components, mixtures))

    @property
    def freedom(self) -> Tensor:
        r"""The degrees of freedom :math:`\nu` ``(K, M)``."""
        return LEAST * (MOST / LEAST) ** self.tail.sigmoid()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.tail.zero_()

    def num_free(self) -> int:
        return super().num_free() + int(self.used.sum()) * self.tail.requires_grad

    @torch.no_grad()
    def set_(
        self,
        component: int,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        freedom: Tensor | None = None,
    ) -> None:
        """Make one component a mixture of at most M t's.

        Arguments:
            component: its number.
            weights: ``(m,)``, positive, with sum one.
            means: ``(m, D)``.
            covariances: scale matrices ``(m, D, D)``; of Gaussians their covariances.
            freedom: degrees of freedom ``(m,)``, taken into the range; Gaussians by default.

        Raises:
            ValueError: as for :meth:`GaussianMixtures.set_`, or if a degree of freedom is not
                positive.
        """
        wanted = torch.full((len(weights),), MOST) if freedom is None else torch.as_tensor(freedom)
        if tuple(wanted.shape) != (len(weights),) or not bool((wanted > 0).all()):
            raise ValueError(
                f"freedom is {wanted.tolist()}; expected {len(weights)} positive numbers, one for "
                "each weight"
            )
        super().set_(component, weights, means, covariances)
        share = (wanted.double() / LEAST).log() / torch.tensor(MOST / LEAST).double().log()
        tail = share.clamp(1e-3, 1 - 1e-3).logit()
        self.tail[component, : len(weights)] = tail.to(self.tail)

    def _law(self) -> NormalLaw:
        return StudentLaw(self.freedom)
