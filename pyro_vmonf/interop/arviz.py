"""A fitted mixture as ArviZ's ``InferenceData``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_filters, own_store
from pyro_vmonf._utils.validation import (
    check_evidence,
    check_positive,
    check_unconditional,
    floating_buffer,
)
from pyro_vmonf._version import __version__
from pyro_vmonf.interop.draws import Draws, draws_of_guide, draws_of_samples
from pyro_vmonf.model import FlowMixture, posterior_of_joint
from pyro_vmonf.program import name_of
from pyro_vmonf.training.history import History
from pyro_vmonf.vmonf import VMoNF

if TYPE_CHECKING:
    from arviz import InferenceData
    from xarray import DataTree

NOTE = (
    "This is a point estimate with one draw, so the scores are in-sample. az.waic returns their "
    "sum and az.loo has no draws to reweight, so neither is leave-one-out. Compare models by the "
    "log-density of held-out rows, vmonf.log_prob(x_test).mean()."
)
NOTE_ON_DRAWS = (
    "Only the weights are drawn. The flows are a point estimate fitted to these rows, and az.loo, "
    "az.waic and az.compare correct the fit of the weights only. Compare models by the log-density "
    "of held-out rows, to_inference_data(..., held_out=x_test)."
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

    A part without a prior is a point estimate: one chain with one draw. Random weights and random
    parameters of a bank take draws from the guide (``draws``) or from an MCMC (``posterior``). All
    groups then hold values under each draw. With neither argument, the weights are at their
    posterior mean and the parameters at the centre of their posterior. ArviZ 1.0 and later return
    an xarray ``DataTree`` with the same groups.

    =========================  ===================================================================
    group                      variables
    =========================  ===================================================================
    ``posterior``              ``responsibilities`` (chain, draw, row, component);
                               ``weights`` (chain, draw, component); the parameters of a random
                               bank by the names of their sites
    ``log_likelihood``         ``x``, the log-density with c summed out (chain, draw, row)
    ``posterior_predictive``   ``x``, new data sets (chain, draw, row, feature), on request
    ``observed_data``          ``x`` (row, feature); ``y``, if given
    ``training``               ``elbo``, ``objective``, ``temperature``, ``held_out`` (epoch) and
                               ``terms`` (term, epoch) of the last fit
    ``held_out``               ``log_prob`` (held_out_row), the log of the mean density over the
                               draws, if held-out rows are given
    =========================  ===================================================================

    The dimensions of an image are ``feature_0``, ``feature_1`` and so on. The attributes
    ``in_sample_log_prob_mean`` and ``held_out_log_prob_mean`` are means over the rows of
    :math:`\log \frac1S \sum_s p(x \mid \pi_s, \theta_s)` for *S* draws. Their standard errors are
    ``in_sample_log_prob_se`` and ``held_out_log_prob_se``.

    Arguments:
        vmonf: the fitted pair.
        x: rows ``(N, *event_shape)``, in raw units.
        y: evidence of the rows, as in ``fit``; it enters the responsibilities.
        exact: responsibilities by Bayes' rule under each draw. By default they are those of the
            guide, the same under all draws.
        draws: number of draws of the random parts from the guide.
        posterior: samples of an MCMC ``(draws, *)`` or ``(chains, draws, *)`` by the names of the
            sites, as ``mcmc.get_samples(group_by_chain=True)`` returns them.
        predictive: number of data sets of N rows under each draw; ``True`` is 1.
        held_out: rows ``(M, *event_shape)`` outside the fit.
        seed: seed of the draws; the global state stays.
        chunk_size: rows evaluated at once.

    Raises:
        ValueError: if both ``draws`` and ``posterior`` are given, the mixture has no random parts
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
    x = model.rows(x)
    y = None if y is None else check_evidence(y, len(x), model.num_components, like)
    new = None if held_out is None else model.rows(held_out)
    by_guide = not (exact or vmonf.guide.exact)
    with own_store():  # random parts fill the store
        found = _draws(vmonf, draws, posterior, seed)
        log_prob, log_q = _scores(vmonf, found, x, y, chunk_size)
        if by_guide:
            q = vmonf.predict_proba(x, y, chunk_size=chunk_size)
        q = q.expand(found.chains, found.draws, *q.shape) if by_guide else log_q.exp()
        scores = None if new is None else _scores(vmonf, found, new, None, chunk_size)[0]
        groups: dict[str, dict[str, Any]] = {
            "posterior": {"responsibilities": q, **_sites(model, found)},
            "log_likelihood": {"x": log_prob},
            "observed_data": {"x": x} if y is None else {"x": x, "y": y},
        }
        if predictive:
            drawn = _replicate(vmonf, found, len(x), predictive, seed)
            groups["posterior_predictive"] = {"x": drawn}
    attrs: dict[str, Any] = {
        "inference_library": "pyro_vmonf",
        "inference_library_version": __version__,
        "responsibilities": "guide" if by_guide else "exact posterior",
        **_summary("in_sample", log_prob),
        **({} if scores is None else _summary("held_out", scores)),
    }
    note = NOTE if not found.sites else None if found.changes_components(model) else NOTE_ON_DRAWS
    dims, sizes = _axes(model, x, y)
    return _convert(groups, _own_groups(vmonf.history, scores), dims, sizes, attrs, note)


def _axes(
    model: FlowMixture, x: Tensor, y: Tensor | None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the dimensions of each variable, and the size of each dimension."""
    features = [f"feature_{i}" for i in range(len(model.event_shape))]
    features = ["feature"] if len(features) == 1 else features
    dims = {
        "responsibilities": ["row", "component"],
        "weights": ["component"],
        # ArviZ uses the leading dimensions for the log-densities of the rows.
        "x": ["row", *features],
        "y": ["row", "component"][: 1 if y is None else y.dim()],
    }
    sizes = {"row": len(x), "component": model.num_components}
    return dims, sizes | dict(zip(features, model.event_shape, strict=True))


def _draws(
    vmonf: VMoNF, draws: int | None, posterior: Mapping[str, Any] | None, seed: int | None
) -> Draws:
    """Return the draws of the random parts."""
    if draws is not None and posterior is not None:
        raise ValueError(
            "draws (from the guide) and posterior (samples of an MCMC) were both given; pass one "
            "of them"
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
    table = None
    if not draws.changes_components(vmonf.model):
        table = vmonf.component_log_prob(x, chunk_size=chunk_size)
    log_prob, log_q = [], []
    with evaluating(vmonf):
        for mixture in draws.mixtures(vmonf.model):
            components = table
            if components is None:
                rows = x.unsqueeze(axis).split(chunk_size)
                components = torch.cat([mixture.components.log_prob(part) for part in rows])
            joint = mixture.log_weights + components
            log_prob.append(joint.logsumexp(-1))
            log_q.append(posterior_of_joint(joint, mixture.log_weights, y))
    return draws.by_chain(log_prob), draws.by_chain(log_q)


def _sites(model: FlowMixture, draws: Draws) -> dict[str, Tensor]:
    """Return the weights and the other random sites ``(chains, draws, *)``."""
    sites = dict(draws.sites)
    fixed = model.weights.log_mean().exp().expand(draws.chains, draws.draws, -1)
    return {"weights": sites.pop(name_of(model.weights, "weights"), fixed), **sites}


@torch.no_grad()
def _replicate(
    vmonf: VMoNF, draws: Draws, rows: int, predictive: bool | int, seed: int | None
) -> Tensor:
    """Draw data sets under each draw, ``(chains, draws * sets, rows, *)``."""
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
    """Return the mean log-density of the rows and its standard error."""
    rows = _mean_density(log_prob)
    error = float(rows.std() / math.sqrt(len(rows))) if len(rows) > 1 else math.nan
    return {f"{name}_log_prob_mean": float(rows.mean()), f"{name}_log_prob_se": error}


def _own_groups(history: History | None, scores: Tensor | None) -> dict[str, dict[str, Any]]:
    """Return the arguments of the datasets of the training and of the held-out rows."""
    own = {} if history is None else {"training": _training(history)}
    if scores is not None:
        mean = _mean_density(scores).cpu().numpy()
        own["held_out"] = {"data_vars": {"log_prob": (["held_out_row"], mean)}}
    return own


def _training(history: History) -> dict[str, Any]:
    """Return the arguments of the dataset of the training."""
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
    groups: dict[str, dict[str, Any]],
    own: dict[str, dict[str, Any]],
    dims: dict[str, list[str]],
    sizes: dict[str, int],
    attrs: dict[str, Any],
    note: str | None,
) -> Any:
    """Call ``from_dict`` of ArviZ: groups are arguments before 1.0, and a dict since."""
    with own_filters():
        # ArviZ announces its next major version once a day, at import.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    import xarray

    arrays: dict[str, Any] = {
        group: {name: value.detach().cpu().numpy() for name, value in held.items()}
        for group, held in groups.items()
    }
    coords = {name: np.arange(size) for name, size in sizes.items()}
    notes = {} if note is None else {"note": note}
    datasets = {group: xarray.Dataset(**arguments) for group, arguments in own.items()}
    if int(arviz.__version__.split(".")[0]) >= 1:
        every = {"/": attrs, "log_likelihood": notes}
        tree = arviz.from_dict(arrays, coords=coords, dims=dims, attrs=every)
        for group, dataset in datasets.items():
            tree[group] = xarray.DataTree(dataset)
        return tree
    data = arviz.from_dict(
        **arrays, coords=coords, dims=dims, attrs=attrs, log_likelihood_attrs=notes
    )
    if datasets:
        data.add_groups(datasets)
    return data
