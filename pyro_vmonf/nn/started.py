"""A guide's network that begins at a known posterior."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.nn.mlp import MLP, linear, start_near_zero

UNUSED = -1e30  # log-weight of a Gaussian that a cluster does not have


class StartedNetwork(ShownModule):
    r"""The logits of a start, and what a perceptron learns to add to them.

    .. math::
        f(x)_c = \log \sum_m w_{cm} N(x; \mu_{cm}, \Sigma_{cm}) + g(x)_c

    The first part is fixed: the posterior of Gaussian mixtures, one a cluster, with the cluster's
    share in *w*. The perceptron *g* is zero at first, so the guide begins at the start.

    Arguments:
        in_features: number of features *D*.
        out_features: number of clusters *K*.
        mixtures: number of Gaussians of a cluster, at most.
        hidden: widths of the hidden layers of *g*.

    Example:
        >>> StartedNetwork(2, 5, 3)(torch.randn(7, 2)).shape
        torch.Size([7, 5])
    """

    log_weights: Tensor
    whitening: Tensor
    shift: Tensor
    constant: Tensor
    batched_buffers = ()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mixtures: int = 4,
        *,
        hidden: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__()
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        self.mixtures = check_positive("mixtures", mixtures)
        self.hidden = tuple(hidden)
        count = out_features * mixtures
        self.register_buffer("whitening", torch.eye(in_features).repeat(count, 1, 1))
        self.register_buffer("shift", torch.zeros(count, in_features))
        self.register_buffer("constant", torch.zeros(count))
        self.residual = MLP(in_features, out_features, hidden=hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Return to the start."""
        for layer in self.residual.layers:
            layer.reset_parameters()  # type: ignore[operator]
        start_near_zero(self.residual.layers[-1], 0.0)  # type: ignore[arg-type]

    @torch.no_grad()
    def set_(self, log_shares: Sequence[float], densities: Sequence[Any]) -> None:
        """Begin at the posterior of clusters.

        Arguments:
            log_shares: log of each cluster's share of the rows, K of them.
            densities: K mixtures, each with ``weights``, ``means`` and ``covariances`` as arrays.
        """
        self.constant.fill_(UNUSED)
        for c, (log_share, density) in enumerate(zip(log_shares, densities, strict=True)):
            weights, means, covariances = (
                torch.as_tensor(value, dtype=torch.float64)
                for value in (density.weights, density.means, density.covariances)
            )
            first, count = c * self.mixtures, len(weights)
            whitening = torch.linalg.inv(torch.linalg.cholesky(covariances))
            log_det = whitening.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            half = 0.5 * self.in_features * math.log(2 * math.pi)
            own = slice(first, first + count)
            self.whitening[own] = whitening.to(self.whitening)
            self.shift[own] = -(whitening @ means.unsqueeze(-1)).squeeze(-1).to(self.shift)
            self.constant[own] = (weights.log() + log_share + log_det - half).to(self.constant)

    def start(self, x: Tensor) -> Tensor:
        """Return the logits of the start ``(*, K)``."""
        count, width = self.shift.shape
        z = linear(x, self.whitening.reshape(count * width, width), self.shift.flatten())
        joint = self.constant - 0.5 * z.unflatten(-1, (count, width)).square().sum(-1)
        return joint.unflatten(-1, (self.out_features, self.mixtures)).logsumexp(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.start(x) + self.residual(x)


class Remembered(ShownModule):
    r"""A network that keeps what it said at a start, for the term ``Agreement``.

    Its call is that of the network. :meth:`start` is what the network said when :meth:`remember_`
    was called, which no training changes. A run from new parameters calls it again.

    Arguments:
        network: from rows to logits ``(*, K)``.

    Example:
        >>> network = Remembered(MLP(2, 3))
        >>> network.remember_()
        >>> x = torch.randn(5, 2)
        >>> torch.equal(network(x), network.start(x))
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.first = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Remembered:
        """Set the mode of the network; what is remembered stays in ``eval()``."""
        super().train(mode)
        self.first.eval()
        return self

    def remember_(self) -> None:
        """Take what the network says now as the start."""
        self.first.load_state_dict(self.network.state_dict())

    def start(self, x: Tensor) -> Tensor:
        """Return the logits of the start ``(*, K)``."""
        logits: Tensor = self.first(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits
