"""Mixtures whose components follow a Markov chain: the Pyro model of sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyro_vmonf._utils.validation import (
    as_tensor,
    check_positive,
    check_rows,
    floating_buffer,
    listed,
)
from pyro_vmonf.contracts import optional
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.flows.stack import Bank
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import Rows, data_plate, declares
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.weights import Weights
from pyro_vmonf.weights.markov import MarkovWeights, Row, as_row, as_rows


def _lengths(lengths: Any, x: Tensor) -> Tensor:
    """Return the steps ``(S,)`` of sequences ``(S, T, *event_shape)`` up to their ends."""
    count, steps = x.shape[:2]
    if lengths is None:
        held = ~x.isnan().flatten(2).all(-1)
        numbers = torch.arange(1, steps + 1, device=x.device)
        return (held * numbers).amax(-1).clamp_min(1)
    lengths = as_tensor("lengths", lengths).to(x.device)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected whole numbers of steps")
    if lengths.shape != (count,) or not bool(((lengths >= 1) & (lengths <= steps)).all()):
        raise ValueError(
            f"lengths is {listed(lengths.flatten())}, of shape {tuple(lengths.shape)}; expected "
            f"({count},), each from 1 to {steps}, the steps of x"
        )
    return lengths


class Padded(Standardize):
    """Units of rows, in which a step that is not observed has the mean."""

    def _inverse(self, x: Tensor) -> Tensor:
        return super()._inverse(x).nan_to_num(nan=0.0)


class MarkovMixture(FlowMixture):
    r"""A mixture whose components follow a Markov chain, over the steps of each sequence.

    .. math::
        p(x_{1:T}) = \sum_{c_{1:T}} p(c_1)\,p(x_1|c_1) \prod_{t>1} p(c_t|c_{t-1})\,p(x_t|c_t)

    Sequences are ``(S, T, *event_shape)``. Steps after the end of a shorter one hold NaN:
    :meth:`padded` writes it. Without a guide the chain is summed out exactly. A
    :class:`~pyro_vmonf.SoftmaxGuide` pays the gap to its mean-field bound,

    .. math::
        E_q[\log p(x, c) - \log q(c)] = \log p(x) - \mathrm{KL}(q(c) \,\|\, p(c|x)), \qquad
        q(c) = \prod_t q(c_t|x_t).

    Nothing is left to enumerate, so ``Trace_ELBO`` and ``TraceEnum_ELBO`` are the same.

    Sites: ``x`` in plate ``data`` of the sequences; ``weights.initial`` and
    ``weights.after_k`` where they are random; in a guide with a network the factor ``gap``,
    and one for each term.

    Arguments:
        bank: module whose call returns a distribution of ``batch_shape`` ``(K,)``: see
            :class:`~pyro_vmonf.FlowMixture`.
        initial: weights of the first component: ``"uniform"``, ``"learned"``, probabilities
            ``(K,)``, of which some may be zero, a ``Dirichlet``, or a
            :class:`~pyro_vmonf.weights.Weights` module.
        transition: weights of the component after each: one such form for all rows, probabilities
            ``(K, K)``, a ``Dirichlet`` of concentrations ``(K, K)``, or a list of K forms. Where
            some are zero, the mean-field bound is minus infinity, and the guide has to be ``None``.

    Raises:
        TypeError: if the transitions are one module for all rows.
        ValueError: if the bank has no batch dimension for K, or the weights do not fit it.

    References:
        Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech
        Recognition; Ghahramani, Jordan (1997), Factorial Hidden Markov Models.

    Example:
        >>> from pyro_vmonf import RealNVP
        >>> chain = MarkovMixture(RealNVP(features=2, components=3), transition="learned")
        >>> chain(size=7, steps=5).shape  # with no x it generates
        torch.Size([7, 5, 2])
    """

    weights: MarkovWeights
    of_sequences = True
    summed_out = HiddenChain

    def __init__(
        self,
        bank: Bank,
        initial: Row = "uniform",
        transition: Row | Sequence[Row] = "learned",
    ) -> None:
        super().__init__(bank)
        count = self.num_components
        like = floating_buffer(self.bank)
        rows = as_rows(transition, count, like)
        self.weights = MarkovWeights(as_row("initial", initial, count, like), rows)
        self.standardizer = Padded(self.event_shape).to(like.dtype)

    @property
    def initial(self) -> Weights:
        """The weights of the first component."""
        return self.weights.initial

    @property
    def transition(self) -> list[Weights]:
        """The weights of the component after each."""
        return self.weights.rows()[1:]

    def padded(self, x: Any, lengths: Any = None) -> Tensor:
        """Return sequences ``(S, T, *event_shape)`` with NaN after the end of each.

        Arguments:
            x: sequences ``(S, T, *event_shape)``, or a single one ``(T, *event_shape)``.
            lengths: steps of each ``(S,)``, from 1 to T; by default the steps that are not NaN.

        Raises:
            TypeError: if they are no real floating numbers, or the lengths no whole ones.
            ValueError: if their shapes do not fit, or a step before the end is not finite.

        Example:
            >>> from pyro_vmonf import Gaussian
            >>> chain = MarkovMixture(Gaussian(1, 2))
            >>> chain.padded(torch.zeros(2, 3, 1), lengths=[3, 1]).squeeze(-1)
            tensor([[0., 0., 0.],
                    [0., nan, nan]])
        """
        if isinstance(x, DataLoader | Dataset):
            raise TypeError(
                f"x is a {type(x).__name__}; expected sequences (S, T, ...) as one array: pass it "
                "with the lengths of the sequences, and batch_size for minibatches"
            )
        x, like = as_tensor("x", x), floating_buffer(self)
        event = tuple(self.event_shape)
        x = x.unsqueeze(0) if x.dim() == len(event) + 1 else x
        if x.dim() != len(event) + 2 or tuple(x.shape[2:]) != event or not x.numel():
            raise ValueError(
                f"x has shape {tuple(x.shape)}; expected sequences (S, T, "
                f"{', '.join(map(str, event))}): number, steps, and the shape of one row of the "
                "components"
            )
        ends = _lengths(lengths, x)
        inside = torch.arange(x.shape[1], device=x.device) < ends.unsqueeze(-1)
        bad = (inside & ~x.isfinite().flatten(2).all(-1)).nonzero()
        if len(bad):
            s, t = bad[0].tolist()
            raise ValueError(
                f"sequence {s} of x is not finite at step {t}, before its end at {int(ends[s])}; "
                "remove or impute the step, or pass lengths"
            )
        keeps = None if self.bounded else self.standardizer.needs_digits
        rows = check_rows(x[inside], event, like, keeps=keeps)
        return rows.new_full(x.shape, torch.nan).index_put((inside.to(rows.device),), rows)

    def has_gaps(self, x: Tensor | None) -> bool:
        """Return ``False``: NaN is the end of a sequence here, and no missing entry."""
        return False

    def rows(self, x: Any, *, weight: Any = None, first: int = 0, missing: bool = False) -> Tensor:
        """Return sequences in the dtype and on the device of the model: see :meth:`padded`."""
        return self.padded(x)

    def each_row(self, x: Tensor, *values: Tensor | None) -> tuple[Any, ...]:
        """Return the observed rows ``(N, *event_shape)``, and what belongs to each of them.

        Arguments:
            x: sequences ``(*, S, T, *event_shape)``.
            values: of each sequence ``(*, S)`` or of each step ``(*, S, T, ...)``.
        """
        seen = ~x.isnan().flatten(-len(self.event_shape)).any(-1)
        of_step = (
            v if v is None or v.dim() >= seen.dim() else v.unsqueeze(-1).expand_as(seen)
            for v in values
        )
        return x[seen], *(value if value is None else value[seen] for value in of_step)

    def is_outside(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return which sequences ``(*, S)`` have a row outside the support of every component."""
        sequences = self._numbers(x)
        rows, number = self.each_row(x, sequences)
        return torch.isin(sequences, number[super().is_outside(rows)])

    def _numbers(self, x: Tensor) -> Tensor:
        """Return a number for each sequence ``(*, S)``."""
        first = x.flatten(-1 - len(self.event_shape))[..., 0]
        return torch.arange(first.numel(), device=x.device).view_as(first)

    def start_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Start the parts of the bank that start from data, by observed rows.

        Arguments:
            x: rows ``(N, *event_shape)``.
            weight: how much each row counts for each component, ``(N, K)``; all alike by default.
        """
        with torch.no_grad():
            rows = x if self.bounded else self.standardizer.inv(x)
            optional(self.bank, "start_", lambda rows, weight: None)(rows, weight)

    @declares
    def forward(  # type: ignore[override]
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
        sample_weight: Tensor | None = None,
        given: Tensor | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Draw the sequences, or score those given.

        Arguments:
            x: sequences ``(*, T, *event_shape)``, NaN after the end of each; ``None`` generates
                ``size`` of them.
            y, given: labels and context, of which there are none.
            index: positions ``(B,)`` of the sequences in the whole data set.
            size: sequences of the whole data set; the loss is then scaled by their share.
            sample_weight: weights of the sequences, non-negative.
            steps: length of the sequences that are generated.

        Returns:
            The sequences.

        Raises:
            ValueError: if there are labels or a context, or neither ``x`` nor ``steps``.
        """
        if y is not None or given is not None:
            raise ValueError(
                "y or given was passed; a MarkovMixture has no labels and no context of its steps"
            )
        if x is None and steps is None:
            raise ValueError("there is no x; pass size and steps of the sequences to generate")
        log_rows, components = self.draw_parts()
        chain = HiddenChain(log_rows, components, steps or 1)
        if x is not None:
            chain = chain.lasting(x.shape[x.dim() - 1 - len(self.event_shape)])
        plate = data_plate(
            self.site("data"),
            x,
            chain.event_shape,
            index=index,
            size=size,
            sample_weight=sample_weight,
        )
        with plate:
            return pyro.sample(self.site("x"), chain, obs=x)

    def infer_by(self, guide: Any, rows: Rows) -> None:
        """Run a guide on sequences, as its call does here: one with a network pays the gap.

        Arguments:
            guide: the guide.
            rows: the sequences.

        Raises:
            TypeError: if the guide has neither the exact posterior nor ``parts``.
            ValueError: if it sums over a part of the components, or bank or weights are random.
        """
        if guide.exact:

            @torch.no_grad()
            def counts() -> Tensor:
                chain = HiddenChain(self.weights.rows_of_bound(), self.components())
                table, seen = chain.table(rows.x), chain.observed(rows.x)
                return chain.moves(table, seen, rows.counted()).log()

            self.weights.update_(counts, None, guide.new_share(rows))
            return
        with rows.plate(self.site("data"), rows.x.shape[-1 - len(self.event_shape) :]):
            _, penalties = self.scores(guide, rows, self.weights.next_call)
            for name, penalty in penalties.items():
                # A guide's factor is subtracted from the ELBO.
                pyro.factor(self.site(name), penalty, has_rsample=True)

    def terms(self, guide: Any, rows: Rows) -> dict[str, Tensor]:
        """Return the terms whose sum is the ELBO of sequences, by name, without the sites.

        Arguments:
            guide: the guide.
            rows: the sequences.
        """
        log_prob, penalties = self.scores(guide, rows, self.weights)
        scale = 1.0 if rows.size is None else rows.size / len(rows.x)
        parts = {"log_likelihood": log_prob, **{k: -value for k, value in penalties.items()}}
        if rows.sample_weight is not None:
            weight = rows.sample_weight
            parts = {k: torch.where(weight > 0, weight * v, 0.0) for k, v in parts.items()}
        return {name: scale * value.sum() for name, value in parts.items()}

    def scores(
        self, guide: Any, rows: Rows, log_rows: Callable[[], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return log p of sequences ``(S,)``, and what a guide pays for each, by name.

        Rows of the chain in closed form have then learnt from the sequences, in ``train()``.

        Arguments:
            guide, rows: as for :meth:`terms`.
            log_rows: function to the log-probabilities ``(K + 1, K)`` of the rows.

        Raises:
            TypeError: if the guide has neither the exact posterior nor ``parts``.
            ValueError: if it sums over a part of the components, bank or weights are random, or
                rows of the chain have zeros.
        """
        if not (guide.exact or (guide.sums_directly() and self.sums_directly())):
            raise ValueError(
                f"the {type(guide).__name__} sums over the top components, or parts are random; "
                "expected all of them, fixed or learned: leave out top=, or pass None as the guide"
            )
        x, weight = rows.x, rows.sample_weight
        chain = HiddenChain(self.weights.mean_rows(), self.components())
        table, seen = chain.table(x), chain.observed(x)
        if guide.exact:

            def moves() -> Tensor:
                of_bound = HiddenChain(self.weights.rows_of_bound(), chain.components)
                return of_bound.moves(table, seen, weight).log()

            self.weights.update_(moves, None, guide.new_share(rows))
            return HiddenChain(log_rows(), chain.components).scored(table, seen), {}
        if bool((chain.log_rows == -torch.inf).any()):
            raise ValueError(
                f"initial or transition has zeros, where the mean-field bound of a "
                f"{type(guide).__name__} is minus infinity; expected positive numbers: pass None "
                "as the guide, or small numbers in place of the zeros"
            )
        if bool((seen[..., 1:] & ~seen[..., :-1]).any()):
            raise ValueError(
                "a step between two observed ones is missing, over which the mean-field bound of "
                f"a {type(guide).__name__} does not lead; pass None as the guide, which sums such "
                "steps out"
            )
        sequences = self._numbers(x)
        each, number, weights = self.each_row(x, sequences, weight)
        size = (sequences.numel() if rows.size is None else rows.size) * seen.shape[-1]
        logits, penalties = self._network(guide, Rows(each, None, None, size, weights, None))
        log_q = torch.zeros_like(table).index_put((seen,), logits.log_softmax(-1))
        counts = partial(chain.moves_of, log_q.detach(), seen, weight)
        self.weights.update_(lambda: counts().log(), None, guide.new_share(rows))
        chain = HiddenChain(log_rows(), chain.components)
        log_prob = chain.scored(table, seen)
        paid = {"gap": log_prob - sum(chain.expected(log_q, table, seen).values())}
        none = torch.zeros_like(log_prob).flatten()
        for name, penalty in penalties.items():
            paid[name] = none.index_add(0, number, penalty.expand(len(each))).view_as(log_prob)
        return log_prob, paid

    def _network(self, guide: Any, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and penalties of a guide with a network, for single rows."""
        try:
            return guide.parts(rows, None)  # type: ignore[no-any-return]  # a step has no position
        except NotImplementedError as error:
            raise TypeError(
                f"{type(guide).__name__} has no parts, which say its q(c|x) of a row; write parts "
                "as SoftmaxGuide does, or pass a SoftmaxGuide or None"
            ) from error

    def mixture(self, given: Tensor | None = None) -> HiddenChain:  # type: ignore[override]
        """Return the chain as it is now; random weights count with their mean."""
        return HiddenChain(self.weights.mean_rows(), self.components(given))

    def marginal(  # type: ignore[override]
        self, *, steps: int = 1, given: Tensor | None = None, frozen: bool = False
    ) -> HiddenChain:
        """Return the chain of so many steps, as a distribution for any Pyro model.

        Arguments:
            steps: their number *T*.
            given: context of the rows, of which there is none.
            frozen: use a copy of the parameters as they are now, which no training changes.
        """
        chain: Any = super().marginal(given=given, frozen=frozen)
        return chain.lasting(check_positive("steps", steps))  # type: ignore[no-any-return]

    def log_posterior(
        self, x: Tensor, y: Tensor | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Return log p(c_t|x_1, ..., x_T) of each step ``(S, T, K)``, the smoothed posterior."""
        return self.mixture(given).log_marginals(x)
