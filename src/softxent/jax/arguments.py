"""The arguments of the public functions: their checks, and how options become the numbers of rows that the operators take.

This is the lowest file of softxent.jax that knows the options. truth.py says what they mean; here they become operations of jax.numpy on
arrays that are small beside the logits, so that JAX has the derivatives by weights and probabilities.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify

from .. import contract, truth
from ..call import Call
from ..contract import FLOATS, Kind, Kinds, Names, fail
from ..truth import Options as Options
from ..truth import options as options
from . import devices
from .arrays import Array, computed_in, widest
from .call import ALL, FIRST, IGNORED, LARGEST, OUTSIDE, PREDICTED, averaged, special
from .steps import Names as MeshAxes


def array(fn: str, argument: str, x: Any) -> Array:
    """Return `x` as an array of JAX."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        fail(fn, argument, "be an array", f"{type(x).__name__} ({error})", TypeError)


def floats(fn: str, argument: str, x: Any) -> Array:
    """Return `x` as an array of a floating-point type that the kernels support."""
    a = array(fn, argument, x)
    contract.float_dtype(fn, argument, a.dtype.name)
    return a


def kind(a: Any) -> Kind:
    """Return what is checked of an array."""
    return Kind(a.shape, a.dtype.name)


def check(
    fn: str, names: Names, logits: Kind, axis: int, labels: Any, class_weight: Any = None, sample_weight: Any = None,
    classes: int | None = None,
) -> tuple[Array, Array | None, Array | None]:  # fmt: skip
    """Check the arguments of a call. Returns them as arrays, probabilities with the classes on the last axis."""
    t = array(fn, names.labels, labels)
    w = None if class_weight is None else array(fn, names.class_weight, class_weight)
    sample = None if sample_weight is None else array(fn, names.sample_weight, sample_weight)
    kinds = Kinds(logits, kind(t), None if w is None else kind(w), None if sample is None else kind(sample))
    axis, probabilities = contract.check(fn, names, kinds, axis, classes)
    return jnp.moveaxis(t, axis, -1) if probabilities else t, w, sample


def class_labels(fn: str, t: Array, classes: int, ignore_index: int | None, check: bool) -> Array:
    """Return class indices as labels: int32 or int64, and special ones for ignored rows and for labels that are out of range."""
    if t.dtype not in (jnp.int32, jnp.int64):
        t = jnp.minimum(t, jnp.iinfo(jnp.int32).max).astype(jnp.int32) if t.dtype.itemsize >= 4 else t.astype(jnp.int32)
    outside = (t < 0) | (t >= classes)
    ignored = jnp.zeros_like(outside)
    if ignore_index is not None and abs(ignore_index) <= jnp.iinfo(t.dtype).max:
        ignored = t == ignore_index
    if check:
        message = f"{fn}: labels must lie in [0, {classes}) or be ignore_index={ignore_index}; got {{label}} at flat row {{row}}"
        bad = (outside & ~ignored).reshape(-1)
        row = bad.argmax() if bad.size else jnp.int32(0)
        checkify.check(~bad.any(), message, label=t.reshape(-1)[row] if bad.size else row, row=row)
    t = jnp.where(outside, special(OUTSIDE, t.dtype), t)
    return t if ignore_index is None else jnp.where(ignored, special(IGNORED, t.dtype), t)


def names_of(fn: str, axis_name: Any) -> MeshAxes:
    """Return the axes of the mesh of a shard_map by which the classes are divided."""
    if axis_name is None:
        return ()
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    for name in names:
        try:
            lax.axis_size(name)
        except NameError:
            fail(fn, "axis_name", "name axes of the mesh of a jax.shard_map in which the function is called", repr(axis_name))
    return names


def check_devices(fn: str, names: MeshAxes, divided: dict[str, Any], t: Any = None, class_weight: Any = None, sample: Any = None) -> None:
    """Check what the devices along `names` have: their own classes of the logits and of probabilities, and the same of all else."""
    others = {"class_weight": class_weight, "sample_weight": sample}
    if t is not None and t.dtype.name in FLOATS:
        divided = {**divided, "labels": t}
    else:
        others["labels"] = t
    devices.check_divided(fn, names, divided, others)


def call_of(
    fn: str, z: Array, t: Array, class_weight: Array | None, sample: Array | None, given: Options, check: bool, names: MeshAxes = ()
) -> tuple[Call, Array]:
    """Return the call of logits z [*rows, C] and labels, and the sum of the rows' weights, for a mean.

    `names` are axes of the mesh by which the classes are divided; `class_weight` has those of all devices.
    """
    here, lead, wide = z.shape[-1], z.shape[:-1], computed_in(z.dtype)
    classes = devices.classes_of(names, here)
    w = None if class_weight is None else class_weight.astype(widest())
    each = None if sample is None else jnp.broadcast_to(sample.astype(widest()), lead)
    e = given.label_smoothing
    if t.dtype.kind not in "iu":
        label = special(LARGEST, jnp.int32)
        found = truth.row_numbers(None, None, each, 0.0, given.z_loss, classes)
        w = None if w is None else devices.own_classes(w, names, here)
        off = t if w is None and not e else truth.soft(t.astype(widest()), w, e, classes)
        off = off if off.dtype in (z.dtype, wide) else off.astype(wide)
        total = jnp.int32(math.prod(lead)) if each is None else each.sum()
        return Call(z, label, off, y=found.y, r=found.r, q=found.q), total
    label = class_labels(fn, t, classes, given.ignore_index, check)
    at = lambda a, i: devices.taken(a, i.clip(0, classes - 1))  # noqa: E731
    found = truth.row_numbers(label, w, each, e, given.z_loss, classes, at)
    off = 0.0 if found.off is None else devices.own_classes(jnp.broadcast_to(found.off, classes), names, here).astype(wide)
    live = label != special(IGNORED, label.dtype)
    total = live.sum(dtype=jnp.int32) if isinstance(found.weight, float) else jnp.where(live, found.weight, 0.0).sum()
    return Call(z, label, off, y=found.y, r=found.r, q=found.q), total


# ---- results ----


class Result(NamedTuple):
    """What `cross_entropy` returns if a `return_` option is set. What was not wanted is None."""

    loss: Array
    lse: Array | None = None  # [*rows]
    entropy: Array | None = None  # [*rows]
    logprobs: Array | None = None  # [*rows], of the label
    correct: Array | None = None  # the number of rows whose label is a most probable class
    predicted: Array | None = None  # [*rows], int32, the most probable class


def wanted(**given: bool) -> tuple[str, ...]:
    """Return the names of the outputs that a `Result` has beside the loss, by whether they are wanted."""
    return tuple(name for name in (*ALL, PREDICTED) if given.get(name))


def needed(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the outputs of the rows among which are those that are wanted."""
    return FIRST if set(wanted) <= set(FIRST) else (*ALL, PREDICTED) if PREDICTED in wanted else ALL


def in_one_pass(reduction: str, wanted: tuple[str, ...], dtype: Any) -> bool:
    """Whether a loss is computed together with its gradient: one number, and no other outputs.

    A gradient in float16 is computed with its upstream gradient, because that of a loss scaler, which is large, could not bring back what
    is rounded to 0.
    """
    return reduction != "none" and not wanted and dtype != jnp.float16


def divisor(reduction: str, total: Array) -> Array:
    """Return by which the sum of the losses is divided."""
    return jnp.int32(1) if reduction == "sum" else total


def results(found: list[Array], total: Array, reduction: str, wanted: tuple[str, ...], dtype: Any) -> Any:
    """Return the loss, from the outputs of the rows, or a `Result` with those that are wanted."""
    rows = dict(zip((*ALL, PREDICTED), found, strict=False))
    loss = rows["loss"] if reduction == "none" else averaged(rows["loss"], divisor(reduction, total), 0)
    if not wanted:
        return loss.astype(dtype)
    lse, logprobs, entropy = (rows[name].astype(dtype) if name in wanted else None for name in ("lse", "logprob", "entropy"))
    return Result(loss.astype(dtype), lse, entropy, logprobs, rows["correct"].sum() if "correct" in wanted else None, rows.get(PREDICTED))
