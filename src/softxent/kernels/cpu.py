"""The compiled kernel (cpp/): the waist of kernels/__init__.py in C++, for the processor's own instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import _kernel

if TYPE_CHECKING:
    from ..partials import Array


def forward(z: Array, label: Array, truth: Array, off: Array | None, result: Array, parts: Array | None, threads: int) -> None:
    _kernel.forward(_bits(z), label, truth, _bits(off), result, parts, threads)


def backward(z: Array, label: Array, truth: Array, off: Array | None, parts: Array, out: Array, threads: int) -> None:
    _kernel.backward(_bits(z), label, truth, _bits(off), parts, _bits(out), threads)


def fused(z: Array, label: Array, truth: Array, off: Array | None, out: Array, result: Array, parts: Array | None, threads: int) -> None:
    _kernel.fused(_bits(z), label, truth, _bits(off), _bits(out), result, parts, threads)


first_outside = _kernel.first_outside
isa = _kernel.isa
scalar, buffer, trim = _kernel.scalar, _kernel.buffer, _kernel.trim


def _bits(a: Array | None) -> Array | None:
    """bfloat16 as its bits: NumPy's buffers have no name for it."""
    return a.view(np.uint16) if a is not None and a.dtype.kind == "V" else a
