"""Calibration of an inference by simulation, for any Pyro program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from pyro import poutine
from torch import Tensor

from pyro_vmonf._utils.contexts import local_seed, own_filters, own_store
from pyro_vmonf._utils.progress import progress_bar
from pyro_vmonf._utils.validation import as_tensor, check_number, check_positive
from pyro_vmonf.interop.groups import to_arviz
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import UNLABELLED, component_colors
from pyro_vmonf.plots.style import styled

PER_BIN = 20  # ranks that a bin of the chi-square test has, by default
FEWEST_BINS = 5  # two would not see that a posterior is too narrow
SIMULATIONS = 2000  # of uniform ranks, behind the band of the figure

Inference = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Calibration:
    r"""Ranks of true values among draws of their posterior, which are uniform if it is right.

    Attributes:
        ranks: ranks ``(replicates, *shape)`` from 0 to ``draws``, by the names of the sites.
        draws: number of draws behind each rank.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian Inference Algorithms
        with Simulation-Based Calibration, arXiv:1804.06788.

    Example:
        >>> ranks = torch.arange(500) % 100
        >>> round(Calibration({"a": ranks}, draws=99).p_value, 3)
        1.0
        >>> Calibration({"a": ranks // 2}, draws=99).p_value < 1e-6
        True
    """

    ranks: dict[str, Tensor]
    draws: int

    def __post_init__(self) -> None:
        if not self.ranks:
            raise ValueError("ranks are of no site; expected those of one at least")
        for name, ranks in self.ranks.items():
            if ranks.is_floating_point() or not bool(((ranks >= 0) & (ranks <= self.draws)).all()):
                raise ValueError(f"ranks of {name!r}: expected whole numbers, 0 to {self.draws}")
            if ranks.dim() == 0 or ranks.numel() == 0 or len(ranks) != self.replicates:
                raise ValueError(
                    f"ranks of {name!r} have shape {tuple(ranks.shape)}; expected (R, *shape) with "
                    "the same number R of data sets for every site, and at least one scalar"
                )

    @property
    def replicates(self) -> int:
        """The number of data sets."""
        return len(next(iter(self.ranks.values())))

    def p_values(self, bins: int | None = None) -> dict[str, Tensor]:
        r"""Return the p-value of each scalar ``(*shape)`` by a chi-square test of uniform ranks.

        .. math:: \chi^2 = \sum_b (n_b - e_b)^2 / e_b, \qquad e_b = R \, m_b / (L + 1),

        for *R* replicates, *L* draws, and the :math:`m_b` ranks that bin *b* covers.

        Arguments:
            bins: number of bins; by default one for each 20 replicates, and at least 5.

        Raises:
            ValueError: if there are fewer than 2 bins, or more than ranks.
        """
        possible = self.draws + 1
        if bins is not None:
            check_positive("bins", bins)
        count = (
            min(possible, max(FEWEST_BINS, self.replicates // PER_BIN)) if bins is None else bins
        )
        if not 2 <= count <= possible:
            raise ValueError(f"bins is {bins}; expected 2 to {possible}, the number of ranks")
        bin_of = torch.arange(possible) * count // possible
        expected = self.replicates * bin_of.bincount().double()[:, None] / possible
        found = {}
        for name, ranks in self.ranks.items():
            bins_of = bin_of[ranks.reshape(len(ranks), -1).long()]
            inside = torch.nn.functional.one_hot(bins_of, count).sum(0).mT
            chi2 = ((inside - expected).square() / expected).sum(0)
            p = torch.special.gammaincc(torch.full_like(chi2, (count - 1) / 2), chi2 / 2)
            found[name] = p.reshape(ranks.shape[1:])
        return found

    @property
    def p_value(self) -> float:
        """The p-value of the hypothesis that all scalars are calibrated, after Bonferroni."""
        every = torch.cat([p.flatten() for p in self.p_values().values()])
        return min(1.0, len(every) * float(every.min()))

    def __str__(self) -> str:
        lines = [
            f"{name}: smallest p-value {float(p.min()):.2g} of {p.numel()}"
            for name, p in self.p_values().items()
        ]
        head = f"{self.replicates} data sets, {self.draws} draws: p = {self.p_value:.2g}"
        return "\n".join([head, *lines])

    def plot(self, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
        """Draw, for each scalar, the share of ranks below a value minus the uniform share.

        A calibrated scalar stays inside the band with probability ``level``. A posterior that is
        too narrow falls from a hill on the left to a valley on the right; one that is too wide
        rises from a valley to a hill; a shifted one stays on one side.

        Arguments:
            level: probability that a whole calibrated curve is inside the band.
            ax: the axes; by default those of a new figure.

        References:
            Säilynoja, Bürkner, Vehtari (2022), Graphical test for discrete uniformity,
            arXiv:2103.10522.

        Example:
            >>> found = Calibration({"a": torch.arange(500) % 100}, draws=99)
            >>> len(found.plot(ax=Figure().subplots()).get_lines())
            1
        """
        if not 0 < check_number("level", level) < 1:
            raise ValueError(f"level is {level}; expected a probability, such as 0.95")
        return _draw(self, level, ax=ax)

    def to_inference_data(self) -> Any:
        """Return the ranks for ArviZ, as shares between 0 and 1: the group ``prior_sbc``.

        ArviZ 1.0 and later draw it by ``plot_ecdf_pit``, and versions before by ``plot_ecdf``.

        Raises:
            ImportError: if ArviZ is missing.

        Example:
            >>> found = Calibration({"a": torch.arange(500) % 100}, draws=99).to_inference_data()
            >>> dict(found["prior_sbc"]["a"].sizes)
            {'chain': 1, 'draw': 500}
        """
        import arviz

        shares = {
            name: ((ranks.double() + 0.5) / (self.draws + 1)).unsqueeze(0).numpy()
            for name, ranks in self.ranks.items()
        }
        with own_filters():  # ArviZ before 1.0 does not know the group
            warnings.filterwarnings("ignore", "prior_sbc group is not defined")
            return to_arviz(arviz, {"prior_sbc": shares}, {}, {}, {})


def simulation_based_calibration(
    model: Callable[..., Any],
    infer: Inference,
    *args: Any,
    data: str | Sequence[str] = "x",
    sites: Sequence[str] | None = None,
    replicates: int = 500,
    draws: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    r"""Rank parameters from the prior among draws of the posterior that an inference returns.

    .. math:: \theta \sim p(\theta), \quad x \sim p(x \mid \theta), \quad
        \theta_1, \dots, \theta_L \sim q(\theta \mid x), \quad r = \#\{l : \theta_l < \theta\}.

    The ranks *r* are uniform on 0 to *L* if :math:`q` is the posterior. The converse does not hold:
    an inference that returns the prior passes as well. The order of a tie is random. The draws
    have to be nearly independent; thin those of a Markov chain. Components that may change their
    names need a prior with an order.

    Arguments:
        model: a Pyro program that draws parameters and data; the arguments ``args`` go to it.
        infer: a function of the data, in the order of ``data``. It returns draws ``(L, *shape)`` by
            the names of the sites. It runs with an empty param store and a seed of its own.
        data: names of the sites that are data.
        sites: names of the sites that are ranked; by default all that ``infer`` returns.
        replicates: number of data sets.
        draws: number of draws, evenly spaced among those that ``infer`` returns; all by default.
        seed: seed of torch in all replicates; the global state stays.
        progress: show a bar, in a terminal or a notebook.

    Raises:
        ValueError: if the model has no such site, ``infer`` does not return a site that is ranked,
            a shape does not fit, a draw is NaN, or the number of draws changes.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman (2018), Validating Bayesian Inference Algorithms
        with Simulation-Based Calibration, arXiv:1804.06788.

    Example:
        >>> import pyro
        >>> from pyro.distributions import Normal
        >>> def model():
        ...     mean = pyro.sample("mean", Normal(0.0, 1.0))
        ...     pyro.sample("x", Normal(mean, 1.0))
        >>> def exact(x):
        ...     return {"mean": Normal(x / 2, 0.5**0.5).sample((99,))}
        >>> def too_narrow(x):
        ...     return {"mean": Normal(x / 2, 0.5).sample((99,))}
        >>> simulation_based_calibration(model, exact).p_value > 0.01
        True
        >>> simulation_based_calibration(model, too_narrow).p_value < 1e-6
        True
    """
    check_positive("replicates", replicates)
    names = [data] if isinstance(data, str) else list(data)
    seeds = torch.randint(2**31, (replicates,), generator=torch.Generator().manual_seed(seed))
    ranks: dict[str, list[Tensor]] = {}
    counts: set[int] = set()
    bar = progress_bar(replicates, progress, "calibration")
    try:
        for number, own in enumerate(seeds.tolist()):
            with local_seed(own):
                true = _drawn(model, args, [*names, *(sites or ())])
                with own_store():
                    found = infer(*(true[name] for name in names))
                for name in found if sites is None else sites:
                    values = _draws_of(name, found, true, draws, number)
                    counts.add(len(values))
                    ranks.setdefault(name, []).append(_rank(true[name], values))
            if len(counts) > 1:
                raise ValueError(
                    f"infer returned {sorted(counts)} draws up to replicate {number}; return as "
                    "many for each site and each data set, or pass draws= to take so many of them"
                )
            bar.update(1)
    finally:
        bar.close()
    if not ranks:
        raise ValueError("infer returned no sites; expected a mapping from names to draws")
    return Calibration({name: torch.stack(r) for name, r in ranks.items()}, counts.pop())


@torch.no_grad()
def _drawn(
    model: Callable[..., Any], args: tuple[Any, ...], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """Return the values of the sample sites of one run."""
    nodes: dict[str, Any] = poutine.trace(model).get_trace(*args).nodes
    found = {name: site["value"] for name, site in nodes.items() if site["type"] == "sample"}
    given = [name for name in wanted if name in found and nodes[name]["is_observed"]]
    if given:
        raise ValueError(
            f"the model's site {given[0]!r} is observed, so each replicate has the same values and "
            "none of them are simulated; leave the data out of args, so that the model draws them"
        )
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise ValueError(
            f"the model has no site {', '.join(map(repr, lacking))}; it has "
            f"{', '.join(map(repr, found))}: name those that are data in data="
        )
    return found


def _draws_of(
    name: str,
    found: Mapping[str, Any],
    true: Mapping[str, Tensor],
    draws: int | None,
    number: int,
) -> Tensor:
    """Return the draws of a site ``(L, *shape)``, checked."""
    if name not in found or name not in true:
        raise ValueError(
            f"site {name!r} is not both in the model ({', '.join(map(repr, true))}) and in the "
            f"result of infer ({', '.join(map(repr, found))}); use the model's names"
        )
    values = as_tensor(name, found[name]).detach()
    if values.is_floating_point() and not true[name].is_floating_point():
        raise ValueError(
            f"infer returned {name!r} as {values.dtype} and the model draws {true[name].dtype}; "
            "return whole numbers"
        )
    values = values.to(true[name])
    if values.shape[1:] != true[name].shape or not values.dim():
        raise ValueError(
            f"infer returned {name!r} with shape {tuple(values.shape)}; expected "
            f"({', '.join(['draws', *map(str, true[name].shape)])})"
        )
    if values.isnan().any():
        raise ValueError(f"infer returned NaN in {name!r} in replicate {number}")
    if draws is None:
        return values
    if not 1 <= check_positive("draws", draws) <= len(values):
        raise ValueError(f"draws is {draws}; infer returned {len(values)} of {name!r}")
    return values[torch.linspace(0, len(values) - 1, draws).round().long()]


def _rank(true: Tensor, values: Tensor) -> Tensor:
    """Return the rank of each scalar, at random among draws that are equal to it."""
    below, ties = (values < true).sum(0), (values == true).sum(0)
    among = (torch.rand(ties.shape, dtype=torch.float64) * (ties.cpu() + 1)).long()
    return below.cpu() + among


def _band(replicates: int, draws: int, level: float) -> Iterator[Any]:
    """Return the places of the band and its two edges, which whole curves keep with ``level``."""
    from scipy.stats import binom

    every = draws + 1
    places = torch.arange(1, every)[:: max(1, every // 100)]
    share = places.double() / every
    with local_seed(0):
        ranks = torch.randint(every, (SIMULATIONS, replicates)).sort(1).values
    below = torch.searchsorted(ranks, places.expand(SIMULATIONS, -1).contiguous())
    low = binom.cdf(below, replicates, share)
    high = binom.sf(below - 1, replicates, share)
    rarest = torch.as_tensor(2 * low.clip(max=high)).amin(1)
    tail = float(rarest.quantile(1 - level)) / 2
    yield places
    for chance in (tail, 1 - tail):
        yield torch.as_tensor(binom.ppf(chance, replicates, share)) / replicates - share


@styled
def _draw(found: Calibration, level: float, *, ax: Axes | None = None) -> Axes:
    """Draw the curves of all scalars over the band."""
    ax = axes_or_new(ax)
    places, low, high = _band(found.replicates, found.draws, level)
    share = places.double() / (found.draws + 1)
    ax.fill_between(share, low, high, color=UNLABELLED, alpha=0.4, linewidth=0)
    colors = component_colors(len(found.ranks))
    for color, (name, ranks) in zip(colors, found.ranks.items(), strict=True):
        below = (ranks.reshape(len(ranks), -1).unsqueeze(-1) < places).double().mean(0)
        lines = ax.plot(share, (below - share).mT, color=color, linewidth=0.8)
        lines[0].set_label(name)
    ax.set(xlabel="share of the draws", ylabel="share of ranks below, minus uniform", xlim=(0, 1))
    ax.legend()
    return ax
