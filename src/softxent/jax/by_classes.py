"""The operators for classes that are divided among the devices along axes of a mesh. devices.py says which.

Each device sums over its classes, all gather the sums [7, R] of each other and merge them in the order of the classes, and each computes
its part of the gradient from them. The product with the Hessian is computed from that of softmax over the classes of the device alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from .. import formula, shards
from ..partials import difference as _difference
from ..partials import times as _times
from .arrays import Array, as_rows, computed_in
from .call import IGNORED, LARGEST, NO_LABEL, NUMBERS, OUTSIDE, Call, by_row, off_by_row, special
from .formulas import averaged, inverse, loss_along

Names = tuple[str, ...]  # axes of a mesh
OF_CLASSES = ("z", "off", "v")  # the fields of a Call that have an axis of classes
times: Any = _times  # of arrays of JAX
difference: Any = _difference


def computed(operator: str, backend: Any, call: Call, names: Names, temperature: float, cap: float, **options: Any) -> Any:
    """Compute an operator for the classes of this device; all devices along the axes `names` do so for theirs."""
    kept, in_place = options.get("kept", 0), {"in_place": options["in_place"]} if "in_place" in options else {}
    if operator in ("log_softmax", "along", "product"):
        wide = computed_in(call.z.dtype)
        own = call._replace(
            **{name: a.astype(wide) for name, a in call._asdict().items() if name in OF_CLASSES and not isinstance(a, float)}
        )
        row = _whole(backend, own, names, temperature, cap)
        if operator == "log_softmax":
            return _log_softmax(row, own).astype(call.z.dtype)
        by = _along(backend, row, own, names, temperature, cap)
        if operator == "product":
            return _product(backend, row, by, own, temperature, cap).astype(call.z.dtype)
        return loss_along(call, row.lse, by.mean, by.at_label, by.off, by.entropy)[: 4 if options["more"] else 2]
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


def added_up(a: Array, names: Names) -> Array:
    """Return the sum of an array over the devices along `names`."""
    return lax.psum(a, names) if names else a


def merged(backend: Any, call: Call, names: Names, temperature: float, cap: float) -> tuple[list[Array], Array, Call]:
    """Return the outputs of the rows and their sums over the classes of all devices, and the call with the labels of this device."""
    label, here = _labels(call, names)
    classes, mine = call.z.shape[-1], call._replace(label=here)
    sums = lax.all_gather(backend.forward(mine, temperature, cap)[-1], names)
    order = shards.merge_order([shards.Columns(k * classes, (k + 1) * classes) for k in range(len(sums))])
    *found, total = backend.merge(sums, order, call._replace(label=label), temperature)
    return found, total, mine


def _labels(call: Call, names: Names) -> tuple[Array, Array]:
    """Return the labels of the rows, and as classes of this device, where the labels of other devices match no class."""
    first = lax.axis_index(names) * call.z.shape[-1]
    label = jnp.broadcast_to(by_row(call.label, call.rows), call.rows)
    if not call.label.ndim:  # arguments.py gives the label LARGEST to all rows or to none
        label = jnp.where(call.special(LARGEST), _largest(call, first, names).astype(label.dtype), label)
    return label, jnp.where(label <= special(OUTSIDE, label.dtype), label, label - first.astype(label.dtype))


def _largest(call: Call, first: Array, names: Names) -> Array:
    """Return the class with the largest off of each row, or the largest logit if there is no off for each row."""
    of = call.z if isinstance(call.off, float) or call.off.ndim == 1 else jnp.broadcast_to(call.off, call.z.shape)
    value, index = lax.all_gather((of.max(-1), of.argmax(-1) + first), names)
    return jnp.take_along_axis(index, value.argmax(0)[None], 0)[0]


class _Whole(NamedTuple):
    """What is known of whole rows, and of the part of them that this device has. Each array is [*rows]."""

    scores: Array  # [*rows, C] softcap applied to the logits, but not the temperature
    top: Array  # the largest score of the row
    temperature: float
    lse: Array
    entropy: Array
    above: Array  # lse - top / T
    share: Array  # sum of yhat over the classes of this device
    away: Array  # - log share, times share
    entropy_here: Array  # of softmax over the classes of this device


def _whole(backend: Any, call: Call, names: Names, temperature: float, cap: float) -> _Whole:
    bare = Call(call.z, special(LARGEST, jnp.int32))
    found, _, _ = merged(backend, bare, names, temperature, cap)
    _, _, above_here, entropy_here, _ = backend.rows(bare, temperature, cap, True)
    scores = formula.transformed(as_rows(call.z, 1), temperature, cap)[0].reshape(call.z.shape)
    top_here = scores.max(-1)
    top = lax.pmax(top_here, names)
    nothing = top_here == -jnp.inf  # all classes of this device are masked, and their softmax is NaN
    log_share = jnp.where(
        nothing, -jnp.inf, difference(top_here, top, temperature) - above_here + found[2]
    )  # without lse, which may be large
    share = jnp.exp(log_share)
    return _Whole(
        scores, top, temperature, found[1], found[3], -found[2], share, times(share, -log_share), jnp.where(nothing, 0.0, entropy_here)
    )


def _log_softmax(row: _Whole, call: Call) -> Array:
    """Return y log softmax(z) of the classes of this device."""
    y = by_row(call.y, call.rows, True) + jnp.zeros_like(row.scores)
    return times(y, difference(row.scores, row.top[..., None], row.temperature) - row.above[..., None])


class _Along(NamedTuple):
    """The derivatives along v of what whole rows give, as formulas.curvature returns them, and numbers that `_product` needs, [*rows]."""

    mean: Array
    at_label: Array
    off: Array
    entropy: Array
    mean_here: Array  # <p, v>, where p is softmax over the classes of this device
    entropy_here: Array  # the derivative of the entropy of p along v
    off_total: Array  # sum of off
    label: Array  # as classes of this device


def _along(backend: Any, row: _Whole, call: Call, names: Names, temperature: float, cap: float) -> _Along:
    """Return the derivatives along v of what the rows give. The kernel gives those of p, and yhat = share p."""
    _, label = _labels(call, names)
    here = backend.curvature(Call(call.z, label, call.off, call.v), temperature, cap)[1:]
    empty = row.share == 0
    mean_here, at_label, off_here, entropy_here = (jnp.where(empty, 0.0, a) for a in here)
    off_sum = jnp.zeros_like(mean_here) if isinstance(call.off, float) else off_by_row(call).astype(mean_here.dtype).sum(-1) + 0 * mean_here
    there = (label >= 0) & (label < call.z.shape[-1])
    by_entropy = times(row.share, entropy_here + mean_here * row.entropy_here) + times(row.away, mean_here)
    at_label = jnp.where(there, at_label + mean_here, 0.0)
    sums = jnp.stack([times(row.share, mean_here), at_label, off_here + mean_here * off_sum, by_entropy, off_sum])
    mean, at_label, by_off, by_entropy, all_off = lax.psum(sums, names)
    live = ~by_row(call.special(IGNORED), call.rows)
    found = (mean, at_label - mean, by_off - mean * all_off, by_entropy - mean * row.entropy)
    mean, at_label, by_off, by_entropy = (jnp.where(live, a, 0.0) for a in found)
    return _Along(mean, at_label, by_off, by_entropy, mean_here, entropy_here, all_off, label)


def _product(backend: Any, row: _Whole, by: _Along, call: Call, temperature: float, cap: float) -> Array:
    """Return the derivative of the gradient along v, for the classes of this device.

    Written with p, it is one of p, for which the kernel is called, plus a gradient of the log-sum-exp and the entropy of p.
    """
    y, r, q, g, l, b, n = (by_row(x, call.rows) + jnp.zeros_like(row.lse) for x in call[-len(NUMBERS) :])  # noqa: E741
    off_here = 0.0 if isinstance(call.off, float) else off_by_row(call).astype(row.lse.dtype).sum(-1)
    a = times(g, y + r * by.off_total + times(q, row.lse)) + l - b - times(n, row.entropy)
    a, e = times(row.share, a) + times(row.away, n), times(row.share, n)
    wanted = ~by_row(call.special(IGNORED), call.rows) & (abs(g) + abs(l) + abs(b) + abs(n) != 0)
    of_p = a + e * row.entropy_here - g * (y + r * off_here) + b  # so that a is the coefficient of p in the kernel
    numbers = (jnp.where(wanted, x, 0.0) for x in (g, of_p, b, e))
    found = backend.curvature(Call(call.z, by.label, call.off, call.v, 0.0, y, r, 0.0, *numbers), temperature, cap)[0]
    apart = by.mean_here - by.mean
    by_entropy = times(e, apart)
    change = times(row.share, times(g * q, by.mean) - times(n, by.entropy))
    by_lse = times(a - e, apart) + change + times(e, by.entropy_here) + by_entropy * row.entropy_here
    by_lse, by_entropy = (jnp.where(wanted & (row.share > 0), x, 0.0) for x in (by_lse, by_entropy))
    hidden = jnp.full(call.rows, NO_LABEL, jnp.int32)
    return found + backend.gradient(Call(call.z, hidden, l=by_lse, n=by_entropy), temperature, cap)
