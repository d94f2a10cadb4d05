"""The backend `triton`, for GPUs: the interface of kernels/__init__.py, implemented by Triton kernels.

Each program of a kernel processes some rows, a tile [ROWS, BLOCK] of the matrix at a time. Computations for each element are in float32
(float64 for float64 logits), and those for each row in float64. The compiler may not fuse operations into fma, and the shape of a tile
depends on the number of columns only. So a row has the same bits in every batch, and `fused` gives the same bits as `forward` and
`backward`. What a call does not need, such as the logits' transform or the entropy, is not compiled into its kernel.

The tests run the kernels in Triton's interpreter and compile them for sm_90. They have not run on a GPU yet.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import triton
import triton.language as tl

from .reference import IGNORED, LARGEST

version = triton.__version__
TILE = 4096  # elements of a tile in float32, half as many in float64: 64 bytes for each thread of 8 warps
ROWS = 256  # at most this many rows in a tile, one for each thread: more would not fit into the registers
AS_GIVEN, TEMPERATURE, SOFTCAP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # TRANSFORM: the logits' transform
NO_OFF, ONE_ROW, EACH_ROW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # OFF: off is None, [C] or [R, C]
_IGNORED, _LARGEST = tl.constexpr(IGNORED), tl.constexpr(LARGEST)


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
def _saturation(x, cap):
    """Return p = 2 |x| / cap and q = e^-p / (1 + e^-p), so that tanh(|x| / cap) = 1 - 2 q, with the slope 4 q (1 - q)."""
    high, low = _two_numbers(2.0 / cap, x.dtype)
    size = tl.abs(x)
    p = size * high
    rounding = tl.fma(size, high, -p) + size * low
    rounding = tl.where(p < float("inf"), rounding, 0.0)
    w = _exp(-p)
    w -= w * rounding
    return p + rounding, w / (1.0 + w)


@triton.jit
def _tanh(x, cap):
    """tanh(x / cap). Up to 0.625 it is a polynomial, interpolated at Chebyshev's points, to 2^-25.8 in float32 and 2^-56.8 in float64."""
    p, q = _saturation(x, cap)
    a = p * 0.5
    y = a * a
    if x.dtype == tl.float64:
        r = y * 6.485163482793113e-06 - 3.12011014257974e-05
        r = y * r + 9.257116129556769e-05
        r = y * r - 0.0002375906496055562
        r = y * r + 0.0005896606577757043
        r = y * r - 0.0014557754120478055
        r = y * r + 0.0035921217511549622
        r = y * r - 0.008863235103240878
        r = y * r + 0.021869488519008305
        r = y * r - 0.05396825396789699
        r = y * r + 0.13333333333333042
        r = y * r - 0.3333333333333333
    else:
        r = y * -0.006096714176237583 + 0.020997179672122
        r = y * r - 0.05385090783238411
        r = y * r + 0.1333276927471161
        r = y * r - 0.333333283662796
    tanh = tl.where(p <= 1.25, a + a * (y * r), 1.0 - 2.0 * q)
    return tl.where(x < 0.0, -tanh, tanh)


@triton.jit
def _scaled(x, factor):
    """x times a float64 number."""
    high, low = _two_numbers(factor, x.dtype)
    return tl.where(tl.abs(x) == float("inf"), x, tl.fma(x, high, x * low))


@triton.jit
def _transformed(x, temperature, cap, TRANSFORM: tl.constexpr):
    """Return the logits z = x / T, or (cap / T) tanh(x / cap)."""
    if TRANSFORM == AS_GIVEN:
        return x
    z = _scaled(x, 1.0 / temperature)
    if TRANSFORM == SOFTCAP:
        p, _ = _saturation(x, cap)
        least = 7.450580596923828e-09 if x.dtype == tl.float64 else 2.44140625e-04  # 2^-27 and 2^-12: below, tanh a is a, rounded
        z = tl.where(p > least, _scaled(_tanh(x, cap), cap / temperature), z)
    return z


@triton.jit
def _slopes(x, temperature, cap, TRANSFORM: tl.constexpr):
    """Return the first and second derivative of the logits z by x."""
    factor = (1.0 / temperature).to(x.dtype)
    if TRANSFORM == SOFTCAP:
        _, q = _saturation(x, cap)
        slope = 4.0 * q * (1.0 - q) * factor
        return slope, (-2.0 / cap).to(x.dtype) * _tanh(x, cap) * slope
    else:
        return tl.zeros_like(x) + factor, tl.zeros_like(x)


@triton.jit
def _read(z, at, mask, temperature, cap, TRANSFORM: tl.constexpr, WIDE: tl.constexpr):
    """Return the logits at these positions, and -inf where the mask excludes them."""
    x = tl.load(z + at, mask=mask, other=-float("inf")).to(WIDE)
    if TRANSFORM == AS_GIVEN:
        return x
    else:
        return tl.where(mask, _transformed(x, temperature, cap, TRANSFORM), -float("inf"))


# ---- a row's label, numbers, sums and coefficients ----


@triton.jit
def _label(
    label, z, off, row, here, C, z_stride, off_stride, temperature, cap,
    TRANSFORM: tl.constexpr, OFF: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the labels of the rows; for LARGEST, the column of the largest off, if off is a matrix, or of the largest logit."""
    t = tl.load(label + row, mask=here, other=_IGNORED)
    wanted = t == _LARGEST
    if tl.max(wanted.to(tl.int32), 0) > 0:
        inf = float("inf")
        largest = tl.full([ROWS], -inf, WIDE)
        at = tl.zeros([ROWS], tl.int64)
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside = wanted[:, None] & (col < C)
            if OFF == EACH_ROW:
                x = tl.load(off + row[:, None] * off_stride + col, mask=inside, other=-inf).to(WIDE)
            else:
                x = _read(z, row[:, None] * z_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
            block, index = tl.max(tl.where(x == x, x, -inf), 1, return_indices=True)
            at = tl.where(block > largest, k + index, at)
            largest = tl.where(block > largest, block, largest)
        t = tl.where(wanted, at, t)
    return t


@triton.jit
def _number(numbers, which, row, live, row_stride):
    """Return one of the numbers of each row, which is 0 in rows that are not live."""
    return tl.where(live, tl.load(numbers + row * row_stride + which, mask=live, other=0.0), 0.0)


@triton.jit
def _sums(
    z, off, row, t, live, C, z_stride, off_stride, temperature, cap,
    TRANSFORM: tl.constexpr, OFF: tl.constexpr, ENTROPY: tl.constexpr, TOP: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the partial sums of the rows, m, s, o, d, zt, wt and u, as in partials.py, and with TOP the column of m."""
    inf = float("inf")
    hit = live & (t >= 0) & (t < C)
    zt = _read(z, row * z_stride + t, hit, temperature, cap, TRANSFORM, WIDE).to(tl.float64)
    wt = tl.zeros([ROWS], tl.float64)
    if OFF != NO_OFF:
        wt = tl.load(off + row * off_stride + t, mask=hit, other=0.0).to(tl.float64)
    m = tl.full([ROWS], -inf, WIDE)
    s = tl.zeros([ROWS], tl.float64)
    o = tl.zeros([ROWS], tl.float64)
    d = tl.zeros([ROWS], tl.float64)
    u = tl.zeros([ROWS], tl.float64)
    at = tl.zeros([ROWS], tl.int64)
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside, hot = live[:, None] & (col < C), col == t[:, None]
        x = _read(z, row[:, None] * z_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
        x = tl.where(hot, -inf, x)  # the label is kept apart
        numbers = tl.where(x == x, x, -inf)  # a NaN is left out of the maximum and makes s NaN
        if TOP:
            block, index = tl.max(numbers, 1, return_indices=True)
            at = tl.where(block > m, k + index, at)
        else:
            block = tl.max(numbers, 1)
        top = tl.where(block > m, block, m)
        shift = tl.where(top == -inf, 0.0, top)
        factor = tl.where(m == top, 1.0, _exp(m - shift)).to(tl.float64)
        down = tl.where(m == top, 0.0, top - m).to(tl.float64)
        e = _exp(x - shift[:, None])
        if ENTROPY:
            u = _times(factor, u + _times(s, down)) + tl.sum(_times(e, shift[:, None] - x), 1).to(tl.float64)
        s = s * factor + tl.sum(e, 1).to(tl.float64)
        if OFF != NO_OFF:
            w = tl.load(off + row[:, None] * off_stride + col, mask=inside, other=0.0).to(WIDE)
            w = tl.where(hot, 0.0, w)
            d += _times(o, down)
            d += tl.sum(_times(w, shift[:, None] - x), 1).to(tl.float64)
            o += tl.sum(w, 1).to(tl.float64)
        m = top
    return m.to(tl.float64), s, o, d, zt, wt, u, at


@triton.jit
def _finish(m, s, zt):
    """Return nll, miss, over, the largest logit and lse minus it, as `finish` and `peak` of partials.py."""
    inf = float("inf")
    log_s = tl.where(s == 0.0, -inf, tl.log(tl.where(s == 0.0, 1.0, s)))
    a = tl.where(zt == inf, float("nan"), m - zt + log_s)  # the log-odds against the label
    nll = _softplus(a)
    miss = tl.exp(-_softplus(-a))
    over = tl.where(s == 0.0, zt - m, log_s + _softplus(-a))
    return nll, miss, over, tl.where(zt > m, zt, m), tl.where(zt > m, nll, over)


@triton.jit
def _entropy(s, u, nll, over):
    return _times(tl.exp(-nll), nll) + _times(tl.exp(-over), u + _times(s, over))


@triton.jit
def _coefficients(
    numbers, numbers_stride, row_stride, row, live, y, r, q, s, o, wt, u, nll, miss, over, lse, NUMBERS: tl.constexpr
):  # fmt: skip
    """Return the coefficients a, e, c and h of formula.py, and what is added to h at the label: e yhat_t nll."""
    g = _number(numbers, 3 * numbers_stride, row, live, row_stride)
    rest = r * o + _times(q, lse)
    total = y + r * wt + rest
    a = _times(g, total)
    c = g * r
    h = _times(g, rest - total * miss)
    e = tl.zeros_like(a)
    more = tl.zeros_like(a)
    if NUMBERS == 7:
        l = _number(numbers, 4 * numbers_stride, row, live, row_stride)  # noqa: E741
        b = _number(numbers, 5 * numbers_stride, row, live, row_stride)
        e = _number(numbers, 6 * numbers_stride, row, live, row_stride)
        down = _times(e, _entropy(s, u, nll, over))
        yhat_t = tl.exp(-nll)
        a += l - b - down
        h += _times(l, yhat_t) + _times(b, miss) - _times(down, yhat_t)
        more = _times(e, _times(yhat_t, nll))
    return a, e, c, h, more


@triton.jit
def _below(z, base, exp):
    """Return top - z, and 0 where exp(z - top) is 0: its product with that is 0, also at -inf."""
    return tl.where(exp == 0.0, 0.0, base - z)


@triton.jit
def _gradient(
    z, base, hot, a, e, c, at_label, active, off, at, mask, NUMBERS: tl.constexpr, OFF: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Return the gradient by the logits z: exp(z_k - top) (a + e (top - z_k)) - c off_k, and another number at the label."""
    exp = _exp(z - base)
    if NUMBERS == 7:
        dz = exp * (a + e * _below(z, base, exp))
    else:
        dz = a * exp
    if OFF != NO_OFF:
        dz -= c * tl.load(off + at, mask=mask, other=0.0).to(WIDE)
    return tl.where(active, tl.where(hot, at_label, dz), 0.0)


@triton.jit
def _along(z, v, at, v_at, mask, temperature, cap, TRANSFORM: tl.constexpr, WIDE: tl.constexpr):
    """Return v, multiplied by the slope of the logits' transform."""
    vk = tl.load(v + v_at, mask=mask, other=0.0).to(WIDE)
    if TRANSFORM == AS_GIVEN:
        return vk
    else:
        x = tl.load(z + at, mask=mask, other=0.0).to(WIDE)
        return _times(vk, _slopes(x, temperature, cap, TRANSFORM)[0])


# ---- the kernels ----


@triton.jit(do_not_specialize=["temperature", "cap"])
def _layer(
    z,  # [R, C], rows z_stride apart
    label,  # [R] int64
    numbers,  # [NUMBERS, R] or, with row_stride 0, [NUMBERS, 1]: y, r, q, g and perhaps l, b, n
    off,  # [R, C], or with off_stride 0 [C]: the truth away from the label
    result,  # [OUTPUTS, R] float64: loss, lse and perhaps the log-probability of the label, the entropy, and whether the label is largest
    parts,  # [7, R] float64
    out,  # [R, C]
    R, C, z_stride, out_stride, off_stride, numbers_stride, result_stride, parts_stride, row_stride,
    temperature, cap,  # the bits of float64 numbers: Triton passes a float of Python as float32
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, OUTPUTS: tl.constexpr, NUMBERS: tl.constexpr, TRANSFORM: tl.constexpr,
    OFF: tl.constexpr, HAS_PARTS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute what the rows give, and their gradient."""
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    t = _label(label, z, off, row, here, C, z_stride, off_stride, temperature, cap, TRANSFORM, OFF, WIDE, ROWS, BLOCK)
    live = t != _IGNORED
    y = _number(numbers, 0, row, live, row_stride)
    r = _number(numbers, numbers_stride, row, live, row_stride)
    q = _number(numbers, 2 * numbers_stride, row, live, row_stride)
    inf = float("inf")

    if FORWARD:
        m, s, o, d, zt, wt, u, _ = _sums(
            z, off, row, t, live, C, z_stride, off_stride, temperature, cap,
            TRANSFORM, OFF, OUTPUTS == 5 or NUMBERS == 7, False, WIDE, ROWS, BLOCK,
        )  # fmt: skip
        if OUTPUTS == 5:
            m = tl.where((s == s) | (m == inf), m, float("nan"))  # a NaN makes m NaN, and the label is not the largest
        if HAS_PARTS:
            tl.store(parts + row, m, mask=here)
            tl.store(parts + row + parts_stride, s, mask=here)
            tl.store(parts + row + 2 * parts_stride, o, mask=here)
            tl.store(parts + row + 3 * parts_stride, d, mask=here)
            tl.store(parts + row + 4 * parts_stride, zt, mask=here)
            tl.store(parts + row + 5 * parts_stride, wt, mask=here)
            tl.store(parts + row + 6 * parts_stride, u, mask=here)
    else:
        m = tl.load(parts + row, mask=here, other=-inf)
        s = tl.load(parts + row + parts_stride, mask=here, other=0.0)
        o = tl.load(parts + row + 2 * parts_stride, mask=here, other=0.0)
        d = tl.zeros([ROWS], tl.float64)  # only the loss needs it
        zt = tl.load(parts + row + 4 * parts_stride, mask=here, other=-inf)
        wt = tl.load(parts + row + 5 * parts_stride, mask=here, other=0.0)
        u = tl.zeros([ROWS], tl.float64)
        if NUMBERS == 7:
            u = tl.load(parts + row + 6 * parts_stride, mask=here, other=0.0)

    nll, miss, over, top, lift = _finish(m, s, zt)
    lse = top + lift
    if FORWARD:
        loss = _times(y + r * wt, nll) + _times(r, d + _times(o, over)) + _times(q, lse * lse * 0.5)
        tl.store(result + row, tl.where(live, loss, 0.0), mask=here)
        tl.store(result + row + result_stride, tl.where(live, lse, 0.0), mask=here)
        if OUTPUTS == 5:
            tl.store(result + row + 2 * result_stride, tl.where(live, -nll, 0.0), mask=here)
            tl.store(result + row + 3 * result_stride, tl.where(live, _entropy(s, u, nll, over), 0.0), mask=here)
            tl.store(result + row + 4 * result_stride, tl.where(live & (zt >= m) & (zt > -inf), 1.0, 0.0), mask=here)

    if BACKWARD:
        a, e, c, h, more = _coefficients(
            numbers, numbers_stride, row_stride, row, live, y, r, q, s, o, wt, u, nll, miss, over, lse, NUMBERS
        )
        active = (a != 0.0) | (e != 0.0) | (c != 0.0) | (h != 0.0)
        scale = tl.exp(-lift)
        a = ((a + _times(e, lift)) * scale).to(WIDE)[:, None]
        e = (e * scale).to(WIDE)[:, None]
        c = c.to(WIDE)[:, None]
        at_label = (h + more).to(WIDE)[:, None]
        base = tl.where(top == -inf, 0.0, top).to(WIDE)[:, None]
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside = here[:, None] & (col < C)
            used = inside & active[:, None]
            x = tl.load(z + row[:, None] * z_stride + col, mask=used, other=0.0).to(WIDE)
            zk = _transformed(x, temperature, cap, TRANSFORM)
            dz = _gradient(
                zk, base, col == t[:, None], a, e, c, at_label, active[:, None],
                off, row[:, None] * off_stride + col, used, NUMBERS, OFF, WIDE,
            )  # fmt: skip
            if TRANSFORM != AS_GIVEN:
                dz = _times(dz, _slopes(x, temperature, cap, TRANSFORM)[0])
            tl.store(out + row[:, None] * out_stride + col, dz.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["temperature", "cap"])
def _curvature(
    z, v,  # [R, C], rows z_stride and v_stride apart
    label, numbers, off,  # as in _layer
    out,  # [R, C]
    result,  # [4, R] float64: mean = <yhat, v>, v_t - mean, sum_k off_k (v_k - mean), the derivative of the entropy if NUMBERS is 7
    R, C, z_stride, v_stride, out_stride, off_stride, numbers_stride, result_stride, row_stride, temperature, cap,
    NUMBERS: tl.constexpr, TRANSFORM: tl.constexpr, GAUSS_NEWTON: tl.constexpr, OFF: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute the derivative of the gradient along v.

    v_k - mean is computed as (v_k - v_j) + (v_j - mean), where j is the most probable class. So the rows are read once for their sums and
    j, once for v_j - mean, once for the sums with v_k - mean, and once for the product.
    """
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    t = _label(label, z, off, row, here, C, z_stride, off_stride, temperature, cap, TRANSFORM, OFF, WIDE, ROWS, BLOCK)
    live = t != _IGNORED
    y = _number(numbers, 0, row, live, row_stride)
    r = _number(numbers, numbers_stride, row, live, row_stride)
    q = _number(numbers, 2 * numbers_stride, row, live, row_stride)
    inf = float("inf")
    m, s, o, _, zt, wt, u, at = _sums(
        z, off, row, t, live, C, z_stride, off_stride, temperature, cap, TRANSFORM, OFF, NUMBERS == 7, True, WIDE, ROWS, BLOCK
    )
    nll, miss, over, top, lift = _finish(m, s, zt)
    a, e, c, h, more = _coefficients(
        numbers, numbers_stride, row_stride, row, live, y, r, q, s, o, wt, u, nll, miss, over, top + lift, NUMBERS
    )
    active = (a != 0.0) | (e != 0.0) | (c != 0.0) | (h != 0.0)
    g = _number(numbers, 3 * numbers_stride, row, live, row_stride)
    given = (y != 0.0) | (r != 0.0) | (q != 0.0) | (g != 0.0)
    if NUMBERS == 7:
        for i in tl.static_range(4, 7):
            given = given | (_number(numbers, i * numbers_stride, row, live, row_stride) != 0.0)
    hit = live & (t >= 0) & (t < C)
    at = tl.where(zt >= m, t, at)  # the most probable class, j
    base = tl.where(top == -inf, 0.0, top).to(WIDE)[:, None]
    scale = tl.exp(-lift)
    vj = _along(z, v, row * z_stride + at, row * v_stride + at, live, temperature, cap, TRANSFORM, WIDE)

    lead = tl.zeros([ROWS], tl.float64)  # v_j - mean = sum_k yhat_k (v_j - v_k)
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside = live[:, None] & (col < C)
        zk = _read(z, row[:, None] * z_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
        vk = _along(z, v, row[:, None] * z_stride + col, row[:, None] * v_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
        lead += tl.sum(_times(_exp(zk - base), vj[:, None] - vk), 1).to(tl.float64)
    lead *= scale
    mean = vj.to(tl.float64) - lead

    by_off = tl.zeros([ROWS], tl.float64)
    dentropy = tl.zeros([ROWS], tl.float64)
    if OFF != NO_OFF or NUMBERS == 7:
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside = live[:, None] & (col < C)
            vk = _along(z, v, row[:, None] * z_stride + col, row[:, None] * v_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
            apart = (vk - vj[:, None]) + lead.to(WIDE)[:, None]
            if NUMBERS == 7:  # the sum of yhat_k (v_k - mean) is 0, so that top - z_k may stand for lse - z_k
                zk = _read(z, row[:, None] * z_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
                exp = _exp(zk - base)
                dentropy += tl.sum(exp * apart * _below(zk, base, exp), 1).to(tl.float64)
            if OFF != NO_OFF:
                w = tl.load(off + row[:, None] * off_stride + col, mask=inside, other=0.0).to(WIDE)
                by_off += tl.sum(_times(w, apart), 1).to(tl.float64)
        dentropy *= scale

    vt = _along(z, v, row * z_stride + t, row * v_stride + t, hit, temperature, cap, TRANSFORM, WIDE)
    tl.store(result + row, tl.where(live, mean, 0.0), mask=here)
    tl.store(result + row + result_stride, tl.where(hit, (vt - vj) + lead.to(WIDE), 0.0).to(tl.float64), mask=here)
    tl.store(result + row + 2 * result_stride, tl.where(live, by_off, 0.0), mask=here)
    tl.store(result + row + 3 * result_stride, tl.where(live, dentropy, 0.0), mask=here)

    da = ((_times(g * q, mean) - _times(e, dentropy)) * scale).to(WIDE)[:, None]
    by_apart = ((a - e + _times(e, lift)) * scale).to(WIDE)[:, None]
    a = ((a + _times(e, lift)) * scale).to(WIDE)[:, None]
    e = (e * scale).to(WIDE)[:, None]
    c = c.to(WIDE)[:, None]
    at_label = (h + more).to(WIDE)[:, None]
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside = here[:, None] & (col < C)
        used = inside & given[:, None]
        zk = _read(z, row[:, None] * z_stride + col, used, temperature, cap, TRANSFORM, WIDE)
        vk = _along(z, v, row[:, None] * z_stride + col, row[:, None] * v_stride + col, used, temperature, cap, TRANSFORM, WIDE)
        apart = (vk - vj[:, None]) + lead.to(WIDE)[:, None]
        exp = _exp(zk - base)
        if NUMBERS == 7:
            hv = exp * ((by_apart + e * _below(zk, base, exp)) * apart + da)
        else:
            hv = exp * (by_apart * apart + da)
        if TRANSFORM != AS_GIVEN:
            x = tl.load(z + row[:, None] * z_stride + col, mask=used, other=0.0).to(WIDE)
            slope, second = _slopes(x, temperature, cap, TRANSFORM)
            hv = _times(hv, slope)
            if TRANSFORM == SOFTCAP and not GAUSS_NEWTON:
                dz = _gradient(
                    zk, base, col == t[:, None], a, e, c, at_label, active[:, None],
                    off, row[:, None] * off_stride + col, used, NUMBERS, OFF, WIDE,
                )  # fmt: skip
                vk = tl.load(v + row[:, None] * v_stride + col, mask=used, other=0.0).to(WIDE)
                hv += _times(dz, _times(vk, second))
        hv = tl.where(given[:, None], hv, 0.0)
        tl.store(out + row[:, None] * out_stride + col, hv.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["temperature", "cap"])
def _log_softmax(
    z,  # [R, C], rows z_stride apart
    scale,  # [R] or, with scale_stride 0, [1] float64
    out,  # [R, C]
    R, C, z_stride, out_stride, scale_stride, temperature, cap,
    TRANSFORM: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute scale log yhat_k. The sum s is over all classes but one with the largest logit, so that a value near 0 keeps its digits."""
    temperature = temperature.to(tl.float64, bitcast=True)
    cap = cap.to(tl.float64, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    by = -tl.load(scale + row * scale_stride, mask=here, other=0.0).to(WIDE)[:, None]
    inf = float("inf")
    m = tl.full([ROWS], -inf, WIDE)
    s = tl.zeros([ROWS], tl.float64)
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        x = _read(z, row[:, None] * z_stride + col, here[:, None] & (col < C), temperature, cap, TRANSFORM, WIDE)
        block, index = tl.max(tl.where(x == x, x, -inf), 1, return_indices=True)
        top = tl.where(block > m, block, m)
        shift = tl.where(top == -inf, 0.0, top)
        lower = tl.where(block > m, m, block)  # the smaller of the two maxima is an ordinary term of the sum
        factor = tl.where(m == top, 1.0, _exp(m - shift)).to(tl.float64)
        rest = tl.where(col - k == index[:, None], 0.0, _exp(x - shift[:, None]))
        s = s * factor + (tl.sum(rest, 1).to(tl.float64) + _exp(lower - shift).to(tl.float64))
        m = top
    lift = tl.where(tl.abs(m) == inf, float("nan"), _log1p(s)).to(WIDE)[:, None]
    for k in range(0, C, BLOCK):
        col = k + tl.arange(0, BLOCK)[None, :]
        inside = here[:, None] & (col < C)
        x = _read(z, row[:, None] * z_stride + col, inside, temperature, cap, TRANSFORM, WIDE)
        y = _times(by, (m[:, None] - x) + lift)
        tl.store(out + row[:, None] * out_stride + col, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scale(out, by, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    g = tl.load(by).to(WIDE)
    if g != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(out + at, mask=at < n)
        tl.store(out + at, tl.where(x == 0.0, x, (x.to(WIDE) * g).to(out.dtype.element_ty)), mask=at < n)


# ---- the interface ----


def forward(z: Any, label: Any, numbers: Any, off: Any, transform: Any, result: Any, parts: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, result, parts, None, True, False)


def backward(z: Any, label: Any, numbers: Any, off: Any, transform: Any, parts: Any, out: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, None, parts, out, False, True)


def fused(z: Any, label: Any, numbers: Any, off: Any, transform: Any, out: Any, result: Any, parts: Any, threads: int) -> None:
    _launch_layer(z, label, numbers, off, transform, result, parts, out, True, True)


def curvature(
    z: Any, v: Any, label: Any, numbers: Any, off: Any, transform: Any, gauss_newton: bool, out: Any, result: Any, threads: int
) -> None:
    rows, classes = z.shape
    if rows:
        grid, tile = _tiles(z, TILE // 2)  # it has more numbers for each element
        with _on(z):
            _curvature[grid](
                z, v, label, numbers, z if off is None else off, out, result,
                rows, classes, z.stride(0), v.stride(0), out.stride(0), _off_stride(off), numbers.stride(0), result.stride(0),
                _row_stride(numbers, 1), *_bits(transform), NUMBERS=len(numbers), TRANSFORM=_kind(transform), GAUSS_NEWTON=gauss_newton,
                OFF=_off_kind(off), **tile,
            )  # fmt: skip


def log_softmax(z: Any, scale: Any, transform: Any, out: Any, threads: int) -> None:
    rows, classes = z.shape
    if rows:
        grid, tile = _tiles(z, TILE)
        with _on(z):
            _log_softmax[grid](
                z, scale, out, rows, classes, z.stride(0), out.stride(0), _row_stride(scale, 0), *_bits(transform),
                TRANSFORM=_kind(transform), **tile,
            )  # fmt: skip


def scale(out: Any, by: Any) -> Any:
    """Multiply `out` in place by the number `by`, which is on the device. If it is 1, `out` is neither read nor written."""
    if out.numel():
        with _on(out):
            _scale[(triton.cdiv(out.numel(), TILE),)](
                out, by, out.numel(), WIDE=_wide(out), BLOCK=TILE, num_warps=8, enable_fp_fusion=False
            )
    return out


def _launch_layer(
    z: Any, label: Any, numbers: Any, off: Any, transform: Any, result: Any, parts: Any, out: Any, forward: bool, backward: bool
) -> None:
    """Launch `_layer`. The tensors that this call does not need are None."""
    rows, classes = z.shape
    if rows:
        grid, tile = _tiles(z, TILE)
        with _on(z):
            _layer[grid](
                z, label, numbers, z if off is None else off, numbers if result is None else result, numbers if parts is None else parts,
                z if out is None else out,
                rows, classes, z.stride(0), 0 if out is None else out.stride(0), _off_stride(off), numbers.stride(0),
                0 if result is None else result.stride(0), 0 if parts is None else parts.stride(0), _row_stride(numbers, 1),
                *_bits(transform), FORWARD=forward, BACKWARD=backward, OUTPUTS=2 if result is None else len(result),
                NUMBERS=len(numbers), TRANSFORM=_kind(transform), OFF=_off_kind(off), HAS_PARTS=parts is not None, **tile,
            )  # fmt: skip


def _tiles(z: Any, elements: int) -> tuple[tuple[int], dict[str, Any]]:
    """Return the grid and the options of a kernel. The shape of a tile does not depend on the number of rows."""
    rows, classes = z.shape
    if z.element_size() == 8:
        elements //= 2
    block = min(triton.next_power_of_2(classes), elements)
    group = min(elements // block, ROWS)
    return (triton.cdiv(rows, group),), dict(WIDE=_wide(z), ROWS=group, BLOCK=block, num_warps=8, enable_fp_fusion=False)


def _wide(t: Any) -> Any:
    return tl.float64 if t.element_size() == 8 else tl.float32


def _kind(transform: Any) -> Any:
    temperature, cap = transform
    kind = SOFTCAP if cap != math.inf else TEMPERATURE if temperature != 1 else AS_GIVEN
    return kind.value


def _bits(transform: Any) -> tuple[int, int]:
    """Return the bits of the two float64 numbers, as integers."""
    temperature, cap = struct.unpack("<qq", struct.pack("<dd", *transform))
    return temperature, cap


def _off_kind(off: Any) -> Any:
    kind = NO_OFF if off is None else ONE_ROW if off.ndim == 1 else EACH_ROW
    return kind.value


def _off_stride(off: Any) -> int:
    return 0 if off is None or off.ndim == 1 else int(off.stride(0))


def _row_stride(numbers: Any, axis: int) -> int:
    """Return the stride between the numbers of two rows: 0 if there is one for all rows."""
    return int(numbers.stride(axis)) if numbers.shape[axis] > 1 else 0


def _on(t: Any) -> Any:
    """Make the device of the tensor the current one, because Triton launches kernels on the current device."""
    from torch.cuda import device_of

    return device_of(t)
