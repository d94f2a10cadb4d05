"""The steps of the compiled kernel in NumPy: exp, log, log1p, tanh, the tree of a sum, `finish`, and an entry of the gradient.

They are the operations of cpp/vec.h and cpp/kernel.cpp for rows of one block, with a label and nothing else, in the same order, so that the
results have the same bits. Rounding.v speaks of these steps: `finished` computes its gap_, a_, w_, odds_, nll_, miss_ and unit_.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any


class Constants(NamedTuple):
    """Those of Exp in vec.h, of float32 or float64."""

    dtype: type
    bits: type
    mantissa: int
    log2e: float
    ln2: tuple[float, float]
    reach: float
    magic: float
    lift: float
    c: tuple[float, ...]


def _hex(text: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, text.split()))


F32 = Constants(
    np.float32, np.uint32, 23, float.fromhex("0x1.715476p0"), (float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cp-20")), 104,
    1.5 * 2**23 + 127 + 64, 2.0**64,
    _hex("0x1.6a2434p-10 0x1.1239e2p-7 0x1.5558f2p-5 0x1.555492p-3 0x1.fffffcp-2 1 1"),
)  # fmt: skip
F64 = Constants(
    np.float64, np.uint64, 52, float.fromhex("0x1.71547652b82fep0"),
    (float.fromhex("0x1.62e42fefp-1"), float.fromhex("0x1.473de6af278edp-34")), 746, 1.5 * 2**52 + 1023 + 128, 2.0**128,
    _hex(
        "0x1.ad7f6f0799ee2p-26 0x1.28ad72cc30daap-22 0x1.71df2552390c2p-19 0x1.a0199a0c677acp-16 0x1.a01a012a57b51p-13 "
        "0x1.6c16c1842a11dp-10 0x1.1111111127be5p-7 0x1.555555555087cp-5 0x1.55555555554fap-3 0x1.000000000000ap-1 1 1"
    ),
)  # fmt: skip


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b rounded, and the error."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _to_odd(s: Array, error: Array) -> Array:
    """Return the float64 s + error, rounded to odd."""
    i = s.view(np.int64)
    step = np.where((error > 0) == (s > 0), 1, -1)
    inexact = (error < 0) | (error > 0)  # neither if s is infinite: the error is NaN then
    return np.where(inexact & (i % 2 == 0), i + step, i).view(np.float64)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    def split(x):
        c = x * (2.0**27 + 1)
        high = c - (c - x)
        return high, x - high

    p, (ah, al), (bh, bl) = a * b, split(a), split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def fma(k: Constants, a: Array, b: Array, c: Array) -> Array:
    """Return a b + c, rounded once, if no step overflows (Boldo and Melquiond, Emulation of FMA and correctly rounded sums)."""
    a, b, c = np.broadcast_arrays(*(np.asarray(x, k.dtype) for x in (a, b, c)))
    if k is F32:
        return _to_odd(*two_sum(a.astype(np.float64) * b, c.astype(np.float64))).astype(np.float32)
    ph, pl = _two_product(a, b)
    th, tl = two_sum(c, pl)
    vh, vl = two_sum(ph, th)
    return vh + _to_odd(*two_sum(tl, vl))


def exps(k: Constants, x: Array, magic: Array, low: Array) -> Array:
    """Return lift e^(x - shift), and 0 where x < low."""
    far = x < low
    x = np.where(far, k.dtype(0), x)
    t = fma(k, x, k.log2e, magic)
    q = t - magic
    r = fma(k, q, -k.ln2[1], fma(k, q, -k.ln2[0], x))
    q = np.full_like(x, k.c[0])
    for c in k.c[1:]:
        q = fma(k, q, r, c)
    return np.where(far, k.dtype(0), q * (t.view(k.bits) << k.mantissa).view(k.dtype))


def exp(x: Array) -> Array:
    return exps(F64, x, np.float64(F64.magic), -F64.reach) * (1 / F64.lift)


def log(x: Array) -> Array:
    i = x.view(np.uint64)
    k = (i + np.uint64(0x00195F619980C433)) >> np.uint64(52)
    n = (k + np.uint64(0x4330000000000000)).view(np.float64) - (2.0**52 + 1024)
    u = (i - (k << np.uint64(52)) + (np.uint64(1024) << np.uint64(52))).view(np.float64) - 1
    s = u / (u + 2)
    z, h = s * s, 0.5 * u * u
    first, *rest = _hex(
        "0x1.2f112df3e5244p-3 0x1.39a09d078c69fp-3 0x1.7466496cb03dep-3 0x1.c71c51d8e78afp-3 0x1.2492494229359p-2 0x1.999999997fa04p-2 "
        "0x1.5555555555593p-1"
    )
    q = np.full_like(x, first)
    for c in rest:
        q = fma(F64, q, z, c)
    high, low = _hex("0x1.62e42fee00000p-1 0x1.a39ef35793c76p-33")
    y = n * high - ((h - (s * (h + z * q) + n * low)) - u)
    return np.where(x == 0, -np.inf, np.where(x < np.inf, y, x))


def log1p(x: Array, inverse: Array) -> Array:  # inverse = 1 / (1 + x)
    u = 1 + x
    return fma(F64, x - (u - 1), inverse, log(u))


TANH = {  # near, far, and the coefficients of the polynomial
    F32: (0.765625, 44, _hex("0x1.67656ep-10 -0x1.caf6f8p-8 0x1.58581cp-6 -0x1.b86a4p-5 0x1.1104b4p-3 -0x1.555518p-2")),
    F64: (
        0.25, 354.5,
        _hex(
            "0x1.dc83856c74dfcp-15 -0x1.c8d5f6b4dc2f0p-13 0x1.31d1a60fef032p-11 -0x1.7d49273e4696bp-10 0x1.d6cdf95854d1ep-9 "
            "-0x1.226e163b9cde6p-7 0x1.664f47b4b0b1cp-6 -0x1.ba1ba1b709ffbp-5 0x1.111111110e2a2p-3 -0x1.5555555555537p-2"
        ),
    ),
}  # fmt: skip


def tanh_and_slope(k: Constants, x: Array) -> tuple[Array, Array]:
    """Return tanh x and 1 - tanh^2 x."""
    near, far, c = TANH[k]
    square = x * x
    q = np.full_like(x, c[0])
    for coefficient in c[1:]:
        q = fma(k, q, square, coefficient)
    q = q * square
    inner = fma(k, x, q, x)
    inner_slope = fma(k, -inner, inner, 1)
    size = np.where(x < 0, -x, x)
    w = exps(k, k.dtype(-2) * np.where(size > far, k.dtype(far), size), k.dtype(k.magic - np.log2(k.lift)), k.dtype(-np.inf))
    d = _twice_inverse(w) if k is F32 else 2 / (1 + w)
    h = w * d
    outer = 1 - h
    outside = square > near
    return np.where(outside, np.where(x < 0, -outer, outer), inner), np.where(outside, h * d, inner_slope)


def _twice_inverse(w: Array) -> Array:
    d = fma(F32, fma(F32, *_hex("0x1.90abep0"), w, *_hex("-0x1.f9205cp0")), w, *_hex("0x1.ffef2cp0"))
    return fma(F32, d, fma(F32, -fma(F32, w, 0.5, 0.5), d, 1), d)


def total(e: Array) -> Array:  # [R, C] -> [R]
    """Add up: groups of four in the compute type, then in float64 one sum for each lane, then a tree over the lanes."""
    lanes = 64 // e.itemsize
    groups = -(-e.shape[1] // (4 * lanes))
    v = np.zeros((len(e), groups * 4 * lanes), e.dtype)
    v[:, : e.shape[1]] = e
    v = v.reshape(len(e), groups, 4, lanes)
    fours = ((v[:, :, 0] + v[:, :, 1]) + (v[:, :, 2] + v[:, :, 3])).astype(np.float64)
    a = np.zeros((len(e), lanes))
    for g in range(groups):
        a = a + fours[:, g]
    while a.shape[1] > 1:
        half = a.shape[1] // 2
        a = a[:, :half] + a[:, half:]
    return a[:, 0]


def finished(m: Array, s: Array, zt: Array) -> tuple[Array, Array, Array]:
    """Return nll, miss and unit = e^(m - lse)."""
    half = m / 2 - zt / 2
    gap = half * 2
    low = two_sum(m / 2, -zt / 2)[1] * 2
    a = gap + log(s)
    negative = a < 0
    w = exp(np.where(negative, gap, -gap))
    w = w + np.where(negative, w * low, -w * low)
    inverse_s = 1 / s
    odds = np.where(negative, s * w, w * inverse_s)
    inverse = 1 / (1 + odds)
    nll = np.where(negative, 0, a) + log1p(odds, inverse)
    miss = np.where(negative, odds, 1) * inverse
    return nll, miss, miss * inverse_s


def loss_and_gradient(z: Array, label: Array) -> tuple[Array, Array, Array]:  # [R, C], [R] -> s [R], loss [R], dz [R, C]
    """Return the sum of the exponentials, the loss and its gradient, for 64 < C <= 4096."""
    k = F32 if z.dtype == np.float32 else F64
    rows = np.arange(len(z))
    rest = z.copy()
    rest[rows, label] = -np.inf
    m = rest.max(axis=1)
    far = np.abs(m) >= 2 * k.reach  # then z - m is exact; else the shift is a power of two, and nothing is subtracted
    sub = np.where(far, m, k.dtype(0))
    n = np.where(far, k.dtype(0), fma(k, m, k.log2e, k.magic) - k.dtype(k.magic))
    low = np.where(far, k.dtype(0), m) - k.dtype(k.reach)
    e = exps(k, rest - sub[:, None], (k.dtype(k.magic) - n)[:, None], low[:, None])
    top, wide = m.astype(np.float64), n.astype(np.float64)
    down = exp(fma(F64, wide, F64.ln2[1], fma(F64, wide, F64.ln2[0], sub - top)))
    s = total(e) * (1 / k.lift) * down
    nll, miss, unit = finished(top, s, z[rows, label].astype(np.float64))
    scale = unit * down
    small, by = scale < 1, 1 / k.lift
    first, last = (x.astype(k.dtype)[:, None] for x in (np.where(small, scale, scale * by), np.where(small, by, 1)))
    dz = e * first * last
    dz[rows, label] = -miss
    return s, nll, dz
