"""Guides: q(c|x) by a softmax network, or none, with c summed out in the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf._utils.validation import check_positive, floating_buffer
from pyro_vmonf.contracts import Batch, optional
from pyro_vmonf.distributions.truncated import TopCategorical
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.picked import Picked
from pyro_vmonf.program import (
    Program,
    Rows,
    claim_parameters,
    free_dim,
    log_evidence,
    with_evidence,
)
from pyro_vmonf.schedules import check_temperature
from pyro_vmonf.terms import Classification, CustomTerm, Term

# Names of the sites of the program, and of its parts in the history.
RESERVED = {"c", "x", "data", "weights", "evidence", "entropy", "log_likelihood", "log_prior"}


class BoundGuide(Program):
    """The base of guides: a reference to the model whose sites they name.

    The reference is not registered, so the parameters of the model stay its own. A subclass writes
    :meth:`infer`, and :meth:`log_q` where its posterior is not the exact one.

    Arguments:
        model: the mixture; :class:`~pyro_vmonf.VMoNF` passes it where it is missing.
    """

    draws_component = True  # whether the site c is in the guide
    temperature: Tensor | None

    @property
    def exact(self) -> bool:
        """Whether the posterior of c is the exact one of the model."""
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

    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
        sample_weight: Tensor | None = None,
        given: Tensor | None = None,
    ) -> None:
        """Draw the model's random parts and the rows' component; the signature is the model's."""
        self._begin()
        if x is not None:  # without rows c keeps its prior
            self.infer(Rows(x, y, index, size, sample_weight, given))

    def extra_repr(self) -> str:
        return "bound to no model" if self.model is None else self.model.extra_repr()

    def infer(self, rows: Rows) -> None:
        """Draw the component of rows, from q(c|x, y)."""
        raise NotImplementedError

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
        """Return log q(c|x, y) ``(*, K)``: :meth:`log_q` and the evidence, normalised."""
        if self.exact:
            return self._bound_model().log_posterior(x, y, given)
        return with_evidence(self.log_q(x, given), y)

    def bound(self, joint: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
        r"""Return the ELBO of each row ``(*)``, from :math:`\log\pi_c + \log p(x|c)` ``(*, K)``."""
        if not self.draws_component:
            return joint.logsumexp(-1)
        log_q = self.log_q(x, given)
        q = log_q.exp()
        return torch.where(q > 0, q * (joint - log_q), 0.0).sum(-1)

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
        """Make component *i* what component ``index[i]`` was; an exact posterior has no parts."""

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
        claim_parameters(self)
        if self.model is not None:
            claim_parameters(self.model.weights)
            self.model.weights.guide()
            optional(self.model.bank, "guide", lambda: None)()  # of random parameters

    def _observe(
        self, log_posterior: Callable[[], Tensor], sample_weight: Tensor | None = None
    ) -> None:
        """Let weights in closed form learn from the rows' posterior."""
        if self.model is not None:
            self.model.weights.update_(log_posterior, sample_weight)

    def site(self, name: str) -> str:
        """Return the full name of a site: that of the model, where the guide is bound to one."""
        return super().site(name) if self.model is None else self.model.site(name)


class SoftmaxGuide(BoundGuide):
    r"""The amortised posterior :math:`q(c \mid x) = \mathrm{softmax}(f(x) / T)_c`.

    Sites: ``c`` in plate ``data``, one factor per term, and the weights' own sites where they are
    random. A row's evidence ``y`` is added to the logits, so that a labelled row's posterior is
    exact. Alone, the guide uses the names ``c`` and ``data``; beside a nested model, bind it by
    ``model=`` (:class:`~pyro_vmonf.VMoNF` does), and it uses that model's names.

    Arguments:
        network: module from rows to K logits.
        terms: what the guide pays beside the ELBO: :class:`~pyro_vmonf.terms.Term` modules, or
            callables that take a :class:`~pyro_vmonf.terms.Batch` and return a penalty of at least
            zero for each row. By default, classification of the labelled rows.
        temperature: *T*, above zero; ``fit`` moves it along a schedule and leaves it at the last.
        elbo_gradient: the share of the ELBO's gradient that reaches the network, from 0 to 1. The
            value of the ELBO and the gradient of the flows stay the same. At 0 the terms alone
            decide on the clusters, as images need it: their log-likelihood drowns every term.
        top: the number *m* of components per row, the most probable ones, that the ELBO sums over;
            all by default. The flows compute no other densities, at a cost of about m/K. The ELBO
            stays a bound. At 1 the network learns from the terms alone.
        event_dim: dimensions of one row, for a guide that is bound to no model.
        model: the mixture.

    Raises:
        ValueError: if the temperature is not positive, ``elbo_gradient`` outside 0 to 1, or ``top``
            below 1.

    References:
        Pires, Figueiredo (2020), Variational Mixture of Normalizing Flows, arXiv:2009.00585.

    Example:
        >>> from pyro_vmonf.nn.mlp import MLP
        >>> guide = SoftmaxGuide(MLP(2, 5, hidden=(3,)))
        >>> guide.log_q(torch.zeros(7, 2)).shape
        torch.Size([7, 5])
    """

    temperature: Tensor

    def __init__(
        self,
        network: nn.Module,
        terms: Sequence[Term | Callable[[Batch], Tensor]] | None = None,
        *,
        temperature: float = 1.0,
        elbo_gradient: float = 1.0,
        top: int | None = None,
        event_dim: int = 1,
        model: FlowMixture | None = None,
    ) -> None:
        super().__init__(model)
        self.network = network
        terms = [Classification()] if terms is None else terms
        self.terms = nn.ModuleList(
            term if isinstance(term, Term) else CustomTerm(term) for term in terms
        )
        if not 0 <= elbo_gradient <= 1:
            raise ValueError(f"elbo_gradient is {elbo_gradient}; expected a number from 0 to 1")
        self.elbo_gradient = elbo_gradient
        check_positive("top", 1 if top is None else top)
        self.top = top
        self.event_dim = event_dim
        self.register_buffer("temperature", torch.tensor(check_temperature(temperature)))

    def extra_repr(self) -> str:
        own = [f"temperature={float(self.temperature):.4g}"]
        own += [f"elbo_gradient={self.elbo_gradient}"] if self.elbo_gradient != 1 else []
        own += [f"top={self.top}"] if self.top is not None else []
        return ", ".join((super().extra_repr(), *own))

    def set_temperature_(self, value: float) -> None:
        """Set *T*.

        Raises:
            ValueError: if it is not a positive finite number.
        """
        # A schedule without a floor ends where a float32 would be zero.
        info = torch.finfo(self.temperature.dtype)
        self.temperature.fill_(min(max(check_temperature(value), info.tiny), info.max))

    def set_step_(self, step: int) -> None:
        """Move the terms' weights along their schedules; ``fit`` does so at every step."""
        for term in self.terms:
            term.set_step_(step)  # type: ignore[operator]

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return log q(c|x) ``(*, K)`` for rows ``(*, *event_shape)``, without any evidence.

        With a context the network sees ``(*, D + H)``, the row and then its context.
        """
        if self.model is not None:
            x = self.model.standardizer.inv(x)
        if given is not None:
            x = torch.cat((x, given.expand(*x.shape[:-1], given.shape[-1])), -1)
        return (self.network(x) / self.temperature).log_softmax(-1)

    def objective(self, terms: dict[str, float]) -> float:
        """Return the share ``elbo_gradient`` of the ELBO, and the penalties of the terms."""
        penalties = sum(terms.get(name, 0.0) for name, _ in self.named_terms())
        return self.elbo_gradient * (sum(terms.values()) - penalties) + penalties

    @torch.no_grad()
    def first_clusters(self, x: Tensor) -> Tensor | None:
        if self.model is None or self.model.context_features:
            return None
        with evaluating(self):
            return self.log_q(x).exp()

    def take_(self, index: Tensor) -> None:
        index = index.to(self.temperature.device)
        network = self.network
        if isinstance(network, Picked):
            network, index = network.get_submodule("network"), network.get_buffer("index")[index]
        self.network = Picked(network, index)

    def compile(self, *_: object, **__: object) -> None:
        self.network.compile()

    def check(self, model: FlowMixture) -> None:
        like = floating_buffer(model)
        row_shape = list(model.event_shape)
        row_shape[-1] += model.context_features
        row = torch.zeros(1, *row_shape, dtype=like.dtype, device=like.device)
        with evaluating(self), torch.no_grad():
            try:
                shape = tuple(self.network(row).shape)
            except RuntimeError as error:
                raise ValueError(
                    f"the guide's network does not take rows of shape {tuple(row_shape)} (features "
                    f"and context of a row): {error}"
                ) from error
        if shape != (1, model.num_components):
            raise ValueError(
                f"the guide's network returns {tuple(shape)} for one row; expected "
                f"(1, {model.num_components}), one logit for each of the bank's components"
            )

    def infer(self, rows: Rows) -> None:
        x, y, given, sample_weight = rows.x, rows.y, rows.given, rows.sample_weight
        event_dim = self.event_dim if self.model is None else len(self.model.event_shape)
        event_shape = x.shape[x.dim() - event_dim :]
        dim = free_dim()
        with rows.plate(self.site("data"), event_shape) as positions:
            log_q = self.log_q(x, given)
            evidence = None if y is None else log_evidence(y, log_q.shape[-1], log_q.dtype)
            # The same value, with a share of the gradient.
            share = self.elbo_gradient
            logits = log_q if share == 1 else share * log_q + (1 - share) * log_q.detach()
            logits = logits if evidence is None else logits + evidence
            self._observe(lambda: logits.log_softmax(-1), sample_weight)
            count = logits.shape[-1]
            if self.top is None or self.top >= count:
                q = Categorical(logits=logits, validate_args=False)
            else:
                q = TopCategorical(logits, self.top)
            pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})
            # Rows of a larger whole whose positions nobody gave have none.
            count = x.shape[dim - event_dim]
            known = rows.index is not None or rows.size is None or rows.size == count
            batch = Batch(
                self, x, log_q, evidence, positions if known else None, dim, sample_weight, given
            )
            for name, term in self.named_terms():
                penalty = term(batch)
                # A guide's factor is subtracted from the ELBO, and is differentiated as it is only
                # with has_rsample=True.
                pyro.factor(self.site(name), term.current_weight * penalty, has_rsample=True)

    def named_terms(self) -> list[tuple[str, Term]]:
        """Return the terms with the names of their factors, such as ``classification``."""
        names: dict[str, int] = {}
        result = []
        for term in self.terms:
            name = type(term).__name__.lower()
            name = f"{name}_term" if name in RESERVED else name
            names[name] = names.get(name, 0) + 1
            suffix = f"_{names[name]}" if names[name] > 1 else ""
            result.append((name + suffix, term))
        return result  # type: ignore[return-value]


class ExactGuide(BoundGuide):
    r"""The exact posterior :math:`p(c|x, y)` as the guide: EM, with a gradient step for its M-step.

    The posterior is computed from the components and held fixed, so the ELBO is the log-likelihood
    and its gradient that of the log-likelihood. It has no network to train, and costs a second
    evaluation of the densities; unlike :class:`MarginalGuide` it keeps ``c`` in the guide, which
    row weights need.

    Sites: ``c`` in plate ``data``, and the sites of the model's random parts.

    Arguments:
        model: the mixture.

    References:
        Neal, Hinton (1998), A view of the EM algorithm that justifies incremental, sparse, and
        other variants.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> model = FlowMixture(RealNVP(2, 5))
        >>> x = torch.zeros(7, 2)
        >>> loss = pyro.infer.TraceEnum_ELBO()(model, ExactGuide(model))(x)
        >>> bool(torch.isclose(-loss, model.marginal().log_prob(x).sum()))
        True
    """

    def infer(self, rows: Rows) -> None:
        with rows.plate(self.site("data"), self._bound_model().event_shape):
            with torch.no_grad():
                logits = self.log_posterior(rows.x, rows.y, rows.given)
            self._observe(lambda: logits, rows.sample_weight)
            q = Categorical(logits=logits, validate_args=False)
            pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})


class MarginalGuide(BoundGuide):
    """The guide that leaves ``c`` to the model, where it is summed out exactly.

    It runs the weights' guide where they are random, and is empty otherwise.

    Arguments:
        model: the mixture.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> model = FlowMixture(RealNVP(2, 5))
        >>> elbo = pyro.infer.TraceEnum_ELBO()(model, MarginalGuide(model))
        >>> bool(elbo(torch.zeros(7, 2)).isfinite())
        True
    """

    draws_component = False

    def infer(self, rows: Rows) -> None:
        self._observe(lambda: self.log_posterior(rows.x, rows.y, rows.given), rows.sample_weight)
