"""A fitted mixture as ArviZ's ``InferenceData``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import (
    check_evidence,
    check_positive,
    check_rows,
    check_unconditional,
    floating_buffer,
)
from pyro_vmonf._version import __version__
from pyro_vmonf.flows.random import RandomBank
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.interop.draws import Draws, draws_of_guide, draws_of_samples
from pyro_vmonf.model import posterior_of_joint
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf import VMoNF

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import DataTree

NOTE = (
    "One draw, a point estimate: these are in-sample scores. az.waic returns their sum and az.loo "
    "has no draws to reweight, so neither is leave-one-out. Compare models by the log-density of "
    "held-out rows, vmonf.log_prob(x_test).mean()."
)
NOTE_ON_DRAWS = (
    "The flows are a point estimate that has seen these rows; only the weights are drawn. az.loo, "
    "az.waic and az.compare make up for the fit of the weights and not for that of the flows. "
    "Compare models by the log-density of held-out rows, to_inference_data(..., held_out=x_test)."
)


def to_inference_data(
    vmonf: VMoNF,
    x: Any,
    y: Any = None,
    *,
    exact: bool = False,
    draws: int | None = None,
    posterior: Mapping[str, Any] | None = None,
    predictive: bool | int = False,
    held_out: Any = None,
    seed: int | None = 0,
    chunk_size: int = 8192,
) -> InferenceData | DataTree:
    r"""Return posterior, pointwise log-likelihood, data and training as ArviZ groups.

    What has no prior is a point estimate, one chain with one draw. Where the weights or the bank's
    parameters have one, ``draws`` takes draws from the guide's posterior, ``posterior`` an MCMC's,
    and everything else follows under each of them; without either, weights are at their posterior
    mean and parameters at the posterior's centre. With ArviZ 1.0 or later the result is an xarray
    ``DataTree`` of the same groups.

    =========================  ===================================================================
    group                      variables
    =========================  ===================================================================
    ``posterior``              ``responsibilities`` (chain, draw, row, component), by the guide or
                               exact; ``weights`` (chain, draw, component); a random bank's
                               parameters by the names of their sites
    ``log_likelihood``         ``x``, the log-density with c summed out (chain, draw, row)
    ``posterior_predictive``   ``x``, new data sets (chain, draw, row, feature), if asked for
    ``observed_data``          ``x`` (row, feature), ``y`` if given
    ``training``               ``elbo``, ``objective``, ``temperature``, ``held_out`` (epoch) and
                               ``terms`` (term, epoch) of the last fit; no draws, so a group of its
                               own in place of ``sample_stats``, whose rows would be draws
    ``held_out``               ``log_prob`` (held_out_row), the log of the density's mean over the
                               draws, if rows are given
    =========================  ===================================================================

    An image's dimensions are ``feature_0``, ``feature_1`` and so on. Means of the log-density a
    row, of those given and of those held out, are attributes with their standard errors:
    ``in_sample_log_prob_mean``, ``in_sample_log_prob_se``, ``held_out_log_prob_mean`` and
    ``held_out_log_prob_se``; with several draws, of
    :math:`\log \frac1S \sum_s p(x \mid \pi_s, \theta_s)`.

    Arguments:
        vmonf: the fitted pair.
        x: rows ``(N, *event_shape)``, in raw units.
        y: evidence of the rows, as in ``fit``: it enters the responsibilities.
        exact: responsibilities by Bayes' rule under each draw, in place of the guide's, which are
            the same under all.
        draws: draws of the random parts from the guide's posterior.
        posterior: in their place, an MCMC's samples ``(draws, *)`` or ``(chains, draws, *)`` by the
            names of the sites, as from ``mcmc.get_samples(group_by_chain=True)``.
        predictive: data sets of N rows to draw under each draw of the random parts; ``True`` is 1.
        held_out: rows ``(M, *event_shape)`` that took no part in the fit.
        seed: seed of the draws; the global state is left alone.
        chunk_size: rows evaluated at once.

    Raises:
        ValueError: if both ``draws`` and ``posterior`` are given, nothing in the mixture is random
            for them, or a shape does not fit.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> data = to_inference_data(VMoNF(FlowMixture(RealNVP(2, 3))), torch.randn(7, 2))
        >>> dict(data.posterior.sizes)
        {'chain': 1, 'draw': 1, 'row': 7, 'component': 3}
        >>> data.log_likelihood["x"].dims
        ('chain', 'draw', 'row')

        Random weights, drawn from their posterior:

        >>> model = FlowMixture(RealNVP(2, 3), torch.distributions.Dirichlet(torch.ones(3)))
        >>> data = to_inference_data(VMoNF(model), torch.randn(7, 2), draws=50, predictive=True)
        >>> data.posterior["weights"].shape, data.posterior_predictive["x"].shape
        ((1, 50, 3), (1, 50, 7, 2))
    """
    model = vmonf.model
    check_unconditional("to_inference_data", model.context_features)
    like = floating_buffer(vmonf)
    x = check_rows(x, model.event_shape, like)
    if y is not None:
        y = check_evidence(y, len(x), model.num_components, like)
    new = None if held_out is None else check_rows(held_out, model.event_shape, like)
    scores = None
    with pyro.get_param_store().scope():  # which random parts would fill
        found = _draws(vmonf, draws, posterior, seed)
        log_prob, log_q = _scores(vmonf, found, x, y, chunk_size)
        responsibilities = log_q.exp()
        by_guide = isinstance(vmonf.guide, SoftmaxGuide) and not exact
        if by_guide:
            q = vmonf.predict_proba(x, y, chunk_size=chunk_size)
            responsibilities = q.expand(found.chains, found.draws, *q.shape)
        if new is not None:
            scores, _ = _scores(vmonf, found, new, None, chunk_size)
        drawn = {}
        if predictive:
            drawn["x"] = _replicate(vmonf, found, len(x), predictive, seed)
    features = [f"feature_{i}" for i in range(len(model.event_shape))]
    features = ["feature"] if len(features) == 1 else features
    groups: dict[str, dict[str, Any]] = {
        "posterior": {"responsibilities": responsibilities, **_sites(vmonf, found)},
        "log_likelihood": {"x": log_prob},
        "observed_data": {"x": x} if y is None else {"x": x, "y": y},
    }
    if drawn:
        groups["posterior_predictive"] = drawn
    dims = {
        "responsibilities": ["row", "component"],
        "weights": ["component"],
        # The rows of x and their log-densities share a name but not their dimensions.
        "x": ["row", *features],
        "y": ["row", "component"][: 1 if y is None else y.dim()],
    }
    sizes = {"row": len(x), "component": model.num_components}
    sizes |= dict(zip(features, model.event_shape, strict=True))
    attrs: dict[str, Any] = {
        "inference_library": "pyro_vmonf",
        "inference_library_version": __version__,
        "responsibilities": "guide" if by_guide else "exact posterior",
        **_summary("in_sample", log_prob),
    }
    own: dict[str, dict[str, Any]] = {}
    if vmonf.history is not None:
        own["training"] = _training(vmonf.history)
    if scores is not None:
        attrs |= _summary("held_out", scores)
        mean = _mean_density(scores).cpu().numpy()
        own["held_out"] = {"data_vars": {"log_prob": (["held_out_row"], mean)}}
    notes = {"note": NOTE}
    if found.sites:
        notes = {} if isinstance(model.bank, RandomBank) else {"note": NOTE_ON_DRAWS}
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in held.items()}
        for group, held in groups.items()
    }
    return _convert(arrays, own, dims, sizes, attrs, notes)


def _draws(
    vmonf: VMoNF, draws: int | None, posterior: Mapping[str, Any] | None, seed: int | None
) -> Draws:
    """Return the draws that were asked for."""
    if draws is not None and posterior is not None:
        raise ValueError(
            "both draws, of the guide's posterior, and posterior, an MCMC's samples, were given; "
            "pass one of them"
        )
    if posterior is not None:
        return draws_of_samples(vmonf, posterior)
    return Draws({}) if draws is None else draws_of_guide(vmonf, draws, seed)


@torch.no_grad()
def _scores(
    vmonf: VMoNF, draws: Draws, x: Tensor, y: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Return log p(x) ``(chains, draws, N)`` and log p(c|x, y) ``(chains, draws, N, K)``."""
    check_positive("chunk_size", chunk_size)
    axis = -1 - len(vmonf.model.event_shape)
    # Components that no draw changes are evaluated once.
    fixed = not isinstance(vmonf.model.bank, RandomBank)
    table = vmonf.component_log_prob(x, chunk_size=chunk_size) if fixed else None
    log_prob, log_q = [], []
    with evaluating(vmonf):
        for mixture in draws.mixtures(vmonf.model):
            if table is None:
                parts = [
                    mixture.components.log_prob(r.unsqueeze(axis)) for r in x.split(chunk_size)
                ]
                components = torch.cat(parts)
            else:
                components = table
            joint = mixture.log_weights + components
            log_prob.append(joint.logsumexp(-1))
            log_q.append(posterior_of_joint(joint, mixture.log_weights, y))
    return draws.by_chain(log_prob), draws.by_chain(log_q)


def _sites(vmonf: VMoNF, draws: Draws) -> dict[str, Tensor]:
    """Return the weights and the other random sites, with chain and draw in front."""
    sites, weights = dict(draws.sites), vmonf.model.weights
    fixed = weights.log_mean().exp().expand(draws.chains, draws.draws, -1)
    return {"weights": sites.pop(weights._pyro_name or "weights", fixed), **sites}


@torch.no_grad()
def _replicate(
    vmonf: VMoNF, draws: Draws, rows: int, predictive: bool | int, seed: int | None
) -> Tensor:
    """Draw data sets of so many rows under each draw, ``(chains, draws * sets, rows, *)``."""
    sets = check_positive("predictive", int(predictive))
    with evaluating(vmonf), local_seed(seed):
        drawn = [
            torch.stack([mixture.sample((rows,)) for _ in range(sets)])
            for mixture in draws.mixtures(vmonf.model)
        ]
    return draws.by_chain(drawn).flatten(1, 2)


def _mean_density(log_prob: Tensor) -> Tensor:
    """Return the log of the mean density of each row over chains and draws."""
    log_prob = log_prob.flatten(0, 1).double()
    return log_prob.logsumexp(0) - math.log(len(log_prob))


def _summary(name: str, log_prob: Tensor) -> dict[str, float]:
    """Return the mean log-density of rows and its standard error, as attributes."""
    rows = _mean_density(log_prob)
    error = float(rows.std() / math.sqrt(len(rows))) if len(rows) > 1 else math.nan
    return {f"{name}_log_prob_mean": float(rows.mean()), f"{name}_log_prob_se": error}


def _training(history: History) -> dict[str, Any]:
    """Return the arguments of the dataset of a run."""
    series = ("elbo", "objective", "temperature", "held_out")
    complete = [name for name in series if len(getattr(history, name)) == len(history.epoch)]
    names = list(history.terms)
    terms = np.array([history.terms[name] for name in names]).reshape(len(names), -1)
    variables: dict[str, Any] = {name: (["epoch"], getattr(history, name)) for name in complete}
    return {
        "data_vars": variables | {"terms": (["term", "epoch"], terms)},
        "coords": {"epoch": history.epoch, "step": (["epoch"], history.step), "term": names},
        "attrs": {
            "kept": history.kept,
            "rejected": history.rejected,
            "seconds": history.seconds,
            "stopped": history.stopped,
        },
    }


def _convert(
    groups: dict[str, Any],
    own: dict[str, dict[str, Any]],
    dims: dict[str, list[str]],
    sizes: dict[str, int],
    attrs: dict[str, Any],
    notes: dict[str, str],
) -> Any:
    """Call ArviZ, whose ``from_dict`` takes groups as arguments before 1.0 and as a dict since."""
    with warnings.catch_warnings():
        # It announces its next major version once a day, at import.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    import xarray

    coords = {name: np.arange(size) for name, size in sizes.items()}
    datasets = {group: xarray.Dataset(**arguments) for group, arguments in own.items()}
    if int(arviz.__version__.split(".")[0]) >= 1:
        every = {"/": attrs, "log_likelihood": notes}
        tree = arviz.from_dict(groups, coords=coords, dims=dims, attrs=every)
        for group, dataset in datasets.items():
            tree[group] = xarray.DataTree(dataset)
        return tree
    data = arviz.from_dict(
        **groups, coords=coords, dims=dims, attrs=attrs, log_likelihood_attrs=notes
    )
    if datasets:
        data.add_groups(datasets)
    return data
