"""The loss as a module, for several processes and for other trainers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.validation import floating_buffer, has_gaps, listed
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.counts import Counts
from pyro_vmonf.program import unregistered
from pyro_vmonf.training.objective import Objective

FIRST_ROWS = 64  # by which a batch is known again
NAMES = {"size", "index", "sample_weight", "given"}  # of further arguments of a batch


class TrainingLoss(nn.Module):
    """Minus the ELBO per row as a module with the parameters of model and guide.

    Wrap it in ``DistributedDataParallel``, or return its value from the ``training_step`` of a
    Lightning module. Each process passes its part of the batch; all parts have the same length.
    Terms of a whole batch, such as :class:`~pyro_vmonf.terms.Balance`, see all parts.

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
        if not (hasattr(vmonf, "model") and hasattr(vmonf, "guide")):
            raise TypeError(f"vmonf is a {type(vmonf).__name__}; expected a VMoNF")
        self.objective = Objective(vmonf.model, vmonf.guide)  # type: ignore[arg-type]
        self.prepared = False
        self.first: Tensor | None = None  # rows of a first batch that came without size

    @property
    def needs_size(self) -> bool:
        """``True`` if the pair has to know how many rows the whole data set has.

        Weights in closed form learn in training alone.
        """
        model: Any = self.objective.model
        counts = self.training and any(isinstance(part, Counts) for part in model.modules())
        return counts or not model.sums_directly()

    def forward(self, x: Tensor, y: Tensor | None = None, **arguments: Any) -> Tensor:
        """Return the loss of a batch.

        Arguments:
            x: rows ``(B, *event_shape)``.
            y: labels ``(B,)`` or log-likelihoods ``(B, K)``.
            arguments: other arguments of the model: ``size``, ``index``, ``sample_weight`` and
                ``given``. ``size=N`` is the number of rows of the whole data set. Weights in closed
                form are the counts of N rows, and the prior of random weights counts once for them.
                By default each batch is the whole; a second batch of other rows then warns.

        Raises:
            TypeError: if an argument has the wrong kind.
            ValueError: if it does not fit, or is out of range.
        """
        x, y, arguments = self._checked(x, y, arguments)
        if "size" not in arguments and self.training and torch.is_grad_enabled():
            self._look_at(x)
        size = arguments.setdefault("size", len(x))
        if not self.prepared:  # the depth of the plates, and the road, from the first batch
            self.objective.prepare_({"x": x, "y": y, **arguments})
            self.prepared = True
        with unregistered():
            terms = self.objective(x=x, y=y, **arguments)
        loss = -torch.stack(list(terms.values())).sum() / size
        # A batch can leave parameters out, for example the network if each row has a label. Other
        # processes would wait for their gradients forever.
        untouched = sum(p.flatten()[:1].sum() for p in self.parameters() if p.requires_grad)
        return loss + 0 * untouched  # type: ignore[no-any-return]

    def _look_at(self, x: Tensor) -> None:
        """Warn where a second batch is not the first one, and the number of all rows counts."""
        if self.first is None:
            self.first = x[:FIRST_ROWS].detach().clone()
            return
        some = x[:FIRST_ROWS]
        same = some.shape == self.first.shape and torch.allclose(
            some, self.first, 0.0, 0.0, equal_nan=True
        )
        if not same and self.needs_size:
            warn(
                "the loss takes each batch for the whole data set: weights in closed form, random "
                "weights and random parameters are then those of the last batch; pass size=, the "
                "number of rows of the data set"
            )

    def _checked(self, x: Any, y: Any, arguments: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Return what ``fit`` would make of the arguments."""
        if unknown := arguments.keys() - NAMES:
            named, known = (", ".join(sorted(names)) for names in (unknown, NAMES))
            raise TypeError(f"the loss takes no {named}; beside x and y it takes {known}")
        model: Any = self.objective.model
        like = floating_buffer(model)
        weight = arguments.get("sample_weight")
        x = model.rows(x, weight=weight, missing=True)
        empty = x.isnan().flatten(1).all(1) if has_gaps(x) else x.new_zeros(0)
        if empty.any():
            raise ValueError(
                f"rows {listed(empty.nonzero().squeeze(1))} of x have no entry, only NaN; leave "
                "them out"
            )
        if y is not None:
            y = check_evidence(y, len(x), model.num_components, like)
        if weight is not None:
            arguments["sample_weight"] = check_sample_weight(weight, len(x), like)
        return x, y, arguments
