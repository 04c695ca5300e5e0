"""Adam's step as a function of vectors, so that it can be a part of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


class FlatAdam:
    r"""The state of :class:`torch.optim.Adam` in two vectors, and the step from it.

    .. math::
        m' = m + (1 - \beta_1) (g - m), \qquad v' = \beta_2 v + (1 - \beta_2) g^2, \qquad
        p' = p - \frac{\eta}{1 - \beta_1^t} \frac{m'}{\sqrt{v' / (1 - \beta_2^t)} + \epsilon}

    The optimiser's own state becomes views of the vectors. Its steps and those of a graph can
    follow each other in any order.

    Arguments:
        optimizer: of the run, which :meth:`refuses` accepts.
        parameters: those that have a gradient.
        clip_norm: the largest norm of the gradient.

    Source: Kingma and Ba (2015), arXiv:1412.6980.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> None:
        self.optimizer = optimizer
        self.parameters = list(parameters)
        self.clip_norm = clip_norm
        self.constants: tuple[float, ...] = ()  # of the group, and as tensors
        self.vectors: list[Tensor] = []
        [self.group] = optimizer.param_groups
        self.sizes = [parameter.numel() for parameter in self.parameters]
        zeros = [torch.zeros_like(p, memory_format=torch.contiguous_format) for p in parameters]
        states = [optimizer.state[parameter] for parameter in self.parameters]
        self.mean, self.square = (
            torch.cat([s.get(name, zero).flatten() for s, zero in zip(states, zeros, strict=True)])
            for name in ("exp_avg", "exp_avg_sq")
        )
        self.values = torch.zeros_like(self.mean)
        # Only the fused form counts its steps beside the parameters.
        none = torch.zeros((), device=self.mean.device if self.group["fused"] else "cpu")
        self.steps = torch.stack([state.get("step", none) for state in states])
        self.even = True
        self.views = self.split(self.values)
        self.state = optimizer.state
        self.own = list(
            zip(self.steps.unbind(), self.split(self.mean), self.split(self.square), strict=True)
        )
        for state, views in zip(states, self.own, strict=True):
            state.update(zip(("step", "exp_avg", "exp_avg_sq"), views, strict=True))

    @staticmethod
    def refuses(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
        """Return whether the step is another one, or is watched, so that the optimiser takes it."""
        if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) > 1:
            return True
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        steps = {
            float(state["step"]) if (state := optimizer.state.get(parameter)) else 0.0
            for parameter in parameters
        }
        return bool(
            len(kinds) != 1
            or not next(iter(kinds))[0].is_floating_point
            or len(steps) > 1
            or special(optimizer)
        )

    def changed(self) -> bool:
        """Return whether the optimiser takes another step, or has another state."""
        names = ("step", "exp_avg", "exp_avg_sq")
        return (
            not self.even
            or self.optimizer.state is not self.state
            or self.optimizer.param_groups[0] is not self.group
            or special(self.optimizer)
            or any(
                self.state[parameter].get(name) is not own
                for parameter, views in zip(self.parameters, self.own, strict=True)
                for name, own in zip(names, views, strict=True)
            )
        )

    def look_(self) -> None:
        """Find out whether a step from Python has left parameters behind that it did not use."""
        self.even = bool((self.steps == self.steps[0]).all())

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the part of each parameter, in its shape."""
        parts = vector.split(self.sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    @staticmethod
    def together(values: Sequence[Tensor]) -> Tensor:
        """Return tensors as one vector."""
        return torch.cat([value.detach().flatten() for value in values])

    def inputs(self) -> list[Tensor]:
        r"""Return moments, steps, constants ``(6,)``, and :math:`(\eta, \beta_1, \beta_2)`."""
        group = self.group
        lr, (beta1, beta2), decay = float(group["lr"]), group["betas"], group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        constants = (
            1 - beta1, beta2, 1 - beta2, group["eps"],
            0.0 if decoupled else decay, lr * decay if decoupled else 0.0, lr, beta1, beta2,
        )  # fmt: skip
        if constants != self.constants:
            kinds = ((constants[:6], self.mean.dtype), (constants[6:], torch.float64))
            here = [torch.tensor(numbers, dtype=dtype) for numbers, dtype in kinds]
            self.vectors = [v.to(self.mean.device, non_blocking=True) for v in here]
            self.constants = constants
        return [self.mean, self.square, self.steps, *self.vectors]

    def step(
        self,
        old: Tensor,
        gradients: Sequence[Tensor],
        mean: Tensor,
        square: Tensor,
        steps: Tensor,
        *numbers: Tensor,
    ) -> list[Tensor]:
        """Return parameters and moments after the step, and the norm of the gradient."""
        rate1, keep2, rate2, _, decay, _ = numbers[0].unbind()
        gradient = self.together(gradients)
        norm = gradient.norm()
        gradient = gradient * (self.clip_norm / (norm + 1e-6)).clamp(max=1.0) + decay * old
        mean = mean + rate1 * (gradient - mean)
        square = keep2 * square + rate2 * gradient * gradient
        return [self.moved(old, mean, square, steps, *numbers), mean, square, norm]

    @staticmethod
    def moved(
        old: Tensor, mean: Tensor, square: Tensor, steps: Tensor, every: Tensor, rates: Tensor
    ) -> Tensor:
        """Return the parameters after the step that the moments belong to.

        Arguments:
            old, steps: before the step.
            mean, square: after it.
            every, rates: of :meth:`inputs`.
        """
        *_, eps, _, decoupled = every.unbind()
        lr, beta1, beta2 = rates.unbind()
        step = steps[0].double() + 1  # powers of a float32 lose their last digits
        size, root = lr / (1 - beta1**step), (1 - beta2**step).sqrt()
        size, root = size.to(old.dtype), root.to(old.dtype)
        return old - decoupled * old - size * mean / (square.sqrt() / root + eps)

    @torch.no_grad()
    def accept_(self, new: Tensor, mean: Tensor, square: Tensor, steps: Tensor) -> None:
        """Put parameters and optimiser into the state after a step."""
        self.values.copy_(new)
        torch._foreach_copy_(self.parameters, self.views)
        self.mean.copy_(mean)
        self.square.copy_(square)
        self.steps.copy_(steps)


def special(optimizer: Optimizer) -> bool:
    """Return whether a step of Adam is watched, or goes another way than the usual one."""
    watched = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    names = ("amsgrad", "maximize", "capturable", "differentiable")
    several = len(optimizer.param_groups) > 1
    return bool(watched) or several or any(optimizer.param_groups[0][name] for name in names)
