"""The numbers and pictures of a fitted pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf._utils.html import sparkline, table
from pyro_vmonf._utils.validation import check_unconditional
from pyro_vmonf.contracts import Pair
from pyro_vmonf.program import posterior_of_joint
from pyro_vmonf.training.history import History

if TYPE_CHECKING:
    import matplotlib.axes

MOST_WEIGHTS = 20  # components whose weights are listed
TOUCHING = 0.01  # share of a cluster's rows that another one gets, above which they touch
MOST_PAIRS = 10  # that the report names
SURE = 0.9  # probability of a cluster below which a row is unsure


@dataclass(frozen=True)
class ComponentReport:
    r"""The state of the components of a fitted mixture on some rows.

    Attributes:
        weight: mixture weights :math:`\pi_c` ``(K,)``.
        usage: mean of the guide's q(c|x) over the rows, ``(K,)``.
        usage_exact: mean of the exact posterior over the rows, ``(K,)``.
        entropy: mean entropy of q on the rows of each component, nats ``(K,)``; NaN without rows.
        log_prob: mean log p(x|c) of the rows of each component, nats ``(K,)``.
        overlap: mean exact posterior of *j* over the mass of *i*, ``(K, K)``; each row sums to one.
        gap: mean :math:`KL(q(c|x) \,\|\, p(c|x))`, nats: the loss of the ELBO to the guide.
        confidence: mean of the largest q(c|x), from 1/K to 1: the accuracy that the guide claims.
        confidence_exact: the same of the exact posterior: the accuracy that the components claim.
        inversion_error: largest :math:`|x - g(g^{-1}(x))|` over the rows of each component, in
            standard deviations of the features, ``(K,)``; NaN without rows or without an inverse.
    """

    weight: Tensor
    usage: Tensor
    usage_exact: Tensor
    entropy: Tensor
    log_prob: Tensor
    overlap: Tensor
    gap: float
    confidence: float
    confidence_exact: float
    inversion_error: Tensor

    def dead(self, below: float = 0.01) -> Tensor:
        """Return the components whose usage is smaller than ``below``."""
        return (self.usage < below).nonzero().squeeze(1)

    def doubled(self, above: float = 0.25) -> list[tuple[int, int]]:
        """Return the pairs of components whose overlap is above ``above`` in both directions."""
        mutual = torch.minimum(self.overlap, self.overlap.mT).triu(1)
        return [(int(i), int(j)) for i, j in (mutual > above).nonzero()]

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self.weight)} components\n{self}"

    def __str__(self) -> str:
        others = self.overlap - torch.diag_embed(self.overlap.diagonal())
        columns = {
            "weight": self.weight,
            "usage": self.usage,
            "exact": self.usage_exact,
            "entropy": self.entropy,
            "log_prob": self.log_prob,
            "overlap": others.amax(-1),
            "inversion": self.inversion_error,
        }
        lines = ["component" + "".join(f"{name:>11}" for name in columns)]
        for c, row in enumerate(torch.stack(list(columns.values()), -1).tolist()):
            shown = [f"{value:11.3f}" for value in row[:-1]] + [f"{row[-1]:11.1e}"]
            lines.append(f"{c:9d}" + "".join(shown))
        lines.append(f"gap between guide and exact posterior: {self.gap:.4f} nats a row")
        lines.append(
            f"mean confidence: guide {self.confidence:.3f}, "
            f"exact posterior {self.confidence_exact:.3f}"
        )
        if len(self.dead()):
            lines.append(f"dead (under 1 % of the rows): {self.dead().tolist()}")
        if self.doubled():
            lines.append(f"doubled (a quarter shared both ways): {self.doubled()}")
        return "\n".join(lines)


@dataclass(frozen=True)
class ChoiceReport:
    """The choices that ``VMoNF.from_data`` made, in words.

    Arguments:
        choice: of the history.

    Raises:
        ValueError: if the pair was not built from data.

    Example:
        >>> choice = {"components": 2, "start": "spectral", "candidates": {"spectral": -1.0}}
        >>> print(ChoiceReport(choice))
        2 components, from the start 'spectral'
        candidates, nats a standardised row: spectral -1.000
    """

    choice: dict[str, Any]

    def __post_init__(self) -> None:
        if "components" not in self.choice:
            said = "the pair was built by hand, or was fitted again or pruned; pass rows: report(x)"
            raise ValueError(f"there is no choice of VMoNF.from_data to report: {said}")

    def as_good_as(self, below: float = 0.05) -> dict[str, float]:
        """Return the numbers of components whose score is within ``below`` nats of the best."""
        numbers: dict[str, float] = self.choice.get("numbers", {})
        return {k: v for k, v in numbers.items() if v > max(numbers.values()) - below}

    def summary(self) -> str:
        """Return one line: number, start, held-out density, clusters that touch, unsure rows."""
        found = self.choice
        said = [f"{found['components']} components, from the start {found['start']!r}"]
        if others := [k for k in self.as_good_as() if k != str(found["components"])]:
            said.append(f"{' or '.join(others)} score as well")
        if "held_out" in found:
            said.append(
                f"{found['held_out']:.3f} nats a held-out row "
                f"({found['held_out_gaussians']:.3f} by a Gaussian mixture)"
            )
        if "touching" in found:
            touching = len(found["touching"])
            said.append(f"{touching or 'no'} {'pair touches' if touching == 1 else 'pairs touch'}")
            said.append(f"{found['unsure']} of {found['rows']} rows unsure")
        return "; ".join(said)

    def __str__(self) -> str:
        found, lines = self.choice, [self.summary()]
        if "candidates" in found:
            scores = ", ".join(f"{name} {score:.3f}" for name, score in found["candidates"].items())
            lines.append(f"candidates, nats a standardised row: {scores}")
        if "normalised_cut" in found:
            lines.append(f"normalised cut of the neighbours: {found['normalised_cut']:.3f}")
        if alike := self.as_good_as():
            shown = ", ".join(f"{k} ({v:.3f})" for k, v in alike.items())
            lines.append(f"numbers of components within .05 nats a row: {shown}")
        if "held_out" in found:
            lines.append(
                f"held-out log-density, nats a row: {found['held_out']:.3f}; its start "
                f"{found['held_out_start']:.3f}; a mixture of {found['gaussians']} Gaussians "
                f"{found['held_out_gaussians']:.3f}"
            )
            if self.gaussians_do_as_well:
                lines.append(gaussians_instead(found["gaussians"]))
            over = ", until the time was over" if found.get("out_of_time") else ""
            lines.append(f"trained for {found['epochs']} epochs{over}")
        if found.get("touching"):
            shown = ", ".join(f"{pair} ({share:.3f})" for pair, share in found["touching"].items())
            lines.append(f"clusters that touch, share of rows that one gives the other: {shown}")
        if found.get("unsure"):
            lines.append(
                f"{found['unsure']} of {found['rows']} rows are unsure: "
                "vmonf.predict_proba(x).amax(1) < 0.9"
            )
        if found.get("missing"):
            lines.append(
                f"{found['missing']['entries']} entries are missing, in {found['missing']['rows']} "
                "rows: the start has values of near rows there, and the fit sums them out"
            )
        if "background" in found:
            lines.append(f"{found['background']} rows are background, the last component")
        for kind, columns in found.get("columns", {}).items():
            lines.append(f"taken as real numbers, though each {kind}: column {', '.join(columns)}")
        return "\n".join(lines)

    @property
    def gaussians_do_as_well(self) -> bool:
        """``True`` if a Gaussian mixture is as good on held-out rows."""
        ours: float = self.choice.get("held_out", math.inf)
        return bool(self.choice.get("held_out_gaussians", -math.inf) >= ours)

    __repr__ = __str__


def touching(q: Tensor, weight: Tensor, components: int | None = None) -> dict[str, Any]:
    """Return the pairs of clusters that touch, and how many rows are unsure.

    Arguments:
        q, weight: probabilities ``(N, K)`` of each row's clusters, and how much it counts ``(N,)``.
        components: number of clusters that are compared; all by default.

    References:
        Hennig (2010), Methods for merging Gaussian mixture components.
    """
    owned = torch.nn.functional.one_hot(q.argmax(1), q.shape[1]) * weight[:, None]
    share = (q.mT @ owned) / (weight @ q).clamp_min(torch.finfo(q.dtype).tiny)[:, None]
    share = torch.maximum(share, share.mT)[:components, :components].triu(1)
    pairs = sorted((-float(share[i, j]), i, j) for i, j in (share > TOUCHING).nonzero().tolist())
    return {
        "touching": {f"{i} and {j}": -negative for negative, i, j in pairs[:MOST_PAIRS]},
        "unsure": int((q.amax(1) < SURE).sum()),
        "rows": len(q),
    }


def gaussians_instead(count: int) -> str:
    """Return the sentence that names the simpler model."""
    return (
        "a Gaussian mixture does as well on held-out rows: "
        f"sklearn.mixture.GaussianMixture({count}, reg_covar=1e-3).fit(x), of standardised x"
    )


@torch.no_grad()
def component_report(vmonf: Pair, x: Any, *, inverted: int = 64) -> ComponentReport:
    """Return the state of each component on the rows ``x``.

    Arguments:
        vmonf: a fitted pair.
        x: rows ``(N, *event_shape)``.
        inverted: rows of each component for the inversion error. An autoregressive flow needs one
            pass for each feature.

    Raises:
        ValueError: if the mixture depends on a context, or the rows do not fit.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
        >>> from pyro_vmonf.nn.mlp import MLP
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 3)), SoftmaxGuide(MLP(2, 3)))
        >>> report = component_report(vmonf, torch.randn(100, 2))
        >>> bool(report.usage.sum().isclose(torch.tensor(1.0)))
        True
        >>> print(report).__class__.__name__  # doctest: +ELLIPSIS
        component     weight ...
        'NoneType'
    """
    check_unconditional("the report", vmonf.model.context_features)
    x = vmonf.model.rows(x)
    q, exact = vmonf.predict_proba(x), vmonf.predict_proba(x, exact=True)
    log_prob = vmonf.component_log_prob(x)
    own = torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)
    share = own / own.sum(0)  # NaN without rows
    mass = exact / exact.sum(0).clamp_min(torch.finfo(exact.dtype).tiny)
    log_weights = vmonf.model.weights.log_mean()
    log_exact = posterior_of_joint(log_weights + log_prob, log_weights, None)
    relative = torch.special.xlogy(q, q) - torch.where(q > 0, q * log_exact, 0.0)
    return ComponentReport(
        weight=log_weights.exp(),
        usage=q.mean(0),
        usage_exact=exact.mean(0),
        entropy=-torch.special.xlogy(q, q).sum(-1) @ share,
        log_prob=torch.where(own > 0, log_prob, 0.0).sum(0) / own.sum(0),
        overlap=mass.mT @ exact,
        gap=float(relative.sum(-1).mean()),
        confidence=float(q.amax(-1).mean()),
        confidence_exact=float(exact.amax(-1).mean()),
        inversion_error=_inversion_error(vmonf, x, q.argmax(-1), inverted),
    )


def _inversion_error(vmonf: Pair, x: Tensor, clusters: Tensor, rows: int) -> Tensor:
    """Return the inversion error of each component, from one call for all components."""
    count, event_dim = vmonf.model.num_components, len(vmonf.model.event_shape)
    components = vmonf.model.components()
    errors = torch.full((count,), torch.nan, dtype=x.dtype, device=x.device)
    if not hasattr(components, "reconstruct"):
        return errors
    with local_seed(0):
        order = torch.randperm(len(x), device=x.device)
    members = [order[clusters[order] == c][:rows] for c in range(count)]
    places = max(len(m) for m in members)
    wanted = torch.zeros(places, count, dtype=torch.long, device=x.device)
    for c, chosen in enumerate(members):
        wanted[: len(chosen), c] = chosen
    scale = x.std(0, unbiased=False)
    scale = torch.where(scale > torch.finfo(x.dtype).eps * x.abs().amax(0), scale, 1.0)
    with evaluating(vmonf.model):
        found = components.reconstruct(x[wanted])
    error = ((found - x[wanted]) / scale).abs().flatten(2 if event_dim else 1)
    for c, chosen in enumerate(members):
        if len(chosen):
            errors[c] = error[: len(chosen), c].max()
    return errors


@torch.no_grad()
def card(vmonf: Any) -> str:
    """Return a pair as a table in HTML: its parts, its numbers and its loss."""
    model, guide, history = vmonf.model, vmonf.guide, vmonf.history
    parameters = list(vmonf.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    rows = [
        ("components K", str(model.num_components)),
        ("event shape", str(tuple(model.event_shape))),
        ("bank", type(model.bank).__name__),
        ("weights", f"{type(model.weights).__name__}: {_shown_weights(model)}"),
        ("guide", ", ".join(filter(None, (type(guide).__name__, guide.extra_repr())))),
        ("parameters", f"{trained:,}" + (f", and {frozen:,} frozen" if frozen else "")),
        ("fitted", "no" if history is None else repr(history)),
    ]
    if model.context_features:
        rows.insert(2, ("context features", str(model.context_features)))
    drawn = "" if history is None else sparkline([-value for value in history.elbo])
    return f"<div><strong>VMoNF</strong>{table(rows)}{drawn}</div>"


def _shown_weights(model: Any) -> str:
    """Return the mixture's weights as text."""
    with own_store():
        try:
            weights = model.weights.log_mean().exp().tolist()
        except ValueError:  # of gates
            return "depend on the rows' context"
    shown = ", ".join(f"{weight:.3f}" for weight in weights[:MOST_WEIGHTS])
    return shown + (f" and {len(weights) - MOST_WEIGHTS} more" * (len(weights) > MOST_WEIGHTS))


class Drawn:
    """The pictures of a pair as its verbs; each takes ``ax`` and returns it.

    Matplotlib is imported when the first one is drawn.
    """

    history: History | None

    def plot(
        self,
        x: Any = None,
        *,
        features: Sequence[int] | None = None,
        ax: matplotlib.axes.Axes | None = None,
    ) -> matplotlib.axes.Axes:
        """Draw rows and clusters, as a curve, a plane or a plane for each pair of features.

        See :func:`~pyro_vmonf.plots.plot_fit`; without rows, samples of the mixture are drawn.
        """
        from pyro_vmonf import plots

        return plots.plot_fit(*self._drawn(x), features=features, ax=ax)

    def plot_report(
        self, x: Any, *, ax: matplotlib.axes.Axes | None = None
    ) -> matplotlib.axes.Axes:
        """Draw share and weight of each component: see :func:`~pyro_vmonf.plots.plot_report`."""
        from pyro_vmonf import plots

        return plots.plot_report(component_report(*self._drawn(x)), ax=ax)

    def plot_history(self, *, ax: matplotlib.axes.Axes | None = None) -> matplotlib.axes.Axes:
        """Draw the course of the last fit: see :func:`~pyro_vmonf.plots.plot_history`.

        Raises:
            ValueError: if there was none.
        """
        from pyro_vmonf import plots

        if self.history is None or not self.history.epoch:
            raise ValueError("the pair has no epoch of training to draw; call fit first")
        return plots.plot_history(self.history, ax=ax)

    def plot_responsibilities(
        self, x: Any, *, exact: bool = False, ax: matplotlib.axes.Axes | None = None
    ) -> matplotlib.axes.Axes:
        """Draw the probabilities of the clusters of each row.

        Two features: see :func:`~pyro_vmonf.plots.plot_responsibilities`. Any other number: see
        :func:`~pyro_vmonf.plots.plot_memberships`.
        """
        from pyro_vmonf import plots

        pair, rows = self._drawn(x)
        plane = tuple(pair.model.event_shape) == (2,)
        draw = plots.plot_responsibilities if plane else plots.plot_memberships
        return draw(pair, rows, exact=exact, ax=ax)

    def plot_components(self, *, ax: matplotlib.axes.Axes | None = None) -> matplotlib.axes.Axes:
        """Draw the components themselves: see :func:`~pyro_vmonf.plots.plot_components`."""
        from pyro_vmonf import plots

        return plots.plot_components(self._drawn(None)[0], ax=ax)

    def plot_uncertainty(
        self, x: Any, *, ax: matplotlib.axes.Axes | None = None
    ) -> matplotlib.axes.Axes:
        """Draw how certain the clusters are: see :func:`~pyro_vmonf.plots.plot_uncertainty`."""
        from pyro_vmonf import plots

        return plots.plot_uncertainty(*self._drawn(x), ax=ax)

    def _drawn(self, x: Any) -> tuple[Any, Any]:
        """Return the pair whose verbs the figures use, and its rows."""
        return self, x
