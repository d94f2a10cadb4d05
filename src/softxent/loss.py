"""Softmax cross-entropy of logits that are given: the NumPy front end. No mathematics here: truth.py and the kernels have it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import contract, kernels
from .partials import Array
from .sweep import forward, fused, hessian, pieces, reduce, shaped, wide
from .truth import Squash, Truth, plain, squash, truth


def cross_entropy(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    empty_value: float = math.nan,
    weight: None = None,
) -> Any:
    """Softmax cross-entropy, `loss = mass * lse(z) - <y, z> = - sum_k y_k log softmax(z)_k`, of logits z against a truth y.

    Args:
        logits: [*rows, C], or with the class axis elsewhere (`axis`); float32, float64, float16 or bfloat16 (ml_dtypes), any
            strides. Computed in float32 (float64 for float64); every row's result is a float64.
        labels: class indices [*rows] of any integer type, or probabilities of the shape of `logits` (any mass, not only 1).
        axis: which axis of `logits` holds the classes.
        class_weight: [C], multiplies each class's truth (torch's `weight`).
        label_smoothing: e in [0, 1]: the truth becomes (1 - e) y + e/C at every class, weights included (torch's rule).
        ignore_index: rows with this label have loss 0 and gradient 0 whatever their logits, and do not count in a mean.
        sample_weight: broadcasts to [*rows], multiplies each row's loss.
        reduction: "none" (an array [*rows]), "sum", or "mean": the sum divided by the summed weights of the rows' labels
            (class_weight and sample_weight; for probabilities sample_weight only), as torch does.
        z_loss: L >= 0, adds L lse(z)^2 to every row that is not ignored (times its sample_weight).
        temperature: T > 0, divides the logits (after softcap).
        softcap: c > 0, the logits become c tanh(z / c).
        empty_value: what a mean over no rows at all is (torch: NaN).
        weight: PyTorch's name of class_weight, which is refused.

    Returns:
        float64: a scalar, or [*rows] for reduction="none".

    Raises:
        ValueError, TypeError: a shape, label, dtype or option that does not fit. Nothing has been written then.

    Cost: one read of the logits; O(rows) extra memory (plus a few MiB where the classes are strided or squashed).

    A tiny loss keeps all its digits: at a gap of 20 it is 2e-9 in float32, not 0 (the label is summed apart from the rest).
    A row's result does not depend on the batch, the threads or the processor, to the last bit (softcap: on NumPy's tanh).

    Mathematics: Results 1 to 3 and "prediction - truth" of the derivation; options: truth.py.
    """
    try:
        bare = axis == -1 and reduction == "mean" and label_smoothing == z_loss == 0 and temperature == 1
        bare = bare and class_weight is None and sample_weight is None and softcap is None and weight is None
    except ValueError:  # an array is no number: `_problem` says which argument it is
        bare = False
    if bare and _simple(logits, labels, ignore_index, None):
        assert isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray)
        result = np.empty((2, len(logits)))
        kernels.active().forward(logits, labels, plain(1.0), None, result, None, kernels.get_num_threads())
        return result[0].sum() / len(logits)
    z, lead, t, s = _problem(
        "cross_entropy", logits, labels, axis, temperature, softcap, weight, class_weight=class_weight, label_smoothing=label_smoothing,
        ignore_index=ignore_index, sample_weight=sample_weight, reduction=reduction, z_loss=z_loss, empty_value=empty_value,
    )  # fmt: skip
    result = forward(z, t, s)
    return reduce(result[0], reduction, t.total, empty_value, lead)


def cross_entropy_and_grad(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    empty_value: float = math.nan,
    upstream: npt.ArrayLike | None = None,
    out: Array | None = None,
    weight: None = None,
) -> tuple[Any, Array]:
    """The loss of `cross_entropy` and its gradient, `dz_k = mass * softmax(z)_k - y_k`: prediction - truth, in one pass.

    Args:
        logits, labels, axis, ..., empty_value: as in `cross_entropy`.
        upstream: what the gradient is multiplied by (not the loss), 1 if None: a scalar, or for reduction="none" one that
            broadcasts to [*rows].
        out: an array of the shape and dtype of `logits` to write the gradient into; it may be `logits` itself.

    Returns:
        (loss, gradient): the loss as `cross_entropy` returns it; the gradient like `logits` (`out`, if given).

    Raises:
        ValueError, TypeError: as `cross_entropy`, before anything is written.

    Cost: one read of the logits and one write of the gradient, one exp an element; with `out` O(rows + threads x C) extra memory.
    A fresh gradient costs page faults: for large matrices pass `out` and use it again.

    Mathematics: Part 3 of the derivation. At the label the gradient is formed as mass of the rest - mass * (1 - yhat), where
    1 - yhat is summed from the other classes, so that it keeps its digits at yhat = 0.999999.
    """
    fn = "cross_entropy_and_grad"
    try:
        bare = axis == -1 and reduction == "mean" and label_smoothing == z_loss == 0 and temperature == 1
        bare = bare and class_weight is None and sample_weight is None and upstream is None and softcap is None and weight is None
    except ValueError:  # as in `cross_entropy`
        bare = False
    if bare and _simple(logits, labels, ignore_index, out):
        assert isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray)
        n = len(logits)  # the layer as everybody uses it: nothing to prepare, a few microseconds
        dz = np.empty(logits.shape, logits.dtype) if out is None else contract.out(fn, out, logits, -1)
        result = np.empty((2, n))
        kernels.active().fused(logits, labels, plain(1 / n), None, dz, result, None, kernels.get_num_threads())
        return result[0].sum() / n, dz
    z, lead, t, s = _problem(
        fn, logits, labels, axis, temperature, softcap, weight, class_weight=class_weight, label_smoothing=label_smoothing,
        ignore_index=ignore_index, sample_weight=sample_weight, reduction=reduction, z_loss=z_loss, empty_value=empty_value,
        upstream=upstream,
    )  # fmt: skip
    dz = contract.out(fn, out, z, axis)
    result = fused(z, t, s, dz)
    return reduce(result[0], reduction, t.total, empty_value, lead), out if out is not None else contract.from_last(dz, axis)


def cross_entropy_hvp(
    logits: npt.ArrayLike,
    v: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    class_weight: npt.ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    sample_weight: npt.ArrayLike | None = None,
    reduction: str = "mean",
    z_loss: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    upstream: npt.ArrayLike | None = None,
    weight: None = None,
) -> Array:
    """The Hessian of `cross_entropy` by a vector, `H v = mass * yhat o (v - <yhat, v>)`, without the Hessian.

    Args:
        v: the direction, of the shape of `logits`.
        logits, labels, ...: as in `cross_entropy_and_grad`; with reduction="none" rows do not mix: each row's own product.

    Returns:
        H v, of the shape and dtype of `logits`.

    Raises:
        ValueError, TypeError: as `cross_entropy`.

    Cost: three reads of logits and v; a few MiB of scratch.

    Mathematics: Results 1 and 2 are the Jacobian of softmax, hence the Hessian of the loss; positive semi-definite (no softcap).
    """
    fn = "cross_entropy_hvp"
    z, _, t, s = _problem(
        fn, logits, labels, axis, temperature, softcap, weight, class_weight=class_weight, label_smoothing=label_smoothing,
        ignore_index=ignore_index, sample_weight=sample_weight, reduction=reduction, z_loss=z_loss, upstream=upstream,
    )  # fmt: skip
    hv = contract.out(fn, None, z, axis)
    for i, (narrow, vi, out) in pieces(False, z, contract.direction(fn, v, z, axis), hv):
        with np.errstate(over="ignore"):
            out[...] = hessian(wide(narrow), vi, t, i, s)
    return contract.from_last(hv, axis)


def token_logprobs(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Any:
    """`log yhat_t = z_t - lse(z)` of each row's label: float64 [*rows]; 0 where ignored. Arguments, errors, cost: `cross_entropy`.

    The same bits whatever the batch a row comes in: a sampler and a trainer that call this agree exactly.
    """
    z, lead, t, s = _problem("token_logprobs", logits, labels, axis, temperature, softcap, ignore_index=ignore_index)
    return shaped(-forward(z, t, s)[0], lead)


def token_logprobs_and_grad(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    temperature: float = 1.0,
    softcap: float | None = None,
    upstream: npt.ArrayLike = 1.0,
    out: Array | None = None,
) -> tuple[Any, Array]:
    """`token_logprobs` and its gradient by the logits, `truth - prediction`, times `upstream` (broadcasts to [*rows])."""
    fn = "token_logprobs_and_grad"
    z, lead, t, s = _problem(fn, logits, labels, axis, temperature, softcap, ignore_index=ignore_index, upstream=upstream)
    dz = contract.out(fn, out, z, axis)
    minus = t._replace(rows=t.rows * [[1], [1], [1], [-1]])  # truth - prediction
    return shaped(-fused(z, minus, s, dz)[0], lead), out if out is not None else contract.from_last(dz, axis)


def _problem(
    fn: str, logits: Any, labels: Any, axis: int, temperature: float, softcap: float | None, weight: None = None, **options: Any
) -> tuple[Array, tuple[int, ...], Truth, Squash | None]:
    """The arguments, checked: logits with the class axis last, the rows' shape, the truth, the squash."""
    if weight is not None:
        contract.renamed(fn, "weight", weight, "class_weight")
    z = contract.logits(fn, logits, axis)
    s = squash(fn, temperature, softcap)
    return z, z.shape[:-1], truth(fn, labels, z, axis, **options), s


def _simple(z: Any, labels: Any, ignore_index: int, out: Any) -> bool:
    """Whether these are a matrix, labels and an output that a kernel can take as they come, with no row ignored."""
    return (
        type(z) is np.ndarray
        and type(labels) is np.ndarray
        and z.ndim == 2
        and (z.dtype.char in "fde" or z.dtype.name == "bfloat16")
        and z.dtype.isnative
        and z.strides[1] == z.itemsize
        and labels.dtype == np.int64
        and labels.shape == z.shape[:1]
        and z.size > 0
        and (out is None or getattr(out, "strides", ())[1:] == z.strides[1:])
        and type(ignore_index) is int
        and not 0 <= ignore_index < z.shape[1]
        and kernels.active().first_outside(labels, z.shape[1], 0) < 0
    )
