"""Terms that the guide pays beside the ELBO, each a factor of the Pyro program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from pyro_vmonf.guides import SoftmaxGuide


@dataclass(frozen=True)
class Batch:
    """What a term sees of one step.

    Arguments:
        guide: the guide that pays.
        x: rows ``(*, *event_shape)`` as the user gave them.
        log_q: log q(c|x) ``(*, K)`` by the network alone, before any evidence.
        log_evidence: log p(y|c) ``(*, K)``, or ``None`` where no row carries any.
        index: positions of the rows in the whole data set.
    """

    guide: SoftmaxGuide
    x: Tensor
    log_q: Tensor
    log_evidence: Tensor | None
    index: Tensor


class Term(nn.Module):
    r"""A penalty per row, at least zero, that the guide pays with a weight.

    To implement one, write :meth:`forward`; it takes a :class:`Batch` and returns the penalty of
    each row, ``(*)``, or one for the whole batch of a shape that broadcasts with it (a mean over
    the rows with ``keepdim=True``), which then counts once for every row.

    Arguments:
        weight: the factor in front, at least zero.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; a term's weight must be at least 0")
        self.weight = weight

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class Classification(Term):
    r"""What labels teach the network: :math:`-\log\sum_c q(c|x)\,p(y|c)` (thesis 5.1.2).

    For a hard label it is :math:`-\log q(y|x)`, the cross-entropy; for a row without evidence it is
    zero. Without it labels never reach the network, because a labelled row's posterior is known.
    Log-likelihoods are taken relative to their largest.

    Arguments:
        weight: the factor α in front.

    Example:
        >>> import torch
        >>> log_q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()
        >>> evidence = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
        >>> Classification()(Batch(None, None, log_q, evidence, None))
        tensor([-0.0000, 1.6094])
    """

    def forward(self, batch: Batch) -> Tensor:
        if batch.log_evidence is None:
            return batch.log_q.new_zeros(batch.log_q.shape[:-1])
        relative = batch.log_evidence - batch.log_evidence.amax(-1, keepdim=True)
        return -(batch.log_q + relative).logsumexp(-1)
