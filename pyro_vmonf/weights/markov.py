"""The weights of a Markov chain over components."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, Distribution

from pyro_vmonf.contracts import optional
from pyro_vmonf.counts import LogPosterior
from pyro_vmonf.program import in_plate
from pyro_vmonf.weights.base import Weights
from pyro_vmonf.weights.observed import observed, sites_of
from pyro_vmonf.weights.standard import FixedWeights, LearnedWeights, as_weights

DOUBLINGS = 10  # of the steps that a component's share is taken of
Row = str | Tensor | Distribution | Weights


class MarkovWeights(Weights):
    r"""The weights of a chain: its call returns the log-probabilities ``(K + 1, K)`` of its rows.

    The first row is :math:`\log p(c_1)`, and row 1 + k is :math:`\log p(c_t|c_{t-1}=k)`. Each is a
    :class:`~pyro_vmonf.weights.Weights` module of its own, ``initial`` and ``after_0`` to
    ``after_{K-1}``. Those in closed form learn from the expected numbers of moves.

    Arguments:
        initial: weights of the first component.
        transition: K weights, those after each component.

    Example:
        >>> rows = [LearnedWeights(2, "gradient") for _ in range(3)]
        >>> MarkovWeights(rows[0], rows[1:])().exp()[1:]
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], grad_fn=<SliceBackward0>)
    """

    component_dim = None  # rows and columns belong to components

    def __init__(self, initial: Weights, transition: Sequence[Weights]) -> None:
        super().__init__()
        self.num_components = initial.num_components
        self.initial = initial
        for k, row in enumerate(transition):  # no list, which Pyro would name otherwise
            setattr(self, f"after_{k}", row)

    @property
    def in_program(self) -> bool:  # type: ignore[override]
        """``True`` if a row is random."""
        return any(row.in_program for row in self.rows())

    def rows(self) -> list[Weights]:
        """Return the weights of each row, the first component's first."""
        return [self.initial, *(getattr(self, f"after_{k}") for k in range(self.num_components))]

    def named(self, values: Tensor) -> dict[str, Tensor]:
        """Return values ``(*, K + 1, K)`` of the rows by the names of the arguments."""
        return {"initial": values[..., 0, :], "transition": values[..., 1:, :]}

    def forward(self, context: Tensor | None = None) -> Tensor:
        if self.in_program and in_plate():
            raise ValueError(
                "the random rows of a chain are drawn once, and inside a plate there would be "
                "several of each: call the chain outside of the plate and without "
                "vectorize_particles, or take fixed or learned rows"
            )
        return torch.stack([row(context) for row in self.rows()])

    def guide(self) -> None:
        for row in self.rows():
            row.guide()

    def update_(
        self, log_posterior: LogPosterior, sample_weight: Tensor | None, fraction: float = 1.0
    ) -> None:
        """Let each row learn from its expected moves.

        Arguments:
            log_posterior: function to the logarithms ``(K + 1, K)`` of the expected numbers of
                first components and of moves in a batch; see :meth:`HiddenChain.moves`.
            sample_weight: nothing, as the numbers have it.
            fraction: as for :meth:`Weights.update_`.
        """
        counts = cache(log_posterior)  # of several rows
        for number, row in enumerate(self.rows()):
            row.update_(partial(_row_of, counts, number), None, fraction)

    def next_call(self) -> Tensor:
        """Return what the next call returns, and leave that one as it is; no row may be random."""
        return torch.stack([optional(row, "next_call", row)() for row in self.rows()])

    def row_draws(self) -> Tensor:
        """Return log-probabilities of the rows ``(S, K + 1, K)``, drawn from their posterior."""
        return self._draws(None)

    def num_free(self) -> int:
        return sum(row.num_free() for row in self.rows())

    @property
    def takes_draws(self) -> bool:
        return all(row.takes_draws for row in self.rows() if row.in_program)

    def take_draws_(self, draws: Tensor) -> None:
        for number, row in enumerate(self.rows()):
            if row.in_program:
                row.take_draws_(draws[:, number])

    def with_observed(self, data: Mapping[str, Tensor]) -> MarkovWeights:
        """Return the rows with some of their sites observed: see :meth:`FlowMixture.condition`."""
        rows = [
            observed(row, {n: data[n] for n in sites_of(row) if n in data}) for row in self.rows()
        ]
        return MarkovWeights(rows[0], rows[1:])

    def mean_rows(self) -> Tensor:
        """Return the log-probabilities ``(K + 1, K)`` of the rows; random ones with their mean."""
        return torch.stack([row.log_mean() for row in self.rows()])

    def rows_of_bound(self) -> Tensor:
        r"""Return :math:`E_q[\log\pi]` of the rows ``(K + 1, K)``, the weights of the ELBO."""
        rows = self.rows()
        return torch.stack([r.mean_log() if r.in_program else r.log_mean() for r in rows])

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        """Return the log of each component's share ``(K,)`` of the first 1,024 steps."""
        rows = self.mean_rows().double().softmax(-1)
        total, power = torch.eye(self.num_components).to(rows), rows[1:]
        for _ in range(DOUBLINGS):
            total, power = total + power @ total, power @ power
        return (rows[0] @ total).log().log_softmax(-1).to(self.mean_rows())


def _row_of(counts: Callable[[], Tensor], number: int) -> Tensor:
    """Return one row of the counts ``(1, K)``."""
    return counts()[number : number + 1]


class FixedRow(FixedWeights):
    """Fixed probabilities of a row of a chain, some of which may be zero.

    Arguments:
        probs: probabilities ``(K,)``, at least zero; they are divided by their sum.

    Raises:
        ValueError: if they are no such vector, or all zero.

    Example:
        >>> FixedRow(torch.tensor([1.0, 3.0, 0.0]))().exp()
        tensor([0.2500, 0.7500, 0.0000])
    """

    _wanted = "non-negative, not all zero,"

    def _fit(self, probs: Tensor) -> bool:
        return bool((probs >= 0).all() and probs.any())


def as_row(name: str, form: Row, count: int, like: Tensor | None = None) -> Weights:
    """Return the weights that a short form of one row stands for."""
    if isinstance(form, str) and form == "learned":
        return LearnedWeights(count)
    try:
        if isinstance(form, str | Distribution | nn.Module):
            return as_weights(form, count, like)
        row = as_weights(FixedRow(torch.as_tensor(form)), count)
        return row if like is None or not like.numel() else row.to(like.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, RuntimeError) else type(error)
        raise kind(f"{name} does not fit: {error}") from error


def as_rows(form: Row | Sequence[Row], count: int, like: Tensor | None = None) -> list[Weights]:
    """Return the K weights that a short form of transitions stands for."""
    if isinstance(form, Weights):
        raise TypeError(
            f"transition is one {type(form).__name__}; expected a list of {count}, one after each "
            "component"
        )
    if isinstance(form, Dirichlet) and form.batch_shape:
        form = [Dirichlet(row) for row in form.concentration]
    if isinstance(form, Distribution) and form.batch_shape:
        raise ValueError(
            f"transition is a {type(form).__name__} of batch_shape {tuple(form.batch_shape)}; "
            f"expected a list of {count} distributions of batch_shape (), one after each component "
            "(a Dirichlet alone may have a batch)"
        )
    if isinstance(form, str | Distribution):
        form = [form] * count
    elif form is None:
        raise TypeError(f"transition is None; expected a form of weights, or {count} of them")
    elif not isinstance(form, Tensor | list | tuple):
        form = torch.as_tensor(form)
    if len(form) != count or (isinstance(form, Tensor) and form.shape != (count, count)):
        shape = tuple(form.shape) if isinstance(form, Tensor) else f"({len(form)}, ...)"
        raise ValueError(
            f"transition has shape {shape}; expected ({count}, {count}), one row of probabilities "
            f"after each of the bank's {count} components"
        )
    return [as_row(f"row {k} of transition", row, count, like) for k, row in enumerate(form)]
