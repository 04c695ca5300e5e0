"""The loss as a module, for several processes and for other people's trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf.program import Program, unregistered
from pyro_vmonf.training.objective import Objective


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
