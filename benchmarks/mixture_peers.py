"""The training step with mixtures of other libraries of flows: flowjax and torchflows.

Both come with the extra ``bench``. The flows have the family, depth and widths of the
configuration; a coupling has one network for shift and scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.configurations import BINS, BOUND, Configuration
from benchmarks.jax_peers import guide_of, log_q_of, one_thread
from benchmarks.timing import Several

FEW = 10  # steps of one call


def flowjax_step(c: Configuration, device: str) -> Several:
    """Return a call of scanned steps, whose densities are those of flowjax's ``VmapMixture``.

    Raises:
        NotImplementedError: where components have a base of their own.
    """
    if c.gaussians:
        raise NotImplementedError("its components have a standard normal as their base")
    one_thread()
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import StandardNormal, VmapMixture
    from flowjax.flows import coupling_flow, masked_autoregressive_flow
    from paramax import NonTrainable

    base = StandardNormal((c.features,))
    make = masked_autoregressive_flow if c.family == "maf" else coupling_flow
    spline = RationalQuadraticSpline(knots=BINS, interval=BOUND) if c.family == "spline" else None
    options: dict[str, Any] = {"flow_layers": c.blocks, "nn_width": c.hidden, "nn_depth": 1}

    def component(key: Any) -> Any:
        return make(key, base_dist=base, transformer=spline, **options)

    keys = jax.random.split(jax.random.key(0), c.components)
    mixture = VmapMixture(eqx.filter_vmap(component)(keys), jnp.ones(c.components))
    trained, rest = eqx.partition(
        mixture.dist, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable)
    )
    place = jax.devices({"cuda": "gpu"}.get(device, device))[0]
    parameters = jax.device_put({"flows": trained, "guide": guide_of(c)}, place)
    x = jax.device_put(c.batch().numpy(), place)
    optimizer = optax.adam(1e-4)

    def loss(parameters: dict[str, Any]) -> Any:
        flows = eqx.combine(parameters["flows"], rest)
        log_prob = eqx.filter_vmap(lambda flow: flow.log_prob(x))(flows)
        log_q = log_q_of(parameters["guide"], x.T)
        return (jnp.exp(log_q) * (log_q - log_prob)).sum(0).mean()

    def step(carry: Any, _: Any) -> Any:
        parameters, state = carry
        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=FEW))
    kept = [(parameters, optimizer.init(parameters))]

    def call() -> None:
        kept[0], value = run(kept[0])
        value.block_until_ready()

    return Several(call, FEW)


class TorchflowsFlow(nn.Module):
    """torchflows' flow, of which its ``FlowMixture`` scores one after the other."""

    def __init__(self, c: Configuration) -> None:
        super().__init__()
        from torchflows.bijections.finite.autoregressive import architectures
        from torchflows.flows import Flow

        kinds: dict[str, Callable[..., Any]] = {
            "affine": architectures.RealNVP,
            "spline": architectures.CouplingRQNSF,
            "maf": architectures.MAF,
        }
        options: dict[str, Any] = {"conditioner_kwargs": {"n_hidden": c.hidden}}
        if c.family != "maf":
            options["conditioner_kwargs"]["nonlinearity"] = nn.ReLU
        if c.family == "spline":
            options["transformer_kwargs"] = {"n_bins": BINS, "boundary": BOUND}
        self.flow = Flow(kinds[c.family](c.features, n_layers=c.blocks, **options))

    def forward(self, x: Tensor) -> Tensor:
        log_prob: Tensor = self.flow.log_prob(x)
        return log_prob
