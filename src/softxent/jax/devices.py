"""How an operator is divided among devices, where the logits have a sharding under `jax.jit`: by rows, by classes, or both.

Without this, XLA would gather the logits before a custom call. By rows, each device computes its rows; `mean` adds up over the devices. By
classes, each device sums over its classes, all gather the sums [7, R] of each other and merge them in the order of the classes, and each
computes its part of the gradient from them. `along`, `curvature` and `log_softmax` are divided by rows alone.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from .. import shards
from .arrays import Array
from .call import LARGEST, OUTSIDE, Call, Fixed, by_row, restored, special
from .formulas import averaged, inverse

BY_CLASSES = ("rows", "gradient", "mean", "mean_and_gradient")


def needed_when_lowered(primitive: Any) -> None:
    """Tell JAX that the lowering of a primitive depends on the devices. There is no public function for that."""
    from jax._src.dispatch import prim_requires_devices_during_lowering

    prim_requires_devices_during_lowering.add(primitive)


def several(context: Any) -> bool:
    """Whether a function is lowered for several devices, among which XLA divides it."""
    devices: int = getattr(context.module_context.axis_context, "num_devices", 1)
    return devices > 1


@lru_cache(maxsize=1024)
def divided(operator: str, backend: Any, fixed: Fixed, how: tuple[tuple[str, Any], ...]) -> Any:
    """Return a function of the arrays of a call that computes the operator, with rules for XLA's partitioner."""
    options = dict(how)
    compute = getattr(backend, operator)

    def whole(*arrays: Array) -> Any:
        return compute(restored(arrays, fixed), **options)

    def rule(mesh: Any, operands: Any, results: Any) -> SdyShardingRule:
        call = restored([Ranked(t.rank) for t in operands], fixed)
        given, found = _axes(call, operator, options)
        kept = {k for axes in found for k in axes}
        reduced = _factors([k for k in given[0] if k not in kept])
        return SdyShardingRule(tuple(map(_factors, given)), tuple(map(_factors, found)), reduction_factors=reduced)

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        call = restored(arguments, fixed)
        spec = tuple(call.z.sharding.spec) + (None,) * (call.z.ndim - len(call.z.sharding.spec))
        places = [_fitting(mesh, axes, n) for axes, n in zip(spec, call.z.shape, strict=True)]
        if operator not in BY_CLASSES:
            places[-1] = None
        given, found = (
            [NamedSharding(mesh, PartitionSpec(*(places[k] for k in axes))) for axes in each] for each in _axes(call, operator, options)
        )
        summed = [name for place in places[options.get("kept", call.z.ndim - 1) : -1] for name in _names(place)]

        def on_a_device(*arrays: Array) -> Any:
            mine = restored(arrays, fixed)
            if places[-1] is None:
                found = compute(mine, **options)
            else:
                found = _by_classes(operator, backend, mine, _names(places[-1]), **options)
            if not summed or "mean" not in operator:
                return found
            if operator == "mean":
                return lax.psum(found, tuple(summed))
            return [lax.psum(found[0], tuple(summed)), *found[1:]]

        return mesh, on_a_device, found if isinstance(results, (list, tuple)) else found[0], tuple(given)

    function: Any = custom_partitioning(whole)
    function.def_partition(partition, sharding_rule=rule)
    return function


class Ranked:
    """Stands for an array of which only the number of axes is known."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim


def _axes(call: Call, operator: str, options: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return, for each operand and each result, which axes of the logits it has."""
    rows = tuple(range(call.z.ndim - 1))
    given = []
    for name, a in zip(Call._fields, call, strict=True):
        if not isinstance(a, float):
            given.append((*rows[: a.ndim - 1], -1) if name in ("z", "v", "off") else rows[: a.ndim])
    logits, kept = (*rows, -1), rows[: options.get("kept", len(rows))]
    count = {"rows": 5 if options.get("more") else 2, "along": 4 if options.get("more") else 2}
    found = {"mean": [kept], "mean_and_gradient": [kept, logits], "rows": [rows] * count["rows"], "along": [rows] * count["along"]}
    return given, found.get(operator, [logits])


def _factors(axes: Any) -> Any:
    return tuple("c" if k == -1 else f"r{k}" for k in axes)


def _names(place: Any) -> tuple[str, ...]:
    return () if place is None else (place,) if isinstance(place, str) else tuple(place)


def _fitting(mesh: Any, place: Any, length: int) -> Any:
    """Return the axes of the mesh by which an axis of the logits is divided, or None if its length is no multiple of their size."""
    return place if length % math.prod(mesh.shape[name] for name in _names(place)) == 0 else None


# ---- by classes ----


def _by_classes(operator: str, backend: Any, call: Call, names: tuple[str, ...], temperature: float, cap: float, **options: Any) -> Any:
    """Compute an operator for the classes of this device; all devices along the axes `names` do so for theirs."""
    kept, in_place = options.get("kept", 0), {"in_place": options["in_place"]} if "in_place" in options else {}
    if "mean" in operator:
        call = call._replace(g=inverse(call.total))
    found, sums, mine = merged(backend, call._replace(total=0.0), names, temperature, cap)
    if operator == "rows":
        return found[: 5 if options["more"] else 2]
    dz = None if operator == "mean" else backend.backward(mine, sums, temperature, cap, **in_place)
    if operator == "gradient":
        return dz
    loss = averaged(found[0], call.total, kept)
    return loss if operator == "mean" else [loss, dz]


def merged(backend: Any, call: Call, names: tuple[str, ...], temperature: float, cap: float) -> tuple[list[Array], Array, Call]:
    """Return the outputs of the rows and their sums over the classes of all devices, and the call with the labels of this device."""
    classes, first = call.z.shape[-1], lax.axis_index(names) * call.z.shape[-1]
    label = jnp.broadcast_to(by_row(call.label, call.rows), call.rows)
    if not call.label.ndim:  # arguments.py gives the label LARGEST to all rows or to none
        label = jnp.where(call.special(LARGEST), _largest(call, first, names).astype(label.dtype), label)
    is_special = label <= special(OUTSIDE, label.dtype)
    mine = call._replace(label=jnp.where(is_special, label, label - first.astype(label.dtype)))
    sums = lax.all_gather(backend.forward(mine, temperature, cap)[-1], names)
    order = shards.merge_order([shards.Columns(k * classes, (k + 1) * classes) for k in range(len(sums))])
    *found, total = backend.merge(sums, order, call._replace(label=label))
    return found, total, mine


def _largest(call: Call, first: Array, names: tuple[str, ...]) -> Array:
    """Return the class with the largest off of each row, or the largest logit if there is no off for each row."""
    of = call.z if isinstance(call.off, float) or call.off.ndim == 1 else jnp.broadcast_to(call.off, call.z.shape)
    value, index = lax.all_gather((of.max(-1), of.argmax(-1) + first), names)
    return jnp.take_along_axis(index, value.argmax(0)[None], 0)[0]
