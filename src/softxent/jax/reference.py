"""The steps of the operators (steps.py) computed by functional.py with jax.numpy, for platforms without a compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp

from .. import functional, partials
from ..call import NUMBERS, Call, Static
from ..formula import Numbers
from ..functional import Rows
from ..partials import Partials, Tangents
from ..shared import NO_LABEL
from .arrays import Array, as_rows, widest
from .call import OUTSIDE, by_row, labelled, off_by_row, rows_of

_SUMS = len(Partials._fields) - 1  # without the temperature


def reduce(call: Call, static: Static, outputs: tuple[str, ...]) -> Array:
    """Return the sums of the rows, [7, *rows], or with their tangents along v, [12, *rows]."""
    of = _rows(call, static)
    found = [*functional.sums(of)[:_SUMS]]
    if not isinstance(call.v, float):
        found += functional.tangents(of, _matrix(call.v))
    return _stacked(found, call)


def merge(parts: Array, order: Sequence[tuple[int, int]], call: Call, static: Static) -> list[Array]:
    """Merge what `reduce` gives for different classes, [K, 7 or 12, *rows]. Returns the outputs, v of the label, if any, and the sums."""
    of = _rows(call._replace(z=call.z[..., :1], off=0.0), static)
    sums, tangents = zip(*(_sums(shard, of) for shard in parts), strict=True)
    x, y = partials.merge_all(sums, None if tangents[0] is None else tangents, order)
    found = [*functional.outputs(x, _numbers(call, of), of.ignored), *(() if y is None else [y.vt])]
    return [*(a.reshape(rows_of(call)) for a in found), _stacked([*x[:_SUMS], *(y or ())], call)]


def backward(call: Call, parts: Array, static: Static, in_place: bool = False) -> Array:
    """Return the gradient from the sums over all classes."""
    of = _rows(call, static)
    dz = functional.gradient(of, _sums(parts, of)[0], _numbers(call, of))
    return dz.reshape(call.z.shape).astype(call.z.dtype)


def hessian(call: Call, parts: Array, static: Static) -> list[Array]:
    """Return the derivative of the gradient along v, and the numbers of the rows that the kernel gives, from the sums over all classes."""
    of = _rows(call, static)
    x, y = _sums(parts, of)
    assert y is not None
    without_bend = static.cap == math.inf  # whose second derivative is 0
    hv = functional.hessian(of, _matrix(call.v), x, y, _numbers(call, of), without_bend)
    along = functional.along(x, y, of.ignored)
    of_rows = (a.reshape(rows_of(call)) for a in (along.lse, along.logprob, along.off, along.entropy))
    return [hv.reshape(call.z.shape).astype(call.z.dtype), *of_rows]


def _rows(call: Call, static: Static) -> Rows:
    """Return the rows of a call, with a temperature that float32 has."""
    label = jnp.int32(NO_LABEL) if isinstance(call.label, float) else call.label
    off = None
    if not isinstance(call.off, float):
        off = _matrix(call.off if call.off.ndim == 1 else jnp.broadcast_to(off_by_row(call), call.z.shape))
    least = jnp.iinfo(label.dtype).min
    of = functional.rows(_matrix(call.z), _of_rows(label, call), off, (static.temperature, static.cap), least)
    beyond = 2.0 ** max(0, math.frexp(static.temperature)[1] - 100)
    return of._replace(z=of.z / beyond, temperature=of.temperature / beyond)


def _numbers(call: Call, of: Rows) -> Numbers:
    """Return the numbers of the rows; y is NaN where the label is OUTSIDE."""
    call = call._replace(y=jnp.where(labelled(call, OUTSIDE), jnp.nan, by_row(call.y, rows_of(call))))
    return functional.numbers(of, [_of_rows(x, call).astype(widest()) for x in call[-len(NUMBERS) :]])


def _sums(parts: Array, of: Rows) -> tuple[Partials, Tangents | None]:
    """Return the sums of the rows, and their tangents if there are any."""
    each = [as_rows(part, 0) for part in parts]
    x = Partials(*each[:_SUMS])._replace(temperature=of.temperature)
    return x, Tangents(*each[_SUMS:]) if len(each) > _SUMS else None


def _stacked(found: Sequence[Array], call: Call) -> Array:
    return jnp.stack([a.reshape(rows_of(call)) for a in found])


def _matrix(a: Array) -> Array:
    """Return [*rows, C] as [R, C], and [C] as [C], in the widest type."""
    return (a if a.ndim == 1 else as_rows(a, 1)).astype(widest())


def _of_rows(number: Array, call: Call) -> Array:
    """Return a number of the rows as [R]."""
    return as_rows(jnp.broadcast_to(by_row(number, rows_of(call)), rows_of(call)), 0)
