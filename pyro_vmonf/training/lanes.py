"""The state that a run trains, one or R of them, and one step of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from pyro_vmonf.program import unregistered
from pyro_vmonf.schedules import SMALLEST_TEMPERATURE
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.reading import Reading, Terms


def is_watched(parameter: Tensor) -> bool:
    """Return whether a user's function looks at the gradient of a parameter, or changes it."""
    return bool(
        parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


class Lanes(Protocol):
    """One or R states of one module, whose call returns terms; their sum is maximised.

    Attributes:
        parameters: what the optimiser moves.
        module: the module that stands for all runs.
    """

    parameters: list[Tensor]
    module: nn.Module

    def terms(self, batches: Sequence[Arguments]) -> Terms:
        """Return the terms per row, one number a run."""

    def measured_terms(self, batches: Sequence[Arguments]) -> Terms:
        """Return the terms per row of measured rows; the module is in ``eval()``."""

    def step(
        self, batches: Sequence[Arguments], going: list[bool], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        """Move the parameters once; return the terms, and the runs that took the step.

        A run that is over, or whose loss or gradient is not finite, stays as it is. No runs are
        returned by a run whose steps are read later.
        """

    def read(self) -> Reading | None:
        """Return the steps that nobody has read; ``None`` if there are none."""

    def set_temperature_(self, value: float) -> None:
        """Set the temperature of every guide."""

    def state(self, run: int) -> dict[str, Tensor]:
        """Return a copy of the state of a run."""

    def load_(self, run: int, state: dict[str, Tensor]) -> None:
        """Put a run into a state."""

    def is_finite(self, run: int) -> bool:
        """Return whether every parameter and buffer of a run is finite."""

    def step_back_(self, run: int) -> None:
        """Go back to the last parameters of a run whose loss was finite."""


class Single:
    """One run: the module itself.

    Arguments:
        module: its call takes the arguments of a batch and returns terms.
        clip_norm: the largest norm of the gradient.
        parameters: what is trained; everything that requires a gradient by default.
    """

    def __init__(
        self,
        module: nn.Module,
        clip_norm: float | None = None,
        parameters: Sequence[Tensor] | None = None,
    ) -> None:
        self.module = module
        self.clip_norm = float("inf") if clip_norm is None else clip_norm
        own: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.parameters = own if parameters is None else list(parameters)
        self.kept = list(dict.fromkeys((*self.parameters, *own)))  # also what counts move
        self.last_finite: list[Tensor] = []
        self.before: list[Tensor] = []  # of the step that is taken
        self.guard_()

    def guard_(self, last_finite: Sequence[Tensor] = ()) -> None:
        """Take the buffers as they are for the state that a rejected step goes back to."""
        self.last_finite = list(last_finite) or self.last_finite
        own = self.module.buffers()  # masks and orders stay, and each look at one costs time
        self.buffers = [b for b in own if b.is_floating_point() or _counts(b)]
        self.copies = [b.clone() for b in self.buffers]
        self.versions = [b._version for b in self.buffers]
        norms = (part for part in self.module.modules() if isinstance(part, _NormBase))
        silent = {id(b) for part in norms for b in part.buffers(recurse=False)}
        self.silent = [id(b) in silent for b in self.buffers]  # they move without a new version

    def moved(self) -> list[int]:
        """Return the numbers of the buffers that the forward pass may have moved."""
        every = zip(self.buffers, self.versions, self.silent, strict=True)
        return [
            i for i, (b, version, silent) in enumerate(every) if silent or b._version != version
        ]

    def terms(self, batches: Sequence[Arguments]) -> Terms:
        with unregistered():
            terms: Terms = self.module(**batches[0])
        size = batches[0].get("size", 1)
        return {name: value / size for name, value in terms.items()}

    def measured_terms(self, batches: Sequence[Arguments]) -> Terms:
        return self.terms(batches)

    def step(
        self, batches: Sequence[Arguments], going: list[bool], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        start = self._start()
        try:
            return self._step(batches, start, move)
        except BaseException:  # an interrupt may come in the middle of a move
            self._take_back(start)
            raise

    def read(self) -> Reading | None:
        return None

    def _step(
        self, batches: Sequence[Arguments], start: list[Tensor], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        terms, _, norm = self._gradients(batches)
        *values, norm_now = torch.stack((*terms.values(), norm)).tolist()  # one wait for the device
        now = dict(zip(terms, values, strict=True))
        loss_is_finite = math.isfinite(sum(values))
        finite = loss_is_finite and math.isfinite(norm_now)
        if loss_is_finite:
            self.last_finite, self.before = self.before, self.last_finite
        if finite:
            if norm_now > self.clip_norm:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
            move()
            self._settle(accepted=True)
        else:
            self._take_back(start)
        return now, [finite]

    def _gradients(self, batches: Sequence[Arguments]) -> tuple[Terms, Tensor, Tensor]:
        """Set the gradients anew; return the terms, the loss and the norm of the gradient."""
        forget_gradients(self.parameters)
        terms, loss = self._differentiate(batches)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros_like(loss)
        return terms, loss, norm

    def _differentiate(self, batches: Sequence[Arguments]) -> tuple[Terms, Tensor]:
        """Set the gradients; return the terms and the loss."""
        terms = self.terms(batches)
        loss = -torch.stack(list(terms.values())).sum()
        if loss.requires_grad:  # weights in closed form alone need no gradient
            loss.backward()
        return {name: value.detach() for name, value in terms.items()}, loss.detach()

    @torch.no_grad()
    def _take_back(self, start: list[Tensor]) -> None:
        """Go back to the state before the step."""
        if start:
            torch._foreach_copy_(self.kept, start)
        self._settle(accepted=False)

    @torch.no_grad()
    def _start(self) -> list[Tensor]:
        """Return the parameters before the forward pass, which may count."""
        if self.before:
            torch._foreach_copy_(self.before, self.kept)
        else:
            self.before = [parameter.detach().clone() for parameter in self.kept]
        return self.before

    @torch.no_grad()
    def _settle(self, accepted: bool) -> None:
        """Keep what the forward pass moved, or put it back."""
        for i in self.moved():
            buffer = self.buffers[i]
            if accepted:
                self.copies[i].copy_(buffer)
            else:
                buffer.copy_(self.copies[i])
            self.versions[i] = buffer._version

    def set_temperature_(self, value: float) -> None:
        self.module.guide.set_temperature_(value)  # type: ignore[operator, union-attr]
        self._settle(accepted=True)

    def state(self, run: int) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def load_(self, run: int, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(state)
        self.guard_()

    def is_finite(self, run: int) -> bool:
        return all(_finite(value) for value in self.module.state_dict().values())

    @torch.no_grad()
    def step_back_(self, run: int) -> None:
        if self.last_finite:
            torch._foreach_copy_(self.kept, self.last_finite)


class Stacked:
    """R runs under ``torch.vmap``: their parameters are stacked, and one program runs over them.

    A step of a small mixture is mostly Python; R of them at once cost hardly more than one.

    Arguments:
        modules: alike in everything but their state.
        arrays: rows, evidence and weights of the whole data set, ``None`` where there are none.
        size: number of rows that a run trains on.
        clip_norm: the largest norm of the gradient of one run.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        arrays: dict[str, Tensor | None],
        size: int,
        clip_norm: float | None = None,
    ) -> None:
        self.module = modules[0]
        self.runs = len(modules)
        self.arrays = arrays
        self.size = size
        self.clip_norm = clip_norm
        self.stacked, buffers = stack_module_state(list(modules))  # type: ignore[arg-type]
        # Masks and orders are common: each tensor that is passed on costs its share of a step.
        self.buffers = {
            name: value
            for name, value in buffers.items()
            if value.is_floating_point() or _counts(value[0]) or bool((value != value[:1]).any())
        }
        first: dict[int, str] = {}  # a tensor of several names is trained under the first of them
        self.names = {
            name: first.setdefault(id(value), name)
            for name, value in self.module.state_dict(keep_vars=True).items()
        }
        self.parameters: list[Tensor] = [p for p in self.stacked.values() if p.requires_grad]
        self.counted = [  # the guide moves these in the forward pass
            self.stacked[f"{name}.{own}"]
            for name, part in self.module.named_modules()
            if hasattr(part, "counts")
            for own, _ in part.named_parameters(recurse=False)
            if f"{name}.{own}" in self.stacked
        ]
        self.last_finite: list[Tensor] = []
        self.optimizer: Optimizer | None = None  # its moments stay where a run does not move

    def terms(self, batches: Sequence[Arguments]) -> Terms:
        index = torch.stack([batch["x"] for batch in batches])  # numbers of rows, not rows
        size = batches[0]["size"]
        arrays = {name: None if a is None else a[index] for name, a in self.arrays.items()}
        given = {name: a for name, a in arrays.items() if a is not None}
        missing = dict.fromkeys(set(arrays) - set(given))

        def one(parameters: Any, buffers: Any, index: Tensor, given: Any) -> Terms:
            arguments = {**given, **missing, "index": index, "size": size}
            terms: Terms = functional_call(self.module, (parameters, buffers), kwargs=arguments)
            return {name: value / size for name, value in terms.items()}

        with unregistered():
            every = torch.vmap(one, randomness="different")
            found: Terms = every(self.stacked, self.buffers, index, given)
        return found

    def measured_terms(self, batches: Sequence[Arguments]) -> Terms:
        return self.terms(batches)

    def step(
        self, batches: Sequence[Arguments], going: list[bool], move: Callable[..., Any]
    ) -> tuple[Terms, list[bool]]:
        buffers = [*self.buffers.values(), *self.counted]
        before = [value.detach().clone() for value in (*buffers, *self.parameters)]
        try:
            return self._step(batches, going, move, buffers, before)
        except BaseException:  # an interrupt may come in the middle of a move
            with torch.no_grad():
                torch._foreach_copy_([*buffers, *self.parameters], before)
            raise

    def read(self) -> Reading | None:
        return None

    def _step(
        self,
        batches: Sequence[Arguments],
        going: list[bool],
        move: Callable[..., Any],
        buffers: list[Tensor],
        before: list[Tensor],
    ) -> tuple[Terms, list[bool]]:
        forget_gradients(self.parameters)
        terms = self.terms(batches)
        loss = -torch.stack(list(terms.values())).sum(0)
        finite = loss.detach().isfinite()
        self._remember(finite, before[len(buffers) :])
        if loss.requires_grad:
            loss.sum().backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = [g.flatten(1).norm(dim=1) for g in gradients]
        norm = torch.stack(norms).norm(dim=0) if norms else torch.zeros_like(loss)
        taken = torch.tensor(going, device=norm.device) & finite & norm.isfinite()
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
            move()
            for value, old in zip(moving, kept, strict=True):
                value[left] = old
            for buffer, old in zip(buffers, before, strict=False) if len(left) else []:
                buffer[left] = old[left]
        return {name: value.detach() for name, value in terms.items()}, taken.tolist()

    @torch.no_grad()
    def _remember(self, finite: Tensor, values: list[Tensor]) -> None:
        """Keep the parameters of the runs whose loss is finite, as the step found them."""
        if not self.last_finite or bool(finite.all()):
            self.last_finite = values
        else:
            for kept, value in zip(self.last_finite, values, strict=True):
                kept[finite] = value[finite]

    def _moving(self) -> list[Tensor]:
        """Return what a step of the optimiser changes, run by run."""
        assert self.optimizer is not None
        states = [self.optimizer.state[p] for p in self.parameters if p in self.optimizer.state]
        moments = [v for s in states for v in s.values() if torch.is_tensor(v) and v.dim()]
        return [*self.parameters, *moments]

    def set_temperature_(self, value: float) -> None:
        if "guide.temperature" in self.buffers:
            self.buffers["guide.temperature"].fill_(max(value, SMALLEST_TEMPERATURE))

    @torch.no_grad()
    def state(self, run: int) -> dict[str, Tensor]:
        own = {**self.stacked, **self.buffers}
        return {
            name: (own[self.names[name]][run] if self.names[name] in own else value).clone()
            for name, value in self.module.state_dict().items()
        }

    @torch.no_grad()
    def load_(self, run: int, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            own = self.stacked.get(self.names[name], self.buffers.get(self.names[name]))
            if own is not None:
                own[run].copy_(value)

    def is_finite(self, run: int) -> bool:
        return all(_finite(value) for value in self.state(run).values())

    @torch.no_grad()
    def step_back_(self, run: int) -> None:
        for value, kept in zip(self.parameters, self.last_finite, strict=bool(self.last_finite)):
            value[run] = kept[run]


def forget_gradients(parameters: Sequence[Tensor]) -> None:
    """Leave the gradients of the step before."""
    for parameter in parameters:
        parameter.grad = None


def _counts(value: Tensor) -> bool:
    """Return whether a buffer is a single whole number, as a counter of steps is."""
    return value.numel() == 1 and value.dtype != torch.bool


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
