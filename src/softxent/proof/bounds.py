"""What rounding may do to a loss and a gradient: bounds derived from the steps of a kernel, not from trial.

`u` is the unit roundoff of the type computed in (2^-24 for float32 and narrower, 2^-53 for float64), `v` = 2^-53 that of all that is one
number a row, C the number of classes. An operation rounds its result by one unit, relative; exp and log are within one ulp, two units, and
log1p within four. (That is measured, not derived: of the kernel's own, 1.3u for exp over a third of all float32 from -103.5 to 0, in
float64 1.3v for exp, 1.3v for log, 2.9v for log1p at 2e7 points.) Products of two such numbers are covered by the factor `_PRODUCTS`. The
steps of a row are the same on every backend; where they differ, the worse counts:

    e_k = exp(z_k - m)   2u. The kernel's shift of a block is exact: a power of two, or a difference of numbers within a factor 2
                         (Sterbenz); a block is lowered to the row's m afterwards, by exp(m_b - m), where |m_b - m| is rounded twice. The
                         formula rounds z_k - m. Either way a distance x costs at most 2v x.
    s   = sum of e_k     groups of 4 in the compute type, as a tree: 2u; then float64 additions, `depth(C)` of them on one path: v each
    o, d                 sums of off_k and off_k (m - z_k) likewise: the difference and the product of d take the place of exp's 2u
    nll, miss, over      functions of a = (m - z_t) + log s, in float64: `loss_bound`
    dz_k                 scale e_k - drop off_k: each of the two numbers, the product and the difference (fused) is rounded once: u each
    dz_t                 one float64 formula, rounded once
    storage              one rounding. 16-bit types are rounded by way of float32: no more than `UNIT` of the value in all, since a value
                         that is off by half a step is at least 1 + UNIT times a power of two, and UNIT^2 >= u

Where the true value is no finite number, or the result is beyond what its type can hold, nothing is said. A truth is >= 0.
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
    """Float64 roundings on the way of one e_k into s, at most.

    The kernel: up to 64 columns, C/4 additions; beyond, 32 columns or more an addition, 4096 a block, and a tree over the lanes, 4;
    lowering a block is an exponential and a product, 3; adding up blocks, one each. NumPy's pairwise sum: C - 1 additions for C < 8, 25 up
    to 128, one more whenever C doubles. min(C, 32) covers the kernel's tree, and together with C/32 what NumPy does.
    """
    return min(classes, 32) + -(-min(classes, 4096) // 32) + 2 + -(-classes // 4096)


def sum_bound(dtype: npt.DTypeLike, classes: int) -> float:
    """|computed s - s| / s <= 4u + v (depth(C) + 2 ln C): exp 2u, the tree of four 2u, the float64 additions.

    2v ln C is for the distances: one of x costs e_k the relative 2v x, hence the sum 2v times the mean of m - z_k under softmax, which is
    entropy - (lse - m), and entropy <= ln C. (All terms are positive: errors of terms are averaged, never amplified.)
    """
    return _PRODUCTS * (4 * unit(dtype) + _V * (depth(classes) + 2 * math.log(classes)))


def loss_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """The relative error of nll and of miss = 1 - yhat_t, and the absolute one of lse - top, at a distance `gap` = |m - z_t|.

    a is in error by sum_bound (a logarithm turns relative into absolute), v gap for the difference, 2v ln C for log s (1 <= s < C) and
    v (gap + ln C) for the sum. It is not amplified: with sigma = 1 / (1 + e^-a),

        d ln nll / da = sigma / log(1 + e^a) <= 1        since log(1 + x) >= x / (1 + x)
        d ln miss / da = 1 - sigma <= 1,   d (lse - m) / d log s = sigma <= 1,   d (lse - z_t) / da = sigma <= 1

    What is computed from a adds: v gap where miss = e^-L, L = log(1 + e^-a) <= gap + ln 2 rounded; v ln C where lse - top is of that size;
    14v for the functions (e^-|a|: 3, s e^-|a|: 1, log1p: 4; 1 + x and the quotient are fewer), the weight (2), its product, two additions.
    """
    return sum_bound(dtype, classes) + _V * (3 * gap + 4 * math.log(classes) + 14)


def grad_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """The error of an entry of the gradient, relative to g (mass yhat_k + truth_k), before storage: 5u + 2 loss_bound + 2v gap.

    Away from the label: e_k 2u, scale u, the product u, the difference u; loss_bound for 1 / S = miss / s (a function of s with
    d ln (miss / s) / d ln s = -sigma), and once more for the mass; the distance |z_k - lse| <= gap, 2v as in e_k. The label's entry: see
    `row_bounds`.
    """
    return 5 * unit(dtype) + 2 * loss_bound(dtype, classes, gap) + 2 * _V * gap


def filter_losses(g: Array, x: Array, w: Array, skip: Array, block: int) -> tuple[Array, Array]:  # [R, C], [R, D], [C, D], [blocks]
    """What the rows of dX = G W and of dW = G^T X lose, at most, where the blocks of columns in `skip` are left out of G: -> [R], [C].

    Theorem. Let D = dX or dW, D' the same with blocks left out (of dX by chunks of rows, each its own; of dW likewise), e the norm of these
    losses, added up: of dW over the chunks, row by row; of dX the chunks' squares. If e <= tol (||D'|| - e), then ||D' - D|| <= tol ||D||.

    Proof. Row i of what dX loses is the sum over k left out of G_ik W_k, of norm at most sum_K (sum_{k in K} |G_ik|) max_{k in K} ||W_k||:
    the triangle inequality, and each ||W_k|| at most its block's largest. Row k of what dW loses is sum_i G_ik X_i, over the chunks that
    left k out, of norm at most sum_i |G_ik| ||X_i||. A Frobenius norm is the norm of the rows' norms, and grows with each, so e is at least
    ||D' - D||. Hence ||D|| >= ||D'|| - ||D' - D|| >= ||D'|| - e, and ||D' - D|| <= e <= tol (||D'|| - e) <= tol ||D||. For dX it is enough
    that each chunk j meets the condition, since sum e_j^2 <= tol^2 sum ||D_j||^2.

    Nothing is assumed of G: any truth, upstream gradient, z-loss or squashing may have made it, in any sizes and signs. An entry that is
    taken out of G and added on its own, as the filter does with the label's, is computed and so no loss. How blocks were chosen is of no
    account.

    Rounding. filtering.py sums terms >= 0: n of them, in any order, each rounded, come to at least (1 - u)^n of their sum. Its sums of the
    compute type are over a block, the rows of a piece, or the D squares of a norm; all others are of float64. `filtering.room` is 1 + 2 n u
    of both together, at least (1 - u)^-n while n u <= 1/2; a loss is a product of two such sums, hence room^2, and the square of the norm
    of what was computed is divided by it. Underflow costs a term at most the smallest normal number, also where subnormals count as 0: that
    is added for each. Squares of losses are float64, and none is trusted for a limit below 2^-460: 2^50 that underflow are less than
    2^-52 of its square. A norm whose squares overflow counts as 0. The roundings of the two products are there with and without a filter,
    and no part of the claim.
    """
    size = np.abs(np.asarray(g, np.float64))
    wide = [np.sqrt(np.square(np.asarray(a, np.float64)).sum(axis=1)) for a in (x, w)]
    block_of = np.arange(len(w)) // block
    most = np.array([wide[1][block_of == k].max() for k in range(len(skip))])
    lost = size * skip[block_of]
    return lost @ most[block_of], wide[0] @ lost


def row_bounds(
    z: Array, label: Array, truth: Array, off: Array | None
) -> tuple[Array, Array]:  # z [R, C] in its dtype, label, truth, off: as the kernels take them -> [R], [R, C]
    """The largest |error| of each row's loss and of each entry of its gradient; NaN or inf where the true value is none.

    loss: y nll + r (sum off_k (m - z_k) + o over) + q/2 lse^2. The first two are in error by loss_bound of themselves; where loss_bound is
        the absolute error (over, lse), by loss_bound (r o + q |lse|); |lse| is its size with its error, for where it is near 0.
    dz:   grad_bound of M yhat_k, and 2u of r off_k (r rounded, the difference rounded). M holds all parts of the mass by their size, and
        1 + |lse| for lse, whose error is absolute.
    dz_t: g (rest - M miss), where M = truth_t + rest: that is g (rest yhat_t - truth_t miss), so an error of rest counts yhat_t times, and
        so does one of a: d miss / da = miss yhat_t. Hence loss_bound of yhat_t (rest + M miss), as small as the entry itself where the row
        is sure of its label; and 14v of (rest + M miss) for its evaluation.

    The last term of each is for results near or below the smallest numbers: e^-gap, subnormal, is off by a TINY of float64, and s <= C of
    them are the odds; off_k (m - z_k), scale, drop, and e_k (0 far below the maximum), by a TINY of the compute type. Weights and upstream
    enlarge what was rounded before them.
    """
    dtype, classes = z.dtype, z.shape[1]
    u, store = unit(dtype), UNIT[dtype.name]
    tiny, least = TINY["float64"], TINY["float64" if dtype == np.float64 else "float32"]
    z64, o64 = np.asarray(z, np.float64), None if off is None else np.asarray(off, np.float64)
    y, r, q, g = np.abs(truth)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        x = formula.partials(z64, label, None if o64 is None else np.abs(o64))
        nll, miss, over = finish(x)
        gap = np.abs(x.m - x.zt)
        e = np.asarray(loss_bound(dtype, classes, np.where(np.isfinite(gap), gap, 0.0)))
        level = np.abs(lse(x)) + e
        at = y + r * x.wt
        size = times(at, nll) + times(r, x.d + times(x.o, over)) + times(q, level**2 / 2)
        loss = e * (size + r * x.o + times(q, level)) + classes * (tiny * (1 + at) + least * r)
        rest = r * x.o + times(q, 1 + level)
        mass = at + rest
        yhat = formula.softmax(z64, x)
        relative = (5 * u + 2 * e)[:, None] + 2 * _V * np.abs(z64 - lse(x)[:, None])
        dz = times(yhat, relative * mass[:, None]) + (0.0 if o64 is None else 2 * u * r[:, None] * np.abs(o64))
        dz = np.where(formula.at_label(z64, label), ((e * np.exp(-nll) + 14 * _V) * (rest + times(mass, miss)))[:, None], dz)
        value = np.abs(formula.gradient(z64, formula.partials(z64, label, o64), label, truth[0], truth[1], truth[2], truth[3], o64))
        floor = TINY[dtype.name] + 2 * least + (g * (2 * least * mass + classes * tiny * (1 + mass)))[:, None]
        return loss, g[:, None] * dz * (1 + store) * _PRODUCTS + store * value + floor
