"""Calls of the kernels.

The front ends pass logits [*rows, C] with the class axis last, of any strides, a `Truth` and a `LogitTransform`. The kernel is called once,
on the caller's memory. Only what a kernel cannot read, such as probabilities that are smoothed, is copied first, a chunk of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from . import contract, kernels
from .partials import Array
from .truth import IDENTITY, LogitTransform, Truth, computed_in, in_elements, same_label

SCRATCH = 1 << 18  # bytes of logits in a chunk, where they cannot be used in place

_UNIT = (1.0, 0.0, 0.0, 1.0)  # y = 1; with a label that matches no column, the gradient is softmax


def forward(z: Array, t: Truth, s: LogitTransform, outputs: int = 2) -> Array:
    """Return what every row gives: loss and lse, [2, R], or formula.Outputs, [5, R]."""
    result = np.empty((outputs, len(t.label)))
    for some, (label, numbers, off), zi in chunks(z, t, result):
        kernels.active().forward(zi, label, numbers, off, s, some, None, kernels.get_num_threads())
    return result


def fused(z: Array, t: Truth, s: LogitTransform, dz: Array, outputs: int = 2) -> Array:
    """Write the gradient into dz, which may be z. Returns what every row gives, as `forward`."""
    result = np.empty((outputs, len(t.label)))
    for some, (label, numbers, off), zi, out in chunks(z, t, result, dz):
        kernels.active().fused(zi, label, numbers, off, s, out, some, None, kernels.get_num_threads())
    return result


def curvature(z: Array, v: Array, t: Truth, s: LogitTransform, hv: Array, gauss_newton: bool = False) -> None:
    """Write the product of the Hessian of the loss and v into hv.

    With `gauss_newton`, the second derivative of the softcap is taken as 0, which gives the Gauss-Newton matrix in place of the Hessian.
    """
    wide, products = computed_in(z.dtype), np.empty((4, len(t.label)))
    for some, (label, numbers, off), zi, out, vi in chunks(z, t, products, hv, v, usable=v.dtype == wide):
        along, threads = vi.astype(wide, copy=False), kernels.get_num_threads()
        kernels.active().curvature(zi, along, label, numbers, off, s, gauss_newton, out, some, threads)


def log_softmax(z: Array, out: Array) -> None:
    """Write the logarithm of softmax into out."""
    for _, _, zi, found in chunks(z, softmax_truth(z), np.empty((0, 0)), out):
        kernels.active().log_softmax(zi, np.ones(1), IDENTITY, found, kernels.get_num_threads())


def chunks(z: Array, t: Truth, result: Array, out: Array | None = None, *others: Array, usable: bool = True) -> Iterable[tuple[Any, ...]]:
    """Yield chunks of rows: of `result` [K, R], what a kernel takes of their truth, of z [*rows, C], and of `out` and others like z.

    All rows are one chunk, in the memory of the arrays themselves, unless some array cannot be read where it lies: its type, or strides
    that are no whole numbers of elements, are none that a kernel takes. Then a chunk has SCRATCH bytes of logits, or one row, and is
    copied; that of `out` is copied back when the next one is asked for.
    """
    arrays = (z, *others) if out is None else (z, out, *others)
    if usable and t.usable() and in_elements(*arrays):
        return ((result, t.given(z.dtype), *(a if a.ndim > 1 else a[None] for a in arrays)),)
    return _copied(result, t, out is not None, *(a if a.ndim > 1 else a[None] for a in arrays))


def _copied(result: Array, t: Truth, written: bool, *arrays: Array) -> Iterator[tuple[Any, ...]]:
    z = arrays[0]
    step, rows = max(1, SCRATCH // (z.shape[-1] * z.itemsize)), count(z)
    for first in range(0, rows, step):
        i = slice(first, min(first + step, rows))
        at = np.unravel_index(np.arange(i.start, i.stop), z.shape[:-1])
        some = [a[at] for a in arrays]
        yield result[:, i], t.rows_of(i, at).given(z.dtype), *some
        if written:
            arrays[1][at] = some[1]


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
    return Truth(same_label(kernels.NO_LABEL, count(z)), _UNIT)


def entropy_truth(z: Array, upstream: Array | float) -> Truth:
    """Return a truth that is 0, with upstream gradients of the entropy, [R] or one.

    The largest logit is the label, so that a value near 0 keeps its digits.
    """
    return Truth(same_label(kernels.LARGEST, count(z)), (*6 * (0.0,), upstream if isinstance(upstream, float) else (1.0, upstream, None)))


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
        return np.float64(kernels.total(loss))
    return np.float64(kernels.total(loss) / total if total else empty_value)
