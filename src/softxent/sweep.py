"""Calls of the kernels on logits of any strides.

The front ends pass logits [*rows, C] with the class axis last, a `Truth` and a `LogitTransform`. If the strides allow it, the kernel is
called once, on the caller's memory. Otherwise chunks of rows are copied into adjacent memory first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import contract, kernels
from .partials import Array
from .truth import IDENTITY, LogitTransform, Truth, adjacent, computed_in, constant

SCRATCH = 1 << 18  # bytes of logits in a chunk, where they cannot be used in place

_UNIT = constant(1.0, 0.0, 0.0, 1.0)  # y = 1; with a label that matches no column, the gradient is softmax


def forward(z: Array, t: Truth, s: LogitTransform, outputs: int = 2) -> Array:
    """Return what every row gives: loss and lse, [2, R], or formula.Outputs, [5, R]."""
    result = np.empty((outputs, count(z)))
    for i, (zi,) in row_chunks(t.usable(z.dtype) and adjacent(z), z):
        zi = zi if adjacent(zi) else np.ascontiguousarray(zi)
        kernels.active().forward(zi, *t.piece(i, zi.dtype), s, result[:, i], None, kernels.get_num_threads())
    return result


def fused(z: Array, t: Truth, s: LogitTransform, dz: Array, outputs: int = 2) -> Array:
    """Write the gradient into dz, which may be z. Returns what every row gives, as `forward`."""
    result = np.empty((outputs, count(z)))
    for i, (zi,), out in _written(t.usable(z.dtype), dz, z):
        kernels.active().fused(zi, *t.piece(i, zi.dtype), s, out, result[:, i], None, kernels.get_num_threads())
    return result


def curvature(z: Array, v: Array, t: Truth, s: LogitTransform, hv: Array, gauss_newton: bool = False) -> None:
    """Write the product of the Hessian of the loss and v into hv.

    With `gauss_newton`, the second derivative of the softcap is taken as 0, which gives the Gauss-Newton matrix in place of the Hessian.
    """
    wide = computed_in(z.dtype)
    for i, (zi, vi), out in _written(t.usable(z.dtype) and v.dtype == wide, hv, z, v):
        along, products = vi.astype(wide, copy=False), np.empty((4, len(zi)))
        kernels.active().curvature(zi, along, *t.piece(i, zi.dtype), s, gauss_newton, out, products, kernels.get_num_threads())


def log_softmax(z: Array, out: Array) -> None:
    """Write the logarithm of softmax into out."""
    for _, (zi,), place in _written(True, out, z):
        kernels.active().log_softmax(zi, np.ones(1), IDENTITY, place, kernels.get_num_threads())


def _written(usable: bool, out: Array, *read: Array) -> Iterator[tuple[slice, list[Array], Array]]:
    """Yield slices of rows, the arrays that a kernel reads for them, and the array that it writes, which is then copied to `out`.

    They are the caller's memory if all of it is `usable` and the strides allow it, and copies of chunks otherwise.
    """
    for i, (*given, o) in row_chunks(usable and all(adjacent(a) for a in (out, *read)), *read, out):
        place = o if adjacent(o) else np.empty(o.shape, o.dtype)
        yield i, [a if adjacent(a) else np.ascontiguousarray(a) for a in given], place
        if place is not o:
            o[...] = place


def output(fn: str, out: Any, z: Array, axis: int, *truth: Any) -> Array:
    """Return an array for a gradient of the logits `z`, with the class axis last: `out`, checked, or a new one if it is None.

    truth: what a kernel reads while it writes to `out`.
    """
    if out is not None:
        return contract.out(fn, out, z, axis, *truth)
    like = contract.from_last(z, axis)
    new = kernels.empty(like.shape, like.dtype) if like.flags.c_contiguous else np.empty_like(like, subok=False)
    return contract.to_last(new, axis)


def softmax_truth(z: Array) -> Truth:
    """Return a truth with mass 1 whose label matches no class, so that the gradient is softmax, and lse that of every row."""
    return Truth(np.broadcast_to(np.int64(kernels.NO_LABEL), count(z)), _UNIT)


def entropy_truth(z: Array, upstream: Array) -> Truth:
    """Return a truth that is 0, with upstream gradients [R] of the entropy.

    The largest logit is the label, so that a value near 0 keeps its digits.
    """
    rows = np.zeros((7, count(z)))
    rows[6] = upstream
    return Truth(np.broadcast_to(np.int64(kernels.LARGEST), count(z)), rows)


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
