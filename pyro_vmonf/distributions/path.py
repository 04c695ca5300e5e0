"""The path of a hidden chain, given the rows of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Categorical, Distribution, constraints

from pyro_vmonf._utils.shapes import broadcast, check_event


class HiddenPath(Distribution):
    r"""The posterior :math:`p(c_{1:T} \mid x_{1:T})` of the path of a hidden chain.

    Given the rows, the path is a chain again, whose transitions differ from step to step,

    .. math::
        p(c_{1:T} \mid x_{1:T}) = p(c_1 \mid x_{1:T}) \prod_{t>1} p(c_t \mid c_{t-1}, x_{t:T}).

    Paths are ``(*, T)``, with −1 after the end of a sequence.

    Arguments:
        log_first: log-probabilities ``(*, K)`` of the first component.
        log_moves: those of the component at the steps 2 to T, after each: ``(*, T − 1, K, K)``.
        going: the steps ``(*, T)`` up to the end.

    References:
        Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech
        Recognition.

    Example:
        >>> first, moves = torch.full((7, 3), 1 / 3).log(), torch.full((7, 4, 3, 3), 1 / 3).log()
        >>> path = HiddenPath(first, moves, torch.ones(7, 5, dtype=torch.bool))
        >>> path.sample().shape, path.marginals.shape, path.entropy().shape
        (torch.Size([7, 5]), torch.Size([7, 5, 3]), torch.Size([7]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, log_first: Tensor, log_moves: Tensor, going: Tensor) -> None:
        self.log_first = log_first
        self.log_moves = log_moves
        self.going = going
        super().__init__(going.shape[:-1], going.shape[-1:], validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        count = self.log_first.shape[-1]
        return constraints.independent(constraints.integer_interval(-1, count - 1), 1)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> HiddenPath:
        def grown(values: Tensor, event: int) -> Tensor:
            return values.expand(*batch_shape, *values.shape[values.dim() - event :])

        return HiddenPath(grown(self.log_first, 1), grown(self.log_moves, 3), grown(self.going, 1))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability ``(*)`` of paths ``(*, T)``."""
        check_event(value, self.event_shape)
        path = value.long()
        count = self.log_first.shape[-1]
        shape = broadcast(path.shape, self.going.shape)
        path, going = path.expand(shape), self.going.expand(shape)
        possible = (path == value) & (path < count) & ((path >= 0) == going) & (path >= -1)
        path = path.clamp(0, count - 1)
        first = self.log_first.expand(*shape[:-1], count).gather(-1, path[..., :1])
        moves = self.log_moves.expand(*shape[:-1], *self.log_moves.shape[-3:])
        before = path[..., :-1, None, None].expand(*shape[:-1], shape[-1] - 1, 1, count)
        rows = moves.gather(-2, before).squeeze(-2)
        steps = rows.gather(-1, path[..., 1:, None]).squeeze(-1)
        total = first.squeeze(-1) + torch.where(going[..., 1:], steps, 0.0).sum(-1)
        return total.masked_fill(~possible.all(-1), -torch.inf)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw paths ``(*, T)``."""
        shape = self._extended_shape(Size(sample_shape))
        path = [Categorical(logits=self.log_first.expand(*shape[:-1], -1)).sample()]
        for moves in self.log_moves.unbind(-3):
            rows = moves.expand(*shape[:-1], *moves.shape[-2:])
            before = path[-1][..., None, None].expand(*shape[:-1], 1, rows.shape[-1])
            path.append(Categorical(logits=rows.gather(-2, before).squeeze(-2)).sample())
        return torch.stack(path, -1).masked_fill(~self.going, -1)

    @property
    def marginals(self) -> Tensor:
        r"""The probabilities :math:`p(c_t \mid x_{1:T})` ``(*, T, K)``; zero after the end."""
        return self._shares() * self.going.unsqueeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy ``(*)`` of the whole path, nats."""
        before = (self._shares() * self.going.unsqueeze(-1))[..., :-1, :]
        first = torch.special.entr(self.log_first.exp()).sum(-1)
        moves = torch.special.entr(self.log_moves.exp()).sum(-1)
        return first + (before * moves * self.going[..., 1:, None]).sum((-1, -2))

    @property
    @torch.no_grad()
    def mode(self) -> Tensor:
        """The most probable path ``(*, T)``, by the algorithm of Viterbi (1967)."""
        score, back = self.log_first, []
        stay = torch.arange(score.shape[-1], device=score.device).expand_as(score)
        for moves, going in zip(
            self.log_moves.unbind(-3), self.going[..., 1:, None].unbind(-2), strict=True
        ):
            best, origin = (score.unsqueeze(-1) + moves).max(-2)
            score = torch.where(going, best, score)
            back.append(torch.where(going, origin, stay))
        path = [score.argmax(-1)]
        for origin in reversed(back):
            path.append(origin.gather(-1, path[-1].unsqueeze(-1)).squeeze(-1))
        return torch.stack(path[::-1], -1).masked_fill(~self.going, -1)

    def _shares(self) -> Tensor:
        """Return the probabilities of the components ``(*, T, K)``, as if no path had an end."""
        shares = [self.log_first.exp()]
        for moves in self.log_moves.exp().unbind(-3):
            shares.append((shares[-1].unsqueeze(-2) @ moves).squeeze(-2))
        return torch.stack(shares, -2)


def path_given(log_rows: Tensor, table: Tensor, going: Tensor) -> HiddenPath:
    """Return the posterior of the path of a chain.

    Arguments:
        log_rows: log-probabilities ``(K + 1, K)`` of the chain, the first component's first.
        table: log-densities ``(*, T, K)`` of the rows, zero where nothing is observed.
        going: the steps ``(*, T)`` up to the end of each sequence.
    """
    after = torch.zeros_like(table[..., 0, :])
    moves = []
    for t in range(table.shape[-2] - 1, 0, -1):
        # The rows from step t on, given the component at t.
        ahead = torch.where(going[..., t, None], table[..., t, :] + after, 0.0)
        joint = log_rows[1:] + ahead.unsqueeze(-2)
        moves.append(_normalised(joint))
        after = torch.where(going[..., t, None], joint.logsumexp(-1), 0.0)
        after = after - top_of(after)
    first = _normalised(log_rows[0] + table[..., 0, :] + after)
    empty = first.new_zeros(*first.shape[:-1], 0, *log_rows[1:].shape)
    return HiddenPath(first, torch.stack(moves[::-1], -3) if moves else empty, going)


def _normalised(joint: Tensor) -> Tensor:
    """Return log-probabilities; those of a component that no path goes through are uniform."""
    lost = (joint == -torch.inf).all(-1, keepdim=True)
    return torch.where(lost, 0.0, joint).log_softmax(-1)


def top_of(values: Tensor) -> Tensor:
    """Return the largest of the last dimension, kept as one; zero where it is not finite."""
    top = values.detach().amax(-1, keepdim=True)
    return torch.where(top.isfinite(), top, 0.0)
