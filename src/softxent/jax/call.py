"""The arguments of an operator, which are arrays or numbers, and how they are divided into the operands and parameters of a primitive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .. import shared
from .arrays import Array

IGNORED, LARGEST, OUTSIDE = (
    label - shared.IGNORED for label in (shared.IGNORED, shared.LARGEST, shared.OUTSIDE)
)  # above the smallest label
NO_LABEL = shared.NO_LABEL
NUMBERS = ("y", "r", "q", "g", "l", "b", "n")
UPSTREAM = NUMBERS[3:]


class Call(NamedTuple):
    """What an operator is given. A field that is a float is the same for all rows, and known when JAX traces; 0.0 stands for none.

    `label`, `off`, `total` and the numbers may have fewer axes than the rows: all rows of an entry then share it. The numbers are those of
    formula.Numbers.
    """

    z: Array  # [*rows, C] logits
    label: Array = 0.0  # [*rows] int32 or int64; a label that matches no class, or a special one
    off: Any = 0.0  # [*rows, C] or [C], in the type of z or the one in which is computed
    v: Any = 0.0  # [*rows, C]
    total: Any = 0.0  # by which the sum of the losses of its rows is divided
    y: Any = 0.0  # [*rows]
    r: Any = 0.0
    q: Any = 0.0
    g: Any = 0.0
    l: Any = 0.0  # noqa: E741
    b: Any = 0.0
    n: Any = 0.0

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape of the rows."""
        shape: tuple[int, ...] = self.z.shape[:-1]
        return shape

    def special(self, which: int) -> Array:
        """Return whether the rows have the label IGNORED, LARGEST or OUTSIDE."""
        return self.label == special(which, self.label.dtype)


class Static(NamedTuple):
    """What the result of a call depends on beside its fields, and is known when JAX traces."""

    temperature: float = 1.0
    cap: float = math.inf
    names: tuple[str, ...] = ()  # axes of the mesh of a shard_map by which the classes are divided
    within: int = 0  # axes of the rows after that of the classes in the caller's array, so that it is read where it lies


PLAIN = Static()

Fixed = tuple[float | None, ...]  # the fields of a Call that are floats, and None for those that are arrays


def operands(call: Call) -> tuple[list[Array], Fixed]:
    """Return the arrays of the call, and the fields that are none."""
    return [x for x in call if not isinstance(x, float)], tuple(x if isinstance(x, float) else None for x in call)


def restored(arrays: Sequence[Any], fixed: Fixed, other: Any = None) -> Call:
    """Return the call of these arrays. `other`, if given, stands for the fields that are floats."""
    left = iter(arrays)
    return Call(*(next(left) if x is None else x if other is None else other for x in fixed))


def special(which: int, dtype: Any) -> Any:
    """Return the special label IGNORED, LARGEST or OUTSIDE of this type of labels."""
    return jnp.array(jnp.iinfo(dtype).min + which, dtype)


def by_row(number: Any, rows: tuple[int, ...], classes: bool = False) -> Array:
    """Return a number of the rows with all of their axes, each of length 1 or that of the rows, and one for the classes if `classes`."""
    a = jnp.asarray(number)
    return a.reshape(a.shape + (1,) * (len(rows) - a.ndim + classes))


def off_by_row(call: Call) -> Array:
    """Return `off` with as many axes as z."""
    off = call.off
    return off.reshape(off.shape[:-1] + (1,) * (call.z.ndim - off.ndim) + off.shape[-1:])


def summed_to(value: Array, shape: tuple[int, ...], keep: int = 0) -> Array:
    """Sum over the axes of rows that an argument of this shape does not have; `keep` is 1 if the last axis is that of the classes."""
    first = len(shape) - keep
    return value.sum(tuple(range(first, value.ndim - keep)))
