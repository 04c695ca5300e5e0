"""Labelled sets drawn from random mixtures of many shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vmonf._utils.validation import check_positive

Array = np.ndarray[Any, Any]
if TYPE_CHECKING:  # the name alone would import numpy.random
    Generator = np.random.Generator
Shape = Callable[["Generator", int], Array]
FEWEST = 15  # rows of a cluster
STEPS = 60  # of a cluster on its way to the others
FARTHEST = 1.0  # gap between components


def _blob(rng: Generator, rows: int) -> Array:
    """A Gaussian, up to three times as long as wide."""
    return rng.normal(size=(rows, 2)) * [1.0, rng.uniform(0.33, 1.0)]


def _patch(rng: Generator, rows: int) -> Array:
    """A rectangle of one density, up to four times as long as wide."""
    return rng.uniform(-1.5, 1.5, size=(rows, 2)) * [1.0, rng.uniform(0.25, 1.0)]


def _bent(rng: Generator, rows: int) -> Array:
    """A Gaussian whose second coordinate is moved by the square of the first."""
    z = rng.normal(size=(rows, 2))
    return np.stack((z[:, 0], 0.3 * z[:, 1] + rng.uniform(0.4, 1.0) * (z[:, 0] ** 2 - 1)), 1)


def _filament(rng: Generator, rows: int) -> Array:
    """A thin curve whose direction turns at a rate that changes along it."""
    t = np.linspace(0, 1, 400)
    angle = rng.uniform(-4.5, 4.5) * t + rng.uniform(-3, 3) * t**2
    path = np.cumsum(np.stack((np.cos(angle), np.sin(angle)), 1), 0) * rng.uniform(3, 7) / len(t)
    along = rng.uniform(0, len(t) - 1, rows)
    curve = np.stack([np.interp(along, np.arange(len(t)), path[:, d]) for d in range(2)], 1)
    return curve - path.mean(0) + rng.uniform(0.04, 0.12) * rng.normal(size=(rows, 2))


def _ring(rng: Generator, rows: int) -> Array:
    """A circle or ellipse with radial noise."""
    angle = rng.uniform(0, 2 * np.pi, rows)
    radius = 1.3 + rng.uniform(0.03, 0.12) * rng.normal(size=rows)
    circle = radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)
    return circle * [1.0, rng.uniform(0.6, 1.0)]


PLANE: dict[str, Shape] = {
    "blob": _blob,
    "patch": _patch,
    "bent": _bent,
    "filament": _filament,
    "ring": _ring,
}
SHAPES = (*PLANE, "nested")


def random_mixture(
    seed: int | None = None,
    *,
    rows: int | None = None,
    features: int | None = None,
    components: int | None = None,
    shapes: Sequence[str] = SHAPES,
    overlap: float | None = None,
    noise: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a labelled set from a random mixture, for tests of methods and choices of constants.

    Each component is a noise that a random map gives a shape: a Gaussian (``"blob"``), a rectangle
    (``"patch"``), a bent Gaussian (``"bent"``), a curve (``"filament"``), a circle (``"ring"``), or
    a shell around another component (``"nested"``). It is scaled, turned, and moved towards the
    others from a random direction, until more than a share ``overlap`` of its rows is closer to
    them than some spacings of the rows. Beyond two features a shape in the plane is thickened and
    turned. Arguments that are missing are drawn as well.

    Arguments:
        seed: seed of the draw; the global state stays.
        rows: number of rows *N*; 200 to 3,000 by default.
        features: number of features *D*; 2 to 10 by default, two in half of the draws.
        components: number of components *K*; 2 to 10 by default. Their shares differ.
        shapes: names of the shapes to draw from.
        overlap: share of a component's rows that touch others; 0 in half of the draws.
        noise: share of rows that are uniform in the box of the others; 0 in half of the draws.

    Returns:
        The rows ``(N, D)``, in random order, and the component ``(N,)`` of each, −1 for noise.

    Raises:
        ValueError: if a shape is unknown, a number or share does not fit, or there are fewer rows
            than 15 a component.

    Example:
        >>> x, c = random_mixture(0, rows=300, features=2, components=4, noise=0.1)
        >>> x.shape, c.unique().tolist(), int((c < 0).sum())
        (torch.Size([300, 2]), [-1, 0, 1, 2, 3], 30)
    """
    if seed is not None:
        check_positive("seed", seed, minimum=0)
    rng = np.random.default_rng(int(torch.randint(2**31, ())) if seed is None else seed)
    unknown = [name for name in shapes if name not in SHAPES]
    if unknown or not shapes:
        raise ValueError(f"shapes are {tuple(shapes)}; expected some of {', '.join(SHAPES)}")
    drawn: dict[str, Any] = {
        "components": int(rng.integers(2, 11)),
        "features": 2 if rng.random() < 0.5 else int(rng.integers(3, 11)),
        "rows": round(float(np.exp(rng.uniform(np.log(200), np.log(3000))))),
        "overlap": float(rng.choice([0.0, rng.uniform(0.0, 0.1)])),
        "noise": float(rng.choice([0.0, rng.uniform(0.0, 0.1)])),
    }
    count = check_positive("components", drawn["components"] if components is None else components)
    width = check_positive("features", drawn["features"] if features is None else features)
    overlap = drawn["overlap"] if overlap is None else overlap
    noise = drawn["noise"] if noise is None else noise
    for name, share in (("overlap", overlap), ("noise", noise)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share}; expected a share of rows, in [0, 1)")
    least = int(np.ceil(FEWEST * count / (1 - noise)))
    size = max(least, drawn["rows"]) if rows is None else check_positive("rows", rows)
    if size < least:
        raise ValueError(f"rows is {size}; expected at least {least} for {count} components")
    far = round(noise * size)
    sizes = FEWEST + rng.multinomial(size - far - FEWEST * count, rng.dirichlet([4.0] * count))
    parts: list[Array] = []
    spacings = rng.uniform(1.5, 6.0)
    for own in sizes:
        parts.append(_placed(rng, str(rng.choice(shapes)), own, width, parts, overlap, spacings))
    x = np.concatenate(parts)
    low, high = x.min(0), x.max(0)
    x = np.concatenate((x, rng.uniform(low, high, size=(far, width))))
    c = np.repeat([*range(count), -1], [*sizes, far])
    order = rng.permutation(size)
    return torch.as_tensor(x[order], dtype=torch.float32), torch.as_tensor(c[order])


def _placed(
    rng: Generator,
    name: str,
    rows: int,
    width: int,
    others: list[Array],
    overlap: float,
    spacings: float,
) -> Array:
    """Return a component that comes as near to the others as the overlap allows."""
    if name == "nested" and not others:
        name = "blob"
    shape = _shell(rng, rows, width) if name == "nested" else _formed(rng, name, rows, width)
    if not others:
        return shape
    everything, spacing = np.concatenate(others), _spacing(shape)
    reach = FARTHEST + np.linalg.norm(everything, axis=1).max()
    if name == "nested":
        centre = others[rng.integers(len(others))].mean(0)
        radii = np.linspace(2.5 * reach, 0.0, STEPS, endpoint=False)
        steps = [(centre + radius * shape, radius * spacing) for radius in radii]
    else:
        way = rng.normal(size=width)
        way *= (reach + np.linalg.norm(shape, axis=1).max()) / np.linalg.norm(way)
        steps = [(shape + part * way, spacing) for part in np.linspace(1, 0, STEPS)]
    return _last_apart(steps, everything, max(map(_spacing, others)), spacings, overlap)


def _last_apart(
    steps: list[tuple[Array, float]],
    others: Array,
    spacing: float,
    spacings: float,
    overlap: float,
) -> Array:
    """Return the last step before too many rows are within some spacings of the others."""
    from scipy.spatial import cKDTree

    tree, kept = cKDTree(others), steps[0][0]
    for step, own in steps[1:]:
        gap = min(FARTHEST, spacings * max(spacing, own))
        if np.isfinite(tree.query(step, distance_upper_bound=gap)[0]).mean() > overlap:
            break
        kept = step
    return kept


def _formed(rng: Generator, name: str, rows: int, width: int) -> Array:
    """Return a shape of the plane in all features, scaled and turned."""
    plane = PLANE[name](rng, rows)
    thick = rng.uniform(0.3, 1.0, width) if name == "blob" else rng.uniform(0.03, 0.3, width)
    shape = thick * rng.normal(size=(rows, width))
    shape[:, :2] = plane[:, :width]
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return np.asarray(rng.uniform(0.5, 1.5) * shape @ turn)


def _shell(rng: Generator, rows: int, width: int) -> Array:
    """Return a sphere of radius one with radial noise."""
    way = rng.normal(size=(rows, width))
    radius = 1.0 + rng.uniform(0.02, 0.08) * rng.normal(size=(rows, 1))
    return np.asarray(radius * way / np.linalg.norm(way, axis=1, keepdims=True))


def _spacing(x: Array) -> float:
    """Return the median distance of a row to its nearest one."""
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(x).query(x, k=2)[0][:, 1]))
