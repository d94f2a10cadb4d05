"""The operators in steps: reduce, merge, finish, map. devices.py says how they are divided.

Each device reduces the rows to sums over its classes, all gather the sums of each other and merge them in the order of the classes, and
each maps its logits to its part of the result. Rows that a device has whole are merged with nothing. A backend, native.py or reference.py,
has the steps `reduce`, `merge`, `backward` and `hessian`, and may compute an operator of whole rows in one call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from .. import formula, shards
from ..call import Call, Static
from ..formula import Outputs
from ..partials import difference as _difference
from ..partials import times as _times
from .arrays import Array, as_rows, computed_in
from .call import (
    ALL,
    FIRST,
    IGNORED,
    LARGEST,
    NO_LABEL,
    OUTSIDE,
    PREDICTED,
    averaged,
    by_row,
    inverse,
    labelled,
    off_by_row,
    rows_of,
    special,
)

Names = tuple[str, ...]  # axes of a mesh
times: Any = _times  # of arrays of JAX
difference: Any = _difference


def computed(operator: str, backend: Any, call: Call, static: Static, **how: Any) -> Any:
    """Compute an operator for the classes of this device; all devices along the axes `static.shards` do so for theirs."""
    at_once = None if static.shards else getattr(backend, operator, None)
    return at_once(call, static, **how) if at_once else globals()[operator](backend, call, static, **how)


def rows(backend: Any, call: Call, static: Static, outputs: tuple[str, ...]) -> list[Array]:
    found = list(reduced(backend, call, static, outputs).outputs[: len(outputs)])
    return [*found, _predicted(call, static.shards)] if PREDICTED in outputs else found


def _predicted(call: Call, names: Names) -> Array:
    """Return the first class with the largest logit, -1 in ignored rows."""
    at = call.z.argmax(-1)
    if names:
        at = added_up(jnp.where(largest(call.z, names)[1], at + lax.axis_index(names) * call.z.shape[-1], 0), names)
    return jnp.where(labelled(call, IGNORED), -1, at).astype(jnp.int32)


def mean(backend: Any, call: Call, static: Static, kept: int) -> Array:
    return averaged(reduced(backend, call._replace(total=0.0), static).outputs.loss, call.total, kept)


def gradient(backend: Any, call: Call, static: Static, in_place: bool = False) -> Array:
    whole = reduced(backend, call, static)
    return backend.backward(whole.call, whole.parts, static, in_place)


def mean_and_gradient(backend: Any, call: Call, static: Static, kept: int, in_place: bool = False) -> list[Array]:
    whole = reduced(backend, call._replace(total=0.0, g=inverse(call.total)), static)
    return [averaged(whole.outputs.loss, call.total, kept), backend.backward(whole.call, whole.parts, static, in_place)]


def product(backend: Any, call: Call, static: Static) -> Array:
    whole = reduced(backend, call, static, ALL)
    return backend.hessian(whole.call, whole.parts, static)[0]


def along(backend: Any, call: Call, static: Static, outputs: tuple[str, ...]) -> list[Array]:
    whole = reduced(backend, call, static, ALL)
    _, dlse, dlogprob, by_off, dentropy = backend.hessian(_first_class(whole.call), whole.parts, static)
    if not isinstance(call.label, float):  # a masked label, which the sums cannot tell from none
        is_class = labelled(call, LARGEST) | (by_row(call.label, rows_of(call)) >= 0)
        dlogprob = jnp.where(is_class & (whole.outputs.logprob == -jnp.inf), whole.of_label[0] - dlse, dlogprob)
    y, r, q = (by_row(x, rows_of(call)) for x in (call.y, call.r, call.q))
    y = jnp.where(labelled(call, OUTSIDE), jnp.nan, y)
    dloss = jnp.where(q == 0, 0.0, q * whole.outputs.lse * dlse) - y * dlogprob - r * by_off
    return [dloss.astype(dlse.dtype), dlse, dlogprob, dentropy][: len(outputs)]


def log_softmax(backend: Any, call: Call, static: Static) -> Array:
    """Return y ((z_k - top) / T + log yhat_top): the largest logit is kept apart, so that a value near 0 keeps its digits."""
    z = call.z.astype(computed_in(call.z.dtype))
    top, here = largest(z, static.shards)
    label = jnp.where(here, special(LARGEST, jnp.int32), NO_LABEL)
    logprob = merged(backend, Call(z, label), static, FIRST).outputs.logprob[..., None]
    score, highest = (formula.transformed(as_rows(a, 1), static.temperature, static.cap)[0].reshape(a.shape) for a in (z, top[..., None]))
    y = by_row(call.y, rows_of(call), True) + jnp.zeros_like(score)
    return times(y, difference(score, highest, static.temperature) + logprob).astype(call.z.dtype)


class Whole(NamedTuple):
    """What is known of the rows on all devices."""

    outputs: Outputs
    of_label: list[Array]  # v of the label, times the slope of the transform, if there is a v
    parts: Array  # the sums of the rows, as the backend has them
    call: Call  # of the classes of this device


def reduced(backend: Any, call: Call, static: Static, outputs: tuple[str, ...] = FIRST) -> Whole:
    """Return the sums of the rows over the classes of all devices, and what the rows give."""
    return merged(backend, call._replace(label=_own_label(call, static.shards)), static, outputs)


def merged(backend: Any, call: Call, static: Static, outputs: tuple[str, ...]) -> Whole:
    """As `reduced`, for labels that count through the classes of this device."""
    parts, classes = backend.reduce(call, static, outputs), call.z.shape[-1]
    every = lax.all_gather(parts, static.shards) if static.shards else parts[None]
    order = shards.merge_order([shards.Columns(k * classes, (k + 1) * classes) for k in range(len(every))])
    *found, parts = backend.merge(every, order, call, static)
    return Whole(Outputs(*found[: len(ALL)]), found[len(ALL) :], parts, call)


def _own_label(call: Call, names: Names) -> Any:
    """Return the labels as classes of this device, where those of other devices match no class."""
    if not names or isinstance(call.label, float):
        return call.label
    first = (lax.axis_index(names) * call.z.shape[-1]).astype(call.label.dtype)
    here = jnp.where(call.label <= special(OUTSIDE, call.label.dtype), call.label, call.label - first)
    if call.label.ndim:  # arguments.py gives the label LARGEST to all rows or to none
        return here
    by_row_of_off = not isinstance(call.off, float) and call.off.ndim > 1
    _, mine = largest(off_by_row(call) if by_row_of_off else call.z, names)
    return jnp.where(call.label == special(LARGEST, call.label.dtype), jnp.where(mine, call.label, NO_LABEL), here)


def largest(of: Array, names: Names) -> tuple[Array, Array]:
    """Return the largest entry of each row, and whether it is the first one that is as large, and on this device."""
    mine = of.max(-1)
    if not names:
        return mine, jnp.ones(mine.shape, bool)
    every = lax.all_gather(mine, names)
    return every.max(0), every.argmax(0) == lax.axis_index(names)


def _first_class(call: Call) -> Call:
    """Return the call of the first class alone, for what the sums of the rows say."""
    return call._replace(z=call.z[..., :1], v=call.v[..., :1], off=0.0 if isinstance(call.off, float) else call.off[..., :1])


def added_up(a: Array, names: Names) -> Array:
    """Return the sum of an array over the devices along `names`."""
    return lax.psum(a, names) if names else a
