"""Running counts of the responsibilities, from which weights in closed form follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.processes import sum_over_processes
from pyro_vmonf._utils.repr import ShownModule

LogPosterior = Callable[[], Tensor]
Update = Literal["counts", "gradient"]


_counted_dims: ContextVar[int] = ContextVar("counted_dims", default=0)


@contextmanager
def counting(dims: int) -> Iterator[None]:
    """Let weights in closed form be constants in a block: the guide that runs counts its rows.

    Arguments:
        dims: batch dimensions of the rows; 0 if the guide counts none.
    """
    token = _counted_dims.set(dims)
    try:
        yield
    finally:
        _counted_dims.reset(token)


def counted_dims() -> int:
    """Return the batch dimensions of the rows that the guide counts; 0 if none counts."""
    return _counted_dims.get()


class Counts(ShownModule):
    r"""The expected rows of each component, :math:`n_c = \sum_n w_n\, q(c|x_n)`, over the data.

    They are the counts of the rows seen in this pass through the data, and for the rows to come
    those of the last pass: incremental EM, without a memory of each row. With all rows in one batch
    they are the counts of that batch. In the first pass the rows to come count by the weights that
    are given.

    Arguments:
        num_components: number of components *K*.
        num_groups: count each of so many groups of rows *G*: all counts are ``(K, G)``.

    References:
        Neal, Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and
        other variants.

    Example:
        >>> counts = Counts(2)
        >>> counts.add_(torch.tensor([3.0, 1.0]), 0.5, torch.tensor([0.5, 0.5]))
        >>> counts.over_the_data()
        tensor([5., 3.])
    """

    passes: Tensor
    seen: Tensor
    recent: Tensor
    stale: Tensor
    batched_buffers = ("passes", "recent")

    def __init__(self, num_components: int, num_groups: int | None = None) -> None:
        super().__init__()
        self.num_components, self.num_groups = num_components, num_groups
        groups = () if num_groups is None else (num_groups,)
        passes = torch.zeros(num_components, 2, *groups)  # this one, the last one
        self.register_buffer("passes", passes)
        self.register_buffer("seen", torch.zeros(()))
        recent = torch.zeros(num_components, *groups)
        self.register_buffer("recent", recent, persistent=False)
        self.register_buffer("stale", torch.zeros(()), persistent=False)  # 1: begin anew

    def reset_parameters(self) -> None:
        """Forget every row."""
        self.passes.zero_()
        self.seen.zero_()
        self.stale.zero_()

    @torch.no_grad()
    def add_(self, batch: Tensor, fraction: float, present: Tensor) -> None:
        """Count a batch.

        Arguments:
            batch: its counts ``(K,)``, of all processes.
            fraction: the share of the data set's rows that it has; 0 for the rows of the last
                batch, which count anew in place of themselves.
            present: shares ``(K,)`` by which unseen rows count in the first pass.
        """
        share = sum_over_processes(batch.new_full((), fraction))
        if fraction == 0:
            passes = torch.stack((self.passes[:, 0] - self.recent + batch, self.passes[:, 1]), 1)
            fine = passes.isfinite().all()
            self.passes.copy_(torch.where(fine, passes, self.passes))
            self.recent.copy_(torch.where(fine, batch, self.recent))
            return
        kept = 1 - self.stale
        (now, last), before = (self.passes * kept).unbind(1), self.seen * kept
        # A pass that is over becomes the last one. Sums of fractions are not exact.
        over = before > 1 - share / 2
        now, last = torch.where(over, 0.0, now), torch.where(over, now, last)
        last = torch.where(last.sum() > 0, last, present * batch.sum() / share)
        passes = torch.stack((now + batch, last), 1)
        fine = passes.isfinite().all()
        self.passes.copy_(torch.where(fine, passes, self.passes))
        seen = torch.where(over, 0.0, before) + share
        self.seen.copy_(torch.where(fine, seen, self.seen))
        self.stale.copy_(torch.where(fine, 0.0, self.stale))
        self.recent.copy_(torch.where(fine, batch, self.recent))

    def over_the_data(self) -> Tensor:
        """Return the counts ``(K,)`` of all rows."""
        return self.passes[:, 0] + (1 - self.seen).clamp_min(0) * self.passes[:, 1]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("passes", "seen"):  # files of earlier versions have none
            state_dict.setdefault(prefix + name, torch.zeros_like(self.get_buffer(name)))
        self.stale.zero_()
        super()._load_from_state_dict(state_dict, prefix, *args)


def forget_(module: nn.Module, *, now: bool = False) -> None:
    """Let weights in closed form begin anew with the next rows; the weights stay.

    Arguments:
        module: the weights, or a module that has them.
        now: forget the counts at once, also in files; by default the next step does.
    """
    for part in module.modules():
        if isinstance(part, Counts):
            part.reset_parameters() if now else part.stale.fill_(1.0)


def counts_of(log_posterior: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Return the counts ``(K,)`` of rows with log q ``(*, K)`` and weights."""
    q = log_posterior.exp()
    weight = q.new_ones(()) if sample_weight is None else sample_weight.unsqueeze(-1)
    return (weight * q).reshape(-1, q.shape[-1]).sum(0)


def is_learning(module: nn.Module, parameter: Tensor) -> bool:
    """Return whether a step changes a parameter: not of a frozen one, ``eval()`` or ``no_grad``.

    Raises:
        ValueError: if torch traces the program by ``torch.jit``, which keeps no counts.
    """
    if torch.jit.is_tracing():
        raise ValueError(
            "weights in closed form count in every step, which torch.jit does not trace; take "
            "TraceEnum_ELBO or fit(compile=True), or weights of the optimiser: "
            "LearnedWeights(K, 'gradient')"
        )
    # Under torch.vmap it is no Parameter and does not say; frozen ones do not go there.
    trained = parameter.requires_grad or not isinstance(parameter, nn.Parameter)
    return module.training and torch.is_grad_enabled() and trained
