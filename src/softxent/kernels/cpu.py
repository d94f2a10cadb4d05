"""The backend `cpu`: the interface of kernels/__init__.py, implemented by the compiled C++ kernel in cpp/."""

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
    """Return a bfloat16 array as uint16, because NumPy's buffer protocol has no bfloat16; other arrays as they are."""
    return a.view(np.uint16) if a is not None and a.dtype.kind == "V" else a
