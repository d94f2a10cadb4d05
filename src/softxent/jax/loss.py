"""The public functions for logits that are given: the loss in two signatures, log_softmax, logsumexp and the entropy.

They check their arguments, turn the options into a `Call` and call the operators. They contain no formulas of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from .. import contract
from ..call import Call, Static
from ..contract import fail
from . import arguments, devices, operators
from .arguments import class_labels, floats
from .arrays import Array, computed_in
from .call import ALL, LARGEST, special


def cross_entropy(
    logits: Any,
    labels: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: Any = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    return_logprobs: bool = False,
    return_correct: bool = False,
    return_predicted: bool = False,
    check: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Any:
    """Compute the softmax cross-entropy of logits and labels.

    The loss of a row is `loss = - sum_k y_k log softmax(z)_k = mass * lse(z) - <y, z>`, where z are its logits, y its truth (the target
    probabilities: 1 at the label and 0 elsewhere, unless an option changes it), mass the sum of y, and lse(z) = log sum_k exp(z_k).

    Args:
        logits: [*rows, C], or with the classes on another axis (`axis`). float32, float64 (if JAX enables it), bfloat16 or float16.
        labels: class indices [*rows] of any integer type, or probabilities of the shape of `logits`, which need not sum to 1.
        axis, class_weight, label_smoothing, ignore_index, sample_weight, z_loss, temperature, softcap: as in `softxent.cross_entropy`.
            The numbers are constants of the compiled function; the weights are arrays, by which can be differentiated.
        reduction: "none" returns an array [*rows], "sum" their sum. "mean" divides the sum by the sum of the rows' weights, and is NaN,
            with gradient 0, if all rows are ignored.
        return_lse, return_entropy, return_logprobs, return_correct, return_predicted: whether to return a `Result` with these too. The
            predicted class is the most probable one, the first of several, and -1 in ignored rows.
        check: whether a label out of range is an error of `jax.experimental.checkify`. Otherwise the loss and the gradient of that row are
            NaN.
        axis_name: inside `jax.shard_map`, the axes of the mesh by which the classes are divided. `logits`, and probabilities, then have the
            classes of this device. Labels count through all classes, `class_weight` has all classes, and both are the same on all devices
            along these axes, as the results are.

    Returns:
        The loss in the dtype of `logits`, or a `Result`.

    Raises:
        ValueError, TypeError: if a shape, dtype or option does not fit.

    All transforms of JAX can be applied, in any order: grad, jvp, vjp, linearize, jacfwd, jacrev, hessian, vmap, checkpoint, scan.

    Cost: with a reduction, the loss and its gradient are computed in one pass of the compiled kernel on the CPU: one read of the logits and
    one write. The gradient takes the memory of the logits if these are not needed any more, as where they are computed in the same function
    or donated; else XLA copies them first. With reduction="none" or float16, the gradient is a second pass.

    Source: Parts 1 to 3 of the derivation; for the options, the table in truth.py.
    """
    fn = "cross_entropy"
    given = arguments.options(fn, ignore_index, reduction, label_smoothing, z_loss, temperature, softcap)
    names, z = arguments.names_of(fn, axis_name), arguments.array(fn, "logits", logits)
    k = contract.class_axis(fn, "logits", z.shape, axis)
    of_all = devices.classes_of(names, z.shape[k])
    t, w, sample = arguments.check(fn, contract.NUMPY, arguments.kind(z), k, labels, class_weight, sample_weight, of_all)
    z = jnp.moveaxis(z, k, -1)
    arguments.check_devices(fn, names, {"logits": z}, t, w, sample)
    call, total = arguments.call_of(fn, z, t, w, sample, given, check, names)
    wanted = arguments.wanted(
        lse=return_lse, logprob=return_logprobs, entropy=return_entropy, correct=return_correct, predicted=return_predicted
    )
    static = Static(given.temperature, given.cap, k - z.ndim, names)
    if arguments.in_one_pass(given.reduction, wanted, z.dtype):
        return operators.mean(call._replace(total=arguments.divisor(given.reduction, total)), static).astype(z.dtype)
    found = operators.rows(call, static, arguments.needed(wanted))
    return arguments.results(found, total, given.reduction, wanted, z.dtype)


def softmax_cross_entropy_with_integer_labels(logits: Any, labels: Any, axis: int | Sequence[int] | None = -1, where: Any = None) -> Array:
    """Compute the softmax cross-entropy of logits and class indices, with the signature of `optax`.

    The loss of a row is `lse(z) - z_t`, where t is its label.

    Args:
        logits: [*rows, C], or with the classes on other axes (`axis`). float32, float64 (if JAX enables it), bfloat16 or float16.
        labels: class indices [*rows], of any integer type. With several class axes, they count through these in their order.
        axis: the class axis, or several.
        where: of the shape of `logits`, or [*rows]; classes where it is False are left out, as those with a logit of -inf. A row without
            classes has loss 0. Where the label itself is left out, the loss is inf, `-log 0`; optax returns `lse(z) - z_t` there, with the
            logit of the label and lse(z) of the other classes.

    Returns:
        The loss of each row, [*rows], in the dtype of `logits`. It is NaN, as is the gradient of the row, where the label is out of range.

    Raises:
        ValueError, TypeError: if a shape or dtype does not fit.

    Cost: the loss and its gradient are computed in one pass, as in `cross_entropy`. The upstream gradients of the rows then multiply the
    gradient, which is one more read and write.

    Source: Parts 1 to 3 of the derivation.
    """
    fn = "softmax_cross_entropy_with_integer_labels"
    z, mask, lead, place = _flat_classes(fn, floats(fn, "logits", logits), axis, where)
    t = arguments.check(fn, contract.NUMPY, contract.Kind((*lead, z.shape[-1]), z.dtype.name), -1, labels)[0]
    if t.dtype.kind not in "iu":
        fail(fn, "labels", "be integers", t.dtype, TypeError)
    label = class_labels(fn, t, z.shape[-1], None, False)
    call = Call(_masked(z, mask), label, total=jnp.int32(1), y=1.0)
    loss = operators.mean(call, Static(axis=place), label.ndim).astype(z.dtype)
    return loss if mask is None else jnp.where(mask.any(-1), loss, 0)


def softmax_cross_entropy(logits: Any, labels: Any, axis: int | Sequence[int] | None = -1, where: Any = None) -> Array:
    """Compute the softmax cross-entropy of logits and probabilities, with the signature of `optax`.

    The loss of a row is `- sum_k y_k log softmax(z)_k`. The labels y need not sum to 1.

    Args:
        logits: [*rows, C], or with the classes on another axis (`axis`). float32, float64 (if JAX enables it), bfloat16 or float16.
        labels: probabilities, of the shape of `logits`.
        axis, where: as in `softmax_cross_entropy_with_integer_labels`.

    Returns, raises, cost, source: as in `softmax_cross_entropy_with_integer_labels`.
    """
    fn = "softmax_cross_entropy"
    z, t = floats(fn, "logits", logits), floats(fn, "labels", labels)
    shape = jnp.broadcast_shapes(z.shape, t.shape)
    (z, mask, lead, place), (t, *_) = (_flat_classes(fn, jnp.broadcast_to(a, shape), axis, where) for a in (z, t))
    off = t if t.dtype in (z.dtype, computed_in(z.dtype)) else t.astype(computed_in(z.dtype))
    off = off if mask is None else jnp.where(mask, off, 0)
    call = Call(_masked(z, mask), special(LARGEST, jnp.int32), off, total=jnp.int32(1), r=1.0)
    return operators.mean(call, Static(axis=place), len(lead)).astype(z.dtype)


def _flat_classes(fn: str, z: Array, axis: int | Sequence[int] | None, where: Any) -> tuple[Array, Array | None, tuple[int, ...], int]:
    """Return an array and `where` with the class axes flattened to the last axis, the shape of the rows, as optax takes them, and where
    the classes were, if their axes are adjacent and in order, or else -1."""
    axes = tuple(range(z.ndim)) if axis is None else tuple(axis) if isinstance(axis, Sequence) else (axis,)
    classes = tuple(contract.class_axis(fn, "logits", z.shape, k) for k in axes)
    rows = tuple(k for k in range(z.ndim) if k not in classes)
    lead = tuple(z.shape[k] for k in rows)
    adjacent = classes == tuple(range(classes[0], classes[-1] + 1))
    place = -1 - sum(k > classes[-1] for k in rows) if adjacent else -1

    def flat(a: Array) -> Array:
        if adjacent:  # reshaped first, for XLA copies what is moved before
            return jnp.moveaxis(a.reshape(*a.shape[: classes[0]], -1, *a.shape[classes[-1] + 1 :]), classes[0], -1)
        return a.transpose(rows + classes).reshape(*lead, -1)

    if where is None:
        return flat(z), None, lead, place
    where = jnp.asarray(where)
    where = jnp.expand_dims(where, classes) if where.ndim == len(rows) and where.ndim != z.ndim else where
    return flat(z), flat(jnp.broadcast_to(where, z.shape)), lead, place


def _masked(z: Array, mask: Array | None) -> Array:
    """Return the logits, which are -inf where the mask is False, and 0 in rows where it is False for all classes."""
    return z if mask is None else jnp.where(mask, z, jnp.where(mask.any(-1, keepdims=True), -jnp.inf, 0))


def logsumexp(logits: Any, axis: int = -1, keepdims: bool = False, *, axis_name: str | tuple[str, ...] | None = None) -> Array:
    """Compute log-sum-exp over one axis, `lse(z) = log sum_k exp(z_k)`, as `jax.nn.logsumexp` does. Its gradient is softmax.

    Args:
        logits: float32, float64, bfloat16 or float16, of any shape with at least one axis.
        axis: the axis.
        keepdims: whether the result keeps the axis, with length 1.
        axis_name: inside `jax.shard_map`, the axes of the mesh by which `axis` is divided.

    Returns:
        An array with the dtype of `logits`.

    Raises:
        ValueError, TypeError: if the dtype or the axis does not fit.

    Cost: one read; derivatives as in `cross_entropy`.
    """
    z, k, static = _on_axis("logsumexp", logits, axis, axis_name)
    lse = operators.rows(Call(z), static)[1].astype(z.dtype)
    return jnp.expand_dims(lse, k) if keepdims else lse


def log_softmax(logits: Any, axis: int = -1, *, axis_name: str | tuple[str, ...] | None = None) -> Array:
    """Compute the logarithm of softmax over one axis, `log softmax(z)_k = z_k - lse(z)`, as `jax.nn.log_softmax` does.

    It is computed as (z_k - max z) - (lse - max z), so that values near 0 keep their digits. Arguments, errors and derivatives are those of
    `logsumexp`. The result has the shape and dtype of `logits`.

    Cost: two reads and one write.
    """
    z, k, static = _on_axis("log_softmax", logits, axis, axis_name)
    return jnp.moveaxis(operators.log_softmax(Call(z, y=1.0), static), -1, k)


def entropy(logits: Any, axis: int = -1, *, axis_name: str | tuple[str, ...] | None = None) -> Array:
    """Compute the entropy of softmax over one axis, `- sum_k yhat_k log yhat_k` with yhat = softmax(z).

    Arguments, errors, cost and derivatives are those of `logsumexp`. The result is [*rows], in the dtype of `logits`. No term is negative,
    so that values near 0 keep their digits.
    """
    z, _, static = _on_axis("entropy", logits, axis, axis_name)
    return operators.rows(Call(z, special(LARGEST, jnp.int32)), static, ALL)[ALL.index("entropy")].astype(z.dtype)


def _on_axis(fn: str, logits: Any, axis: int, axis_name: Any) -> tuple[Array, int, Static]:
    """Return the logits with the axis last, the axis, not negative, and where it was and how it is divided among devices."""
    names, z = arguments.names_of(fn, axis_name), floats(fn, "logits", logits)
    k = contract.class_axis(fn, "logits", z.shape, axis)
    arguments.check_devices(fn, names, {"logits": z})
    return jnp.moveaxis(z, k, -1), k, Static(axis=k - z.ndim, shards=names)
