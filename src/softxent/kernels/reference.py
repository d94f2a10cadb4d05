"""The backend `formula`: the interface of kernels/__init__.py, implemented by formula.py in float64, for NumPy arrays and tensors.

It is slow and serves as the reference for the other backends, and as the fallback where there is none. It works on chunks of rows, which
bounds its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import formula, partials
from ..formula import Numbers
from ..partials import Array, Partials, Tangents, identity, library, times
from ..shared import IGNORED, LARGEST, LARGEST_LOGIT

_CHUNK = 1 << 18  # elements of a chunk: 2 MiB in float64, for each temporary array of an expression
_ON_A_DEVICE = 1 << 24  # elements of a chunk of tensors, 128 MiB: on a GPU each operation costs a kernel launch
_NOTHING = [float(x[0]) for x in identity(1)[:-1]]


def forward(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, result: Array, parts: Array | None, threads: int
) -> None:
    for i, at in _chunks(z):
        zi, offi = formula.transformed(_wide(z[at]), *transform)[0], _off(off, at)
        t = _label(label[i], zi, offi)
        y, r, q, *_ = _numbers(numbers, i, t)
        where = library(zi).where
        x = _blank(formula.partials(zi, t, offi, transform[0]), t == IGNORED)
        for row, output in zip(result, formula.outputs(x, y, r, q), strict=False):
            row[i] = where(t == IGNORED, 0.0, output)
        if len(result) > len(formula.Outputs._fields):
            result[-1][i] = where(t == IGNORED, -1, _wide(z[at]).argmax(axis=1))
        if parts is not None:
            for row, part in zip(parts, x[:-1], strict=True):
                row[i] = part


def backward(z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, parts: Array, out: Array, threads: int) -> None:
    for i, at in _chunks(z):
        zi, slope, _ = formula.transformed(_wide(z[at]), *transform)
        offi = _off(off, at)
        t = _label(label[i], zi, offi)
        x = Partials(*parts[:, i])._replace(temperature=transform[0])
        with np.errstate(over="ignore"):  # a value beyond the range of a narrow dtype becomes inf, as on every backend
            dz = formula.gradient(zi, x, t, formula.coefficients(x, _numbers(numbers, i, t)), offi)
            out[at] = _narrow(times(dz, slope), out.dtype)


def fused(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Any, out: Array, result: Array, parts: Array | None, threads: int
) -> None:
    parts = library(z).empty((7, result.shape[1]), like=result) if parts is None else parts
    forward(z, label, numbers, off, transform, result, parts, threads)
    backward(z, label, numbers, off, transform, parts, out, threads)


def tangent_sums(z: Array, v: Array, label: Array, off: Array | None, transform: Any, parts: Array, tangents: Array, threads: int) -> None:
    for i, at in _chunks(z):
        zi, slope, _ = formula.transformed(_wide(z[at]), *transform)
        offi = _off(off, at)
        t = _label(label[i], zi, offi)
        with np.errstate(over="ignore", invalid="ignore"):
            along = formula.tangents(zi, times(_wide(v[at]), slope), t, offi, transform[0])
        for row, part in zip(parts, _blank(formula.partials(zi, t, offi, transform[0]), t == IGNORED)[:-1], strict=True):
            row[i] = part
        for row, tangent in zip(tangents, along, strict=True):
            row[i] = library(zi).where(t == IGNORED, 0.0, tangent)


def hessian(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Any, gauss_newton: bool, parts: Array, tangents: Array,
    out: Array, result: Array, threads: int,
) -> None:  # fmt: skip
    for i, at in _chunks(z):
        zi, slope, second = formula.transformed(_wide(z[at]), *transform)
        vi, offi = _wide(v[at]), _off(off, at)
        t = _label(label[i], zi, offi)
        where = library(zi).where
        ignored = t == IGNORED
        of, x = _numbers(numbers, i, t), Partials(*parts[:, i])._replace(temperature=transform[0])
        with np.errstate(over="ignore", invalid="ignore"):
            y = partials.along(x, Tangents(*tangents[:, i]))
            direction = times(vi, slope)
            hv = times(formula.hessian(zi, direction, t, x, y, of), slope)
            if not gauss_newton:
                hv = hv + times(formula.gradient(zi, x, t, formula.coefficients(x, of), offi), times(vi, second))
            size: Any = sum(abs(number) for number in of)  # the product is 0 if all numbers are, whatever the logits
            live = ~ignored & (size != 0)
            for row, found in zip(result, (y.lse, where(x.zt == -np.inf, 0.0, y.logprob), y.off, y.entropy), strict=True):
                row[i] = where(ignored, 0.0, found)
            out[at] = _narrow(where(live[:, None], hv, 0.0), out.dtype)


def curvature(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Any, gauss_newton: bool, out: Array, result: Array,
    threads: int,
) -> None:  # fmt: skip
    parts, tangents = (library(z).empty((fields, result.shape[1]), like=result) for fields in (7, 5))
    tangent_sums(z, v, label, off, transform, parts, tangents, threads)
    hessian(z, v, label, numbers, off, transform, gauss_newton, parts, tangents, out, result, threads)
    rows = slice(None)
    x, y, (lse, logprob, *_) = Partials(*parts[:, rows]), Tangents(*tangents[:, rows]), result[:, rows]
    impossible = (label >= 0) & (label < z.shape[-1]) & (x.zt == -np.inf)  # a label, which the sums cannot tell from none
    result[1][rows] = library(z).where(impossible, y.vt - lse, logprob)


def merge(
    sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array, tangents: Array | None,
    threads: int,
) -> None:  # fmt: skip
    each = [Partials(*shard)._replace(temperature=temperature) for shard in sums]
    for i, j in pairs.tolist():
        if tangents is not None:
            along = partials.merge_tangents(each[i], Tangents(*tangents[i]), each[j], Tangents(*tangents[j]))
            for row, tangent in zip(tangents[i], along, strict=True):
                row[:] = tangent
        each[i] = partials.merge(each[i], each[j])
    x = _blank(each[0], label == IGNORED)
    y, r, q, *_ = _numbers(numbers, slice(None), label)
    for row, part in zip(parts, x[:-1], strict=True):
        row[:] = part
    for row, output in zip(result, formula.outputs(x, y, r, q), strict=False):
        row[:] = library(sums).where(label == IGNORED, 0.0, output)


def log_softmax(z: Array, scale: Array, transform: Any, out: Array, threads: int) -> None:
    for i, at in _chunks(z):
        zi = formula.transformed(_wide(z[at]), *transform)[0]
        x = formula.partials(
            zi, zi.argmax(axis=1), None, transform[0]
        )  # the largest logit is kept apart, so that a value near 0 keeps its digits
        by = -(scale if len(scale) == 1 else scale[i])[:, None]
        with np.errstate(over="ignore"):
            out[at] = _narrow(times(by, formula.surprisal(zi, x)), out.dtype)


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


def _chunks(z: Array) -> Iterator[tuple[slice, Any]]:
    """Yield a slice of the rows of z [*rows, C], for arrays that have one axis for the rows, and their index for arrays like z."""
    lead = z.shape[:-1]
    rows, step = math.prod(lead), max(1, (_CHUNK if library(z) is np else _ON_A_DEVICE) // max(1, z.shape[-1]))
    for first in range(0, rows, step):
        i = slice(first, min(first + step, rows))
        yield i, i if len(lead) == 1 else np.unravel_index(np.arange(i.start, i.stop), lead) if lead else None


def _blank(x: Partials, rows: Array) -> Partials:
    """Return the sums, and those of no columns in some of the rows."""
    where = library(rows).where
    return Partials(*(where(rows, none, part) for none, part in zip(_NOTHING, x[:-1], strict=True)))._replace(temperature=x.temperature)


def _numbers(numbers: Any, i: slice, label: Array) -> Numbers:
    """Return the numbers of the rows `i`, which are 0 in ignored rows."""
    if isinstance(numbers, tuple):
        numbers = [number(x, label, i) for x in numbers]
    elif numbers.shape[1] > 1:
        numbers = numbers[:, i]
    return Numbers(*(library(label).where(label == IGNORED, 0.0, x) for x in numbers))


def _label(label: Array, z: Array, off: Array | None) -> Array:
    """Return the labels, with a column in place of LARGEST and LARGEST_LOGIT."""
    where, of = library(z).where, z if off is None or off.ndim == 1 else off
    found: Array = where(label == LARGEST, of.argmax(axis=1), where(label == LARGEST_LOGIT, z.argmax(axis=1), label))
    return found


def _off(off: Array | None, at: Any) -> Array | None:
    return None if off is None else _wide(off if off.ndim == 1 else off[at])


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
