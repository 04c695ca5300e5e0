"""The verbs of a pair that score, cluster and draw rows, in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.evidence import check_evidence
from pyro_vmonf._utils.validation import (
    check_context_rows,
    check_positive,
    floating_buffer,
    has_gaps,
    listed,
)
from pyro_vmonf.distributions.partial import watching
from pyro_vmonf.distributions.selection import Clusters
from pyro_vmonf.distributions.support import of_far_rows
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.model import SCORING_DRAWS, FlowMixture
from pyro_vmonf.program import check_follows
from pyro_vmonf.training.endings import warn
from pyro_vmonf.vmonf.gaps import Completes, warn_of_few

SUM_TOLERANCE = 1e-3  # of probabilities, beyond rounding
# Of rows, their context and their evidence.
Verb = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class Scores(Completes):
    """Scores, clusters and draws of a pair."""

    model: FlowMixture
    guide: BoundGuide

    def predict(
        self,
        x: Any,
        y: Any = None,
        *,
        given: Any = None,
        exact: bool = False,
        chunk_size: int = 8192,
    ) -> Tensor:
        """Return the most probable component of each row, ``(N,)``.

        Arguments:
            x, y: rows ``(N, *event_shape)`` and their evidence, as for :meth:`predict_proba`.
            given: their context ``(N, H)``, where the mixture depends on one.
            exact: by Bayes' rule, in place of the guide.
            chunk_size: rows evaluated at once.
        """
        proba = self.predict_proba(x, y, given=given, exact=exact, chunk_size=chunk_size)
        rows = self.model.rows(x, missing=True)
        like, features = floating_buffer(self), self.model.context_features
        given = check_context_rows(given, len(rows), features, like)
        return proba.argmax(-1).masked_fill(self.model.is_outside(rows, given), -1)

    def predict_proba(
        self,
        x: Any,
        y: Any = None,
        *,
        given: Any = None,
        exact: bool = False,
        chunk_size: int = 8192,
    ) -> Tensor:
        r"""Return the posterior of the component of each row, ``(N, K)``.

        Arguments:
            x: rows ``(N, *event_shape)``. A row with missing entries, NaN, has the exact posterior
                given the others, since a network cannot read a gap.
            y: evidence of the rows, as in ``fit``.
            given: their context ``(N, H)``, where the mixture depends on one.
            exact: :math:`p(c|x) \propto \pi_c p(x|c)`, in place of the guide's :math:`q(c|x)`.
            chunk_size: rows evaluated at once.
        """
        return self._log_proba(x, y, given, exact, chunk_size).exp()

    def _log_proba(self, x: Any, y: Any, given: Any, exact: bool, chunk_size: int = 8192) -> Tensor:
        """Return the log of :meth:`predict_proba`."""
        if exact or self.guide.exact:
            check_follows(self.model, "predict_proba", "log_posterior", "mixture")
        posterior = self.model.log_posterior if exact else self.guide.log_posterior
        if y is not None:
            like = floating_buffer(self)
            x = self.model.rows(x, missing=True)
            y = check_evidence(y, len(x), self.model.num_components, like)

        def log_proba(rows: Tensor, given: Tensor | None, y: Tensor | None) -> Tensor:
            outside = self.model.is_outside(rows, given)
            prior = self.model.weights.log_mean(given) if outside.any() else 0.0
            log_q = torch.where(outside.unsqueeze(-1), prior, posterior(rows, y, given))
            return self._checked(log_q)

        return self._over_chunks(log_proba, x, given, chunk_size, y)

    def _checked(self, log_q: Tensor) -> Tensor:
        """Return log-probabilities ``(N, K)`` whose exponentials have sum one in each row."""
        q = log_q.exp()
        total = q.float().sum(-1)
        wrong = ~((total - 1).abs() <= max(SUM_TOLERANCE, 4 * torch.finfo(q.dtype).eps))
        if bool(wrong.any()):
            raise ValueError(
                f"{self.guide.predicts_by} gives probabilities whose sum is "
                f"{float(total[wrong][0]):.4g}; expected log-probabilities whose exponentials have "
                "sum one: end log_q by .log_softmax(-1), and look for parameters that are not "
                "finite where the sum is nan"
            )
        return log_q

    def posterior(
        self, x: Any, y: Any = None, *, given: Any = None, exact: bool = False
    ) -> Clusters:
        """Return the posterior of the component of each row as a distribution, batch ``(N,)``.

        Arguments:
            x, y, given, exact: as for :meth:`predict_proba`.
        """
        log_proba = self._log_proba(x, y, given, exact)
        return Clusters(logits=log_proba, validate_args=False)

    def log_prob(self, x: Any, *, given: Any = None, chunk_size: int = 8192) -> Tensor:
        r"""Return :math:`\log\sum_c \pi_c\,p(x|c)` of each row ``(N,)``, nats in raw units.

        A row with missing entries, NaN, has the density of the others: see
        :meth:`partial_log_prob`.
        """
        check_follows(self.model, "log_prob", "mixture")
        rows = self.model.rows(x, missing=True)
        if has_gaps(rows):
            return self.partial_log_prob(rows, given=given, chunk_size=chunk_size).log_prob
        return self._over_chunks(
            lambda rows, given, _: self.model.mixture(given).log_prob(rows), x, given, chunk_size
        )

    def component_log_prob(self, x: Any, *, given: Any = None, chunk_size: int = 8192) -> Tensor:
        """Return log p(x|c) of each row under each component, ``(N, K)``."""
        check_follows(self.model, "component_log_prob", "components")
        return self._over_chunks(
            lambda rows, given, _: self._component_log_prob(rows, given), x, given, chunk_size
        )

    def _component_log_prob(self, rows: Tensor, given: Tensor | None) -> Tensor:
        axis = -1 - len(self.model.event_shape)
        components = self.model.observed(self.model.components(given), rows)
        each = rows.unsqueeze(axis)
        return of_far_rows(components.log_prob(each), each, -1 - axis)

    def elbo(self, x: Any, *, given: Any = None, chunk_size: int = 8192) -> Tensor:
        r"""Return the plain ELBO of each row, ``(N,)``, without the guide's terms.

        It is that of q(c|x) over all components. Where the guide sums over the ``top`` ones, the
        program has another bound. Random weights count with :math:`E_q[\log\pi]`; their divergence
        from the prior belongs to the data as a whole and is left out.
        """
        check_follows(self.model, "elbo", "mixture")

        def elbo(rows: Tensor, given: Tensor | None, _: Tensor | None) -> Tensor:
            components = self._component_log_prob(rows, given)
            joint = self.model.weights.mean_log(given) + components
            if not self.guide.exact:
                self._checked(self.guide.log_posterior(rows, None, given))
            return self.guide.bound(joint, rows, given)

        return self._over_chunks(elbo, x, given, chunk_size)

    def sample(
        self,
        num_samples: int | None = None,
        *,
        given: Any = None,
        component: int | None = None,
        seed: int | None = None,
        chunk_size: int = 65536,
    ) -> tuple[Tensor, Tensor]:
        """Draw points ``(num_samples, *event_shape)`` and the component ``(num_samples,)`` of each.

        Arguments:
            num_samples: how many.
            given: in place of a number, the context ``(N, H)`` of each point that is drawn.
            component: draw from this one only.
            seed: seed of the draws; the global state is then left alone.
            chunk_size: points drawn at once.

        Raises:
            ValueError: if a number is below one, or the component is out of range.
        """
        chunk_size = check_positive("chunk_size", chunk_size)
        check_follows(self.model, "sample", "mixture")
        model = self.model
        given = check_context_rows(given, None, model.context_features, floating_buffer(self))
        if given is not None and num_samples not in (None, len(given)):
            raise ValueError(
                f"num_samples is {num_samples} but the context has {len(given)} rows; pass one"
            )
        total = check_positive("num_samples", num_samples if given is None else len(given))
        count = model.num_components
        if component is not None and check_positive("component", component, minimum=0) >= count:
            raise ValueError(f"component is {component}; expected 0 to {count - 1}")
        with local_seed(seed), evaluating(self), torch.no_grad():
            points, components = [], []
            for rows in torch.arange(total, device=floating_buffer(self).device).split(chunk_size):
                mixture = model.mixture(None if given is None else given[rows])
                shape = (len(rows),) if given is None else ()
                x, c = mixture.sample_with_component(shape, component)
                points.append(x)
                components.append(c)
            return torch.cat(points), torch.cat(components)

    @torch.no_grad()
    def _over_chunks(
        self, function: Verb, x: Any, given: Any, chunk_size: int, y: Tensor | None = None
    ) -> Tensor:
        """Join a function's results over chunks of rows, their context and their evidence."""
        chunk_size = check_positive("chunk_size", chunk_size)
        rows, features = self.model.rows(x, missing=True), self.model.context_features
        given = check_context_rows(given, len(rows), features, floating_buffer(self))
        if given is not None:  # a network alone would not see that a group is none
            self.model.weights.log_mean(given)

        def chunks(values: Tensor | None) -> Iterable[Tensor | None]:
            return itertools.repeat(None) if values is None else values.split(chunk_size)

        outside = self.model.is_outside(rows, given).nonzero().squeeze(1)
        if len(outside):
            warn(
                f"rows {listed(outside)} lie outside the support of every component "
                f"({len(outside)} of {len(rows)} rows): their log-density is minus infinity, their "
                "posterior is the weights, and their cluster is -1"
            )
        # A missing entry may be drawn: the same call gives the same answer.
        parts, counts = [], []
        with evaluating(self), local_seed(0 if has_gaps(rows) else None):
            for chunk in zip(rows.split(chunk_size), chunks(given), chunks(y), strict=False):
                with watching() as watched:
                    parts.append(function(*chunk))
                if watched:  # a verb may score the same rows several times
                    counts.append(torch.stack(watched).amin(0))
        if counts:
            warn_of_few(torch.cat(counts), SCORING_DRAWS)
        return torch.cat(parts)
