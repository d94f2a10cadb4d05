"""The backend `formula`: the interface of kernels/__init__.py, implemented by formula.py in float64, for NumPy arrays and tensors.

It is slow and serves as the reference for the other backends, and as the fallback where there is none. It works on chunks of rows, which
bounds its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import formula
from ..partials import Array, Partials, identity, library, lse

_CHUNK = 1 << 18  # elements of a chunk: 2 MiB in float64, for each temporary array of an expression
_ON_A_DEVICE = 1 << 24  # elements of a chunk of tensors, 128 MiB: on a GPU each operation costs a kernel launch
_NOTHING = [float(x[0]) for x in identity(1)]


def forward(z: Array, label: Array, truth: Array, off: Array | None, result: Array, parts: Array | None, threads: int) -> None:
    for i in _chunks(z):
        y, r, q, _ = _rows(truth, i)
        x = formula.partials(_wide(z[i]), label[i], _off(off, i))
        where, dead = library(x.m).where, (y == 0) & (r == 0) & (q == 0)  # ignored rows have the sums of no columns
        x = Partials(*(where(dead, none, part) for none, part in zip(_NOTHING, x, strict=True)))
        result[0, i], result[1, i] = formula.loss(x, y, r, q), where(dead, -np.inf, lse(x))
        if parts is not None:
            for row, part in zip(parts, x, strict=True):
                row[i] = part


def backward(z: Array, label: Array, truth: Array, off: Array | None, parts: Array, out: Array, threads: int) -> None:
    for i in _chunks(z):
        x = Partials(*parts[:, i])
        with np.errstate(over="ignore"):  # a value beyond the range of a narrow dtype becomes inf, as on every backend
            y, r, q, g = _rows(truth, i)
            out[i] = _narrow(formula.gradient(_wide(z[i]), x, label[i], y, r, q, g, _off(off, i)), out.dtype)


def fused(z: Array, label: Array, truth: Array, off: Array | None, out: Array, result: Array, parts: Array | None, threads: int) -> None:
    parts = library(z).empty((6, len(z)), like=result) if parts is None else parts
    forward(z, label, truth, off, result, parts, threads)
    backward(z, label, truth, off, parts, out, threads)


def first_outside(label: Array, classes: int, ignore_index: int) -> int:
    bad = ((label < 0) | (label >= classes)) & (label != ignore_index)
    return int(bad.argmax()) if bad.any() else -1


def _chunks(z: Array) -> Iterator[slice]:
    step = max(1, (_CHUNK if library(z) is np else _ON_A_DEVICE) // max(1, z.shape[1]))
    return (slice(i, i + step) for i in range(0, len(z), step))


def _rows(truth: Array, i: slice) -> Array:
    return truth if truth.shape[1] == 1 else truth[:, i]


def _off(off: Array | None, i: slice) -> Array | None:
    return None if off is None else _wide(off if off.ndim == 1 else off[i])


def _wide(a: Array) -> Array:
    """Return `a` as float64; uint16 holds the bits of bfloat16."""
    if library(a) is not np:
        wide: Array = library(a).float64(a)
        return wide
    return ((a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a).astype(np.float64)


def _narrow(a: Array, dtype: np.dtype[Any]) -> Array:
    """Round to bfloat16, to nearest even, if the dtype is uint16; for other dtypes, NumPy's assignment rounds."""
    if dtype != np.uint16:
        return a
    bits = a.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), 0x7FC0, rounded).astype(np.uint16)
