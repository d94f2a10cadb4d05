"""What rounding may do to a loss and a gradient: bounds derived from the steps of a kernel, not from trial.

`u` is the unit roundoff of the type computed in (2^-24 for float32 and narrower, 2^-53 for float64), `v` = 2^-53 that of a
row's results, C the number of classes; products of two such numbers are covered by the factor `_PRODUCTS`. The steps of a row
are the same on every backend; where backends differ, the worse one counts:

    e_k = exp(z_k - m)      within one ulp: 2u. The shift of a block is exact: a power of two, or the difference of two numbers within a
                            factor 2 (Sterbenz). What is rounded, in float64, is the distance of blocks, or all of z_k - m: v |z_k - m|
    s   = sum of e_k        groups of 4 in the compute type, as a tree: 2u; then float64 additions, `depth(C)` of them on one path: v each
    nll, miss, over, lse    one float64 formula each, of s, m and z_t
    dz_k                    e_k * scale - r off_k: scale, r, the product and the difference are each rounded once: u
    dz_t                    one float64 formula, rounded once
    storage                 one rounding
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .. import formula
from ..partials import Array, finish, lse, times

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}  # the smallest subnormal
_V = UNIT["float64"]
_PRODUCTS = 1.001


def unit(dtype: npt.DTypeLike) -> float:
    """The unit roundoff of what is computed in for logits of this dtype."""
    return UNIT["float64" if np.dtype(dtype) == np.float64 else "float32"]


def depth(classes: int) -> int:
    """Float64 additions that one term of a row's sum goes through, at most.

    A block of 4096 columns: 32 columns an addition at most, 128 in a row, and the lanes' tree: 6. Merging blocks: 4 roundings each (an
    exponential, a product, a sum). NumPy's pairwise sum is shallower, but for few columns: up to 32.
    """
    blocks = -(-classes // 4096)
    return min(classes, 32) + -(-min(classes, 4096) // 32) + (0 if blocks == 1 else 4 * blocks)


def sum_bound(dtype: npt.DTypeLike, classes: int) -> float:
    """|computed s - s| / s <= 4u + v (depth(C) + ln C): exp 2u, the tree of four 2u, the float64 additions.

    v ln C is for the rounded distances: one costs e_k the relative v (m - z_k), hence the sum v times the mean of m - z_k under softmax,
    which is entropy - (lse - m) <= ln C.
    """
    return _PRODUCTS * (4 * unit(dtype) + _V * (depth(classes) + math.log(classes)))


def loss_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """The relative error of nll and of miss = 1 - yhat_t, and the absolute one of lse - m, at a distance `gap` = |m - z_t|.

    a = (m - z_t) + log s is in error by sum_bound (log turns relative into absolute), v gap for the difference, 2v ln C for the logarithm,
    v (gap + ln C) for the sum. No condition number makes it more: d ln nll / da = sigmoid(a) / softplus(a) <= 1, d ln miss / da =
    1 - sigmoid(a) <= 1, d(lse - m) / d log s = sigmoid(a) <= 1. Evaluating log1p(e^a) and its like costs 8v more, weights included.
    """
    return sum_bound(dtype, classes) + _V * (2 * gap + 3 * math.log(classes) + 8)


def grad_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """The error of an entry of the gradient, relative to g (mass yhat_k + truth_k), before storage: 5u + 2 loss_bound + 2v gap.

    Away from the label: e_k 2u, scale u, the product u, the difference u; twice loss_bound for 1 / S and for the mass; the distance
    |z_k - lse| <= gap, in up to two rounded steps. The label's entry: see `row_bounds`.
    """
    return 5 * unit(dtype) + 2 * loss_bound(dtype, classes, gap) + 2 * _V * gap


def row_bounds(
    z: Array, label: Array, truth: Array, off: Array | None
) -> tuple[Array, Array]:  # z [R, C] in its dtype, label, truth, off: as the kernels take them -> [R], [R, C]
    """The largest |error| of each row's loss and of each entry of its gradient; NaN or inf where the true value is none.

    loss: y nll + r (sum off_k (m - z_k) + o over) + q/2 lse^2. The first two are in error by loss_bound of themselves; where loss_bound is
        the absolute error (over, lse), by loss_bound (r o + q |lse|).
    dz:   grad_bound of M yhat_k, and 2u of r off_k (r rounded, the difference rounded). M holds all parts of the mass by their size, and
        1 + |lse| for lse, whose error is absolute.
    dz_t: g (rest - M miss), rest a part of M. The errors of rest, and of a in miss (d miss / da = miss yhat_t), count with the factor
        1 - miss = yhat_t: loss_bound of yhat_t (rest + M). Evaluating it: 12v of rest + M miss.
    """
    dtype, classes = z.dtype, z.shape[1]
    u, store, tiny = unit(dtype), UNIT[dtype.name], TINY[dtype.name]
    z64, o64 = np.asarray(z, np.float64), None if off is None else np.asarray(off, np.float64)
    y, r, q, g = np.abs(truth)
    with np.errstate(invalid="ignore", over="ignore"):
        x = formula.partials(z64, label, None if o64 is None else np.abs(o64))
        nll, miss, over = finish(x)
        level = np.abs(lse(x))
        gap = np.abs(x.m - x.zt)
        e = np.asarray(loss_bound(dtype, classes, np.where(np.isfinite(gap), gap, 0.0)))
        size = times(y + r * x.wt, nll) + times(r, x.d + times(x.o, over)) + times(q, level**2 / 2)
        loss = e * (size + r * x.o + times(q, level))
        rest = r * x.o + times(q, 1 + level)
        mass = y + r * x.wt + rest
        yhat = formula.softmax(z64, x)
        relative = (5 * u + 2 * e)[:, None] + 2 * _V * np.abs(z64 - lse(x)[:, None])
        dz = times(yhat, relative * mass[:, None]) + (0.0 if o64 is None else 2 * u * r[:, None] * np.abs(o64))
        dz = np.where(formula.at_label(z64, label), (e * np.exp(-nll) * (rest + mass) + 12 * _V * (rest + times(mass, miss)))[:, None], dz)
        value = np.abs(formula.gradient(z64, formula.partials(z64, label, o64), label, truth[0], truth[1], truth[2], truth[3], o64))
        # `tiny`: a subnormal result; 2 TINY of the compute type: what exp makes 0 far below the maximum
        floor = tiny + 2 * TINY["float64" if dtype == np.float64 else "float32"] * (g * mass)[:, None]
        return loss, g[:, None] * dz * (1 + store) * _PRODUCTS + store * value + floor
