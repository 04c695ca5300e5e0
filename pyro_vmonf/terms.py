"""Terms that the guide pays beside the ELBO, each a factor of the Pyro program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.processes import (
    max_over_processes,
    several_processes,
    sum_over_processes,
)
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf._utils.validation import check_number
from pyro_vmonf.contracts import Batch, required
from pyro_vmonf.schedules import Schedule

__all__ = [
    "Agreement",
    "Balance",
    "Batch",
    "Classification",
    "Confidence",
    "Consistency",
    "CustomTerm",
    "Term",
]


class Term(nn.Module):
    r"""A penalty per row, at least zero, that the guide pays with a weight.

    To implement one, write :meth:`forward`; it takes a :class:`Batch` and returns the penalty of
    each row, ``(*)``, or one for the whole batch of a shape that broadcasts with it (a mean over
    ``batch.dim`` with ``keepdim=True``), which then counts once for every row.

    Arguments:
        weight: the factor in front, at least zero; or a schedule of it over the steps, which
            ``fit`` follows and :meth:`SoftmaxGuide.set_step_` moves by hand.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, *, weight: float | Schedule = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.set_step_(0)

    def set_step_(self, step: int) -> None:
        """Take the weight of a training step."""
        current = self.weight(step) if callable(self.weight) else self.weight
        number = current.item() if isinstance(current, Tensor) else current
        self.current_weight = check_number("weight", number, zero=True)

    def forward(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return arguments_of(self, always=["weight"])


class CustomTerm(Term):
    """A user's function of a :class:`Batch` as a term."""

    def __init__(
        self, penalty: Callable[[Batch], Tensor], *, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight=weight)
        self.penalty = penalty

    def forward(self, batch: Batch) -> Tensor:
        return self.penalty(batch)


def penalty_of(name: str, term: Term, batch: Batch) -> Tensor:
    """Return the penalty of a term with its weight.

    Raises:
        TypeError: if the term returns no tensor.
        ValueError: if its shape is not that of the rows.
    """
    value, rows = term(batch), batch.log_q.shape[:-1]
    wanted = f"expected the penalty of each row, of shape {tuple(rows)}, or of the batch"
    if not isinstance(value, Tensor):
        raise TypeError(f"the term {name} returns a {type(value).__name__}; {wanted}, as a tensor")
    pairs = zip(reversed(value.shape), reversed(rows), strict=False)
    if value.dim() > len(rows) or not all(size in (1, count) for size, count in pairs):
        raise ValueError(f"the term {name} returns shape {tuple(value.shape)}; {wanted}")
    return term.current_weight * value


class Agreement(Term):
    r"""The guide stays near its start: :math:`KL(q_0(c|x) \,\|\, q(c|x))`.

    :math:`q_0` is the posterior that a :class:`~pyro_vmonf.nn.StartedNetwork` begins with, or
    that a :class:`~pyro_vmonf.nn.Remembered` network had, at the temperature of the
    guide. Rows whose cluster is certain at the start stay there unless the ELBO says otherwise.

    Arguments:
        weight: the factor in front.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide
        >>> from pyro_vmonf.nn import StartedNetwork
        >>> guide = SoftmaxGuide(StartedNetwork(2, 3, 1), [Agreement()])
        >>> x = torch.randn(5, 2)
        >>> bool((Agreement()(Batch(guide, x, guide.log_q(x), None, None)).abs() < 1e-6).all())
        True
    """

    def forward(self, batch: Batch) -> Tensor:
        start = required(batch.guide.network, "start", "the term Agreement")
        with torch.no_grad():
            first = batch.guide.log_q_of(start, batch.x, batch.given)
        return (first.exp() * (first - batch.log_q)).sum(-1)


class Classification(Term):
    r"""The lesson of labels for the network: :math:`-\log\sum_c q(c|x)\,p(y|c)` (thesis 5.1.2).

    For a hard label it is :math:`-\log q(y|x)`, the cross-entropy; for a row without evidence it is
    zero. Without it labels never reach the network, because a labelled row's posterior is known.
    Log-likelihoods are taken relative to their largest.

    Arguments:
        weight: the factor α in front.

    Example:
        >>> log_q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()
        >>> evidence = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
        >>> Classification()(Batch(None, None, log_q, evidence, None)) + 0
        tensor([0.0000, 1.6094])
    """

    def forward(self, batch: Batch) -> Tensor:
        if batch.log_evidence is None:
            return batch.log_q.new_zeros(batch.log_q.shape[:-1])
        relative = batch.log_evidence - batch.log_evidence.amax(-1, keepdim=True)
        return -(batch.log_q + relative).logsumexp(-1)


class Consistency(Term):
    r"""A point and a distorted copy of it belong together: :math:`-\log\sum_c q(c|x)\,q(c|x')`.

    It is minus the log-probability that draws of c from both agree, so it is zero when q puts both
    on one component, and positive when they differ or hesitate. Which distortion leaves the cluster
    alone is the prior knowledge that the likelihood lacks (thesis 6.2).

    Arguments:
        distort: function from a :class:`Batch` to the distorted rows ``(*, *event_shape)``:
            :mod:`pyro_vmonf.distortions` has four.
        weight: the factor in front.

    References:
        Izmailov, Kirichenko, Finzi, Wilson (2020), Semi-Supervised Learning with Normalizing
        Flows, arXiv:1912.13025.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide
        >>> from pyro_vmonf.nn.mlp import MLP
        >>> guide = SoftmaxGuide(MLP(2, 5), [Consistency(lambda batch: batch.x + 0.1)])
        >>> guide.named_terms()[0][0]
        'consistency'
    """

    def __init__(
        self, distort: Callable[[Batch], Tensor], *, weight: float | Schedule = 1.0
    ) -> None:
        super().__init__(weight=weight)
        self.distort = distort

    def forward(self, batch: Batch) -> Tensor:
        distorted = batch.guide.log_q(self.distort(batch), batch.given)
        return -(batch.log_q + distorted).logsumexp(-1)


class Balance(Term):
    r"""The batch's aggregated posterior is close to the weights: :math:`KL(\bar q \,\|\, \pi)`.

    With :math:`\bar q_c` the mean of :math:`q(c|x)` over the rows of the batch; for uniform weights
    it is :math:`\log K - H(\bar q)`. With fixed weights it keeps components alive. Weights of the
    optimiser move towards :math:`\bar q` as well; those in closed form follow the responsibilities
    alone. The ELBO asks for the same through :math:`E_q[\log\pi_c]`, but no more strongly than for
    likelihood.

    Arguments:
        weight: the factor in front.

    Example:
        >>> log_q = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> from pyro_vmonf import SoftmaxGuide
        >>> guide = SoftmaxGuide(torch.nn.Linear(2, 2))
        >>> Balance()(Batch(guide, None, log_q, None, None)).abs() < 1e-6  # one a batch
        tensor([True])
    """

    def forward(self, batch: Batch) -> Tensor:
        # A component that is ruled out everywhere has a mean of zero, and no gradient.
        log_q, dim = batch.log_q.clamp_min(torch.finfo(batch.log_q.dtype).min / 2), batch.dim - 1
        log_rows = log_q.new_zeros(log_q.shape[:-1])
        if batch.sample_weight is not None:
            log_rows = batch.sample_weight.expand(log_rows.shape).log()
        log_rows = log_rows.unsqueeze(-1)
        log_mean = _log_sum(log_q + log_rows, dim) - _log_sum(log_rows, dim)
        model, count = batch.guide.model, log_q.shape[-1]
        uniform = log_q.new_full((count,), 1 / count).log()
        log_weights = uniform
        if model is not None:  # gated weights: what they are on average, as the posterior is
            log_weights = model.weights.log_mean(batch.given)
            if batch.given is not None and log_weights.dim() > 1:
                log_weights = _log_sum(log_weights + log_rows, dim) - _log_sum(log_rows, dim)
        return (log_mean.exp() * (log_mean - log_weights)).sum(-1)


def _log_sum(values: Tensor, dim: int) -> Tensor:
    """Return the log of a sum of exponentials over the rows, of all processes if there are more."""
    own = values.logsumexp(dim, keepdim=True)
    if not several_processes():
        return own
    top = max_over_processes(own.detach())  # so that no sum of small numbers is zero
    return sum_over_processes((own - top).exp()).log() + top


class Confidence(Term):
    r"""The posterior is sure: its entropy :math:`H(q(\cdot|x))` is small.

    The ELBO pays for entropy, and rightly, where components overlap; this takes some of it back,
    so that boundaries move to where there are no points.

    Arguments:
        weight: the factor in front.

    References:
        Grandvalet, Bengio (2005), Semi-supervised learning by entropy minimization.

    Example:
        >>> log_q = torch.tensor([[0.5, 0.5]]).log()
        >>> Confidence()(Batch(None, None, log_q, None, None))
        tensor([0.6931])
    """

    def forward(self, batch: Batch) -> Tensor:
        log_q = batch.log_q
        return -(log_q.exp() * torch.where(log_q > -torch.inf, log_q, 0.0)).sum(-1)
