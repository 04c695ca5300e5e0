"""Rows and small pairs that several files of tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf import FlowMixture, Gaussian, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP

N = 400
HALF = torch.arange(N) // (N // 2)  # the blob of each row of `two_blobs`
NO_EPOCHS: dict[str, Any] = {"epochs": 1, "progress": False, "seed": 0}
UNTRAINED: dict[str, Any] = {"seed": 0, "minutes": 1e-6, "progress": False}
X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
X = X + 8 * (torch.arange(180) // 60 - 1)[:, None]  # three clusters on the diagonal


def normal_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sixty_rows(count: int = 60, width: int = 2, seed: int = 0) -> Tensor:
    return normal_rows(count, width, seed=seed)


def double_rows(count: int = 60) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def clustered_rows(count: int = 60) -> Tensor:
    """Three clusters on the diagonal in turn, from the global generator."""
    return torch.randn(count, 2) + 4 * (torch.arange(count) % 3)[:, None]


def two_blobs(features: int = 2, apart: float = 9.0) -> Tensor:
    return normal_rows(N, features) + apart * HALF[:, None]


def three_blobs(count: int = 90) -> Tensor:
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    return centres.repeat_interleave(count // 3, 0) + sixty_rows(count)


def two_numpy_blobs(count: int = 100, apart: float = 7.0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(2, count, 2))
    return np.concatenate((first, second + apart))


def three_numpy_blobs(rows: int = 300, seed: int = 0) -> np.ndarray[Any, Any]:
    """Three blobs in turn: two at the ends of the axes, one at zero."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, 2)) + 9 * np.eye(3)[np.arange(rows) % 3][:, :2]


def two_gaussians(weights: Any = "uniform", bank: Any = None) -> VMoNF:
    bank = Gaussian(2, 2) if bank is None else bank
    return VMoNF(FlowMixture(bank, weights), SoftmaxGuide(MLP(2, 2)))


def three_gaussians(weights: Any = "uniform", guide: Any = None) -> VMoNF:
    """Return a pair whose Gaussians are the three clusters of ``X``."""
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), weights), guide)
    loc = torch.tensor([[-8.0, -8.0], [0.0, 0.0], [8.0, 8.0]])
    vmonf.model.bank.set_(loc, torch.eye(2).expand(3, 2, 2))  # type: ignore[operator]
    return vmonf


def one_feature() -> FlowMixture:
    model = FlowMixture(Gaussian(1, 2))
    model.bank.set_(torch.tensor([[0.0], [5.0]]), torch.ones(2, 1, 1))  # type: ignore[operator]
    return model


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimiser that moves nothing."""
    return torch.optim.SGD(parameters, lr=0.0)
