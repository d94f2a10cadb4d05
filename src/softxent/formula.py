"""The equations: softmax cross-entropy of one row, in NumPy. Everything else in softxent is this, faster or wrapped.

A row has logits `z` and a truth with weight `y` at its label and `r * off[k]` at every column k. `q` is twice the z-loss
coefficient, and `g` the upstream gradient (reduction included):

    loss   = - sum_k truth_k log yhat_k  +  q/2 lse^2
    dz_k   = g ((mass + q lse) yhat_k - truth_k)              prediction - truth, where mass = sum_k truth_k = 1 and q = 0

Arrays: z [R, C]; label [R] (outside 0..C-1: matches no column); y, r, q, g [R] or [1]; off [C], [R, C] or None.
All of it is float64. It is the reference of every test, and the backend where there is no compiled kernel.
"""

from __future__ import annotations

import numpy as np

from .partials import Array, Partials, finish, lse, peak, times


def at_label(z: Array, label: Array) -> Array:  # -> [R, C] bool, one-hot; all False where no column matches
    hot: Array = np.asarray(label)[:, None] == np.arange(z.shape[1])
    return hot


def partials(z: Array, label: Array, off: Array | None = None) -> Partials:
    """The partial sums of rows z (see partials.py), the label's column kept apart."""
    hot = at_label(z, label)
    rest = np.where(hot, -np.inf, z)
    m = rest.max(axis=1, initial=-np.inf)
    shift = np.where(m == -np.inf, 0, m)[:, None]
    with np.errstate(invalid="ignore"):  # +inf - inf: a row of NaN, as it should be
        s = np.exp(rest - shift).sum(axis=1)
    zt = np.where(hot, z, -np.inf).max(axis=1, initial=-np.inf)
    if off is None:
        return Partials(m, s, np.zeros_like(m), np.zeros_like(m), zt, np.zeros_like(m))
    others = np.where(hot, 0, off)
    with np.errstate(invalid="ignore"):
        d = times(others, shift - z).sum(axis=1)
    return Partials(m, s, others.sum(axis=1), d, zt, np.where(hot, off, 0).sum(axis=1))


def loss(x: Partials, y: Array, r: Array, q: Array) -> Array:
    """truth_t nll + r sum_{k != t} off_k (lse - z_k) + q/2 lse^2; every term is >= 0 for a truth >= 0."""
    nll, _, over = finish(x)
    return times(y + r * x.wt, nll) + times(r, x.d + times(x.o, over)) + times(q, lse(x) ** 2 / 2)


def gradient(z: Array, x: Partials, label: Array, y: Array, r: Array, q: Array, g: Array, off: Array | None = None) -> Array:
    """g ((mass + q lse) yhat - truth); at the label, where that may cancel: g (r o + q lse - (mass + q lse) miss)."""
    with np.errstate(invalid="ignore"):
        yhat = softmax(z, x)
        rest = r * x.o + times(q, lse(x))
        mass = y + r * x.wt + rest
        dz = mass[:, None] * yhat - (0 if off is None else r[:, None] * off)
        dz = np.where(at_label(z, label), (rest - mass * finish(x)[1])[:, None], dz)
        live = (y != 0) | (r != 0) | (q != 0)  # an ignored row is 0 whatever its logits
        return np.where(live[:, None], g[:, None] * dz, 0.0)


def softmax(z: Array, x: Partials) -> Array:
    """yhat_k = exp(z_k - lse), as exp((z_k - top) - (lse - top)): no digit is lost to a common offset."""
    top, lift = peak(x)
    with np.errstate(invalid="ignore"):
        yhat: Array = np.exp(z - np.where(top == -np.inf, 0, top)[:, None] - lift[:, None])
        return yhat


def hessian_product(yhat: Array, v: Array, mass: Array) -> Array:
    """mass yhat o (v - <yhat, v>): Results 1 and 2 of the derivation, summed over k."""
    hv: Array = mass[:, None] * yhat * (v - (yhat * v).sum(axis=1, keepdims=True))
    return hv
