"""The interfaces of JAX that are private, or may change without notice, each with the reason why softxent.jax uses it.

tests/test_jax_private.py has a test for each, which says what no longer holds, and that no other file uses one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax._src.dispatch import prim_requires_devices_during_lowering  # there is no public one: how a primitive is divided needs the devices
from jax.core import ShapedArray  # the type of a primitive's result

# A custom_vjp has no forward mode, and a custom_jvp no transpose in closed form: only a primitive has both, and of any order.
from jax.custom_derivatives import SymbolicZero as SymbolicZero  # says which arguments are not differentiated: a product is saved
from jax.experimental.custom_partitioning import SdyShardingRule as SdyShardingRule  # else XLA gathers the logits before a custom call
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive as Primitive
from jax.extend.mlir import ir  # whether logits are donated, so that a gradient may take their memory
from jax.interpreters import ad, batching, mlir

Rule = Callable[..., Any]


def primitive(name: str, several: bool, abstract: Rule, lowered: Rule, batched: Rule) -> Primitive:
    """Return a primitive with these rules: of the types of its results, of what a platform computes, and of vmap.

    Its lowering is not cached, for it depends on where the operands come from, and on the devices.
    """
    made = Primitive(name)
    made.multiple_results = several
    made.def_abstract_eval(abstract)
    mlir.register_lowering(made, lowered, cacheable=False)
    batching.primitive_batchers[made] = batched
    prim_requires_devices_during_lowering.add(made)
    return made


def differentiated(made: Primitive, rule: Rule) -> None:
    """Register a rule: from operands, tangents (None is 0) and parameters to the results and their tangents."""

    def jvp(operands: Any, tangents: Any, **parameters: Any) -> Any:
        found, moved = rule(operands, [None if type(t) is ad.Zero else t for t in tangents], **parameters)
        return (found, list(map(_tangent, moved, found))) if made.multiple_results else (found, _tangent(moved, found))

    ad.primitive_jvps[made] = jvp


def _tangent(tangent: Any, result: Any) -> Any:
    return ad.Zero(jax.typeof(result).to_tangent_aval()) if tangent is None else tangent


def transposed(made: Primitive, rule: Rule) -> None:
    """Register a rule: from cotangents (0.0 is 0), operands and parameters to the cotangents of the operands in which it is linear."""

    def transpose(cotangents: Any, *operands: Any, **parameters: Any) -> Any:
        given = cotangents if made.multiple_results else [cotangents]
        return rule([0.0 if type(ct) is ad.Zero else ct for ct in given], operands, **parameters)

    ad.primitive_transposes[made] = transpose


def unknown(operand: Any) -> Any:
    """Return the type of an operand of a transpose in which it is linear, or None."""
    return operand.aval if ad.is_undefined_primal(operand) else None


def lowered_function(function: Rule, several: bool, context: Any, values: Any) -> Any:
    """Lower a function of arrays in place of a primitive."""
    return mlir.lower_fun(function, several)(context, *values)


def platforms(context: Any) -> tuple[str, ...]:
    """Return for which platforms a function is lowered."""
    return tuple(context.module_context.platforms)


def several_devices(context: Any) -> bool:
    """Whether a function is lowered for several devices, among which XLA divides it."""
    count: int = getattr(context.module_context.axis_context, "num_devices", 1)
    return count > 1


def partitioned(function: Rule, partition: Rule, rule: Rule) -> Any:
    """Return a function with a rule for XLA's partitioner, and with what each device computes."""
    found: Any = custom_partitioning(function)
    found.def_partition(partition, sharding_rule=rule)
    return found


def varies_over(*arrays: Any) -> frozenset[str]:
    """Return the axes of the mesh of a shard_map over which one of the arrays, or types, varies; they may be None."""
    types = (a if isinstance(a, ShapedArray) else jax.typeof(a) for a in arrays if a is not None)
    return frozenset[str]().union(*(a.manual_axis_type.varying for a in types))


def result(z: ShapedArray, axes: int, dtype: Any, over: frozenset[str]) -> ShapedArray:
    """Return the type of a result with the first axes of z, with their sharding, that varies over these axes of the mesh of a shard_map."""
    sharding = z.sharding.update(spec=z.sharding.spec[:axes])
    varying = z.manual_axis_type.update(varying=over)
    found: ShapedArray = z.update(shape=z.shape[:axes], dtype=dtype, sharding=sharding, manual_axis_type=varying)
    return found


def may_be_overwritten(value: Any) -> bool:
    """Whether a result should take the memory of this value of MLIR: it is computed in the function, or donated to it.

    XLA gives a result the memory of an operand, without a copy, only if it is told to; and if the operand is needed any more, or belongs to
    the caller, it copies it first.
    """
    while not isinstance(value, ir.BlockArgument):
        if value.owner.name not in ("stablehlo.transpose", "stablehlo.reshape"):  # which copy nothing where the classes were moved
            return True
        value = value.owner.operands[0]
    function = value.owner.owner
    if "arg_attrs" not in function.attributes or function.attributes["sym_visibility"] != ir.StringAttr.get("public"):
        return True
    attributes: Any = function.attributes["arg_attrs"]
    given = ir.DictAttr(attributes[value.arg_number])
    return "tf.aliasing_output" in given or "jax.buffer_donor" in given
