"""The backend `cpu`: the interface of kernels/__init__.py, implemented by the compiled C++ kernel in cpp/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _kernel

if TYPE_CHECKING:
    from ..partials import Array
    from . import Transform

FORWARD, BACKWARD, FUSED, CURVATURE, LOG_SOFTMAX, TANGENT_SUMS, HESSIAN = (
    _kernel.OPS[name] for name in ("FORWARD", "BACKWARD", "FUSED", "CURVATURE", "LOG_SOFTMAX", "TANGENT_SUMS", "HESSIAN")
)


def forward(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, result: Array, parts: Array | None, threads: int
) -> None:
    call(FORWARD, _bits(z), -1, label, _each(numbers), _bits(off), transform, None, result, parts, threads)


def backward(z: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, parts: Array, out: Array, threads: int) -> None:
    call(BACKWARD, _bits(z), -1, label, _each(numbers), _bits(off), transform, _bits(out), None, parts, threads)


def fused(
    z: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, out: Array, result: Array, parts: Array | None,
    threads: int,
) -> None:  # fmt: skip
    call(FUSED, _bits(z), -1, label, _each(numbers), _bits(off), transform, _bits(out), result, parts, threads)


def curvature(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, gauss_newton: bool, out: Array,
    result: Array, threads: int,
) -> None:  # fmt: skip
    call(CURVATURE, _bits(z), -1, label, _each(numbers), _bits(off), transform, _bits(out), result, None, threads, v, gauss_newton)


def tangent_sums(
    z: Array, v: Array, label: Array, off: Array | None, transform: Transform, parts: Array, tangents: Array, threads: int
) -> None:
    call(TANGENT_SUMS, _bits(z), -1, label, (), _bits(off), transform, None, None, parts, threads, v, tangents=tangents)


def hessian(
    z: Array, v: Array, label: Array, numbers: Any, off: Array | None, transform: Transform, gauss_newton: bool, parts: Array,
    tangents: Array, out: Array, result: Array, threads: int,
) -> None:  # fmt: skip
    given = (label, _each(numbers), _bits(off), transform, _bits(out), result, parts, threads, v, gauss_newton)
    call(HESSIAN, _bits(z), -1, *given, tangents=tangents)


def log_softmax(z: Array, scale: Array, transform: Transform, out: Array, threads: int) -> None:
    call(LOG_SOFTMAX, _bits(z), -1, None, _each(scale[None]), None, transform, _bits(out), None, None, threads)


def merge(
    sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array, tangents: Array | None,
    threads: int,
) -> None:  # fmt: skip
    _kernel.merge(sums, pairs, label, numbers, temperature, result, parts, tangents)


call, labels, sum = _kernel.call, _kernel.labels, _kernel.sum
isa, buffer, trim = _kernel.isa, _kernel.buffer, _kernel.trim
xla_calls, set_xla_threads = _kernel.xla_calls, _kernel.set_xla_threads


def _bits(a: Array | None) -> Array | None:
    """Return a bfloat16 array as uint16, because NumPy's buffer protocol has no bfloat16; other arrays as they are."""
    return a.view(np.uint16) if a is not None and a.dtype.kind == "V" else a


def _each(numbers: Any) -> tuple[Any, ...]:
    """Return numbers of the rows, [K, R] or [K, 1], as a tuple of K."""
    if isinstance(numbers, tuple):
        return numbers
    return tuple(numbers[:, 0].tolist() if numbers.shape[1] == 1 else numbers)
