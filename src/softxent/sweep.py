"""Calls of the kernels.

The front ends pass logits [*rows, C] with the class axis last, of any strides, a `Truth` and a `LogitTransform`. The kernel is called once,
on the caller's memory. Only what a kernel cannot read, such as probabilities that are smoothed, is copied first, a chunk of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import contract, kernels
from .partials import Array
from .truth import IDENTITY, LogitTransform, Truth, computed_in, constant, in_elements

SCRATCH = 1 << 18  # bytes of logits in a chunk, where they cannot be used in place

_UNIT = constant(1.0, 0.0, 0.0, 1.0)  # y = 1; with a label that matches no column, the gradient is softmax


def forward(z: Array, t: Truth, s: LogitTransform, outputs: int = 2) -> Array:
    """Return what every row gives: loss and lse, [2, R], or formula.Outputs, [5, R]."""
    result = np.empty((outputs, count(z)))
    z = np.atleast_2d(z)
    for i, at in chunks(z, t):
        kernels.active().forward(z[at], *t.piece(i, z.dtype, at), s, result[:, i], None, kernels.get_num_threads())
    return result


def fused(z: Array, t: Truth, s: LogitTransform, dz: Array, outputs: int = 2) -> Array:
    """Write the gradient into dz, which may be z. Returns what every row gives, as `forward`."""
    result = np.empty((outputs, count(z)))
    z, dz = np.atleast_2d(z, dz)
    for i, at in chunks(z, t, dz):
        with written(dz, at) as out:
            kernels.active().fused(z[at], *t.piece(i, z.dtype, at), s, out, result[:, i], None, kernels.get_num_threads())
    return result


def curvature(z: Array, v: Array, t: Truth, s: LogitTransform, hv: Array, gauss_newton: bool = False) -> None:
    """Write the product of the Hessian of the loss and v into hv.

    With `gauss_newton`, the second derivative of the softcap is taken as 0, which gives the Gauss-Newton matrix in place of the Hessian.
    """
    wide = computed_in(z.dtype)
    z, v, hv = np.atleast_2d(z, v, hv)
    for i, at in chunks(z, t, hv, v, usable=v.dtype == wide):
        along, products = v[at].astype(wide, copy=False), np.empty((4, len(t.label[i])))
        with written(hv, at) as out:
            kernels.active().curvature(z[at], along, *t.piece(i, z.dtype, at), s, gauss_newton, out, products, kernels.get_num_threads())


def log_softmax(z: Array, out: Array) -> None:
    """Write the logarithm of softmax into out."""
    z, out = np.atleast_2d(z, out)
    for _, at in chunks(z, None, out):
        with written(out, at) as place:
            kernels.active().log_softmax(z[at], np.ones(1), IDENTITY, place, kernels.get_num_threads())


def chunks(z: Array, t: Truth | None, *others: Array, usable: bool = True) -> Iterator[tuple[slice, Any]]:
    """Yield slices of the rows, and the index of these rows in z [*rows, C] and in arrays like it.

    All rows are one slice, whose index gives the arrays themselves, unless some array cannot be read where it lies: its type, or strides
    that are no whole numbers of elements, are none that a kernel takes. Then a slice has SCRATCH bytes of logits, or one row.
    """
    rows = count(z)
    whole = usable and (t is None or t.usable(z.dtype)) and in_elements(z, *others)
    step = rows if whole else max(1, SCRATCH // (z.shape[-1] * z.itemsize))
    for first in range(0, rows, max(1, step)):
        i = slice(first, min(first + step, rows))
        yield i, ... if whole else np.unravel_index(np.arange(i.start, i.stop), z.shape[:-1])


@contextmanager
def written(out: Array, at: Any) -> Iterator[Array]:
    """Give an array for the rows at this index of `out`, which is then copied there unless it is `out`."""
    place = out if at is ... else np.empty_like(out[at], order="C")
    yield place
    if place is not out:
        out[at] = place


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
