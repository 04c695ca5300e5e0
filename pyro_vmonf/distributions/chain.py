"""Sequences whose components follow a Markov chain, with the chain summed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import Categorical, DiscreteHMM, TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from pyro_vmonf._utils.shapes import broadcast, check_event
from pyro_vmonf.distributions.estimates import Estimated, mean_of_parts, variance_of_parts
from pyro_vmonf.distributions.path import HiddenPath, path_given, top_of
from pyro_vmonf.distributions.selection import grouped_draw
from pyro_vmonf.distributions.support import of_any


class HiddenChain(Estimated):
    r"""Sequences :math:`p(x_{1:T}) = \sum_c p(c_1)\prod_t p(c_t|c_{t-1})\,p(x_t|c_t)`.

    A step that holds NaN is not observed, and the chain ends with its last observed step.

    Arguments:
        log_rows: tensor ``(K + 1, K)``: the log-probabilities of the first component, and below
            them those of the component after each.
        components: distribution with ``batch_shape`` ``(K,)``.
        steps: length *T*.
        batch_shape: that of the sequences.

    References:
        Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech
        Recognition; Särkkä, García-Fernández (2021), Temporal Parallelization of Bayesian
        Smoothers.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> components = Independent(Normal(torch.zeros(3, 2), 1.0), 1)
        >>> chain = HiddenChain(torch.full((4, 3), 1 / 3).log(), components, steps=5)
        >>> chain.log_prob(torch.zeros(7, 5, 2)).shape, chain.sample((7,)).shape
        (torch.Size([7]), torch.Size([7, 5, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        log_rows: Tensor,
        components: Distribution,
        steps: int = 1,
        batch_shape: Sequence[int] = (),
    ) -> None:
        self.log_rows = log_rows
        self.components = components
        self.steps = steps
        shape = Size((steps, *components.event_shape))
        super().__init__(Size(batch_shape), shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint | None:
        row = of_any(self.components.support, len(self.components.event_shape))
        return constraints.independent(row, 1)

    def _shares(self) -> Tensor:
        """Return the probabilities of the components at each step ``(T, K)``."""
        rows = self.log_rows.exp()
        shares = [rows[0]]
        for _ in range(self.steps - 1):
            shares.append(shares[-1] @ rows[1:])
        return torch.stack(shares)

    def _weights(self) -> Tensor:
        """Return the probabilities with the dimensions of rows ``(T, K, *event_shape)``."""
        shares = self._shares()
        return shares.reshape(*shares.shape, *(1,) * len(self.components.event_shape))

    @property
    def mean(self) -> Tensor:
        mean = mean_of_parts(self._weights(), self.components.mean.unsqueeze(0), 1)
        return mean.expand(*self.batch_shape, *self.event_shape)

    @property
    def variance(self) -> Tensor:
        parts = self.components.mean.unsqueeze(0), self.components.variance.unsqueeze(0)
        mean = mean_of_parts(self._weights(), parts[0], 1)
        variance = variance_of_parts(self._weights(), *parts, mean, 1)
        return variance.expand(*self.batch_shape, *self.event_shape)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> HiddenChain:
        return HiddenChain(self.log_rows, self.components, self.steps, batch_shape)

    def lasting(self, steps: int) -> HiddenChain:
        """Return the chain of another length."""
        return HiddenChain(self.log_rows, self.components, steps, self.batch_shape)

    def observed(self, x: Tensor) -> Tensor:
        """Return the steps ``(*, T)`` of sequences ``(*, T, *event_shape)`` that hold a row."""
        return ~x.isnan().flatten(x.dim() - len(self.components.event_shape)).any(-1)

    def table(self, x: Tensor) -> Tensor:
        """Return log p(x_t|c) ``(*, T, K)``; zero where nothing is observed."""
        seen = self.observed(x)
        rows = x[seen].unsqueeze(-1 - len(self.components.event_shape))
        values = self.components.log_prob(rows)
        empty = values.new_zeros(*seen.shape, values.shape[-1])
        return empty.index_put((seen,), values)

    def scored(self, table: Tensor, seen: Tensor) -> Tensor:
        """Return log p ``(*)`` of sequences whose densities are ``table``.

        Arguments:
            table: log p(x_t|c) ``(*, T, K)``, zero where nothing is observed.
            seen: the observed steps ``(*, T)``.
        """
        count = table.shape[-1]
        # After the end the chain stands still, so that the transitions get no gradient there.
        still = torch.eye(count, dtype=table.dtype, device=table.device).log()
        going = _going(seen)[..., None, None]
        moves = torch.where(going, self.log_rows[1:], still)
        # Pyro's chain moves before it emits: the first move leads from anywhere to the first row.
        first = self.log_rows[:1].expand(*moves.shape[:-3], 1, count, count)
        moves = torch.cat((first, moves[..., 1:, :, :]), -3)
        # Pyro's chain divides each row by its sum. It comes back with the density of the step
        # before, so that rows need no sum of one: those of variational Bayes have less.
        total = moves.logsumexp(-1)
        table = table + F.pad(total[..., 1:, :], (0, 0, 0, 1))
        # What all components of a step share would take the digits of their differences.
        top = top_of(table)
        known = _Known(table - top)
        hmm = DiscreteHMM(table.new_zeros(count), moves, known, validate_args=False)
        log_prob: Tensor = hmm.log_prob(table) + top.sum((-1, -2)) + total[..., 0, 0]
        return log_prob

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        log_prob = self.scored(self.table(x), self.observed(x))
        return log_prob.expand(broadcast(log_prob.shape, self.batch_shape))

    def log_marginals(self, x: Tensor) -> Tensor:
        """Return log p(c_t|x_1, ..., x_T) ``(*, T, K)``: the gradient of log p in the densities.

        A row that no component has a density for says nothing about its component, and neither
        does a sequence that no path leads through.

        Arguments:
            x: sequences ``(*, T, *event_shape)``.
        """
        return self._smoothed(self.table(x), self.observed(x))

    def scores(
        self, table: Tensor, x: Tensor, y: Tensor | None, *, posterior: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return log p(x) ``(*)`` and, if asked for, p(c_t|x) ``(*, T, K)``, zero after the end.

        Arguments:
            table: log p(x_t|c) of the steps: see :meth:`table`.
            x: the sequences.
            y: nothing, as steps have no labels.
            posterior: compute the posterior.
        """
        seen = self.observed(x)
        found = self._smoothed(table, seen).exp() * seen.unsqueeze(-1) if posterior else None
        return self.scored(table, seen), found

    def _smoothed(self, table: Tensor, seen: Tensor) -> Tensor:
        """Return log p(c_t|x_1, ..., x_T) ``(*, T, K)``."""
        table = self._possible(table).detach()
        with torch.inference_mode(False), torch.enable_grad():
            table, seen = (table - top_of(table)).clone(), seen.clone()
            frozen = HiddenChain(self.log_rows.detach().clone(), self.components)
            lost = frozen.scored(table, seen).detach() == -torch.inf
            table = table.masked_fill(lost[..., None, None], 0.0).requires_grad_()
            (share,) = torch.autograd.grad(frozen.scored(table, seen).sum(), table)
        share = share.clamp_min(0)
        total = share.sum(-1, keepdim=True)
        return (share / torch.where(total > 0, total, 1.0)).log()

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Return the most probable path of components ``(*, T)``; −1 after the end of a sequence.

        A sequence that no path leads through has −1 at all steps.

        Arguments:
            x: sequences ``(*, T, *event_shape)``.
        """
        path, possible = self.posterior(x)
        return path.mode.masked_fill(~possible.unsqueeze(-1), -1)

    def posterior(self, x: Tensor) -> tuple[HiddenPath, Tensor]:
        """Return the path of components given the rows, and which sequences ``(*)`` have one.

        A row that no component has a density for says nothing about the path, and neither does a
        sequence that no path leads through.

        Arguments:
            x: sequences ``(*, T, *event_shape)``.
        """
        table, seen = self._possible(self.table(x)), self.observed(x)
        table = table - top_of(table)
        possible = self.scored(table, seen) > -torch.inf
        table = torch.where(possible[..., None, None], table, 0.0)
        return path_given(self.log_rows, table, _going(seen)), possible

    def moves(self, table: Tensor, seen: Tensor, weight: Tensor | None) -> Tensor:
        """Return the expected numbers ``(K + 1, K)`` of first components, and of moves from each.

        Arguments:
            table, seen: of the sequences, as in :meth:`scored`.
            weight: how much each sequence counts ``(*)``.
        """
        table = self._possible(table).detach()
        with torch.inference_mode(False), torch.enable_grad():
            rows = self.log_rows.detach().clone().requires_grad_()
            table = (table - top_of(table)).clone()
            frozen = HiddenChain(rows, self.components)
            # A sequence that no path leads through would have no gradient, nor would the others.
            lost = frozen.scored(table, seen).detach() == -torch.inf
            weight = (~lost).to(table) if weight is None else weight.masked_fill(lost, 0.0)
            log_prob = frozen.scored(table.masked_fill(lost[..., None, None], 0.0), seen)
            (slope,) = torch.autograd.grad((weight * log_prob).sum(), rows)
        return slope.clamp_min(0)

    @staticmethod
    def moves_of(log_q: Tensor, seen: Tensor, weight: Tensor | None) -> Tensor:
        r"""Return the same numbers under :math:`q(c) = \prod_t q_t(c_t)`.

        Arguments:
            log_q: its logarithm ``(*, T, K)``.
            seen, weight: as for :meth:`moves`.
        """
        q = log_q.exp() * seen.unsqueeze(-1)
        weighted = q if weight is None else weight[..., None, None] * q
        first = weighted[..., 0, :].flatten(0, -2).sum(0)
        pairs = weighted[..., :-1, :, None] * q[..., 1:, None, :]
        return torch.cat((first[None], pairs.flatten(0, -3).sum(0)))

    def expected(self, log_q: Tensor, table: Tensor, seen: Tensor) -> dict[str, Tensor]:
        r"""Return the parts ``(*)`` of :math:`E_q[\log p(x, c) - \log q(c)]`, by name.

        The posterior is :math:`q(c) = \prod_t q_t(c_t)` over the steps up to the end.

        Arguments:
            log_q: its logarithm ``(*, T, K)``.
            table, seen: of the sequences, as in :meth:`scored`.
        """
        q = log_q.exp() * seen.unsqueeze(-1)
        pairs = q[..., :-1, :, None] * q[..., 1:, None, :]
        moves = _expected(pairs, self.log_rows[1:]).sum((-1, -2, -3))
        return {
            "log_likelihood": _expected(q, table).sum((-1, -2)),
            "log_prior": _expected(q[..., 0, :], self.log_rows[0]).sum(-1) + moves,
            "entropy": -_expected(q, log_q).sum((-1, -2)),
        }

    def sample_with_component(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Draw sequences ``(*, T, *event_shape)`` and the component ``(*, T)`` of each row."""
        with torch.no_grad():
            shape = Size((*sample_shape, *self.batch_shape))
            path = [Categorical(logits=self.log_rows[0]).sample(shape)]
            for _ in range(self.steps - 1):
                path.append(Categorical(logits=self.log_rows[1:][path[-1]]).sample())
            c = torch.stack(path, -1)
            return grouped_draw(self.components, c), c

    def replicate(self, x: Tensor) -> Tensor:
        """Draw as many sequences as ``x`` has, of the same lengths."""
        drawn = self.lasting(x.shape[1]).sample((len(x),))
        ended = ~_going(self.observed(x))
        return drawn.masked_fill(ended.reshape(*ended.shape, *(1,) * (x.dim() - 2)), torch.nan)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample_with_component(sample_shape)[0]

    @staticmethod
    def _possible(table: Tensor) -> Tensor:
        """Return densities without the rows that no component has a density for."""
        return table.masked_fill((table == -torch.inf).all(-1, keepdim=True), 0.0)


class _Known(TorchDistribution):
    """Components whose log-densities ``(*, T, K)`` of the rows are known."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real

    def __init__(self, table: Tensor) -> None:
        self.table = table
        super().__init__(table.shape, Size(()), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.table


def _going(seen: Tensor) -> Tensor:
    """Return the steps ``(*, T)`` up to the last one that is observed."""
    return seen.flip(-1).cummax(-1).values.flip(-1)


def _expected(weight: Tensor, value: Tensor) -> Tensor:
    """Return weight times value; an event that is impossible counts nothing, without gradient."""
    return weight * torch.where(weight > 0, value, 0.0)
