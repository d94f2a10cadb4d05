"""Calls of the kernels on logits of any strides.

The front ends pass logits [*rows, C] with the class axis last, a `Truth` and, for a softcap or temperature, a `LogitTransform`. If the
strides allow it, the kernel is called once, on the caller's memory. Otherwise chunks of rows are copied into adjacent memory first.

`forward` and `fused` compute the loss and its gradient. `with_largest_as_label` computes partial sums with the largest logit of each row as
its label. `jacobian_product` multiplies a vector by the Jacobian of softmax, and `hessian` by the Hessian of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import contract, kernels
from .partials import Array, Partials, times
from .truth import NO_LABEL, LogitTransform, Truth, adjacent, computed_in, plain

SCRATCH = 1 << 18  # bytes of logits in a chunk, where they cannot be used in place: strided classes, softcap, temperature

_UNIT = plain(1.0)  # y = 1; with a label that matches no column, the gradient is softmax
DENSE = np.array([[0.0], [1.0], [0.0], [1.0]])  # y = 0, r = 1: the truth is off


def forward(z: Array, t: Truth, s: LogitTransform | None, parts: Array | None = None) -> Array:
    """Return the loss and lse of every row, [2, R]. Writes the partial sums into parts [6, R], if given."""
    result = np.empty((2, count(z)))
    direct = s is None and t.usable(z.dtype) and adjacent(z)
    for i, (zi,) in row_chunks(direct, z):
        work = zi if direct else _ready(zi, s)
        kernels.active().forward(
            work, *t.piece(i, work.dtype), result[:, i], None if parts is None else parts[:, i], kernels.get_num_threads()
        )
    return result


def fused(z: Array, t: Truth, s: LogitTransform | None, dz: Array) -> Array:
    """Write the gradient into dz, which may be z. Returns the loss and lse of every row, [2, R]."""
    result = np.empty((2, count(z)))
    direct = s is None and t.usable(z.dtype) and adjacent(z) and adjacent(dz)
    for i, (zi, o) in row_chunks(direct, z, dz):
        if direct:
            gradient(zi, t, i, out=o, result=result[:, i])
            continue
        work, _ = gradient(_ready(zi, s), t, i, result=result[:, i])
        with np.errstate(over="ignore", invalid="ignore"):
            o[...] = times(work, s.slope(in_compute_dtype(zi))) if s else work
    return result


def output(fn: str, out: Any, z: Array, axis: int) -> Array:
    """Return an array for a gradient of the logits `z`, with the class axis last: `out`, checked, or a new one if it is None."""
    if out is not None:
        return contract.out(fn, out, z, axis)
    like = contract.from_last(z, axis)
    new = kernels.empty(like.shape, like.dtype) if like.flags.c_contiguous else np.empty_like(like, subok=False)
    return contract.to_last(new, axis)


def in_compute_dtype(a: Array) -> Array:
    """Return `a` in the type in which the kernels compute, contiguous."""
    return np.ascontiguousarray(a, dtype=computed_in(a.dtype))


def _ready(z: Array, s: LogitTransform | None) -> Array:
    return s(in_compute_dtype(z)) if s else np.ascontiguousarray(z)


def gradient(z: Array, t: Truth, i: slice, out: Array | None = None, result: Array | None = None) -> tuple[Array, Array]:
    """Return the gradient and [loss, lse] of the rows `i`, whose logits are z."""
    out = np.empty_like(z) if out is None else out
    result = np.empty((2, len(z))) if result is None else result
    kernels.active().fused(z, *t.piece(i, z.dtype), out, result, None, kernels.get_num_threads())
    return out, result


def partial_sums(z: Array, label: Array, rows: Array, off: Array | None) -> tuple[Array, Partials]:
    """Return [loss, lse] and the partial sums of the rows z."""
    result, parts = np.empty((2, len(z))), np.empty((6, len(z)))
    kernels.active().forward(z, label, rows, off, result, parts, kernels.get_num_threads())
    return result, Partials(*parts)


def softmax_truth(z: Array, upstream: Array | None = None) -> Truth:
    """Return a truth with mass 1 whose label matches no class, so that the gradient is softmax, times upstream [*rows]."""
    rows = _UNIT
    if upstream is not None:
        rows = np.repeat(_UNIT, count(z), axis=1)
        rows[3] = np.broadcast_to(upstream, z.shape[:-1]).reshape(-1)
        rows[0] = rows[3] != 0  # if upstream is 0, the gradient is 0 even in a row of NaN
    return Truth(np.broadcast_to(np.int64(NO_LABEL), count(z)), rows)


def with_largest_as_label(z: Array) -> tuple[Array, Partials]:
    """Return nll of each row's largest logit, as if it were the label, and the partial sums with that logit kept apart."""
    result, parts = partial_sums(z, z.argmax(axis=1), _UNIT, None)
    return result[0], parts


def jacobian_product(z: Array, v: Array) -> tuple[Array, Array, Array, Array]:
    """Return yhat, yhat o (v - mean), mean = <yhat, v> and lse of the rows z and v [n, C]; the second is v times the Jacobian of softmax.

    v - mean can cancel only at the most probable class t. There it is computed as v_t - mean = sum_{k != t} yhat_k (v_t - v_k).
    """
    v = np.ascontiguousarray(v, dtype=z.dtype)
    yhat, (_, lse) = gradient(z, softmax_truth(z), slice(0, len(z)))
    top = z.argmax(axis=1)
    _, x = partial_sums(v, top, _UNIT, yhat)
    lead = x.d + times(x.o, x.zt - x.m)
    with np.errstate(invalid="ignore"):
        mean = x.zt - lead
        product = times(yhat, v - mean[:, None])
        product[np.arange(len(z)), top] = x.wt * lead
    return yhat, product, mean, lse


def hessian(z: Array, v: Array, t: Truth, i: slice, s: LogitTransform | None, second_derivative: bool = True) -> Array:
    """Return the product of the Hessian of the loss and v, for the rows `i`, whose logits are z.

    Without `second_derivative`, that of the softcap is taken as 0, which gives the Gauss-Newton matrix in place of the Hessian.
    """
    _, rows, _ = t.piece(i, z.dtype)
    _, _, q, g = rows
    slope = s.slope(z) if s else 1.0
    yhat, product, mean, lse = jacobian_product(s(z) if s else z, v * slope)
    with np.errstate(invalid="ignore", over="ignore"):
        hess = slope * g[:, None] * ((t.mass(i) + times(q, lse))[:, None] * product + times(q, mean)[:, None] * yhat)
        if second_derivative and s and s.softcap:
            hess += s.second_derivative(z) * v * gradient(s(z), t, i)[0]
        found: Array = np.where((rows[:3] != 0).any(axis=0)[:, None], hess, 0)
        return found


def row_chunks(whole: bool, *arrays: Array) -> Iterator[tuple[slice, list[Array]]]:
    """Yield slices of rows and the views [n, C] of the arrays [*rows, C] for them, in order.

    If `whole`, the views are as large as the strides allow; otherwise they have at most SCRATCH bytes, but at least one row.
    """
    if whole and arrays[0].ndim == 2 and len(arrays[0]):
        yield slice(0, len(arrays[0])), list(arrays)
        return
    first = 0
    for matrices in _matrices(arrays):
        rows, classes = matrices[0].shape
        step = max(1, rows if whole else SCRATCH // (classes * matrices[0].itemsize))
        for at in range(0, rows, step):
            cut = [m[at : at + step] for m in matrices]
            yield slice(first + at, first + at + len(cut[0])), cut
        first += rows


def _matrices(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    """Yield the arrays [*rows, C] as matrices: once, if their leading axes can be merged without a copy, else for each leading index."""
    lead = arrays[0].shape[:-1]
    if len(lead) < 2 or all(a.flags.c_contiguous for a in arrays):
        yield tuple(a.reshape(-1, a.shape[-1]) for a in arrays)
    elif all(a.strides[i] == a.strides[i + 1] * a.shape[i + 1] for a in arrays for i in range(len(lead) - 1)):
        shape = (math.prod(lead), arrays[0].shape[-1])
        yield tuple(as_strided(a, shape, (a.strides[-2], a.strides[-1])) for a in arrays)
    else:
        for i in range(lead[0]):
            yield from _matrices(tuple(a[i] for a in arrays))


def count(z: Array) -> int:
    """Return the number of rows."""
    return math.prod(z.shape[:-1])


def shaped(rows: Array, lead: tuple[int, ...]) -> Any:
    """Return the results of the rows in the caller's shape; a NumPy scalar, if that has no axes."""
    return rows.reshape(lead)[()]


def reduce(loss: Array, reduction: str, total: float, empty_value: float, lead: tuple[int, ...]) -> Any:
    """Return the losses of the rows, their sum, or their sum divided by `total`, the sum of their weights."""
    if reduction == "none":
        return shaped(loss, lead)
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / total if total else np.float64(empty_value)
