"""The stacked state of several pairs, and a training step of all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vmonf.program import Program, unregistered
from pyro_vmonf.training.objective import Objective


class Runs:
    """The stacked state of R pairs, and a training step of all of them.

    Arguments:
        objectives: the pairs, alike in everything but their state.
        arrays: rows, evidence and weights of the whole data set, ``None`` where there are none.
        size: rows that a run trains on.
        lr, weight_decay: of Adam.
        scheduler: function from the optimiser to its schedule.
        clip_norm: largest norm of one run's gradient.
    """

    def __init__(
        self,
        objectives: list[Objective],
        arrays: dict[str, Tensor | None],
        size: int,
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.template = objectives[0]
        self.arrays = arrays
        self.size = size
        self.clip_norm = clip_norm
        self.programs = [p for p in self.template.modules() if isinstance(p, Program)]
        self.parameters, buffers = stack_module_state(objectives)  # type: ignore[arg-type]
        # Masks and orders are common: each tensor that is passed on costs its share of a step.
        self.buffers = {
            name: value
            for name, value in buffers.items()
            if value.is_floating_point() or bool((value != value[:1]).any())
        }
        first: dict[int, str] = {}  # a tensor of several names is trained under the first of them
        self.names = {
            name: first.setdefault(id(value), name)
            for name, value in self.template.state_dict(keep_vars=True).items()
        }
        self.trained = [p for p in self.parameters.values() if p.requires_grad]
        self.optimizer = Adam(self.trained, lr=lr, weight_decay=weight_decay, fused=True)
        self.scheduler = scheduler(self.optimizer) if scheduler else None

    @torch.no_grad()
    def state(self, run: int) -> dict[str, Tensor]:
        """Return a copy of one run's parameters and buffers."""
        own = {**self.parameters, **self.buffers}
        return {
            name: (own[self.names[name]][run] if self.names[name] in own else value).clone()
            for name, value in self.template.state_dict().items()
        }

    def set_temperature_(self, value: float) -> None:
        """Set every guide's temperature."""
        if "guide.temperature" in self.buffers:
            tiny = torch.finfo(self.buffers["guide.temperature"].dtype).tiny
            self.buffers["guide.temperature"].fill_(max(value, tiny))

    def terms(self, index: Tensor, size: int) -> dict[str, Tensor]:
        """Return each run's terms ``(R,)``, per row, for the rows ``index`` ``(R, B)``."""
        arrays = {name: None if a is None else a[index] for name, a in self.arrays.items()}
        given = {name: a for name, a in arrays.items() if a is not None}
        missing = dict.fromkeys(set(arrays) - set(given))

        def one(parameters: Any, buffers: Any, index: Tensor, given: Any) -> dict[str, Tensor]:
            arguments = {**given, **missing, "index": index, "size": size}
            terms: dict[str, Tensor] = functional_call(
                self.template, (parameters, buffers), kwargs=arguments
            )
            return {name: value / size for name, value in terms.items()}

        with unregistered(*self.programs):
            every = torch.vmap(one, randomness="different")
            found: dict[str, Tensor] = every(self.parameters, self.buffers, index, given)
        return found

    def step(self, index: Tensor, going: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Take one step; return the terms, and which runs took it.

        A run whose loss or gradient is not finite, and one that is over, stays as it is; only the
        optimiser's count and schedule, which are common, move on.
        """
        self.optimizer.zero_grad(set_to_none=True)
        floating = [b for b in self.buffers.values() if b.is_floating_point()]
        before = [b.clone() for b in floating]
        terms = self.terms(index, self.size)
        loss = -torch.stack(list(terms.values())).sum(0)
        loss.sum().backward()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        taken = going & loss.detach().isfinite() & norm.isfinite()
        if self.clip_norm is not None:
            scale = (self.clip_norm / (norm + 1e-6)).clamp(max=1)
            for g in gradients:
                g.mul_(scale.reshape(-1, *(1,) * (g.dim() - 1)))
        left = (~taken).nonzero().squeeze(1)
        with torch.no_grad():
            for g in gradients if len(left) else []:
                g[left] = 0.0
            moving = self._moving() if len(left) else []
            kept = [value[left].clone() for value in moving]
            self.optimizer.step()
            for value, old in zip(moving, kept, strict=True):
                value[left] = old
            for buffer, old in zip(floating, before, strict=True) if len(left) else []:
                buffer[left] = old[left]
        if self.scheduler is not None:
            self.scheduler.step()
        return {name: value.detach() for name, value in terms.items()}, taken

    def _moving(self) -> list[Tensor]:
        """Return what a step of the optimiser changes, run by run."""
        states = [self.optimizer.state[p] for p in self.trained if p in self.optimizer.state]
        moments = [v for s in states for v in s.values() if torch.is_tensor(v) and v.dim()]
        return [*self.trained, *moments]
