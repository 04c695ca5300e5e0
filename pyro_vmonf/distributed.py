"""The loss as a module, for several processes and for other people's trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from pyro_vmonf.elbo import Objective
from pyro_vmonf.rows import Program, unregistered


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes, differentiably; alone, the tensor itself.

    Where every process adds the same function of it to its loss, and the gradients are averaged
    over the processes, they are those of one process with all rows.
    """
    if not several_processes():
        return value
    from torch.distributed.nn.functional import all_reduce

    result: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return result


class TrainingLoss(nn.Module):
    """Minus the ELBO per row as a module, whose parameters are those of model and guide.

    Wrap it in ``DistributedDataParallel``, or return its value from a Lightning module's
    ``training_step``. Each process passes its share of the batch, as long as that of the others;
    terms of a whole batch, such as :class:`~pyro_vmonf.terms.Balance`, see all shares.

    Arguments:
        vmonf: the pair.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> loss = TrainingLoss(VMoNF(FlowMixture(RealNVP(2, 5))))
        >>> loss(torch.zeros(7, 2)).shape
        torch.Size([])
    """

    def __init__(self, vmonf: nn.Module) -> None:
        super().__init__()
        self.objective = Objective(vmonf.model, vmonf.guide, nesting=1)  # type: ignore[arg-type]
        self.programs = [p for p in self.objective.modules() if isinstance(p, Program)]

    def forward(self, x: Tensor, y: Tensor | None = None, **arguments: Any) -> Tensor:
        """Return the loss of rows ``(B, *event_shape)``; ``arguments`` are the program's own.

        ``size=N`` is the number of rows in the whole data set, of which the batch stands for all;
        a global part, such as the prior of random weights, counts once for N rows.
        """
        size = arguments.setdefault("size", len(x))
        with unregistered(*self.programs):
            terms = self.objective(x=x, y=y, **arguments)
        loss = -torch.stack(list(terms.values())).sum() / size
        # A batch may leave parameters out (a network, where every row is labelled), and processes
        # that wait for their gradients would wait for ever.
        untouched = sum(p.flatten()[:1].sum() for p in self.parameters() if p.requires_grad)
        return loss + 0 * untouched  # type: ignore[no-any-return]
