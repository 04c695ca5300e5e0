"""The ELBO of a mixture and its guide, term by term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.program import Enumerate, enumerated_dim, is_plate

Site = dict[str, Any]


class EnumeratedELBO(TraceEnum_ELBO):
    r"""``TraceEnum_ELBO`` for programs whose one discrete latent is c, told apart by its terms.

    .. math::
        \sum_n \sum_c q(c|x_n) \big(\log p(x_n|c) + \log\pi_c - \log q(c|x_n)\big) + \dots

    The sites are traced and enumerated as there, so value and gradient are the same; a single sum
    over c needs none of the general contraction, nor its look at the values. Hence it also runs
    under ``torch.vmap``, several restarts at a time.

    Raises:
        ValueError: if the guide draws a site whose gradient would need a score function.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return -torch.stack(list(self.terms(model, guide, *args, **kwargs).values())).sum()

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the terms whose sum is the ELBO, by name."""
        first = -1 - self.max_plate_nesting
        guide = Enumerate(first_available_dim=first)(guide)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(Enumerate()(model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        for trace in (prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)):
            trace.compute_log_prob()
        return _terms(model_trace, guide_trace)


class Objective(nn.Module):
    """Model and guide as one module, whose call returns the ELBO's terms.

    Arguments:
        model, guide: the pair.
        nesting: how deep their plates nest.
    """

    def __init__(self, model: nn.Module, guide: nn.Module, nesting: int) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.elbo = EnumeratedELBO(max_plate_nesting=nesting)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return self.elbo.terms(self.model, self.guide, *args, **kwargs)


def _terms(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    sites: list[tuple[str, Site, int]] = [
        (name.rsplit(".", 1)[-1], site, sign)  # type: ignore[misc]
        for trace, sign in ((model_trace, 1), (guide_trace, -1))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_plate(site)  # type: ignore[arg-type]
    ]
    for name, site, sign in sites:
        drawn = not site["is_observed"] and enumerated_dim(site) is None
        if sign < 0 and drawn and not site["fn"].has_rsample:
            raise ValueError(
                f"the guide draws {name!r} from a {type(site['fn']).__name__}, which has no "
                "reparametrised gradient; use SVI with TraceEnum_ELBO, or another guide for it"
            )
    # The guide's c if it has one, else the model's.
    c = [s for _, s, _ in sites if enumerated_dim(s) is not None][-1]
    dim = enumerated_dim(c)
    assert dim is not None

    def depends(site: Site) -> bool:
        return site["log_prob"].dim() >= -dim

    if any(c is site for _, site, sign in sites if sign < 0):
        log_q = c["unscaled_log_prob"]
    else:  # summed out: the exact posterior takes the place of q
        parts = [s["unscaled_log_prob"] for _, s, _ in sites if depends(s)]
        log_q = torch.stack(torch.broadcast_tensors(*parts)).sum(0).log_softmax(dim)
    q = log_q.exp()
    possible = q > 0

    def expected(value: Tensor) -> Tensor:
        # What is impossible counts nothing, and no gradient comes from it either.
        return (q * torch.where(possible, value, torch.zeros_like(q))).sum()

    names = {"x": "log_likelihood", "c": "log_prior"}
    terms: dict[str, Tensor] = {}
    for name, site, sign in sites:
        if site is c and sign < 0:
            continue
        value = expected(site["log_prob"]) if depends(site) else site["log_prob"].sum()
        key = site["infer"].get("term", names.get(name, name) if sign > 0 else name)
        terms[key] = terms.get(key, 0.0) + sign * value
    mask = 1.0 if c["mask"] is None else c["mask"]
    terms["entropy"] = -expected(log_q * c["scale"] * mask)
    return terms


def max_plate_nesting(
    model: Callable[..., Any], guide: Callable[..., Any], **arguments: Any
) -> int:
    """Return how deep the plates nest, from one run of each that draws nothing global.

    With Pyro's validation on, the shape of every site is checked here, once. Values that are not
    finite are no matter of shapes, and are the training loop's affair.
    """
    try:
        return _nesting(model, guide, arguments)
    except ValueError as error:
        said = ("found invalid values", "to be within the support")
        if not any(words in str(error) for words in said):
            raise
    with pyro.validation_enabled(False):
        return _nesting(model, guide, arguments)


def _nesting(
    model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
) -> int:
    with local_seed(0), torch.no_grad(), poutine.block():
        try:
            guide_trace = poutine.trace(guide).get_trace(**arguments)
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise ValueError(
                "the guide's posterior of the first batch is not finite: its parameters are not, "
                "or the rows are out of its reach; look at vmonf.guide.log_q(x)"
            ) from error
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(**arguments)
        for trace in (guide_trace, model_trace):
            trace.compute_log_prob()
    return max(
        -frame.dim  # type: ignore[operator]
        for trace in (guide_trace, model_trace)
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )
