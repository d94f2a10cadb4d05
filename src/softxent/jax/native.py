"""The operators computed by the compiled kernel, as custom calls of XLA on the CPU (cpp/xla.cpp)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import kernels
from .arrays import Array, computed_in, widest
from .call import NUMBERS, Call

OFF, V, PARTS_READ, TOTAL, PARTS_WRITTEN, LABEL, WITH_ENTROPY = (1 << k for k in range(7))  # the bits of `given`, as in cpp/xla.cpp


def _register() -> str:
    """Register the handlers. Returns why there are none, or an empty text."""
    if kernels.cpu is None:
        return "the compiled kernel is missing"
    calls = kernels.cpu.xla_calls()
    if not calls:
        return "softxent was built without jaxlib; install jaxlib, and softxent again with pip install --no-build-isolation"
    try:
        for name, handler in calls.items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception as error:  # a jaxlib whose interface is not that of the one with which softxent was built
        return f"this jaxlib refuses the compiled kernel ({error}); install softxent again with pip install --no-build-isolation"
    kernels.set_num_threads(kernels.get_num_threads())  # the handlers have their own copy of the number
    return ""


missing = _register()


def rows(call: Call, temperature: float, cap: float, more: bool) -> list[Array]:
    results = [_row(call)] * (4 if more else 2) + [_row(call, jnp.bool_)] * more
    return _called("softxent_forward", results, call, 4, temperature, cap, WITH_ENTROPY * more)


def gradient(call: Call, temperature: float, cap: float) -> Array:
    return _called("softxent_fused", [_like(call)], call, _numbers(call), temperature, cap)[0]


def curvature(call: Call, temperature: float, cap: float) -> list[Array]:
    call = call._replace(v=call.v.astype(computed_in(call.z.dtype)))
    return _called("softxent_curvature", [_like(call), *[_row(call)] * 4], call, 7, temperature, cap)


def log_softmax(call: Call, temperature: float, cap: float) -> Array:
    return _called("softxent_log_softmax", [_like(call)], call, 1, temperature, cap)[0]


def mean(call: Call, temperature: float, cap: float) -> Array:
    return _called("softxent_forward", [_total(call)], call, 4, temperature, cap)[0]


def mean_and_gradient(call: Call, temperature: float, cap: float) -> list[Array]:
    dz, loss = _called("softxent_fused", [_like(call), _total(call)], call, 4, temperature, cap)
    return [loss, dz]


def _numbers(call: Call) -> int:
    """Return how many numbers the kernel is given: without the last three if these are 0."""
    return 4 if all(isinstance(x, float) and x == 0 for x in (call.l, call.b, call.n)) else 7


def _row(call: Call, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.rows, widest() if dtype is None else dtype)


def _like(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.z.shape, call.z.dtype)


def _total(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.total.shape, widest())


def _called(name: str, results: Any, call: Call, count: int, temperature: float, cap: float, given: int = 0) -> list[Array]:
    """Call a handler with the arrays of the call, and `count` of its numbers."""
    numbers = call[-len(NUMBERS) :][:count]
    there = {LABEL: call.label, OFF: call.off, V: call.v, TOTAL: call.total}
    arrays = [x for x in (*there.values(), *numbers) if not isinstance(x, float)]
    given |= sum(bit for bit, x in there.items() if not isinstance(x, float))
    fixed = np.array([x if isinstance(x, float) else math.nan for x in numbers] + [temperature, cap])
    aliases = {0: 0} if name == "softxent_fused" else {}  # XLA copies the logits if they are needed any more
    return list(jax.ffi.ffi_call(name, results, input_output_aliases=aliases)(call.z, *arrays, fixed=fixed, given=np.int64(given)))
