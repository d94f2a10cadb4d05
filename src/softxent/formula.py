"""The equations of softmax cross-entropy: the loss and the gradient of a row, from its logits and its truth.

The other files of softxent compute these equations faster, or wrap them. The tests compare every backend with this file, and it is itself a
backend (kernels/reference.py) where there is no compiled kernel. tests/test_symbols.py runs it on symbols and compares it with the
derivation.

A row has logits z and a truth, its target probabilities: y at the label, plus r off_k at every column k. q is twice the coefficient of the
z-loss. g is the upstream gradient, which includes the factor of the reduction. Then

    loss   = - sum_k truth_k log yhat_k  +  q/2 lse^2
    dz_k   = g ((mass + q lse) yhat_k - truth_k),             mass = sum_k truth_k

which is prediction - truth if mass = 1, q = 0 and g = 1.

Shapes: z [R, C]; label [R] (one outside 0..C-1 matches no column); y, r, q, g [R] or [1]; off [C], [R, C] or None. All numbers are float64,
in arrays of NumPy or of another library (`xp`).
"""

from __future__ import annotations

import numpy as np

from .partials import Array, Partials, finish, library, lse, peak, times


def at_label(z: Array, label: Array) -> Array:  # -> [R, C] bool: one-hot, all False for a label that matches no column
    xp = library(z)
    label = xp.asarray(label)
    hot: Array = label[:, None] == xp.arange(z.shape[1], like=label)
    return hot


def partials(z: Array, label: Array, off: Array | None = None) -> Partials:
    """Return the partial sums of the rows z (see partials.py)."""
    xp = library(z)
    hot = at_label(z, label)
    rest = xp.where(hot, -np.inf, z)
    m = xp.max(rest, axis=1, initial=-np.inf)
    shift = xp.where(m == -np.inf, 0, m)[:, None]
    with np.errstate(invalid="ignore"):  # a row with +inf gives inf - inf = NaN, as specified
        s = xp.exp(rest - shift).sum(axis=1)
    zt = xp.max(xp.where(hot, z, -np.inf), axis=1, initial=-np.inf)
    if off is None:
        return Partials(m, s, xp.zeros_like(m), xp.zeros_like(m), zt, xp.zeros_like(m))
    others = xp.where(hot, 0, off)
    with np.errstate(invalid="ignore"):
        d = times(others, shift - z).sum(axis=1)
    return Partials(m, s, others.sum(axis=1), d, zt, xp.where(hot, off, 0).sum(axis=1))


def loss(x: Partials, y: Array, r: Array, q: Array) -> Array:
    """Return truth_t nll + r sum_{k != t} off_k (lse - z_k) + q/2 lse^2 of each row. No term is negative if the truth is not."""
    nll, _, over = finish(x)
    return times(y + r * x.wt, nll) + times(r, x.d + times(x.o, over)) + times(q, lse(x) ** 2 / 2)


def gradient(z: Array, x: Partials, label: Array, y: Array, r: Array, q: Array, g: Array, off: Array | None = None) -> Array:
    """Return g ((mass + q lse) yhat - truth). At the label this may cancel, so it is computed as g (r o + q lse - (mass + q lse) miss)."""
    xp = library(z)
    with np.errstate(invalid="ignore"):
        yhat = softmax(z, x)
        rest = r * x.o + times(q, lse(x))
        mass = y + r * x.wt + rest
        dz: Array = mass[:, None] * yhat - (0 if off is None else r[:, None] * off)
        dz = xp.where(at_label(z, label), (rest - mass * finish(x)[1])[:, None], dz)
        live = (y != 0) | (r != 0) | (q != 0)  # the gradient of an ignored row is 0, whatever its logits
        dz = xp.where(live[:, None], g[:, None] * dz, 0.0)
        return dz


def softmax(z: Array, x: Partials) -> Array:
    """Return yhat_k = exp(z_k - lse), computed as exp((z_k - top) - (lse - top)), so that a common offset of the logits costs no digit."""
    xp = library(z)
    top, lift = peak(x)
    with np.errstate(invalid="ignore"):
        yhat: Array = xp.exp(z - xp.where(top == -np.inf, 0, top)[:, None] - lift[:, None])
        return yhat


def hessian_product(yhat: Array, v: Array, mass: Array) -> Array:
    """Return the product of the Hessian and v, mass yhat o (v - <yhat, v>): Results 1 and 2 of the derivation, summed over k."""
    hv: Array = mass[:, None] * yhat * (v - (yhat * v).sum(axis=1, keepdims=True))
    return hv
