"""A fitted mixture as ArviZ's ``InferenceData``."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_vmonf._version import __version__
from pyro_vmonf.checks import check_evidence, check_rows, check_unconditional, floating_buffer
from pyro_vmonf.guides import SoftmaxGuide
from pyro_vmonf.vmonf import VMoNF

if TYPE_CHECKING:
    from arviz import InferenceData

NOTE = (
    "One draw, a point estimate: these are in-sample scores. az.waic returns their sum and az.loo "
    "has no draws to reweight, so neither is leave-one-out. Compare models by the log-density of "
    "held-out rows, vmonf.log_prob(x_test).mean()."
)


def to_inference_data(
    vmonf: VMoNF, x: Any, y: Any = None, *, exact: bool = False, chunk_size: int = 8192
) -> InferenceData:
    """Return posterior, pointwise log-likelihood and data as ArviZ groups, with one chain and draw.

    Groups: ``posterior`` holds ``responsibilities`` (chain, draw, row, component) and ``weights``
    (chain, draw, component); ``log_likelihood`` holds ``x``, the marginal log-density (chain, draw,
    row); ``observed_data`` holds ``x`` and, if given, ``y``. An image's dimensions are
    ``feature_0``, ``feature_1`` and so on.

    Arguments:
        vmonf: the fitted pair.
        x: rows ``(N, *event_shape)``, in raw units.
        y: evidence of the rows, as in ``fit``: it enters the responsibilities.
        exact: responsibilities by Bayes' rule, in place of the guide's.
        chunk_size: rows evaluated at once.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> data = to_inference_data(VMoNF(FlowMixture(RealNVP(2, 3))), torch.randn(7, 2))
        >>> dict(data.posterior.sizes)
        {'chain': 1, 'draw': 1, 'row': 7, 'component': 3}
        >>> data.log_likelihood["x"].dims
        ('chain', 'draw', 'row')
    """
    check_unconditional("to_inference_data", vmonf.model.context_features)
    like = floating_buffer(vmonf)
    x = check_rows(x, vmonf.model.event_shape, like)
    event_shape, components = x.shape[1:], vmonf.model.num_components
    features = [f"feature_{i}" for i in range(len(event_shape))]
    features = ["feature"] if len(features) == 1 else features
    responsibilities = vmonf.predict_proba(x, y, exact=exact, chunk_size=chunk_size)
    log_prob = vmonf.log_prob(x, chunk_size=chunk_size)
    weights = vmonf.model.mixture().log_weights.exp()
    groups: dict[str, Any] = {
        "posterior": {"responsibilities": _draw(responsibilities), "weights": _draw(weights)},
        "log_likelihood": {"x": _draw(log_prob)},
        "observed_data": {"x": x.cpu().numpy()},
    }
    dims = {"responsibilities": ["row", "component"], "weights": ["component"]}
    if y is not None:
        y = check_evidence(y, len(x), components, like)
        groups["observed_data"]["y"] = y.cpu().numpy()
        dims["y"] = ["row", "component"][: y.dim()]
    sizes = {
        "row": len(x),
        "component": components,
        **dict(zip(features, event_shape, strict=True)),
    }
    by_guide = isinstance(vmonf.guide, SoftmaxGuide) and not exact
    attrs = {
        "inference_library": "pyro_vmonf",
        "inference_library_version": __version__,
        "responsibilities": "guide" if by_guide else "exact posterior",
    }
    with warnings.catch_warnings():
        # It announces its next major version once a day, at import.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz.from_dict(
        **groups,
        coords={name: range(size) for name, size in sizes.items()},
        # The rows of x and their log-densities share a name but not their dimensions.
        dims=dims | {"x": ["row", *features]},
        attrs=attrs,
        log_likelihood_attrs={"note": NOTE},
    )


def _draw(value: Tensor) -> Any:
    """Return a tensor as an array with the dimensions chain and draw in front."""
    return value.detach().cpu().numpy()[None, None]
