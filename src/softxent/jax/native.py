"""The operators computed by the compiled kernel, as custom calls of XLA on the CPU (cpp/xla.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir

from .. import kernels
from ..shared import GIVEN
from .arrays import Array, computed_in, widest
from .call import NUMBERS, Call
from .formulas import bare, loss_along


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


# `within` is that of Static.


def rows(call: Call, temperature: float, cap: float, more: bool, within: int = 0) -> list[Array]:
    results = [_row(call)] * (4 if more else 2) + [_row(call, jnp.bool_)] * more
    return _called("softxent_forward", results, call, 4, temperature, cap, ("WITH_ENTROPY",) * more, within=within)


def gradient(call: Call, temperature: float, cap: float, in_place: bool = False, within: int = 0) -> Array:
    return _called("softxent_fused", [_like(call)], call, _numbers(call), temperature, cap, in_place=in_place, within=within)[0]


def curvature(call: Call, temperature: float, cap: float, within: int = 0) -> list[Array]:
    """Return the derivative of the gradient along v, and four numbers of the rows (kernels/__init__.py)."""
    call = call._replace(v=call.v.astype(computed_in(call.z.dtype)))
    return _called("softxent_curvature", [_like(call), *[_row(call)] * 4], call, 7, temperature, cap, within=within)


def product(call: Call, temperature: float, cap: float, within: int = 0) -> Array:
    return curvature(call, temperature, cap, within)[0]


def along(call: Call, temperature: float, cap: float, more: bool, within: int = 0) -> list[Array]:
    _, *sums = curvature(call, temperature, cap, within)
    return loss_along(call, rows(bare(call), temperature, cap, False, within)[1], *sums)[: 4 if more else 2]


def log_softmax(call: Call, temperature: float, cap: float, within: int = 0) -> Array:
    return _called("softxent_log_softmax", [_like(call)], call, 1, temperature, cap, within=within)[0]


def mean(call: Call, temperature: float, cap: float, kept: int, within: int = 0) -> Array:
    return _called("softxent_forward", [_kept(call, kept)], call, 4, temperature, cap, within=within)[0]


def mean_and_gradient(call: Call, temperature: float, cap: float, kept: int, in_place: bool = False, within: int = 0) -> list[Array]:
    results = [_like(call), _kept(call, kept)]
    dz, loss = _called("softxent_fused", results, call, 4, temperature, cap, in_place=in_place, within=within)
    return [loss, dz]


def may_be_overwritten(logits: Any) -> bool:
    """Whether a gradient should take the memory of these logits, as a value of MLIR: they are computed in the function, or donated to it.

    XLA gives a result the memory of an operand, without a copy, only if it is told to; and if the operand is needed any more, or belongs to
    the caller, it copies it first.
    """
    while not isinstance(logits, ir.BlockArgument):
        if logits.owner.name not in ("stablehlo.transpose", "stablehlo.reshape"):  # which copy nothing where the classes were moved
            return True
        logits = logits.owner.operands[0]
    function = logits.owner.owner
    if "arg_attrs" not in function.attributes or function.attributes["sym_visibility"] != ir.StringAttr.get("public"):
        return True
    attributes: Any = function.attributes["arg_attrs"]
    given = ir.DictAttr(attributes[logits.arg_number])
    return "tf.aliasing_output" in given or "jax.buffer_donor" in given


# ---- shards of the classes ----


def forward(call: Call, temperature: float, cap: float) -> list[Array]:
    """Return the five outputs of the rows, and their sums over the classes of the call: float64 [7, *rows], as pairs of uint32."""
    return _called("softxent_forward", _with_sums(call), call, 4, temperature, cap, ("WITH_ENTROPY", "PARTS_WRITTEN"))


def merge(sums: Array, pairs: Sequence[tuple[int, int]], call: Call, temperature: float) -> list[Array]:
    """Merge sums [K, 7, *rows, 2] over different classes in this order. Returns the five outputs of the rows, and their sums.

    The logits of `call` are not read.
    """
    numbers, fixed = _numbers_of(call, 4, temperature, math.inf)
    order = np.array(pairs, np.int64).reshape(-1)
    return list(jax.ffi.ffi_call("softxent_merge", _with_sums(call))(sums, call.label, *numbers, fixed=fixed, pairs=order))


def backward(call: Call, sums: Array, temperature: float, cap: float, in_place: bool = False) -> Array:
    """Return the gradient from the sums over all classes."""
    count = _numbers(call)
    return _called("softxent_fused", [_like(call)], call, count, temperature, cap, (), in_place, sums)[0]


def _with_sums(call: Call) -> list[jax.ShapeDtypeStruct]:
    return [*[_row(call)] * 4, _row(call, jnp.bool_), jax.ShapeDtypeStruct((7, *call.rows, 2), jnp.uint32)]


# ---- calls ----


def _numbers(call: Call) -> int:
    """Return how many numbers the kernel is given: without the last three if these are 0."""
    return 4 if all(isinstance(x, float) and x == 0 for x in (call.l, call.b, call.n)) else 7


def _row(call: Call, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.rows, widest() if dtype is None else dtype)


def _like(call: Call) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.z.shape, call.z.dtype)


def _kept(call: Call, axes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(call.rows[:axes], widest())


def _called(
    name: str, results: Any, call: Call, count: int, temperature: float, cap: float, given: tuple[str, ...] = (), in_place: bool = False,
    parts: Any = 0.0, within: int = 0,
) -> list[Array]:  # fmt: skip
    """Call a handler with the arrays of the call, and `count` of its numbers.

    The axis of the classes is moved back to where the caller had it, so that XLA has nothing to transpose.
    """
    last, axis = call.z.ndim - 1, call.z.ndim - 1 - within
    z, off, v = (x if isinstance(x, float) or x.ndim <= last else jnp.moveaxis(x, last, axis) for x in (call.z, call.off, call.v))
    there = {"LABEL": call.label, "OFF": off, "V": v, "PARTS_READ": parts, "TOTAL": call.total}
    numbers, fixed = _numbers_of(call, count, temperature, cap)
    arrays = [x for x in there.values() if not isinstance(x, float)] + numbers
    given += tuple(name for name, x in there.items() if not isinstance(x, float))
    moved = [x.update(shape=z.shape) if x.shape == call.z.shape else x for x in results]
    function = jax.ffi.ffi_call(name, moved, input_output_aliases={0: 0} if in_place else {})
    found = function(z, *arrays, fixed=fixed, given=np.array([sum(GIVEN[name] for name in given), axis]))
    return [x if x.ndim != call.z.ndim else jnp.moveaxis(x, axis, last) for x in found]


def _numbers_of(call: Call, count: int, temperature: float, cap: float) -> tuple[list[Array], Any]:
    """Return the numbers that are arrays, and the attribute `fixed` with the others."""
    numbers = call[-len(NUMBERS) :][:count]
    fixed = np.array([x if isinstance(x, float) else math.nan for x in numbers] + [temperature, cap])
    return [x for x in numbers if not isinstance(x, float)], fixed
