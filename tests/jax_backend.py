"""The interface of the kernels (kernels/__init__.py), for the handlers of XLA: the laws of test_laws.py run on it as on every backend.

It takes NumPy arrays, computes with softxent/jax/native.py, and writes into the arrays of the results.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np

from softxent import kernels
from softxent.call import NUMBERS, Call, Static
from softxent.jax import native
from softxent.jax.call import ALL
from softxent.kernels import reference

labels = reference.labels


@cache
def compiled(function: str, transform: tuple[float, float], *how: Any) -> Any:
    """Return a function of native.py that takes the arrays of a call, by name, and further arrays."""
    return jax.jit(lambda arrays, *others: getattr(native, function)(Call(**arrays), *others, Static(*transform), *how))


def arrays_of(z: np.ndarray, label: np.ndarray, numbers: Any, off: np.ndarray | None, **more: Any) -> dict[str, Any]:
    numbers = kernels.as_array(numbers, label) if isinstance(numbers, tuple) else numbers
    rows = {name: np.squeeze(row, 0) if row.shape == (1,) else row for name, row in zip(NUMBERS, numbers, strict=False)}
    return dict(z=z, label=label, **rows, **more) | ({} if off is None else {"off": off})


def as_parts(found: Any) -> np.ndarray:
    return np.asarray(found).view(np.float64)[..., 0]


def as_bits(parts: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(parts).view(np.uint32).reshape(*parts.shape, 2)


def write(result: np.ndarray, rows: Any) -> None:
    for row, got in zip(result, rows, strict=False):
        row[:] = got


def forward(z, label, numbers, off, transform, result, parts, threads) -> None:
    with jax.enable_x64(True):
        arrays = arrays_of(z, label, numbers[:4], off)
        write(result, compiled("rows", transform, ALL)(arrays))
        if parts is not None:
            parts[:] = as_parts(compiled("reduce", transform, ALL)(arrays))


def backward(z, label, numbers, off, transform, parts, out, threads) -> None:
    with jax.enable_x64(True):
        out[:] = compiled("backward", transform)(arrays_of(z, label, numbers, off), as_bits(parts))


def fused(z, label, numbers, off, transform, out, result, parts, threads) -> None:
    forward(z, label, numbers, off, transform, result, parts, threads)
    with jax.enable_x64(True):
        out[:] = compiled("gradient", transform)(arrays_of(z, label, numbers, off))


def curvature(z, v, label, numbers, off, transform, gauss_newton, out, result, threads) -> None:
    with jax.enable_x64(True):
        hv, *rows = compiled("curvature", transform)(arrays_of(z, label, numbers, off, v=v))
        out[:] = hv
        write(result, rows)


def tangent_sums(z, v, label, off, transform, parts, tangents, threads) -> None:
    with jax.enable_x64(True):
        both = as_parts(compiled("reduce", transform, ALL)(arrays_of(z, label, (), off, v=v)))
        parts[:], tangents[:] = both[: len(parts)], both[len(parts) :]


def hessian(z, v, label, numbers, off, transform, gauss_newton, parts, tangents, out, result, threads) -> None:
    with jax.enable_x64(True):
        both = as_bits(np.concatenate([parts, tangents]))
        out[:], *rows = compiled("hessian", transform)(arrays_of(z, label, numbers, off, v=v), both)
        write(result, rows)


def merge(sums, pairs, label, numbers, temperature, result, parts, tangents, threads) -> None:
    order = tuple(map(tuple, pairs.tolist()))
    with jax.enable_x64(True):
        arrays = arrays_of(np.zeros((len(label), 1)), label, numbers[:4], None)
        merged = jax.jit(lambda arrays, both: native.merge(both, order, Call(**arrays), Static(temperature)))
        *rows, found = merged(arrays, as_bits(sums if tangents is None else np.concatenate([sums, tangents], 1)))
        write(result, rows)
        both = as_parts(found)
        parts[:] = both[: len(parts)]
        if tangents is not None:
            tangents[0] = both[len(parts) :]
            np.testing.assert_array_equal(rows[len(ALL)], tangents[0, -1])  # v of the label


def log_softmax(z, scale, transform, out, threads) -> None:
    with jax.enable_x64(True):
        out[:] = compiled("log_softmax", transform)(dict(z=z, y=scale))
