"""The base of guides: names, signature and optional members."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pyro_vmonf.contracts import optional
from pyro_vmonf.counts import counting
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import (
    Program,
    Rows,
    declares,
    enclosing,
    free_dim,
    posterior_of_joint,
    register,
    with_evidence,
)


class LastRows:
    """The rows of the last step: which tensors they were, and what these held.

    Torch counts what it writes into a tensor. Others, such as NumPy, write into memory of their
    own, of which a copy is kept.

    Arguments:
        rows: the rows.
    """

    def __init__(self, rows: Rows) -> None:
        self.kept = [(weakref.ref(tensor), _version(tensor)) for tensor in self._of(rows)]
        self.copies = [tensor.clone() if _is_foreign(tensor) else None for tensor in self._of(rows)]

    @staticmethod
    def _of(rows: Rows) -> list[Tensor]:
        return [rows.x] if rows.index is None else [rows.x, rows.index]

    def holds(self, rows: Rows) -> bool:
        """Return whether rows are the same tensors, and nobody wrote into them since."""
        given = self._of(rows)
        return len(given) == len(self.kept) and all(
            kept() is tensor
            and before == _version(tensor)
            and (copy is None or torch.equal(copy, tensor))
            for (kept, before), copy, tensor in zip(self.kept, self.copies, given, strict=True)
        )


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written into; those of ``inference_mode`` do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_foreign(tensor: Tensor) -> bool:
    """Return whether the memory of a tensor is not torch's own."""
    if type(tensor) is not Tensor or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return tensor.is_cpu and not tensor.untyped_storage().resizable()


_last_rows: weakref.WeakKeyDictionary[BoundGuide, LastRows] = weakref.WeakKeyDictionary()


# The mixture whose rows weights in closed form have counted last.
_counted_for: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
Infer = TypeVar("Infer", bound=Callable[..., None])


def best_log_q(
    model: FlowMixture, x: Tensor, y: Tensor | None = None, given: Tensor | None = None
) -> Tensor:
    r"""Return the log q(c|x, y) ``(*, K)`` of the largest ELBO, which variational Bayes has.

    .. math::
        q(c|x, y) \propto \exp(E_q[\log\pi_c])\, p(x|c)\, p(y|c)

    Without random weights it is the exact posterior.

    References:
        Attias (1999), Inferring Parameters and Structure of Latent Variable Models by Variational
        Bayes.
    """
    if not model.weights.in_program:
        return model.log_posterior(x, y, given)
    mixture = Marginal(model.weights.mean_log(given), model.observed(model.components(given), x))
    return posterior_of_joint(mixture.joint_log_prob(x), mixture.log_weights, y)


def counts_rows(infer: Infer) -> Infer:
    """Say of an ``infer`` that weights in closed form learn in it, and so have no gradient."""
    infer.counts_rows = True  # type: ignore[attr-defined]
    return infer


class BoundGuide(Program):
    """The base of guides: a reference to the model whose sites they name.

    The reference is not registered, so the parameters of the model stay its own. A subclass writes
    :meth:`infer`, and :meth:`log_q` where its posterior is not the exact one. Both are given rows
    in raw units, which ``self.model.standardizer.inv(x)`` takes off.

    Arguments:
        model: the mixture; :class:`~pyro_vmonf.VMoNF` passes it where it is missing.
    """

    draws_component = True  # the site c is in the guide
    temperature: Tensor | None

    @property
    def exact(self) -> bool:
        """``True`` if the posterior of c is the exact one of the model."""
        return type(self).log_q is BoundGuide.log_q

    def __init__(self, model: FlowMixture | None = None) -> None:
        super().__init__()
        self.register_buffer("temperature", None, persistent=False)
        self.bind_(model)

    def bind_(self, model: FlowMixture | None) -> None:
        """Take the names, the standardisation and the weights' guide of ``model`` from now on."""
        # Hidden in a tuple, so that neither torch nor Pyro registers a child.
        object.__setattr__(self, "_bound", (model,))

    @property
    def model(self) -> FlowMixture | None:
        """The model that the guide is bound to."""
        return self._bound[0]

    @declares
    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
        sample_weight: Tensor | None = None,
        given: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        """Draw the random parts of the model and the component of each row.

        The arguments are those of the model, so that ``Predictive`` runs both. Where a model of
        sequences generates, ``steps`` is their length, of which the guide takes no notice.
        """
        model = self.model
        events = 0 if model is None else len(model.event_shape) + model.of_sequences
        with self._counting(0 if x is None else x.dim() - events):
            self._begin()
        if x is not None:  # without rows c keeps its prior
            share, outer = enclosing()
            fraction = share * self._fraction(x, size)
            rows = Rows(x, y, index, size, sample_weight, given, fraction, outer)
            # A model of sequences has another program for the same guide.
            optional(self.model, "infer_by", lambda guide, rows: guide.infer(rows))(self, rows)

    def _counting(self, dims: int) -> AbstractContextManager[None]:
        """Let weights in closed form be constants in a block, if this guide counts its rows."""
        return counting(dims if getattr(type(self).infer, "counts_rows", False) else 0)

    def _fraction(self, x: Tensor, size: int | None) -> float:
        """Return the share of the data set's rows that ``x`` has."""
        model = self.model
        dim = free_dim() - (0 if model is None else len(model.event_shape) + model.of_sequences)
        rows = x.shape[dim] if -dim <= x.dim() else 1
        return rows / size if size else 1.0

    def extra_repr(self) -> str:
        return "bound to no model" if self.model is None else self.model.extra_repr()

    def infer(self, rows: Rows) -> None:
        """Draw the component of rows, from q(c|x, y)."""
        raise NotImplementedError

    def parts(
        self, rows: Rows, positions: Tensor, dim: int = -1
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the logits of q(c|x, y) ``(*, K)`` and the penalties ``(*)``, by name.

        A guide that writes it beside :meth:`infer` says in tensors what its sites are. ``fit`` then
        sums over c without the sites, once both agree. No logits stand for the exact posterior.

        Arguments:
            rows: the rows.
            positions: their numbers in the whole data set.
            dim: the dimension of ``*`` that holds the rows.
        """
        raise NotImplementedError

    def sums_directly(self) -> bool:
        """Return whether :meth:`parts` say all that the sites do."""
        return True

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return log q(c|x) ``(*, K)`` for rows ``(*, *event_shape)``, without evidence.

        By default it is the exact posterior of the model.

        Raises:
            ValueError: if the guide is bound to no model.
        """
        return self._bound_model().log_posterior(x, None, given)

    def log_posterior(
        self, x: Tensor, y: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Return log q(c|x, y) ``(*, K)``: :meth:`log_q` and the evidence, normalised.

        A row with missing entries has the function ``best_log_q`` in place of :meth:`log_q`.
        """
        if self.exact:
            return self._bound_model().log_posterior(x, y, given)
        gaps = self._gaps(x)
        log_q = self.log_q(x, given) if gaps is None else self._log_q_of_gaps(x, given, gaps)
        return with_evidence(log_q, y)

    def _gaps(self, x: Tensor) -> Tensor | None:
        """Return which rows have missing entries ``(*)``; ``None`` if no row has."""
        if self.model is None or not self.model.has_gaps(x):
            return None
        gaps = x.isnan().flatten(-len(self.model.event_shape)).any(-1)
        return gaps if gaps.any() else None

    def _log_q_of_gaps(self, x: Tensor, given: Tensor | None, gaps: Tensor) -> Tensor:
        """Return log q(c|x) where rows have gaps: of the guide, and of the model."""
        model = self._bound_model()
        log_q = self.log_q(model.standardizer.filled(x), given)
        if given is not None:
            given = given.expand(*x.shape[:-1], given.shape[-1])[gaps]
        with torch.no_grad():
            exact = best_log_q(model, x[gaps], None, given)
        return log_q.index_put((gaps,), exact.to(log_q))

    def bound(self, joint: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
        r"""Return the ELBO of each row ``(*)``, from :math:`\log\pi_c + \log p(x|c)` ``(*, K)``."""
        if self.exact:
            return joint.logsumexp(-1)
        log_q = self.log_posterior(x, None, given)
        q = log_q.exp()
        return torch.where(q > 0, q * (joint - log_q), 0.0).sum(-1)

    def learner(self) -> nn.Module | None:
        """Return the module whose parameters :meth:`log_q` has; ``None`` if that is the model."""
        return None if self.exact else self

    @property
    def predicts_by(self) -> str:
        """The posterior that ``predict`` and ``predict_proba`` use, in words."""
        return "Bayes' rule" if self.exact else f"the log_q of {type(self).__name__}"

    def build_(self, model: FlowMixture, batch: dict[str, Any] | None) -> None:
        """Build what needs rows to be built, before a fit; by default nothing.

        Arguments:
            model: the mixture.
            batch: the first rows; ``None`` where a loader would have to be read.
        """

    def without(self, sites: Iterable[str], model: FlowMixture) -> BoundGuide:
        """Return the guide of a model in which sites are observed, which shares its parameters."""
        twin = copy.copy(self)
        twin.__dict__["_modules"] = dict(self.__dict__["_modules"])
        twin.bind_(model)
        return twin

    def settle_(self) -> None:
        """Tell random parts of the model what their scores are, after a fit; they know already."""

    def set_step_(self, step: int) -> None:
        """Follow the schedules to a training step; by default there are none."""

    def set_temperature_(self, value: float) -> None:
        """Set the temperature.

        Raises:
            ValueError: if the guide has none.
        """
        raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")

    def objective(self, terms: dict[str, float]) -> float:
        """Return the part of the ELBO's terms that the guide is trained on: by default all."""
        return sum(terms.values())

    def first_clusters(self, x: Tensor) -> Tensor | None:
        """Return responsibilities ``(N, K)`` for the parts of a bank that start from data."""
        return None

    def take_(self, index: Tensor) -> None:
        """Make component *i* what component ``index[i]`` was; an exact posterior has no parts.

        Raises:
            ValueError: if the guide has parts, and does not say how components lie in them.
        """
        if not self.exact:
            kind = type(self).__name__
            raise ValueError(
                f"guide is a {kind}, whose components cannot be taken out or change places; write "
                f"{kind}.take_(index), after which component i is what index[i] was"
            )

    def check(self, model: FlowMixture) -> None:
        """Refuse a model whose rows or components do not fit; by default any will do."""

    def compile(self, *_: object, **__: object) -> None:
        """Compile the network; by default there is none."""

    def _bound_model(self) -> FlowMixture:
        if self.model is None:
            raise ValueError(
                f"the {type(self).__name__} is bound to no model; pass model=, or put both in a "
                "VMoNF"
            )
        return self.model

    def _begin(self) -> None:
        """Run what every guide begins with: the posteriors of the model's random parts."""
        if self.model is not None:
            register(self.model.weights, self.model)
            self.model.weights.guide()
            optional(self.model.bank, "guide", lambda: None)()  # of random parameters

    def _observe(self, log_posterior: Callable[[], Tensor], rows: Rows) -> None:
        """Let weights in closed form learn from the posterior of the rows."""
        if self.model is not None and not self.model.of_sequences:
            weights = self.model.weights
            last = _counted_for.get(weights, lambda: None)()
            if last not in (None, self.model) and getattr(weights, "_counted", False):
                raise ValueError(
                    f"two mixtures of one program share a {type(weights).__name__}, and the counts "
                    "of each would replace those of the other; take weights of the optimiser, such "
                    "as LearnedWeights(K, 'gradient'), or weights of their own"
                )
            _counted_for[weights] = weakref.ref(self.model)
            share = self.new_share(rows)
            weights.update_given_(rows.given, log_posterior, rows.counted(), share)

    def new_share(self, rows: Rows) -> float:
        """Return the share of the data set that rows are, and 0 for those of the last step."""
        last = _last_rows.get(self)
        if rows.fraction < 1 and last is not None and last.holds(rows):
            return 0.0  # another particle of the same step, or the same batch once more
        if torch.is_grad_enabled() and self._bound_model().weights.training:
            _last_rows[self] = LastRows(rows)
        return rows.fraction

    def site(self, name: str) -> str:
        """Return the full name of a site: that of the model, where the guide is bound to one."""
        return super().site(name) if self.model is None else self.model.site(name)


def check_pair(model: Any, guide: Any) -> None:
    """Refuse what is no mixture, or no guide of one, and two devices.

    Raises:
        TypeError: if it is something else.
        ValueError: if their tensors lie on several devices.
    """
    if not isinstance(model, FlowMixture):
        raise TypeError(f"model is a {type(model).__name__}; expected a FlowMixture of a bank")
    if not isinstance(guide, BoundGuide):
        raise TypeError(
            f"guide is a {type(guide).__name__}; expected a SoftmaxGuide of a network, or None "
            "(with a Pyro guide of your own, use SVI on the model)"
        )
    places = {
        name: {
            str(value.device)
            for value in (*part.parameters(), *part.buffers())
            if value.is_floating_point() and value.dim() and not value.is_meta
        }
        for name, part in (("model", model), ("guide", guide))
    }
    if len(set().union(*places.values())) > 1:
        found = ", ".join(f"{name} on {' and '.join(sorted(of))}" for name, of in places.items())
        raise ValueError(
            f"a pair lies on one device, and this one has its {found}; move both to the same one "
            "first, model.to(device) and guide.to(device)"
        )
