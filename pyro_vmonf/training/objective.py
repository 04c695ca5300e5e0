"""The ELBO of model and guide, term by term, on a short road and on the road of Pyro."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import floating_buffer
from pyro_vmonf.contracts import optional
from pyro_vmonf.guides import PyroGuide
from pyro_vmonf.program import Enumerate, contracted, enumerated_dim, total_of, unregistered
from pyro_vmonf.training.bounds import Site, max_plate_nesting, sample_sites
from pyro_vmonf.training.direct import direct_terms, is_plain, takes_part
from pyro_vmonf.training.losses import is_plain_loss, prepared, value_of
from pyro_vmonf.training.streams import kept

GUARDED_ROWS = 64  # rows of the first batch on which the two roads are compared


class EnumeratedELBO(TraceEnum_ELBO):
    r"""``TraceEnum_ELBO`` for programs whose one discrete latent is c, told apart by its terms.

    .. math::
        \sum_n \sum_c q(c|x_n) \big(\log p(x_n|c) + \log\pi_c - \log q(c|x_n)\big) + \dots

    The sites are traced and enumerated as there, so value and gradient are the same. A single sum
    over c needs none of the general contraction, and it reads no values. It also runs under
    ``torch.vmap``, several restarts at a time.

    Raises:
        OtherProgram: in ``differentiable_loss``, if the program has another structure.
    """

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        guide_trace, model_trace = self.traces(model, guide, *args, **kwargs)
        check_structure(model_trace, guide_trace)
        return -torch.stack(list(_terms(model_trace, guide_trace).values())).sum()

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the terms whose sum is the ELBO, by name; the structure is not checked."""
        guide_trace, model_trace = self.traces(model, guide, *args, **kwargs)
        return _terms(model_trace, guide_trace)

    def traces(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Trace, Trace]:
        """Return the traces of guide and model, with their log-densities."""
        first = -1 - self.max_plate_nesting
        guide = Enumerate(first_available_dim=first)(guide)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        replayed = poutine.replay(Enumerate()(model), trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        for trace in (prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)):
            trace.compute_log_prob()
        return guide_trace, model_trace


class OtherProgram(ValueError):
    """The program is not one sum over c."""


class Objective(nn.Module):
    """The ELBO of model and guide as one module, whose call returns its terms per row.

    Arguments:
        model, guide: the pair.
        nesting: the depth of their plates.
        reason: the reason for the long road, ``TraceEnum_ELBO`` on the whole program; empty for a
            short road.
        direct: sum by :func:`~pyro_vmonf.training.direct.direct_terms`, and not from the sites.
            :meth:`prepare_` finds all three.
        loss: another objective, in place of the ELBO.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        nesting: int = 1,
        reason: str = "",
        direct: bool = False,
        loss: Any = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.loss = loss
        self._take(nesting, reason, direct)

    def _take(self, nesting: int, reason: str, direct: bool) -> None:
        self.reason = reason
        self.direct = direct
        self.elbo = EnumeratedELBO(max_plate_nesting=nesting)
        self.long = TraceEnum_ELBO(max_plate_nesting=nesting)

    def prepare_(self, arguments: dict[str, Any], fast: bool = True) -> None:
        """Find the depth of the plates and the road, from the first batch.

        Arguments:
            arguments: of the call.
            fast: take the short road where it is the same.

        Raises:
            ValueError: if the program has no bound, Pyro refuses it, or a part of the guide knows
                other rows.
        """
        for part in self.guide.modules():
            check = optional(part, "check_rows", lambda x, index: None)
            check(arguments["x"], arguments.get("index"))
        with evaluating(self.model), evaluating(self.guide):
            nesting = max_plate_nesting(self.model, self.guide, **arguments)
        reason, direct = "asked for by fast=False", False
        if self.loss is not None:
            with evaluating(self.model), evaluating(self.guide), unregistered():
                self.loss = prepared(self.loss, self.model, self.guide, nesting, arguments)
        elif isinstance(self.guide, PyroGuide):
            reason = "the guide is a Pyro program of its own"
            _check_evidence(self.model, self.guide, nesting, arguments)
        elif fast:
            direct = is_plain(self.model, self.guide)
            with pyro.validation_enabled(False), torch.enable_grad():
                reason = road(self.model, self.guide, nesting, arguments, direct)
                if reason and direct:
                    direct = False
                    reason = road(self.model, self.guide, nesting, arguments)
        self._take(nesting, reason, direct)

    def compare_(self, arguments: dict[str, Any]) -> str:
        """Leave a short road whose value is not that of ``TraceEnum_ELBO``, and return the reason.

        Arguments:
            arguments: of a batch.
        """
        if self.reason:
            return ""
        with evaluating(self), unregistered(), torch.no_grad(), kept(self) as put_back:
            with local_seed(0):
                terms = torch.stack(list(self(**arguments).values())).double()
            put_back()
            with local_seed(0):
                long = -self.long.loss(self.model, self.guide, **arguments)
        rounding = 1e3 * torch.finfo(floating_buffer(self.model).dtype).eps
        gap = float((terms.sum() - long).abs())
        if not (math.isfinite(gap) and gap > rounding * float(terms.abs().sum())):
            return ""
        reason = f"the value is {long:.6g} and the short road gives {float(terms.sum()):.6g}"
        self._take(self.elbo.max_plate_nesting, reason, False)
        return reason

    @property
    def road(self) -> str:
        """The objective that runs, as the history says it."""
        if self.loss is not None:
            return f"{type(self.loss).__name__}: asked for by loss="
        return f"TraceEnum_ELBO: {self.reason}" if self.reason else "short"

    def set_step_(self, step: int) -> None:
        """Move the terms of the guide along their schedules."""
        self.guide.set_step_(step)  # type: ignore[operator]

    def forward(self, **arguments: Any) -> dict[str, Tensor]:
        if self.loss is not None and not is_plain_loss(self.loss):
            return {"objective": value_of(self.loss, self.model, self.guide, arguments)}
        if self.direct and self.guide.sums_directly():  # type: ignore[operator]
            return direct_terms(self.model, self.guide, **arguments)
        if not self.reason:
            return self.elbo.terms(self.model, self.guide, **arguments)
        total, parts = contracted(self.long, self.model, self.guide, arguments)
        terms: dict[str, Tensor] = {}
        for name, site, sign, value in parts:
            key = _key(name, site, sign)
            terms[key] = terms.get(key, 0.0) + sign * value
        terms["entropy"] = total - sum(value.detach() for value in terms.values())
        return {name: v if name == "entropy" else v.detach() for name, v in terms.items()}


def _check_evidence(
    model: nn.Module, guide: nn.Module, nesting: int, arguments: dict[str, Any]
) -> None:
    """Refuse a guide that believes in components which ``y`` rules out.

    Raises:
        ValueError: if it does.
    """
    if arguments.get("y") is None:
        return

    def is_finite(**changed: Any) -> bool:
        with evaluating(model), evaluating(guide), local_seed(0), unregistered(), torch.no_grad():
            loss = elbo.loss(model, guide, **{**arguments, **changed})
        return math.isfinite(loss)

    elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
    with pyro.validation_enabled(False):
        ruled_out = not is_finite() and is_finite(y=None)
    if ruled_out:
        raise ValueError(
            "the guide's c has a share of components that y rules out, so the ELBO is minus "
            "infinity; add log p(y|c) to its logits, pyro_vmonf.program.with_evidence(log_q, y)"
        )


def _key(name: str, site: Site, sign: int) -> str:
    """Return the name in the history of a site of the model (+1) or of the guide (−1)."""
    own = name.rsplit(".", 1)[-1]
    names = {"x": "log_likelihood", "c": "log_prior"}
    key: str = site["infer"].get("term", names.get(own, own) if sign > 0 else own)
    return key


def check_structure(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse a program that is not one sum over c.

    Raises:
        OtherProgram: if there is another latent, another sum, or a mask or plate inside the sum.
    """
    sites = sample_sites(model_trace, guide_trace)
    drawn = {name for name, _, sign in sites if sign < 0}
    for name, site, sign in sites:
        latent = not site["is_observed"] and enumerated_dim(site) is None
        if sign < 0 and latent and not site["fn"].has_rsample:
            raise OtherProgram(f"the guide draws {name!r} without a reparametrised gradient")
    enumerated = [
        (name, site, sign)
        for name, site, sign in sites
        if enumerated_dim(site) is not None and not (sign > 0 and name in drawn)
    ]
    if not enumerated:
        raise OtherProgram("nothing is left to enumerate, the density of the rows has summed c out")
    if len(enumerated) > 1:
        raise OtherProgram(f"{len(enumerated)} sites are enumerated: one is expected")
    [(_, c, sign)] = enumerated
    if sign > 0:  # a sum inside of the logarithm
        dim = enumerated_dim(c)
        assert dim is not None
        for name, site, _ in sites:
            if site["log_prob"].dim() < -dim:
                continue
            plates = {frame.name for frame in site["cond_indep_stack"]}
            if plates != {frame.name for frame in c["cond_indep_stack"]}:
                raise OtherProgram(f"{name!r} lies in other plates than the sum over c")
            if site["mask"] is not None or not _same(site["scale"], c["scale"]):
                raise OtherProgram(f"{name!r} has a mask or a scale of its own")


def _same(a: Any, b: Any) -> bool:
    return bool(torch.equal(torch.as_tensor(a), torch.as_tensor(b)))


def _terms(model_trace: Trace, guide_trace: Trace) -> dict[str, Tensor]:
    sites = sample_sites(model_trace, guide_trace)
    # The guide's c if it has one, else the model's.
    c = [s for _, s, _ in sites if enumerated_dim(s) is not None][-1]
    dim = enumerated_dim(c)
    assert dim is not None

    def depends(site: Site) -> bool:
        return site["log_prob"].dim() >= -dim

    if any(c is site for _, site, sign in sites if sign < 0):
        log_q = c["unscaled_log_prob"]
    else:  # the exact posterior takes the place of q
        parts = [s["unscaled_log_prob"] for _, s, _ in sites if depends(s)]
        log_q = torch.stack(torch.broadcast_tensors(*parts)).sum(0).log_softmax(dim)
    q = log_q.exp()

    def expected(value: Tensor) -> Tensor:
        # A component that is impossible counts nothing and gives no gradient.
        return (q * torch.where(takes_part(q, [value]), value, torch.zeros_like(q))).sum()

    terms: dict[str, Tensor] = {}
    for name, site, sign in sites:
        if site is c and sign < 0:
            continue
        value = expected(site["log_prob"]) if depends(site) else site["log_prob"].sum()
        key = _key(name, site, sign)
        terms[key] = terms.get(key, 0.0) + sign * value
    mask = 1.0 if c["mask"] is None else c["mask"]
    terms["entropy"] = -expected(log_q * c["scale"] * mask)
    return terms


def road(
    model: nn.Module,
    guide: nn.Module,
    nesting: int,
    arguments: dict[str, Any],
    direct: bool = False,
) -> str:
    """Return the reason why a fit needs ``TraceEnum_ELBO``; empty if the short road is the same.

    Structure, value and gradient are compared on copies in float64, on some rows of the first
    batch, to 1e-9.

    Arguments:
        model, guide, nesting: of the fit.
        arguments: of the first batch.
        direct: the short road is the direct one.

    Raises:
        ValueError: if the program has no bound.
    """
    some = first_rows(arguments, GUARDED_ROWS)
    some = {name: _as_float64(value) for name, value in some.items()}
    try:
        both = nn.ModuleList([model, guide])
        pair = copy.deepcopy(both, _known(both)).double().train()
        pair[1].bind_(pair[0])  # type: ignore[operator]
        state = [*pair.parameters(), *pair.buffers()]
        before = [value.detach().clone() for value in state]
        with unregistered(), kept(pair) as put_back:
            short, own = _value_and_gradient(pair, nesting, some, direct=direct)
            with torch.no_grad():  # the rows of the short road may have been counted
                for value, first in zip(state, before, strict=True):
                    value.copy_(first)
            put_back()
            again = {**some, "x": some["x"].clone()}  # rows that have not been counted
            long, theirs = _value_and_gradient(pair, nesting, again, "compared")
    except OtherProgram as difference:
        # Pyro refuses some programs: it does so here. In ``eval()`` nothing learns from the rows.
        with evaluating(model), evaluating(guide), torch.no_grad(), local_seed(0):
            total_of(TraceEnum_ELBO(max_plate_nesting=nesting), model, guide, arguments)
        return str(difference)
    except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:
        return f"the two roads could not be compared in float64: {error}".splitlines()[0]
    if not torch.allclose(short, long, rtol=1e-9, atol=1e-9, equal_nan=True):
        return f"the value is {float(long):.6g} and the short road gives {float(short):.6g}"
    for mine, other in zip(own, theirs, strict=True):
        scale = max(1.0, float(other.abs().max()) if other.numel() else 1.0)
        if not torch.allclose(mine, other, rtol=1e-9, atol=1e-9 * scale, equal_nan=True):
            return "the gradients of the two roads differ"
    return ""


def _known(module: nn.Module) -> dict[int, Any]:
    """Return a memo for ``deepcopy``, which takes long over parameters and empty hooks."""
    memo: dict[int, Any] = {
        id(value): OrderedDict()
        for part in module.modules()
        for value in vars(part).values()
        if type(value) is OrderedDict and not value
    }
    plain = [p for p in module.parameters() if type(p) is nn.Parameter]
    copies = {id(p): nn.Parameter(p.detach().double().clone(), p.requires_grad) for p in plain}
    return memo | copies


def _value_and_gradient(
    pair: nn.ModuleList,
    nesting: int,
    arguments: dict[str, Any],
    reason: str = "",
    direct: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Return the ELBO of model and guide on one road, and its gradient.

    Raises:
        OtherProgram: on the short road, if the structure is another one.
        ValueError: if the program has no bound.
    """
    objective = Objective(pair[0], pair[1], nesting, reason, direct)
    with local_seed(0):
        if reason:
            value = total_of(objective.long, pair[0], pair[1], arguments)
        elif direct:
            value = torch.stack(list(objective(**arguments).values())).sum()
        else:
            guide_trace, model_trace = objective.elbo.traces(*pair, **arguments)
            check_structure(model_trace, guide_trace)
            value = torch.stack(list(_terms(model_trace, guide_trace).values())).sum()
    trained = [p for p in objective.parameters() if p.requires_grad]
    if not value.requires_grad:
        return value.detach(), [torch.zeros_like(p) for p in trained]
    gradients = torch.autograd.grad(value, trained, allow_unused=True)
    return value.detach(), [
        torch.zeros_like(p) if g is None else g for p, g in zip(trained, gradients, strict=True)
    ]


def first_rows(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the arguments of the first rows of a batch."""
    rows = len(arguments["x"])
    return {
        name: value[:count] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
        for name, value in arguments.items()
    }


def _as_float64(value: Any) -> Any:
    """Return a tensor of numbers with all the digits there are, and everything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
