"""MarkovVMoNF: the pair of a chain and its guide, with the verbs of sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.sharing import share
from pyro_vmonf._utils.validation import check_positive, listed
from pyro_vmonf.chains import MarkovMixture
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.distributions.path import HiddenPath
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import Rows
from pyro_vmonf.report import ComponentReport, Drawn, component_report
from pyro_vmonf.training.endings import warn
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.keywords import FitOptions, shows_options_of
from pyro_vmonf.transforms import Standardize
from pyro_vmonf.vmonf.halves import Halves
from pyro_vmonf.vmonf.pair import VMoNF
from pyro_vmonf.weights import FixedRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MarkovVMoNF(Drawn, Halves):
    """A mixture whose components follow a Markov chain, its guide, and the verbs of both.

    Sequences are ``(S, T, *event_shape)``, with ``lengths`` ``(S,)`` where some are shorter. Steps
    after the end of a sequence are never read. The verbs are exact, with any guide: its q(c|x) sees
    single steps, and is ``guide.log_q``. Report and pictures are those of :meth:`alone`. They
    take sequences with their ``lengths``, or single steps ``(N, *event_shape)``: see
    :meth:`steps_of`.

    Arguments:
        model: the chain.
        guide: ``None`` to sum the chain out, or a guide with a network, such as a
            :class:`~pyro_vmonf.SoftmaxGuide`, for the mean-field bound.

    Raises:
        TypeError: if the model is no chain.

    References:
        Rabiner (1989), A Tutorial on Hidden Markov Models and Selected Applications in Speech
        Recognition.

    Example:
        >>> from pyro_vmonf import RealNVP
        >>> vmonf = MarkovVMoNF(MarkovMixture(RealNVP(2, 3), "learned", "learned"))
        >>> x, lengths = torch.randn(7, 5, 2), [5, 5, 4, 3, 2, 1, 5]
        >>> history = vmonf.fit(x, lengths, epochs=2, progress=False, seed=0)
        >>> vmonf.predict(x, lengths).shape, vmonf.log_prob(x, lengths).shape
        (torch.Size([7, 5]), torch.Size([7]))
    """

    model: MarkovMixture
    of_sequences = True

    @shows_options_of(fit, but=["given"])
    def fit(
        self, x: Any, lengths: Any = None, *, n_init: int = 1, **options: Unpack[FitOptions]
    ) -> History:
        """Fit model and guide to sequences: see :func:`pyro_vmonf.training.fit.fit`.

        Rows, batches and the fraction ``held_out`` of that function are sequences here.

        Arguments:
            x: sequences ``(S, T, *event_shape)``.
            lengths: steps of each ``(S,)``; by default those before the NaN at its end.
            n_init: runs from different starts, of which the best one stays.
            options: as there, but for labels and context.

        Raises:
            TypeError: if sequences or lengths are no numbers.
            ValueError: if sequences, lengths or options do not fit, or labels or a context are
                given.
        """
        known: dict[str, Any] = dict(options)
        for name in ("y", "given"):
            if known.pop(name, None) is not None:
                raise ValueError(
                    f"{name} was passed to the fit of a chain, and it has no labels and no context "
                    f"of its steps; leave {name} out"
                )
        return self._fit(self.model.padded(x, lengths), None, n_init, known)

    def predict(self, x: Any, lengths: Any = None, *, chunk_size: int = 1024) -> Tensor:
        """Return the most probable path of components ``(S, T)``, by Viterbi's algorithm.

        It is −1 after the end of a sequence. The most probable component of each step by itself is
        ``predict_proba(x, lengths).argmax(-1)``.

        Arguments:
            x, lengths: as for :meth:`fit`.
            chunk_size: sequences evaluated at once.
        """
        path = self._over_chunks(
            lambda rows: self.model.mixture().decode(rows), x, lengths, chunk_size
        )
        _warn_of(path[:, 0] < 0)
        return path

    def predict_proba(self, x: Any, lengths: Any = None, *, chunk_size: int = 1024) -> Tensor:
        """Return p(c_t|x_1, ..., x_T) of each step ``(S, T, K)``; zero after the end of a sequence.

        Arguments:
            x, lengths, chunk_size: as for :meth:`predict`.
        """

        def proba(rows: Tensor) -> Tensor:
            seen = self.model.mixture().observed(rows).unsqueeze(-1)
            return self.model.log_posterior(rows).exp() * seen

        return self._over_chunks(proba, x, lengths, chunk_size)

    @torch.no_grad()
    def posterior(self, x: Any, lengths: Any = None) -> HiddenPath:
        """Return the exact posterior of the paths as a distribution, batch ``(S,)``.

        It draws whole paths ``(S, T)``, and has ``log_prob``, ``entropy``, ``mode`` (the result of
        :meth:`predict`) and ``marginals`` (that of :meth:`predict_proba`).

        Arguments:
            x, lengths: as for :meth:`fit`.

        Example:
            >>> from pyro_vmonf import Gaussian
            >>> vmonf = MarkovVMoNF(MarkovMixture(Gaussian(2, 3), transition="learned"))
            >>> paths = vmonf.posterior(torch.randn(7, 5, 2), [5, 5, 4, 3, 2, 1, 5])
            >>> paths.sample((100,)).shape, paths.entropy().shape
            (torch.Size([100, 7, 5]), torch.Size([7]))
        """
        whole = self._sequences(x, lengths)
        with evaluating(self):
            path, possible = self.model.mixture().posterior(whole)
        _warn_of(~possible)
        return path

    def log_prob(self, x: Any, lengths: Any = None, *, chunk_size: int = 1024) -> Tensor:
        """Return log p of each sequence ``(S,)``, nats in raw units.

        Arguments:
            x, lengths, chunk_size: as for :meth:`predict`.
        """
        return self._over_chunks(
            lambda rows: self.model.mixture().lasting(rows.shape[1]).log_prob(rows),
            x,
            lengths,
            chunk_size,
        )

    def component_log_prob(self, x: Any, lengths: Any = None, *, chunk_size: int = 1024) -> Tensor:
        """Return log p(x_t|c) of each step ``(S, T, K)``; zero after the end of a sequence.

        Arguments:
            x, lengths, chunk_size: as for :meth:`predict`.
        """
        return self._over_chunks(
            lambda rows: self.model.mixture().table(rows), x, lengths, chunk_size
        )

    def elbo(self, x: Any, lengths: Any = None, *, chunk_size: int = 1024) -> Tensor:
        """Return the guide's bound of each log p ``(S,)``, without its terms.

        Random rows of the chain count with the mean over draws of their posterior; their divergence
        from the prior belongs to the data as a whole and is left out.

        Arguments:
            x, lengths, chunk_size: as for :meth:`predict`.
        """

        random = self.model.weights.in_program
        drawn = self.model.weights.row_draws() if random else ()

        def mean(rows: Tensor) -> Tensor:
            chain = self.model.mixture()
            table, seen = chain.table(rows), chain.observed(rows)
            each = [HiddenChain(one, chain.components).scored(table, seen) for one in drawn]
            return torch.stack(each).mean(0)

        def bound(rows: Tensor) -> Tensor:
            log_prob, paid = self.model.scores(
                self.guide, Rows(rows, None, None, None, None, None), self.model.weights.mean_rows
            )
            return log_prob - paid.get("gap", 0.0)

        return self._over_chunks(mean if random else bound, x, lengths, chunk_size)

    def sample(
        self, num_sequences: int, steps: int, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw sequences ``(S, T, *event_shape)`` and the component ``(S, T)`` of each step.

        Arguments:
            num_sequences: their number *S*.
            steps: their length *T*.
            seed: seed of the draws; the global state is then left alone.

        Raises:
            ValueError: if a number is below one.
        """
        shape = (check_positive("num_sequences", num_sequences),)
        with local_seed(seed), evaluating(self), torch.no_grad():
            chain = self.model.mixture().lasting(check_positive("steps", steps))
            return chain.sample_with_component(shape)

    def marginal(self, steps: int, *, frozen: bool = False) -> HiddenChain:
        """Return the chain as a distribution: see :meth:`MarkovMixture.marginal`."""
        return self.model.marginal(steps=steps, frozen=frozen)

    def alone(self) -> VMoNF:
        """Return the mixture of single steps, which has the components of this pair.

        Its weights are the components' shares of the first 1,024 steps, fixed as they are now. The
        units of the rows are those of this pair, whichever of the two is fitted first.

        Example:
            >>> from pyro_vmonf import Gaussian
            >>> vmonf = MarkovVMoNF(MarkovMixture(Gaussian(2, 3)))
            >>> vmonf.alone().predict_proba(torch.zeros(4, 2)).shape
            torch.Size([4, 3])
        """
        shares = self.model.weights.log_mean().detach().exp()
        mixture = FlowMixture(self.model.bank, FixedRow(shares))
        # Its rows may have gaps, which are no ends of sequences there; the units are the same ones.
        mixture.standardizer = Standardize(self.model.event_shape)
        mixture.standardizer._buffers = self.model.standardizer._buffers
        mixture.shares_columns_(self.model)
        share(self.model.bank, self.model, mixture)
        return VMoNF(mixture)

    def steps_of(self, x: Any, lengths: Any = None) -> Tensor:
        """Return the rows ``(N, *event_shape)`` of sequences, without those after the ends.

        Arguments:
            x, lengths: as for :meth:`fit`.
        """
        rows: Tensor = self.model.each_row(self.model.padded(x, lengths))[0]
        return rows

    def report(self, x: Any, lengths: Any = None) -> ComponentReport:
        """Return the report of the single steps: see :meth:`alone` and :meth:`VMoNF.report`.

        Arguments:
            x, lengths: as for :meth:`fit`.
        """
        return component_report(self.alone(), self.steps_of(x, lengths))

    def condition(self, data: Mapping[str, Tensor]) -> MarkovVMoNF:
        """Return the pair with random sites observed: see :meth:`VMoNF.condition`.

        Arguments:
            data: values by the names of sites: of a random row of the chain, such as
                ``weights.initial``, and of a random bank.
        """
        model = self.model.condition(data)
        return type(self)(model, self.guide.without(data, model))

    def plot(
        self,
        x: Any = None,
        lengths: Any = None,
        *,
        features: Sequence[int] | None = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Draw steps and their clusters: see :meth:`VMoNF.plot`.

        Arguments:
            x, lengths: as for :meth:`fit`, or single steps ``(N, *event_shape)`` alone.
            features, ax: as there.
        """
        return super().plot(self._single(x, lengths), features=features, ax=ax)

    def plot_report(self, x: Any, lengths: Any = None, *, ax: Axes | None = None) -> Axes:
        """Draw share and weight of each component: see :meth:`VMoNF.plot_report`.

        Arguments:
            x, lengths, ax: as for :meth:`plot`.
        """
        return super().plot_report(self._single(x, lengths), ax=ax)

    def plot_responsibilities(
        self, x: Any, lengths: Any = None, *, exact: bool = False, ax: Axes | None = None
    ) -> Axes:
        """Draw the probabilities of the clusters of each step by itself.

        Arguments:
            x, lengths, ax: as for :meth:`plot`.
            exact: as for :meth:`VMoNF.plot_responsibilities`; of single steps both are the same.
        """
        return super().plot_responsibilities(self._single(x, lengths), exact=exact, ax=ax)

    def plot_uncertainty(self, x: Any, lengths: Any = None, *, ax: Axes | None = None) -> Axes:
        """Draw how certain the clusters are: see :meth:`VMoNF.plot_uncertainty`.

        Arguments:
            x, lengths, ax: as for :meth:`plot`.
        """
        return super().plot_uncertainty(self._single(x, lengths), ax=ax)

    def _single(self, x: Any, lengths: Any) -> Any:
        """Return the rows of sequences whose lengths are given, and other ones as they are."""
        return x if lengths is None else self.steps_of(x, lengths)

    def _drawn(self, x: Any) -> tuple[VMoNF, Any]:
        steps = x is None or np.ndim(x) == len(self.model.event_shape) + 1
        return self.alone(), x if steps else self.steps_of(x)

    @torch.no_grad()
    def _over_chunks(
        self, function: Callable[[Tensor], Tensor], x: Any, lengths: Any, chunk_size: int
    ) -> Tensor:
        """Join a function's results over chunks of sequences."""
        whole = self._sequences(x, lengths)
        with evaluating(self):
            chunks = whole.split(check_positive("chunk_size", chunk_size))
            return torch.cat([function(chunk) for chunk in chunks])

    def _sequences(self, x: Any, lengths: Any) -> Tensor:
        """Return sequences with NaN after their ends; warn of steps that no component has."""
        whole = self.model.padded(x, lengths)
        outside = self.model.is_outside(whole).nonzero().squeeze(1)
        if len(outside):
            warn(
                f"the sequences {listed(outside)} have steps outside the support of every "
                "component: their log-density is minus infinity, and such a step says nothing "
                "about its component"
            )
        return whole


def _warn_of(lost: Tensor) -> None:
    """Warn of sequences that no path leads through."""
    numbers = lost.nonzero().squeeze(1)
    if len(numbers):
        warn(
            f"no path of components leads through the sequences {listed(numbers)} ({len(numbers)} "
            f"of {len(lost)}): their log-density is minus infinity, their path is -1, and their "
            "posterior is the chain's own"
        )
