"""VMoNF: the pair of model and guide, with the verbs that people ask of a fitted mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from pyro_vmonf._utils.validation import (
    check_unconditional,
)
from pyro_vmonf.components import take_components_
from pyro_vmonf.contracts import Start
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.metrics import match_components
from pyro_vmonf.program import check_follows
from pyro_vmonf.report import ChoiceReport, ComponentReport, Drawn, card, component_report
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.keywords import FitOptions, shows_options_of
from pyro_vmonf.vmonf.automatic import from_data
from pyro_vmonf.vmonf.halves import Halves
from pyro_vmonf.vmonf.pictures import from_images
from pyro_vmonf.vmonf.scores import Scores
from pyro_vmonf.vmonf.table import Background


class VMoNF(Scores, Drawn, Halves):
    """A variational mixture of normalizing flows: a model, its guide, and the verbs of both.

    ``vmonf.model`` and ``vmonf.guide`` are ordinary Pyro programs, for ``SVI``, ``Predictive``,
    ``poutine`` and NUTS. Their sites carry the name of the pair and not those of its two halves:
    ``c`` and ``x`` alone, ``prior.c`` and ``prior.x`` when the pair is the attribute ``prior``.

    The history of the last fit is ``vmonf.history``.

    Arguments:
        model: the mixture.
        guide: its guide; ``None`` sums c out in the model, and every verb is then exact. Any Pyro
            program or a list of them will do: see :class:`~pyro_vmonf.PyroGuide`.

    References:
        Pires, Figueiredo (2020), Variational Mixture of Normalizing Flows, arXiv:2009.00585.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide
        >>> from pyro_vmonf.datasets import pinwheel
        >>> from pyro_vmonf.nn.mlp import MLP
        >>> x, wing = pinwheel(wings=3, per_wing=64, seed=0)
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3)))
        >>> history = vmonf.fit(x, epochs=2, progress=False, seed=0)
        >>> vmonf.predict(x).shape, vmonf.log_prob(x).shape
        (torch.Size([192]), torch.Size([192]))
    """

    @property
    def feature_names_in_(self) -> np.ndarray[Any, Any]:
        """The names of the columns of the frame that the pair was fitted on."""
        if self.model.feature_names is None:
            raise AttributeError("the pair was not fitted on a frame with names of columns")
        return np.array(self.model.feature_names, dtype=object)

    def _repr_html_(self) -> str:
        return card(self)

    @shows_options_of(fit)
    def fit(
        self, x: Any, y: Any = None, *, n_init: int = 1, **options: Unpack[FitOptions]
    ) -> History:
        """Fit model and guide to the rows ``x``: see :func:`pyro_vmonf.training.fit.fit`.

        Arguments:
            x, y, options: as there.
            n_init: runs from different starts, of which the one with the best held-out objective
                stays: see :func:`pyro_vmonf.training.restarts.fit_best`.

        An interrupt or an error leaves pair and ``history`` as far as they came.
        """
        return self._fit(x, y, n_init, dict(options))

    @classmethod
    def from_data(
        cls,
        x: Any,
        y: Any = None,
        *,
        components: int | None = None,
        seed: int | None = None,
        minutes: float = 1.0,
        sample_weight: Any = None,
        progress: bool = True,
        background: Background = False,
        starts: Mapping[str, Start] | Sequence[Start] | None = None,
    ) -> VMoNF:
        r"""Build a pair for a table, fit it, and return it.

        Several clusterings of the rows are candidates. The densities of their clusters and the
        neighbours that they part choose one of them: see :mod:`pyro_vmonf.starts.choice`. Each
        component begins as a mixture of Gaussians of its cluster, behind flow layers at the
        identity. The guide begins at the posterior of these mixtures. ``fit`` then trains both as
        long as held-out rows gain; without a gain the start is the answer. The pair is an ordinary
        one, to be opened, swapped and fitted further.

        Images ``(N, C, H, W)`` take another road. A network learns features that small affine
        distortions leave alone, the graph of their neighbours gives the clusters, and the guide
        learns these on distorted images. Pixel-by-pixel flows then fit the clusters; see
        ``pyro_vmonf.starts.images``. Whole grey levels get uniform noise for the flows, since they
        have no density: score them after :func:`~pyro_vmonf.datasets.dequantize`.

        Arguments:
            x: rows ``(N, D)``: an array, tensor or frame, with NaN for missing entries. The start
                has values of near rows in their place, and the fit sums them out. Or images
                ``(N, C, H, W)``, in [0, 1] or bytes. From a tensor on a GPU the pair is trained
                there.
            y: labels ``(N,)`` with −1 for unlabelled.
            components: number of components *K*; by default the one that the criterion prefers.
            seed: seed of the choice and of each draw.
            minutes: time for the whole, about; for images, of the fit of the flows alone. The
                choice of the start is not cut short, and leaves half of the time to the flows at
                least. A fit that the time cuts short ends elsewhere on a faster machine, also under
                the same seed; ``history.stopped`` says so.
            sample_weight: weights of the rows ``(N,)``, at least zero.
            progress: show a progress bar in a terminal or a notebook.
            background: add a broad component for rows that are far from all others, as the last
                one, which takes no part in this training: always, never, or with ``"auto"`` where
                ``pyro_vmonf.starts.background.far_rows`` finds any.
            starts: the candidates for the first clustering, in place of the library's: a list of
                :class:`~pyro_vmonf.contracts.Start`, or a dict that names them. Each is given
                standardised rows ``(N, D)``, at most 10,000 of them, and has a seed of its own.
                Spread labels stay candidates beside them.

        Returns:
            The fitted pair. ``history.choice`` and :meth:`report` say what was chosen. Its verbs
            take floating-point rows; whole numbers that are meant as real ones are ``x.float()``.

        An interrupt of the fit has the pair as it is then as the attribute ``vmonf``.

        Raises:
            TypeError: if the rows are no numbers.
            ValueError: if rows, labels, weights or options do not fit.

        Example:
            >>> from pyro_vmonf.datasets import pinwheel
            >>> x, _ = pinwheel(wings=3, per_wing=16, seed=0)
            >>> vmonf = VMoNF.from_data(x, components=3, seed=0)
            >>> vmonf.predict(x).bincount().shape
            torch.Size([3])
        """
        options: dict[str, Any] = {"seed": seed, "minutes": minutes, "progress": progress}
        if np.ndim(x) == 4 if isinstance(x, list | tuple) else getattr(x, "ndim", 2) == 4:
            if sample_weight is not None or background or starts is not None:
                raise ValueError(
                    "images take neither sample_weight nor background nor starts; leave out images "
                    "that shall not count"
                )
            build: Callable[..., Any] = from_images
        else:
            options |= {"sample_weight": sample_weight, "background": background}
            options["starts"] = starts
            build = from_data
        try:
            model, guide, history = build(x, y, components=components, **options)
        except KeyboardInterrupt as error:
            made = vars(error).pop("pair", None)
            if made is not None:
                vars(error)["vmonf"] = vmonf = cls(*made)
                vmonf.history = vars(error).get("history")
                error.add_note(
                    "the pair as it is now is the attribute vmonf of this interrupt, in a notebook "
                    "sys.last_value.vmonf; vmonf.fit trains it further"
                )
            raise
        vmonf = cls(model, guide)
        vmonf.history = history
        return vmonf

    def report(self, x: Any = None) -> ComponentReport | ChoiceReport:
        """Say what became of each component: see :func:`pyro_vmonf.report.component_report`.

        Without rows: say what :meth:`from_data` chose, and how well it does.
        """
        if x is None:
            return ChoiceReport({} if self.history is None else self.history.choice)
        check_follows(self.model, "report", "components")
        return component_report(self, x)

    def prune_(self, x: Any, *, below: float = 0.01) -> Tensor:
        """Leave out the components that hold less than a share ``below`` of the rows ``x``.

        Returns:
            The numbers that the components that stay had.

        Raises:
            ValueError: if none would stay, ``below`` is no share, or the bank does not say which
                parameters belong to which component.
        """
        check_unconditional("prune_", self.model.context_features)
        if not 0 <= below < 1:
            raise ValueError(f"below is {below}; expected a share of the rows, in [0, 1)")
        shares = self.predict_proba(x).mean(0)
        kept = (shares >= below).nonzero().squeeze(1)
        if not len(kept):
            raise ValueError(
                f"below is {below}, and no component would stay: the largest share of one is "
                f"{float(shares.max()):g}; expected less"
            )
        take_components_(self, kept)
        return kept

    def align_(self, reference: Any, x: Any) -> None:
        """Put the components in the order that agrees best with a posterior of the same rows.

        Arguments:
            reference: responsibilities ``(N, K)`` or clusters ``(N,)`` of the rows, by another fit.
            x: the rows ``(N, *event_shape)``.

        Raises:
            ValueError: if the shapes do not fit.
        """
        check_unconditional("align_", self.model.context_features)
        take_components_(self, match_components(reference, self.predict_proba(x)))

    def marginal(self, *, given: Tensor | None = None, frozen: bool = False) -> Marginal:
        """Return the mixture as a distribution: see :meth:`FlowMixture.marginal`."""
        return self.model.marginal(given=given, frozen=frozen)

    def condition(self, data: Mapping[str, Tensor]) -> VMoNF:
        """Return the pair with random sites observed, to be fitted and queried as any other.

        It shares its other parameters with this one, as ``poutine.condition`` does.

        Arguments:
            data: values by the names of sites: see :meth:`FlowMixture.condition`.

        Raises:
            ValueError: if a site is no random part of the mixture, or a value does not fit.

        Example:
            >>> from pyro.distributions import Dirichlet
            >>> from pyro_vmonf import FlowMixture, Gaussian
            >>> vmonf = VMoNF(FlowMixture(Gaussian(2, 2), Dirichlet(torch.ones(2))))
            >>> known = vmonf.condition({"weights": torch.tensor([0.25, 0.75])})
            >>> known.model.weights.log_mean().exp()
            tensor([0.2500, 0.7500])
        """
        model = self.model.condition(data)
        return type(self)(model, self.guide.without(data, model))
