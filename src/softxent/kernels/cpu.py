"""The backend `cpu`: the interface of kernels/__init__.py, implemented by the compiled C++ kernel in cpp/."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _kernel

if TYPE_CHECKING:
    from ..partials import Array
    from . import Transform


def forward(
    z: Array, label: Array, numbers: Array, off: Array | None, transform: Transform, result: Array, parts: Array | None, threads: int
) -> None:
    _kernel.forward(_bits(z), label, numbers, _bits(off), transform, result, parts, threads)


def backward(
    z: Array, label: Array, numbers: Array, off: Array | None, transform: Transform, parts: Array, out: Array, threads: int
) -> None:
    _kernel.backward(_bits(z), label, numbers, _bits(off), transform, parts, _bits(out), threads)


def fused(
    z: Array, label: Array, numbers: Array, off: Array | None, transform: Transform, out: Array, result: Array, parts: Array | None,
    threads: int,
) -> None:  # fmt: skip
    _kernel.fused(_bits(z), label, numbers, _bits(off), transform, _bits(out), result, parts, threads)


def curvature(
    z: Array, v: Array, label: Array, numbers: Array, off: Array | None, transform: Transform, gauss_newton: bool, out: Array,
    result: Array, threads: int,
) -> None:  # fmt: skip
    _kernel.curvature(_bits(z), v, label, numbers, _bits(off), transform, gauss_newton, _bits(out), result, threads)


def log_softmax(z: Array, scale: Array, transform: Transform, out: Array, threads: int) -> None:
    _kernel.log_softmax(_bits(z), scale[None], transform, _bits(out), threads)


def merge(
    sums: Array, pairs: Array, label: Array, numbers: Array, temperature: float, result: Array, parts: Array, threads: int
) -> None:  # fmt: skip
    _kernel.merge(sums, pairs, label, numbers, temperature, result, parts)


first_outside = _kernel.first_outside
isa = _kernel.isa
quick, buffer, trim = _kernel.quick, _kernel.buffer, _kernel.trim
xla_calls, set_xla_threads = _kernel.xla_calls, _kernel.set_xla_threads


def _bits(a: Array | None) -> Array | None:
    """Return a bfloat16 array as uint16, because NumPy's buffer protocol has no bfloat16; other arrays as they are."""
    return a.view(np.uint16) if a is not None and a.dtype.kind == "V" else a
