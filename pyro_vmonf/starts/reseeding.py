"""Dead components brought back to life during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.components import per_component
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.starts.lessons import learning_parameters
from pyro_vmonf.starts.warm import warm_start_
from pyro_vmonf.training.fit import Progress


def split_in_two(x: Tensor) -> Tensor:
    """Return the half ``(N,)`` of 2-means, 0 or 1, that each row is in.

    The same ``x`` gives the same halves: the seed is fixed. Rows that are all equal stay together.

    Example:
        >>> split_in_two(torch.tensor([[0.0], [1.0], [9.0], [10.0]])).bincount()
        tensor([2, 2])
    """
    from sklearn.cluster import KMeans

    rows = x.detach().flatten(1).cpu().double().numpy()
    if (rows == rows[0]).all():
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    half = KMeans(2, n_init=4, random_state=0).fit_predict(rows)
    return torch.as_tensor(half, dtype=torch.long, device=x.device)


class Reseed:
    """A callback of ``fit`` that gives a dead component half of the rows of the largest one.

    The dead component's flow becomes a copy of the other's, and the guide is taught the new split
    for some steps; training then goes on from there. It needs an empty component to act: one that
    K itself makes superfluous is split off again each time, so use it where K is known.

    Arguments:
        x: the rows ``(N, *event_shape)`` that are fitted.
        below: share of the rows under which a component is dead.
        every: epochs between looks.
        until: epoch after which it stays as it is.
        steps: of the guide's lesson.
        seed: seed of the lesson's order.

    Attributes:
        reseeded: epoch, dead component and component that was split, of each act.

    Raises:
        TypeError: in ``fit``, if no ``log_q`` of the guide has parameters to train, or the pair is
            of sequences.
        ValueError: in ``fit``, if the mixture depends on a context, or the bank does not say which
            parameters belong to which component.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
        >>> from pyro_vmonf.nn.mlp import MLP
        >>> x = torch.randn(100, 2)
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3)))
        >>> history = vmonf.fit(x, epochs=4, progress=False, callbacks=Reseed(x, every=2))
    """

    def __init__(
        self,
        x: Any,
        *,
        below: float = 0.01,
        every: int = 10,
        until: int | None = None,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        if not 0 < below < 1:
            raise ValueError(f"below is {below}; expected a share of the rows, in (0, 1)")
        self.x = x
        self.below = below
        self.every = check_positive("every", every)
        self.until = until
        self.steps = check_positive("steps", steps)
        self.seed = seed
        self.reseeded: list[tuple[int, int, int]] = []

    def __call__(self, progress: Progress) -> None:
        epoch = progress.epoch
        guide: Any = progress.guide
        learning_parameters(guide, "Reseed")  # or it refuses, at the first epoch
        if epoch < 0 or (epoch + 1) % self.every or (self.until is not None and epoch > self.until):
            return
        model = progress.model
        x = model.rows(self.x)
        with torch.no_grad(), evaluating(guide):
            q = torch.cat([guide.log_q(rows).exp() for rows in x.split(8192)])
        clusters = q.argmax(-1)
        units = model.standardizer.inv(x)
        dead = (q.mean(0) < self.below).nonzero().squeeze(1).tolist()
        for c in dead:
            largest = int(clusters.bincount(minlength=model.num_components).argmax())
            members = (clusters == largest).nonzero().squeeze(1)
            if len(members) < 2:
                continue
            clusters[clusters == c] = largest
            clusters[members[split_in_two(units[members]) == 1]] = c
            copy_component_(model, largest, c)
            self.reseeded.append((epoch, c, largest))
        if dead:
            warm_start_(guide, x, clusters, steps=self.steps, seed=self.seed + epoch)


@torch.no_grad()
def copy_component_(model: FlowMixture, source: int, target: int, noise: float = 1e-2) -> None:
    """Give one component of a bank the parameters of another, and a little noise.

    Arguments:
        model: the mixture.
        source, target: numbers of the components.
        noise: of the copies, relative to each tensor's own spread.

    Raises:
        ValueError: if the bank does not say which parameters belong to which component.
    """
    with local_seed(target):
        for place in per_component(model.bank, model.num_components):
            value = place.value
            copied = value.select(place.dim, source).clone()
            if isinstance(value, torch.nn.Parameter) and copied.numel() > 1:
                copied += noise * copied.std() * torch.randn_like(copied)
            value.select(place.dim, target).copy_(copied)
