"""Banks of K Gaussians: the standard ones at the base of flows, and those of a mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import Independent, MultivariateNormal, Normal
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.distributions.ellipses import Ellipses
from pyro_vmonf.distributions.entries import Partial
from pyro_vmonf.nn.columns import Columns
from pyro_vmonf.program import Registered

START_RIDGE = 1e-3  # added to the variances of a start, in the units of the bank


def factor_of(loc: Tensor, covariance: Tensor) -> Tensor:
    """Return the Cholesky factors ``(*, D, D)`` of covariances, in float64.

    Raises:
        ValueError: if means or covariances are not finite, or a covariance is not symmetric or not
            positive definite.
    """
    covariance = covariance.double()
    factor, failed = torch.linalg.cholesky_ex(covariance)
    slack = 1e-4 * covariance.detach().abs().amax((-2, -1), keepdim=True)  # rounding in float32
    symmetric = ((covariance - covariance.mT).abs() <= slack).all()
    if not (loc.isfinite().all() and covariance.isfinite().all()):
        raise ValueError("means or covariances hold numbers that are not finite")
    if not symmetric or failed.any():
        raise ValueError(
            "a covariance is not symmetric or not positive definite; for a factor L of one, pass "
            "L @ L.mT"
        )
    return factor


def moments(x: Tensor, responsibilities: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights ``(K,)``, means ``(K, D)`` and covariances ``(K, D, D)`` of clusters.

    Arguments:
        x: rows ``(N, D)``.
        responsibilities: weight of each row for each cluster, ``(N, K)``.
        ridge: added to the variances.
    """
    total = responsibilities.sum(0)
    total = total + 10 * torch.finfo(x.dtype).eps * total.sum().clamp_min(torch.finfo(x.dtype).tiny)
    means = responsibilities.T @ x / total[:, None]
    centred = x - means[:, None]
    covariances = (responsibilities.T[..., None] * centred).mT @ centred / total[:, None, None]
    covariances = covariances + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return total / total.sum(), means, covariances


class StandardNormals(Independent):
    """The distribution of standard normals, which also scores columns.

    Arguments:
        base_distribution: normals with means zero and variances one.
        reinterpreted_batch_ndims: number of dimensions of one point.
    """

    def log_prob_of_columns(self, columns: Columns) -> Tensor:
        """Return the log-density ``(groups, 1, rows)``."""
        constant = math.log(2 * math.pi) * self.event_shape.numel()
        return -0.5 * (columns.squares() + constant)

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return exact marginals and conditionals: see :mod:`pyro_vmonf.distributions.partial`."""
        loc = self.mean.unsqueeze(-2)
        unit = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        return Ellipses(loc.new_zeros(loc.shape[:-1]), loc, unit.expand(*loc.shape, -1)).observe(x)


class Normals(MultivariateNormal):
    """Normals whose marginals and conditionals are known."""

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return exact marginals and conditionals: see :mod:`pyro_vmonf.distributions.partial`."""
        loc = self.loc.unsqueeze(-2)
        factor = self.scale_tril.unsqueeze(-3)
        return Ellipses(loc.new_zeros(loc.shape[:-1]), loc, factor).observe(x)


class StandardNormal(Registered, ShownModule):
    """The bank of K equal standard normals, the usual base of a flow.

    Arguments:
        features: number of features *D*, or the shape ``(C, H, W)`` of an image.
        components: number of components *K*.

    Example:
        >>> StandardNormal(2, 5)().batch_shape, StandardNormal((1, 8, 8), 5)().event_shape
        (torch.Size([5]), torch.Size([1, 8, 8]))
    """

    loc: Tensor
    batched_buffers = ("loc",)

    def __init__(self, features: int | Sequence[int], components: int) -> None:
        super().__init__()
        event_shape = (features,) if isinstance(features, int) else tuple(features)
        for size in event_shape:
            check_positive("features", size)
        self.features = features if isinstance(features, int) else event_shape
        self.components = check_positive("components", components)
        self.register_buffer("loc", torch.zeros(components, *event_shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> Distribution:
        scale = torch.ones_like(self.loc)
        normals = Normal(self.loc, scale, validate_args=False)
        return StandardNormals(normals, self.loc.dim() - 1)


class Gaussian(Registered, ShownModule):
    r"""The bank of K Gaussians with full covariance, :math:`N(\mu_c, L_c L_c^\top)`.

    :func:`pyro_vmonf.em.fit_em` fits it by EM. It is the classical mixture of thesis 2.5, and the
    baseline of every table.

    Arguments:
        features: number of features *D*.
        components: number of components *K*.

    Example:
        >>> Gaussian(2, 5)().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        self.features = check_positive("features", features)
        self.components = check_positive("components", components)
        self.loc = nn.Parameter(torch.randn(components, features))
        self.log_scale = nn.Parameter(torch.zeros(components, features))
        self.lower = nn.Parameter(torch.zeros(components, features, features))
        self._drawn = self.loc.detach().clone()  # the means of a bank that nobody has moved

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at unit covariances around random means."""
        self.loc.normal_()
        self.log_scale.zero_()
        self.lower.zero_()
        self._drawn = self.loc.detach().clone()

    def num_free(self) -> int:
        """Return the number of free parameters, of which a covariance has D (D + 1) / 2."""
        count = sum(p[0].numel() for p in (self.loc, self.log_scale) if p.requires_grad)
        if self.lower.requires_grad:
            count += self.features * (self.features - 1) // 2
        return self.components * count

    def scale_tril(self) -> Tensor:
        """Return the Cholesky factors ``(K, D, D)`` of the covariances."""
        return self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())

    @torch.no_grad()
    def start_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take means and covariances of clusters, while the bank is as it was made.

        A bank with parameters that are frozen, set or trained stays as it is.

        Arguments:
            x: rows ``(N, D)``.
            weight: weight of each row for each component, ``(N, K)``; without clusters in it, the
                bank stays as it is. One component takes all rows.
        """
        frozen = not all(parameter.requires_grad for parameter in self.parameters())
        moved = not torch.equal(self.loc, self._drawn.to(self.loc))
        shaped = bool(self.log_scale.any()) or bool(self.lower.any())
        if weight is None and self.components == 1:
            weight = x.new_ones(len(x), 1)
        if weight is None or frozen or moved or shaped:
            return
        alike = torch.equal(weight, weight[:, :1].expand_as(weight))
        if alike and self.components > 1:  # no clusters
            return
        _, loc, covariance = moments(x.double(), weight.double(), ridge=START_RIDGE)
        self.set_(loc, covariance)

    @torch.no_grad()
    def set_(self, loc: Tensor, covariance: Tensor) -> None:
        """Take means ``(K, D)`` and covariances ``(K, D, D)``.

        Raises:
            ValueError: if a shape differs, they are not finite, or a covariance is not symmetric or
                not positive definite. Nothing has then changed.
        """
        shapes = (tuple(loc.shape), tuple(covariance.shape))
        wanted = (tuple(self.loc.shape), tuple(self.lower.shape))
        if shapes != wanted:
            raise ValueError(f"means and covariances have shapes {shapes}; expected {wanted}")
        factor = factor_of(loc, covariance)
        self.loc.copy_(loc)
        self.lower.copy_(factor.tril(-1))
        self.log_scale.copy_(factor.diagonal(dim1=-2, dim2=-1).log())

    def forward(self, context: Tensor | None = None) -> Distribution:
        if self.loc.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the Gaussians are in {self.loc.dtype}, in which torch solves no triangular "
                "systems; keep them in float32"
            )
        return Normals(self.loc, scale_tril=self.scale_tril(), validate_args=False)
