"""The contract of mixture weights, with the defaults of its optional members."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf.contracts import no_draws
from pyro_vmonf.counts import LogPosterior
from pyro_vmonf.program import Program, Registered

DRAWS = 256  # of weights whose mean of the logs has no closed form


class Weights(Registered, Program):
    r"""The base of weights: a call that returns :math:`\log\pi` of shape ``(*, K)``.

    To implement one, write :meth:`forward`; if it draws from a prior, also :meth:`guide`, which
    draws the same sites from the approximate posterior, and :meth:`log_mean`. If a guide of other
    programs is to draw the sites, write :meth:`take_draws_`. Weights that learn from
    responsibilities write :meth:`update_`, or :meth:`update_given_` where they need the context of
    the rows. Those that depend on the rows' context take it; the others leave it alone.
    """

    num_components: int

    def forward(self, context: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return arguments_of(self) or f"num_components={self.num_components}"

    def _parameter(self, name: str) -> nn.Parameter:
        """Return a parameter without a word to Pyro, which has been told at the call."""
        parameter = self._parameters[name]
        assert parameter is not None
        return parameter

    def guide(self) -> None:
        """Draw the sites of :meth:`forward` from their approximate posterior: here, none."""

    def update_(
        self, log_posterior: LogPosterior, sample_weight: Tensor | None, fraction: float = 1.0
    ) -> None:
        """Learn from a batch. Guides call it at every step, before the model runs.

        By default it does nothing.

        Arguments:
            log_posterior: function that computes log q(c|x, y) ``(*, K)`` of the rows.
            sample_weight: their weights, which broadcast with ``*``.
            fraction: the share of the data set's rows that the batch has; 0 for the rows of the
                last call, which count anew in place of themselves.
        """

    def update_given_(
        self,
        context: Tensor | None,
        log_posterior: LogPosterior,
        sample_weight: Tensor | None,
        fraction: float = 1.0,
    ) -> None:
        """Learn from a batch of rows with a context: by default :meth:`update_`."""
        self.update_(log_posterior, sample_weight, fraction)

    def num_free(self) -> int:
        """Return the number of free weights: K - 1 if something is learned."""
        learned = any(p.requires_grad for p in self.parameters())
        return self.num_components - 1 if learned else 0

    @property
    def takes_draws(self) -> bool:
        """``True`` if :meth:`take_draws_` is written."""
        return type(self).take_draws_ is not Weights.take_draws_

    def take_draws_(self, draws: Tensor) -> None:
        r"""Take draws of the weights, from a guide of other programs that draws the sites.

        Write it so that :meth:`log_mean` and :meth:`mean_log` are the means of these draws.

        Arguments:
            draws: of :math:`\pi`, ``(S, K)``.

        Raises:
            TypeError: by default.
        """
        raise TypeError(no_draws(self))

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        r"""Return :math:`\log E[\pi]` ``(*, K)``, the weights that scores are exact for.

        By default they are those of the call, with sum one, as the site c has them.

        Raises:
            TypeError: if the call draws, so that its weights are not the mean.
        """
        weights, drawn = self._run(context)
        if drawn:
            kind = type(self).__name__
            raise TypeError(
                f"{kind} draws {', '.join(map(repr, drawn))} and has no log_mean; write "
                f"{kind}.log_mean, which returns the log of the mean weights, and {kind}.guide, "
                "which draws the same sites from their posterior"
            )
        return weights.log_softmax(-1)

    def check_shape(self, context: Tensor | None) -> None:
        """Refuse a call that returns other than one number for each component.

        Raises:
            ValueError: if it does.
        """
        try:
            with local_seed(0), torch.no_grad():
                shape = tuple(self._run(context)[0].shape)
        except (RuntimeError, TypeError, ValueError):  # of a context of other numbers
            return
        if shape[-1:] != (self.num_components,):
            raise ValueError(
                f"{type(self).__name__} returns log-weights of shape {shape}; expected "
                f"(*, {self.num_components}), one for each component"
            )

    @torch.no_grad()
    def mean_log(self, context: Tensor | None = None) -> Tensor:
        r"""Return :math:`E[\log\pi]` of shape ``(*, K)``, the weights of the ELBO.

        By default they are :meth:`log_mean` where the call draws nothing, and the mean over 256
        draws of :meth:`guide` otherwise.

        Raises:
            TypeError: if the call draws, and there is no :meth:`guide`.
        """
        drawn = self._run(context)[1]
        if not drawn:
            return self.log_mean(context)
        if type(self).log_mean is Weights.log_mean:
            return self.log_mean(context)  # which says what is missing
        if type(self).guide is Weights.guide:
            kind = type(self).__name__
            raise TypeError(
                f"{kind} draws {', '.join(map(repr, drawn))} and has no guide of them; write "
                f"{kind}.mean_log, which returns the mean of the logs of the weights"
            )
        return self._draws(context).mean(0)

    def _draws(self, context: Tensor | None) -> Tensor:
        """Return the log-weights under draws of the guide ``(S, *, K)``."""
        found = []
        with local_seed(0), poutine.block():
            for _ in range(DRAWS):
                with poutine.trace() as trace:
                    self.guide()
                with poutine.replay(trace=trace.trace):
                    found.append(self.forward(context))
        return torch.stack(found)

    def _run(self, context: Tensor | None) -> tuple[Tensor, list[str]]:
        """Return the weights of a call, and the names of the sites that it draws."""
        with poutine.block(), poutine.trace() as trace:
            weights = self.forward(context)
        nodes: dict[str, Any] = trace.trace.nodes
        return weights, [name for name, site in nodes.items() if site["type"] == "sample"]
