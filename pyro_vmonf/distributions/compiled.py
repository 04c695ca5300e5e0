"""Densities of flows through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pyro_vmonf.distributions.flow import FlowDistribution


class Compiled(FlowDistribution):
    """The distribution of a flow whose log-density is compiled.

    Arguments:
        flow: the distribution.
        module: the bank that made it, whose ``base`` and ``transforms`` it is made of.
    """

    def __init__(self, flow: FlowDistribution, module: nn.Module) -> None:
        super().__init__(flow.base, flow.transforms)
        self.module = module

    def log_prob(self, x: Tensor) -> Tensor:
        return _compiled_log_prob(self.module)(self.module.base, self.module.transforms, x)


def _log_prob(base: nn.Module, transforms: nn.ModuleList, x: Tensor) -> Tensor:
    return FlowDistribution(base(), list(transforms)).log_prob(x)  # type: ignore[arg-type]


_COMPILED: WeakKeyDictionary[nn.Module, Callable[..., Tensor]] = WeakKeyDictionary()


def _compiled_log_prob(flow: nn.Module) -> Callable[..., Tensor]:
    """Return a flow's own compiled function, made at its first call.

    The compiler keeps what it made with the function's code, and only so much of it: each flow has
    a copy. The parameters are arguments, so copies of a flow share nothing.
    """
    if flow not in _COMPILED:
        own = FunctionType(_log_prob.__code__.replace(), globals())
        _COMPILED[flow] = torch.compile(own)
    return _COMPILED[flow]
