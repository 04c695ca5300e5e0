"""The amortised posterior q(c|x) of a softmax network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf._utils.shapes import check_event
from pyro_vmonf._utils.validation import check_positive, floating_buffer
from pyro_vmonf.contracts import Batch, optional
from pyro_vmonf.distributions.truncated import TopCategorical
from pyro_vmonf.guides.base import BoundGuide, counts_rows
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.picked import Picked
from pyro_vmonf.program import Rows, free_dim, log_evidence
from pyro_vmonf.schedules import SMALLEST_TEMPERATURE, check_temperature
from pyro_vmonf.terms import Classification, CustomTerm, Term, penalty_of

# Names of the sites of the program, and of its parts in the history.
RESERVED = {"c", "x", "data", "weights", "evidence", "gap"}
RESERVED |= {"entropy", "log_likelihood", "log_prior"}


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
        largest = torch.finfo(self.temperature.dtype).max
        self.temperature.fill_(min(max(check_temperature(value), SMALLEST_TEMPERATURE), largest))

    def set_step_(self, step: int) -> None:
        """Move the terms' weights along their schedules; ``fit`` does so at every step."""
        for term in self.terms:
            term.set_step_(step)  # type: ignore[operator]

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return log q(c|x) ``(*, K)`` for rows ``(*, *event_shape)``, without any evidence.

        With a context the network sees ``(*, D + H)``, the row and then its context. It cannot read
        a missing entry: such rows have the exact posterior of the model, from the others.
        """
        gaps = self._gaps(x)
        if gaps is not None:
            return self._log_q_of_gaps(x, given, gaps)
        if self.model is not None:
            check_event(x, self.model.event_shape)
        return self.log_q_of(self.network, x, given)

    def log_q_of(
        self, network: Callable[[Tensor], Tensor], x: Tensor, given: Tensor | None
    ) -> Tensor:
        """Return log q(c|x) ``(*, K)`` of another function to the logits, of rows without gaps."""
        if self.model is not None:
            x = self.model.standardizer.inv(x)
        if given is not None:
            x = torch.cat((x, given.expand(*x.shape[:-1], given.shape[-1])), -1)
        return (network(x) / self.temperature).log_softmax(-1)

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
        chosen = index = index.to(self.temperature.device)
        network = self.network
        if isinstance(network, Picked):
            network, index = network.get_submodule("network"), network.get_buffer("index")[index]
        self.network = Picked(network, index)
        for term in self.terms:
            optional(term, "take_", lambda index: None)(chosen)

    def compile(self, *_: object, **__: object) -> None:
        self.network.compile()

    def check(self, model: FlowMixture) -> None:
        like = floating_buffer(model)
        row_shape = list(model.event_shape)
        row_shape[-1] += model.context_features
        row = torch.zeros(1, *row_shape, dtype=like.dtype, device=like.device)
        network = type(self).log_q is SoftmaxGuide.log_q
        with evaluating(self), torch.no_grad():
            try:
                if network:
                    shape = tuple(self.network(row).shape)
                else:
                    shape = self._shape_of_log_q(model, like)
            except RuntimeError as error:
                raise ValueError(
                    f"the guide's network does not take rows of shape {tuple(row_shape)} (features "
                    f"and context of a row): {error}"
                ) from error
        if shape != (1, model.num_components):
            what = "the guide's network" if network else f"the log_q of {type(self).__name__}"
            raise ValueError(
                f"{what} returns {tuple(shape)} for one row; expected "
                f"(1, {model.num_components}), one logit for each of the bank's components"
            )

    def _shape_of_log_q(self, model: FlowMixture, like: Tensor) -> tuple[int, ...]:
        """Return the shape of an overridden ``log_q`` of one row."""
        before, context = self.model, model.context_features
        row = torch.zeros(1, *model.event_shape, dtype=like.dtype, device=like.device)
        self.bind_(model)
        try:
            given = row.new_zeros(1, context) if context else None
            return tuple(self.log_q(row, given).shape)
        finally:
            self.bind_(before)

    @counts_rows
    def infer(self, rows: Rows) -> None:
        dim, event_dim = free_dim(), self._event_dim()
        with rows.plate(self.site("data"), rows.x.shape[rows.x.dim() - event_dim :]) as positions:
            logits, penalties = self.parts(rows, positions, dim)
            if self._sums_all(logits.shape[-1]):
                q = Categorical(logits=logits, validate_args=False)
            else:
                assert self.top is not None
                q = TopCategorical(logits, self.top)
            pyro.sample(self.site("c"), q, infer={"enumerate": "parallel"})
            for name, penalty in penalties.items():
                # A guide's factor is subtracted from the ELBO, and is differentiated as it is only
                # with has_rsample=True.
                pyro.factor(self.site(name), penalty, has_rsample=True)

    def parts(
        self, rows: Rows, positions: Tensor, dim: int = -1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y, given = rows.x, rows.y, rows.given
        log_q = self.log_q(x, given)
        evidence = None if y is None else log_evidence(y, log_q.shape[-1], log_q.dtype)
        # The same value, with a share of the gradient.
        share = self.elbo_gradient
        logits = log_q if share == 1 else share * log_q + (1 - share) * log_q.detach()
        logits = logits if evidence is None else logits + evidence
        self._observe(lambda: logits.log_softmax(-1), rows)
        # Rows of a larger whole whose positions nobody gave have none.
        count = x.shape[dim - self._event_dim()]
        known = rows.index is not None or rows.size is None or rows.size == count
        index = positions if known else None
        gaps = self._gaps(x)
        if gaps is not None:
            x = self._bound_model().standardizer.filled(x)
        batch = Batch(self, x, log_q, evidence, index, dim, rows.counted(), given)
        with self._counting(log_q.dim() - 1):
            penalties = {name: penalty_of(name, term, batch) for name, term in self.named_terms()}
        if gaps is not None:  # terms teach the network, which does not see these rows
            for name, penalty in penalties.items():
                if penalty.shape == gaps.shape:
                    penalties[name] = torch.where(gaps, 0.0, penalty)
        return logits, penalties

    def sums_directly(self) -> bool:
        return self.model is not None and self._sums_all(self.model.num_components)

    def _sums_all(self, count: int) -> bool:
        return self.top is None or self.top >= count

    def _event_dim(self) -> int:
        return self.event_dim if self.model is None else len(self.model.event_shape)

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
