"""The interface of the kernels (kernels/__init__.py), for the handlers of XLA: the laws of test_laws.py run on it as on every backend.

It takes NumPy arrays, computes with softxent/jax/native.py, and writes into the arrays of the results.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softxent.jax import native
from softxent.jax.call import NUMBERS, Call
from softxent.kernels import reference

first_outside = reference.first_outside


def call(z: np.ndarray, label: np.ndarray, numbers: np.ndarray, off: np.ndarray | None, **more: Any) -> Call:
    given = {name: jnp.asarray(np.squeeze(row, 0) if row.shape == (1,) else row) for name, row in zip(NUMBERS, numbers, strict=False)}
    return Call(jnp.asarray(z), jnp.asarray(label), 0.0 if off is None else jnp.asarray(off), **given, **more)


def as_parts(found: Any) -> np.ndarray:
    return np.asarray(found).view(np.float64)[..., 0]


def forward(z, label, numbers, off, transform, result, parts, threads) -> None:
    with jax.enable_x64(True):
        *rows, sums = native.forward(call(z, label, numbers[:4], off), *transform)
        for row, got in zip(result, rows, strict=False):
            row[:] = got
        if parts is not None:
            parts[:] = as_parts(sums)


def backward(z, label, numbers, off, transform, parts, out, threads) -> None:
    with jax.enable_x64(True):
        bits = np.ascontiguousarray(parts).view(np.uint32).reshape(*parts.shape, 2)
        out[:] = native.backward(call(z, label, numbers, off), jnp.asarray(bits), *transform)


def fused(z, label, numbers, off, transform, out, result, parts, threads) -> None:
    forward(z, label, numbers, off, transform, result, parts, threads)
    with jax.enable_x64(True):
        out[:] = native.gradient(call(z, label, numbers, off), *transform)


def curvature(z, v, label, numbers, off, transform, gauss_newton, out, result, threads) -> None:
    with jax.enable_x64(True):
        hv, *rows = native.curvature(call(z, label, numbers, off, v=jnp.asarray(v)), *transform)
        out[:] = hv
        for row, got in zip(result, rows, strict=True):
            row[:] = got


def merge(sums, pairs, label, numbers, result, parts, threads) -> None:
    with jax.enable_x64(True):
        of = call(np.zeros((len(label), 1)), label, numbers[:4], None)
        bits = np.ascontiguousarray(sums).view(np.uint32).reshape(*sums.shape, 2)
        *rows, found = native.merge(jnp.asarray(bits), [tuple(pair) for pair in pairs.tolist()], of)
        for row, got in zip(result, rows, strict=False):
            row[:] = got
        parts[:] = as_parts(found)


def log_softmax(z, scale, transform, out, threads) -> None:
    with jax.enable_x64(True):
        out[:] = native.log_softmax(Call(jnp.asarray(z), y=jnp.asarray(scale)), *transform)
