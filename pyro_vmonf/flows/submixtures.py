"""A bank whose components are mixtures of Gaussians themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Categorical, constraints

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf._utils.validation import check_positive, check_simplex
from pyro_vmonf.distributions.ellipses import Ellipses
from pyro_vmonf.distributions.entries import Partial
from pyro_vmonf.distributions.estimates import Estimated
from pyro_vmonf.distributions.radial import NORMAL, NormalLaw
from pyro_vmonf.flows.gaussian import factor_of
from pyro_vmonf.nn.columns import Columns
from pyro_vmonf.nn.mlp import linear, linear_of_columns
from pyro_vmonf.program import Registered

LARGEST = 2**26  # whitened values at once


class WhitenedMixtures(Estimated):
    r"""K mixtures of M Gaussians, or other ellipses, each given by the matrix that whitens it.

    .. math::
        p(x|c) = \sum_m w_{cm}\, |W_{cm}|\, p_m(W_{cm}(x - \mu_{cm}))

    Arguments:
        log_weights: :math:`\log w` ``(K, M)``, −∞ for a part that is not used.
        loc: centres ``(K, M, D)``.
        whitening: lower triangular matrices *W* ``(K, M, D, D)`` with a positive diagonal.
        batch_shape: ``(*, K)``; ``(K,)`` by default.
        law: of the whitened values: see :mod:`pyro_vmonf.distributions.radial`.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self,
        log_weights: Tensor,
        loc: Tensor,
        whitening: Tensor,
        batch_shape: Sequence[int] | None = None,
        law: NormalLaw = NORMAL,
    ) -> None:
        self.law = law
        self.log_weights = log_weights
        self.loc = loc
        self.whitening = whitening
        batch = loc.shape[:1] if batch_shape is None else Size(batch_shape)
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        mean = (self.log_weights.exp().unsqueeze(-1) * self.loc).sum(1)
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        unit = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        factor = torch.linalg.solve_triangular(self.whitening, unit, upper=False)
        share = self.log_weights.exp().unsqueeze(-1)
        mean = (share * self.loc).sum(1, keepdim=True)
        wide = torch.as_tensor(self.law.variance).unsqueeze(-1)
        own = wide * factor.square().sum(-1) + (self.loc - mean).square()
        own = torch.where(share > 0, own, 0.0)  # a part that is not used may have no variance
        return (share * own).sum(1).expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> WhitenedMixtures:
        if tuple(batch_shape[-1:]) != tuple(self.loc.shape[:1]):
            raise ValueError(
                f"batch_shape is {tuple(batch_shape)}; expected (*, {len(self.loc)}), the "
                "components last"
            )
        return WhitenedMixtures(self.log_weights, self.loc, self.whitening, batch_shape, self.law)

    def joint(self, x: Tensor) -> Tensor:
        """Return the log-density of each Gaussian, with its weight, ``(*, K, M)``."""
        check_event(x, self.event_shape)
        z = linear(x, *self._whitener())
        z = z.unflatten(-1, self.loc.shape[1:])
        return self._constants() + self.law.kernel_of(z, -1)

    def observe(self, x: Tensor, draws: int) -> Partial:
        """Return exact marginals and conditionals: see :mod:`pyro_vmonf.distributions.partial`."""
        unit = torch.eye(self.loc.shape[-1], dtype=self.loc.dtype, device=self.loc.device)
        factor = torch.linalg.solve_triangular(self.whitening, unit, upper=False)
        return Ellipses(self.log_weights, self.loc, factor, self.law).observe(x)

    def _whitener(self) -> tuple[Tensor, Tensor]:
        """Return matrices ``(K, M D, D)`` and shifts ``(K, M D)``."""
        shift = -(self.whitening @ self.loc.unsqueeze(-1)).flatten(1)
        return self.whitening.flatten(1, 2), shift

    def _constants(self) -> Tensor:
        """Return what the log-densities have beside the squares, ``(K, M)``."""
        log_det = self.whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.log_weights + log_det + self.law.constant(self.loc.shape[-1])

    def log_prob(self, x: Tensor) -> Tensor:
        each = x.dim() > 2 and len(self.batch_shape) == 1
        parts = self._parts(x, 0) if each else [x]
        log_prob = torch.cat([self.joint(part).logsumexp(-1) for part in parts])
        return log_prob.expand(broadcast(log_prob.shape, self.batch_shape))

    def _parts(self, x: Tensor, axis: int) -> Sequence[Tensor]:
        """Return rows in parts whose whitened values fit into memory, where none has a gradient."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return [x]
        own = x.numel() // max(x.shape[axis], 1) // self.loc.shape[-1]  # rows of a place
        return x.split(max(1, LARGEST // (self.loc.numel() * max(own, 1))), axis)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        count, _, width = self.loc.shape
        m = Categorical(logits=self.log_weights).sample(Size(sample_shape) + self.batch_shape[:-1])
        c = torch.arange(count, device=m.device).expand(m.shape)
        noise = torch.randn(*m.shape, width, 1, dtype=self.loc.dtype, device=self.loc.device)
        z = torch.linalg.solve_triangular(self.whitening[c, m], noise, upper=False).squeeze(-1)
        wider = self.law[c, m].spread(z.new_zeros(m.shape), 0).unsqueeze(-1)
        return self.loc[c, m] + wider * z


class OneOfEach(WhitenedMixtures):
    """The K mixtures with the batch shape ``(K,)``, which score columns as well."""

    def log_prob_of_columns(self, columns: Columns) -> Tensor:
        """Return the log-density ``(K, 1, rows)`` of columns, one group for each component."""
        found = []
        for part in self._parts(columns.joined(), -1):
            z = linear_of_columns(part, *self._whitener())
            z = z.unflatten(1, self.loc.shape[1:])
            kernel = self.law[..., None].kernel_of(z, 2)
            joint = self._constants().unsqueeze(-1) + kernel
            found.append(joint.logsumexp(1, keepdim=True))
        return torch.cat(found, -1)


class GaussianMixtures(Registered, ShownModule):
    r"""The bank of K mixtures of M Gaussians.

    .. math::
        p(x|c) = \sum_m w_{cm} N(x; \mu_{cm}, \Sigma_{cm})

    As the base of a flow it gives each component many modes. A component may use fewer than M
    Gaussians.

    Arguments:
        features: number of features *D*.
        components: number of components *K*.
        mixtures: number of Gaussians *M* of a component, at most.

    Example:
        >>> GaussianMixtures(2, 5, 3)().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
        >>> GaussianMixtures(2, 5, 3)().sample((7,)).shape
        torch.Size([7, 5, 2])
    """

    used: Tensor
    batched_buffers = ("used",)

    def __init__(self, features: int, components: int, mixtures: int = 4) -> None:
        super().__init__()
        self.features = check_positive("features", features)
        self.components = check_positive("components", components)
        self.mixtures = check_positive("mixtures", mixtures)
        shape = (components, mixtures)
        self.logits = nn.Parameter(torch.zeros(shape))
        self.loc = nn.Parameter(torch.randn(*shape, features))
        self.log_scale = nn.Parameter(torch.zeros(*shape, features))
        self.lower = nn.Parameter(torch.zeros(*shape, features, features))
        self.register_buffer("used", torch.ones(shape, dtype=torch.bool))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start at unit covariances around random means."""
        self.loc.normal_()
        for parameter in (self.logits, self.log_scale, self.lower):
            parameter.zero_()
        self.used.fill_(True)

    def num_free(self) -> int:
        """Return the number of free parameters of the Gaussians that are used."""
        used = int(self.used.sum())
        count = used - self.components if self.logits.requires_grad else 0
        count += used * sum(p[0, 0].numel() for p in (self.loc, self.log_scale) if p.requires_grad)
        if self.lower.requires_grad:
            count += used * self.features * (self.features - 1) // 2
        return count

    @torch.no_grad()
    def set_(
        self,
        component: int,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
    ) -> None:
        """Make one component a mixture of at most M Gaussians.

        Arguments:
            component: its number.
            weights: ``(m,)``, positive, with sum one.
            means: ``(m, D)``.
            covariances: ``(m, D, D)``.

        Raises:
            ValueError: if there are more than M, the weights are not on the simplex, there is no
                such component, or a mean or covariance is none.
        """
        count = len(weights)
        if count > self.mixtures:
            raise ValueError(f"{count} Gaussians were given; a component has {self.mixtures}")
        if not 0 <= component < self.components:
            raise ValueError(f"component is {component}; expected 0 to {self.components - 1}")
        check_simplex("weights", weights)
        shapes = (tuple(means.shape), tuple(covariances.shape))
        wanted = ((count, self.features), (count, self.features, self.features))
        if shapes != wanted:
            raise ValueError(
                f"means and covariances have shapes {shapes}; expected {wanted} for {count} weights"
            )
        whitening = torch.linalg.inv(factor_of(means, covariances))
        self.used[component] = torch.arange(self.mixtures, device=self.used.device) < count
        self.logits[component, :count] = weights.log().to(self.logits)
        self.loc[component, :count] = means.to(self.loc)
        self.lower[component, :count] = whitening.tril(-1).to(self.lower)
        scale = whitening.diagonal(dim1=-2, dim2=-1).log()
        self.log_scale[component, :count] = scale.to(self.log_scale)

    def forward(self, context: Tensor | None = None) -> WhitenedMixtures:
        log_weights = self.logits.masked_fill(~self.used, -torch.inf).log_softmax(-1)
        whitening = self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        return OneOfEach(log_weights, self.loc, whitening, law=self._law())

    def _law(self) -> NormalLaw:
        """Return the radial law of the parts."""
        return NORMAL
