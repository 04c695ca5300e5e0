"""The interfaces that a user can implement, each written down once.

Each class describes one part of a mixture: the required members, the optional ones, and a recipe. A
part does not inherit from these protocols. Weights, guides and transforms inherit from the base
class that their protocol names. :func:`optional` and :func:`required` are the only places that ask
a part for an optional member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.distributions import Distribution


@runtime_checkable
class Bank(Protocol):
    """K components as one module, whose call returns a distribution.

    Required: the call returns a distribution of ``batch_shape`` ``(*, K)``.

    Optional:
        ``start_(x, weight)``: start the parts that start from data; by default nothing.
        ``reset_parameters()``: draw every parameter anew, as restarts need it.
        ``draw(context)``: draw random parameters inside the model; by default the call.
        ``guide()``: draw the same sites inside the guide; by default nothing.
        ``compile()``: compile the log-density; every ``torch.nn.Module`` has it.

    Optional, of the distribution:
        ``observe(x, draws)``: marginals and conditionals of rows ``(*, 1, D)`` with NaN for missing
        entries, as a :class:`~pyro_vmonf.distributions.entries.Partial`; by default
        importance-weighted draws of :func:`~pyro_vmonf.distributions.partial.importance`.

    Implementing a bank:
        >>> import torch
        >>> from torch.distributions import Independent, Laplace
        >>> from pyro_vmonf import FlowMixture, VMoNF
        >>> class LaplaceBank(torch.nn.Module):
        ...     def __init__(self, features, components):
        ...         super().__init__()
        ...         self.loc = torch.nn.Parameter(torch.randn(components, features))
        ...     def forward(self, context=None):
        ...         return Independent(Laplace(self.loc, 1.0), 1)
        >>> VMoNF(FlowMixture(LaplaceBank(2, 5))).log_prob(torch.zeros(7, 2)).shape
        torch.Size([7])
    """

    def __call__(self, context: Any = None) -> Distribution:
        """Return the distribution of the K components."""


class Transform(Protocol):
    """An invertible map from base to data, with parameters of ``batch_shape`` ``()`` or ``(K,)``.

    Required: ``inverse_and_log_det(x)`` and ``forward_and_log_det(z)``, on rows ``(*, D)``.
    Inherit from :class:`~pyro_vmonf.transforms.FlowTransform`, which makes a module and a torch
    ``Transform`` of them.

    Optional, with defaults there: ``start_(x, weight)``, ``condition(context)``,
    ``reset_parameters()``, ``inverse_of_observed(x)`` of rows with missing entries.

    Implementing a transform:
        >>> import torch
        >>> from pyro_vmonf.flows import Flow, StandardNormal
        >>> from pyro_vmonf.transforms import FlowTransform
        >>> class Shift(FlowTransform):
        ...     def __init__(self, features, batch_shape):
        ...         super().__init__(batch_shape=batch_shape)
        ...         self.by = torch.nn.Parameter(torch.zeros(*batch_shape, features))
        ...     def forward_and_log_det(self, z):
        ...         return z + self.by, z.new_zeros(z.shape[:-1])
        ...     def inverse_and_log_det(self, x):
        ...         return x - self.by, x.new_zeros(x.shape[:-1])
        >>> bank = Flow([Shift(2, (5,))], base=StandardNormal(2, 5))
        >>> bank().log_prob(torch.zeros(7, 1, 2)).shape
        torch.Size([7, 5])
    """

    batch_shape: Any

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return data and log-determinant."""

    def inverse_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return base values and log-determinant."""


class Weights(Protocol):
    r"""Mixture weights: a module whose call, inside the model, returns :math:`\log\pi` ``(*, K)``.

    Required: the call and ``num_components``. Inherit from
    :class:`~pyro_vmonf.weights.Weights`, which has the optional members with their defaults.

    Optional:
        ``guide()``: draw the sites of the call from their posterior; by default nothing.
        ``update_(log_posterior, sample_weight)``: learn from log q of a batch; by default nothing.
        ``log_mean(context)``: :math:`\log E[\pi]`, for scores; by default the call.
        ``mean_log(context)``: :math:`E[\log\pi]`, for the ELBO; by default from draws of ``guide``.
        ``take_draws_(draws)``: take draws ``(S, K)`` from a guide of other programs, for scores.

    Implementing weights:
        >>> import torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, weights
        >>> class Geometric(weights.Weights):
        ...     def __init__(self, num_components):
        ...         super().__init__()
        ...         self.num_components = num_components
        ...         self.rate = torch.nn.Parameter(torch.zeros(()))
        ...     def forward(self, context=None):
        ...         return (self.rate * torch.arange(self.num_components)).log_softmax(-1)
        >>> FlowMixture(RealNVP(2, 5), Geometric(5)).weights().shape
        torch.Size([5])
    """

    num_components: int

    def __call__(self, context: Tensor | None = None) -> Tensor:
        """Return the log-weights."""


class Guide(Protocol):
    """The posterior of a mixture's latent sites: a Pyro callable with the model's signature.

    Required: the call draws the sites that it covers. Any Pyro program will do, with those of the
    model's arguments that it needs: a function, a module, an autoguide, or a list of them (see
    :class:`~pyro_vmonf.PyroGuide`). Inherit from :class:`~pyro_vmonf.guides.BoundGuide` to have the
    names of the model's sites.

    Rows are in raw units: ``self.model.standardizer.inv(x)`` are the standardised ones.

    Optional:
        ``log_q(x, given)``: log q(c|x) ``(*, K)``; by default the model's exact posterior.
        ``take_(index)``: make component *i* what component ``index[i]`` was, as ``prune_`` and
        ``align_`` need it; by default they refuse.
        ``set_step_(step)``: follow schedules; by default nothing.
        ``reset_parameters()``: draw the parameters anew, as restarts need it.

    Implementing a guide:
        >>> import pyro, torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> from pyro_vmonf.guides import BoundGuide
        >>> class SignGuide(BoundGuide):
        ...     def log_q(self, x, given=None):
        ...         z = self.model.standardizer.inv(x)
        ...         return torch.stack((z[..., 0], -z[..., 0]), -1).log_softmax(-1)
        ...     def infer(self, rows):
        ...         with rows.plate(self.site("data"), self.model.event_shape):
        ...             q = pyro.distributions.Categorical(logits=self.log_q(rows.x))
        ...             pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 2)), SignGuide())
        >>> vmonf.predict_proba(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
    """

    def __call__(self, x: Tensor | None = None, y: Tensor | None = None, **arguments: Any) -> Any:
        """Draw the sites."""


@dataclass(frozen=True)
class Batch:
    """The rows of one step, as a term or a distortion sees them.

    Arguments:
        guide: the guide that pays.
        x: rows ``(*, *event_shape)`` in raw units.
        log_q: log q(c|x) ``(*, K)`` of the network alone, without evidence.
        log_evidence: log p(y|c) ``(*, K)``; ``None`` where no row carries evidence.
        index: positions ``(B,)`` of the rows in the whole data set; ``None`` where they are unknown
            (the batches of a ``DataLoader``).
        dim: the dimension of ``*`` that holds the rows, counted from the right.
        sample_weight: weights of the rows that broadcast with ``*``, or ``None``. The program
            scales the penalty of each row by them; a term that averages over rows does it itself.
        given: context ``(*, H)`` of the rows, or ``None``.
    """

    guide: Any
    x: Tensor
    log_q: Tensor
    log_evidence: Tensor | None
    index: Tensor | None
    dim: int = -1
    sample_weight: Tensor | None = None
    given: Tensor | None = None


class Term(Protocol):
    """A penalty that the guide pays beside the ELBO.

    Required: the call takes a :class:`Batch` and returns the penalty of each row ``(*)``, at least
    zero. Inherit from :class:`~pyro_vmonf.terms.Term` for a weight with a schedule.

    Optional: ``take_(index)``, for a term that knows the components: component *i* is then what
    component ``index[i]`` was. ``align_`` and ``prune_`` call it.

    Implementing a term:
        >>> import torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
        >>> from pyro_vmonf.nn import MLP
        >>> from pyro_vmonf.terms import Term
        >>> class Margin(Term):
        ...     def forward(self, batch):
        ...         best = batch.log_q.exp().topk(2, -1).values
        ...         return 1 - (best[..., 0] - best[..., 1])
        >>> guide = SoftmaxGuide(MLP(2, 5), [Margin(weight=0.1)])
        >>> history = VMoNF(FlowMixture(RealNVP(2, 5)), guide).fit(
        ...     torch.randn(20, 2), epochs=1, progress=False)
        >>> "margin" in history.terms
        True
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Return the penalty of each row."""


class Distortion(Protocol):
    """A random copy of each row that belongs to the same cluster.

    Required: the call takes a :class:`Batch` and returns rows of the shape of ``batch.x``. A module
    or a function will do; :class:`~pyro_vmonf.terms.Consistency` compares row and copy.

    Implementing a distortion:
        >>> import torch
        >>> from pyro_vmonf import SoftmaxGuide
        >>> from pyro_vmonf.nn import MLP
        >>> from pyro_vmonf.terms import Consistency
        >>> def flipped(batch):
        ...     sign = torch.randint(2, batch.x.shape[:-1]) * 2 - 1
        ...     return batch.x * sign.unsqueeze(-1)
        >>> SoftmaxGuide(MLP(2, 5), [Consistency(flipped)]).named_terms()[0][0]
        'consistency'
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Return the distorted rows."""


class Start(Protocol):
    """A first clustering of the rows.

    Required: the call takes rows ``(N, *event_shape)`` and the number of clusters, and returns the
    cluster ``(N,)`` of each row, or its responsibilities ``(N, K)``. :mod:`pyro_vmonf.starts` has
    ready-made ones. :func:`~pyro_vmonf.starts.warm_start_` teaches one to a guide, and
    :meth:`~pyro_vmonf.VMoNF.from_data` chooses between several.

    Implementing a start:
        >>> import torch
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
        >>> from pyro_vmonf.nn import MLP
        >>> from pyro_vmonf.starts import warm_start_
        >>> def by_first_feature(x, num_clusters):
        ...     return x[:, 0].argsort().argsort() * num_clusters // len(x)
        >>> x = torch.randn(60, 2)
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3)))
        >>> warm_start_(vmonf.guide, x, by_first_feature, steps=5, seed=0)
    """

    def __call__(self, x: Tensor, num_clusters: int) -> Tensor:
        """Return the cluster of each row, or its responsibilities."""


class Pair(Protocol):
    """Model and guide with the verbs that figures and reports use, as VMoNF has them."""

    model: Any
    guide: Any

    def predict(self, x: Any, *, exact: bool = False) -> Tensor:
        """Return the most probable component of each row."""

    def predict_proba(self, x: Any, *, exact: bool = False) -> Tensor:
        """Return the posterior of each row."""

    def log_prob(self, x: Any) -> Tensor:
        """Return the log-density of each row."""

    def component_log_prob(self, x: Any) -> Tensor:
        """Return the log-density of each row under each component."""

    def sample(
        self, num_samples: int | None = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw points and their components."""


def optional(part: object, member: str, default: Callable[..., Any]) -> Callable[..., Any]:
    """Return an optional member of a part, or its default."""
    found: Callable[..., Any] = getattr(part, member, default)
    return found


def required(part: object, member: str, verb: str) -> Any:
    """Return an optional member of a part that a verb cannot do without.

    Raises:
        TypeError: if the part has no such member.

    Example:
        >>> required(object(), "log_q", "predict")
        Traceback (most recent call last):
            ...
        TypeError: predict needs log_q, which object does not have; ...
    """
    if not hasattr(part, member):
        kind = type(part).__name__
        raise TypeError(
            f"{verb} needs {member}, which {kind} does not have; write {kind}.{member} as "
            "pyro_vmonf.contracts describes it, or pass another part"
        )
    return getattr(part, member)


def no_draws(part: object) -> str:
    """Say that a module takes no draws of a guide of other programs."""
    kind = type(part).__name__
    return (
        f"a guide of your own draws the weights, and {kind} takes no draws of it; write "
        f"{kind}.take_draws_, from draws (S, K) of the weights to its parameters, or hide the "
        "weights from that guide"
    )
