"""The backend `triton`, for GPUs: the interface of kernels/__init__.py, implemented by Triton kernels.

Each program of a kernel processes some rows, a tile [ROWS, BLOCK] of the matrix at a time. Computations for each element are in float32,
or in float64 for float64 logits and in `tangent_sums` and `hessian`. Those for each row are in float64. Softmax is applied to y / T, where
y is the logit in memory or, with a softcap, cap tanh(logit / cap). Differences of y are divided by T, never a large y alone, so that no
difference is lost in a rounding.

The compiler may not fuse operations into fma, and the shape of a tile depends on the number of columns only. So a row has the same bits in
every batch, and `fused` gives the same bits as `forward` and `backward`. What a call does not need, such as the logits' transform or the
entropy, is not compiled into its kernel.

The tests run the kernels in Triton's interpreter and compile them for sm_90. They have not run on a GPU yet.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import triton
import triton.language as tl

from ..shared import IGNORED, LARGEST, LARGEST_LOGIT
from .reference import merge as merge

version = triton.__version__
TILE = 4096  # elements of a tile in float32, half as many in float64: 64 bytes for each thread of 8 warps
ROWS = 256  # at most this many rows in a tile, one for each thread: more would not fit into the registers
AS_GIVEN, TEMPERATURE, SOFTCAP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # TRANSFORM: the logits' transform
_IGNORED, _LARGEST, _LARGEST_LOGIT = tl.constexpr(IGNORED), tl.constexpr(LARGEST), tl.constexpr(LARGEST_LOGIT)


# ---- functions of one number ----


@triton.jit
def _exp(x):
    """exp with an error of 2 units in float32, where tl.exp has |x| / 2 units: the rounding error of x log2(e) is corrected."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    high = x * 1.44269502
    low = tl.fma(x, 1.44269502, -high) + x * 1.92596303e-8  # log2(e) = 1.44269502 + 1.926e-8 in float32
    e = tl.exp2(high)
    return tl.where(x > -150.0, e + e * (low * 0.69314718), tl.where(x == x, 0.0, x))  # 0 below -150; NaN stays NaN


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0 in float64: x log(u) / (u - 1), where u is 1 + x, rounded."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def _softplus(a):
    """log(1 + e^a) in float64, accurate for a << 0."""
    log1p = _log1p(tl.exp(-tl.abs(a)))
    return tl.where(a > 0.0, a, 0.0) + tl.where(a == a, log1p, a)


@triton.jit
def _times(weight, value):
    """weight * value, and 0 where the weight is 0."""
    return tl.where(weight == 0.0, 0.0, weight * value)


# ---- the logits' transform ----


@triton.jit
def _two_numbers(x, WIDE: tl.constexpr):
    """Return two numbers of the type WIDE whose sum is the float64 number x."""
    high = x.to(WIDE)
    return high, (x - high.to(tl.float64)).to(WIDE)


@triton.jit
def _scaled(x, factor):
    """Return x times a float64 number."""
    high, low = _two_numbers(factor, x.dtype)
    low = tl.where(tl.abs(high) == float("inf"), 0.0, low)
    return tl.where(tl.abs(x) == float("inf"), x, tl.fma(x, high, x * low))


@triton.jit
def _saturation(x, cap):
    """Return p = 2 |x| / cap and q = e^-p / (1 + e^-p), so that tanh(|x| / cap) = 1 - 2 q, with the slope 4 q (1 - q)."""
    high, low = _two_numbers(2.0 / cap, x.dtype)
    size = tl.abs(x)
    p = tl.where(size == float("inf"), size, size * high)
    rounding = tl.fma(size, high, -p) + size * low
    rounding = tl.where(p < float("inf"), rounding, 0.0)
    w = _exp(-p)
    w -= w * rounding
    return p + rounding, w / (1.0 + w)


@triton.jit
def _softcapped(x, cap):
    """Return cap tanh(x / cap) and its slope.

    For a = |x| / cap up to 0.625, tanh(a) / a = 1 + a^2 r, where r is a polynomial in a^2, interpolated at Chebyshev's points: the error of
    tanh is 2^-25.8 in float32 and 2^-56.8 in float64.
    """
    p, q = _saturation(x, cap)
    y = p * p * 0.25
    if x.dtype == tl.float64:
        r = ((y * 6.485163482793113e-06 - 3.12011014257974e-05) * y + 9.257116129556769e-05) * y - 0.0002375906496055562
        r = (((y * r + 0.0005896606577757043) * y - 0.0014557754120478055) * y + 0.0035921217511549622) * y - 0.008863235103240878
        r = (((y * r + 0.021869488519008305) * y - 0.05396825396789699) * y + 0.13333333333333042) * y - 0.3333333333333333
    else:
        r = (y * -0.006096714176237583 + 0.020997179672122) * y - 0.05385090783238411
        r = (y * r + 0.1333276927471161) * y - 0.333333283662796
    part = tl.where(cap > 2.0**64, 0.5, 1.0)  # the cap may be beyond the range of the type where the result is not
    large = _scaled(1.0 - 2.0 * q, cap * part) * (1.0 / part).to(x.dtype)
    return tl.where(p <= 1.25, x + x * (y * r), tl.where(x < 0.0, -large, large)), 4.0 * q * (1.0 - q)


@triton.jit
def _read(z, mask, cap, TRANSFORM: tl.constexpr, WIDE: tl.constexpr):
    """Return y of the logits at these addresses, -inf where the mask excludes them, and the slope of y."""
    x = tl.load(z, mask=mask, other=-float("inf")).to(WIDE)
    if TRANSFORM != SOFTCAP:
        return x, tl.full(x.shape, 1.0, WIDE)
    y, slope = _softcapped(x, cap)
    return tl.where(mask, y, -float("inf")), slope


@triton.jit
def _factors(temperature, WIDE: tl.constexpr):
    """Return two numbers whose product is 1 / T. y times the first does not overflow, and the second is not 0."""
    far: tl.constexpr = 2.0**60 if WIDE == tl.float32 else float("inf")
    least: tl.constexpr = 2.0**-126 if WIDE == tl.float32 else 0.0
    half = tl.where(temperature > far, 2.0**-64, 0.5).to(tl.float64)
    twice = 1.0 / temperature / half
    return half.to(WIDE), tl.where(twice > least, twice, least).to(WIDE)


@triton.jit
def _minus(a, b, temperature, TRANSFORM: tl.constexpr):
    """Return (a - b) / T. With a temperature, a - b may be beyond the range of the type."""
    if TRANSFORM == AS_GIVEN:
        return a - b
    half, twice = _factors(temperature, a.dtype)
    return (a * half - b * half) * twice


# ---- powers of two ----


@triton.jit
def _exponent(x):
    """Return k with 2^k <= |x| < 2^(k+1) for a float64 number; 0 for 0, infinity and NaN."""
    small = tl.abs(x) < 2.0**-900
    x *= tl.where(small, 2.0**128, 1.0)
    k = ((x.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023
    return tl.where((k == -1023) | (k == 1024), 0, k - tl.where(small, 128, 0))


@triton.jit
def _power(k, MOST: tl.constexpr):
    """Return k and 2^k in float64, for a k between -MOST and MOST; others count as the closest of these."""
    k = tl.where(k > MOST, MOST, tl.where(k < -MOST, -MOST, k))
    return k, ((k + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _powers(k, WIDE: tl.constexpr):
    """Return two float64 numbers whose product is 2^k, both of the range of WIDE. The first times a number of moderate size is, too."""
    most: tl.constexpr = 126 if WIDE == tl.float32 else 1022
    first, by = _power(k, most // 2)
    return by, _power(k - first, most)[1]


@triton.jit
def _mantissa(x):
    """Return m and k for a float64 number x = m 2^k: 1 <= |m| < 2, or k is 0."""
    k = _exponent(x)
    by, again = _powers(-k, tl.float64)
    return x * by * again, k


@triton.jit
def _larger(a, b):
    """Return the larger absolute value. That of NaN is 0."""
    return tl.where(tl.abs(a) > b, tl.abs(a), b)


# ---- a row's label, numbers, sums and coefficients ----


@triton.jit
def _largest(x):
    """Return the largest number of each row, and its column. A NaN counts as -inf."""
    return tl.max(tl.where(x == x, x, -float("inf")), 1, return_indices=True)


@triton.jit
def _label(
    label, z, off, here, C, cap, TRANSFORM: tl.constexpr, OFF: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the labels of the rows; for LARGEST, the column of the largest off, if off is a matrix, or of the largest logit; for
    LARGEST_LOGIT, the latter."""
    t = tl.load(label, mask=here, other=_IGNORED)
    wanted = (t == _LARGEST) | (t == _LARGEST_LOGIT)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        largest = tl.full(t.shape, -float("inf"), WIDE)
        at = tl.zeros_like(t)
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside = wanted[:, None] & (col < C)
            x = _read(z[:, None] + col, inside, cap, TRANSFORM, WIDE)[0]
            if OFF == 2:
                x = tl.where((t == _LARGEST)[:, None], tl.load(off[:, None] + col, mask=inside, other=-float("inf")).to(WIDE), x)
            block, index = _largest(x)
            at = tl.where(block > largest, k + index, at)
            largest = tl.where(block > largest, block, largest)
        t = tl.where(wanted, at, t)
    return t


@triton.jit
def _number(number, live):
    """Return a number of each row, which is 0 in rows that are not live. Without the second 0, the compiler needs more registers."""
    return tl.where(live, tl.load(number, mask=live, other=0.0), 0.0)


@triton.jit
def _numbers(numbers, live, stride, NUMBERS: tl.constexpr):
    """Return the numbers y, r, q, g, l, b and n of each row, which are 0 in rows that are not live."""
    y = _number(numbers, live)
    r = _number(numbers + stride, live)
    q = _number(numbers + 2 * stride, live)
    g = _number(numbers + 3 * stride, live)
    zero = tl.zeros_like(y)
    l, b, n = zero, zero, zero  # noqa: E741
    if NUMBERS == 7:
        l = _number(numbers + 4 * stride, live)  # noqa: E741
        b = _number(numbers + 5 * stride, live)
        n = _number(numbers + 6 * stride, live)
    return y, r, q, g, l, b, n


@triton.jit
def _sums(
    z, off, t, live, C, temperature, cap,
    TRANSFORM: tl.constexpr, OFF: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the partial sums of the rows, m, s, o, d, zt, wt and u, as in partials.py, and with TOP the column of m. But m, zt and d are
    those of y, and d is half of the sum."""
    inf = float("inf")
    hit = live & (t >= 0) & (t < C)
    zt = _read(z + t, hit, cap, TRANSFORM, WIDE)[0]
    m = tl.full(t.shape, -inf, WIDE)
    s = tl.zeros(t.shape, tl.float64)
    o, d, u, wt = s, s, s, s
    at = tl.zeros_like(t)
    if OFF:
        wt = tl.load(off + t, mask=hit, other=0.0).to(tl.float64)
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside, hot = live[:, None] & (col < C), col == t[:, None]
        x = _read(z[:, None] + col, inside, cap, TRANSFORM, WIDE)[0]
        x = tl.where(hot, -inf, x)  # the label is kept apart
        if TOP:
            block, index = _largest(x)
            at = tl.where(block > m, k + index, at)
        else:
            block = tl.max(tl.where(x == x, x, -inf), 1)  # a NaN is left out of the maximum and makes s NaN
        top = tl.where(block > m, block, m)
        shift = tl.where(top == -inf, 0.0, top)
        factor = tl.where(m == top, 1.0, _exp(_minus(m, shift, temperature, TRANSFORM))).to(tl.float64)
        away = _minus(x, shift[:, None], temperature, TRANSFORM)
        e = _exp(away)
        if ENTROPY:
            down = tl.where(m == top, 0.0, _minus(top, m, temperature, TRANSFORM)).to(tl.float64)
            u = _times(factor, u + _times(s, down)) + tl.sum(_times(e, -away), 1).to(tl.float64)
        s = s * factor + tl.sum(e, 1).to(tl.float64)
        if OFF:
            w = tl.load(off[:, None] + col, mask=inside, other=0.0).to(WIDE)
            w = tl.where(hot, 0.0, w)
            d += _times(o, tl.where(m == top, 0.0, 0.5 * top.to(tl.float64) - 0.5 * m.to(tl.float64)))
            d += tl.sum(_times(w, 0.5 * shift[:, None] - 0.5 * x), 1).to(tl.float64)
            o += tl.sum(w, 1).to(tl.float64)
        m = top
    return m.to(tl.float64), s, o, d, zt.to(tl.float64), wt, u, at


@triton.jit
def _store_parts(parts, stride, here, m, s, o, d, zt, wt, u):
    """Store the partial sums of the rows."""
    tl.store(parts, m, mask=here)
    tl.store(parts + stride, s, mask=here)
    tl.store(parts + 2 * stride, o, mask=here)
    tl.store(parts + 3 * stride, d, mask=here)
    tl.store(parts + 4 * stride, zt, mask=here)
    tl.store(parts + 5 * stride, wt, mask=here)
    tl.store(parts + 6 * stride, u, mask=here)


@triton.jit
def _load_parts(parts, stride, here):
    """Return the partial sums m, s, o, zt, wt and u of the rows."""
    m = tl.load(parts, mask=here, other=-float("inf"))
    s = tl.load(parts + stride, mask=here, other=0.0)
    o = tl.load(parts + 2 * stride, mask=here, other=0.0)
    zt = tl.load(parts + 4 * stride, mask=here, other=-float("inf"))
    wt = tl.load(parts + 5 * stride, mask=here, other=0.0)
    u = tl.load(parts + 6 * stride, mask=here, other=0.0)
    return m, s, o, zt, wt, u


@triton.jit
def _finish(m, s, zt, cool, WIDE: tl.constexpr):
    """Return nll, miss, over, the largest logit and lse minus it, as `finish` and `peak` of partials.py. m and zt are those of y, and cool
    is 1 / T. Return also half of nll and over, which for float64 logits may be beyond the range, or for others all of them."""
    PART: tl.constexpr = 0.5 if WIDE == tl.float64 else 1.0
    inf = float("inf")
    log_s = tl.where(s == 0.0, -inf, tl.log(tl.where(s == 0.0, 1.0, s)))
    gap = (PART * m - PART * zt) * cool
    a = tl.where(zt == inf, float("nan"), gap / PART + log_s)  # the log-odds against the label
    nll = _softplus(a)
    other = _softplus(-a)
    miss = tl.exp(-other)
    over = tl.where(s == 0.0, -gap / PART, log_s + other)
    part_nll, part_over = nll, over
    if PART != 1.0:
        part_nll = tl.where(nll == inf, gap + PART * log_s, PART * nll)
        part_over = tl.where(over == inf, -gap, PART * over)
    top = tl.where(zt > m, zt, m)
    return nll, miss, over, top, tl.where(zt > m, nll, over), part_nll, part_over


@triton.jit
def _entropy(s, u, nll, over):
    return _times(tl.exp(-nll), nll) + _times(tl.exp(-over), u + _times(s, over))


@triton.jit
def _coefficients(y, r, q, g, l, b, n, s, o, wt, u, nll, miss, over, lse, lift, NUMBERS: tl.constexpr):  # noqa: E741
    """Return a, e, c and the gradient at the label for `_gradient`: the coefficients of formula.py, but of exp(z_k - top) and top - z_k
    in place of yhat_k and lse - z_k. Also return whether they are not all 0."""
    rest = r * o + _times(q, lse)
    at = y + r * wt
    yhat_t = tl.exp(-nll)
    a = _times(g, at + rest)
    h = _times(g, _times(rest, yhat_t) - _times(at, miss))
    if NUMBERS == 7:
        down = _times(n, _entropy(s, u, nll, over))
        a += l - b - down + _times(n, lift)
        h += _times(l, yhat_t) + _times(b, miss) - _times(down, yhat_t) + _times(n, _times(yhat_t, nll))
    c = g * r
    scale = tl.exp(-lift)
    return a * scale, n * scale, c, h, (a != 0.0) | (n != 0.0) | (c != 0.0) | (h != 0.0)


@triton.jit
def _shift(top, WIDE: tl.constexpr):
    """Return the largest logits of the rows as [ROWS, 1], but 0 in place of -inf."""
    return tl.where(top == -float("inf"), 0.0, top).to(WIDE)[:, None]


@triton.jit
def _from_top(z, top, temperature, TRANSFORM: tl.constexpr):
    """Return exp(z - top) and top - z, which is 0 where the former is 0: its product with that is 0, also at -inf."""
    away = _minus(z, top, temperature, TRANSFORM)
    exp = _exp(away)
    return exp, tl.where(exp == 0.0, 0.0, -away)


@triton.jit
def _gradient(exp, below, hot, a, e, c, h, active, off, mask, NUMBERS: tl.constexpr, OFF: tl.constexpr, WIDE: tl.constexpr):
    """Return the gradient by the logits z: exp(z_k - top) (a + e (top - z_k)) - c off_k, and h at the label."""
    if NUMBERS == 7:
        dz = exp * (a.to(WIDE)[:, None] + e.to(WIDE)[:, None] * below)
    else:
        dz = a.to(WIDE)[:, None] * exp
    if OFF:
        w = tl.load(off, mask=mask, other=0.0).to(WIDE)
        if WIDE == tl.float32:  # off may be so large that its product with a subnormal c is not: no digit of c is lost
            small = tl.abs(c) < 2.0**-126
            c *= tl.where(small, 2.0**126, 1.0)
            w *= tl.where(small, 2.0**-126, 1.0)[:, None]
        dz -= c.to(WIDE)[:, None] * w
    return tl.where(active[:, None], tl.where(hot, h.to(WIDE)[:, None], dz), 0.0)


# ---- derivatives along v ----


@triton.jit
def _along(z, v, factor, mask, cap, TRANSFORM: tl.constexpr, WIDE: tl.constexpr):
    """Return y, its slope, v times the factor and the slope, and v times the factor."""
    y, slope = _read(z, mask, cap, TRANSFORM, WIDE)
    vk = tl.load(v, mask=mask, other=0.0).to(WIDE) * factor
    if TRANSFORM == SOFTCAP:
        return y, slope, _times(vk, slope), vk
    return y, slope, vk, vk


@triton.jit
def _size_of(
    z, v, live, top, C, temperature, cap, TRANSFORM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the exponent of the largest |v| where yhat is not 0, unless others would be beyond the range then, and 2^-exponent."""
    top = _shift(top, WIDE)
    LEAST: tl.constexpr = 126 if WIDE == tl.float32 else 1022
    probable = tl.full(live.shape, 2.0**-LEAST, WIDE)
    most = probable
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside = live[:, None] & (col < C)
        exp = _from_top(_read(z[:, None] + col, inside, cap, TRANSFORM, WIDE)[0], top, temperature, TRANSFORM)[0]
        vk = tl.abs(tl.load(v[:, None] + col, mask=inside, other=0.0).to(WIDE))
        vk = tl.where(vk < float("inf"), vk, 0.0)
        most = _larger(tl.max(vk, 1), most)
        probable = _larger(tl.max(tl.where(exp == 0.0, 0.0, vk), 1), probable)
    size, others = _exponent(probable.to(tl.float64)), _exponent(most.to(tl.float64)) - 60
    size, down = _power(-tl.where(others > size, others, size), LEAST)
    return -size, down.to(WIDE)


@triton.jit
def _tangents(
    z, v, off, t, live, m, c, factor, C, temperature, cap,
    TRANSFORM: tl.constexpr, OFF: tl.constexpr, ENTROPY: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the derivatives s, u, o and vt of the partial sums along v times the factor, as in partials.py, for this c."""
    hit = live & (t >= 0) & (t < C)
    vt = _along(z + t, v + t, factor, hit, cap, TRANSFORM, WIDE)[2]
    top = _shift(m, WIDE)
    s = tl.zeros(t.shape, tl.float64)
    u, o = s, s
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        others = live[:, None] & (col < C) & (col != t[:, None])
        zk, _, vk, _ = _along(z[:, None] + col, v[:, None] + col, factor[:, None], others, cap, TRANSFORM, WIDE)
        exp, below = _from_top(zk, top, temperature, TRANSFORM)
        away = c[:, None] - vk
        s += tl.sum(_times(exp, away), 1).to(tl.float64)
        if ENTROPY:
            u += tl.sum(_times(exp * below, away), 1).to(tl.float64)
        if OFF:
            w = tl.load(off[:, None] + col, mask=others, other=0.0).to(WIDE)
            o += tl.sum(_times(w, away), 1).to(tl.float64)
    return s, u, o, vt.to(tl.float64)


@triton.jit
def _derivatives(m, s, o, zt, wt, u, nll, miss, over, c, ds, du, do, vt, ENTROPY: tl.constexpr):
    """Return what `along` of partials.py does, from the sums of whole rows and their derivatives along v: mean = <yhat, v>, v_t - mean,
    sum_k off_k (v_k - mean) and the derivative of the entropy. Return also v_j for the more probable of the label and the column of c, and
    v_j - mean."""
    unit, hit = tl.exp(-over), tl.exp(-nll)
    behind = c - vt
    of_s = _times(unit, ds)
    lead = of_s + _times(hit, behind)
    at = of_s - _times(miss, behind)
    by_off = _times(lead, o) - do + _times(wt, at)
    dentropy = tl.zeros_like(s)
    if ENTROPY:
        dentropy = _times(lead, _times(unit, u + _times(s, over))) - _times(unit, du + _times(ds, over)) + _times(hit, nll * at)
    vj, to_mean = tl.where(zt > m, vt, c), tl.where(zt > m, at, lead)
    return vj - to_mean, at, by_off, dentropy, vj, to_mean


@triton.jit
def _store_derivatives(result, stride, here, live, labelled, mean, at, by_off, dentropy, first, last):
    """Store the derivatives of what the rows give, times first and last."""
    tl.store(result, tl.where(live, mean * first * last, 0.0), mask=here)
    tl.store(result + stride, tl.where(labelled, at * first * last, 0.0), mask=here)
    tl.store(result + 2 * stride, tl.where(live, by_off * first * last, 0.0), mask=here)
    tl.store(result + 3 * stride, tl.where(live, dentropy * first * last, 0.0), mask=here)


@triton.jit
def _store_product(
    z, v, off, numbers, out, t, here, live, C, numbers_stride, temperature, cap,
    s, o, wt, u, nll, miss, over, top, lift,  # of the rows
    mean, dentropy, vj, to_mean,  # from `_derivatives`
    factor, cool, size,
    GAUSS_NEWTON: tl.constexpr, NUMBERS: tl.constexpr, OFF: tl.constexpr,
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the product of the Hessian and v.

    v times the factor, the slope, cool and 2^size is the direction of z / T; mean, dentropy, vj and to_mean have the same unit. The
    coefficients are divided by 2^k until the end, so that no intermediate result is infinite or subnormal unless the product is.
    """
    y, r, q, g, l, b, n = _numbers(numbers, live, numbers_stride, NUMBERS)  # noqa: E741
    given = (y != 0.0) | (r != 0.0) | (q != 0.0) | (g != 0.0) | (l != 0.0) | (b != 0.0) | (n != 0.0)
    lse = top * (1.0 / temperature) + lift
    a, e, c, h, active = _coefficients(y, r, q, g, l, b, n, s, o, wt, u, nll, miss, over, lse, lift, NUMBERS)
    da = _times(_times(g, q), mean) * tl.exp(-lift) - _times(e, dentropy)
    k, by = _power(-_exponent(_larger(h, _larger(c, _larger(e, _larger(a, tl.abs(da)))))), 1022)
    a, e, c, h, da = a * by, e * by, c * by, h * by, da * by
    bend, larger = 1.0 / cap, tl.where(cap < temperature, 1.0 / cap, 1.0 / temperature)  # of 1 / T and 1 / cap
    by_t, by_cap = 1.0 / temperature / larger, bend / larger
    larger, of_larger = _mantissa(larger)
    first, last = _powers(size + of_larger - k, WIDE)
    first *= cool * larger
    da = (da * by_t).to(WIDE)[:, None]
    by_apart = ((a - e) * by_t).to(WIDE)[:, None]
    by_both = (e * by_t).to(WIDE)[:, None]
    top = _shift(top, WIDE)
    vj, to_mean = vj.to(WIDE)[:, None], to_mean.to(WIDE)[:, None]
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        used = given[:, None] & (col < C)
        zk, slope, vk, given_v = _along(z[:, None] + col, v[:, None] + col, factor[:, None], used, cap, TRANSFORM, WIDE)
        exp, below = _from_top(zk, top, temperature, TRANSFORM)
        apart = tl.where(exp == 0.0, 0.0, vk - vj) + to_mean  # the v of a masked class may be infinite or NaN
        if NUMBERS == 7:
            hv = exp * ((by_apart + by_both * below) * apart + da)
        else:
            hv = exp * (by_apart * apart + da)
        if TRANSFORM == SOFTCAP and not GAUSS_NEWTON:  # the second derivative of z is -2 / cap tanh(x / cap) slope
            hot = col == t[:, None]
            dz = _gradient(exp, below, hot, a, e, c, h, active, off[:, None] + col if OFF else None, used, NUMBERS, OFF, WIDE)
            hv += _times(dz, given_v * ((-2.0 * by_cap).to(WIDE) * _scaled(zk, bend)))
        hv *= first.to(WIDE)[:, None]
        if TRANSFORM == SOFTCAP:
            hv = _times(hv, slope)
        hv = tl.where(given[:, None], hv * last.to(WIDE)[:, None], 0.0)
        if out.dtype.element_ty != tl.float64:
            hv = hv.to(tl.float32)  # Triton's interpreter converts no float64 to bfloat16
        tl.store(out[:, None] + col, hv.to(out.dtype.element_ty), mask=here[:, None] & (col < C))


# ---- the kernels ----


@triton.jit(do_not_specialize=["temperature", "cap"])
def _layer(
    z,  # [R, C], rows z_stride apart
    label,  # [R] int64
    numbers,  # [NUMBERS, R] or, with row_stride 0, [NUMBERS, 1]: y, r, q, g and perhaps l, b, n
    off,  # [R, C], or with off_stride 0 [C]: the truth away from the label, or None
    result,  # [OUTPUTS, R] float64: loss, lse and perhaps the log-probability of the label, the entropy, and whether the label is largest
    parts,  # [7, R] float64, or None
    out,  # [R, C], or None
    R, C, z_stride, numbers_stride, row_stride, off_stride, result_stride, parts_stride, out_stride,
    temperature, cap,  # the bits of float64 numbers: Triton passes a float of Python as float32
    OUTPUTS: tl.constexpr, NUMBERS: tl.constexpr, OFF: tl.constexpr,  # OFF is the number of dimensions of off, or 0
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute what the rows give, if result is given, or else read their partial sums; and compute their gradient, if out is given."""
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    z += row * z_stride
    if OFF:
        off += row * off_stride
    t = _label(label + row, z, off, here, C, cap, TRANSFORM, OFF, WIDE, BLOCK)
    live = t != _IGNORED
    inf = float("inf")
    PART: tl.constexpr = 0.5 if WIDE == tl.float64 else 1.0  # of what `_finish` returns
    cool = tl.full((), 1.0, tl.float64)  # a constant takes fewer registers
    if TRANSFORM != AS_GIVEN:
        cool = 1.0 / temperature

    if OUTPUTS:
        m, s, o, d, zt, wt, u, _ = _sums(
            z, off, t, live, C, temperature, cap, TRANSFORM, OFF, OUTPUTS == 5 or NUMBERS == 7, False, WIDE, BLOCK
        )
        d *= 2.0 * PART * cool
        if OUTPUTS == 5:
            m = tl.where((s == s) | (m == inf), m, float("nan"))  # a NaN makes m NaN, and the label is not the largest
        if parts is not None:
            _store_parts(parts + row, parts_stride, here, m, s, o, d / PART, zt, wt, u)
    else:
        m, s, o, zt, wt, u = _load_parts(parts + row, parts_stride, here)

    y, r, q, g, l, b, n = _numbers(numbers + row * row_stride, live, numbers_stride, NUMBERS)  # noqa: E741
    nll, miss, over, top, lift, part_nll, part_over = _finish(m, s, zt, cool, WIDE)
    lse = top * cool + lift
    if OUTPUTS:
        loss = (_times(y + r * wt, part_nll) + _times(r, d + _times(o, part_over))) / PART + _times(q, lse * lse * 0.5)
        tl.store(result + row, tl.where(live, loss, 0.0), mask=here)
        tl.store(result + row + result_stride, tl.where(live, lse, 0.0), mask=here)
    if OUTPUTS == 5:
        tl.store(result + row + 2 * result_stride, tl.where(live, -part_nll / PART, 0.0), mask=here)
        tl.store(result + row + 3 * result_stride, tl.where(live, _entropy(s, u, nll, over), 0.0), mask=here)
        tl.store(result + row + 4 * result_stride, tl.where(live & (zt >= m) & (zt > -inf), 1.0, 0.0), mask=here)

    if out is not None:
        a, e, c, h, active = _coefficients(y, r, q, g, l, b, n, s, o, wt, u, nll, miss, over, lse, lift, NUMBERS)
        k, by = _power(-_exponent(_larger(h, _larger(c, _larger(e, tl.abs(a))))), 1022)
        a, e, c, h = a * by, e * by, c * by, h * by  # of moderate size, and multiplied by first and last in the end
        cool, size = _mantissa(cool)
        first, last = _powers(size - k, WIDE)
        first *= cool
        if TRANSFORM != SOFTCAP:  # whose slope may be subnormal
            a, e, c, h = a * first, e * first, c * first, h * first
        top = _shift(top, WIDE)
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            used = active[:, None] & (col < C)
            zk, slope = _read(z[:, None] + col, used, cap, TRANSFORM, WIDE)
            hot = col == t[:, None]
            exp, below = _from_top(zk, top, temperature, TRANSFORM)
            dz = _gradient(exp, below, hot, a, e, c, h, active, off[:, None] + col if OFF else None, used, NUMBERS, OFF, WIDE)
            if TRANSFORM == SOFTCAP:
                dz = _times(dz * first.to(WIDE)[:, None], slope)
            dz *= last.to(WIDE)[:, None]
            tl.store(out + row[:, None] * out_stride + col, dz.to(out.dtype.element_ty), mask=here[:, None] & (col < C))


@triton.jit(do_not_specialize=["temperature", "cap"])
def _curvature(
    z, v,  # [R, C], rows z_stride and v_stride apart
    label, numbers, off,  # as in _layer
    result,  # [4, R] float64: mean = <yhat, v>, v_t - mean, sum_k off_k (v_k - mean), the derivative of the entropy if NUMBERS is 7
    out,  # [R, C]
    R, C, z_stride, v_stride, numbers_stride, row_stride, off_stride, result_stride, out_stride, temperature, cap,
    GAUSS_NEWTON: tl.constexpr, NUMBERS: tl.constexpr, OFF: tl.constexpr,
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the derivative of the gradient along v.

    v_k - mean is computed as (v_k - v_j) + (v_j - mean), where j is the most probable class. So the rows are read once for their sums and
    j, once for the size of v, once for the sums with v_j - v_k, and once for the product. Until the end, v is divided by 2^size.
    """
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    z += row * z_stride
    v += row * v_stride
    if OFF:
        off += row * off_stride
    t = _label(label + row, z, off, here, C, cap, TRANSFORM, OFF, WIDE, BLOCK)
    live = t != _IGNORED
    m, s, o, _, zt, wt, u, at = _sums(z, off, t, live, C, temperature, cap, TRANSFORM, OFF, NUMBERS == 7, True, WIDE, BLOCK)
    cool = 1.0 / temperature
    nll, miss, over, top, lift, _, _ = _finish(m, s, zt, cool, WIDE)
    size, down = _size_of(z, v, live, top, C, temperature, cap, TRANSFORM, WIDE, BLOCK)
    cool, k = _mantissa(cool)
    j = tl.where(zt > m, t, at)
    vj = _along(z + j, v + j, down, live, cap, TRANSFORM, WIDE)[2]
    ds, du, do, vt = _tangents(z, v, off, t, live, m, vj, down, C, temperature, cap, TRANSFORM, OFF, NUMBERS == 7, WIDE, BLOCK)
    mean, at, by_off, dentropy, vj, to_mean = _derivatives(
        m, s, o, zt, wt, u, nll, miss, over, vj.to(tl.float64), ds, du, do, vt, NUMBERS == 7
    )
    first, last = _powers(size + k, tl.float64)
    labelled = live & (t >= 0) & (t < C)
    _store_derivatives(result + row, result_stride, here, live, labelled, mean, at, by_off, dentropy, first * cool, last)
    _store_product(
        z, v, off, numbers + row * row_stride, out + row * out_stride, t, here, live, C, numbers_stride, temperature, cap,
        s, o, wt, u, nll, miss, over, top, lift, mean, dentropy, vj, to_mean, down, cool, size + k,
        GAUSS_NEWTON, NUMBERS, OFF, TRANSFORM, WIDE, BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["temperature", "cap"])
def _tangent_sums(
    z, v, label, off,  # as in _curvature
    parts,  # [7, R] float64
    tangents,  # [5, R] float64: the derivatives c, s, u, o and vt of the parts along v
    R, C, z_stride, v_stride, off_stride, parts_stride, tangents_stride, temperature, cap,
    OFF: tl.constexpr, TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the partial sums and their derivatives along v, of columns that may be some of all.

    v is multiplied by 1 / T before differences are taken, as in `_hessian`, so that v_j in the sums is the v_j of the product to the bit.
    """
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    z += row * z_stride
    v += row * v_stride
    if OFF:
        off += row * off_stride
    t = _label(label + row, z, off, here, C, cap, TRANSFORM, OFF, WIDE, BLOCK)
    live = t != _IGNORED
    m, s, o, d, zt, wt, u, at = _sums(z, off, t, live, C, temperature, cap, TRANSFORM, OFF, True, True, WIDE, BLOCK)
    cool = 1.0 / temperature
    _store_parts(parts + row, parts_stride, here, m, s, o, 2.0 * (d * cool), zt, wt, u)
    top = tl.where(zt > m, zt, m)
    size, down = _size_of(z, v, live, top, C, temperature, cap, TRANSFORM, WIDE, BLOCK)
    cool, k = _mantissa(cool)
    factor = cool * down
    c = _along(z + at, v + at, factor, live & (m > -float("inf")), cap, TRANSFORM, WIDE)[2]
    ds, du, do, vt = _tangents(z, v, off, t, live, m, c, factor, C, temperature, cap, TRANSFORM, OFF, True, WIDE, BLOCK)
    first, last = _powers(size + k, tl.float64)
    tangents += row
    tl.store(tangents, c * first * last, mask=here)
    tl.store(tangents + tangents_stride, ds * first * last, mask=here)
    tl.store(tangents + 2 * tangents_stride, du * first * last, mask=here)
    tl.store(tangents + 3 * tangents_stride, do * first * last, mask=here)
    tl.store(tangents + 4 * tangents_stride, vt * first * last, mask=here)


@triton.jit(do_not_specialize=["temperature", "cap"])
def _hessian(
    z, v, label, numbers, off,  # as in _curvature
    parts, tangents,  # as in _tangent_sums, of whole rows
    result, out,  # as in _curvature
    R, C, z_stride, v_stride, numbers_stride, row_stride, off_stride, parts_stride, tangents_stride, result_stride, out_stride,
    temperature, cap,
    GAUSS_NEWTON: tl.constexpr, NUMBERS: tl.constexpr, OFF: tl.constexpr,
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute what `_curvature` does, for columns that may be some of all.

    The result has the same bits for all columns of a row: the sums with v are divided by 2^size_of_sums for it, whatever v is here.
    """
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    z += row * z_stride
    v += row * v_stride
    if OFF:
        off += row * off_stride
    t = _label(label + row, z, off, here, C, cap, TRANSFORM, OFF, WIDE, BLOCK)
    live = t != _IGNORED
    m, s, o, zt, wt, u = _load_parts(parts + row, parts_stride, here)
    tangents += row
    c = tl.load(tangents, mask=here, other=0.0)
    ds = tl.load(tangents + tangents_stride, mask=here, other=0.0)
    du = tl.load(tangents + 2 * tangents_stride, mask=here, other=0.0)
    do = tl.load(tangents + 3 * tangents_stride, mask=here, other=0.0)
    vt = tl.load(tangents + 4 * tangents_stride, mask=here, other=0.0)
    least = tl.full(c.shape, 2.0**-1022, tl.float64)
    size_of_sums = _exponent(_larger(c, _larger(ds, _larger(du, _larger(do, _larger(vt, least))))))
    by, again = _powers(-size_of_sums, tl.float64)
    c, ds, du, do, vt = c * by * again, ds * by * again, du * by * again, do * by * again, vt * by * again
    cool = 1.0 / temperature
    nll, miss, over, top, lift, _, _ = _finish(m, s, zt, cool, WIDE)
    mean, at, by_off, dentropy, vj, to_mean = _derivatives(m, s, o, zt, wt, u, nll, miss, over, c, ds, du, do, vt, True)
    first, last = _powers(size_of_sums, tl.float64)
    labelled = live & (zt > -float("inf"))
    _store_derivatives(result + row, result_stride, here, live, labelled, mean, at, by_off, dentropy, first, last)

    size, _ = _size_of(z, v, live, top, C, temperature, cap, TRANSFORM, WIDE, BLOCK)
    cool, k = _mantissa(cool)
    size = tl.where(size + k > size_of_sums, size + k, size_of_sums)
    by, again = _powers(k - size, tl.float64)
    factor = cool * by * again
    by, again = _powers(size_of_sums - size, tl.float64)
    mean, dentropy, vj, to_mean = mean * by * again, dentropy * by * again, vj * by * again, to_mean * by * again
    _store_product(
        z, v, off, numbers + row * row_stride, out + row * out_stride, t, here, live, C, numbers_stride, temperature, cap,
        s, o, wt, u, nll, miss, over, top, lift, mean, dentropy, vj, to_mean, factor, 1.0, size,
        GAUSS_NEWTON, NUMBERS, OFF, TRANSFORM, WIDE, BLOCK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["temperature", "cap"])
def _log_softmax(
    z,  # [R, C], rows z_stride apart
    scale,  # [R] or, with scale_stride 0, [1] float64
    out,  # [R, C]
    R, C, z_stride, scale_stride, out_stride, temperature, cap,
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute scale log yhat_k. The sum s is over all classes but one with the largest logit, so that a value near 0 keeps its digits."""
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    z += row * z_stride
    inf = float("inf")
    m = tl.full(row.shape, -inf, WIDE)
    s = tl.zeros(row.shape, tl.float64)
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        x = _read(z[:, None] + col, here[:, None] & (col < C), cap, TRANSFORM, WIDE)[0]
        block, index = _largest(x)
        top = tl.where(block > m, block, m)
        shift = tl.where(top == -inf, 0.0, top)
        lower = tl.where(block > m, m, block)  # the smaller of the two maxima is an ordinary term of the sum
        factor = tl.where(m == top, 1.0, _exp(_minus(m, shift, temperature, TRANSFORM))).to(tl.float64)
        rest = tl.where(col - k == index[:, None], 0.0, _exp(_minus(x, shift[:, None], temperature, TRANSFORM)))
        lower = _exp(_minus(lower, shift, temperature, TRANSFORM))
        s = s * factor + (tl.sum(rest, 1).to(tl.float64) + lower.to(tl.float64))
        m = top
    lift = tl.where(tl.abs(m) == inf, float("nan"), _log1p(s)).to(WIDE)[:, None]
    by = -tl.load(scale + row * scale_stride, mask=here, other=0.0).to(WIDE)[:, None]
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside = here[:, None] & (col < C)
        x = _read(z[:, None] + col, inside, cap, TRANSFORM, WIDE)[0]
        away = _minus(m[:, None], x, temperature, TRANSFORM) + lift
        tl.store(out + row[:, None] * out_stride + col, _times(by, away).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scale(out, by, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    g = tl.load(by).to(WIDE)
    if g != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(out + at, mask=at < n)
        tl.store(out + at, tl.where(x == 0.0, x, (x.to(WIDE) * g).to(out.dtype.element_ty)), mask=at < n)


# ---- the interface ----


def forward(z: Any, label: Any, numbers: Any, off: Any, transform: Any, result: Any, parts: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, result, parts, None)


def backward(z: Any, label: Any, numbers: Any, off: Any, transform: Any, parts: Any, out: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, None, parts, out)


def fused(z: Any, label: Any, numbers: Any, off: Any, transform: Any, out: Any, result: Any, parts: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, result, parts, out)


def _launch_layer(z: Any, label: Any, numbers: Any, off: Any, transform: Any, result: Any, parts: Any, out: Any) -> None:
    if result is not None and len(result) == 6:  # torch's own kernel finds the most probable class
        result[5] = z.argmax(-1).masked_fill(label == IGNORED, -1)
        result = result[:5]
    strides = z.stride(0), *_strides(numbers, off), *(0 if x is None else x.stride(0) for x in (result, parts, out))
    _launch(
        _layer, TILE, transform, [z, label.contiguous(), numbers, off, result, parts, out], strides,
        OUTPUTS=0 if result is None else len(result), NUMBERS=len(numbers), OFF=0 if off is None else off.ndim,
    )  # fmt: skip


def curvature(
    z: Any, v: Any, label: Any, numbers: Any, off: Any, transform: Any, gauss_newton: bool, out: Any, result: Any, threads: int
) -> None:
    strides = z.stride(0), v.stride(0), *_strides(numbers, off), result.stride(0), out.stride(0)
    _launch(  # TILE // 2, because it has more numbers for each element
        _curvature, TILE // 2, transform, [z, v, label.contiguous(), numbers, off, result, out], strides,
        GAUSS_NEWTON=gauss_newton, NUMBERS=len(numbers), OFF=0 if off is None else off.ndim,
    )  # fmt: skip


def tangent_sums(z: Any, v: Any, label: Any, off: Any, transform: Any, parts: Any, tangents: Any, threads: int) -> None:
    strides = z.stride(0), v.stride(0), _off_stride(off), parts.stride(0), tangents.stride(0)
    _launch(
        _tangent_sums, TILE // 2, transform, [z, v, label.contiguous(), off, parts, tangents], strides, tl.float64,
        OFF=0 if off is None else off.ndim,
    )  # fmt: skip


def hessian(
    z: Any, v: Any, label: Any, numbers: Any, off: Any, transform: Any, gauss_newton: bool, parts: Any, tangents: Any, out: Any,
    result: Any, threads: int,
) -> None:  # fmt: skip
    strides = z.stride(0), v.stride(0), *_strides(numbers, off), *(x.stride(0) for x in (parts, tangents, result, out))
    _launch(
        _hessian, TILE // 2, transform, [z, v, label.contiguous(), numbers, off, parts, tangents, result, out], strides, tl.float64,
        GAUSS_NEWTON=gauss_newton, NUMBERS=len(numbers), OFF=0 if off is None else off.ndim,
    )  # fmt: skip


def log_softmax(z: Any, scale: Any, transform: Any, out: Any, threads: int) -> None:
    strides = z.stride(0), scale.stride(0) if len(scale) > 1 else 0, out.stride(0)
    _launch(_log_softmax, TILE, transform, [z, scale, out], strides)


def scale(out: Any, by: Any) -> Any:
    """Multiply `out` in place by the number `by`, which is on the device. If it is 1, `out` is neither read nor written."""
    if out.numel():
        with _on(out):
            grid = (triton.cdiv(out.numel(), TILE),)
            _scale[grid](out, by, out.numel(), WIDE=_wide(out), BLOCK=TILE, num_warps=8, enable_fp_fusion=False)
    return out


def _strides(numbers: Any, off: Any) -> tuple[int, int, int]:
    """Return how far apart the numbers of a row are, those of two rows, and the rows of off: 0 if there is one for all rows."""
    row = numbers.stride(1) if numbers.shape[1] > 1 else 0
    return numbers.stride(0), row, _off_stride(off)


def _off_stride(off: Any) -> int:
    """Return how far apart the rows of off are, 0 if there is one for all rows."""
    return 0 if off is None or off.ndim == 1 else off.stride(0)


def _launch(
    kernel: Any, elements: int, transform: Any, tensors: list[Any], strides: tuple[int, ...], wide: Any = None, **options: Any
) -> None:
    """Launch a kernel over the rows of the first tensor. The shape of a tile does not depend on the number of rows.

    `wide` is the type in which the kernel computes, if it is not that of the first tensor.
    """
    z = tensors[0]
    rows, classes = z.shape
    wide = _wide(z) if wide is None else wide
    if wide == tl.float64:
        elements //= 2
    block = min(triton.next_power_of_2(classes), elements)
    group = min(elements // block, ROWS)
    temperature, cap = transform
    kind = SOFTCAP if cap != math.inf else TEMPERATURE if temperature != 1 else AS_GIVEN
    bits = struct.unpack("<qq", struct.pack("<dd", temperature, cap))
    if rows:
        with _on(z):
            kernel[(triton.cdiv(rows, group),)](
                *tensors, rows, classes, *strides, *bits,
                TRANSFORM=kind.value, WIDE=wide, ROWS=group, BLOCK=block, num_warps=8, enable_fp_fusion=False, **options,
            )  # fmt: skip


def _wide(t: Any) -> Any:
    return tl.float64 if t.element_size() == 8 else tl.float32


def _on(t: Any) -> Any:
    """Make the device of the tensor the current one, because Triton launches kernels on the current device."""
    from torch.cuda import device_of

    return device_of(t)
