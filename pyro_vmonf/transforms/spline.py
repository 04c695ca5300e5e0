"""Monotone splines of rational quadratics, and the gradient of their inverse in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Box:
    """The square in which a spline is not the identity.

    Arguments:
        bins: number of pieces.
        bound: *B* of the square :math:`[-B, B]^2`.
        smallest_bin: the least share of a piece in the width and in the height.
        smallest_slope: at a knot.
    """

    bins: int
    bound: float
    smallest_bin: float
    smallest_slope: float

    @property
    def room(self) -> float:
        """The length that the parameters share out, in the units of the square."""
        return 2 * self.bound * (1 - self.smallest_bin * self.bins)

    @property
    def offset(self) -> float:
        """The shift at which a parameter of zero gives slope 1, that of the tails."""
        return math.log(math.expm1(1 - self.smallest_slope))


@dataclass(frozen=True)
class Piece:
    """The piece of each value, with what its gradient needs.

    Arguments:
        shares: of the pieces in width and height, ``(*, 2, bins, N)``.
        before, here: one where a piece is before that of the value, or is that one;
            ``(*, bins, N)``.
        z0, x0: lower knot.
        width, height: of the piece.
        d0, d1: slopes at its ends.
    """

    shares: Tensor
    before: Tensor
    here: Tensor
    z0: Tensor
    x0: Tensor
    width: Tensor
    height: Tensor
    d0: Tensor
    d1: Tensor


@dataclass(frozen=True)
class Point:
    r"""The place of each value in its piece, a share *t* of the width.

    With the chord *s* between the knots, :math:`u = t (1 - t)` and
    :math:`E = d_0 + d_1 - 2 s`:

    .. math::
        x = x_0 + h \frac{s t^2 + d_0 u}{D}, \quad D = s + E u, \quad
        \frac{dx}{dz} = \frac{s^2 M}{D^2}, \quad M = d_1 t^2 + 2 s u + d_0 (1 - t)^2.

    Arguments:
        t: the share.
        rest: 1 - t.
        u, chord, bend, d, m: *u*, *s*, *E*, *D* and *M*.
    """

    t: Tensor
    rest: Tensor
    u: Tensor
    chord: Tensor
    bend: Tensor
    d: Tensor
    m: Tensor

    def log_slope(self) -> Tensor:
        """Return the log of dx/dz."""
        return torch.sub(self.m.log(), (self.d / self.chord).log(), alpha=2)


def piece_of(value: Tensor, theta: Tensor, box: Box, *, by_height: bool) -> Piece:
    """Return the piece of each value.

    Arguments:
        value: ``(*, N)``, inside of the box.
        theta: parameters ``(*, 3 bins - 1, N)``: widths, heights, slopes at the inner knots.
        box: of the spline.
        by_height: whether a value is an output of the spline.
    """
    bins = box.bins
    shares = theta[..., : 2 * bins, :].unflatten(-2, (2, bins)).softmax(-2)
    sizes = shares * box.room + 2 * box.bound * box.smallest_bin
    one = torch.ones_like(value).unsqueeze(-2)
    inner = F.softplus(theta[..., 2 * bins :, :] + box.offset) + box.smallest_slope
    slopes = torch.cat((one, inner, one), -2)
    with torch.no_grad():  # the number of the piece has no gradient
        edges = sizes[..., int(by_height), :-1, :].cumsum(-2) - box.bound
        past = value.unsqueeze(-2) >= edges
        steps = torch.cat((one, past.to(one.dtype), torch.zeros_like(one)), -2)
        before = steps[..., 1:, :]
        here = steps[..., :-1, :] - before
    # Masked sums replace a gather, because their gradient is a product and no scatter.
    z0, x0 = ((sizes * before.unsqueeze(-3)).sum(-2) - box.bound).unbind(-2)
    width, height = (sizes * here.unsqueeze(-3)).sum(-2).unbind(-2)
    d0 = (slopes[..., :-1, :] * here).sum(-2)
    d1 = (slopes[..., 1:, :] * here).sum(-2)
    return Piece(shares, before, here, z0, x0, width, height, d0, d1)


def point_at(t: Tensor, piece: Piece, chord: Tensor, bend: Tensor) -> Point:
    """Return the place of values that are a share *t* of the width into their piece."""
    rest = 1 - t
    u = t * rest
    m = piece.d0 * (rest * rest) + piece.d1 * (t * t) + (chord + chord) * u
    return Point(t, rest, u, chord, bend, chord + bend * u, m)


def forward(z: Tensor, theta: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Return the spline's values and the logs of its slopes, ``(*, N)``."""
    inside = z.abs() < box.bound
    safe = z.clamp(-box.bound, box.bound)
    piece = piece_of(safe, theta, box, by_height=False)
    chord = piece.height / piece.width
    bend = torch.sub(piece.d0 + piece.d1, chord, alpha=2)
    t = ((safe - piece.z0) / piece.width).clamp(0, 1)
    point = point_at(t, piece, chord, bend)
    x = piece.x0 + piece.height * (chord * t * t + piece.d0 * point.u) / point.d
    return torch.where(inside, x, z), torch.where(inside, point.log_slope(), 0.0)


def inverse(x: Tensor, theta: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Return the values of the inverse and the logs of its slopes, ``(*, N)``."""
    if torch.compiler.is_compiling():  # the compiler derives the gradient itself
        return _inverse(x, theta, box)[:2]
    z, log_slope, *_ = _Inverse.apply(x, theta, box)
    return z, log_slope


def _inverse(x: Tensor, theta: Tensor, box: Box) -> tuple[Tensor, Tensor, Piece, Point]:
    inside = x.abs() < box.bound
    safe = x.clamp(-box.bound, box.bound)
    piece = piece_of(safe, theta, box, by_height=True)
    chord = piece.height / piece.width
    bend = torch.sub(piece.d0 + piece.d1, chord, alpha=2)
    rise = safe - piece.x0
    bent = rise * bend
    # No fused operation: eager and compiled values round alike, and fall on one side of a kink.
    # The root in [0, 1] of a t² + b t - c, in the form without cancellation: a is positive where b
    # is negative. Rounding can take the discriminant or the root out of range.
    a = piece.height * (chord - piece.d0) + bent
    b = piece.height * piece.d0 - bent
    twice_a, twice_c = a + a, torch.add(rise, rise) * chord
    root = (b * b + twice_a * twice_c).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    falling, far = b < 0, root + b.abs()
    t = torch.where(falling, far, twice_c) / torch.where(falling, twice_a, far)
    point = point_at(t.clamp(0, 1), piece, chord, bend)
    z = torch.where(inside, piece.z0 + point.t * piece.width, x)
    return z, torch.where(inside, -point.log_slope(), 0.0), piece, point


class _Inverse(torch.autograd.Function):
    """The inverse; its gradient is that of an implicit function, and needs no root."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, theta: Tensor, box: Box) -> tuple[Tensor, ...]:
        z, log_slope, piece, point = _inverse(x, theta, box)
        return z, log_slope, *vars(piece).values(), *vars(point).values()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, theta, ctx.box = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, theta, *output[2:])
        ctx.save_for_forward(x, theta, *output[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, theta, piece, point = _saved(ctx.saved_tensors)
        if torch.is_grad_enabled():  # a second derivative follows
            _, _, piece, point = _inverse(x, theta, ctx.box)
        by_z, by_log_slope = (torch.zeros_like(x) if g is None else g for g in grads[:2])
        return *_gradient(x, theta, piece, point, ctx.box, by_z, by_log_slope), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, theta, piece, point = _saved(ctx.saved_tensors)
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        found: list[Tensor | None] = []
        for given in ((one, zero), (zero, one)):  # the rows of the Jacobian
            by_x, by_theta = _gradient(x, theta, piece, point, ctx.box, *given)
            along = zero if tangents[0] is None else by_x * tangents[0]
            if tangents[1] is not None:
                along = along + (by_theta * tangents[1]).sum(-2)
            found.append(along)
        return *found, *[None] * (len(fields(Piece)) + len(fields(Point)))


def _saved(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Piece, Point]:
    x, theta, *parts = tensors
    count = len(fields(Piece))
    return x, theta, Piece(*parts[:count]), Point(*parts[count:])


def _gradient(
    x: Tensor,
    theta: Tensor,
    piece: Piece,
    point: Point,
    box: Box,
    by_z: Tensor,
    by_log_slope: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and theta from those of the inverse and of its log-slope."""
    inside = x.abs() < box.bound
    outside, by_z = by_z, torch.where(inside, by_z, 0.0)
    by_log = torch.where(inside, by_log_slope, 0.0)
    t, rest, u, s, bend, d, m = vars(point).values()
    by_m, by_d = by_log / m, (by_log + by_log) / d
    turn, square = rest - t, t * t
    # The derivative of M by t is twice this.
    half = torch.addcmul(torch.addcmul(piece.d1 * t, s, turn), piece.d0, rest, value=-1)
    by_t = torch.addcmul(by_z * piece.width, by_m, half, value=-2)
    by_t = torch.addcmul(by_t, by_d, bend * turn)
    q = by_t / (s * m)  # x does not change with the parameters: t does, by dt/dx
    n = torch.addcmul(s * square, piece.d0, u)
    un, by_u, q_d = u * n, u * by_d, q * d
    by_x = q_d * d / piece.height
    by_s = q * torch.addcmul(torch.sub(n, un, alpha=2), square, d, value=-1)
    by_s = torch.addcmul(torch.addcdiv(by_s, by_log, s, value=-2), u, by_m, value=-2)
    by_s = by_s + torch.sub(by_d, by_u, alpha=2)
    by_d0 = torch.addcmul(torch.addcmul(by_u, q, un - u * d), rest * rest, by_m, value=-1)
    by_d1 = torch.addcmul(torch.addcmul(by_u, q, un), square, by_m, value=-1)
    by_height = torch.addcdiv(by_s, q_d * n, s, value=-1) / piece.width
    by_width = torch.addcdiv(by_z * t, by_s * s, piece.width, value=-1)
    by_theta = _by_parameters(theta, piece, box, (by_width, by_height, by_z, -by_x, by_d0, by_d1))
    return torch.where(inside, by_x, outside), by_theta


def _by_parameters(theta: Tensor, piece: Piece, box: Box, grads: tuple[Tensor, ...]) -> Tensor:
    """Return the gradient of theta from those of width, height, lower knot and slopes."""
    by_width, by_height, by_z0, by_x0, by_d0, by_d1 = grads
    size = box.room * torch.stack((by_width, by_height), -2).unsqueeze(-2)
    knot = box.room * torch.stack((by_z0, by_x0), -2).unsqueeze(-2)
    by_share = torch.addcmul(size * piece.here.unsqueeze(-3), knot, piece.before.unsqueeze(-3))
    by_share = by_share * piece.shares
    total = by_share.sum(-2, keepdim=True)
    by_sizes = torch.addcmul(by_share, piece.shares, total, value=-1)
    ends = by_d0.unsqueeze(-2) * piece.here[..., 1:, :]
    ends = torch.addcmul(ends, by_d1.unsqueeze(-2), piece.here[..., :-1, :])
    by_slopes = ends * (theta[..., 2 * box.bins :, :] + box.offset).sigmoid()
    return torch.cat((by_sizes.flatten(-3, -2), by_slopes), -2)
