"""How an operator is divided among devices: by rows, by classes, or both.

Under `jax.jit`, where the logits have a sharding, `divided` tells XLA how; without it, XLA would gather the logits before a custom call. By
rows, each device computes its rows, and `mean` adds up over the devices. steps.py computes what is divided by classes. Inside
`jax.shard_map`, the function sees the rows of its device, and the user names the axes of the mesh by which the classes are divided.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..call import OF_CLASSES, Call, Static
from ..contract import fail
from . import steps
from .arrays import Array
from .call import Fixed, restored
from .private import SdyShardingRule, partitioned, varies_over
from .steps import Names


@lru_cache(maxsize=1024)
def divided(operator: str, backend: Any, fixed: Fixed, static: Static, how: tuple[tuple[str, Any], ...]) -> Any:
    """Return a function of the arrays of a call that computes the operator, with rules for XLA's partitioner."""
    options = dict(how)

    def compute(arrays: Any, names: Names) -> Any:
        here = static._replace(shards=names, axis=-1)  # for XLA has moved the axis before it divides the arrays
        return steps.computed(operator, backend, restored(arrays, fixed), here, **options)

    def whole(*arrays: Array) -> Any:
        return compute(arrays, ())

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
        given, found = (
            [NamedSharding(mesh, PartitionSpec(*(places[k] for k in axes))) for axes in each] for each in _axes(call, operator, options)
        )
        summed = [name for place in places[options.get("kept", call.z.ndim - 1) : -1] for name in _names(place)]

        def on_a_device(*arrays: Array) -> Any:
            found = compute(arrays, _names(places[-1]))
            if not summed or "mean" not in operator:
                return found
            if operator == "mean":
                return lax.psum(found, tuple(summed))
            return [lax.psum(found[0], tuple(summed)), *found[1:]]

        return mesh, on_a_device, found if isinstance(results, (list, tuple)) else found[0], tuple(given)

    return partitioned(whole, partition, rule)


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
            given.append((*rows[: a.ndim - 1], -1) if name in OF_CLASSES else rows[: a.ndim])
    logits, kept = (*rows, -1), rows[: options.get("kept", len(rows))]
    each = [rows] * len(options.get("outputs", ()))
    found = {"mean": [kept], "mean_and_gradient": [kept, logits], "rows": each, "along": each}
    return given, found.get(operator, [logits])


def _factors(axes: Any) -> Any:
    return tuple("c" if k == -1 else f"r{k}" for k in axes)


def _names(place: Any) -> Names:
    return () if place is None else (place,) if isinstance(place, str) else tuple(place)


def _fitting(mesh: Any, place: Any, length: int) -> Any:
    """Return the axes of the mesh by which an axis of the logits is divided, or None if its length is no multiple of their size."""
    return place if length % math.prod(mesh.shape[name] for name in _names(place)) == 0 else None


def taken(a: Array, index: Array) -> Array:
    """Return a[index], divided as `index` is, which JAX wants to be told if the axes of the mesh are explicit."""
    where = jax.typeof(index).sharding
    return a.at[index].get(out_sharding=where) if AxisType.Explicit in where.mesh.axis_types else a[index]


# ---- in shard_map ----


def varying(call: Call, names: Names, more: frozenset[str] = frozenset()) -> Call:
    """Let the arrays of a call vary over the same axes of the mesh of a shard_map, and over `more`; those of rows do not vary over `names`.

    So JAX adds up the derivatives by an array that is the same on several devices, such as class weights.
    """
    arrays = {name: a for name, a in call._asdict().items() if not isinstance(a, float)}
    every = varies_over(*arrays.values()) | more
    return call._replace(**{name: cast(a, every.difference(() if name in OF_CLASSES else names)) for name, a in arrays.items()})


def cast(a: Array, axes: frozenset[str]) -> Array:
    """Let an array vary over these axes of the mesh of a shard_map."""
    return lax.pcast(a, tuple(sorted(axes - varies_over(a))), to="varying")


def check_divided(fn: str, names: Names, divided: dict[str, Any], others: dict[str, Any]) -> None:
    """Check that these arrays, by argument, are divided by the axes `names` of a shard_map, and that others are the same along them."""
    for name in names:
        for argument, a in divided.items():
            if a is not None and name not in varies_over(a):
                fail(fn, argument, f"be divided by the axis {name!r} of a jax.shard_map with check_vma=True", "an array that is not")
        for argument, a in others.items():
            if a is not None and name in varies_over(a):
                fail(fn, argument, f"be the same on all devices along the axis {name!r}", "an array that varies over it")


def classes_of(names: Names, here: int) -> int:
    """Return the number of all classes, of which each device has `here`."""
    return here * math.prod(lax.axis_size(name) for name in names)


def own_classes(a: Array, names: Names, here: int) -> Array:
    """Return the entries of the classes of this device, from an array whose last axis has all classes."""
    return lax.dynamic_slice_in_dim(a, lax.axis_index(names) * here, here, a.ndim - 1) if names else a
