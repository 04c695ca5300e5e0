r"""Mixtures of whole grey levels: the noise that makes images continuous, and its log-density.

A density on [0, 1) gives the probability of an image of 8-bit levels:

.. math::
    P(\text{image}) = \int_{[0,1)^D} p\big((\text{image} + u)/256\big)\, 256^{-D}\, du
    = \mathrm E_{q(u|\text{image})}\left[\frac{p\big((\text{image} + u)/256\big)}
    {256^{D}\, q(u|\text{image})}\right]

The mean logarithm of one draw is a lower bound on log P. The logarithm of the mean of S draws is a
tighter bound. Bits per dimension are −log₂ P/D. A uniform q and one draw give the usual bits per
dimension of dequantised images.

References:
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models,
    arXiv:1511.01844.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution, Uniform
from pyro.infer import Trace_ELBO
from pyro.nn import pyro_method
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vmonf._utils.contexts import evaluating, left_alone, local_seed, own_store
from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.metrics import bits_per_dim
from pyro_vmonf.program import Program
from pyro_vmonf.training.lanes import Single
from pyro_vmonf.training.plan import Plan, Run
from pyro_vmonf.training.trainer import Trainer
from pyro_vmonf.transforms import AffineImageCoupling, FlowTransform, Squeezed, squeeze
from pyro_vmonf.vmonf import VMoNF

LEVELS = 256


class UniformDequantization(ShownModule):
    """Noise that is uniform on [0, 1) for each pixel of each image.

    To implement another noise, write a module whose call returns its distribution. It has batch
    shape ``(N,)``, the event shape of the images, and ``rsample``.

    Example:
        >>> UniformDequantization()(torch.zeros(7, 1, 8, 8)).event_shape
        torch.Size([1, 8, 8])
    """

    def forward(self, images: Tensor) -> TorchDistribution:
        zeros = torch.zeros_like(images)
        return Uniform(zeros, torch.ones_like(images), validate_args=False).to_event(
            images.dim() - 1
        )


class VariationalDequantization(ShownModule):
    r"""Noise of a flow that depends on the image, :math:`u = \sigma(f(\epsilon; \text{image}))`.

    The flow is a chain of channel-wise couplings at half the resolution. Its first value is near
    :math:`\sigma(1.7\,\epsilon)`, which is almost uniform.

    Arguments:
        image_shape: ``(C, H, W)``, with even height and width.
        couplings: number of couplings.
        channels: width of the networks.
        depth: residual blocks of the networks.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel (2019), Flow++, arXiv:1902.00275.

    Example:
        >>> noise = VariationalDequantization((1, 8, 8), channels=8)(torch.zeros(7, 1, 8, 8))
        >>> u = noise.rsample()
        >>> u.shape, noise.log_prob(u).shape, bool((u > 0).all() and (u < 1).all())
        (torch.Size([7, 1, 8, 8]), torch.Size([7]), True)
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        couplings: int = 4,
        channels: int = 32,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.image_shape = torch.Size(image_shape)
        self.couplings = check_positive("couplings", couplings)
        self.channels = channels
        self.depth = depth
        squeezed = squeeze(torch.empty(self.image_shape)).shape
        self.layers = nn.ModuleList(
            AffineImageCoupling(
                squeezed,
                flip=i % 2 == 1,
                channels=channels,
                blocks=depth,
                context_channels=squeezed[0],
            )
            for i in range(couplings)
        )

    def forward(self, images: Tensor) -> TorchDistribution:
        context = squeeze(images / LEVELS - 0.5)
        chain = Squeezed([layer.condition(context) for layer in self.layers])  # type: ignore[operator]
        # A normal of this scale is nearly the logistic density, which the sigmoid makes uniform.
        base = Normal(torch.zeros_like(images), 1.7, validate_args=False).to_event(3)
        return _Noise(base, chain)


class _Noise(TorchDistribution):
    r"""The distribution of :math:`u = \sigma(f(\epsilon))` for noise of a normal density.

    A draw keeps its log-density. Near 0 and 1 floats are too coarse to give back :math:`\epsilon`,
    and the density of another one would be none of these draws.

    Arguments:
        base: the distribution of ε.
        chain: the transform *f*.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.unit_interval, 3)
    has_rsample = True

    def __init__(self, base: TorchDistribution, chain: FlowTransform) -> None:
        self.base = base
        self.chain = chain
        self.drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> _Noise:
        return _Noise(self.base.expand(batch_shape), self.chain)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        noise = self.base.rsample(torch.Size(sample_shape))
        z, log_det = self.chain.forward_and_log_det(noise)
        number = torch.finfo(z.dtype)
        u = z.sigmoid().clamp(number.tiny, 1 - number.eps)
        self.drawn = u, self.base.log_prob(noise) - log_det - _log_slope(z)
        return u

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, u: Tensor) -> Tensor:
        if self.drawn is not None and u is self.drawn[0]:
            return self.drawn[1]
        z = torch.logit(u, torch.finfo(u.dtype).eps)
        noise, log_det = self.chain.inverse_and_log_det(z)
        return self.base.log_prob(noise) + log_det - _log_slope(z)


def _log_slope(z: Tensor) -> Tensor:
    """Return the log-determinant of the sigmoid at images of logits."""
    slope = nn.functional.logsigmoid(z) + nn.functional.logsigmoid(-z)
    return slope.flatten(-3).sum(-1)


def _pixels(images: Tensor, noise: Tensor) -> Tensor:
    """Return (image + noise)/256, inside the open interval (0, 1) also where floats round."""
    number = torch.finfo(noise.dtype)
    return ((images + noise) / LEVELS).clamp(number.tiny, 1 - number.eps)


class Dequantized(Program):
    r"""A mixture as a Pyro model of images of whole levels, with latent noise.

    The site ``noise`` in plate ``images`` is uniform in ``model`` and q(u|image) in ``guide``. The
    site ``pixels`` is the density of (image + noise)/256 under the mixture.

    Arguments:
        vmonf: a mixture of images in [0, 1).
        dequantization: module from images ``(N, *event_shape)`` of levels, as floats, to the
            distribution q of their noise; by default uniform.

    Example:
        >>> from pyro_vmonf import Flow, FlowMixture, Glow
        >>> from pyro_vmonf.transforms import Logit
        >>> glow = Glow((1, 8, 8), 3, blocks=1, channels=8)
        >>> bank = Flow([*glow.transforms, Logit(event_dim=3)], base=glow.base)
        >>> dequantized = Dequantized(VMoNF(FlowMixture(bank)))
        >>> images = torch.randint(256, (5, 1, 8, 8))
        >>> dequantized.log_prob(images, samples=4).shape
        torch.Size([5])
    """

    def __init__(self, vmonf: VMoNF, dequantization: nn.Module | None = None) -> None:
        super().__init__()
        self.vmonf = vmonf
        self.dequantization = dequantization or UniformDequantization()

    @pyro_method
    def model(
        self, images: Tensor, *, index: Tensor | None = None, size: int | None = None
    ) -> None:
        """Score images of levels ``(B, *event_shape)`` as floats."""
        with pyro.plate("images", size or len(images), subsample=index, dim=-1):
            noise = pyro.sample("noise", UniformDequantization()(images))
            pyro.sample("pixels", self.vmonf.marginal(), obs=_pixels(images, noise))

    @pyro_method
    def guide(
        self, images: Tensor, *, index: Tensor | None = None, size: int | None = None
    ) -> None:
        """Draw the noise of images."""
        with pyro.plate("images", size or len(images), subsample=index, dim=-1):
            pyro.sample("noise", self.dequantization(images))

    def _levels(self, images: Any) -> Tensor:
        like = next(self.vmonf.buffers())
        rows = torch.as_tensor(images, device=like.device)
        event_shape = tuple(self.vmonf.model.event_shape)
        if tuple(rows.shape[1:]) != event_shape:
            raise ValueError(f"images have shape {tuple(rows.shape)}; expected (N, *{event_shape})")
        if not len(rows):
            raise ValueError("images has no rows; pass at least one image")
        if not rows.is_floating_point():
            rows = rows.long()  # torch compares few kinds of unsigned numbers
        if rows.is_floating_point() and not rows.eq(rows.round()).all():
            raise ValueError(
                "images are no whole levels, 0 to 255: pass them before they are dequantised"
            )
        if not (int(rows.min()) >= 0 and int(rows.max()) < LEVELS):
            raise ValueError(
                f"images reach from {int(rows.min())} to {int(rows.max())}; expected 0 to 255"
            )
        return rows.to(torch.get_default_dtype() if not like.is_floating_point() else like.dtype)

    def log_prob(
        self, images: Any, *, samples: int = 1, seed: int | None = None, chunk_size: int = 256
    ) -> Tensor:
        r"""Return a lower bound on log P of each image ``(N,)``, nats.

        Arguments:
            images: levels ``(N, *event_shape)``, 0 to 255.
            samples: importance samples *S* of each image.
            seed: seed of the noise; the global state then stays.
            chunk_size: images evaluated at once.

        Raises:
            ValueError: if the images do not fit.
        """
        check_positive("samples", samples)
        rows, parts = self._levels(images), []
        dimensions = math.prod(self.vmonf.model.event_shape)
        with local_seed(seed), torch.no_grad(), evaluating(self):
            mixture = self.vmonf.model.mixture()
            for chunk in rows.split(check_positive("chunk_size", chunk_size)):
                q = self.dequantization(chunk)
                draws = []
                for _ in range(samples):
                    noise = q.sample()
                    density = mixture.log_prob(_pixels(chunk, noise))
                    draws.append(density - q.log_prob(noise))
                parts.append(torch.stack(draws).logsumexp(0) - math.log(samples))
        return torch.cat(parts) - dimensions * math.log(LEVELS)

    def bits_per_dim(
        self, images: Any, *, samples: int = 1, seed: int | None = None, chunk_size: int = 256
    ) -> float:
        """Return the mean of −log₂ P/D over images, an upper bound; see :meth:`log_prob`."""
        bound = self.log_prob(images, samples=samples, seed=seed, chunk_size=chunk_size)
        return bits_per_dim(bound.mean(), math.prod(self.vmonf.model.event_shape), levels=1)

    def fit(
        self,
        images: Any,
        *,
        steps: int = 1000,
        batch_size: int = 128,
        lr: float = 1e-3,
        flows: bool = False,
        seed: int | None = None,
        progress: bool = True,
    ) -> list[float]:
        """Train the noise by the ELBO, and return the bits per dimension of each step.

        Arguments:
            images: levels ``(N, *event_shape)``, 0 to 255.
            steps: training steps.
            batch_size: images of one step.
            lr: learning rate of Adam.
            flows: train the mixture as well.
            seed: seed of the order of the rows and of each draw.
            progress: show a progress bar.

        Raises:
            ValueError: if the images do not fit, or no parameter is left to train.
            FloatingPointError: if too many steps are not finite.
        """
        rows = self._levels(images)
        dimensions = math.prod(self.vmonf.model.event_shape)
        trained = [*self.dequantization.parameters(), *(self.vmonf.parameters() if flows else ())]
        if not trained:
            raise ValueError(
                "uniform noise has no parameters; pass a VariationalDequantization, or flows=True"
            )
        batch = min(check_positive("batch_size", batch_size), len(rows))
        loss = DequantizationLoss(self, flows)
        optimizer = torch.optim.Adam(trained, lr=lr)
        run = Run(RandomRows(rows, batch), torch.Generator())  # type: ignore[arg-type]
        plan = Plan(epochs=check_positive("steps", steps), title="dequantization" * progress)
        with own_store(), local_seed(seed):
            lanes = Single(loss, 100.0, trained)
            [history] = Trainer(lanes, [run], optimizer, None, plan).run()
        if run.failure:
            raise FloatingPointError(run.failure)
        return [bits_per_dim(torch.tensor(elbo), dimensions, LEVELS) for elbo in history.elbo]


class DequantizationLoss(nn.Module):
    """The ELBO of noise and mixture as the objective of a trainer."""

    def __init__(self, dequantized: Dequantized, flows: bool) -> None:
        super().__init__()
        self.dequantized = dequantized
        self.flows = flows  # whether the mixture trains as well

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        model, guide = self.dequantized.model, self.dequantized.guide
        as_it_is = nullcontext() if self.flows else left_alone(self.dequantized.vmonf)
        with as_it_is:
            return {"elbo": -Trace_ELBO().differentiable_loss(model, guide, x) / len(x)}


@dataclass
class RandomRows:
    """Rows drawn with replacement: one batch an epoch."""

    rows: Tensor
    batch_size: int
    batches: int = 1
    generators: tuple[torch.Generator, ...] = ()

    def epoch(self, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Return one batch; the draws are those of the local seed."""
        yield {"x": self.rows[torch.randint(len(self.rows), (self.batch_size,))]}
