"""Checks of one run of a program: its ELBO is a bound, and its plates have a depth."""

from __future__ import annotations

import re
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.distributions.support import is_real, support_of
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
        if name in latent:
            _check_plates(name, site, latent[name])
            _check_support(name, site, latent[name])
            _check_counts(name, site, latent[name], refuse=isinstance(guide, PyroGuide))
        if name not in latent and not site["infer"].get("is_auxiliary"):
            known = "observes" if name in model_trace.nodes else "does not draw"
            raise ValueError(
                f"the guide draws {name!r}, which the model {known}: its entropy is added to the "
                f"ELBO, which then bounds nothing. The model draws {', '.join(map(repr, latent))}: "
                "take the right name, or leave the site out of the guide; without c in the guide, "
                "that is VMoNF(model) with no guide"
            )


PLATE = 'pyro.plate("data", size or len(x), subsample=index)'


def _check_support(name: str, drawn: Site, latent: Site) -> None:
    """Refuse a posterior outside of the prior's support, where log p is minus infinity.

    Raises:
        ValueError: if its value is, or its own support is larger.
    """
    value, support, own = drawn["value"], support_of(latent["fn"]), support_of(drawn["fn"])
    if not bool(torch.as_tensor(value).isfinite().all()):  # the training loop says it
        return
    if _numbers(own) != _numbers(support):
        raise ValueError(
            f"the guide draws {name!r} from {_numbers(own)} numbers, and the model from "
            f"{_numbers(support)}; take one network output, or probability, for each component"
        )
    point = isinstance(getattr(drawn["fn"], "base_dist", drawn["fn"]), Delta)
    wider = is_real(own) and not is_real(support) and not point
    if wider or not bool(support.check(value).all()):
        where = "from all real numbers" if wider else "where the prior has no density"
        raise ValueError(
            f"the guide draws {name!r} {where}, and the prior lives on {support}: the ELBO bounds "
            "nothing. Take a posterior on that support, for example by "
            "dist.TransformedDistribution(Normal(...), torch.distributions.biject_to(support)) or "
            "by an autoguide of Pyro"
        )


def _numbers(support: Any) -> int | None:
    """Return how many whole numbers a support has, if it is a range of them from zero."""
    if not isinstance(support, constraints.integer_interval) or support.lower_bound != 0:
        return None
    return int(torch.as_tensor(support.upper_bound).max()) + 1


def _check_plates(name: str, drawn: Site, latent: Site) -> None:
    """Refuse a discrete site in other plates than the model has it: Pyro sums over others then.

    Raises:
        ValueError: if it is.
    """
    if not support_of(drawn["fn"]).is_discrete:
        return
    mine, theirs = (
        [frame.name for frame in site["cond_indep_stack"] if frame.vectorized]
        for site in (drawn, latent)
    )
    if set(mine) != set(theirs) or drawn["fn"].event_dim != latent["fn"].event_dim:
        raise ValueError(
            f"the guide draws {name!r} in the plates {mine} with {drawn['fn'].event_dim} event "
            f"dimensions, and the model in {theirs} with {latent['fn'].event_dim}: the ELBO "
            f"bounds nothing. Both take {PLATE}"
        )


def _check_counts(name: str, drawn: Site, latent: Site, refuse: bool) -> None:
    """Refuse a site that counts otherwise in the guide than in the model, or warn of it.

    Raises:
        ValueError: if it does and ``refuse`` is true.
    """
    for what, none in (("scale", 1.0), ("mask", True)):
        mine, theirs = (
            torch.as_tensor(none if site[what] is None else site[what]) for site in (drawn, latent)
        )
        mine, theirs = torch.broadcast_tensors(mine, theirs)
        other = ~torch.isclose(mine.double(), theirs.double())
        if not bool(other.any()):
            continue
        said = (
            f"the site {name!r} counts otherwise in the guide than in the model: its {what} is "
            f"{mine[other][0]:.4g} there and {theirs[other][0]:.4g} here, so the ELBO bounds "
            f"nothing. Both take {PLATE}, and the same poutine.scale and poutine.mask; to weigh or "
            "leave out rows, pass sample_weight"
        )
        if refuse:
            raise ValueError(said)
        warn(said)


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
    log_q = _check_posterior(model, guide, arguments)
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
    _warn_of_size(model, traces[1], arguments)
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


def _warn_of_size(model: Any, trace: Trace, arguments: dict[str, Any]) -> None:
    """Warn of a batch whose rows stand for themselves alone, and not for the whole data set."""
    site: Any = trace.nodes.get(model.site("x"))
    size, rows = arguments.get("size"), len(arguments["x"])
    if site is None or size in (None, rows):
        return
    scale = torch.as_tensor(site["scale"])
    weight = arguments.get("sample_weight")
    alone = torch.ones_like(scale) if weight is None else weight.to(scale)
    if alone.shape == scale.shape and torch.allclose(scale, alone):
        warn(
            f"the model counts the {rows} rows of a batch once, and they stand for {size}: the "
            f"objective is too small in the ratio of the two. Take {PLATE}"
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


def _check_posterior(model: Any, guide: Any, arguments: dict[str, Any]) -> Tensor:
    """Return log q(c|x) of the first batch.

    Raises:
        ValueError: if it is not finite, or has another number of components than the model.
    """
    with local_seed(0), torch.no_grad(), unregistered():
        log_q = guide.log_posterior(arguments["x"], arguments.get("y"), arguments.get("given"))
    if log_q.shape[-1] != model.num_components:
        raise ValueError(
            f"the guide gives {log_q.shape[-1]} log-probabilities a row, and the model has "
            f"{model.num_components} components; let its network have one output for each"
        )
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
