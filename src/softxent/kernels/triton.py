"""The backend `triton`, for GPUs: the interface of kernels/__init__.py, implemented by one Triton kernel.

The kernel processes a tile [ROWS, BLOCK] of the matrix at a time. Computations for each element are in float32 (float64 for float64
logits), and those for each row in float64. Rows with y = r = q = 0 are not read. The compiler may not fuse operations into fma, and the
shape of a tile depends on the number of columns only. So a row has the same bits in every batch, and `fused` gives the same bits as
`forward` and `backward`.

The tests run the kernel in Triton's interpreter and compile it for sm_90. It has not run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

version = triton.__version__
TILE = 4096  # elements of a tile: 16 for each thread of 8 warps


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
def _softplus(a):
    """log(1 + e^a) in float64, accurate for a << 0: log1p x = x log(u) / (u - 1), where u is 1 + x, rounded."""
    x = tl.exp(-tl.abs(a))
    u = 1.0 + x
    log1p = tl.where(u == 1.0, x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(a > 0.0, a, 0.0) + tl.where(a == a, log1p, a)


@triton.jit
def _times(weight, value):
    """weight * value, and 0 where the weight is 0."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def _layer(
    z,  # [R, C], rows z_stride apart
    label,  # [R] int64
    truth,  # [4, R] or, with truth_row 0, [4, 1]: y, r, q, g
    off,  # [R, C], or with off_stride 0 [C]: the truth away from the label
    result,  # [2, R] float64: loss, lse
    parts,  # [6, R] float64
    out,  # [R, C]
    R, C, z_stride, out_stride, off_stride, truth_stride, truth_row,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, HAS_OFF: tl.constexpr, HAS_PARTS: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < R
    y = tl.load(truth + row * truth_row, mask=here, other=0.0)
    r = tl.load(truth + row * truth_row + truth_stride, mask=here, other=0.0)
    q = tl.load(truth + row * truth_row + 2 * truth_stride, mask=here, other=0.0)
    live = here & ((y != 0.0) | (r != 0.0) | (q != 0.0))
    t = tl.load(label + row, mask=here, other=-1)
    inf = float("inf")

    if FORWARD:
        hit = live & (t >= 0) & (t < C)
        zt = tl.load(z + row * z_stride + t, mask=hit, other=-inf).to(tl.float64)
        wt = tl.zeros([ROWS], tl.float64)
        if HAS_OFF:
            wt = tl.load(off + row * off_stride + t, mask=hit, other=0.0).to(tl.float64)
        m = tl.full([ROWS], -inf, WIDE)
        s = tl.zeros([ROWS], tl.float64)
        o = tl.zeros([ROWS], tl.float64)
        d = tl.zeros([ROWS], tl.float64)
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside, hot = live[:, None] & (col < C), col == t[:, None]
            x = tl.load(z + row[:, None] * z_stride + col, mask=inside, other=-inf).to(WIDE)
            x = tl.where(hot, -inf, x)  # the label is kept apart
            block = tl.max(tl.where(x == x, x, -inf), 1)  # a NaN is left out here and makes s NaN
            top = tl.where(block > m, block, m)
            shift = tl.where(top == -inf, 0.0, top)
            s = s * tl.where(m == top, 1.0, _exp(m - shift)).to(tl.float64) + tl.sum(_exp(x - shift[:, None]), 1).to(tl.float64)
            if HAS_OFF:
                w = tl.load(off + row[:, None] * off_stride + col, mask=inside, other=0.0).to(WIDE)
                w = tl.where(hot, 0.0, w)
                d += _times(o, tl.where(m == top, 0.0, top - m).to(tl.float64))
                d += tl.sum(_times(w, shift[:, None] - x), 1).to(tl.float64)
                o += tl.sum(w, 1).to(tl.float64)
            m = top
        m = m.to(tl.float64)
        if HAS_PARTS:
            tl.store(parts + row, m, mask=here)
            tl.store(parts + row + R, s, mask=here)
            tl.store(parts + row + 2 * R, o, mask=here)
            tl.store(parts + row + 3 * R, d, mask=here)
            tl.store(parts + row + 4 * R, zt, mask=here)
            tl.store(parts + row + 5 * R, wt, mask=here)
    else:
        m = tl.load(parts + row, mask=here, other=-inf)
        s = tl.load(parts + row + R, mask=here, other=0.0)
        o = tl.load(parts + row + 2 * R, mask=here, other=0.0)
        d = tl.load(parts + row + 3 * R, mask=here, other=0.0)
        zt = tl.load(parts + row + 4 * R, mask=here, other=-inf)
        wt = tl.load(parts + row + 5 * R, mask=here, other=0.0)

    # as in partials.py, finish and peak; a is the log-odds against the label
    log_s = tl.where(s == 0.0, -inf, tl.log(tl.where(s == 0.0, 1.0, s)))
    a = tl.where(zt == inf, float("nan"), m - zt + log_s)
    nll = _softplus(a)
    miss = tl.exp(-_softplus(-a))
    over = tl.where(s == 0.0, zt - m, log_s + _softplus(-a))
    top = tl.where(zt > m, zt, m)
    lift = tl.where(zt > m, nll, over)
    lse = top + lift
    if FORWARD:
        loss = _times(y + r * wt, nll) + _times(r, d + _times(o, over)) + _times(q, lse * lse * 0.5)
        tl.store(result + row, loss, mask=here)
        tl.store(result + row + R, tl.where(live, lse, -inf), mask=here)

    if BACKWARD:  # g (mass yhat - truth), computed as g (rest - mass miss) at the label
        g = tl.load(truth + row * truth_row + 3 * truth_stride, mask=here, other=0.0)
        rest = r * o + _times(q, lse)
        mass = y + r * wt + rest
        at_label = (g * (rest - mass * miss)).to(WIDE)[:, None]
        scale = (g * mass * tl.exp(-lift)).to(WIDE)[:, None]
        weight = (g * r).to(WIDE)[:, None]
        base = tl.where(top == -inf, 0.0, top).to(WIDE)[:, None]
        for k in range(0, C, BLOCK):
            col = k + tl.arange(0, BLOCK)[None, :]
            inside = here[:, None] & (col < C)
            x = tl.load(z + row[:, None] * z_stride + col, mask=inside & live[:, None], other=0.0).to(WIDE)
            dz = scale * _exp(x - base)
            if HAS_OFF:
                dz -= weight * tl.load(off + row[:, None] * off_stride + col, mask=inside & live[:, None], other=0.0).to(WIDE)
            dz = tl.where(live[:, None], tl.where(col == t[:, None], at_label, dz), 0.0)
            tl.store(out + row[:, None] * out_stride + col, dz.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _scale(out, by, n, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    g = tl.load(by).to(WIDE)
    if g != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(out + at, mask=at < n)
        tl.store(out + at, tl.where(x == 0.0, x, (x.to(WIDE) * g).to(out.dtype.element_ty)), mask=at < n)


def _launch(z: Any, label: Any, truth: Any, off: Any, result: Any, parts: Any, out: Any, forward: bool, backward: bool) -> None:
    rows, classes = z.shape
    if not rows:
        return
    block = min(triton.next_power_of_2(classes), TILE)
    group = TILE // block  # does not depend on the number of rows, so that a row has the same bits in every batch
    with _on(z):
        _layer[(triton.cdiv(rows, group),)](
            z, label, truth, z if off is None else off, truth if result is None else result, truth if parts is None else parts,
            z if out is None else out, rows, classes, z.stride(0), 0 if out is None else out.stride(0),
            0 if off is None or off.ndim == 1 else off.stride(0), truth.stride(0), truth.stride(1) if truth.shape[1] > 1 else 0,
            FORWARD=forward, BACKWARD=backward, HAS_OFF=off is not None, HAS_PARTS=parts is not None, WIDE=_wide(z),
            ROWS=group, BLOCK=block, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip


def _wide(t: Any) -> Any:
    return tl.float64 if t.element_size() == 8 else tl.float32


def forward(z: Any, label: Any, truth: Any, off: Any, result: Any, parts: Any, threads: int) -> None:
    _launch(z, label, truth, off, result, parts, None, True, False)


def backward(z: Any, label: Any, truth: Any, off: Any, parts: Any, out: Any, threads: int) -> None:
    _launch(z, label, truth, off, None, parts, out, False, True)


def fused(z: Any, label: Any, truth: Any, off: Any, out: Any, result: Any, parts: Any, threads: int) -> None:
    _launch(z, label, truth, off, result, parts, out, True, True)


def scale(out: Any, by: Any) -> Any:
    """Multiply `out` in place by the number `by`, which is on the device. If it is 1, `out` is neither read nor written."""
    if out.numel():
        with _on(out):
            _scale[(triton.cdiv(out.numel(), TILE),)](
                out, by, out.numel(), WIDE=_wide(out), BLOCK=TILE, num_warps=8, enable_fp_fusion=False
            )
    return out


def _on(t: Any) -> Any:
    """Make the device of the tensor the current one, because Triton launches kernels on the current device."""
    from torch.cuda import device_of

    return device_of(t)
