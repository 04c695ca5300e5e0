"""A pair for a table of one's own: start, densities and length of the fit chosen by the data."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.columns import kinds_of
from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.progress import Stages
from pyro_vmonf._utils.validation import check_number, has_gaps
from pyro_vmonf.contracts import Start as FirstClusters
from pyro_vmonf.distributions.ellipses import Ellipses
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.flows.ready_made import AutoregressiveNSF
from pyro_vmonf.flows.students import StudentMixtures
from pyro_vmonf.flows.submixtures import GaussianMixtures
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.nn.mlp import start_near_zero
from pyro_vmonf.nn.started import StartedNetwork
from pyro_vmonf.report import ChoiceReport, gaussians_instead, touching
from pyro_vmonf.starts.background import broad_gaussian
from pyro_vmonf.starts.choice import CANDIDATES, Scored, by_name, choose, densities_of, rank
from pyro_vmonf.starts.gaussians import GaussianFit, fit_gaussians
from pyro_vmonf.starts.growth import grown
from pyro_vmonf.starts.labels import by_labels
from pyro_vmonf.starts.number import clusterings
from pyro_vmonf.starts.ready_made import MergedGaussians, large_mixture
from pyro_vmonf.terms import Agreement, Classification
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf.lengths import Length, Lessons
from pyro_vmonf.vmonf.table import Background, Rows, rows_of, warn_of_few, without_far

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
MOST_ROWS = 10_000  # on which a start is searched; the other rows are assigned to it
FEWEST_ROWS = 50  # with which flows are trained
HELD_OUT = 0.2  # share of the rows
MOST_HELD_OUT = 4000  # rows
BLOCKS, HIDDEN = 3, (64, 64)  # of the flows
CHUNK = 8192  # rows that are scored at once
RESERVED = 0.1  # share of the time for scores and the report
MOST_GAUSSIANS = 1024  # of all components, beyond which none grows
GROWTH = 0.4  # share of the time of flows in which the Gaussians of long tables grow
MOST_NUMBERS = 2e9  # rows, times Gaussians, times squared columns, of a mixture for comparison
GAIN = 0.005  # nats a row that flows have to bring on held-out rows
NO_FLOWS = Length(0, 0, False)


def from_data(
    x: Any,
    y: Any = None,
    *,
    components: int | None = None,
    seed: int | None = None,
    minutes: float = 1.0,
    sample_weight: Any = None,
    progress: bool = True,
    background: Background = False,
    starts: Mapping[str, FirstClusters] | Sequence[FirstClusters] | None = None,
) -> tuple[FlowMixture, SoftmaxGuide, History]:
    """Build a pair for rows and fit it: see :meth:`pyro_vmonf.VMoNF.from_data`."""
    begun = time.perf_counter()
    check_number("minutes", minutes)
    own = None if starts is None else by_name(starts)
    every = rows_of(x, y, sample_weight, components, seed)
    rows, far = without_far(every, background)
    z, searched = rows.z, rows.drawn(rows.counted(), MOST_ROWS)
    stages = Stages(60 * minutes, progress, "from_data")
    stages.enter("number of components" if components is None else "start")
    large = large_mixture(z[searched], components, seed=rows.seed)
    found: list[Scored] = []
    if components is None:
        found, components = _numbered(rows, z[searched], large)
        stages.enter("start")
    candidates = _candidates(rows, searched, components, large, found, own)
    best = candidates[0]
    if (parts := len(best.densities)) < components:
        said = f"{components} components were asked for, and the best start has {parts} clusters"
        warnings.warn(f"{said}: the pair has as many", RuntimeWarning, stacklevel=3)
    warn_of_few(len(rows.counted()), parts)
    whole = rows.weight is None and len(searched) == len(z)
    clusters = best.clusters if whole else best.responsibilities(z).argmax(1)
    choice: dict[str, Any] = {
        "components": parts,
        "numbers": {str(len(s.densities)): s.score for s in reversed(found)},
        "start": best.name,
        "candidates": {s.name: s.score for s in candidates},
    }
    logger.info("%s rows: %s", len(z), choice)
    choice["gaussians"] = len(large.weights)
    # A long search for the start leaves half of the time to the flows.
    asked = (1 - RESERVED) * 60 * minutes
    seconds = max(asked - (time.perf_counter() - begun), 0.5 * asked)
    lessons = Lessons(rows, stages, parts)
    model, guide, history, start = _trained(lessons, z, clusters, best, seconds, choice)
    stages.close()
    if far is not None:
        model, guide = _with_background(rows, model, guide, start, every, far)
        choice["background"] = int(far.sum())
    choice |= _seen(guide, every, components=parts)
    choice |= {"epochs": len(history.epoch), "seconds": time.perf_counter() - begun}
    history.choice = choice
    if ChoiceReport(choice).gaussians_do_as_well:
        warnings.warn(gaussians_instead(choice["gaussians"]), UserWarning, stacklevel=3)
    return model, guide, history


def _candidates(
    rows: Rows,
    searched: Array,
    components: int,
    large: GaussianFit,
    found: list[Scored],
    own: Mapping[str, FirstClusters] | None,
) -> list[Scored]:
    """Return the clusterings that compete, the best one first.

    Arguments:
        rows: all of them.
        searched: numbers of those that are clustered.
        components: number of clusters.
        large: mixture from which clusters are merged.
        found: clusterings that found their number, the best one first.
        own: starts of the user.
    """
    z = rows.z[searched]
    made = {**CANDIDATES, "merged Gaussians": MergedGaussians(large=large)}
    candidates = choose(z, components, own or made, seed=rows.seed)
    if found and own is None:
        candidates = sorted([found[0], *candidates], key=rank(components))
    if rows.y is None:
        return candidates
    return by_labels(z, rows.y.numpy()[searched], components, candidates, rows.seed)


def number_of_components(x: Any, y: Any, *, seed: int, sample_weight: Any) -> int:
    """Return the number of components that rows prefer, at least one for each class of labels."""
    rows = rows_of(x, y, sample_weight, None, seed)
    z = rows.z[rows.drawn(rows.counted(), MOST_ROWS)]
    return _numbered(rows, z, large_mixture(z, seed=rows.seed))[1]


def _numbered(rows: Rows, z: Array, large: GaussianFit) -> tuple[list[Scored], int]:
    """Return clusterings that find their number, and the number of components."""
    found = clusterings(z, seed=rows.seed, large=large)
    classes = 0 if rows.y is None else int(rows.y.max()) + 1
    return found, max(len(found[0].densities), classes)


@dataclass(frozen=True)
class Start:
    """The place where a pair begins.

    Arguments:
        densities: a mixture of Gaussians for each cluster, of which the guide begins.
        base: the mixtures of which the bank begins; more Gaussians where the rows are many.
        log_shares: log of each cluster's share of the rows ``(K,)``.
    """

    densities: list[GaussianFit]
    base: list[GaussianFit]
    log_shares: Array

    @property
    def grew(self) -> bool:
        """``True`` if a mixture of the bank has grown."""
        return any(b is not d for b, d in zip(self.base, self.densities, strict=True))

    @classmethod
    def of(cls, found: Scored, z: Array, clusters: Array, seconds: float, seed: int) -> Start:
        """Return the start at a clustering, whose densities grow on all rows for some seconds."""
        base = []
        for c, density in enumerate(found.densities):
            own = z[clusters == c]
            share = seconds * len(own) / len(z)
            most = MOST_GAUSSIANS // len(found.densities)
            base.append(grown(density, own, seconds=share, most=most, seed=seed))
        return cls(found.densities, base, found.log_shares())


def _part(z: Array, clusters: Array, whole: Scored, seed: int) -> Scored:
    """Return densities of the sizes of the whole ones, from these rows alone, without a score."""
    clusters = np.unique(clusters, return_inverse=True)[1]
    sizes = [len(density.weights) for density in whole.densities]
    return Scored("part", clusters, densities_of(z, clusters, seed=seed, sizes=sizes), math.nan)


def _mean_log_prob(model: FlowMixture, x: Tensor) -> float:
    """Return the mean log-density of rows in raw units, in nats."""
    rows, mixture = model.rows(x, missing=True), model.mixture()
    with torch.no_grad(), evaluating(model), local_seed(0):
        mixture = Marginal(mixture.log_weights, model.observed(mixture.components, rows))
        found = torch.cat([mixture.log_prob(part) for part in rows.split(CHUNK)])
    return float(found.double().mean())


def _mean_of_gaussians(one: GaussianFit, rows: Rows, judged: Tensor) -> float:
    """Return the mean log-density of rows under Gaussians of standardised rows, in nats."""
    z, log_scale = rows.units.inv(judged).double(), rows.units.scale.double().log()
    if not has_gaps(z):
        return float(one.log_prob(z.numpy()).mean()) - float(log_scale.sum())
    log_det = torch.where(z.isnan(), 0.0, log_scale).sum(-1)
    parts = (one.weights, one.means, np.linalg.cholesky(one.covariances))
    weights, loc, factor = (torch.as_tensor(part).unsqueeze(0) for part in parts)
    log_prob = Ellipses(weights.log(), loc, factor).observe(z.unsqueeze(1)).log_prob.squeeze(-1)
    return float((log_prob - log_det).mean())


def _trained(
    lessons: Lessons,
    z: Array,
    clusters: Array,
    best: Scored,
    seconds: float,
    choice: dict[str, Any],
) -> tuple[FlowMixture, SoftmaxGuide, History, Start]:
    """Return a pair that was trained as long as held-out rows want, and the start that it had."""
    rows, length = lessons.rows, NO_FLOWS
    start: Start | None = None
    if len(rows.counted()) >= FEWEST_ROWS:
        lessons.stages.enter("length of the fit")
        tried = _tried(lessons, z, clusters, best, seconds, choice)
        if tried is not None:
            model, guide, length, start = tried
    lessons.stages.enter("fit")
    if length.out_of_time and start:  # more steps are worth more than another beginning
        return model, guide, lessons.go_on(model, guide, length), start
    if start is None or not start.grew:  # a long table has few held-out rows
        counted = rows.drawn(rows.counted(), len(rows.counted()))
        start = Start.of(best, z[counted], clusters[counted], GROWTH * seconds, rows.seed)
    model, guide = _pair(rows, start)
    return model, guide, lessons.repeat(model, guide, length), start


def _tried(
    lessons: Lessons,
    z: Array,
    clusters: Array,
    best: Scored,
    seconds: float,
    choice: dict[str, Any],
) -> tuple[FlowMixture, SoftmaxGuide, Length, Start] | None:
    """Train a pair while held-out rows gain, compare densities on them, and find the length.

    ``None`` where a cluster has no row outside of the held-out ones.
    """
    rows = lessons.rows
    counted = rows.counted()
    order = counted[np.random.default_rng(rows.seed).permutation(len(counted))]
    held, train = np.split(order, [min(round(HELD_OUT * len(order)), MOST_HELD_OUT)])
    drawn = rows.drawn(np.sort(train), len(train))
    judged = rows.x[torch.as_tensor(rows.drawn(held, len(held)))]
    part = _part(z[drawn], clusters[drawn], best, rows.seed)
    if len(part.densities) != len(best.densities):
        return None
    begun = time.perf_counter()
    start = Start.of(part, z[drawn], clusters[drawn], GROWTH * seconds, rows.seed)
    seconds = max(seconds - (time.perf_counter() - begun), 0.5 * seconds)
    model, guide = _pair(rows, start)
    before = _mean_log_prob(model, judged)
    length = lessons.search(model, guide, torch.as_tensor(held), seconds)
    after = _mean_log_prob(model, judged)
    if after - before < GAIN:
        length, after = NO_FLOWS, before
    if length.out_of_time:
        choice["out_of_time"] = True  # the held-out scores are those of the first part
    size = choice["gaussians"]
    enough = max(MOST_ROWS, int(MOST_NUMBERS / (size * z.shape[1] ** 2)))
    if len(drawn) > enough:
        drawn = np.random.default_rng(rows.seed).permutation(drawn)[:enough]
    one = fit_gaussians(z[drawn], size, least=size, seed=rows.seed)
    choice |= {
        "held_out": after,
        "held_out_start": before,
        "held_out_gaussians": _mean_of_gaussians(one, rows, judged),
    }
    return model, guide, length, start


def _pair(rows: Rows, start: Start) -> tuple[FlowMixture, SoftmaxGuide]:
    """Return a pair that begins at a start: densities, weights and guide."""
    width, components = rows.x.shape[1], len(start.base)
    sizes = [max(len(d.weights) for d in found) for found in (start.base, start.densities)]
    with local_seed(rows.seed):
        heavy = any(density.freedom is not None for density in start.base)
        make = StudentMixtures if heavy else GaussianMixtures
        base = make(width, components, sizes[0])
        bank = AutoregressiveNSF(width, components, blocks=BLOCKS, hidden=HIDDEN, base=base)
        network = StartedNetwork(width, components, sizes[1])
    for transform in bank.transforms:
        start_near_zero(transform.network.layers[-1], 0.0)  # type: ignore[union-attr, index, arg-type]
    for c, density in enumerate(start.base):
        parts = (density.weights, density.means, density.covariances)
        tails = () if density.freedom is None else (torch.as_tensor(density.freedom),)
        base.set_(c, *map(torch.as_tensor, parts), *tails)
    network.set_(start.log_shares.tolist(), start.densities)
    model = FlowMixture(bank, "learned")
    with torch.no_grad():
        model.weights.logits.copy_(torch.as_tensor(start.log_shares))  # type: ignore[operator, union-attr]
    guide = SoftmaxGuide(network, [Agreement(), Classification()], model=model)
    model.standardizer.load_state_dict(rows.units.state_dict())
    model.feature_names = rows.names
    return model.to(rows.device), guide.to(rows.device)


@torch.no_grad()
def _with_background(
    rows: Rows, model: FlowMixture, guide: SoftmaxGuide, start: Start, every: Rows, far: Array
) -> tuple[FlowMixture, SoftmaxGuide]:
    """Return the pair with one more component, a broad Gaussian for rows that are far."""
    z = rows.units.inv(every.filled[far]).double().numpy()
    broad = broad_gaussian(z, rows.x.shape[1])
    counts = np.ones(len(every.x)) if every.weight is None else every.weight.double().numpy()
    # One row, if none is far.
    share = float(counts[far].sum() / counts.sum()) or 1 / len(every.counted())
    log_weights = model.weights.log_mean().double().cpu().numpy() + math.log1p(-share)
    log_shares = np.append(start.log_shares + math.log1p(-share), math.log(share))
    larger = _pair(rows, Start([*start.densities, broad], [*start.base, broad], log_shares))
    for part, other in zip((model, guide.network), (larger[0], larger[1].network), strict=True):
        state = other.state_dict()
        for name, value in part.state_dict().items():
            if value.dim():  # components are the first dimension
                state[name][: len(value)] = value
    larger[0].weights.logits.copy_(torch.as_tensor(np.append(log_weights, math.log(share))))  # type: ignore[operator, union-attr]
    return larger


@torch.no_grad()
def _seen(guide: SoftmaxGuide, rows: Rows, components: int) -> dict[str, Any]:
    """Return what the report says of clusters that touch, of unsure rows and of columns."""
    with evaluating(guide), evaluating(guide._bound_model()), local_seed(0):
        parts = rows.x.split(CHUNK)
        q = torch.cat([guide.log_q(part.to(rows.device)).exp().cpu() for part in parts])
    weight = q.new_ones(len(q)) if rows.weight is None else rows.weight.to(q)
    kinds: dict[str, list[str]] = {}
    for number, kind in enumerate(kinds_of(rows.filled)):
        if kind is not None:
            kinds.setdefault(kind, []).append(str(rows.names[number] if rows.names else number))
    return {**touching(q, weight, components), "missing": rows.missing(), "columns": kinds}
