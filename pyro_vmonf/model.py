"""The mixture as a Pyro model."""

from __future__ import annotations

import copy

import pyro
from pyro.distributions import Categorical
from pyro.nn import PyroModule, pyro_method
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_vmonf.banks import Bank, as_bank
from pyro_vmonf.checks import check_rows, floating_buffer
from pyro_vmonf.distributions import FlowDistribution, Marginal, pick, select
from pyro_vmonf.rows import Program, claim_parameters, data_plate, log_evidence, rename
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.weights import Weights, as_weights


class FlowMixture(Program):
    r"""The mixture :math:`p(x) = \sum_c \pi_c\, p(x \mid c)` of the K components of a bank.

    Sites: ``c`` and ``x`` in plate ``data``; ``weights`` if they are random; ``evidence``, a factor
    log p(y|c), where there is any. Nested in a larger module the names carry its path.

    Arguments:
        bank: module whose call returns a distribution of ``batch_shape`` ``(*, K)``; a distribution
            of that shape, or a list of different ones, stand for themselves.
        weights: ``"uniform"``, ``"learned"``, probabilities ``(K,)``, a ``Dirichlet`` prior, or a
            :class:`~pyro_vmonf.weights.Weights` module.

    Raises:
        ValueError: if the bank has no batch dimension for K, or the weights do not fit it.

    References:
        Pires, Figueiredo (2020), Variational Mixture of Normalizing Flows, arXiv:2009.00585.

    Example:
        >>> from pyro_vmonf import RealNVP
        >>> model = FlowMixture(RealNVP(features=2, components=5))
        >>> model(size=7).shape  # with no x it generates
        torch.Size([7, 2])
    """

    weights: Weights

    def __init__(
        self, bank: Bank, weights: str | Tensor | Distribution | Weights = "uniform"
    ) -> None:
        super().__init__()
        self.bank = as_bank(bank)
        components = self.bank()
        if not components.batch_shape:
            raise ValueError(
                f"the bank's distribution has batch_shape () and event_shape "
                f"{tuple(components.event_shape)}; expected batch_shape (*, K)"
            )
        self.num_components = components.batch_shape[-1]
        self.event_shape = components.event_shape
        self.weights = as_weights(weights, self.num_components)
        self.standardizer = Standardize(self.event_shape)
        self.bounded = not _is_real(components)

    def components(self) -> Distribution:
        """Return the K components in raw units: the bank behind the standardisation."""
        bank = self.bank()
        return bank if self.bounded else FlowDistribution(bank, [self.standardizer])

    def standardize_(self, x: Tensor) -> None:
        """Take mean and spread of the rows ``(N, *event_shape)``, for model and guide alike.

        Raises:
            ValueError: if the components live on a bounded set, which has units of its own, or the
            rows do not fit.
        """
        if self.bounded:
            raise ValueError("the components are bounded: their rows cannot be standardised")
        self.standardizer.fit_(check_rows(x, self.event_shape, floating_buffer(self)))

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Draw the rows, or score those given.

        Arguments:
            x: rows ``(*, *event_shape)``; ``None`` generates ``size`` of them.
            y: labels ``(*)`` with −1 for unlabelled, or log-likelihoods log p(y|c) ``(*, K)``.
            index: positions ``(B,)`` of the rows in the whole data set.
            size: rows of the whole data set, N; the loss is then scaled by N/B.
            sample_weight: weights of the rows, non-negative.

        Returns:
            The rows.
        """
        claim_parameters(self)
        log_weights = self.weights()
        components = self.components()
        plate = data_plate(
            self._pyro_get_fullname("data"),
            x,
            self.event_shape,
            index=index,
            size=size,
            sample_weight=sample_weight,
        )
        with plate:
            c = pyro.sample(
                self._pyro_get_fullname("c"),
                Categorical(logits=log_weights, validate_args=False),
                infer={"enumerate": "parallel"},
            )
            if y is not None:
                evidence = log_evidence(y, self.num_components, log_weights.dtype)
                pyro.factor(self._pyro_get_fullname("evidence"), pick(evidence, c))
            return pyro.sample(self._pyro_get_fullname("x"), select(components, c), obs=x)

    def marginal(self, *, frozen: bool = False) -> Marginal:
        """Return the mixture with c summed out, as a distribution for any Pyro model.

        Random weights count with their mean, which is the exact average.

        Arguments:
            frozen: use a copy of the parameters as they are now, which no training changes.
        """
        if not frozen:
            return self._registered_mixture()
        model = copy.deepcopy(self).requires_grad_(False).eval()
        rename(model, "", PyroModule()._pyro_context)  # out of the program that is running
        return model.mixture()

    @pyro_method
    def _registered_mixture(self) -> Marginal:
        claim_parameters(self)
        return self.mixture()

    def mixture(self) -> Marginal:
        """Return :meth:`marginal` without a word to Pyro's param store, for scores."""
        return Marginal(self.weights.log_mean(), self.components())

    def log_posterior(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        r"""Return the exact :math:`\log p(c \mid x, y)` ``(*, K)``, by Bayes' rule."""
        joint = self.mixture().joint_log_prob(x)
        if y is not None:
            joint = joint + log_evidence(y, self.num_components, joint.dtype)
        return joint.log_softmax(-1)


def _is_real(components: Distribution) -> bool:
    """Whether the support is the whole space."""
    support = components.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
