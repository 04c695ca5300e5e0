"""Checks of one run of a program: its ELBO is a bound, and its plates have a depth."""

from __future__ import annotations

import re
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.guides import PyroGuide
from pyro_vmonf.program import is_plate, unregistered

Site = dict[str, Any]


def sample_sites(model_trace: Trace, guide_trace: Trace) -> list[tuple[str, Site, int]]:
    """Return the sites of model (1) and guide (−1) but for plates."""
    return [
        (name, site, sign)  # type: ignore[misc]
        for trace, sign in ((model_trace, 1), (guide_trace, -1))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_plate(site)  # type: ignore[arg-type]
    ]


def check_bound(guide: Any, guide_trace: Trace, model_trace: Trace) -> None:
    """Refuse a program whose ELBO bounds nothing, since model and guide draw different sites.

    Raises:
        ValueError: if a site of the model has no posterior, or one of the guide has no prior.
    """
    sites = sample_sites(model_trace, guide_trace)
    latent = {name: site for name, site, sign in sites if sign > 0 and not site["is_observed"]}
    drawn = {name: site for name, site, sign in sites if sign < 0 and not site["is_observed"]}
    for name, site in latent.items():
        if name not in drawn and site["infer"].get("enumerate") != "parallel":
            raise ValueError(
                f"the model draws {name!r}, which the guide does not draw and nobody enumerates: "
                f"the ELBO has no term for its posterior. {_cover(guide, name, site)}"
            )
    for name, site in drawn.items():
        if name in latent and isinstance(guide, PyroGuide):
            _check_scale(name, site, latent[name])
        if name not in latent and not site["infer"].get("is_auxiliary"):
            known = "observes" if name in model_trace.nodes else "does not draw"
            raise ValueError(
                f"the guide draws {name!r}, which the model {known}: its entropy is added to the "
                f"ELBO, which then bounds nothing. The model draws {', '.join(map(repr, latent))}: "
                "take the right name, or leave the site out of the guide; without c in the guide, "
                "that is VMoNF(model) with no guide"
            )


def _check_scale(name: str, drawn: Site, latent: Site) -> None:
    """Refuse a site that counts otherwise in the guide than in the model.

    Raises:
        ValueError: if it does.
    """
    mine, theirs = torch.as_tensor(drawn["scale"]), torch.as_tensor(latent["scale"])
    if torch.allclose(mine, theirs):
        return
    raise ValueError(
        f"the site {name!r} counts otherwise in the guide than in the model: its scale is "
        f"{mine.flatten()[0]:.4g} there and {theirs.flatten()[0]:.4g} here, so the ELBO "
        'bounds nothing. Take the plate of the model, pyro.plate("data", size or len(x), '
        "subsample=index), and the weights of the rows by poutine.scale(scale=sample_weight)"
    )


def _cover(guide: Any, name: str, site: Site) -> str:
    """Return the words and the code that show how a site gets a posterior."""
    if getattr(site["fn"], "has_enumerate_support", False):
        return (
            "It is discrete: let Pyro sum over it, by\n"
            f'    pyro.sample("{name}", ..., infer={{"enumerate": "parallel"}})\nin the model'
        )
    kind = type(guide).__name__
    plates = [f for f in site["cond_indep_stack"] if f.vectorized]
    shape = tuple(site["fn"].shape())
    support = getattr(site["fn"], "support", None)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    own = re.sub(r"\W", "_", name)
    q = "LogNormal" if support is constraints.positive else "Normal"
    q = f"dist.{q}(self.{own}_loc, self.{own}_log_scale.exp())"
    q += f".to_event({site['fn'].event_dim})" if site["fn"].event_dim else ""
    foreign = support not in (constraints.real, constraints.positive)
    remark = f"  # in place of it, one on {support}" if foreign else ""
    lines = [
        f"class Guide({kind}):",
        "    def __init__(self, *args, **kwargs):",
        "        super().__init__(*args, **kwargs)",
        f"        self.{own}_loc = torch.nn.Parameter(torch.zeros({shape}))",
        f"        self.{own}_log_scale = torch.nn.Parameter(torch.zeros({shape}))",
        "",
        "    def forward(self, x=None, y=None, **options):",
        "        super().forward(x, y, **options)",
    ]
    indent = " " * 8
    for frame in plates:  # by names of their own: one that the guide has entered is taken
        lines.append(
            f'{indent}with pyro.plate("{frame.name}_of_{name}", {frame.size}, dim={frame.dim}):'
        )
        indent += " " * 4
    lines.append(f'{indent}pyro.sample("{name}", {q}){remark}')
    code = "\n".join("    " + line if line else "" for line in lines)
    return f"Draw the site in the guide, for example by\n{code}"


def max_plate_nesting(model: Any, guide: Any, **arguments: Any) -> int:
    """Return the depth of the plates, from one run of each program that draws nothing global.

    Pyro's validation checks the shape of every site here, once. Values that are not finite are left
    to the training loop: what it says of them counts for nothing.

    Raises:
        ValueError: if the posterior of the first batch is not finite, or the program has no bound.
    """
    log_q = _check_posterior(guide, arguments)
    refusal: Exception | None = None
    try:
        traces = probed(model, guide, arguments)
    except Exception as error:  # of any distribution or plate
        refusal = error
        with pyro.validation_enabled(False):
            traces = probed(model, guide, arguments)
    check_bound(guide, *traces)
    _check_log_probs(model, traces[1], log_q)
    _warn_of_counts(model, traces[1], arguments.get("sample_weight"))
    sites = [site for trace in traces for site in trace.nodes.values() if site["type"] == "sample"]
    if refusal is not None and all(_is_valid(site) for site in sites):
        raise refusal
    depths = [
        -frame.dim  # type: ignore[operator]
        for site in sites
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max(depths, default=0)


def _warn_of_counts(model: Any, trace: Trace, sample_weight: Tensor | None) -> None:
    """Warn of weights that count rows alike which the program masks or scales by itself."""
    site: Any = trace.nodes.get(model.site("x"))
    counting = any(getattr(part, "update", None) == "counts" for part in model.weights.modules())
    if site is None or not counting:
        return
    mask, scale = site["mask"], site["scale"]
    if sample_weight is None:
        own = mask is not None or (isinstance(scale, Tensor) and scale.numel() > 1)
    else:
        counted = sample_weight > 0
        own = mask is None or not torch.equal(*torch.broadcast_tensors(mask, counted))
    if own:
        warn(
            "the program masks or scales rows by itself, and weights in closed form count all rows "
            "alike; take LearnedWeights(K, 'gradient'), or pass sample_weight"
        )


def _is_valid(site: Any) -> bool:
    """Return whether the value of a traced site is finite, in the support, and has a density."""
    value, support = site["value"], getattr(site["fn"], "support", None)
    if not isinstance(value, Tensor) or not bool(value.isfinite().all()):
        return False
    if bool(site["log_prob"].isnan().any()):
        return False
    return support is None or is_plate(site) or bool(support.check(value).all())


def _check_log_probs(model: Any, trace: Trace, log_q: Tensor) -> None:
    """Refuse log-probabilities of several precisions, which Pyro cannot sum.

    Raises:
        ValueError: if there are.
    """
    sites = {name: trace.nodes.get(model.site(name)) for name in ("c", "x")}
    kinds = {f"site {name}": site["log_prob"].dtype for name, site in sites.items() if site}
    kinds["posterior"] = log_q.dtype
    mixed = torch.is_autocast_enabled(log_q.device.type)
    if len(set(kinds.values())) > 1 and not mixed:
        found = ", ".join(f"{name} in {kind}" for name, kind in kinds.items())
        raise ValueError(
            f"log-probabilities have several precisions, {found}; let bank, weights and guide "
            "return numbers of the dtype of their parameters"
        )


def _check_posterior(guide: Any, arguments: dict[str, Any]) -> Tensor:
    """Return log q(c|x) of the first batch.

    Raises:
        ValueError: if it is not finite.
    """
    with local_seed(0), torch.no_grad(), unregistered():
        log_q = guide.log_posterior(arguments["x"], arguments.get("y"), arguments.get("given"))
    if log_q.isnan().any():
        raise ValueError(
            "the guide's posterior of the first batch is not finite: its parameters are not, "
            "or the rows are out of its reach; look at vmonf.guide.log_q(x)"
        )
    return log_q  # type: ignore[no-any-return]


def probed(model: Any, guide: Any, arguments: dict[str, Any]) -> tuple[Trace, Trace]:
    """Return the traces of guide and model from one run that draws nothing global."""
    with local_seed(0), torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(**arguments)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(**arguments)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
    return guide_trace, model_trace
