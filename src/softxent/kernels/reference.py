"""The backend `formula`: the interface of kernels/__init__.py, implemented by functional.py in float64, for NumPy arrays and tensors.

It is slow and serves as the reference for the other backends, and as the fallback where there is none. It works on chunks of rows, which
bounds its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import formula, functional, partials
from ..formula import Numbers
from ..functional import Rows
from ..partials import Array, Partials, Tangents, library
from ..shared import IGNORED

_CHUNK = 1 << 18  # elements of a chunk: 2 MiB in float64, for each temporary array of an expression
_ON_A_DEVICE = 1 << 24  # elements of a chunk of tensors, 128 MiB: on a GPU each operation costs a kernel launch


def forward(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, result: Array, parts: Array | None, threads: int
) -> None:
    for i, at, of in _chunks(z, label, off, transform):
        x = functional.sums(of)
        _put(result, i, functional.outputs(x, _numbers(numbers, i, of), of.ignored))
        if len(result) > len(formula.Outputs._fields):  # before the transform, with which classes may tie
            result[-1][i] = library(x.m).where(of.ignored, -1, _wide(z[at]).argmax(axis=1))
        if parts is not None:
            _put(parts, i, x[:-1])


def backward(z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, parts: Array, out: Array, threads: int) -> None:
    for i, at, of in _chunks(z, label, off, transform):
        with np.errstate(over="ignore"):  # a value beyond the range of a narrow dtype becomes inf, as on every backend
            out[at] = _narrow(functional.gradient(of, _sums(parts, i, transform[0]), _numbers(numbers, i, of)), out.dtype)


def fused(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, out: Array, result: Array, parts: Array | None, threads: int
) -> None:
    parts = library(z).empty((7, result.shape[1]), like=result) if parts is None else parts
    forward(z, label, numbers, off, transform, result, parts, threads)
    backward(z, label, numbers, off, transform, parts, out, threads)


def tangent_sums(z: Array, v: Array, label: Array, off: Array | None, transform: Any, parts: Array, tangents: Array, threads: int) -> None:
    for i, at, of in _chunks(z, label, off, transform):
        _put(tangents, i, functional.tangents(of, _wide(v[at])))
        _put(parts, i, functional.sums(of)[:-1])


def hessian(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Any, gauss_newton: bool, parts: Array, tangents: Array,
    out: Array, result: Array, threads: int,
) -> None:  # fmt: skip
    for i, at, of in _chunks(z, label, off, transform):
        x, y = _sums(parts, i, transform[0]), Tangents(*tangents[:, i])
        hv = functional.hessian(of, _wide(v[at]), x, y, _numbers(numbers, i, of), gauss_newton)
        _put(result, i, functional.along(x, y, of.ignored))
        with np.errstate(over="ignore"):
            out[at] = _narrow(hv, out.dtype)


def curvature(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Any, gauss_newton: bool, out: Array, result: Array,
    threads: int,
) -> None:  # fmt: skip
    parts, tangents = (library(z).empty((fields, result.shape[1]), like=result) for fields in (7, 5))
    tangent_sums(z, v, label, off, transform, parts, tangents, threads)
    hessian(z, v, label, numbers, off, transform, gauss_newton, parts, tangents, out, result, threads)
    whole = slice(None)
    x, y, (lse, logprob, *_) = _sums(parts, whole, transform[0]), Tangents(*tangents[:, whole]), result[:, whole]
    impossible = (label >= 0) & (label < z.shape[-1]) & (x.zt == -np.inf)  # a label, which the sums cannot tell from none
    result[1][whole] = library(z).where(impossible, y.vt - lse, logprob)


def merge(
    sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array, tangents: Array | None,
    threads: int,
) -> None:  # fmt: skip
    whole, ignored = slice(None), label == IGNORED
    each = [_sums(shard, whole, temperature) for shard in sums]
    along = None if tangents is None else [Tangents(*shard[:, whole]) for shard in tangents]
    merged, moved = partials.merge_all(each, along, pairs.tolist())
    x = functional.blank(merged, ignored)
    _put(parts, whole, x[:-1])
    _put(result, whole, functional.outputs(x, Numbers(*numbers), ignored))
    if tangents is not None and moved is not None:
        _put(tangents[0], whole, moved)


def log_softmax(z: Array, scale: Array, transform: Any, out: Array, threads: int) -> None:
    for i, at in _runs(z):
        found = functional.log_softmax(_wide(z[at]), scale if len(scale) == 1 else scale[i], transform)
        with np.errstate(over="ignore"):
            out[at] = _narrow(found, out.dtype)


def labels(label: Array, classes: int, ignored: int, weight: Any, out: Array | None = None) -> tuple[int, int, float]:
    wide = label.astype(np.int64).reshape(-1)  # first, for NumPy 2.0 may crash if it compares other types with such a number
    none = (wide == ignored) & ((wide >= 0) | (label.dtype != np.uint64))  # uint64 numbers beyond int64 have become negative
    bad = ((wide < 0) | (wide >= classes)) & ~none
    found = np.where(none, IGNORED, wide)
    if out is not None:
        out[:] = found
    of_rows = number(weight, found)
    total = float(np.where(found == IGNORED, 0.0, of_rows).sum()) if isinstance(of_rows, np.ndarray) else of_rows * (~none).sum()
    return int(bad.argmax()) if bad.any() else -1, int(none.sum()), float(total)


def number(given: Any, label: Array, i: slice = slice(None)) -> Any:
    """Return a number of the rows `i`, whose labels these are: a float, or the product of (float, [R] or None, [C] or None)."""
    if isinstance(given, float):
        return given
    scalar, of_row, of_class = given
    each = 1.0 if of_row is None else of_row[i]
    return scalar * (each if of_class is None else of_class[label.clip(0, len(of_class) - 1)] * each)


def _runs(z: Array) -> Iterator[tuple[slice, Any]]:
    """Yield a slice of the rows of z [*rows, C], for arrays that have one axis for the rows, and their index for arrays like z."""
    lead = z.shape[:-1]
    count, step = math.prod(lead), max(1, (_CHUNK if library(z) is np else _ON_A_DEVICE) // max(1, z.shape[-1]))
    for first in range(0, count, step):
        i = slice(first, min(first + step, count))
        yield i, i if len(lead) == 1 else np.unravel_index(np.arange(i.start, i.stop), lead) if lead else None


def _chunks(z: Array, label: Array, off: Array | None, transform: Any) -> Iterator[tuple[slice, Any, Rows]]:
    """Yield what `_runs` does, and these rows."""
    for i, at in _runs(z):
        offi = None if off is None else _wide(off if off.ndim == 1 else off[at])
        yield i, at, functional.rows(_wide(z[at]), label[i], offi, transform)


def _numbers(numbers: Any, i: slice, of: Rows) -> Numbers:
    """Return the numbers of the rows `i`."""
    if isinstance(numbers, tuple):
        return functional.numbers(of, [number(x, of.label, i) for x in numbers])
    return functional.numbers(of, numbers[:, i] if numbers.shape[1] > 1 else numbers)


def _sums(parts: Array, i: slice, temperature: float) -> Partials:
    return Partials(*parts[:, i])._replace(temperature=temperature)


def _put(to: Array, i: slice, found: Any) -> None:
    """Write numbers of the rows `i`."""
    for row, part in zip(to, found, strict=False):
        row[i] = part


def _wide(a: Array) -> Array:
    """Return `a` as float64; uint16 holds the bits of bfloat16."""
    if library(a) is not np:
        wide: Array = library(a).float64(a)
        return wide
    return ((a.astype(np.uint32) << 16).view(np.float32) if a.dtype == np.uint16 else a).astype(np.float64, order="C")


def _narrow(a: Array, dtype: np.dtype[Any]) -> Array:
    """Round to bfloat16, to nearest even, if the dtype is uint16; for other dtypes, NumPy's assignment rounds."""
    if dtype != np.uint16:
        return a
    bits = a.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(a), 0x7FC0, rounded).astype(np.uint16)
