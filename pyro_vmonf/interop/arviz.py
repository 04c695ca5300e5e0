"""A fitted mixture as ArviZ's ``InferenceData``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_filters, own_store
from pyro_vmonf._utils.evidence import check_evidence
from pyro_vmonf._utils.validation import (
    check_positive,
    check_unconditional,
    floating_buffer,
)
from pyro_vmonf._version import __version__
from pyro_vmonf.chains import MarkovMixture
from pyro_vmonf.contracts import optional
from pyro_vmonf.interop.draws import Draws, draws_of_guide, draws_of_samples, is_random
from pyro_vmonf.interop.groups import to_arviz
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import name_of
from pyro_vmonf.training.endings import warn
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf import MarkovVMoNF, VMoNF

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import DataTree

DRAWS = 1000  # of random parts, by default
POINT = "point_log_likelihood"  # the group of a point estimate, which ArviZ does not reweight
NOTE = (
    "Nothing in the mixture is random, so the fit is a point estimate: its log-densities are the "
    f"group {POINT!r}, and az.loo and az.compare have no draws to reweight. Compare models by the "
    "log-density of held-out rows, to_inference_data(..., held_out=x_test), or give the weights a "
    "prior (a Dirichlet), of which draws= takes draws."
)
NOTE_ON_DRAWS = (
    "Only the weights are drawn. The flows are a point estimate fitted to these rows, and az.loo "
    "and az.compare correct the fit of the weights only. Compare models by the log-density "
    "of held-out rows, to_inference_data(..., held_out=x_test)."
)


def to_inference_data(
    vmonf: VMoNF | MarkovVMoNF,
    x: Any,
    y: Any = None,
    *,
    lengths: Any = None,
    exact: bool = False,
    draws: int | None = None,
    posterior: Mapping[str, Any] | None = None,
    predictive: bool | int = False,
    held_out: Any = None,
    seed: int | None = 0,
    chunk_size: int = 8192,
) -> InferenceData | DataTree:
    r"""Return posterior, pointwise log-likelihood, data and training as ArviZ groups.

    Random weights and random parameters of a bank take draws from the guide (``draws``) or from an
    MCMC (``posterior``), and every group of draws holds values under each of them. A mixture
    without random parts is a point estimate: one chain with one draw. ArviZ 1.0 and later get an
    xarray ``DataTree`` with the same groups. The rows of a chain are its sequences.

    ==========================  ==================================================================
    group                       variables
    ==========================  ==================================================================
    ``posterior``               ``weights`` (chain, draw, component), or of a chain ``initial`` and
                                ``transition`` (chain, draw, component_before, component); the
                                parameters of a random bank by the names of their sites
    ``responsibilities``        ``responsibilities`` (chain, draw, row, component); those of the
                                guide are the same under all draws and stand there once; those of a
                                chain are exact, (chain, draw, row, step, component)
    ``log_likelihood``          ``x``, the log-density with c summed out (chain, draw, row)
    ``point_log_likelihood``    the same of a point estimate, in place of ``log_likelihood``:
                                ``az.loo`` and ``az.compare`` take it for no draw
    ``posterior_predictive``    ``x``, new data sets (chain, draw, row, feature), on request
    ``held_out``                ``log_prob`` (chain, draw, held_out_row), if such rows are given
    ``observed_data``           ``x`` (row, feature); ``y``, if given
    ``constant_data``           the record of the last fit: ``elbo``, ``objective``,
                                ``temperature`` and ``held_out_elbo`` (epoch), and ``terms``
                                (term, epoch)
    ==========================  ==================================================================

    The dimensions of an image are ``feature_0``, ``feature_1`` and so on. The attributes
    ``in_sample_log_prob_mean`` and ``held_out_log_prob_mean`` are means over the rows of
    :math:`\log \frac1S \sum_s p(x \mid \pi_s, \theta_s)` for *S* draws. Their standard errors are
    ``in_sample_log_prob_se`` and ``held_out_log_prob_se``. ``az.concat(..., dim="chain")`` joins
    the draws; data, record and attributes are then those of the first argument.

    Arguments:
        vmonf: the fitted pair.
        x: rows ``(N, *event_shape)``, in raw units; sequences of a chain ``(S, T, *event_shape)``,
            with NaN after their ends: see :meth:`~pyro_vmonf.MarkovMixture.padded`.
        y: evidence of the rows, as in ``fit``; it enters the responsibilities.
        lengths: steps ``(S,)`` of the sequences of a chain, in place of the NaN.
        exact: responsibilities by Bayes' rule under each draw, in place of those of the guide.
        draws: number of draws of the random parts from the guide; 1,000 by default.
        posterior: samples of an MCMC ``(draws, *)`` or ``(chains, draws, *)`` by the names of the
            sites, as ``mcmc.get_samples(group_by_chain=True)`` returns them.
        predictive: number of data sets of N rows under each draw; ``True`` is 1.
        held_out: rows ``(M, *event_shape)`` outside the fit; of a chain, sequences with NaN after
            their ends.
        seed: seed of the draws; the global state stays.
        chunk_size: rows evaluated at once.

    Raises:
        ValueError: if both ``draws`` and ``posterior`` are given, the mixture has no random parts
            for them, or a shape does not fit.

    Warns:
        UserWarning: if the fit is a point estimate and no rows are held out, so that nothing in
            the result compares models.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> x, x_test = torch.randn(7, 2), torch.randn(5, 2)
        >>> data = to_inference_data(VMoNF(FlowMixture(RealNVP(2, 3))), x, held_out=x_test)
        >>> dict(data.posterior.sizes)
        {'chain': 1, 'draw': 1, 'component': 3}
        >>> data["point_log_likelihood"]["x"].dims
        ('chain', 'draw', 'row')

        Random weights, drawn from their posterior:

        >>> model = FlowMixture(RealNVP(2, 3), torch.distributions.Dirichlet(torch.ones(3)))
        >>> data = to_inference_data(VMoNF(model), x, draws=50, predictive=True)
        >>> data.posterior["weights"].shape, data.posterior_predictive["x"].shape
        ((1, 50, 3), (1, 50, 7, 2))
    """
    model = vmonf.model
    check_unconditional("to_inference_data", model.context_features)
    x = _rows(model, x, lengths)
    y = _evidence(model, y, len(x))
    new = None if held_out is None else model.rows(held_out)
    by_guide = not (exact or vmonf.guide.exact or model.of_sequences)
    with own_store():  # random parts fill the store
        found = _draws(vmonf, draws, posterior, seed)
        if not found.sites and new is None:
            warn(NOTE, category=UserWarning)
        log_prob, q = _scores(vmonf, found, x, y, chunk_size, exact=not by_guide)
        if by_guide:
            proba = vmonf.predict_proba(x, y, chunk_size=chunk_size)
            q = proba.expand(found.chains, 1, *proba.shape)
        likelihood = "log_likelihood" if found.sites else POINT
        groups: dict[str, dict[str, Any]] = {
            "posterior": _sites(model, found),
            "responsibilities": {"responsibilities": q},
            likelihood: {"x": log_prob},
            "observed_data": {"x": x} if y is None else {"x": x, "y": y},
        }
        if predictive:
            drawn = _replicate(vmonf, found, x, predictive, seed)
            groups["posterior_predictive"] = {"x": drawn}
        if new is not None:
            groups["held_out"] = {"log_prob": _scores(vmonf, found, new, None, chunk_size)[0]}
    attrs: dict[str, Any] = {
        "inference_library": "pyro_vmonf",
        "inference_library_version": __version__,
        "responsibilities": "guide" if by_guide else "exact posterior",
        **_summary("in_sample", log_prob),
        **({} if new is None else _summary("held_out", groups["held_out"]["log_prob"])),
    }
    if not found.changes_components(model):
        attrs["note"] = NOTE_ON_DRAWS if found.sites else NOTE
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in held.items()}
        for group, held in groups.items()
    }
    record = None if vmonf.history is None else _record(vmonf.history)
    with own_filters():
        # ArviZ announces its next major version once a day, at import.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return to_arviz(arviz, arrays, *_axes(model, x, y, new), attrs, record)


def _rows(model: FlowMixture, x: Any, lengths: Any) -> Tensor:
    """Return the rows, which are sequences of some lengths where the model is a chain."""
    if lengths is None:
        return model.rows(x)
    if not isinstance(model, MarkovMixture):
        raise ValueError(
            f"lengths is given, and the rows of a {type(model).__name__} are no sequences; leave "
            "it out"
        )
    return model.padded(x, lengths)


def _evidence(model: FlowMixture, y: Any, count: int) -> Tensor | None:
    """Return labels or evidence of the rows, checked."""
    if y is None:
        return None
    if model.of_sequences:
        raise ValueError(
            "y is given, but the steps of sequences have no labels; leave it out, and "
            "pass the lengths of the sequences by name, lengths=..."
        )
    return check_evidence(y, count, model.num_components, floating_buffer(model))


def _axes(
    model: FlowMixture, x: Tensor, y: Tensor | None, new: Tensor | None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the dimensions of each variable, and the size of each dimension."""
    features = [f"feature_{i}" for i in range(len(model.event_shape))]
    features = ["feature"] if len(features) == 1 else features
    steps = ["step"] if model.of_sequences else []
    dims = {
        "responsibilities": ["row", *steps, "component"],
        "weights": ["component"],
        "initial": ["component"],
        "transition": ["component_before", "component"],
        "log_prob": ["held_out_row"],
        # The log-densities of the rows have the leading dimension alone.
        "x": ["row", *steps, *features],
        "y": ["row", "component"][: 1 if y is None else y.dim()],
    }
    sizes = {"row": len(x), "component": model.num_components}
    sizes |= dict.fromkeys(steps, x.shape[1])
    if new is not None:
        sizes["held_out_row"] = len(new)
    return dims, sizes | dict(zip(features, model.event_shape, strict=True))


def _draws(
    vmonf: VMoNF | MarkovVMoNF,
    draws: int | None,
    posterior: Mapping[str, Any] | None,
    seed: int | None,
) -> Draws:
    """Return the draws of the random parts."""
    if draws is not None and posterior is not None:
        raise ValueError(
            "draws (from the guide) and posterior (samples of an MCMC) were both given; pass one "
            "of them"
        )
    if posterior is not None:
        return draws_of_samples(vmonf, posterior)
    if draws is None and not is_random(vmonf.model):
        return Draws({})
    return draws_of_guide(vmonf, DRAWS if draws is None else draws, seed)


@torch.no_grad()
def _scores(
    vmonf: VMoNF | MarkovVMoNF,
    draws: Draws,
    x: Tensor,
    y: Tensor | None,
    chunk_size: int,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return log p(x) ``(chains, draws, N)`` and, if asked for, p(c|x, y) with one axis more."""
    chunk_size = check_positive("chunk_size", chunk_size)
    # Components that no draw changes are evaluated once.
    table = None
    if not draws.changes_components(vmonf.model):
        table = vmonf.component_log_prob(x, chunk_size=chunk_size)
    log_prob, q = [], []
    with evaluating(vmonf):
        for mixture in draws.mixtures(vmonf.model):
            components = table
            if components is None:
                components = torch.cat([mixture.table(rows) for rows in x.split(chunk_size)])
            found, proba = mixture.scores(components, x, y, posterior=exact)
            log_prob.append(found)
            q += [] if proba is None else [proba]
    return draws.by_chain(log_prob), draws.by_chain(q or log_prob)


def _sites(model: FlowMixture, draws: Draws) -> dict[str, Tensor]:
    """Return the weights and the other random sites ``(chains, draws, *)``."""
    sites = dict(draws.sites)
    named = optional(model.weights, "named", lambda values: {"weights": values})
    rows = optional(model.weights, "rows", lambda: [model.weights])()
    own = [sites.pop(name_of(row, "weights"), None) for row in rows]
    drawn = draws.weights(model) if len(own) > 1 or own[0] is None else own[0]
    return {**named(drawn), **sites}


@torch.no_grad()
def _replicate(
    vmonf: VMoNF | MarkovVMoNF, draws: Draws, x: Tensor, predictive: bool | int, seed: int | None
) -> Tensor:
    """Draw data sets under each draw, ``(chains, draws * sets, rows, *)``."""
    sets = 1 if predictive is True else check_positive("predictive", predictive)
    with evaluating(vmonf), local_seed(seed):
        drawn = [
            torch.stack([mixture.replicate(x) for _ in range(sets)])
            for mixture in draws.mixtures(vmonf.model)
        ]
    return draws.by_chain(drawn).flatten(1, 2)


def _mean_density(log_prob: Tensor) -> Tensor:
    """Return the log of the mean density of each row over chains and draws."""
    log_prob = log_prob.flatten(0, 1).double()
    return log_prob.logsumexp(0) - math.log(len(log_prob))


def _summary(name: str, log_prob: Tensor) -> dict[str, float]:
    """Return the mean log-density of the rows and its standard error."""
    rows = _mean_density(log_prob)
    error = float(rows.std() / math.sqrt(len(rows))) if len(rows) > 1 else math.nan
    return {f"{name}_log_prob_mean": float(rows.mean()), f"{name}_log_prob_se": error}


def _record(history: History) -> dict[str, Any]:
    """Return the record of a fit, in the form of ``xarray.Dataset.from_dict``."""
    columns = {
        "elbo": history.elbo,
        "objective": history.objective,
        "temperature": history.temperature,
        "held_out_elbo": history.held_out,
    }
    found: dict[str, Any] = {
        name: {"dims": ["epoch"], "data": values}
        for name, values in columns.items()
        if len(values) == len(history.epoch)
    }
    coords = {
        name: {"dims": ["epoch"], "data": getattr(history, name)} for name in ("epoch", "step")
    }
    if history.terms:
        found["terms"] = {"dims": ["term", "epoch"], "data": list(history.terms.values())}
        coords["term"] = {"dims": ["term"], "data": list(history.terms)}
    attrs = {name: getattr(history, name) for name in ("rejected", "seconds", "stopped")}
    # A file holds no None, which stands for the state before training.
    attrs["kept"] = "start" if history.kept is None else history.kept
    return {"data_vars": found, "coords": coords, "attrs": attrs}
