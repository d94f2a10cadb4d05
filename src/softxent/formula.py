"""The equations of softmax cross-entropy: what a row gives, and its derivatives, from its logits and its truth.

The other files of softxent compute these equations faster, or wrap them. The tests compare every backend with this file, and it is itself a
backend (kernels/reference.py) where there is no compiled kernel. tests/test_symbols.py runs it on symbols and compares it with the
derivation.

A row has logits z and a truth, its target probabilities: y at the label, plus r off_k at every column k. q is twice the coefficient of the
z-loss. g, l, b and n are upstream gradients, of the loss, lse, the log-probability of the label and the entropy. Then

    loss   = - sum_k truth_k log yhat_k  +  q/2 lse^2
    dz_k   = g ((mass + q lse) yhat_k - truth_k)  +  l yhat_k  +  b ([k = t] - yhat_k)  +  n yhat_k (lse - z_k - H),    mass = sum_k truth_k

which is prediction - truth if mass = g = 1 and q = l = b = n = 0. With a temperature T and a softcap, softmax is applied to z / T with
z = cap tanh(x / cap), where x are the caller's logits: then z stands for z / T in these formulas, and dz for the derivative by z / T.

Shapes: x, z [R, C]; label [R] (one outside 0..C-1 matches no column); numbers of a row [R] or [1]; off [C], [R, C] or None. All numbers are
float64, in arrays of NumPy or of another library (`xp`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .partials import Along, Array, Partials, Tangents, difference, entropy, finish, halves, library, lse, peak, times


class Numbers(NamedTuple):
    """The numbers of each row: its truth, and the upstream gradients of what it gives."""

    y: Array  # truth at the label
    r: Array  # weight of off
    q: Array  # twice the coefficient of the z-loss
    g: Array  # upstream gradient of the loss
    l: Any = 0.0  # noqa: E741  of lse
    b: Any = 0.0  # of the log-probability of the label
    n: Any = 0.0  # of the entropy


class Outputs(NamedTuple):
    """What a row gives, each [R]."""

    loss: Array
    lse: Array
    logprob: Array  # of the label
    entropy: Array
    correct: Array  # whether no class is more probable than the label


class Coefficients(NamedTuple):
    """dz_k = a yhat_k + e yhat_k (lse - z_k) - c off_k, and h + e yhat_t nll at the label, where that may cancel. Each [R]."""

    a: Array
    e: Array
    c: Array
    h: Array


def transformed(x: Array, temperature: float, cap: float) -> tuple[Array, Array | float, Array | float]:
    """Return z = cap tanh(x / cap), or x if the cap is inf, and the first and second derivative of z / T by x."""
    xp = library(x)
    if cap == np.inf:
        return x, 1 / temperature, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        a = x / cap
        tanh = xp.tanh(a)
        slope = xp.cosh(a) ** -2.0 / temperature  # 1 - tanh^2 would cancel
        return xp.where(tanh == a, x, cap * tanh), slope, (-2 / cap) * tanh * slope  # a may be subnormal, or cap beyond the type's range


def at_label(z: Array, label: Array) -> Array:  # -> [R, C] bool: one-hot, all False for a label that matches no column
    xp = library(z)
    label = xp.asarray(label)
    hot: Array = label[:, None] == xp.arange(z.shape[1], like=label)
    return hot


def partials(z: Array, label: Array, off: Array | None = None, temperature: float = 1.0) -> Partials:
    """Return the partial sums of the rows z / T (see partials.py)."""
    xp = library(z)
    hot, rest, m, shift = _without_label(z, label)
    with np.errstate(over="ignore", invalid="ignore"):  # a row with +inf gives inf - inf = NaN, as specified
        below = difference(shift, rest, temperature)
        e = xp.exp(-below)
        s, u = e.sum(axis=1), times(e, below).sum(axis=1)
    zt = xp.max(xp.where(hot, z, -np.inf), axis=1, initial=-np.inf)
    if off is None:
        return Partials(m, s, xp.zeros_like(m), xp.zeros_like(m), zt, xp.zeros_like(m), u, temperature)
    others = xp.where(hot, 0, off)
    with np.errstate(invalid="ignore"):
        d = 2 * times(others, (shift / 2 - z / 2) / temperature).sum(axis=1)  # halves, because shift - z may overflow
    return Partials(m, s, others.sum(axis=1), d, zt, xp.where(hot, off, 0).sum(axis=1), u, temperature)


def _without_label(z: Array, label: Array) -> tuple[Array, Array, Array, Array]:
    """Return where the label is, z with -inf there, the largest of these, [R], and the same as [R, 1], but 0 in place of -inf."""
    xp = library(z)
    hot = at_label(z, label)
    rest = xp.where(hot, -np.inf, z)
    m = xp.max(rest, axis=1, initial=-np.inf)
    return hot, rest, m, xp.where(m == -np.inf, 0, m)[:, None]


def outputs(x: Partials, y: Array, r: Array, q: Array) -> Outputs:
    """Return what the rows give. The loss is truth_t nll + r sum_{k != t} off_k (lse - z_k) + q/2 lse^2, without negative terms."""
    nll, _, _ = finish(x)
    half_nll, half_over = halves(x)
    with np.errstate(over="ignore"):
        loss = 2 * (times(y + r * x.wt, half_nll) + times(r, x.d / 2 + times(x.o, half_over))) + times(q, lse(x) ** 2 / 2)
    return Outputs(loss, lse(x), -nll, entropy(x), (x.zt >= x.m) & (x.zt > -np.inf))


def coefficients(x: Partials, of: Numbers) -> Coefficients:
    """Return the coefficients of the gradient.

    At the label, g ((mass + q lse) yhat_t - truth_t) is computed as g (rest yhat_t - truth_t miss), where rest = mass + q lse - truth_t.
    """
    y, r, q, g, l, b, n = of  # noqa: E741
    xp = library(x.s)
    nll, miss, _ = finish(x)
    hit = xp.exp(-nll)  # yhat_t; 1 - miss would lose its digits if the label is improbable
    l, b, n = (number + xp.zeros_like(miss) for number in (l, b, n))  # noqa: E741
    rest = r * x.o + times(q, lse(x))
    at = y + r * x.wt  # truth_t
    down = times(n, entropy(x))
    a = times(g, at + rest) + l - b - down
    h = times(g, times(rest, hit) - times(at, miss)) + times(l, hit) + times(b, miss) - times(down, hit)
    return Coefficients(a, n, g * r, h)


def gradient(z: Array, x: Partials, label: Array, k: Coefficients, off: Array | None = None) -> Array:
    """Return the gradient with respect to z / T. It is 0 in a row whose coefficients are 0, whatever its logits."""
    xp = library(z)
    a, e, c, h = (column[:, None] for column in k)
    nll, _, _ = finish(x)
    with np.errstate(invalid="ignore"):
        yhat = softmax(z, x)
        dz: Array = a * yhat + times(e * yhat, surprisal(z, x)) - (0 if off is None else times(c, off))
        dz = xp.where(at_label(z, label), h + times(e[:, 0] * xp.exp(-nll), nll)[:, None], dz)
        dz = xp.where((a != 0) | (e != 0) | (c != 0) | (h != 0), dz, 0.0)
        return dz


def tangents(z: Array, v: Array, label: Array, off: Array | None = None, temperature: float = 1.0) -> Tangents:
    """Return the derivatives of `partials` along v, a direction of the logits z / T."""
    xp = library(z)
    hot, rest, m, shift = _without_label(z, label)
    c = xp.where(at_label(z, rest.argmax(axis=1)), v, 0).sum(axis=1) if z.shape[1] else xp.zeros_like(m)
    with np.errstate(over="ignore", invalid="ignore"):
        below = difference(shift, rest, temperature)
        away = c[:, None] - v
        s = times(xp.exp(-below), away)
        o = xp.zeros_like(m) if off is None else times(xp.where(hot, 0, off), away).sum(axis=1)
        return Tangents(c, s.sum(axis=1), times(s, below).sum(axis=1), o, xp.where(hot, v, 0).sum(axis=1))


def hessian(z: Array, v: Array, label: Array, x: Partials, y: Along, of: Numbers) -> Array:
    """Return the derivative of `gradient` along v, a direction of z / T.

    With the coefficients a, e and da, the derivative of a, it is yhat_k ((a - e + e (lse - z_k)) (v_k - mean) + da).
    """
    k = coefficients(x, of)
    da = times(of.g * of.q, y.lse) - times(k.e, y.entropy)
    a, e, da, c, lead, at = (column[:, None] for column in (k.a, k.e, da, y.c, y.lead, y.logprob))
    apart = library(z).where(at_label(z, label), at, (v - c) + lead)
    return times(softmax(z, x), (a - e) * apart + times(e * apart, surprisal(z, x)) + da)


def softmax(z: Array, x: Partials) -> Array:
    """Return yhat_k = exp(z_k/T - lse), computed so that a common offset of the logits costs no digit."""
    yhat: Array = library(z).exp(-surprisal(z, x))
    return yhat


def surprisal(z: Array, x: Partials) -> Array:
    """Return lse - z_k/T = - log yhat_k, computed as (top - z_k)/T + (lse - top/T)."""
    xp = library(z)
    top, lift = peak(x)
    with np.errstate(over="ignore", invalid="ignore"):
        away: Array = difference(xp.where(top == -np.inf, 0, top)[:, None], z, x.temperature) + lift[:, None]
        return away
