"""Bounds for the rounding errors of the loss, the entropy, their gradients and the Hessian product, derived from the steps of the kernels.

The tests use them as tolerances. The log-probability of a label is minus its loss with y = 1, so that `row_bounds` is its bound.

u is the unit roundoff of the type of the computation (2^-24 for float32 and 16-bit types, 2^-53 for float64), v = 2^-53 that of the float64
numbers of a row, and C the number of classes. The relative error of an operation is one unit, that of exp and log two units (one ulp), and
that of log1p four. These figures for exp, log and log1p are measured and not derived: the largest errors of the kernel's functions were
1.3u for exp in float32, over a third of all numbers from -103.5 to 0, and in float64, at 2e7 points, 1.3v for exp, 1.3v for log and 2.2v
for log1p. The factor `_PRODUCTS` covers the products of two errors. The steps of a row are the same on every backend; where they differ,
the larger error is counted:

    e_k = exp(z_k - m)   2u. In the kernel the shift of a block is exact: a power of two, or a difference of numbers within a factor of 2
                         (Sterbenz's lemma). A block is multiplied by exp(m_b - m) afterwards, where |m_b - m| is rounded twice. The
                         formula rounds z_k - m. In both cases a distance x costs at most 2v x.
    s   = sum of e_k     groups of 4 in the compute type, as a tree: 2u; then float64 additions, `depth(C)` of them on one path: v each
    o, d                 sums of off_k and off_k (m - z_k), as s; the difference and the product in d take the place of the 2u of exp
    nll, miss, over      functions of a = (m - z_t) + log s, in float64: `loss_bound`
    dz_k                 scale e_k - drop off_k: each of the two numbers, the product and the difference (an fma) is rounded once: u each
    dz_t                 one float64 formula, rounded once
    storage              one rounding. 16-bit types are rounded from float32, with an error of at most `UNIT` in total, because a value
                         that is halfway between two numbers is at least 1 + UNIT times a power of two, and UNIT^2 >= u

The bounds hold if the exact value is finite and the result is within the range of its type. The truth must not be negative.

Rounding.v proves `sum_bound`, `loss_bound` for the loss of a label and for miss, and the bound of dz_k for k other than the label, and of
dz_t for a truth at the label alone, for any number of classes, from the steps of the kernel (rounding.py). The other bounds are derived in
the docstrings only.
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
    """Return the unit roundoff of the type in which the kernels compute for logits of this dtype."""
    return UNIT["float64" if np.dtype(dtype) == np.float64 else "float32"]


def depth(classes: int) -> int:
    """Return a bound of the number of float64 roundings that one e_k is subject to in the sum s.

    The kernel has C/4 additions for up to 64 columns. For more columns, each addition in a block of 4096 takes at least 32 columns; the
    tree over the lanes has 4 additions; scaling a block is an exponential and a product, 3; and each further block is one addition. NumPy's
    pairwise sum has C - 1 additions for C < 8, 25 up to 128, and one more whenever C doubles. min(C, 32) covers the kernel's tree, and
    together with C/32 it covers NumPy.
    """
    return min(classes, 32) + -(-min(classes, 4096) // 32) + 2 + -(-classes // 4096)


def sum_bound(dtype: npt.DTypeLike, classes: int) -> float:
    """Return a bound of the relative error of s: 4u + v (depth(C) + 2 ln C), for exp 2u, the tree of four 2u, and the float64 additions.

    2v ln C is for the distances. A distance of x causes a relative error of 2v x in e_k, and so one of 2v times the mean of m - z_k under
    softmax in the sum. That mean is entropy - (lse - m), and entropy <= ln C. All terms are positive, so their errors are averaged and
    never amplified.
    """
    return _PRODUCTS * (4 * unit(dtype) + _V * (depth(classes) + 2 * math.log(classes)))


def loss_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """Return a bound of the relative errors of nll and miss = 1 - yhat_t, and of the absolute error of lse - top, for gap = |m - z_t|.

    The error of a is at most sum_bound (a logarithm turns a relative error into an absolute one), v gap for the difference, 2v ln C for log
    s (1 <= s < C) and v (gap + ln C) for the sum. It is not amplified: with sigma = 1 / (1 + e^-a),

        d ln nll / da = sigma / log(1 + e^a) <= 1        since log(1 + x) >= x / (1 + x)
        d ln miss / da = 1 - sigma <= 1,   d (lse - m) / d log s = sigma <= 1,   d (lse - z_t) / da = sigma <= 1

    The functions of a add: v gap for miss = e^-L, where L = log(1 + e^-a) <= gap + ln 2 is rounded; v ln C for lse - top, which can be of
    that size; and 14v for the functions (3 for e^-|a|, 2 for s e^-|a| or (1 / s) e^-|a|, 4 for log1p; 1 + x, its inverse and the product
    have fewer), the weight (2), its product and two additions.
    """
    return sum_bound(dtype, classes) + _V * (3 * gap + 4 * math.log(classes) + 14)


def grad_bound(dtype: npt.DTypeLike, classes: int, gap: float | Array = 0.0) -> float | Array:
    """Return a bound of the error of an entry of the gradient before storage, relative to g (mass yhat_k + truth_k).

    It is 5u + 2 loss_bound + 2v gap. For a class other than the label: 2u for e_k, and u each for scale, the product and the difference;
    loss_bound for 1 / S = miss / s, a function of s with d ln (miss / s) / d ln s = -sigma, and once more for the mass; and 2v |z_k - lse|
    for the distance as in e_k, where |z_k - lse| <= gap. For the label's entry, see `row_bounds`.
    """
    return 5 * unit(dtype) + 2 * loss_bound(dtype, classes, gap) + 2 * _V * gap


def filter_losses(g: Array, x: Array, w: Array, skip: Array, block: int) -> tuple[Array, Array]:  # [R, C], [R, D], [C, D], [blocks]
    """Return bounds of the errors of the rows of dX = G W and dW = G^T X, [R] and [C], if the blocks of G in `skip` are left out.

    Theorem. Let D be dX or dW, and let D' be the same matrix computed with blocks left out, which may differ between chunks of rows. Let e
    be the norm of the bounds of the errors, where the bounds of dW are added over the chunks for each row, and those of dX are taken over
    the rows of all chunks. If e <= tol (||D'|| - e), then ||D' - D|| <= tol ||D||.

    Proof. The error in row i of dX is the sum of G_ik W_k over the columns k left out. By the triangle inequality its norm is at most
    sum_K (sum_{k in K} |G_ik|) max_{k in K} ||W_k||, over the blocks K left out. The error in row k of dW is the sum of G_ik X_i over the
    chunks that left out k; its norm is at most sum_i |G_ik| ||X_i||. The Frobenius norm is the norm of the norms of the rows and increases
    with each of them, so e >= ||D' - D||. Hence ||D|| >= ||D'|| - ||D' - D|| >= ||D'|| - e, and ||D' - D|| <= e <= tol (||D'|| - e) <= tol
    ||D||. For dX it is sufficient that each chunk j satisfies the condition, because sum e_j^2 <= tol^2 sum ||D_j||^2.

    No assumption is made about G: it may belong to any truth, upstream gradient, z-loss or softcap, and its entries may have any size and
    sign. An entry that is taken out of G and whose products are added separately, as the filter does at the label, causes no error. It does
    not matter how the blocks were chosen.

    Rounding. filtering.py adds non-negative terms. The computed sum of n such terms, in any order, is at least (1 - u)^n times the exact
    sum. The sums in the compute type are over a block, the rows of a piece, or the D squares of a norm; all others are in float64.
    `filtering.room` is 1 + 2 n u for both together, which is at least (1 - u)^-n if n u <= 1/2. A bound is a product of two such sums, so
    it is multiplied by room^2, and the square of the norm of the computed matrix is divided by it. Underflow reduces a term by at most the
    smallest normal number, also if subnormals are flushed to 0, and this number is added for each term. The squares of the bounds are in
    float64, and nothing is left out if the limit is below 2^-460: the sum of 2^50 squares that underflow is less than 2^-52 times its
    square. A norm whose squares overflow counts as 0. The rounding of the two products is the same with and without a filter and is not
    part of the theorem.
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
    """Return bounds of the absolute errors of the loss and gradient of each row; NaN or inf if the exact value is not finite.

    loss: y nll + r (sum off_k (m - z_k) + o over) + q/2 lse^2. The relative error of the first two terms is loss_bound. For over and lse,
        loss_bound is the absolute error, which contributes loss_bound (r o + q |lse|). |lse| is taken with its error, for the case that it
        is near 0.
    dz:   grad_bound for M yhat_k, and 2u for r off_k (the rounding of r and of the difference). M is the sum of the magnitudes of all parts
        of the mass, with 1 + |lse| for lse, whose error is absolute.
    dz_t: g (rest yhat_t - truth_t miss). rest and yhat_t have relative errors of loss_bound, that of yhat_t times miss, because
        d ln yhat_t / da = -miss, and that of miss is multiplied by yhat_t. Hence loss_bound for yhat_t ((1 + miss) rest + truth_t miss),
        which is as small as the entry itself if the label has nearly all of the probability, and 14v for the evaluation of both terms.

    The last term of each bound is for results near the smallest numbers of a type. A subnormal e^-gap has an error of TINY of float64, and
    the odds are s <= C times it. off_k (m - z_k), scale, drop, and e_k, which is 0 far below the maximum, have an error of TINY of the
    compute type. Weights and the upstream gradient multiply these errors. g r is a float64 number, so that a subnormal one costs TINY of
    float64 times off_k, and never that of float32. `other_entry` in Rounding.v has these terms, for a class other than the label.
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
        loss = e * (size + r * x.o + times(q, level)) + classes * (2 * tiny * (1 + at) + least * r)
        rest = r * x.o + times(q, 1 + level)
        mass = at + rest
        yhat = formula.softmax(z64, x)
        relative = (5 * u + 2 * e)[:, None] + 2 * _V * np.abs(z64 - lse(x)[:, None])
        dz = times(yhat, relative * mass[:, None]) + (0.0 if o64 is None else 2 * u * r[:, None] * np.abs(o64))
        hit, missed = np.exp(-nll), times(at, miss)
        entry = e * hit * (times(rest, 1 + miss) + missed) + 14 * _V * (times(rest, hit) + missed)
        dz = np.where(formula.at_label(z64, label), entry[:, None], dz)
        sums = formula.partials(z64, label, o64)
        value = np.abs(formula.gradient(z64, sums, label, formula.coefficients(sums, formula.Numbers(*truth)), o64))
        floor = TINY[dtype.name] + 6 * least + (g * (2 * least * mass + 3 * classes * tiny * (1 + mass)))[:, None]
        floor = floor + (0.0 if o64 is None else 2 * tiny * np.abs(o64))
        return loss, (g[:, None] * dz * (1 + store) + store * value) * _PRODUCTS + floor


def entropy_bounds(z: Array, label: Array) -> tuple[Array, Array]:  # [R, C] in its dtype, [R] -> [R], [R, C]
    """Return bounds of the absolute errors of the entropy H of each row and of its gradient; NaN or inf if the exact value is not finite.

    `label` is the class that is kept apart. If it has the largest logit, the bound of H is a relative one: the other classes have yhat_k <=
    1/2, so lse - z_k >= ln 2 and H >= miss ln 2. Below, x_k = |lse - z_k|, and e is loss_bound.

    H:  (1 - miss) nll + e^(m - lse) (u + s over). Each e_k (m - z_k) in u has the 2u of exp, u each for the difference and the product, and
        2u for the tree: 6u. nll, miss, e^(m - lse) and s have relative errors of e, and over has an absolute one of e, which e^(m - lse) s
        <= miss multiplies, as the error of 1 - miss multiplies nll. Hence (6u + 3e) H + 2 e miss. The errors of e_k at a distance add 2v
        yhat_k x_k^2, since x_k weights them. A prediction may be rounded to the compute type before it is weighted: that is one unit of the
        6u, in place of one unit of the tree.
    dH: yhat_k (lse - z_k - H). The error of yhat_k is that of grad_bound, 5u + 2e + 2v x_k. lse - z_k is a sum of two numbers that are not
        negative, with 3u and the absolute error e of lse, H has its bound, and its rounding and the sum have u each: 5u more. All multiply
        yhat_k (x_k + H), except the two absolute errors, which multiply yhat_k.

    The last terms are for numbers below the smallest of a type, as in `row_bounds`: each e_k may be lost, and x_k multiplies it.
    """
    dtype = z.dtype
    u, store = unit(dtype), UNIT[dtype.name]
    least = TINY["float64" if dtype == np.float64 else "float32"]
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        z64, nll, miss, e, x, yhat = _row(z, label)
        hot = formula.at_label(z64, label)
        others = times(np.where(hot, 0, yhat), x)
        h = times(np.exp(-nll), nll) + others.sum(axis=1)
        far = np.where(np.isfinite(x), x, 0)
        lost = 2 * least * (1 + far)
        entropy = (6 * u + 3 * e) * h + 2 * e * miss + 2 * _V * times(others, x).sum(axis=1) + lost.sum(axis=1)
        relative = (10 * u + 2 * e)[:, None] + 2 * _V * x
        dh = times(yhat, relative * (x + h[:, None]) + (entropy + e)[:, None]) + lost * (1 + h[:, None])
        value = times(yhat, np.abs(np.where(hot, nll[:, None], x) - h[:, None]))
        return entropy * _PRODUCTS, dh * (1 + store) * _PRODUCTS + store * value + TINY[dtype.name]


def hessian_bounds(
    z: Array, truth: Array, off: Array | None, v: Array
) -> Array:  # z [R, C] in its dtype, truth, off: as the kernels take them, v [R, C] in the compute type -> [R, C]
    """Return bounds of the absolute errors of the entries of H v, the product of the Hessian of the loss and a vector.

    (H v)_k = g yhat_k (M (v_k - mean) + q mean), where M = mass + q lse and mean = <yhat, v> = v_j - sum_{i != j} yhat_i (v_j - v_i). The
    class j has the largest logit, and `lead` is the sum. With e = loss_bound and x_k = |lse - z_k|:

    lead   Each term has 6u + 2e + 2v x_i for the prediction, which may be rounded to the compute type, u each for the difference and the
           product, and 2u for the tree. v_j - v_i may be a sum of two differences, from the largest v. Both are at most the range of v, the
           largest v less the smallest. Hence the range times sum_{i != j} yhat_i (10u + 2e + e + 2v x_i), where one e is for the additions.
    mean   the error of lead, and v |v_j| for the rounding
    v_k - mean    the errors of lead and of mean, and u |v_k - v_j|, where |v_k - v_j| <= |v_k - mean| + range miss
    H v    yhat_k has 6u + 2e + 2v x_k, and the difference, two products and a sum one unit each: 10u + 2e + 2v x_k. M has the magnitude of
           its parts as in `row_bounds`, with 1 + |lse| for lse.

    v must be of the compute type: the error of its rounding is not part of the bound.
    """
    dtype, classes = z.dtype, z.shape[1]
    u, store = unit(dtype), UNIT[dtype.name]
    least = TINY["float64" if dtype == np.float64 else "float32"]
    y, r, q, g = np.abs(truth)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        top = z.argmax(axis=1)
        z64, _, _, e, x, yhat = _row(z, top)
        v64 = np.asarray(v, np.float64)
        hot = formula.at_label(z64, top)
        spread = v64.max(axis=1) - v64.min(axis=1)
        others = np.where(hot, 0, yhat)
        own = np.where(hot, v64, 0).sum(axis=1)
        lead = spread * (times(others, (10 * u + 3 * e)[:, None] + 2 * _V * x).sum(axis=1) + least * classes)
        mean = own - times(others, np.where(others == 0, 0, own[:, None] - v64)).sum(axis=1)
        o64 = np.zeros((1, 1)) if off is None else np.abs(np.asarray(off, np.float64))
        level = np.abs(lse(formula.partials(z64, top))) + e
        mass = y + r * np.broadcast_to(o64, z64.shape if off is not None else (len(z64), 1)).sum(axis=1) + times(q, 1 + level)
        apart = np.where(hot, times(others, own[:, None] - v64).sum(axis=1)[:, None], v64 - mean[:, None])
        relative = (10 * u + 2 * e)[:, None] + 2 * _V * x
        centred = times(yhat, relative * np.abs(apart) + (lead + u * spread * others.sum(axis=1) + _V * np.abs(own))[:, None])
        level_of = times(yhat, relative * np.abs(mean)[:, None] + (lead + _V * np.abs(own))[:, None])
        hv = mass[:, None] * centred + times(q, 1.0)[:, None] * level_of
        value = mass[:, None] * times(yhat, np.abs(apart)) + q[:, None] * times(yhat, np.abs(mean)[:, None])
        floor = TINY[dtype.name] + 2 * least * (1 + g * (1 + mass) * (1 + spread + np.abs(own)))[:, None]
        bound: Array = g[:, None] * hv * (1 + store) * _PRODUCTS + store * g[:, None] * value + floor
        return bound


def _row(z: Array, label: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return z in float64, nll, miss, loss_bound, |lse - z| and softmax of the rows."""
    z64 = np.asarray(z, np.float64)
    x = formula.partials(z64, label)
    nll, miss, _ = finish(x)
    gap = np.abs(x.m - x.zt)
    e = np.asarray(loss_bound(z.dtype, z.shape[1], np.where(np.isfinite(gap), gap, 0.0)))
    return z64, nll, miss, e, np.abs(z64 - lse(x)[:, None]), formula.softmax(z64, x)
