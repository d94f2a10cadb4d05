"""What the operators need of a `Call`: its arrays as operands of a primitive, its numbers beside the axes of the rows, names of outputs.

The classes are on the last axis of z, off and v. `Static.axis` says where they are in the caller's arrays, so that the kernel reads them
there, and `Static.shards` are the axes of the mesh of a `jax.shard_map` by which they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import shared
from ..call import Call, Static
from ..formula import Outputs
from .arrays import Array, widest

IGNORED, LARGEST, OUTSIDE = (
    label - shared.IGNORED for label in (shared.IGNORED, shared.LARGEST, shared.OUTSIDE)
)  # above the smallest label
NO_LABEL = shared.NO_LABEL
PLAIN = Static()
ALL = Outputs._fields
PREDICTED = "predicted"  # the most probable class, an output beside these
TYPES = {"correct": jnp.bool_, PREDICTED: jnp.int32}  # of the outputs that are no floats
FIRST = ALL[:2]  # loss and lse, for which the kernel adds up no entropy
SMOOTH = ALL[:-1]  # those that have derivatives

Fixed = tuple[float | None, ...]  # the fields of a Call that are floats, and None for those that are arrays


def operands(call: Call) -> tuple[list[Array], Fixed]:
    """Return the arrays of the call, and its fields that are floats: the same for all rows, and known when JAX traces."""
    return [x for x in call if not isinstance(x, float)], tuple(x if isinstance(x, float) else None for x in call)


def restored(arrays: Sequence[Any], fixed: Fixed) -> Call:
    """Return the call of these arrays."""
    left = iter(arrays)
    return Call(*(next(left) if x is None else x for x in fixed))


def rows_of(call: Call) -> tuple[int, ...]:
    """Return the shape of the rows."""
    shape: tuple[int, ...] = call.z.shape[:-1]
    return shape


def special(which: int, dtype: Any) -> Any:
    """Return the special label IGNORED, LARGEST or OUTSIDE of this type of labels."""
    return jnp.array(jnp.iinfo(dtype).min + which, dtype)


def labelled(call: Call, which: int, classes: bool = False) -> Array:
    """Return which rows have the label IGNORED, LARGEST or OUTSIDE, with the axes of `by_row`."""
    found = False if isinstance(call.label, float) else call.label == special(which, call.label.dtype)
    return by_row(found, rows_of(call), classes)


def by_row(number: Any, rows: tuple[int, ...], classes: bool = False) -> Array:
    """Return a number of the rows with all of their axes, each of length 1 or that of the rows, and one for the classes if `classes`."""
    a = jnp.asarray(number)
    return a.reshape(a.shape + (1,) * (len(rows) - a.ndim + classes))


def off_by_row(call: Call) -> Array:
    """Return `off` with as many axes as z."""
    off = call.off
    return off.reshape(off.shape[:-1] + (1,) * (call.z.ndim - off.ndim) + off.shape[-1:])


def hidden(call: Call) -> Any:
    """Return labels that match no class, but IGNORED where the call has it."""
    label = call.label
    return label if isinstance(label, float) else jnp.where(label == special(IGNORED, label.dtype), label, NO_LABEL)


def averaged(losses: Array, total: Array, kept: int) -> Array:
    """Return the losses, added up over all but the first `kept` axes, divided by their total; where that is 0, NaN as a constant."""
    sums = losses.sum(tuple(range(kept, losses.ndim)))
    total = by_row(total, sums.shape)
    return jnp.where(total == 0, np.nan, sums / jnp.where(total == 0, 1, total).astype(sums.dtype))


def inverse(total: Array) -> Array:
    """Return 1 / total, and 0 where the total is 0."""
    wide: Any = total.astype(widest())
    return jnp.where(wide == 0, 0.0, 1 / jnp.where(wide == 0, 1, wide))
