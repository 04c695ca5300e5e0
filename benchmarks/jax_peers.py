"""The same training step in JAX, written by hand for one architecture: jitted, and scanned.

The arithmetic is that of ``benchmarks.limit``, rows last. ``jax`` and ``optax`` come with the extra
``bench``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.configurations import BINS, BOUND, Configuration
from benchmarks.timing import Several

LOG_TWO_PI = math.log(2 * math.pi)
SCANNED = 50  # steps of one call

Step = Callable[[], Any]


def jax_step(c: Configuration, device: str, *, scanned: bool = False) -> Step:
    """Return a step, or a call of :data:`SCANNED` steps.

    Raises:
        NotImplementedError: for families that are not written here.
    """
    if c.family == "maf":
        raise NotImplementedError("the JAX forms are written for couplings")
    one_thread()
    import jax
    import optax

    jax.config.update("jax_default_matmul_precision", "float32")  # as torch has it
    place = jax.devices({"cuda": "gpu"}.get(device, device))[0]
    parameters = jax.device_put(parameters_of(c), place)
    optimizer = optax.adam(1e-4)
    state = optimizer.init(parameters)
    x = jax.device_put(c.batch().numpy(), place)

    def step(carry: Any, _: Any) -> Any:
        parameters, state = carry
        value, gradient = jax.value_and_grad(lambda p: loss(c, p, x))(parameters)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(parameters, updates), state), value

    if scanned:
        run = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=SCANNED))
    else:
        run = jax.jit(lambda carry: step(carry, None))
    kept = [(parameters, state)]

    def call() -> None:
        kept[0], value = run(kept[0])
        value.block_until_ready()

    return Several(call, SCANNED) if scanned else call


def one_thread() -> None:
    """Let XLA take as many threads as torch does, where that is one."""
    if torch.get_num_threads() == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ.setdefault("XLA_FLAGS", flags)


def parameters_of(c: Configuration) -> dict[str, Any]:
    """Return the parameters of flows, base and guide."""
    import jax
    import jax.numpy as jnp

    keys = iter(jax.random.split(jax.random.key(0), 100))

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return scale * jax.random.normal(next(keys), shape)

    half, k, h = c.features // 2, c.components, c.hidden
    networks = 2 if c.family == "affine" else 1
    outputs = half * (1 if c.family == "affine" else 3 * BINS - 1)
    blocks = [
        {
            "w1": normal(k, networks * h, half, scale=half**-0.5),
            "b1": jnp.zeros((k, networks * h, 1)),
            "w2": normal(k, networks, outputs, h, scale=0.1 / h),
            "b2": jnp.zeros((k, networks, outputs, 1)),
        }
        for _ in range(c.blocks)
    ]
    parameters = {"blocks": blocks, "guide": guide_of(c)}
    if c.gaussians:
        m, d = c.gaussians, c.features
        parameters["base"] = {
            "logits": jnp.zeros((k, m)),
            "loc": normal(k, m, d),
            "log_scale": jnp.zeros((k, m, d)),
            "lower": jnp.zeros((k, m, d, d)),
        }
    return parameters


def guide_of(c: Configuration) -> list[dict[str, Any]]:
    """Return the parameters of the guide."""
    import jax
    import jax.numpy as jnp

    keys = iter(jax.random.split(jax.random.key(1), 100))
    return [
        {"w": m**-0.5 * jax.random.normal(next(keys), (n, m)), "b": jnp.zeros((n, 1))}
        for m, n in itertools.pairwise([c.features, *c.guide_hidden, c.components])
    ]


def log_q_of(guide: list[dict[str, Any]], x: Any) -> Any:
    """Return the log-probabilities ``(K, N)`` of the guide for columns ``(D, N)``."""
    import jax

    for i, layer in enumerate(guide):
        x = layer["w"] @ (jax.nn.relu(x) if i else x) + layer["b"]
    return jax.nn.log_softmax(x, 0)


def loss(c: Configuration, parameters: dict[str, Any], x: Any) -> Any:
    """Return the negative ELBO per row."""
    import jax.numpy as jnp

    log_q = log_q_of(parameters["guide"], x.T)
    log_prob = log_density(c, parameters, x.T)
    return (jnp.exp(log_q) * (log_q - log_prob)).sum(0).mean()


def log_density(c: Configuration, parameters: dict[str, Any], x: Any) -> Any:
    """Return the log-densities ``(K, N)`` of columns ``(D, N)``."""
    import jax
    import jax.numpy as jnp

    move = affine if c.family == "affine" else spline
    networks = 2 if c.family == "affine" else 1
    passive = jnp.broadcast_to(x[0::2], (c.components, *x[0::2].shape))
    active = jnp.broadcast_to(x[1::2], passive.shape)
    total = 0.0
    for block in parameters["blocks"]:
        units = jax.nn.relu(block["w1"] @ passive + block["b1"])
        units = units.reshape(c.components, networks, c.hidden, -1)
        moved, log_slope = move(active, block["w2"] @ units + block["b2"])
        total = total + log_slope
        passive, active = moved, passive
    if not c.gaussians:
        squares = (passive**2).sum(1) + (active**2).sum(1)
        return total - 0.5 * (squares + c.features * LOG_TWO_PI)
    return total + mixture_base(parameters["base"], jnp.concatenate((passive, active), 1))


def mixture_base(base: dict[str, Any], z: Any) -> Any:
    """Return the log-density ``(K, N)`` of mixtures of Gaussians at columns ``(K, D, N)``."""
    import jax
    import jax.numpy as jnp

    scale = jnp.exp(base["log_scale"])
    whitening = jnp.tril(base["lower"], -1) + scale[..., None] * jnp.eye(z.shape[1])
    moved = jnp.einsum("kmij,kjn->kmin", whitening, z)
    moved = moved - (whitening @ base["loc"][..., None])
    constants = jax.nn.log_softmax(base["logits"], -1) + base["log_scale"].sum(-1)
    constants = constants - 0.5 * z.shape[1] * LOG_TWO_PI
    return jax.nn.logsumexp(constants[..., None] - 0.5 * (moved**2).sum(2), 1)


def affine(x: Any, theta: Any) -> Any:
    """Move x towards the base."""
    import jax.numpy as jnp

    raw, shift = theta[:, 0], theta[:, 1]
    scale = BOUND * jnp.tanh(raw / BOUND)
    return (x - shift) * jnp.exp(-scale), -scale.sum(1)


def spline(x: Any, theta: Any) -> Any:
    """Move x towards the base by rational-quadratic splines."""
    import jax
    import jax.numpy as jnp

    k, half, n = x.shape
    theta = theta[:, 0].reshape(k, half, -1, n)
    widths, heights, slopes = jnp.split(theta, (BINS, 2 * BINS), 2)
    inside = jnp.abs(x) < BOUND
    safe = jnp.clip(x, -BOUND, BOUND)
    widths = 2 * BOUND * (1e-3 + (1 - 1e-3 * BINS) * jax.nn.softmax(widths, 2))
    heights = 2 * BOUND * (1e-3 + (1 - 1e-3 * BINS) * jax.nn.softmax(heights, 2))
    slopes = 1e-3 + jax.nn.softplus(slopes + math.log(math.expm1(1 - 1e-3)))
    past = safe[:, :, None] >= jnp.cumsum(heights[:, :, :-1], 2) - BOUND
    past = jax.lax.stop_gradient(past.astype(x.dtype))
    edge = jnp.ones_like(past[:, :, :1])
    here = jnp.concatenate((edge, past), 2) - jnp.concatenate((past, 0 * edge), 2)
    z0 = (widths[:, :, :-1] * past).sum(2) - BOUND
    x0 = (heights[:, :, :-1] * past).sum(2) - BOUND
    width, height = (widths * here).sum(2), (heights * here).sum(2)
    d0 = (slopes * here[:, :, 1:]).sum(2) + here[:, :, 0]
    d1 = (slopes * here[:, :, :-1]).sum(2) + here[:, :, -1]
    mean = height / width
    rise = safe - x0
    bend = rise * (d0 + d1 - 2 * mean)
    a, b, c = height * (mean - d0) + bend, height * d0 - bend, -mean * rise
    t = -2 * c / (b + jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 1e-30)))
    s = t * (1 - t)
    numerator = d1 * t * t + 2 * mean * s + d0 * (1 - t) * (1 - t)
    log_slope = 2 * jnp.log(1 + (d0 + d1 - 2 * mean) * s / mean) - jnp.log(numerator)
    return jnp.where(inside, z0 + t * width, x), jnp.where(inside, log_slope, 0.0).sum(1)
