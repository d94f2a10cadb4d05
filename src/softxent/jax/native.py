"""The operators computed by the compiled kernel, as custom calls of XLA on the CPU (cpp/xla.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels
from ..call import NUMBERS, Call, Static
from ..partials import Partials, Tangents
from ..shared import GIVEN
from .arrays import Array, computed_in, widest
from .call import ALL, FIRST, NO_LABEL, TYPES, rows_of


def _register() -> str:
    """Register the handlers. Returns why there are none, or an empty text."""
    if kernels.cpu is None:
        return next(b.detail for b in kernels.backends() if b.name == "cpu")
    try:
        for name, handler in kernels.cpu.xla_calls().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # a jaxlib that no longer accepts the version of its interface that cpp/ffi.h declares
        return f"this jaxlib refuses the compiled kernel ({error}); install an older jax, or a newer softxent"
    kernels.set_num_threads(kernels.get_num_threads())  # the handlers have their own copy of the number
    return ""


missing = _register()


# ---- operators of whole rows ----


def rows(call: Call, static: Static, outputs: tuple[str, ...]) -> list[Array]:
    return _called("softxent_forward", _outputs(call, outputs), call, static, ("WITH_ENTROPY",) * (outputs != FIRST))


def gradient(call: Call, static: Static, in_place: bool = False) -> Array:
    return _called("softxent_fused", [_like(call)], call, static, in_place=in_place)[0]


def product(call: Call, static: Static) -> Array:
    return curvature(call, static)[0]


def curvature(call: Call, static: Static) -> list[Array]:
    """Return the derivative of the gradient along v, and four numbers of the rows (kernels/__init__.py)."""
    return _called("softxent_curvature", [_like(call), *[_row(call)] * 4], call, static)


def log_softmax(call: Call, static: Static) -> Array:
    return _called("softxent_log_softmax", [_like(call)], call, static)[0]


def mean(call: Call, static: Static, kept: int) -> Array:
    return _called("softxent_forward", [_kept(call, kept)], call, static)[0]


def mean_and_gradient(call: Call, static: Static, kept: int, in_place: bool = False) -> list[Array]:
    dz, loss = _called("softxent_fused", [_like(call), _kept(call, kept)], call, static, in_place=in_place)
    return [loss, dz]


# ---- steps (steps.py), in which parts are float64 numbers as pairs of uint32 ----


def reduce(call: Call, static: Static, outputs: tuple[str, ...]) -> Array:
    """Return the sums of the rows, [7, *rows, 2], or with their tangents along v, [12, *rows, 2]."""
    if not isinstance(call.v, float):
        return _called("softxent_tangent_sums", [_parts(call, _SUMS + _TANGENTS)], call, static, ("PARTS_WRITTEN",))[0]
    given = ("WITH_ENTROPY",) * (outputs != FIRST)
    return _called("softxent_forward", [_parts(call, _SUMS)], call, static, (*given, "PARTS_WRITTEN"))[0]


def merge(parts: Array, order: Sequence[tuple[int, int]], call: Call, static: Static) -> list[Array]:
    """Merge what `reduce` gives for different classes, [K, 7 or 12, *rows, 2]. Returns the outputs, v of the label, if any, and the sums.

    The logits of the call are not read.
    """
    fields = parts.shape[1]
    results = [*_outputs(call, ALL), *[_row(call)] * (fields > _SUMS), _parts(call, fields)]
    numbers, fixed = _numbers_of(call._replace(v=0.0, l=0.0, b=0.0, n=0.0), static._replace(cap=math.inf))
    pairs = np.array(order, np.int64).reshape(-1)
    return list(jax.ffi.ffi_call("softxent_merge", results)(parts, _label(call), *numbers, fixed=fixed, pairs=pairs))


def backward(call: Call, parts: Array, static: Static, in_place: bool = False) -> Array:
    """Return the gradient from the sums over all classes."""
    return _called("softxent_fused", [_like(call)], call, static, parts=parts, in_place=in_place)[0]


def hessian(call: Call, parts: Array, static: Static) -> list[Array]:
    """Return what `curvature` does, from the sums over all classes."""
    return _called("softxent_hessian", [_like(call), *[_row(call)] * 4], call, static, parts=parts)


# ---- calls ----

_SUMS, _TANGENTS = len(Partials._fields) - 1, len(Tangents._fields)  # without the temperature


def _row(call: Call, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(rows_of(call), widest() if dtype is None else dtype)


def _outputs(call: Call, outputs: tuple[str, ...]) -> list[jax.ShapeDtypeStruct]:
    return [_row(call, TYPES.get(name)) for name in outputs]


def _parts(call: Call, fields: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((fields, *rows_of(call), 2), jnp.uint32)


def _like(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.z.shape, call.z.dtype)


def _kept(call: Call, axes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(rows_of(call)[:axes], widest())


def _label(call: Call) -> Array:
    return jnp.int32(NO_LABEL) if isinstance(call.label, float) else call.label


def _called(
    name: str, results: Any, call: Call, static: Static, given: tuple[str, ...] = (), *, parts: Any = 0.0, in_place: bool = False
) -> list[Array]:
    """Call a handler with the arrays of the call.

    The axis of the classes is moved back to where the caller had it, so that XLA has nothing to transpose.
    """
    last, axis = call.z.ndim - 1, call.z.ndim + static.axis
    v: Any = call.v if isinstance(call.v, float) else call.v.astype(computed_in(call.z.dtype))
    z, off, v = (x if isinstance(x, float) or x.ndim <= last else jnp.moveaxis(x, last, axis) for x in (call.z, call.off, v))
    there = {"LABEL": _label(call), "OFF": off, "V": v, "PARTS_READ": parts, "TOTAL": call.total}
    numbers, fixed = _numbers_of(call, static)
    arrays = [x for x in there.values() if not isinstance(x, float)] + numbers
    given += tuple(name for name, x in there.items() if not isinstance(x, float))
    moved = [x.update(shape=z.shape) if x.shape == call.z.shape else x for x in results]
    function = jax.ffi.ffi_call(name, moved, input_output_aliases={0: 0} if in_place else {})
    found = function(z, *arrays, fixed=fixed, given=np.array([sum(GIVEN[name] for name in given), axis]))
    return [x if x.ndim != call.z.ndim else jnp.moveaxis(x, axis, last) for x in found]


def _numbers_of(call: Call, static: Static) -> tuple[list[Array], Any]:
    """Return the numbers that are arrays, and the attribute `fixed` with the others: without the last three if these are 0."""
    numbers = call[-len(NUMBERS) :]
    some = isinstance(call.v, float) and all(isinstance(x, float) and x == 0 for x in (call.l, call.b, call.n))
    numbers = numbers[: NUMBERS.index("l")] if some else numbers
    fixed = np.array([x if isinstance(x, float) else math.nan for x in numbers] + [static.temperature, static.cap])
    return [x for x in numbers if not isinstance(x, float)], fixed
