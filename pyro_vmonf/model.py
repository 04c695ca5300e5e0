"""The mixture as a Pyro model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor
from torch.distributions import Distribution

from pyro_vmonf._utils.columns import warn_of_columns
from pyro_vmonf._utils.evidence import check_sample_weight
from pyro_vmonf._utils.frames import NamedColumns, names_of, ordered
from pyro_vmonf._utils.sameness import same_now
from pyro_vmonf._utils.shapes import broadcast
from pyro_vmonf._utils.sharing import share
from pyro_vmonf._utils.validation import (
    as_tensor,
    check_context,
    check_positive,
    check_rows,
    floating_buffer,
    has_gaps,
)
from pyro_vmonf.contracts import optional
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.distributions.partial import Observed
from pyro_vmonf.distributions.selection import pick, select
from pyro_vmonf.distributions.support import in_units, is_bounded, is_in
from pyro_vmonf.flows.stack import Bank, as_bank, component_of, probed
from pyro_vmonf.program import (
    Program,
    Rows,
    check_follows,
    data_plate,
    declares,
    detached_,
    free_dim,
    log_evidence,
    posterior_of_joint,
    register,
    running,
    unregistered,
)
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.weights import Weights, as_weights, observed, sites_of

TRAINING_DRAWS, SCORING_DRAWS = 8, 256  # of a missing entry, for importance weights


class FlowMixture(NamedColumns, Program):
    r"""The mixture :math:`p(x) = \sum_c \pi_c\, p(x \mid c)` of the K components of a bank.

    Sites: ``c`` and ``x`` in plate ``data``; ``weights`` if they are random; ``evidence``, a factor
    log p(y|c), where there is any. Nested in a larger module the names carry its path.

    Arguments:
        bank: module whose call returns a distribution of ``batch_shape`` ``(*, K)``; a distribution
            of that shape, or a list of different ones, stand for themselves.
        weights: ``"uniform"``, ``"learned"``, ``"updated"``, probabilities ``(K,)``, a prior on the
            simplex such as a ``Dirichlet``, or a :class:`~pyro_vmonf.weights.Weights` module.
        context_features: features *H* of the rows' context, where bank or weights depend on one.

    Raises:
        ValueError: if the bank has no batch dimension for K, or the weights do not fit it.

    References:
        Pires, Figueiredo (2020), Variational Mixture of Normalizing Flows, arXiv:2009.00585.

    Example:
        >>> from pyro_vmonf import RealNVP
        >>> model = FlowMixture(RealNVP(features=2, components=5))
        >>> model(size=7).shape  # with no x it generates
        torch.Size([7, 2])
    """

    weights: Weights
    incomplete: bool | None = None  # whether rows have gaps, where a fit knows it
    of_sequences = False
    summed_out: ClassVar[type] = Marginal  # of log-weights and components

    def __init__(
        self,
        bank: Bank,
        weights: str | Tensor | Distribution | Weights = "uniform",
        *,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        self.bank = as_bank(bank)
        own = {self.bank, *(getattr(self.bank, name) for name in getattr(self.bank, "halves", ()))}
        for part in self.bank.modules():
            if part not in own and isinstance(part, Program) and part.in_program:
                raise ValueError(
                    f"the bank holds a {type(part).__name__} inside of it, whose sites or updates "
                    "would be left out: random parameters and weights belong to a mixture of their "
                    "own; take fixed or learned ones inside a component"
                )
        self.feature_names = None
        self.context_features = check_positive("context_features", context_features, minimum=0)
        like = floating_buffer(self.bank)
        components = probed(self.bank, self.context_features, like)
        self.num_components = components.batch_shape[-1]
        self.event_shape = components.event_shape
        if not self.event_shape:
            raise ValueError(
                "the components have event_shape (), one number for each row; expected (D,): rows "
                "of one column are (N, 1), and Independent(..., 1) or to_event(1) makes them so"
            )
        self.weights = weights  # type: ignore[assignment]
        self.standardizer = Standardize(self.event_shape).to(like.dtype)
        self.bounded = is_bounded(components)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weights":
            like = floating_buffer(self.bank)
            value = as_weights(value, self.num_components, like)
            if type(value).log_mean is Weights.log_mean:  # weights of the user
                width = self.context_features
                with unregistered():
                    value.check_shape(like.new_zeros(1, width) if width else None)
        if name == "bank" and "num_components" in self.__dict__:
            value = as_bank(value)
            with unregistered():
                found = probed(value, self.context_features, floating_buffer(value))
            own, new = (self.num_components, self.event_shape), found.batch_shape[-1]
            if own != (new, found.event_shape):
                raise ValueError(
                    f"the mixture has {own[0]} components of event_shape {tuple(own[1])}, and the "
                    f"new bank {new} of {tuple(found.event_shape)}; build a new FlowMixture"
                )
            self.bounded = is_bounded(found)
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with running(self):
            return super().__call__(*args, **kwargs)

    def extra_repr(self) -> str:
        context = f", context_features={self.context_features}" if self.context_features else ""
        units = ", bounded, so rows keep their units" if self.bounded else ""
        return (
            f"components={self.num_components}, event_shape={(*self.event_shape,)}{context}{units}"
        )

    def components_of(self, given: Tensor | None) -> Distribution:
        """Call the bank, with a context where there is one."""
        return component_of(self.bank, given)

    def components(self, given: Tensor | None = None) -> Distribution:
        """Return the K components in raw units: the bank behind the standardisation.

        They are the same in a class with a program of its own, which may build on them.

        Arguments:
            given: the rows' context ``(*, H)``.
        """
        register(self)
        return self._in_raw_units(self.components_of(given))

    def _in_raw_units(self, bank: Distribution) -> Distribution:
        if self.bounded:
            return bank
        return in_units(bank, lambda part: FlowDistribution(part, [self.standardizer]))

    def is_outside(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return which rows ``(N,)`` lie outside the support of every component."""
        if not self.bounded:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        with unregistered():
            support = self.components_of(given).support
        event_dim = len(self.event_shape)
        return ~is_in(support, x.unsqueeze(-1 - event_dim), event_dim).any(-1)

    def has_gaps(self, x: Tensor | None) -> bool:
        """Return whether rows have missing entries; a fit knows, and nobody has to look."""
        return x is not None and (has_gaps(x) if self.incomplete is None else self.incomplete)

    def observed(self, components: Distribution, x: Tensor | None) -> Distribution:
        """Return components that score rows with gaps by what is there, if the rows have any."""
        draws = TRAINING_DRAWS if self.training else SCORING_DRAWS
        return Observed(components, draws) if self.has_gaps(x) else components

    def rows(self, x: Any, *, weight: Any = None, first: int = 0, missing: bool = False) -> Tensor:
        """Return rows ``(N, *event_shape)`` in the dtype and on the device of the model.

        Rows in float64 stay so if a model in float32 would lose the digits of their spread. Columns
        of a frame take the order of the fit.

        Arguments:
            x: the rows.
            weight: of each ``(N,)``; rows of weight zero do not count for the spread.
            first: number of the first row, for messages.
            missing: let NaN pass, where rows are numbers ``(D,)`` without bounds.

        Raises:
            TypeError: if they are no real floating numbers.
            ValueError: if shape or columns do not fit, or they are not finite.
        """
        missing = missing and not self.bounded and len(self.event_shape) == 1
        x = ordered(x, self.feature_names)
        counts = None if weight is None else as_tensor("sample_weight", weight) > 0

        def keeps(rows: Tensor) -> bool:
            counted = counts is not None and counts.shape == rows.shape[:1]
            return self.standardizer.needs_digits(rows[counts] if counted else rows)

        like = floating_buffer(self)
        keep = None if self.bounded else keeps
        return check_rows(x, self.event_shape, like, keeps=keep, first=first, missing=missing)

    def each_row(self, x: Tensor, *values: Tensor | None) -> tuple[Any, ...]:
        """Return the rows that ``x`` has, and what belongs to each of them."""
        return (x, *values)

    def standardize_(self, x: Any, weight: Any = None) -> None:
        """Take mean and spread of the rows ``(N, *event_shape)``, for model and guide alike.

        Arguments:
            x: the rows.
            weight: how much each counts ``(N,)``; all alike by default.

        Raises:
            ValueError: if the components live on a bounded set, which has units of its own, or the
                rows do not fit.
        """
        if self.bounded:
            raise ValueError("the components are bounded: their rows cannot be standardised")
        names = self.feature_names or names_of(x)
        x = self.rows(x, weight=weight, missing=True)
        if weight is not None:
            weight = check_sample_weight(weight, len(x), floating_buffer(self))
            if not weight.any():
                raise ValueError("sample_weight is zero for every row; some have to count")
            x, weight = x[weight > 0], weight[weight > 0]
        warn_of_columns(x, names)
        self.standardizer.fit_(x, weight)
        self.feature_names = names

    def start_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Start the parts of the bank that start from data, where they have not been: see ActNorm.

        Arguments:
            x: rows ``(N, *event_shape)``.
            weight: how much each row counts for each component, ``(N, K)``; all alike by default.
        """
        if not self.context_features:
            start = optional(self.bank, "start_", lambda rows, weight: None)
            rows = self.rows(x)
            with torch.no_grad():
                start(rows if self.bounded else self.standardizer.inv(rows), weight)

    def draw_parts(self, given: Tensor | None = None) -> tuple[Tensor, Distribution]:
        """Return log-weights and components for a context ``(*, H)``; random ones are drawn."""
        draw = optional(self.bank, "draw", self.components_of)
        return self.weights(given), self._in_raw_units(draw(given))

    def parts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return what the sites say, in tensors: log-weights ``(*, K)``, and log p(x|c) ``(N, K)``.

        Arguments:
            rows: rows ``(N, *event_shape)``.
        """
        x, given = rows.x, rows.given
        components = self.observed(self._in_raw_units(self.components_of(given)), x)
        return self.weights(given), components.log_prob(x.unsqueeze(-1 - len(self.event_shape)))

    def sums_directly(self) -> bool:
        """Return whether :meth:`parts` say all that the sites do: random parts are sites too."""
        parts = (self.weights, self.bank)
        drawn = any(isinstance(part, Program) and part.in_program for part in parts)
        return not drawn and not hasattr(self.bank, "draw")

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
    ) -> Tensor:
        """Draw the rows, or score those given.

        Arguments:
            x: rows ``(*, *event_shape)``; ``None`` generates ``size`` of them. NaN marks a missing
                entry: see :class:`~pyro_vmonf.distributions.partial.Observed`.
            y: labels ``(*)`` with −1 for unlabelled, or log-likelihoods log p(y|c) ``(*, K)``.
            index: positions ``(B,)`` of the rows in the whole data set.
            size: rows of the whole data set, N; the loss is then scaled by N/B.
            sample_weight: weights of the rows, non-negative.
            given: the rows' context ``(*, H)``, where bank or weights depend on one.

        Returns:
            The rows.
        """
        check_context(given, self.context_features)
        log_weights, components = self.draw_parts(given)
        components = self.observed(components, x)
        if size is None and x is None and given is not None:
            size = given.shape[free_dim() - 1]
        among: dict[str, Any] = {"index": index, "size": size, "sample_weight": sample_weight}
        with data_plate(self.site("data"), x, self.event_shape, **among, y=y):
            c = pyro.sample(
                self.site("c"),
                Categorical(logits=log_weights, validate_args=False),
                infer={"enumerate": "parallel"},
            )
            if y is not None:
                evidence = log_evidence(y, self.num_components, log_weights.dtype)
                pyro.factor(self.site("evidence"), pick(evidence, c))
            return pyro.sample(self.site("x"), select(components, c), obs=x)

    def condition(self, data: Mapping[str, Tensor]) -> FlowMixture:
        """Return the mixture with some of its random sites observed, which shares its parameters.

        Arguments:
            data: values by the names of sites: those of the weights, and of a random bank.

        Raises:
            ValueError: if a site is none of these, or a value does not fit.
        """
        count = self.context_features
        bank, of_weights = self.site("bank."), sites_of(self.weights, count)
        observe = getattr(self.bank, "observed", None)
        of_bank = {name: value for name, value in data.items() if name.startswith(bank)}
        for name in data:
            if name not in of_weights and (name not in of_bank or observe is None):
                raise ValueError(
                    f"data has {name!r}; expected random sites of the mixture: those that the "
                    f"weights draw ({', '.join(of_weights) or 'none'}) and the parameters of a "
                    "RandomBank. Components of rows are observed by y=, and rows by x= of fit and "
                    "the verbs"
                )
        model = copy.copy(self)
        model.__dict__ |= {"_modules": dict(self.__dict__["_modules"]), "_frozen": None}
        share(self.bank, self, model)
        if observe is not None and of_bank:
            model.bank = observe(of_bank)
        if of_weights.keys() & data.keys():
            values = {name: data[name] for name in of_weights if name in data}
            model.weights = observed(self.weights, values, count)
        return model

    def marginal(self, *, given: Tensor | None = None, frozen: bool = False) -> Marginal:
        """Return the mixture with c summed out, as a distribution for any Pyro model.

        Random weights count with their mean, which is the exact average.

        Arguments:
            given: the rows' context ``(*, H)``; the distribution then has batch shape ``(*)``.
            frozen: use a copy of the parameters as they are now, which no training changes.

        Raises:
            TypeError: if the program is another one, which the mixture of the parts may not follow.
        """
        check_follows(self, "marginal", "mixture")
        if frozen:
            return self.frozen().mixture(given)
        register(self)
        return self.mixture(given)

    def frozen(self) -> FlowMixture:
        """Return a copy of the mixture as it is now; the same one until the state changes."""
        kept = self.__dict__.pop("_frozen", None)
        if kept is None or not same_now(kept, self):
            kept = copy.deepcopy(self).requires_grad_(False).eval()
            detached_(kept)
        self.__dict__["_frozen"] = kept
        return kept

    def mixture(self, given: Tensor | None = None) -> Marginal:
        """Return :meth:`marginal` without a word to Pyro's param store, for scores."""
        check_follows(self, "mixture", "mixture")
        check_context(given, self.context_features)
        found = Marginal(self.weights.log_mean(given), self.components(given))
        if given is None:
            return found
        return found.expand(broadcast(found.batch_shape, given.shape[:-1]))

    def log_posterior(
        self, x: Tensor, y: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        r"""Return the exact :math:`\log p(c \mid x, y)` ``(*, K)``, by Bayes' rule."""
        check_follows(self, "log_posterior", "log_posterior", "mixture")
        mixture = self.mixture(given)
        if self.has_gaps(x):
            mixture = Marginal(mixture.log_weights, self.observed(mixture.components, x))
        return posterior_of_joint(mixture.joint_log_prob(x), mixture.log_weights, y)
