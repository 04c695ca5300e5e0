"""Clusters that distorted copies of the rows agree on, learned anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.evidence import check_evidence
from pyro_vmonf._utils.validation import check_positive, floating_buffer
from pyro_vmonf.contracts import Batch
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.starts.images import CHUNK
from pyro_vmonf.starts.lessons import model_of, pretrain_
from pyro_vmonf.terms import Classification, Term
from pyro_vmonf.training.restarts import reset_parameters_


def relearn_(
    guide: SoftmaxGuide,
    x: Any,
    y: Any = None,
    *,
    augment: Callable[[Tensor], Tensor],
    terms: Sequence[Term | Callable[[Batch], Tensor]] = (),
    rounds: int = 2,
    copies: int = 8,
    steps: int = 2000,
    last_steps: int = 500,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int | None = None,
    progress: bool = False,
) -> None:
    r"""Let the network of a guide learn its own clusters anew, without the accidents of one view.

    .. math::
        c_n = \arg\max_c \sum_s q(c \mid x_n^{(s)})

    The mean over distorted copies :math:`x^{(s)}` errs less often than the guide on one view. The
    network begins again from random parameters and learns these clusters on distorted rows. After
    the last round it learns on the rows themselves what copies agree on now.

    Arguments:
        guide: a guide that knows clusters, by :func:`pretrain_` for example.
        x: rows ``(N, *event_shape)``.
        y: labels ``(N,)``, −1 for unlabelled; they stand in place of the clusters.
        augment: function from rows to distorted ones.
        terms: what is minimised beside :class:`~pyro_vmonf.terms.Classification`.
        rounds: how often the network begins anew.
        copies: number of distorted copies of each row.
        steps, batch_size, lr: of Adam in each round: see :func:`pretrain_`.
        last_steps: steps on the rows themselves after the last round, with a quarter of the rate.
        seed: of every draw.
        progress: show a progress bar.

    Raises:
        ValueError: if the guide is bound to no model, data do not fit, or the network cannot be
            started anew; the guide is then as it was.
        FloatingPointError: if a sum of terms is not finite; the guide is then as it was.

    References:
        Xie, Luong, Hovy, Le (2020), Self-training with noisy student improves ImageNet
        classification, arXiv:1911.04252; Furlanello, Lipton, Tschannen, Itti, Anandkumar (2018),
        Born-again neural networks, arXiv:1805.04770.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> from pyro_vmonf.nn import MLP
        >>> x = torch.cat((torch.randn(50, 2), torch.randn(50, 2) + 9))
        >>> guide = SoftmaxGuide(MLP(2, 2), model=FlowMixture(RealNVP(2, 2)))
        >>> _ = pretrain_(guide, x, torch.arange(100) // 50, terms=[Classification()], steps=100)
        >>> relearn_(guide, x, augment=lambda x: x + 0.1 * torch.randn_like(x), steps=100)
        >>> guide.log_q(x).argmax(-1).bincount()
        tensor([50, 50])
    """
    model = model_of(guide, "relearn_")
    check_positive("rounds", rounds)
    check_positive("copies", copies)
    check_positive("last_steps", last_steps, minimum=0)
    rows = model.rows(x)
    if y is not None:
        y = check_evidence(y, len(rows), model.num_components, floating_buffer(guide))
        if y.dim() > 1:
            raise ValueError("y holds log-likelihoods; relearn_ takes labels (N,), -1 for none")
    before = copy.deepcopy((guide.state_dict(), model.standardizer.state_dict()))
    names = model.feature_names

    def labels() -> Tensor:
        clusters = _agreed(guide, rows, augment, copies)
        return clusters if y is None else torch.where(y >= 0, y, clusters)

    def learn(number: int, clusters: Tensor, *own: Any, **lesson: Any) -> None:
        lesson |= {"batch_size": batch_size, "labelled": 0, "progress": progress}
        own_seed = None if seed is None else seed + number
        pretrain_(guide, x, clusters, terms=[Classification(), *own], seed=own_seed, **lesson)

    with local_seed(seed):
        try:
            for number in range(rounds):
                clusters = labels()
                reset_parameters_(guide.network)
                learn(number, clusters, *terms, augment=augment, steps=steps, lr=lr)
            if last_steps:
                learn(rounds, labels(), steps=last_steps, lr=lr / 4)
        except BaseException:
            guide.load_state_dict(before[0])
            model.standardizer.load_state_dict(before[1])
            model.feature_names = names
            raise


@torch.no_grad()
def _agreed(
    guide: SoftmaxGuide, rows: Tensor, augment: Callable[[Tensor], Tensor], copies: int
) -> Tensor:
    """Return the cluster ``(N,)`` that is most probable over distorted copies of each row."""
    found = []
    with evaluating(guide):
        for part in rows.split(CHUNK):
            q = torch.stack([guide.log_q(augment(part.clone())).exp() for _ in range(copies)])
            found.append(q.mean(0).argmax(-1))
    return torch.cat(found)
