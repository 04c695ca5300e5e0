"""Guides without a network: the exact posterior, or the sum over c in the model."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_vmonf.guides.base import BoundGuide, best_log_q, counts_rows
from pyro_vmonf.program import Rows


class ExactGuide(BoundGuide):
    r"""The exact posterior :math:`p(c|x, y)` as the guide: EM, with a gradient step for its M-step.

    The posterior comes from the components and is held fixed. The ELBO and its gradient are those
    of the log-likelihood. Random weights count with :math:`\exp(E_q[\log\pi])`, as in variational
    Bayes. The guide has no network to train and costs a second evaluation of the densities. Unlike
    :class:`MarginalGuide` it keeps ``c`` in the guide, as row weights need it.

    Sites: ``c`` in plate ``data``, and the sites of the model's random parts.

    Arguments:
        model: the mixture.

    References:
        Neal, Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and
        other variants.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> model = FlowMixture(RealNVP(2, 5))
        >>> x = torch.zeros(7, 2)
        >>> loss = pyro.infer.TraceEnum_ELBO()(model, ExactGuide(model))(x)
        >>> bool(torch.isclose(-loss, model.marginal().log_prob(x).sum()))
        True
    """

    @counts_rows
    def infer(self, rows: Rows) -> None:
        with rows.plate(self.site("data"), self._bound_model().event_shape) as positions:
            logits, _ = self.parts(rows, positions)
            q = Categorical(logits=logits, validate_args=False)
            pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})

    def parts(
        self, rows: Rows, positions: Tensor, dim: int = -1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            logits = best_log_q(self._bound_model(), rows.x, rows.y, rows.given)
        self._observe(lambda: logits, rows)
        return logits, {}


class MarginalGuide(BoundGuide):
    """The guide that leaves ``c`` to the model, which sums over it exactly.

    It runs the guide of random weights, and is empty otherwise.

    Arguments:
        model: the mixture.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> model = FlowMixture(RealNVP(2, 5))
        >>> elbo = pyro.infer.TraceEnum_ELBO()(model, MarginalGuide(model))
        >>> bool(elbo(torch.zeros(7, 2)).isfinite())
        True
    """

    draws_component = False

    @counts_rows
    def infer(self, rows: Rows) -> None:
        self._observe(lambda: best_log_q(self._bound_model(), rows.x, rows.y, rows.given), rows)

    def parts(
        self, rows: Rows, positions: Tensor, dim: int = -1
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        self.infer(rows)
        return None, {}
