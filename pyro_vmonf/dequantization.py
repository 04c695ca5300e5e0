r"""From 8-bit images to densities and back, with every bit accounted for.

A density of numbers in [0, 1) says how probable an image of whole levels is:

.. math::
    P(\text{image}) = \int_{[0,1)^D} p\big((\text{image} + u)/256\big)\, 256^{-D}\, du
    = \mathrm E_{q(u|\text{image})}\left[\frac{p\big((\text{image} + u)/256\big)}
    {256^{D}\, q(u|\text{image})}\right]

With one draw the mean of its logarithm is a lower bound on log P, with S draws inside of the
logarithm a tighter one, and bits per dimension are −log₂ P/D. With q uniform and one draw this is
the −log₂ p of dequantised images that the literature reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution, Uniform
from pyro.infer import Trace_ELBO
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.repr import ShownModule
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.metrics import bits_per_dim
from pyro_vmonf.training.lanes import Single
from pyro_vmonf.training.trainer import Plan, Run, Trainer
from pyro_vmonf.transforms import AffineImageCoupling, Logit, Squeezed, squeeze
from pyro_vmonf.vmonf import VMoNF

LEVELS = 256


class UniformDequantization(ShownModule):
    """The noise that says nothing: uniform on [0, 1) for each number, whatever the image.

    To implement another, write a module whose call returns a distribution of the noise, of batch
    shape ``(N,)`` and the images' event shape, with ``rsample``.

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
    r"""Noise that a flow chooses for each image, :math:`u = \sigma(f(\epsilon; \text{image}))`.

    The flow is a chain of channel-wise couplings at half the resolution that see the image. It
    begins near :math:`\sigma(1.7\,\epsilon)`, which is close to uniform.

    Arguments:
        image_shape: ``(C, H, W)``, with even height and width.
        couplings: their number.
        channels: width of the networks.
        depth: their residual blocks.

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
        # A logistic density, which the logit makes uniform, is nearly a normal of this scale.
        base = Normal(torch.zeros_like(images), 1.7, validate_args=False).to_event(3)
        return FlowDistribution(base, [chain, _Open()])


class _Open(Logit):
    """The map from the real line to (0, 1), for values that must stay inside in float32."""

    def __init__(self) -> None:
        super().__init__(alpha=0.0, event_dim=3)

    def forward_and_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward_and_log_det(z.clamp(-15.0, 15.0))

    def _call(self, z: Tensor) -> Tensor:
        return self.forward_and_log_det(z)[0].clamp(1e-6, 1 - 2**-16)


class Dequantized(PyroModule):
    r"""A mixture as a model of images of whole levels, with the noise as a latent.

    ``model`` and ``guide`` are a Pyro program, in which the mixture is a distribution like any
    other: site ``noise`` in plate ``images``, uniform in the model and q(u|image) in the guide, and
    ``pixels``, the mixture's density of (image + noise)/256.

    Arguments:
        vmonf: a mixture of images in [0, 1).
        dequantization: module from images ``(N, *event_shape)`` of levels, as floats, to the
            distribution q of their noise; uniform by default.

    Example:
        >>> from pyro_vmonf import Flow, FlowMixture, Glow
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
        """Score images of levels ``(B, *event_shape)``, as floats."""
        with pyro.plate("images", size or len(images), subsample=index, dim=-1):
            noise = pyro.sample("noise", UniformDequantization()(images))
            pyro.sample("pixels", self.vmonf.marginal(), obs=(images + noise) / LEVELS)

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
        if rows.is_floating_point() and not rows.eq(rows.round()).all():
            raise ValueError(
                "images are no whole levels, 0 to 255: pass them before they are dequantised"
            )
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < LEVELS):
            raise ValueError(
                f"images reach from {int(rows.min())} to {int(rows.max())}; expected 0 to 255"
            )
        return rows.to(torch.get_default_dtype() if not like.is_floating_point() else like.dtype)

    def log_prob(
        self, images: Any, *, samples: int = 1, seed: int | None = None, chunk_size: int = 256
    ) -> Tensor:
        r"""Return a lower bound on log P of each image, nats: the log of a mean of ``samples``.

        Arguments:
            images: levels ``(N, *event_shape)``, 0 to 255.
            samples: importance samples *S* of each image.
            seed: of the noise; the global state is then left alone.
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
                    density = mixture.log_prob((chunk + noise) / LEVELS)
                    draws.append(density - q.log_prob(noise))
                parts.append(torch.stack(draws).logsumexp(0) - math.log(samples))
        return torch.cat(parts) - dimensions * math.log(LEVELS)

    def bits_per_dim(
        self, images: Any, *, samples: int = 1, seed: int | None = None, chunk_size: int = 256
    ) -> float:
        """Return −log₂ P per number, the mean over images: an upper bound, by :meth:`log_prob`."""
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
        """Train the noise, by the ELBO of the program, and the mixture with it where wanted.

        Arguments:
            images: levels ``(N, *event_shape)``, 0 to 255.
            steps, batch_size, lr: of Adam.
            flows: train the mixture as well.
            seed: of the order of the rows and of every draw.
            progress: show a progress bar.

        Returns:
            The bound of each step, in bits per dimension.

        Raises:
            ValueError: if the images do not fit, or there is nothing to train.
        """
        rows = self._levels(images)
        dimensions = math.prod(self.vmonf.model.event_shape)
        trained = [*self.dequantization.parameters(), *(self.vmonf.parameters() if flows else ())]
        if not trained:
            raise ValueError(
                "uniform noise has no parameters; pass a VariationalDequantization, or flows=True"
            )
        batch = min(batch_size, len(rows))
        loss = DequantizationLoss(self)
        optimizer = torch.optim.Adam(trained, lr=lr)
        run = Run(RandomRows(rows, batch), torch.Generator())  # type: ignore[arg-type]
        plan = Plan(epochs=check_positive("steps", steps), title="dequantization" * progress)
        with pyro.get_param_store().scope(), local_seed(seed):
            lanes = Single(loss, 100.0, trained)
            [history] = Trainer(lanes, [run], optimizer, None, plan).run()
        if run.failure:
            raise FloatingPointError(run.failure)
        return [bits_per_dim(torch.tensor(elbo), dimensions, LEVELS) for elbo in history.elbo]


class DequantizationLoss(nn.Module):
    """The ELBO of noise and mixture as the objective of a trainer."""

    def __init__(self, dequantized: Dequantized) -> None:
        super().__init__()
        self.dequantized = dequantized

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        model, guide = self.dequantized.model, self.dequantized.guide
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
