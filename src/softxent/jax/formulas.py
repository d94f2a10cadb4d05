"""The operators computed by formula.py with jax.numpy, for platforms without a compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import formula, partials
from ..partials import Partials, times
from .arrays import Array, as_rows, widest
from .call import IGNORED, LARGEST, NUMBERS, OUTSIDE, Call, by_row, off_by_row, special


class Rows:
    """The arguments of a call as formula.py takes them: matrices [R, C] and numbers [R] of the widest type."""

    def __init__(self, call: Call, temperature: float, cap: float) -> None:
        wide, rows = widest(), call.rows
        self.shape = rows
        self.z, self.temperature, self.slope, self.bend = transformed(call.z, temperature, cap)
        self.off = None if isinstance(call.off, float) else as_rows(jnp.broadcast_to(off_by_row(call), call.z.shape).astype(wide), 1)
        given = jnp.broadcast_to(by_row(call.label, rows), rows).reshape(-1)
        self.ignored = given == special(IGNORED, given.dtype)
        largest = (self.z if self.off is None or call.off.ndim == 1 else self.off).argmax(axis=1).astype(given.dtype)
        self.label = as_rows(jnp.where(given == special(LARGEST, given.dtype), largest, given), 0)
        numbers = [jnp.broadcast_to(by_row(x, rows), rows).reshape(-1).astype(wide) for x in call[-len(NUMBERS) :]]
        numbers[0] = jnp.where(given == special(OUTSIDE, given.dtype), jnp.nan, numbers[0])
        self.numbers = formula.Numbers(*(as_rows(jnp.where(self.ignored, 0.0, x), 0) for x in numbers))
        self.any = sum(abs(x) for x in self.numbers) != 0

    def sums(self) -> Partials:
        return formula.partials(self.z, self.label, self.off, self.temperature)


def transformed(z: Array, temperature: float, cap: float) -> tuple[Array, float, Any, Any]:
    """Return the scores, with a temperature that float32 has, and the first and second derivative of their quotient."""
    scores, slope, bend = formula.transformed(as_rows(z.astype(widest()), 1), temperature, cap)
    beyond = 2.0 ** max(0, math.frexp(temperature)[1] - 100)
    return scores / beyond, temperature / beyond, slope, bend


def outputs(x: Partials, rows: Rows) -> list[Array]:
    y, r, q, *_ = rows.numbers
    return [jnp.where(rows.ignored, jnp.zeros_like(found), found).reshape(rows.shape) for found in formula.outputs(x, y, r, q)]


def rows(call: Call, temperature: float, cap: float, more: bool) -> list[Array]:
    of = Rows(call, temperature, cap)
    return outputs(of.sums(), of)[: 5 if more else 2]


def gradient(call: Call, temperature: float, cap: float) -> Array:
    of = Rows(call, temperature, cap)
    return _gradient(of, of.sums(), call.z)


def _gradient(of: Rows, x: Partials, like: Array) -> Array:
    dz: Array = formula.gradient(of.z, x, of.label, formula.coefficients(x, of.numbers), of.off)
    return times(dz, of.slope).reshape(like.shape).astype(like.dtype)


def curvature(call: Call, temperature: float, cap: float) -> list[Array]:
    """Return the derivative of the gradient along v, and the four numbers of the rows that the kernel gives."""
    of, v = Rows(call, temperature, cap), as_rows(call.v.astype(widest()), 1)
    x, direction = of.sums(), times(v, of.slope)
    y = partials.along(x, formula.tangents(of.z, direction, of.label, of.off, of.temperature))
    hv = times(formula.hessian(of.z, direction, of.label, x, y, of.numbers), of.slope)
    if cap != math.inf:
        hv = hv + times(formula.gradient(of.z, x, of.label, formula.coefficients(x, of.numbers), of.off), times(v, of.bend))
    at_label = jnp.where(formula.at_label(of.z, of.label), y.logprob[:, None], 0.0).sum(axis=1)
    product: Array = jnp.where((~of.ignored & of.any)[:, None], hv, 0.0).reshape(call.z.shape).astype(call.z.dtype)
    return [product, *(jnp.where(of.ignored, 0.0, found).reshape(of.shape) for found in (y.lse, at_label, y.off, y.entropy))]


def product(call: Call, temperature: float, cap: float) -> Array:
    return curvature(call, temperature, cap)[0]


def log_softmax(call: Call, temperature: float, cap: float) -> Array:
    """Return y log softmax(z)."""
    z, temperature, *_ = transformed(call.z, temperature, cap)
    x = formula.partials(z, z.argmax(axis=1), None, temperature)  # the largest logit is kept apart, so that a value near 0 keeps its digits
    scale = -as_rows(jnp.broadcast_to(by_row(call.y, call.rows), call.rows).astype(z.dtype), 0)
    return times(scale[:, None], formula.surprisal(z, x)).reshape(call.z.shape).astype(call.z.dtype)


def along(call: Call, temperature: float, cap: float, more: bool) -> list[Array]:
    _, *sums = curvature(call, temperature, cap)
    return loss_along(call, rows(bare(call), temperature, cap, False)[1], *sums)[: 4 if more else 2]


def bare(call: Call) -> Call:
    """Return the call for lse alone."""
    return call._replace(v=0.0, off=0.0, y=0.0, r=0.0, q=0.0)


def loss_along(call: Call, lse: Array, dlse: Array, dlogprob: Array, by_off: Array, dentropy: Array) -> list[Array]:
    """Return the derivatives of loss, lse, log-probability and entropy, from the numbers of the rows that `curvature` gives."""
    y, r, q = (by_row(x, call.rows) for x in (call.y, call.r, call.q))
    y = jnp.where(by_row(call.special(OUTSIDE), call.rows), jnp.nan, y)
    dloss = jnp.where(q == 0, 0.0, q * lse * dlse) - y * dlogprob - r * by_off
    return [dloss.astype(dlse.dtype), dlse, dlogprob, dentropy]


def mean(call: Call, temperature: float, cap: float, kept: int) -> Array:
    """Return the losses divided by `total`, added up over the axes of the rows except for the first `kept` ones."""
    return averaged(rows(call, temperature, cap, False)[0], call.total, kept)


def averaged(losses: Array, total: Array, kept: int) -> Array:
    """Return the losses, added up over all but the first `kept` axes, divided by their total; where that is 0, NaN as a constant."""
    sums = losses.sum(tuple(range(kept, losses.ndim)))
    total = by_row(total, sums.shape)
    return jnp.where(total == 0, np.nan, sums / jnp.where(total == 0, 1, total).astype(sums.dtype))


def mean_and_gradient(call: Call, temperature: float, cap: float, kept: int) -> list[Array]:
    return [mean(call, temperature, cap, kept), gradient(call._replace(g=inverse(call.total)), temperature, cap)]


def inverse(total: Array) -> Array:
    """Return 1 / total, and 0 where the total is 0."""
    wide: Any = total.astype(widest())
    return jnp.where(wide == 0, 0.0, 1 / jnp.where(wide == 0, 1, wide))


# ---- shards of the classes ----


def forward(call: Call, temperature: float, cap: float) -> list[Array]:
    """Return the five outputs of the rows, and their sums over the classes of the call, [7, *rows]."""
    of = Rows(call, temperature, cap)
    x = of.sums()
    return [*outputs(x, of), jnp.stack([part.reshape(of.shape) for part in x[:-1]])]


def merge(sums: Array, pairs: Sequence[tuple[int, int]], call: Call, temperature: float) -> list[Array]:
    """Merge sums [K, 7, *rows] over different classes in this order. Returns the five outputs of the rows, and their sums."""
    of = Rows(call._replace(z=call.z[..., :1], off=0.0), temperature, np.inf)
    each = [_sums(shard, of) for shard in sums]
    for i, j in pairs:
        each[i] = partials.merge(each[i], each[j])
    return [*outputs(each[0], of), jnp.stack([part.reshape(of.shape) for part in each[0][:-1]])]


def backward(call: Call, sums: Array, temperature: float, cap: float) -> Array:
    """Return the gradient from the sums over all classes."""
    of = Rows(call, temperature, cap)
    return _gradient(of, _sums(sums, of), call.z)


def _sums(sums: Array, of: Rows) -> Partials:
    return Partials(*(as_rows(part, 0) for part in sums))._replace(temperature=of.temperature)
