"""Other objectives than the plain ELBO: those of Pyro, and an importance-weighted one."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    TraceEnum_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import local_seed, own_filters
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.program import is_plate, registered
from pyro_vmonf.terms import Classification, Term
from pyro_vmonf.training.bounds import probed, sample_sites

ENUMERATING = (TraceEnum_ELBO, TraceTMC_ELBO)


class ImportanceWeightedELBO(TraceEnum_ELBO):
    r"""The importance-weighted bound, with c summed out of the model in each weight.

    .. math::
        E_{\theta_1, \dots, \theta_S \sim q} \log \frac{1}{S} \sum_s
        \frac{p(\theta_s) \prod_n \sum_c p(x_n, c \mid \theta_s)}{q(\theta_s)}

    It grows with *S* from the ELBO to the log-evidence. The latents :math:`\theta` are all that the
    guide draws: random weights, parameters, latents of a user's. The guide leaves c to the model.

    Arguments:
        num_particles: *S*.
        options: of ``TraceEnum_ELBO``, but for ``vectorize_particles``.

    Raises:
        ValueError: if the particles are vectorised. In a call, if the guide draws c or another
            discrete site, or draws anything for a part of the rows: the logarithm of a sum of
            scaled parts bounds nothing.

    References:
        Burda, Grosse, Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.

    Example:
        >>> from pyro.distributions import Dirichlet
        >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
        >>> vmonf = VMoNF(FlowMixture(Gaussian(2, 3), Dirichlet(torch.ones(3))))
        >>> loss = ImportanceWeightedELBO(num_particles=4)
        >>> history = vmonf.fit(torch.randn(20, 2), loss=loss, epochs=1, progress=False)
        >>> history.road
        'ImportanceWeightedELBO: asked for by loss='
    """

    def __init__(self, num_particles: int = 10, **options: Any) -> None:
        if options.get("vectorize_particles"):
            raise ValueError(
                "vectorize_particles is True: one pass has one weight, and the bound needs one of "
                "each particle; leave it out"
            )
        super().__init__(num_particles=check_positive("num_particles", num_particles), **options)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        with torch.no_grad():
            return float(self._loss(model, guide, args, kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._loss(model, guide, args, kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss = self._loss(model, guide, args, kwargs)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _loss(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Tensor:
        log_weights = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            drawn = [
                (name, site)
                for name, site in guide_trace.nodes.items()
                if site["type"] == "sample" and not site["is_observed"] and not is_plate(site)
            ]
            for name, site in drawn:
                if not site["fn"].has_rsample:
                    raise ValueError(
                        f"the guide draws {name!r} without a reparametrised gradient; leave it to "
                        "the model, which sums over c: VMoNF(model), or autoguides of the rest"
                    )
            scaled = [n for n, s in model_trace.nodes.items() if _is_part(s)]
            if drawn and scaled:
                raise ValueError(
                    f"the rows of {scaled[0]!r} are a part of the data and the guide draws "
                    f"{drawn[0][0]!r}: the log of a sum of scaled weights bounds nothing; pass all "
                    "rows at once, batch_size=len(x)"
                )
            log_weights.append(_compute_dice_elbo(model_trace, guide_trace))
        stacked = torch.stack(log_weights)
        return math.log(len(stacked)) - stacked.logsumexp(0)


def _is_part(site: Any) -> bool:
    return site["type"] == "sample" and any(
        frame.full_size not in (None, frame.size) for frame in site["cond_indep_stack"]
    )


def sums_weights(loss: Any) -> bool:
    """Return whether an objective is the logarithm of a sum of weights of all rows at once."""
    several = isinstance(loss, RenyiELBO) and loss.num_particles > 1
    return several or isinstance(loss, ImportanceWeightedELBO | TraceTMC_ELBO)


def is_plain_loss(loss: Any) -> bool:
    """Return whether an objective is the ELBO that ``fit`` tells apart by its terms."""
    return type(loss) is TraceEnum_ELBO and loss.num_particles == 1


def prepared(
    loss: Any, model: nn.Module, guide: nn.Module, nesting: int, arguments: dict[str, Any]
) -> ELBO:
    """Return an objective for a pair, with the depth of its plates.

    Raises:
        TypeError: if it is no objective of Pyro, or one that compiles.
        ValueError: if it would draw a site from its prior, or does not take the pair.
    """
    kind = loss.__name__ if isinstance(loss, type) else type(loss).__name__
    if not isinstance(loss, ELBO) or kind.startswith("Jit"):
        raise TypeError(
            f"loss is {kind}; expected an instance of an ELBO of Pyro, such as "
            "TraceEnum_ELBO(num_particles=2), and none that compiles"
        )
    if isinstance(loss, ReweightedWakeSleep):
        raise TypeError(
            f"{kind} has one loss for the model and another one for the guide, and fit minimises a "
            "single one; take steps of pyro.infer.SVI(vmonf.model, vmonf.guide, optim, loss), or "
            "fit with ImportanceWeightedELBO"
        )
    if not isinstance(loss, ENUMERATING):
        for name in undrawn(model, guide, arguments):
            raise ValueError(
                f"{kind} does not sum over {name!r}, and the guide does not draw it: it would come "
                "from its prior, which is another bound. Take TraceEnum_ELBO, or a guide that "
                f"draws {name!r}, such as a SoftmaxGuide"
            )
    if getattr(guide, "elbo_gradient", 1.0) != 1.0:
        raise ValueError("elbo_gradient is a share of the plain ELBO; leave out loss=, or pass 1")
    if sums_weights(loss) and not isinstance(loss, ImportanceWeightedELBO):
        _check_weights(loss, model, guide, arguments)
    loss = copy.copy(loss)
    loss.max_plate_nesting = nesting + loss.vectorize_particles
    try:
        with local_seed(0), torch.no_grad(), own_filters():
            # c is drawn here, as it is meant to be.
            warnings.filterwarnings("ignore", "(?s).*If you want to enumerate sites")
            loss.loss(model, guide, **arguments)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"{kind} does not take this pair: {error}") from error
    return loss


def _check_weights(
    loss: ELBO, model: nn.Module, guide: nn.Module, arguments: dict[str, Any]
) -> None:
    """Refuse what does not enter the weights that an objective sums as it should.

    Raises:
        ValueError: if there is any.
    """
    kind = type(loss).__name__
    guide_trace, model_trace = probed(model, guide, arguments)
    for name, site, _ in sample_sites(model_trace, guide_trace):
        scale = torch.as_tensor(site["scale"])
        if bool((scale != 1).any()):
            raise ValueError(
                f"{kind} is the logarithm of a sum of weights, in which the site {name!r} counts "
                f"{float(scale.flatten()[0]):.4g} times: this bounds nothing. Pass all rows at "
                "once, batch_size=len(x), without weights; or take TraceEnum_ELBO"
            )
    if not isinstance(loss, TraceTMC_ELBO):
        return
    if arguments.get("y") is not None:
        raise ValueError(f"{kind} has no number where a label rules c out; take TraceEnum_ELBO")
    terms = [part for part in guide.modules() if isinstance(part, Term)]
    if left := [t for t in terms if not isinstance(t, Classification)]:  # which has labels alone
        raise ValueError(
            f"{kind} leaves out what the guide observes, and {type(left[0]).__name__} would not "
            "count; take TraceEnum_ELBO, or a guide without terms"
        )


def undrawn(model: nn.Module, guide: nn.Module, arguments: dict[str, Any]) -> list[str]:
    """Return the discrete latents of the model that the guide does not draw."""
    guide_trace, model_trace = probed(model, guide, arguments)
    return [
        name
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample"
        and not is_plate(site)  # type: ignore[arg-type]
        and not site["is_observed"]
        and getattr(site["fn"], "has_enumerate_support", False)
        and name not in guide_trace.nodes
    ]


def value_of(loss: Any, model: nn.Module, guide: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """Return minus an objective, with its gradient in the parameters of the pair."""
    if not torch.is_grad_enabled():
        return -torch.as_tensor(loss.loss(model, guide, **arguments))
    if hasattr(loss, "differentiable_loss"):
        value: Tensor = loss.differentiable_loss(model, guide, **arguments)
        return -value
    # Some objectives write their gradient into the parameters: it is taken from there.
    trained = [p for part in (model, guide) for p in part.parameters() if p.requires_grad]
    trained = list(dict.fromkeys(trained))
    kept = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    with registered():  # such an objective looks for parameters in the trace
        found = torch.as_tensor(loss.loss_and_grads(model, guide, **arguments))
    value = found.to(trained[0]) if trained else found
    for p, before in zip(trained, kept, strict=True):
        if p.grad is not None:
            value = value + (p.grad * (p - p.detach())).sum()
        p.grad = before
    return -value
