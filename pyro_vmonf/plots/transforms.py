"""The change of variables: the image of the plane under a transform or a flow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure  # noqa: F401 - for the examples
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, Transform

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_positive, check_unconditional, floating_buffer
from pyro_vmonf.contracts import Pair
from pyro_vmonf.distributions.flow import FlowDistribution
from pyro_vmonf.distributions.stacked import StackedDistribution
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.plots.axes import axes_or_new
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.style import styled
from pyro_vmonf.plots.window import Extent, check_extent, model_of, to_numpy
from pyro_vmonf.transforms.base import FlowTransform

Flowing = Pair | FlowMixture | nn.Module | Distribution | Transform | Sequence[Transform]


class _Map:
    """The map from base to data of one component, with its log-determinant.

    Arguments:
        flow: the argument of the figure.
        component: the number of the component.

    Raises:
        ValueError: if the component does not exist, or it has other than two features or no
            transforms.
    """

    def __init__(self, flow: Flowing, component: int) -> None:
        flow = model_of(flow)
        if isinstance(flow, FlowMixture):
            check_unconditional("a figure of its transforms", flow.context_features)
            flow = flow.components()
        if isinstance(flow, nn.Module) and not isinstance(flow, Transform):
            flow = flow()
        self.base: Distribution | None = None
        self.base_component = component
        # The transforms from base to data, with the place of the component in the batch of each.
        self.chain: list[tuple[Transform, int]] = []
        if isinstance(flow, Distribution):
            self._unfold(flow, component)
        else:
            transforms = [flow] if isinstance(flow, Transform) else list(flow)  # type: ignore[arg-type]
            self.chain = [(transform, component) for transform in transforms]
        if not self.chain:
            raise ValueError(
                f"component {component} is a {type(self.base).__name__} without transforms; "
                "plot_density draws densities that are no flows"
            )
        for transform, _ in self.chain:
            features = getattr(transform, "features", 2)
            if features != 2:
                raise ValueError(
                    f"{type(transform).__name__} has {features} features; the figure shows the "
                    "plane: take a transform of 2"
                )

    def _unfold(self, distribution: Distribution, component: int) -> None:
        shape = (*distribution.batch_shape, 1)[: max(len(distribution.batch_shape), 1)]
        if tuple(distribution.event_shape) != (2,) or not 0 <= component < shape[-1]:
            raise ValueError(
                f"component is {component} of a distribution of batch_shape "
                f"{tuple(distribution.batch_shape)} and event_shape "
                f"{tuple(distribution.event_shape)}; expected one of (K,), and event_shape (2,)"
            )
        if isinstance(distribution, FlowDistribution):
            self._unfold(distribution.base, component)
            self.chain += [(transform, component) for transform in distribution.transforms]
        elif isinstance(distribution, StackedDistribution):
            place = component
            for part, size in zip(distribution.parts, distribution.sizes, strict=True):
                if place < size:
                    return self._unfold(part, place)
                place -= size
        else:
            self.base, self.base_component = distribution, component

    @torch.no_grad()
    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image ``(*, 2)`` of points ``(*, 2)``, and their log|det| ``(*)``."""
        modules = [t for t, _ in self.chain if isinstance(t, nn.Module)]
        x = z.reshape(-1, 2).to(floating_buffer(nn.ModuleList(modules)))
        total = x.new_zeros(len(x))
        with ExitStack() as modes:
            for module in modules:
                modes.enter_context(evaluating(module))
            for transform, component in self.chain:
                rows = x.unsqueeze(1)
                if isinstance(transform, FlowTransform):
                    image, log_det = transform.forward_and_log_det(rows)
                else:
                    image = transform(rows)
                    log_det = transform.log_abs_det_jacobian(rows, image)
                    log_det = log_det.sum(-1) if log_det.dim() == rows.dim() else log_det
                x, total = _pick(image, component), total + _pick(log_det, component)
        return x.reshape(z.shape), total.reshape(z.shape[:-1])

    def draw(self, num_samples: int, seed: int | None) -> Tensor:
        """Draw points ``(num_samples, 2)`` of the base, by default a standard normal."""
        base = Independent(Normal(torch.zeros(1, 2), 1.0), 1) if self.base is None else self.base
        place = 0 if self.base is None else self.base_component
        with local_seed(seed), torch.no_grad():
            drawn = base.sample((num_samples,))
        return _pick(drawn.reshape(num_samples, -1, 2), place)


def _pick(values: Tensor, component: int) -> Tensor:
    """Return the values of a component from ``(N, K)``, or from ``(N, 1)``, shared by all."""
    if values.shape[1] == 1:
        return values[:, 0]
    if not 0 <= component < values.shape[1]:
        raise ValueError(f"component is {component}; expected 0 to {values.shape[1] - 1}")
    return values[:, component]


@styled
def plot_transform_grid(
    flow: Flowing,
    *,
    component: int = 0,
    image: bool = True,
    extent: Extent = (-3.0, 3.0, -3.0, 3.0),
    lines: int = 13,
    resolution: int = 120,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the image of a regular grid in the colour of log|det|: the change of variables.

    .. math::
        \log p(h(z)) = \log f_Z(z) - \log|\det \partial h(z)|

    Red cells grow and lower the density. Blue cells shrink and raise it.

    Arguments:
        flow: a transform of the plane, or a sequence of them from base to data; a bank or its
            distribution; a mixture or a pair, in raw units.
        component: the number of the component.
        image: ``False`` draws the grid itself in the same colours.
        extent: left, right, bottom and top of the grid, in base space.
        lines: grid lines in each direction.
        resolution: coloured cells along each side.
        colorbar: draw the scale beside ``ax``.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if there is no such component, it has other than two features, or no transforms.

    Example:
        >>> from pyro_vmonf.transforms import PReLU
        >>> ax = plot_transform_grid(PReLU(2, slope=0.5), ax=Figure().subplots())
        >>> [round(value, 1) for value in ax.dataLim.extents.tolist()]
        [-1.5, -1.5, 3.0, 3.0]
    """
    push = _Map(flow, component)
    check_positive("lines", lines, minimum=2)
    check_positive("resolution", resolution)
    corners, drawn = _grid(check_extent(extent), lines, resolution)
    _, log_det = push((corners[:-1, :-1] + corners[1:, 1:]) / 2)
    if image:
        corners, drawn = push(corners)[0], push(drawn)[0]
    ax = axes_or_new(ax)
    largest = float(log_det.abs().max())
    # A map that keeps volumes has the middle of the scale, despite rounding errors. The factor
    # leaves out the ends of the scale, where the lines are hard to see.
    norm = CenteredNorm(halfrange=1.3 * largest if largest > 1e-3 else 1.0)
    mesh = ax.pcolormesh(
        *to_numpy(corners.movedim(-1, 0)), to_numpy(log_det), cmap="RdBu_r", norm=norm, alpha=0.85
    )
    ax.add_collection(LineCollection(list(to_numpy(drawn)), colors="0.2", linewidths=0.6))
    ax.autoscale_view()
    _label(ax, image)
    if colorbar:
        ax.figure.colorbar(mesh, ax=ax, label=r"$\log\,|\det\,\partial h|$")
    return ax


@styled
def plot_transform_samples(
    flow: Flowing,
    num_samples: int = 2000,
    *,
    component: int = 0,
    image: bool = True,
    seed: int | None = 0,
    size: float = 6.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the image of points of the base, coloured by quadrant (thesis Figures 3.2, 3.3).

    Arguments:
        flow, component: as for :func:`plot_transform_grid`; the base of bare transforms is a
            standard normal.
        num_samples: number of points.
        image: ``False`` draws the points themselves in the same colours.
        seed: seed of the points; the global state stays.
        size: area of a dot.
        ax: the axes; by default those of a new figure.

    Raises:
        ValueError: if there is no such component, it has other than two features, or no transforms.

    Example:
        >>> from pyro_vmonf.transforms import PReLU
        >>> ax = plot_transform_samples(PReLU(2, slope=0.1), 100, ax=Figure().subplots())
        >>> len(ax.collections)
        4
    """
    push = _Map(flow, component)
    z = push.draw(check_positive("num_samples", num_samples), seed)
    points = to_numpy(push(z)[0] if image else z)
    quadrant = to_numpy((z[:, 0] < 0) + 2 * (z[:, 1] < 0))
    ax = axes_or_new(ax)
    # Quadrants are no components, so they have other colours than the first components.
    for k, color in enumerate(component_colors(10)[5:9]):
        across, up = points[quadrant == k].T
        ax.scatter(across, up, s=size, color=color, linewidths=0)
    _label(ax, image)
    return ax


def _grid(extent: Extent, lines: int, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the corners of the cells ``(R + 1, R + 1, 2)`` and the lines ``(L, R + 1, 2)``."""
    left, right, bottom, top = extent
    corner, span = torch.tensor([left, bottom]), torch.tensor([right - left, top - bottom])
    share = torch.linspace(0, 1, resolution + 1)
    up, across = torch.meshgrid(share, share, indexing="ij")
    place, along = torch.meshgrid(torch.linspace(0, 1, lines), share, indexing="ij")
    drawn = torch.cat((torch.stack((place, along), -1), torch.stack((along, place), -1)))
    return corner + span * torch.stack((across, up), -1), corner + span * drawn


def _label(ax: Axes, image: bool) -> None:
    name = "x" if image else "z"
    ax.set(xlabel=f"${name}_1$", ylabel=f"${name}_2$", aspect="equal")
    ax.locator_params(nbins=5)
    ax.locator_params(axis="x", nbins=4)
