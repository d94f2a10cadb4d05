"""formula.py as a backend, of NumPy's arrays and of others: float64, in row chunks that bound its memory. What other backends are compared
with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import formula
from ..partials import Array, Partials, identity, library, lse

_CHUNK = 1 << 18  # elements worked on at once: 2 MiB in float64, times the handful of temporaries of an expression
_ON_A_DEVICE = 1 << 24  # where an operation is a launch: 128 MiB
_NOTHING = [float(x[0]) for x in identity(1)]


def forward(z: Array, label: Array, truth: Array, off: Array | None, result: Array, parts: Array | None, threads: int) -> None:
    for i in _chunks(z):
        y, r, q, _ = _rows(truth, i)
        x = formula.partials(_wide(z[i]), label[i], _off(off, i))
        where, dead = library(x.m).where, (y == 0) & (r == 0) & (q == 0)  # ignored rows: nothing was looked at
        x = Partials(*(where(dead, none, part) for none, part in zip(_NOTHING, x, strict=True)))
        result[0, i], result[1, i] = formula.loss(x, y, r, q), where(dead, -np.inf, lse(x))
        if parts is not None:
            for row, part in zip(parts, x, strict=True):
                row[i] = part


def backward(z: Array, label: Array, truth: Array, off: Array | None, parts: Array, out: Array, threads: int) -> None:
    for i in _chunks(z):
        x = Partials(*parts[:, i])
        with np.errstate(over="ignore"):  # a value that the narrow dtype cannot hold is inf there, as on every backend
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
    """As float64; uint16 are the bits of bfloat16."""
    if library(a) is not np:
        wide: Array = library(a).float64(a)
        return wide
    return ((a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a).astype(np.float64)


def _narrow(a: Array, dtype: np.dtype[Any]) -> Array:
    """The way back, to the nearest (ties to even): for bits; an assignment does it for numbers."""
    if dtype != np.uint16:
        return a
    bits = a.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), 0x7FC0, rounded).astype(np.uint16)
